"""One of the two processes of `test_two_ranks.py`; writes what it saw to FOLDER/rank-<rank>.json."""

import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from realm_hf.models.fingerprints import state_fingerprint
from realm_hf.refresh import builder
from realm_hf.refresh.modes import make_refresher
from realm_hf.refresh.swap import SwapCoordinator
from realm_hf.runs.directory import RunDirectory
from realm_hf.runs.snapshots import copy_embedder_state, load_snapshot, write_snapshot


def swap_through_800_steps(rank: int, accelerator: SimpleNamespace) -> dict[str, Any]:
    """Rank 1 opens slowly, and cannot open g2."""
    closed: list[str] = []
    quarantined: list[str] = []

    def open_generation(name: str) -> SimpleNamespace:
        if rank == 1:
            time.sleep(0.6)
            if name == "g2":
                raise OSError("g2 is truncated")
        return SimpleNamespace(name=name, info=SimpleNamespace(snapshot_step=0), close=lambda: closed.append(name))

    coordinator = SwapCoordinator(accelerator, open_generation, quarantine=lambda name, why: quarantined.append(name))
    coordinator.swap_now("g0" if rank == 0 else None, 0)
    served, swap_steps, slowest = [], [], 0.0
    for step in range(1, 800):
        # g1 from step 10 on, g2 from step 250, g3 from step 500; a quarantined one is no longer proposed.
        newest = "g0" if step < 10 else "g1" if step < 250 else "g2" if step < 500 else "g3"
        proposal = newest if newest not in quarantined else None
        with coordinator.reading() as generation:
            served.append(generation.name)
        time.sleep(0.004 if rank == 0 else 0.005)
        started = time.monotonic()
        if coordinator.tick(proposal if rank == 0 else None, step) is not None:
            swap_steps.append(step)
        slowest = max(slowest, time.monotonic() - started)
    return {
        "served": served,
        "swap_steps": swap_steps,
        "slowest_step_seconds": slowest,
        "failures": [(failure.name, failure.reasons) for failure in coordinator.failures],
        "quarantined": quarantined,
        "closed": sorted(closed),
        "any_rank": [coordinator.any_rank(rank == 1), coordinator.any_rank(False)],
    }


def build_together(accelerator: SimpleNamespace, run: RunDirectory) -> dict[str, Any]:
    """The generation of snapshot step-1-e0, built again as step 2 by both ranks."""
    refresher = make_refresher("sync", run, accelerator)
    refresher.start()
    refresher.submit(2, load_snapshot(run, "step-1-e0"))
    info = refresher.poll()
    refresher.stop()
    return {"built": None if info is None else info.name}


def build_by_launcher(run: RunDirectory) -> dict[str, Any]:
    """`realm-hf build-index` under `torchrun`: the newest snapshot, once, by both ranks."""
    return {"exit_code": builder.main([str(run.root), "--once"])}


def copy_sharded_weights(run: RunDirectory) -> dict[str, Any]:
    """What a snapshot of an embedder under FSDP2 would hold, as its fingerprint."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    embedder = load_snapshot(run, "step-1-e0")
    fully_shard(embedder, mesh=init_device_mesh("cpu", (2,)))
    state = copy_embedder_state(embedder)
    return {"sharded": state_fingerprint(state) if state else None}


def main() -> None:
    rank, port, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, RANK=str(rank), WORLD_SIZE="2")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    accelerator = SimpleNamespace(process_index=rank, num_processes=2, device=torch.device("cpu"))
    run = RunDirectory.open(sys.argv[4])
    told = swap_through_800_steps(rank, accelerator) | build_together(accelerator, run)
    if rank == 0:
        write_snapshot(run, load_snapshot(run, "step-1-e0"), 4, 0)
    told |= build_by_launcher(run) | copy_sharded_weights(run)
    (folder / f"rank-{rank}.json").write_text(json.dumps(told), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
