"""From what a search returns to the candidates of a query: nothing trivial, nothing twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from realm_hf.data.passages.build import NULL_PASSAGE
from realm_hf.index.base import ABSENT, Collective
from realm_hf.index.faiss_search import search_threads

if TYPE_CHECKING:
    from realm_hf.knowledge.corpus import Corpus
    from realm_hf.knowledge.knowledge import Knowledge
    from realm_hf.retriever.candidates import CandidateSource, Queries

__all__ = [
    "PassageFilter",
    "RetrievalBatch",
    "SearchStats",
    "as_queries",
    "select_candidates",
]


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


@dataclass(frozen=True)
class PassageFilter:
    """
    What the queries of one search do not want: passages that contain their sentence, and copies of one text. It is the
    [`~realm_hf.index.base.Exclusion`] of an index's search.

    Args:
        corpus ([`Corpus`]): The passages.
        sentences (sequence of Q sentences or `None`): See [`Corpus.containing`]; `None` leaves out nothing.
        over_retrieve (`int`): Rows searched beyond those wanted where anything is to be left out.
    """

    corpus: Corpus
    sentences: Sequence[np.ndarray | str | None]
    over_retrieve: int

    @property
    def filtered(self) -> np.ndarray:
        """Bool `[Q]`: which queries have a sentence."""
        return np.array([sentence is not None for sentence in self.sentences], dtype=bool)

    def unwanted(self, query: int, rows: np.ndarray) -> np.ndarray:
        """Which of the rows contain the query's sentence, bool `[R]`."""
        sentence = self.sentences[query]
        return np.zeros(len(rows), dtype=bool) if sentence is None else self.corpus.containing(sentence, rows)

    def groups(self, rows: np.ndarray) -> np.ndarray:
        """[`Corpus.groups_of`]."""
        return self.corpus.groups_of(rows)


def select_candidates(
    served: Knowledge,
    queries: Queries,
    k: int,
    *,
    source: CandidateSource,
    exclude: Sequence[np.ndarray | str | None] | None,
    null_passage: bool,
    over_retrieve: int,
    threads: int | None,
) -> tuple[RetrievalBatch, int]:
    """
    Ask the source once for the candidates of all queries; it leaves out what is not wanted and searches deeper itself.

    Args:
        served ([`Knowledge`]): Passages and index.
        queries ([`Queries`]): B queries.
        k (`int`): Candidates of each query, the null passage counted.
        source ([`CandidateSource`]): Finds them.
        exclude (sequence of B sentences or `None`, *optional*): See [`Corpus.containing`].
        null_passage (`bool`): Put the null passage first.
        over_retrieve (`int`): Rows searched beyond those wanted where anything is to be filtered.
        threads (`int`, *optional*): Threads of FAISS in this search.

    Returns:
        `tuple`: The [`RetrievalBatch`], and the number of queries that were searched deeper.

    Raises:
        ValueError: If a number is out of range, or there are not as many sentences or token ids as queries.
    """
    if k < 1 or over_retrieve < 0:
        raise ValueError(f"k is {k} and over_retrieve {over_retrieve}: at least 1 and 0 are needed.")
    for name, given in (("exclude", exclude), ("token_ids", queries.token_ids)):
        if given is not None and len(given) != len(queries):
            raise ValueError(f"`{name}` has {len(given)} entries for {len(queries)} queries: give one for each.")
    count, first = len(queries), int(null_passage)
    batch = RetrievalBatch(
        rows=np.full((count, k), ABSENT, dtype=np.int64),
        scores=np.full((count, k), -np.inf, dtype=np.float32),
        excluded=np.zeros(count, dtype=np.int64),
        duplicates=np.zeros(count, dtype=np.int64),
        generation=served.name,
    )
    batch.rows[:, :first], batch.scores[:, :first] = NULL_PASSAGE, np.nan
    # Where all ranks search together, one without queries takes part.
    if k == first or not (count or isinstance(served.index, Collective)):
        return batch, 0
    unwanted = PassageFilter(served.corpus, [None] * count if exclude is None else exclude, over_retrieve)
    with search_threads(threads):
        found = source.candidates(served, queries, k - first, exclude=unwanted)
    batch.rows[:, first:], batch.scores[:, first:] = found.rows, found.scores
    batch.excluded[:], batch.duplicates[:] = found.excluded, found.duplicates
    return batch, found.searched_deeper
