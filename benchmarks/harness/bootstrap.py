"""Intervals by bootstrap over clusters: questions about one article, or one country, share what decides them.

Questions that share their passages are right or wrong together; intervals that resample questions one by one
would be too narrow. So whole clusters are drawn, with replacement.
"""

from __future__ import annotations

import numpy as np

DRAWS = 2000


def clustered_interval(values: np.ndarray, clusters: np.ndarray) -> tuple[float, float]:
    """The 95 % percentile interval of the mean of `values`, clusters resampled with replacement.

    For the difference of two arms over the same questions, give the differences question by question.

    Args:
        values: Of each question, `[Q]`; with several seeds their mean.
        clusters: What each question belongs to, `[Q]`: numbers or names.

    Raises:
        ValueError: There is no value, or not one cluster for each.
    """
    if not len(values) or len(values) != len(clusters):
        raise ValueError(f"{len(values)} values and {len(clusters)} clusters: give one for each, at least one.")
    _, cluster = np.unique(clusters, return_inverse=True)
    return interval_of_totals(np.bincount(cluster, values), np.bincount(cluster))


def interval_of_totals(
    totals: np.ndarray, sizes: np.ndarray, *, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float]:
    """The same interval, from what it needs to know of each cluster.

    Args:
        totals: Sum of the values of each cluster, `[C]`.
        sizes: Questions of each cluster, `[C]`, at least one.
        draws: Resamples.
        seed: Of the draws; the same values have the same interval.
    """
    drawn = np.random.default_rng(seed).integers(len(sizes), size=(draws, len(sizes)))
    means = totals[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
