"""Exact search over stored embeddings, and how much of it an approximate index finds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import faiss
import numpy as np

from realm_hf.index.base import ABSENT, Embeddings
from realm_hf.index.faiss_search import IndexLike, search, search_threads
from realm_hf.index.file import flat_index_head
from realm_hf.index.ranking import RankingIndex

__all__ = ["ExactIndex", "exact_search", "recall_at_k", "share_found"]

_ROWS_A_CHUNK = 65_536


class ExactIndex(RankingIndex):
    """
    Search without an index: float32 inner products with the stored embeddings, piece by piece.

    Over memory-mapped float16 embeddings it takes no memory of its own, where a "Flat" index takes 4 D bytes a row;
    each search converts them anew.

    Args:
        embeddings (`np.ndarray` of shape `[N, D]`): May be memory-mapped float16.
    """

    def __init__(self, embeddings: Embeddings):
        self.embeddings = embeddings

    @property
    def dimension(self) -> int:
        """D, the length of a vector."""
        return int(self.embeddings.shape[1])

    def __len__(self) -> int:
        return len(self.embeddings)

    def rank(self, queries: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """As [`RankingIndex.rank`]."""
        heap = faiss.ResultHeap(len(queries), depth, keep_max=True)
        with search_threads(1 if len(queries) == 1 else None):
            for start in range(0, len(self), _ROWS_A_CHUNK):
                chunk = np.ascontiguousarray(self.embeddings[start : start + _ROWS_A_CHUNK], dtype=np.float32)
                scores, rows = faiss.knn(queries, chunk, min(depth, len(chunk)), metric=faiss.METRIC_INNER_PRODUCT)
                if len(chunk) == len(self):
                    return scores, rows
                heap.add_result(scores, rows + start)
        heap.finalize()
        return heap.D, heap.I

    @property
    def kind(self) -> str:
        """`"IndexFlatIP"`, as which it is loaded again."""
        return "IndexFlatIP"

    def write(self, write: Callable[[bytes], Any]) -> None:
        """Hand the file of a "Flat" index to `write`, piece by piece."""
        write(flat_index_head(len(self), self.dimension))
        for start in range(0, len(self), _ROWS_A_CHUNK):
            write(np.ascontiguousarray(self.embeddings[start : start + _ROWS_A_CHUNK], dtype=np.float32).tobytes())

    def emptied(self) -> Self:
        """One without rows."""
        return type(self)(self.embeddings[:0])

    def add(self, embeddings: np.ndarray) -> None:
        """Add vectors `[n, D]` as the next rows: all are copied, in the type of those that are there."""
        self.embeddings = np.concatenate([self.embeddings, np.asarray(embeddings, self.embeddings.dtype)])


def exact_search(embeddings: Embeddings, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """
    [`search`] of an [`ExactIndex`].

    Args:
        embeddings (`np.ndarray` of shape `[N, D]`): May be memory-mapped float16.
        queries (`np.ndarray` of shape `[Q, D]`): The queries.
        k (`int`): How many rows.

    Returns:
        `tuple` of scores float32 `[Q, k]` and rows int64 `[Q, k]`, as [`search`] returns them.
    """
    return search(ExactIndex(embeddings), queries, k)


def recall_at_k(
    embeddings: Embeddings, index: IndexLike, queries: np.ndarray, k: int, *, rows: np.ndarray | None = None
) -> float:
    """
    The share of the exact top `k` that `index` returns, by score: a row counts if its exact inner product reaches the
    `k`-th best one, so that equal embeddings (duplicate passages) cannot make an exact index look approximate.

    Args:
        embeddings (`np.ndarray` of shape `[N, D]`): The stored embeddings that `index` was built from.
        index ([`SearchIndex`] or `faiss.Index`): The index to judge.
        queries (`np.ndarray` of shape `[Q, D]`): Probe queries.
        k (`int`): The depth.
        rows (`np.ndarray`, int64 `[n]`, *optional*): The rows that count, all by default; their embeddings are copied.

    Returns:
        `float`: Between 0 and 1.
    """
    stored = embeddings if rows is None else embeddings[rows]
    k = min(k, len(stored))
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    return share_found(embeddings, index, queries, exact_search(stored, queries, k)[0])


def share_found(embeddings: Embeddings, index: IndexLike, queries: np.ndarray, best: np.ndarray) -> float:
    """
    [`recall_at_k`], where the exact search was made before.

    Args:
        embeddings (`np.ndarray` of shape `[N, D]`): The stored embeddings.
        index ([`SearchIndex`] or `faiss.Index`): The index to judge.
        queries (`np.ndarray` of shape `[Q, D]`, float32): The queries.
        best (`np.ndarray`, float32 `[Q, k]`): The scores that [`exact_search`] found, best first.
    """
    _, rows = search(index, queries, best.shape[1])
    found = rows != ABSENT
    vectors = np.asarray(embeddings[np.where(found, rows, 0)], dtype=np.float32)
    scores = np.einsum("qd,qkd->qk", queries, vectors)
    # Two orders of summation differ by rounding; the scale of the products is that of the best one.
    tolerance = 1e-5 * np.abs(best).max(axis=1, keepdims=True)
    return float((found & (scores >= best[:, -1:] - tolerance)).mean())
