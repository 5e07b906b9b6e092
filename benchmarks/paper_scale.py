"""Indexes at the paper's size: 13,353,718 x 128, and what each costs from 10,000 rows on.

    python benchmarks/paper_scale.py                                    # all factories, all sizes: hours on two cores
    python benchmarks/paper_scale.py --sizes 10000 100000 --factories auto Flat SQfp16
    python benchmarks/paper_scale.py --embeddings run/index/step-0-1a2b3c4d/embeddings.npy     # real ones beside them
    python benchmarks/paper_scale.py --plot                             # draw again from what is there

Each cell (factory, size) is built, saved, mapped and searched in a process of its own, whose peak memory is the
cell's, and leaves one line in benchmarks/paper-scale.jsonl; a cell that has its line is not measured again, so that
the program can be stopped and started. A cell that would not fit into --memory is left out with a line that says so.
Embeddings are synthetic (harness/vectors.py, seed 0), stored as float16, as a run of that size would store them.
Recall is the share of the exact best 5 of 256 queries. The searches take one query and 256 at a time, with all cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from harness.inputs import SCRATCH
from harness.machine import commit
from harness.results import append_line, read_lines
from harness.vectors import DIMENSION, chunks, queries
from paper_scale_plot import draw, table, write_page

from realm_hf.estimate.index_costs import built_index_bytes
from realm_hf.index.default_index import AUTO_RECALL, RECALL_DEPTH, plan_index, reach_recall
from realm_hf.index.exact import exact_search, share_found
from realm_hf.index.faiss_index import build_index
from realm_hf.index.faiss_search import search
from realm_hf.index.file import open_index, save_index

PAPER = 13_353_718
SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000, PAPER)
# "IVF-SQ8" and the like have as many lists as "auto" would; codes of PQ are not re-ranked by the vectors.
FACTORIES = ("Flat", "SQfp16", "SQ8", "auto", "IVF-SQ8", "IVF-PQ32", "IVF-OPQ-PQ64", "HNSW16-SQ8", "HNSW32-SQfp16")
QUERIES, SEED = 256, 0
_LIBRARIES_GIGABYTES = 0.5
FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "paper-scale.jsonl"
DOCS = FOLDER.parent / "docs"


def main() -> None:
    """Measure what is missing, then draw and print what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="N")
    parser.add_argument(
        "--factories", nargs="+", default=FACTORIES, choices=FACTORIES, metavar="F", help=str(FACTORIES)
    )
    parser.add_argument(
        "--embeddings", type=Path, help="a run's embeddings.npy, measured as it is beside the synthetic"
    )
    parser.add_argument("--memory", type=float, default=14.0, help="GB that a cell may take (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--plot-file", type=Path, default=DOCS / "assets" / "paper-scale.svg")
    parser.add_argument("--page", type=Path, default=DOCS / "results" / "indexes.md")
    parser.add_argument("--plot", action="store_true", help="measure nothing")
    parser.add_argument("--cell", nargs=2, metavar=("FILE", "FACTORY"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cell:
        print(json.dumps(measure_cell(Path(args.cell[0]), args.cell[1], args.threads)))
        return
    if not args.plot:
        real = [(args.embeddings, "real")] if args.embeddings else []
        for file, kind in [*real, *((None, size) for size in sorted(args.sizes))]:
            measure_size(file or synthetic_file(int(kind)), "real" if file else "synthetic", args)
    found = read_lines(args.results)
    print(table(found))
    draw(found, args.plot_file)
    write_page(found, args.page, args.plot_file)


def measure_size(embeddings: Path, kind: str, args: argparse.Namespace) -> None:
    """Measure the factories that have no line for these embeddings yet."""
    rows, dimension = np.load(embeddings, mmap_mode="r").shape
    for name in args.factories:
        known = {(cell["kind"], cell["rows"], cell["name"]) for cell in read_lines(args.results)}
        factory = resolve(name, rows)
        if (kind, rows, name) in known or factory is None:
            continue
        needed = expected_gigabytes(factory, rows, dimension)
        cell: dict[str, Any] = {"kind": kind, "rows": rows, "name": name, "factory": factory, "commit": commit()}
        if needed > args.memory:
            cell["left_out"] = f"needs about {needed:.0f} GB, --memory is {args.memory:.0f}"
        else:
            print(f"{kind} {rows:,} {factory} ...", file=sys.stderr, flush=True)
            command = [sys.executable, __file__, "--cell", embeddings, name, "--threads", str(args.threads)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode:
                # Not written down: it may be the memory of the moment, and is tried again next time.
                print(f"{kind} {rows:,} {factory} ended with {done.returncode}", file=sys.stderr, flush=True)
                continue
            cell |= json.loads(done.stdout.splitlines()[-1])
        append_line(args.results, cell)


def resolve(name: str, rows: int) -> str | None:
    """The FAISS factory of a column at a size; `None` where it would train more lists than there are rows for."""
    if name == "auto":
        return plan_index("auto", rows).factory
    if name.startswith("IVF"):
        lists = list_count(rows)
        codes = {
            "IVF-SQ8": f"IVF{lists},SQ8",
            "IVF-PQ32": f"IVF{lists},PQ32",
            "IVF-OPQ-PQ64": f"OPQ64,IVF{lists},PQ64",
        }
        return codes[name] if rows >= 39 * lists else None
    return {"HNSW16-SQ8": "HNSW16_SQ8", "HNSW32-SQfp16": "HNSW32_SQfp16"}.get(name, name)


def list_count(rows: int) -> int:
    """As "auto" chooses it beyond its exact sizes."""
    return int(min(16_384, 2 ** round(np.log2(4 * rows**0.5))))


def expected_gigabytes(factory: str, rows: int, dimension: int) -> float:
    """About what building takes: the index and its sample, the mapped embeddings in float16, the interpreter."""
    built = built_index_bytes(rows, dimension, factory, _train_size(factory, rows))
    return (built + 2 * rows * dimension) / 2**30 + _LIBRARIES_GIGABYTES


def _train_size(factory: str, rows: int) -> int:
    return plan_index(factory, rows).train_size or max(65_536, 64 * list_count(rows))


def measure_cell(file: Path, name: str, threads: int) -> dict[str, Any]:
    """Build, save, map, search: seconds, peak memory, bytes, queries a second, recall."""
    faiss.omp_set_num_threads(threads)
    embeddings = np.load(file, mmap_mode="r")
    rows = len(embeddings)
    factory = resolve(name, rows)
    assert factory is not None
    train_size = _train_size("auto" if name == "auto" else factory, rows)
    asked = draw_queries(file, embeddings)
    started = time.perf_counter()
    index = build_index(embeddings, factory, train_size=train_size, threads=threads)
    build_seconds = time.perf_counter() - started
    lists = faiss.try_extract_index_ivf(index)
    if lists is not None:
        # Every kind of lists gets the same chance: as many as "auto" would search.
        reach_recall(index, embeddings, AUTO_RECALL)
    tune_seconds = time.perf_counter() - started - build_seconds
    peak = peak_gigabytes()
    target = SCRATCH / f"paper-scale-{os.getpid()}.faiss"
    started = time.perf_counter()
    save_index(index, target)
    save_seconds = time.perf_counter() - started
    del index
    try:
        started = time.perf_counter()
        mapped = open_index(target, rows=rows)
        open_seconds = time.perf_counter() - started
        search(mapped, asked, RECALL_DEPTH)  # brings the file's pages in
        return {
            "threads": threads,
            "build_seconds": round(build_seconds, 3),
            "tune_seconds": round(tune_seconds, 3),
            "save_seconds": round(save_seconds, 3),
            "open_seconds": round(open_seconds, 5),
            "peak_gigabytes": round(peak, 3),
            "file_bytes": target.stat().st_size,
            "nprobe": None if lists is None else faiss.extract_index_ivf(mapped).nprobe,
            "recall": round(recall_of(file, embeddings, mapped, asked), 4),
            "queries_a_second": round(rate(mapped, asked, QUERIES), 1),
            "queries_a_second_one_by_one": round(rate(mapped, asked, 1), 1),
        }
    finally:
        target.unlink()


def peak_gigabytes() -> float:
    """This process's alone; `getrusage` would count the one that started it."""
    with Path("/proc/self/status").open(encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 2**20


def draw_queries(file: Path, embeddings: np.ndarray) -> np.ndarray:
    """256 queries, the same for every factory, kept beside the embeddings."""
    return cached(SCRATCH / f"{key(file)}.queries.npy", lambda: queries(embeddings, QUERIES, SEED))


def recall_of(file: Path, embeddings: np.ndarray, index: faiss.Index, asked: np.ndarray) -> float:
    """Recall@5; the exact search is made once for a size."""
    best = cached(SCRATCH / f"{key(file)}.best.npy", lambda: exact_search(embeddings, asked, RECALL_DEPTH)[0])
    return share_found(embeddings, index, asked, best)


def key(file: Path) -> str:
    """A name for files that belong to these embeddings."""
    return f"{file.parent.name}-{file.stem}-{file.stat().st_size}"


def cached(file: Path, make: Any) -> np.ndarray:
    """`make()`, from the file if it was made before."""
    if not file.exists():
        SCRATCH.mkdir(parents=True, exist_ok=True)
        made = make()
        partial = file.with_suffix(".part.npy")
        np.save(partial, made)
        partial.rename(file)
    found: np.ndarray = np.load(file)
    return found


def rate(index: faiss.Index, asked: np.ndarray, batch: int) -> float:
    """Queries a second in batches of that size, over at least a second or one pass."""
    answered, started = 0, time.perf_counter()
    while True:
        for start in range(0, len(asked), batch):
            search(index, asked[start : start + batch], RECALL_DEPTH)
            answered += batch
            if (passed := time.perf_counter() - started) > 1.0:
                return answered / passed


def synthetic_file(rows: int) -> Path:
    """The first `rows` synthetic embeddings, float16, kept in .cache/bench (3.4 GB at the paper's size)."""
    file = SCRATCH / f"synthetic-{rows}.npy"
    if not file.exists():
        SCRATCH.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".part.npy")
        stored = np.lib.format.open_memmap(partial, "w+", np.float16, (rows, DIMENSION))
        filled = 0
        for piece in chunks(rows, SEED):
            stored[filled : filled + len(piece)] = piece
            filled += len(piece)
        stored.flush()
        partial.rename(file)
    return file


if __name__ == "__main__":
    main()
