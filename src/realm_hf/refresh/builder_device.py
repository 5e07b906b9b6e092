"""Whether a builder can work on its device, asked at the start of a run instead of at the first refresh, hours later.

A device of a name that torch knows is tried by a process of its own, with a builder's environment: a trainer that
looked at another card itself would leave half a gigabyte of it occupied, and a card may be there for one process and
not for another.
"""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import torch

from realm_hf.models.ragged_encoding import CHUNK_TOKENS
from realm_hf.refresh.builder_options import devices_of
from realm_hf.refresh.builder_process import builder_environment
from realm_hf.refresh.rank_group import RankGroup

if TYPE_CHECKING:
    from realm_hf.models.modeling_realm import RealmEmbedder

# Prints the free bytes of the given device, or -1 where that is not known; fails where nothing can be computed.
_TRIAL = """
import sys, torch
device = torch.device(sys.argv[1])
ones = torch.ones(64, 64, device=device)
assert (ones @ ones).sum().item() == 64.0**3
print(torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else -1)
"""
_TRIAL_SECONDS = 120.0
_REMEDY = "Give a free one instead, such as cuda:1, or cpu."


def check_builder_device(device: str, needed_bytes: int = 0) -> None:
    """
    Refuse a builder's device on which a build would fail.

    Args:
        device (`str`): As `builder_device`: one, or several with commas between them.
        needed_bytes (`int`, *optional*, defaults to 0): Memory that a build takes there, see [`build_bytes`].

    Raises:
        ValueError: Torch does not know it, this machine does not have it, nothing can be computed there, or too little
            of its memory is free. The message says what to give instead.
    """
    for one in devices_of(device):
        if known_device(one).type != "cpu":
            _try(one, needed_bytes)


def _try(device: str, needed_bytes: int) -> None:
    try:
        trial = subprocess.run(
            [sys.executable, "-c", _TRIAL, device],
            env=builder_environment(1),
            capture_output=True,
            text=True,
            timeout=_TRIAL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(
            f"{_named(device)}, but it did not add up 64 x 64 numbers in {_TRIAL_SECONDS:.0f} s. {_REMEDY}"
        ) from error
    if trial.returncode:
        lines = trial.stderr.strip().splitlines()
        raise ValueError(
            f"{_named(device)}, but nothing can be computed there: "
            f"{lines[-1] if lines else f'exit code {trial.returncode}'}. {_REMEDY}"
        )
    check_room(device, int(trial.stdout), needed_bytes)


def known_device(device: str) -> torch.device:
    """
    The device of a name.

    Raises:
        ValueError: Torch does not know the name, or sees no such CUDA device here.
    """
    try:
        parsed = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"{_named(device)}, which is none: {_first_line(error)} {_REMEDY}") from error
    if parsed.type == "cuda" and (parsed.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"{_named(device)}, but torch sees {torch.cuda.device_count()} CUDA device(s) here. {_REMEDY}"
        )
    return parsed


def check_on_all_ranks(device: str, needed_bytes: int = 0) -> None:
    """[`check_builder_device`] on the main process, beside which the builder runs; its error is every rank's."""
    if device != "cpu":
        RankGroup.of_all_ranks().on_main(
            lambda: check_builder_device(device, needed_bytes), "try the device of the index builder"
        )


def check_room(device: str, free_bytes: int, needed_bytes: int) -> None:
    """
    Refuse a device with too little free memory; a negative number of free bytes says that it is not known.

    Raises:
        ValueError: It has less than is needed.
    """
    if 0 <= free_bytes < needed_bytes:
        raise ValueError(
            f"{_named(device)}, of whose memory {free_bytes / 2**30:.1f} GiB are free, but a build takes "
            f"about {needed_bytes / 2**30:.1f}: another process is on it. {_REMEDY}"
        )


def build_bytes(embedder: RealmEmbedder, max_tokens_per_batch: int | None) -> int:
    """
    Memory that embedding passages takes on an accelerator: the weights, and the widest layer of one batch.

    Args:
        embedder ([`RealmEmbedder`]): The passage tower.
        max_tokens_per_batch (`int`, *optional*): As in `run.json`; `None` for the default of such a device.
    """
    config = embedder.config
    tokens = max_tokens_per_batch or CHUNK_TOKENS["cuda"][1]
    # Alive at once in a layer without gradient: its input, three projections, and the wide half before and after GELU.
    widest = 4 * config.hidden_size + 2 * config.intermediate_size
    return 4 * (sum(parameter.numel() for parameter in embedder.parameters()) + tokens * widest)


def _named(device: str) -> str:
    return f"The builder's device (builder_device) is {device!r}"


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]
