"""Opening a saved retriever of a million passages in a fresh process: seconds, and what it makes resident."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator

from harness.alternation import half_interquartile_range
from harness.million import passage_count, saved_retriever
from harness.rows import Row, Settings

SECONDS, MEGABYTES = 1.0, 200.0

# What a program has imported before is its own; the figures are those of the one call.
_PROGRAM = """
import json, sys, time
from realm_hf import RealmForOpenQA, RealmRetriever, RealmTokenizer

def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024

before = resident()
started = time.perf_counter()
retriever = RealmRetriever.from_pretrained(sys.argv[1])
seconds = time.perf_counter() - started
opened = resident()
started = time.perf_counter()
retriever.retrieve(retriever.embeddings[:1], 8)
first = time.perf_counter() - started
print(json.dumps({
    "seconds": seconds, "megabytes": opened - before, "total": opened, "first_search": first,
    "after_search": resident() - before,
}))
"""


def measure(settings: Settings) -> Iterator[Row]:
    """Two rows: the time beside one second, the memory beside 200 MB."""
    folder = saved_retriever(settings)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20
    openings = [_open(str(folder)) for _ in range(1 + settings.rounds)][1:]
    figures = {name: [opening[name] for opening in openings] for name in openings[0]}
    middle = {name: statistics.median(values) for name, values in figures.items()}
    name = f"opening a saved retriever of {passage_count(settings):,} passages"
    yield Row(
        name,
        middle["seconds"],
        SECONDS,
        "s",
        1.0,
        "at_most",
        "one second",
        half_interquartile_range(figures["seconds"]),
        0.0,
        f"{size:,.0f} MB of files, memory-mapped, in the page cache; the first search takes "
        f"{middle['first_search']:.2f} s more.",
    )
    yield Row(
        f"{name}: memory",
        middle["megabytes"],
        MEGABYTES,
        "MB resident",
        1.0,
        "at_most",
        "200 MB",
        half_interquartile_range(figures["megabytes"]),
        0.0,
        f"What the call adds; the process has {middle['total']:.0f} MB then, most of it libraries, and "
        f"{middle['after_search']:.0f} MB more than before the call after one search.",
    )


def _open(folder: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, folder], stdout=subprocess.PIPE, text=True, check=True, env=os.environ
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found
