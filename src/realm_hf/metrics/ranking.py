"""Recall and nDCG of ranked lists, from which of their places are right; NumPy alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["ndcg_at", "recall_at"]


def recall_at(hits: np.ndarray, ks: Sequence[int]) -> dict[int, float]:
    """
    The share of queries with something right among the first k.

    Args:
        hits (`np.ndarray`, bool `[Q, depth]`): Whether the passage at each place is right, best first.
        ks (sequence of `int`): The depths, 1 to `depth`.

    Returns:
        `dict[int, float]`: k -> recall, from 0 to 1.

    Raises:
        ValueError: There is no query, or a depth that was not looked at.
    """
    _check(hits, ks)
    return {k: float(hits[:, :k].any(1).mean()) for k in ks}


def ndcg_at(hits: np.ndarray, relevant: np.ndarray, k: int) -> np.ndarray:
    """
    Normalized discounted cumulative gain of each query; what is right gains 1.

    Args:
        hits (`np.ndarray`, bool `[Q, depth]`): Whether the passage at each place is right, best first.
        relevant (`np.ndarray`, int64 `[Q]`): How many right passages there are.
        k (`int`): The depth, 1 to `depth`.

    Returns:
        `np.ndarray`: float64 `[Q]`, from 0 to 1: the sum of 1 / log2(1 + place) over the right ones of the first k
        places, counted from 1, divided by that of the best order. 0 where nothing is right.

    Raises:
        ValueError: There is no query, or a depth that was not looked at.
    """
    _check(hits, [k])
    discounts = 1.0 / np.log2(np.arange(2, k + 2))
    best = np.concatenate([[0.0], np.cumsum(discounts)])[np.minimum(relevant, k)]
    gained = (hits[:, :k] * discounts).sum(1)
    return np.divide(gained, best, out=np.zeros(len(hits)), where=best > 0)


def _check(hits: np.ndarray, ks: Sequence[int]) -> None:
    if hits.ndim != 2 or not len(hits):
        raise ValueError(f"hits has the shape {list(hits.shape)}: give [queries, depth], at least one query.")
    if not ks or min(ks) < 1 or max(ks) > hits.shape[1]:
        raise ValueError(f"The depths are {list(ks)}, but {hits.shape[1]} places were looked at: give 1 to that.")
