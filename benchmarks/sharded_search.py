"""Search by several gloo ranks that each hold a part of the rows: its time, its memory, and whether it ever hangs.

    python benchmarks/sharded_search.py --rows 1000000 4000000 --ranks 1 2 4
    python benchmarks/sharded_search.py --schedules 1000 --ranks 2 4

Rows are synthetic embeddings in float16 (`benchmarks/harness/vectors.py`), written to a file once and mapped by all
ranks. A search is that of a training step: queries of all ranks together, each with a row that it does not want, k and
16 more of over-retrieval. What the ranks find is compared with one exact index over all rows. With `--schedules` tiny
indexes are searched instead, at random: how many queries a rank has, how many rows it wants, and what it leaves out
differ by rank and search; every result is compared.

All ranks share this machine's cores and memory bandwidth, as they would not on machines of their own: a rank's time is
that of its share of the products where `--ranks` is not above the cores.
"""

import argparse
import multiprocessing
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from realm_hf.generations.embedding import shard
from realm_hf.index.exact import ExactIndex
from realm_hf.index.sharded import ShardedIndex
from realm_hf.refresh.search_ranks import SearchRanks

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
from harness.machine import measured_on, own_megabytes  # noqa: E402
from harness.vectors import DIMENSION, chunks, queries  # noqa: E402

_OVER_RETRIEVE = 16
_HANGS_AFTER = timedelta(minutes=2)


@dataclass(frozen=True)
class Multiples:
    """
    An exclusion made of numbers: a query does not want the rows whose text its divisor divides.

    Args:
        divisors (`np.ndarray`, int `[Q]`): 0 leaves out nothing.
        copies (`int`): Rows of one text, one after the other.
        over_retrieve (`int`): As for any exclusion.
    """

    divisors: np.ndarray
    copies: int = 1
    over_retrieve: int = _OVER_RETRIEVE

    @property
    def filtered(self) -> np.ndarray:
        """Bool `[Q]`."""
        return self.divisors > 0

    def unwanted(self, query: int, rows: np.ndarray) -> np.ndarray:
        """Bool, for each row."""
        return (rows >= 0) & (rows // self.copies % self.divisors[query] == 0)

    def groups(self, rows: np.ndarray) -> np.ndarray:
        """Which text a row is."""
        return rows // self.copies


def random_schedules(rank: int, world_size: int, count: int, seed: int = 0) -> int:
    """
    Search at random, each rank something else, and compare with one exact index; on every rank.

    Args:
        rank (`int`): This rank.
        world_size (`int`): How many there are; at least 2.
        count (`int`): Searches.
        seed (`int`, *optional*, defaults to 0): Of all that is drawn.

    Returns:
        `int`: Queries of this rank that were searched.
    """
    # Small whole numbers have exact products and many ties; exact indexes break these by the lower row as well.
    vectors = np.random.default_rng(seed).integers(-3, 4, (500, 6)).astype(np.float16)
    ranks = SearchRanks(rank, world_size, timeout=_HANGS_AFTER)
    index = ShardedIndex(vectors, ranks, rows=shard(len(vectors), rank, world_size))
    alone = ShardedIndex(vectors)
    random, searched = np.random.default_rng([seed, rank]), 0
    for number in range(count):
        some = int(random.integers(0, 9))
        asked = random.integers(-3, 4, (some, vectors.shape[1])).astype(np.float32)
        exclude = Multiples(random.integers(0, 4, some), int(random.integers(1, 4)), int(random.integers(0, 9)))
        k, given = int(random.integers(1, 20)), exclude if random.random() < 0.8 else None
        found, expected = index.search(asked, k, exclude=given), alone.search(asked, k, exclude=given)
        for name in ("rows", "scores", "excluded", "duplicates"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), f"search {number}: {name}")
        searched += some
    return searched


