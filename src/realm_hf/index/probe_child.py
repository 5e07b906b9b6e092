"""The child process of [`probe_index`]: reads and searches an index. It is run by its path, never imported."""

from __future__ import annotations

import ctypes
import importlib.util
import mmap
import sys
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np

BATCHES = (1, 3, 64, 1000, 5000)
"""Queries of a search: below and above the sizes at which FAISS takes another way."""
SECONDS = 5.0
"""For all batches but the first three; a larger one is made smaller so that it fits: an exact search of millions of
passages takes a second for some ten queries."""
MOST_ROWS = 100


def load(name: str) -> Any:
    """A module beside this file, without the package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fenced(queries: np.ndarray) -> np.ndarray:
    """The same queries at the end of what may be read: a search that reads past them dies, however few they are."""
    whole = -(-queries.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    region = mmap.mmap(-1, whole + mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(region))
    if ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + whole), mmap.PAGESIZE, 0):
        raise SystemExit("memory could not be protected")
    copy = np.frombuffer(region, np.float32, queries.size, whole - queries.nbytes).reshape(queries.shape)
    copy[:] = queries
    return copy


def search(index: faiss.Index, queries: np.ndarray, rows: int, k: int) -> None:
    """Search, and compare what is found with what can be."""
    _, found = index.search(fenced(queries), k)
    if found.max(initial=-1) >= rows or found.min(initial=0) < -1:
        raise SystemExit(f"it returns row {found.max() if found.max() >= rows else found.min()} of {rows}")


def main(path: Path, rows: int, dimension: int) -> None:
    """Read, compare, search; an exit with a message if something is wrong."""
    guard, structure = load("guarded_read"), load("structure")
    faiss.omp_set_num_threads(1)
    faiss.cvar.distance_compute_blas_threshold = 512  # as this package searches, and far faster
    try:
        index = guard.read_guarded(path, faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_READ_ONLY)
        if index.d != dimension or index.ntotal != rows:
            raise SystemExit(f"it holds {index.ntotal} rows of dimension {index.d}, not {rows} of {dimension}")
        structure.check_structure(index)
        structure.check_contents(index)
    except (guard.ForeignListsError, structure.StructureError) as error:
        raise SystemExit(str(error)) from None
    random = np.random.default_rng(0)
    lists = faiss.try_extract_index_ivf(index)
    probes = 0 if lists is None else lists.nprobe
    left, a_query = SECONDS, 0.0
    for place, batch in enumerate(BATCHES):
        size = batch if place < 3 else min(batch, int(left / 2 / max(a_query, 1e-9)))
        if size < 1:
            break
        if lists is not None:
            lists.nprobe = lists.nlist if batch == 1 else probes  # every list is read once
        started = time.perf_counter()
        queries = random.standard_normal((size, dimension)).astype(np.float32)
        search(index, queries, rows, min(rows, MOST_ROWS if place else 1))
        seconds = time.perf_counter() - started
        if place >= 2:
            left, a_query = left - seconds, seconds / size


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
