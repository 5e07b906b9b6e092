"""Exact search over stored embeddings, and how much of it an approximate index finds."""

from __future__ import annotations

import faiss
import numpy as np

from realm_hf.index.faiss_search import ABSENT, fill_up, search

__all__ = ["exact_search", "recall_at_k", "share_found"]

_ROWS_A_CHUNK = 65_536


def exact_search(embeddings: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """
    [`search`] without an index: float32 inner products with the stored embeddings, piece by piece.

    Args:
        embeddings (`np.ndarray` of shape `[N, D]`): May be memory-mapped float16.
        queries (`np.ndarray` of shape `[Q, D]`): The queries.
        k (`int`): How many rows.

    Returns:
        `tuple` of scores float32 `[Q, k]` and rows int64 `[Q, k]`, as [`search`] returns them.
    """
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    heap = faiss.ResultHeap(len(queries), min(k, len(embeddings)), keep_max=True)
    for start in range(0, len(embeddings), _ROWS_A_CHUNK):
        chunk = np.ascontiguousarray(embeddings[start : start + _ROWS_A_CHUNK], dtype=np.float32)
        scores, rows = faiss.knn(queries, chunk, min(k, len(chunk)), metric=faiss.METRIC_INNER_PRODUCT)
        heap.add_result(scores, rows + start)
    heap.finalize()
    return fill_up(heap.D, heap.I, k)


def recall_at_k(
    embeddings: np.ndarray, index: faiss.Index, queries: np.ndarray, k: int, *, rows: np.ndarray | None = None
) -> float:
    """
    The share of the exact top `k` that `index` returns, by score: a row counts if its exact inner product reaches the
    `k`-th best one, so that equal embeddings (duplicate passages) cannot make an exact index look approximate.

    Args:
        embeddings (`np.ndarray` of shape `[N, D]`): The stored embeddings that `index` was built from.
        index (`faiss.Index`): The index to judge.
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


def share_found(embeddings: np.ndarray, index: faiss.Index, queries: np.ndarray, best: np.ndarray) -> float:
    """
    [`recall_at_k`], where the exact search was made before.

    Args:
        embeddings (`np.ndarray` of shape `[N, D]`): The stored embeddings.
        index (`faiss.Index`): The index to judge.
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
