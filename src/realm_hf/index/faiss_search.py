"""A FAISS index as a [`~realm_hf.index.base.SearchIndex`], and FAISS's settings, which are the whole process's.

Nothing is set on import. Before this package's first build or search, [`search_threads`] sets two things, which stay:

- `faiss.cvar.distance_compute_blas_threshold` = 512. FAISS compares it with `queries * dimension` and takes a scalar
  loop below it; its own 128,000 keeps BLAS from every batch under 1,000 queries at D = 128. At 50,000 x 128, two
  threads: 16 queries 55 -> 12 ms, 64 queries 222 -> 27 ms; below 4 queries the loop stays the faster one. It is not
  set back after a search: the two ways round differently, and a search in another thread would change its way halfway.
- A forked child searches with one thread: the thread pool does not survive a fork, and the child would wait for it for
  ever.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Self, TypeAlias

import faiss
import numpy as np

from realm_hf.index.base import SearchIndex
from realm_hf.index.file import open_index, write_index
from realm_hf.index.ranking import RankingIndex

__all__ = [
    "BLAS_THRESHOLD",
    "FaissIndex",
    "IndexLike",
    "as_search_index",
    "faiss_threads",
    "open_search_index",
    "raw_faiss",
    "search",
    "search_threads",
    "set_faiss_threads",
]

BLAS_THRESHOLD = 512

_in_forked_child = False


@cache
def _set_up_faiss() -> None:
    faiss.cvar.distance_compute_blas_threshold = BLAS_THRESHOLD
    os.register_at_fork(after_in_child=_mark_forked_child)


def _mark_forked_child() -> None:
    global _in_forked_child
    _in_forked_child = True
    faiss.omp_set_num_threads(1)


@contextmanager
def search_threads(threads: int | None) -> Iterator[None]:
    """Let FAISS use `threads` threads inside the block (this thread's calls only); `None` leaves its setting."""
    _set_up_faiss()
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


def faiss_threads() -> int:
    """Threads that FAISS takes in calls of this thread."""
    return faiss.omp_get_max_threads()


def set_faiss_threads(threads: int) -> None:
    """Let FAISS use so many from now on, for a process that does nothing else (a builder)."""
    faiss.omp_set_num_threads(threads)


class FaissIndex(RankingIndex):
    """
    A `faiss.Index` as the rest of the package takes it.

    Args:
        index (`faiss.Index`): Inner product, with row numbers as ids: from [`build_index`] or one's own.

    Attributes:
        faiss (`faiss.Index`): The same object.

    Raises:
        ValueError: If its metric is another.
    """

    def __init__(self, index: faiss.Index):
        if index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise ValueError(
                f"The index has FAISS metric {index.metric_type}, not inner product (0): build it with `build_index`."
            )
        self.faiss = index

    @property
    def dimension(self) -> int:
        """D, the length of a vector."""
        return self.faiss.d

    def __len__(self) -> int:
        return self.faiss.ntotal

    def rank(self, queries: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """As [`RankingIndex.rank`]."""
        # FAISS divides queries among threads. One query is one thread's work, and waking the others for nothing made
        # an exact search of 1M x 128 a sixth slower (55 -> 64 ms on two cores).
        with search_threads(1 if len(queries) == 1 else None):
            return self.faiss.search(queries, depth)

    @property
    def kind(self) -> str:
        """Its class: `"IndexFlatIP"`."""
        return type(self.faiss).__name__

    def write(self, write: Callable[[bytes], Any]) -> None:
        """Hand its file to `write`, in pieces of at most 1 MiB."""
        write_index(self.faiss, write)

    def emptied(self) -> Self:
        """A new index in memory, with this one's centroids, codebooks and search parameters, and no rows."""
        if type(self.faiss) in (faiss.IndexFlatIP, faiss.IndexFlat):
            return type(self)(faiss.IndexFlatIP(self.dimension))
        # Through bytes, because emptying a memory-mapped index makes FAISS abort the process.
        index = faiss.deserialize_index(faiss.serialize_index(self.faiss))
        index.reset()
        return type(self)(index)

    def add(self, embeddings: np.ndarray) -> None:
        """Add vectors `[n, D]` as the next rows; one that is memory-mapped aborts the process."""
        self.faiss.add(np.ascontiguousarray(embeddings, dtype=np.float32))


IndexLike: TypeAlias = SearchIndex | faiss.Index
"""What a user may give as an index."""


def as_search_index(index: IndexLike) -> SearchIndex:
    """
    What a user gives as an index, as the rest of the package takes it.

    Raises:
        TypeError: If it is neither a `faiss.Index` nor a [`SearchIndex`].
        ValueError: If it is a FAISS index of another metric.
    """
    if isinstance(index, faiss.Index):
        return FaissIndex(index)
    if not isinstance(index, SearchIndex):
        raise TypeError(
            f"The index is a {type(index).__name__}: give a `faiss.Index`, or an object with `search`, `dimension` "
            "and a length (see `realm_hf.index.base.SearchIndex`)."
        )
    return index


def open_search_index(path: Path, *, mmap: bool = True, rows: int, dimension: int) -> SearchIndex:
    """
    Open an index file for search: the one place that says which kind of index a file becomes.

    Args:
        path (`Path`): The file.
        mmap (`bool`, *optional*, defaults to `True`): Map it; else read it into memory.
        rows (`int`): How many rows it must have.
        dimension (`int`): Which dimension it must have.

    Raises:
        FileNotFoundError: If there is no such file.
        IndexFileError: If it is damaged or does not fit, see [`~realm_hf.index.file.open_index`].
    """
    return FaissIndex(open_index(path, mmap=mmap, rows=rows, dimension=dimension))


def raw_faiss(index: SearchIndex) -> faiss.Index:
    """The `faiss.Index` behind an index, for libraries that search it themselves; a `ValueError` if there is none."""
    if not isinstance(index, FaissIndex):
        raise ValueError(
            f"`datasets` searches FAISS indexes only, and this one is a {type(index).__name__}: use the retriever's "
            "`retrieve` or `search`, or give it an index made by `build_index`."
        )
    return index.faiss


def search(
    index: IndexLike, queries: np.ndarray, k: int, *, threads: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """
    The `k` best rows for each query by inner product.

    Args:
        index ([`SearchIndex`] or `faiss.Index`): The index.
        queries (`np.ndarray` of shape `[Q, D]`): Converted to float32.
        k (`int`): How many rows; may exceed the index.
        threads (`int`, *optional*): Threads of FAISS in this call; its setting by default. One thread is the safe
            choice beside another busy process, and what one query gets in any case.

    Returns:
        `tuple` of scores float32 `[Q, k]`, best first, and rows int64 `[Q, k]`. Where the index found nothing more the
        score is `-inf` and the row is [`ABSENT`].

    Raises:
        ValueError: If shapes do not fit or a query holds NaN or infinity.
        IndexFileError: If the index returns a row that it does not have.
    """
    with search_threads(threads):
        found = as_search_index(index).search(queries, k)
    return found.scores, found.rows
