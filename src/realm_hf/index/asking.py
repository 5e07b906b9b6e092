"""Rankings asked for one after the other: what a query does not want is left out, and too little asks deeper.

A search is a generator that yields which queries it wants ranked and how deep, and is sent their rankings. So one
description of it serves an index that ranks by itself ([`search_excluding`]) and one whose rows are spread over the
ranks of a job, which rank together whatever any of them asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np

from realm_hf.index.base import ABSENT, Exclusion, Found

__all__ = [
    "CELLS_A_SEARCH",
    "Asking",
    "Rank",
    "Selection",
    "answer_all",
    "ask_excluding",
    "ask_plain",
    "deepening",
    "nothing_found",
    "rank_deeper",
    "search_excluding",
    "select_from_ranking",
]

_DEEPER = 4
CELLS_A_SEARCH = 1 << 22  # queries x depth of one search: 48 MiB of scores and rows

Rank = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]
"""Queries `[Q, D]` and a depth to scores float32 and rows int64, `[Q, depth]`, best first."""

Result = TypeVar("Result")
Asking: TypeAlias = Generator[tuple[np.ndarray, int], tuple[np.ndarray, np.ndarray], Result]
"""A search that asks for one ranking after the other; who ranks may be this process, or all ranks of a job."""


def nothing_found(queries: int, k: int) -> Found:
    """What a search of that many queries found before anything was ranked."""
    return Found(
        scores=np.full((queries, k), -np.inf, dtype=np.float32),
        rows=np.full((queries, k), ABSENT, dtype=np.int64),
        excluded=np.zeros(queries, dtype=np.int64),
        duplicates=np.zeros(queries, dtype=np.int64),
    )


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
    return answer_all(rank, queries, _ask_deeper(len(queries), depths, take))


def _ask_deeper(
    count: int,
    depths: Iterable[int],
    take: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
    cells: int = CELLS_A_SEARCH,
) -> Asking[list[tuple[int, int]]]:
    """[`rank_deeper`] without what ranks."""
    pending, left = np.arange(count), []
    for depth in depths:
        if not len(pending):
            break
        at_once = max(1, cells // depth)
        unfinished = []
        for start in range(0, len(pending), at_once):
            part = pending[start : start + at_once]
            scores, rows = yield part, depth
            unfinished.append(take(part, scores, rows))
        pending = np.concatenate(unfinished)
        left.append((depth, len(pending)))
    return left


def answer_all(rank: Rank, queries: np.ndarray, asking: Asking[Result]) -> Result:
    """Rank whatever is asked for, until the end; its result."""
    answer: tuple[np.ndarray, np.ndarray] | None = None
    while True:
        try:
            part, depth = next(asking) if answer is None else asking.send(answer)
        except StopIteration as end:
            return end.value
        answer = rank(queries if len(part) == len(queries) else queries[part], depth)


def ask_plain(count: int, k: int, size: int, *, cells: int = CELLS_A_SEARCH) -> Asking[Found]:
    """A search of `count` queries from which nothing is left out, without what ranks; see [`ask_excluding`]."""
    found, depth = nothing_found(count, k), min(k, size)

    def take(part: np.ndarray, scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
        found.scores[part, :depth], found.rows[part, :depth] = scores, rows
        return part[:0]

    yield from _ask_deeper(count, [depth], take, cells)
    return found


def ask_excluding(count: int, k: int, size: int, exclude: Exclusion, *, cells: int = CELLS_A_SEARCH) -> Asking[Found]:
    """
    Ask for rankings, filter them, and ask deeper for the queries that are left with too few rows.

    Where no query is filtered the first search is as deep as wanted: only copies among the best could be left out, and
    they are rare.

    Args:
        count (`int`): Q.
        k (`int`): Rows wanted of each query.
        size (`int`): Rows of the index.
        exclude ([`Exclusion`]): What is left out.
        cells (`int`, *optional*): Most rows that are asked for at once, of all queries together.

    Yields:
        `tuple`: Places of the queries that are to be ranked int64 `[n]`, and how deep; what is sent back are their
        scores and rows, `[n, depth]` each.
    """
    found, over = nothing_found(count, k), min(k + exclude.over_retrieve, size)
    filtered = exclude.filtered

    def take(part: np.ndarray, scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return _fill(found, part, scores, rows, filtered[part], exclude)

    depths = deepening(over if filtered.any() else k, size, second=over)
    left = yield from _ask_deeper(count, depths, take, cells)
    # The first search with the over-retrieval, unless it went to the end.
    deeper = next((unanswered for depth, unanswered in left if over <= depth < size), 0)
    return Found(found.scores, found.rows, found.excluded, found.duplicates, deeper)


def search_excluding(rank: Rank, queries: np.ndarray, k: int, size: int, exclude: Exclusion) -> Found:
    """[`ask_excluding`], and what is asked for is ranked by `rank` at once."""
    return answer_all(rank, queries, ask_excluding(len(queries), k, size, exclude))


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
