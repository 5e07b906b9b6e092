"""Ranks that an elastic launcher (`torchrun --max-restarts`) has started anew after a failure."""

from __future__ import annotations

import os


def restarted_by_launcher() -> bool:
    """Whether an elastic launcher (`torchrun --max-restarts`) has started this process anew after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") or "0") > 0


def meet_restarted_ranks(use_cpu: bool) -> None:
    """After a restart by an elastic launcher, let the ranks meet in a corner of their own of the launcher's store.

    The launcher may keep its store over restarts, and torch (2.13) goes by the same names in it: a rank could read the
    address of a peer that is dead, and end this start as well.

    Args:
        use_cpu (`bool`): Whether the run trains on the CPU, over gloo.
    """
    if not restarted_by_launcher() or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    # Here, because arguments ask above whether this is a restart, and are read without torch.
    import torch
    import torch.distributed as dist
    from accelerate.utils import parse_flag_from_env

    if dist.is_initialized():
        return
    on_cpu = use_cpu or parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available()
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    # torch's stubs leave both stores out.
    store = dist.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), world_size, is_master=False
    )
    count = os.environ["TORCHELASTIC_RESTART_COUNT"]
    corner = dist.PrefixStore(f"restart-{count}", store)  # type: ignore[attr-defined]
    dist.init_process_group("gloo" if on_cpu else "nccl", store=corner, rank=rank, world_size=world_size)
