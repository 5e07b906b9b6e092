"""What ranks rows as an index: nothing unwanted, no text twice, and deeper where too little is left."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from realm_hf.index.asking import nothing_found, search_excluding
from realm_hf.index.base import ABSENT, Exclusion, Found, IndexFileError

__all__ = ["RankingIndex", "check_queries", "checked_ranking"]


class RankingIndex(ABC):
    """
    A [`~realm_hf.index.base.SearchIndex`] made of what ranks rows: [`rank`], `__len__` and `dimension` are all that a
    subclass writes.

    Exclusion is by over-retrieval: a little more than wanted is ranked and filtered. A query for which that is not
    enough is ranked again four times as deep, up to the whole index or to what an approximate one reaches.

    Example:
    ```python
    >>> class Products(RankingIndex):
    ...     def __init__(self, vectors):
    ...         self.vectors = vectors
    ...
    ...     @property
    ...     def dimension(self):
    ...         return self.vectors.shape[1]
    ...
    ...     def __len__(self):
    ...         return len(self.vectors)
    ...
    ...     def rank(self, queries, depth):
    ...         scores = queries @ self.vectors.T
    ...         rows = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
    ...         return np.take_along_axis(scores, rows, 1), rows
    >>> Products(np.eye(3, dtype=np.float32)).search(np.array([[0.1, 0.3, 0.2]]), 2).rows
    array([[1, 2]])
    ```
    """

    @property
    @abstractmethod
    def dimension(self) -> int:
        """D, the length of a vector."""

    @abstractmethod
    def __len__(self) -> int:
        """N: row numbers are below it."""

    @abstractmethod
    def rank(self, queries: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """
        The best rows of each query, whatever they hold.

        Args:
            queries (`np.ndarray` of shape `[Q, D]`, float32, C order, Q > 0): Finite.
            depth (`int`): How many rows, 1 to N.

        Returns:
            `tuple` of scores float32 `[Q, depth]`, best first, and rows int64 `[Q, depth]`. A negative row says that
            nothing more was found, and stands behind all others.
        """

    def search(self, queries: np.ndarray, k: int, *, exclude: Exclusion | None = None) -> Found:
        """As [`~realm_hf.index.base.SearchIndex`]'s; an `IndexFileError` if a row is returned that is not there."""
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        check_queries(queries, k, self.dimension)
        if not len(queries) or not len(self):
            return nothing_found(len(queries), k)
        if exclude is not None:
            return search_excluding(self._ranked, queries, k, len(self), exclude)
        scores, rows = _fill_up(*self._ranked(queries, min(k, len(self))), k)
        none = np.zeros(len(queries), dtype=np.int64)
        return Found(scores, rows, none, none.copy())

    def _ranked(self, queries: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """[`rank`], with what it returns looked at."""
        return checked_ranking(*self.rank(queries, depth), len(self))


def checked_ranking(scores: np.ndarray, rows: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A ranking `[Q, depth]` with [`ABSENT`] for no row; an `IndexFileError` if a row is not below `size`."""
    scores, rows = np.asarray(scores, np.float32), np.asarray(rows, np.int64)
    if rows.max() >= size:
        raise IndexFileError(f"The index of {size} rows returned row {rows.max()}: it is damaged, rebuild it.")
    if rows.min() < 0:
        missing = rows < 0
        rows[missing], scores[missing] = ABSENT, -np.inf
    return scores, rows


def check_queries(queries: np.ndarray, k: int, dimension: int) -> None:
    """Raise a `ValueError` for queries of another shape than `[Q, dimension]`, NaN or infinity, or a `k` below 1."""
    if queries.ndim != 2 or queries.shape[1] != dimension:
        raise ValueError(
            f"Queries must have shape [Q, {dimension}], the dimension of the index, got {list(queries.shape)}."
        )
    if k < 1:
        raise ValueError(f"k is {k}: at least one row must be asked for.")
    if not np.isfinite(queries).all():
        bad = np.flatnonzero(~np.isfinite(queries).all(axis=1))
        raise ValueError(f"Query {int(bad[0])} holds NaN or infinity ({len(bad)} of {len(queries)} queries do).")


def _fill_up(scores: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and rows `[Q, n]`, n <= k, as `[Q, k]`: `-inf` and [`ABSENT`] where nothing more was found."""
    missing = k - scores.shape[1]
    if not missing:
        return scores, rows
    beyond = ((0, 0), (0, missing))
    return np.pad(scores, beyond, constant_values=-np.inf), np.pad(rows, beyond, constant_values=ABSENT)
