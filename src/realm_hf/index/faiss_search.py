"""Searching a FAISS index: rows and scores in this package's terms, and the settings of the whole process.

Importing this module sets two things for the whole process:

- `faiss.cvar.distance_compute_blas_threshold` = 512. FAISS compares it with `queries * dimension` and takes a scalar
  loop below it; its own 128,000 keeps BLAS from every batch under 1,000 queries at D = 128. At 50,000 x 128, two
  threads: 16 queries 55 -> 12 ms, 64 queries 222 -> 27 ms; below 4 queries the loop stays the faster one.
- A forked child searches with one thread: the thread pool does not survive a fork, and the child would wait for it for
  ever.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import faiss
import numpy as np

from realm_hf.index.file import IndexFileError

__all__ = ["ABSENT", "BLAS_THRESHOLD", "fill_up", "search", "search_threads"]

ABSENT = -2
"""The row number that says "nothing found"; -1 is the null passage everywhere in this package."""

BLAS_THRESHOLD = 512

faiss.cvar.distance_compute_blas_threshold = BLAS_THRESHOLD
_in_forked_child = False


def _mark_forked_child() -> None:
    global _in_forked_child
    _in_forked_child = True
    faiss.omp_set_num_threads(1)


os.register_at_fork(after_in_child=_mark_forked_child)


@contextmanager
def search_threads(threads: int | None) -> Iterator[None]:
    """Let FAISS use `threads` threads inside the block (this thread's calls only); `None` leaves its setting."""
    if threads is not None and threads < 1:
        raise ValueError(f"threads is {threads}: at least one is needed, or None for FAISS's own choice.")
    if threads is None or _in_forked_child:
        yield
        return
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def search(
    index: faiss.Index, queries: np.ndarray, k: int, *, threads: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """
    The `k` best rows for each query by inner product.

    Args:
        index (`faiss.Index`): The index.
        queries (`np.ndarray` of shape `[Q, D]`): Converted to float32.
        k (`int`): How many rows; may exceed the index.
        threads (`int`, *optional*): Threads of this call; FAISS's setting by default. One thread is the safe choice
            beside another busy process, and what one query gets in any case.

    Returns:
        `tuple` of scores float32 `[Q, k]`, best first, and rows int64 `[Q, k]`. Where the index found nothing more the
        score is `-inf` and the row is [`ABSENT`].

    Raises:
        ValueError: If shapes do not fit or a query holds NaN or infinity.
        IndexFileError: If the index returns a row that it does not have.
    """
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    if queries.ndim != 2 or queries.shape[1] != index.d:
        raise ValueError(
            f"Queries must have shape [Q, {index.d}], the dimension of the index, got {list(queries.shape)}."
        )
    if k < 1:
        raise ValueError(f"k is {k}: at least one row must be asked for.")
    if not np.isfinite(queries).all():
        bad = np.flatnonzero(~np.isfinite(queries).all(axis=1))
        raise ValueError(f"Query {int(bad[0])} holds NaN or infinity ({len(bad)} of {len(queries)} queries do).")
    width = min(k, index.ntotal)
    if not len(queries) or not width:
        nothing = (len(queries), 0)
        return fill_up(np.empty(nothing, np.float32), np.empty(nothing, np.int64), k)
    # FAISS divides queries among threads. One query is one thread's work, and waking the others for nothing made an
    # exact search of 1M x 128 a sixth slower (55 -> 64 ms on two cores).
    with search_threads(1 if len(queries) == 1 else threads):
        scores, rows = index.search(queries, width)
    if rows.max() >= index.ntotal:
        raise IndexFileError(f"The index of {index.ntotal} rows returned row {rows.max()}: it is damaged, rebuild it.")
    if rows.min() < 0:
        missing = rows < 0
        rows[missing], scores[missing] = ABSENT, -np.inf
    return fill_up(scores, rows, k)


def fill_up(scores: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and rows `[Q, n]`, n <= k, as `[Q, k]`: `-inf` and [`ABSENT`] where nothing more was found."""
    missing = k - scores.shape[1]
    if not missing:
        return scores, rows
    beyond = ((0, 0), (0, missing))
    return np.pad(scores, beyond, constant_values=-np.inf), np.pad(rows, beyond, constant_values=ABSENT)
