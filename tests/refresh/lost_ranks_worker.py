"""One of the two processes of `test_lost_ranks.py`; writes what it saw to FOLDER/rank-<rank>.json."""

import json
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist

from realm_hf.refresh.base import RefreshError
from realm_hf.refresh.rank_group import RankGroup
from realm_hf.refresh.swap import SwapCoordinator

SHORT = timedelta(seconds=2)


def words_of(work) -> tuple[str, float]:
    """What `work` raised, and after how many seconds."""
    started = time.monotonic()
    try:
        work()
    except (RefreshError, OSError) as error:
        return f"{type(error).__name__}: {error}", time.monotonic() - started
    return "all is well", time.monotonic() - started


def busy(seconds: float) -> None:
    """Work that marks nothing, as training an index does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(10_000))


def embed_for_ever(ranks: RankGroup) -> None:
    while True:
        time.sleep(0.01)
        ranks.mark()


def fail(error: Exception) -> None:
    time.sleep(0.3)
    raise error


def main() -> None:
    rank, port, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, RANK=str(rank), WORLD_SIZE="2")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    told = {}

    def together(name: str, ranks: RankGroup, first, second) -> None:
        told[name] = words_of(lambda: ranks.together("embedding", second if rank else first))
        (folder / f"rank-{rank}.json").write_text(json.dumps(told), encoding="utf-8")

    ranks, last = RankGroup(rank, 2, meeting_timeout=SHORT), RankGroup(rank, 2, meeting_timeout=SHORT)
    hanging = RankGroup(rank, 2, stall_seconds=1.0)
    alike = SimpleNamespace(process_index=rank, num_processes=2)
    coordinator = SwapCoordinator(alike, lambda name: None, meeting_timeout=SHORT)
    if sys.argv[4] == "stops":
        together("a build longer than the timeout", ranks, lambda: busy(3.0), lambda: None)
        together("one fails", ranks, lambda: embed_for_ever(ranks), lambda: fail(OSError(28, "the disk is full")))
        together("and the next build", ranks, lambda: busy(0.1), lambda: busy(0.1))
        together("one hangs", hanging, lambda: None, lambda: time.sleep(4.0))
    dist.barrier()
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL if sys.argv[4] == "dies" else signal.SIGSTOP)
    told["a swap without it"] = words_of(lambda: coordinator.tick(None, 12))
    together("a build without it", last, lambda: embed_for_ever(last), lambda: None)


if __name__ == "__main__":
    main()
