"""From what a search returns to the candidates of a query: nothing trivial, nothing twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from realm_hf.data.passages.build import NULL_PASSAGE
from realm_hf.index.faiss_index import ABSENT, search

if TYPE_CHECKING:
    from realm_hf.knowledge.corpus import Corpus
    from realm_hf.knowledge.knowledge import Knowledge

__all__ = [
    "RetrievalBatch",
    "SearchStats",
    "Selection",
    "as_queries",
    "select_candidates",
    "select_from_ranking",
]

_DEEPER = 4
_CELLS_A_SEARCH = 1 << 22  # queries x depth of one search: 48 MiB of scores and rows


@dataclass(frozen=True)
class Selection:
    """
    The candidates of one query.

    Args:
        rows (`np.ndarray`, int64 `[n]`, n <= wanted): Best first.
        scores (`np.ndarray`, float32 `[n]`): Their scores.
        excluded (`int`): Passages left out because they contain the sentence, ranked before the last candidate kept.
        duplicates (`int`): Passages left out because a better ranked one has the same text, likewise.
        exhausted (`bool`): The index had no more rows to give.
    """

    rows: np.ndarray
    scores: np.ndarray
    excluded: int
    duplicates: int
    exhausted: bool


@dataclass(frozen=True)
class RetrievalBatch:
    """
    Candidates of B queries.

    Args:
        rows (`np.ndarray`, int64 `[B, K]`): Passage rows, best first. The null passage (-1) comes first if it was
            asked for; -2 fills up where there were fewer than K.
        scores (`np.ndarray`, float32 `[B, K]`): Inner products; NaN for the null passage, which is in no index, and
            `-inf` at -2.
        excluded (`np.ndarray`, int64 `[B]`): Passages left out because they contain the query's sentence.
        duplicates (`np.ndarray`, int64 `[B]`): Passages left out because a better one has the same text.
        generation (`str`, *optional*): The generation that was searched.
    """

    rows: np.ndarray
    scores: np.ndarray
    excluded: np.ndarray
    duplicates: np.ndarray
    generation: str | None

    @property
    def mask(self) -> np.ndarray:
        """Bool `[B, K]`: where there is a candidate, the null passage counted (`candidate_mask` of the model)."""
        return self.rows != ABSENT


@dataclass
class SearchStats:
    """
    Running totals of a retriever; assign a new one to start over.

    Args:
        queries (`int`): Queries answered.
        searched_deeper (`int`): Queries that needed more than the over-retrieval.
        excluded (`int`): Passages that contained their query's sentence.
        duplicates (`int`): Passages whose text a better ranked one had.
        absent (`int`): Places filled with -2, because the corpus or an approximate index had nothing more.
        seconds (`float`): Time in `retrieve`.
    """

    queries: int = 0
    searched_deeper: int = 0
    excluded: int = 0
    duplicates: int = 0
    absent: int = 0
    seconds: float = 0.0

    def count(self, batch: RetrievalBatch, *, searched_deeper: int, seconds: float) -> int:
        """Add a batch; returns how many of its places are filled with -2."""
        absent = int(np.count_nonzero(batch.rows == ABSENT))
        self.queries += len(batch.rows)
        self.searched_deeper += searched_deeper
        self.excluded += int(batch.excluded.sum())
        self.duplicates += int(batch.duplicates.sum())
        self.absent += absent
        self.seconds += seconds
        return absent


def as_queries(queries: np.ndarray | torch.Tensor) -> np.ndarray:
    """Query embeddings `[B, D]` as an array; a `ValueError` for another number of dimensions."""
    if isinstance(queries, torch.Tensor):
        queries = queries.detach().float().cpu().numpy()
    queries = np.asarray(queries)
    if queries.ndim != 2:
        raise ValueError(
            f"Query embeddings must have shape [B, D], got {list(queries.shape)}: use `query[None]` for one."
        )
    return queries


def select_candidates(
    served: Knowledge,
    queries: np.ndarray,
    k: int,
    *,
    exclude: Sequence[np.ndarray | str | None] | None,
    null_passage: bool,
    over_retrieve: int,
    threads: int | None,
) -> tuple[RetrievalBatch, int]:
    """
    Search, filter, and search deeper for the queries that are left with too few candidates.

    Where no query excludes a sentence the first search is as deep as wanted: only copies among the best could be
    filtered, and they are rare. Each further search is four times as deep, and at least the over-retrieval, up to the
    whole corpus or to what an approximate index can reach.

    Args:
        served ([`Knowledge`]): Passages and index.
        queries (`np.ndarray` of shape `[B, D]`): The queries.
        k (`int`): Candidates of each query, the null passage counted.
        exclude (sequence of B sentences or `None`, *optional*): See [`Corpus.containing`].
        null_passage (`bool`): Put the null passage first.
        over_retrieve (`int`): Rows searched beyond those wanted where anything is to be filtered.
        threads (`int`, *optional*): Threads of each search.

    Returns:
        `tuple`: The [`RetrievalBatch`], and the number of queries that were searched deeper.
    """
    corpus, count, first = served.corpus, len(queries), int(null_passage)
    batch = RetrievalBatch(
        rows=np.full((count, k), ABSENT, dtype=np.int64),
        scores=np.full((count, k), -np.inf, dtype=np.float32),
        excluded=np.zeros(count, dtype=np.int64),
        duplicates=np.zeros(count, dtype=np.int64),
        generation=served.name,
    )
    batch.rows[:, :first], batch.scores[:, :first] = NULL_PASSAGE, np.nan
    wanted, deeper, passages = k - first, 0, len(corpus)
    if exclude is not None and all(sentence is None for sentence in exclude):
        exclude = None
    over = min(wanted + over_retrieve, passages)
    pending, depth = np.arange(count if wanted else 0), min(wanted, passages) if exclude is None else over
    while len(pending):
        unfinished: list[int] = []
        at_once = max(1, _CELLS_A_SEARCH // depth)
        for start in range(0, len(pending), at_once):
            part = pending[start : start + at_once]
            scores, rows = search(
                served.index, queries if len(part) == count else queries[part], depth, threads=threads
            )
            unfinished += _fill(batch, part, scores, rows, corpus, exclude, first)
        if depth == passages:
            break
        if depth >= over:
            deeper = deeper or len(unfinished)
        pending, depth = np.array(unfinished, dtype=np.int64), min(max(_DEEPER * depth, over), passages)
    return batch, deeper


def _fill(
    batch: RetrievalBatch,
    queries: np.ndarray,
    scores: np.ndarray,
    rows: np.ndarray,
    corpus: Corpus,
    exclude: Sequence[np.ndarray | str | None] | None,
    first: int,
) -> list[int]:
    """
    Put the candidates of some queries into their places of a batch.

    Args:
        batch ([`RetrievalBatch`]): Of all queries; may hold what a shallower search had found.
        queries (`np.ndarray`, int64 `[Q]`): Which of them.
        scores (`np.ndarray`, float32 `[Q, depth]`): Their rankings, best first.
        rows (`np.ndarray`, int64 `[Q, depth]`): The rows of those scores.
        corpus ([`Corpus`]): The passages.
        exclude (sequence, *optional*): The sentences of all queries of the batch.
        first (`int`): Place of the first candidate: behind the null passage.

    Returns:
        `list[int]`: Those that are left with too few candidates, although there may be more.
    """
    wanted = batch.rows.shape[1] - first
    plain = _plain_rankings(corpus, rows, wanted)
    if exclude is not None:
        plain &= np.array([exclude[query] is None for query in queries])
    whole = len(queries) == len(batch.rows) and plain.all()
    # Slices where all queries are plain: numpy takes them in a tenth of the time of row numbers.
    done, good = (slice(None), slice(None)) if whole else (queries[plain], plain)
    if plain.any():
        batch.rows[done, first:], batch.scores[done, first:] = rows[good, :wanted], scores[good, :wanted]
        batch.excluded[done] = batch.duplicates[done] = 0
    unfinished: list[int] = []
    for place in np.flatnonzero(~plain).tolist():
        query, ranking = int(queries[place]), rows[place]
        sentence = None if exclude is None else exclude[query]
        containing = np.zeros(len(ranking), dtype=bool) if sentence is None else corpus.containing(sentence, ranking)
        chosen = select_from_ranking(scores[place], ranking, containing, corpus.groups_of(ranking), wanted)
        places = slice(first, first + len(chosen.rows))
        batch.rows[query, first:], batch.scores[query, first:] = ABSENT, -np.inf
        batch.rows[query, places], batch.scores[query, places] = chosen.rows, chosen.scores
        batch.excluded[query], batch.duplicates[query] = chosen.excluded, chosen.duplicates
        if len(chosen.rows) < wanted and not chosen.exhausted:
            unfinished.append(query)
    return unfinished


def _plain_rankings(corpus: Corpus, rows: np.ndarray, wanted: int) -> np.ndarray:
    """
    Which rankings `[Q, depth]` begin with as many different passages as are wanted: bool `[Q]`.

    That is the usual case of a search without excluded sentences, found here for all queries at once: one by one, 256
    of them took a tenth of the time of their search.
    """
    if rows.shape[1] < wanted:
        return np.zeros(len(rows), dtype=bool)
    best = rows[:, :wanted]
    groups = corpus.groups_of(best.reshape(-1)).reshape(best.shape)
    groups.sort(axis=1)
    plain: np.ndarray = (groups[:, 1:] != groups[:, :-1]).all(axis=1)
    if best.min() < 0:
        plain &= (best >= 0).all(axis=1)
    return plain


def select_from_ranking(
    scores: np.ndarray, rows: np.ndarray, containing: np.ndarray, groups: np.ndarray, wanted: int
) -> Selection:
    """
    Filter one query's ranking.

    A whole duplicate group goes if one of its retrieved passages contains the sentence: its texts differ in case and
    punctuation only, and the answer stands in each of them.

    Args:
        scores (`np.ndarray`, float32 `[depth]`): Best first.
        rows (`np.ndarray`, int64 `[depth]`): The rows of those scores; [`ABSENT`] only at the end.
        containing (`np.ndarray`, bool `[depth]`): Whether the row's passage contains the query's sentence.
        groups (`np.ndarray`, int `[depth]`): Duplicate group of each row.
        wanted (`int`): How many candidates to keep.

    Returns:
        [`Selection`]
    """
    depth, found = len(rows), int((rows != ABSENT).sum())
    scores, rows, containing, of_row = scores[:found], rows[:found], containing[:found], groups[:found]
    excluded = np.isin(of_row, of_row[containing])
    first = np.zeros(found, dtype=bool)
    first[np.unique(of_row, return_index=True)[1]] = True
    kept = np.flatnonzero(first & ~excluded)[:wanted]
    # What lies behind the last candidate depends on how deep the search went: it is not counted.
    end = int(kept[-1]) + 1 if len(kept) == wanted and wanted else found
    return Selection(
        rows=rows[kept],
        scores=scores[kept],
        excluded=int(excluded[:end].sum()),
        duplicates=int((~first & ~excluded)[:end].sum()),
        exhausted=found < depth,
    )
