"""From rankings to what a query wants: nothing unwanted, no text twice, and deeper where too little is left."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from realm_hf.index.base import ABSENT, Exclusion, Found, IndexFileError

__all__ = [
    "RankingIndex",
    "Selection",
    "checked_ranking",
    "deepening",
    "rank_deeper",
    "search_excluding",
    "select_from_ranking",
]

_DEEPER = 4
_CELLS_A_SEARCH = 1 << 22  # queries x depth of one search: 48 MiB of scores and rows

Rank = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]
"""Queries `[Q, D]` and a depth to scores float32 and rows int64, `[Q, depth]`, best first."""


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
        _check_queries(queries, k, self.dimension)
        if not len(queries) or not len(self):
            return _nothing(len(queries), k)
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


def _check_queries(queries: np.ndarray, k: int, dimension: int) -> None:
    if queries.ndim != 2 or queries.shape[1] != dimension:
        raise ValueError(
            f"Queries must have shape [Q, {dimension}], the dimension of the index, got {list(queries.shape)}."
        )
    if k < 1:
        raise ValueError(f"k is {k}: at least one row must be asked for.")
    if not np.isfinite(queries).all():
        bad = np.flatnonzero(~np.isfinite(queries).all(axis=1))
        raise ValueError(f"Query {int(bad[0])} holds NaN or infinity ({len(bad)} of {len(queries)} queries do).")


def _nothing(queries: int, k: int) -> Found:
    return Found(
        scores=np.full((queries, k), -np.inf, dtype=np.float32),
        rows=np.full((queries, k), ABSENT, dtype=np.int64),
        excluded=np.zeros(queries, dtype=np.int64),
        duplicates=np.zeros(queries, dtype=np.int64),
    )


def _fill_up(scores: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and rows `[Q, n]`, n <= k, as `[Q, k]`: `-inf` and [`ABSENT`] where nothing more was found."""
    missing = k - scores.shape[1]
    if not missing:
        return scores, rows
    beyond = ((0, 0), (0, missing))
    return np.pad(scores, beyond, constant_values=-np.inf), np.pad(rows, beyond, constant_values=ABSENT)


def deepening(first: int, most: int, second: int = 0) -> Iterator[int]:
    """Depths of searches one after the other: `first`, at least `second`, then four times as deep up to `most`."""
    depth = min(first, most)
    yield depth
    while depth < most:
        depth = min(max(_DEEPER * depth, second), most)
        yield depth


