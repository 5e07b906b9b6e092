"""The groups over which ranks tell each other small things, and waiting for one that works for hours.

All go over gloo on CPU tensors: they neither wait for the GPU's queue nor disturb it. The backend of the gradients
(NCCL: ten minutes) and gloo's default (thirty) both end a job whose main process tags a corpus or copies an index.
Two groups, because one timeout cannot serve both: that of every step notices a silent rank within minutes, that of the
long waits leaves it days.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

logger = logging.getLogger(__name__)

STEP_TIMEOUT = timedelta(minutes=10)
PATIENT_TIMEOUT = timedelta(days=7)
TOLD_EVERY_SECONDS = 300.0

T = TypeVar("T")


def step_group() -> dist.ProcessGroup | None:
    """For what every step exchanges: a rank that is silent for minutes ends the job. Every rank calls it.

    Returns:
        `None` where there is one process.
    """
    return _group(STEP_TIMEOUT)


def patient_group() -> dist.ProcessGroup | None:
    """For waiting while one rank prepares a corpus, writes a checkpoint or verifies an index. Every rank calls it.

    Returns:
        `None` where there is one process.
    """
    return _group(PATIENT_TIMEOUT)


def _group(timeout: timedelta) -> dist.ProcessGroup | None:
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    return dist.new_group(backend="gloo", timeout=timeout)


def run_on_main(function: Callable[[], T], what: str, group: dist.ProcessGroup | None) -> T:
    """Run `function` on rank 0 while the others wait; its result, or its error, is everybody's.

    Without this an error on rank 0 would leave the others in a collective until it times out.

    Args:
        function: Its result is pickled to the other ranks.
        what: What it does, for the others' log: "write the checkpoint".
        group: [`patient_group`]; with `None` the function is simply called.
    """
    if group is None:
        return function()
    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = function()
        except Exception as error:  # noqa: BLE001 - raised again on every rank below
            outcome[1] = error
    with told_while_waiting(f"for rank 0 to {what}"):
        dist.broadcast_object_list(outcome, src=0, group=group)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


@contextmanager
def told_while_waiting(what: str) -> Iterator[None]:
    """Log every [`TOLD_EVERY_SECONDS`] what the block waits for, and for how long it has.

    Args:
        what: "for rank 0 to write the checkpoint".
    """
    started, over = time.monotonic(), threading.Event()

    def tell() -> None:
        while not over.wait(TOLD_EVERY_SECONDS):
            logger.warning(
                "rank %d waits %s: %.0f s so far, at most %s",
                dist.get_rank(),
                what,
                time.monotonic() - started,
                PATIENT_TIMEOUT,
            )

    teller = threading.Thread(target=tell, name="told-while-waiting", daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()