def time_searches(rank: int, world_size: int, path: str, batch: int, k: int, rounds: int) -> dict[str, Any]:
    """Seconds of searches of `batch` queries of all ranks together, and this rank's memory; on every rank."""
    embeddings = np.load(path, mmap_mode="r")
    before = own_megabytes(os.getpid())
    ranks = SearchRanks(rank, world_size) if world_size > 1 else None
    index = ShardedIndex(embeddings, ranks, rows=shard(len(embeddings), rank, world_size))
    held = own_megabytes(os.getpid()) - before
    own = queries(embeddings, batch)[rank::world_size]
    exclude = Multiples(np.full(len(own), 7))
    expected = ExactIndex(embeddings).search(own, k, exclude=exclude)
    found = index.search(own, k, exclude=exclude)
    same = float((found.rows == expected.rows).mean())
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4)
    seconds = []
    for _ in range(rounds):
        if world_size > 1:
            dist.barrier()
        started = time.perf_counter()
        index.search(own, k, exclude=exclude)
        seconds.append(time.perf_counter() - started)
    after = own_megabytes(os.getpid()) - before
    return {"seconds": statistics.median(seconds), "held": held, "after": after, "same_rows": same}


def on_ranks(world_size: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `work(rank, world_size, *arguments)` returns on each of so many gloo ranks of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    ranks = [
        context.Process(target=_rank, args=(rank, world_size, port, work, arguments, answers))
        for rank in range(world_size)
    ]
    for rank in ranks:
        rank.start()
    found = dict(answers.get() for _ in ranks)
    for rank in ranks:
        rank.join()
    failed = [answer for answer in found.values() if isinstance(answer, BaseException)]
    if failed:
        raise failed[0]
    return [found[rank] for rank in range(world_size)]


def _rank(rank: int, world_size: int, port: int, work: Callable[..., Any], arguments: Any, answers: Any) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(world_size))
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    try:
        answers.put((rank, work(rank, world_size, *arguments)))
    except BaseException as error:  # noqa: BLE001 - raised by the parent
        answers.put((rank, error))


def write_rows(rows: int, folder: Path) -> Path:
    """The synthetic embeddings as a file of float16; kept."""
    path = folder / f"{rows}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part.npy")
        stored = np.lib.format.open_memmap(unfinished, "w+", np.float16, (rows, DIMENSION))
        filled = 0
        for piece in chunks(rows):
            stored[filled : filled + len(piece)] = piece
            filled += len(piece)
        stored.flush()
        unfinished.rename(path)
    return path


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 4_000_000])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--batch", type=int, default=64, help="queries of all ranks together")
    parser.add_argument("--k", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--schedules", type=int, help="search tiny indexes at random so often, and measure nothing")
    parser.add_argument("--folder", type=Path, default=ROOT / ".cache" / "sharded-search", help="of the embeddings")
    args = parser.parse_args()
    if args.schedules:
        for world_size in args.ranks:
            if world_size > 1:
                searched = sum(on_ranks(world_size, random_schedules, args.schedules))
                print(f"{world_size} ranks: {args.schedules} searches, {searched} queries, all as one exact index")
        return
    print(measured_on(1, "benchmarks/sharded_search.py"), flush=True)
    print("| rows | ranks | ms a search | MB held a rank | MB after searches | same rows as one exact index |")
    print("|---:|---:|---:|---:|---:|---:|")
    for rows in args.rows:
        path = str(write_rows(rows, args.folder))
        for world_size in args.ranks:
            found = on_ranks(world_size, time_searches, path, args.batch, args.k, args.rounds)
            seconds, held, after = (max(one[name] for one in found) for name in ("seconds", "held", "after"))
            same = min(one["same_rows"] for one in found)
            row = f"{rows:,} | {world_size} | {1000 * seconds:.0f} | {held:.0f} | {after:.0f} | {same:.4f}"
            print(f"| {row} |", flush=True)


if __name__ == "__main__":
    main()