def rank_deeper(
    rank: Rank,
    queries: np.ndarray,
    depths: Iterable[int],
    take: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
) -> list[tuple[int, int]]:
    """
    Rank all queries, and again those that are left with too little, as deep as `depths` say.

    Args:
        rank (`Callable`): What ranks rows.
        queries (`np.ndarray` of length Q): The queries as `rank` takes them: vectors, or their places.
        depths (iterable of `int`): Ascending.
        take (`Callable`): Gets places of some queries int64 `[n]`, their scores and rows `[n, depth]`; returns the
            places of those that are left with too little, although there may be more.

    Returns:
        `list[tuple[int, int]]`: Of each depth that was searched, how many queries it left with too little.
    """
    pending, left = np.arange(len(queries)), []
    for depth in depths:
        at_once = max(1, _CELLS_A_SEARCH // depth)
        unfinished = []
        for start in range(0, len(pending), at_once):
            part = pending[start : start + at_once]
            scores, rows = rank(queries if len(part) == len(queries) else queries[part], depth)
            unfinished.append(take(part, scores, rows))
        pending = np.concatenate(unfinished)
        left.append((depth, len(pending)))
        if not len(pending):
            break
    return left


def search_excluding(rank: Rank, queries: np.ndarray, k: int, size: int, exclude: Exclusion) -> Found:
    """
    Rank, filter, and rank deeper for the queries that are left with too few rows.

    Where no query is filtered the first search is as deep as wanted: only copies among the best could be left out, and
    they are rare.
    """
    found, over = _nothing(len(queries), k), min(k + exclude.over_retrieve, size)
    filtered = exclude.filtered

    def take(part: np.ndarray, scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return _fill(found, part, scores, rows, filtered[part], exclude)

    depths = deepening(over if filtered.any() else k, size, second=over)
    left = rank_deeper(rank, queries, depths, take)
    # The first search with the over-retrieval, unless it went to the end.
    deeper = next((count for depth, count in left if over <= depth < size), 0)
    return Found(found.scores, found.rows, found.excluded, found.duplicates, deeper)


def _fill(
    found: Found, queries: np.ndarray, scores: np.ndarray, rows: np.ndarray, filtered: np.ndarray, exclude: Exclusion
) -> np.ndarray:
    """
    Put what some queries keep of their rankings into their places.

    Args:
        found ([`Found`]): Of all queries; may hold what a shallower search had found.
        queries (`np.ndarray`, int64 `[n]`): Which of them.
        scores (`np.ndarray`, float32 `[n, depth]`): Their rankings, best first.
        rows (`np.ndarray`, int64 `[n, depth]`): The rows of those scores.
        filtered (`np.ndarray`, bool `[n]`): For which of them there are unwanted rows.
        exclude ([`Exclusion`]): What is left out.

    Returns:
        `np.ndarray`, int64: Those that are left with too few rows, although there may be more.
    """
    wanted = found.rows.shape[1]
    plain = _plain_rankings(exclude, rows, wanted) & ~filtered
    whole = len(queries) == len(found.rows) and plain.all()
    # Slices where all queries are plain: numpy takes them in a tenth of the time of row numbers.
    done, good = (slice(None), slice(None)) if whole else (queries[plain], plain)
    if plain.any():
        found.rows[done], found.scores[done] = rows[good, :wanted], scores[good, :wanted]
        found.excluded[done] = found.duplicates[done] = 0
    unfinished: list[int] = []
    for place in np.flatnonzero(~plain).tolist():
        query, ranking = int(queries[place]), rows[place]
        unwanted = exclude.unwanted(query, ranking) if filtered[place] else np.zeros(len(ranking), dtype=bool)
        chosen = select_from_ranking(scores[place], ranking, unwanted, exclude.groups(ranking), wanted)
        count = len(chosen.rows)
        found.rows[query, count:], found.scores[query, count:] = ABSENT, -np.inf
        found.rows[query, :count], found.scores[query, :count] = chosen.rows, chosen.scores
        found.excluded[query], found.duplicates[query] = chosen.excluded, chosen.duplicates
        if count < wanted and not chosen.exhausted:
            unfinished.append(query)
    return np.array(unfinished, dtype=np.int64)


def _plain_rankings(exclude: Exclusion, rows: np.ndarray, wanted: int) -> np.ndarray:
    """
    Which rankings `[Q, depth]` begin with as many different texts as are wanted: bool `[Q]`.

    That is the usual case of a search without unwanted rows, found here for all queries at once: one by one, 256 of
    them took a tenth of the time of their search.
    """
    if rows.shape[1] < wanted:
        return np.zeros(len(rows), dtype=bool)
    best = rows[:, :wanted]
    groups = np.sort(exclude.groups(best.reshape(-1)).reshape(best.shape), axis=1)
    plain: np.ndarray = (groups[:, 1:] != groups[:, :-1]).all(axis=1)
    if best.min() < 0:
        plain &= (best >= 0).all(axis=1)
    return plain


@dataclass(frozen=True)
class Selection:
    """
    What one query keeps of its ranking.

    Args:
        rows (`np.ndarray`, int64 `[n]`, n <= wanted): Best first.
        scores (`np.ndarray`, float32 `[n]`): Their scores.
        excluded (`int`): Rows left out because they are unwanted, ranked before the last one kept.
        duplicates (`int`): Rows left out because a better ranked one has the same text, likewise.
        exhausted (`bool`): The index had no more rows to give.
    """

    rows: np.ndarray
    scores: np.ndarray
    excluded: int
    duplicates: int
    exhausted: bool


def select_from_ranking(
    scores: np.ndarray, rows: np.ndarray, unwanted: np.ndarray, groups: np.ndarray, wanted: int
) -> Selection:
    """
    Filter one query's ranking.

    A whole group goes if one of its ranked rows is unwanted: its texts differ in case and punctuation only, and what
    makes one of them unwanted stands in each.

    Args:
        scores (`np.ndarray`, float32 `[depth]`): Best first.
        rows (`np.ndarray`, int64 `[depth]`): The rows of those scores; [`ABSENT`] only at the end.
        unwanted (`np.ndarray`, bool `[depth]`): Whether the query does not want the row.
        groups (`np.ndarray`, int `[depth]`): Group of each row: equal for equal texts.
        wanted (`int`): How many rows to keep.

    Returns:
        [`Selection`]
    """
    depth, found = len(rows), int((rows != ABSENT).sum())
    scores, rows, unwanted, of_row = scores[:found], rows[:found], unwanted[:found], groups[:found]
    excluded = np.isin(of_row, of_row[unwanted])
    first = np.zeros(found, dtype=bool)
    first[np.unique(of_row, return_index=True)[1]] = True
    kept = np.flatnonzero(first & ~excluded)[:wanted]
    # What lies behind the last row kept depends on how deep the search went: it is not counted.
    end = int(kept[-1]) + 1 if len(kept) == wanted and wanted else found
    return Selection(
        rows=rows[kept],
        scores=scores[kept],
        excluded=int(excluded[:end].sum()),
        duplicates=int((~first & ~excluded)[:end].sum()),
        exhausted=found < depth,
    )
