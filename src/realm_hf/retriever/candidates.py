"""Where candidates come from: a source is given what is asked, as vectors and as tokens, and answers with rows.

The index is one source. One that matches words, or mixes two, is another: it is given to the retriever
(`candidate_source`) and serves pre-training, fine-tuning and answering alike. A masked query's source sees the masked
tokens only: the sentence that must not be found stands behind `exclude`, which says of rows whether they are wanted,
and [`RankingSource.rank`] is not even given that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from realm_hf.index.asking import search_excluding
from realm_hf.index.base import Found
from realm_hf.index.ranking import checked_ranking

if TYPE_CHECKING:
    from realm_hf.index.base import Exclusion
    from realm_hf.knowledge.knowledge import Knowledge

__all__ = ["CandidateSource", "IndexSource", "Queries", "RankingSource", "found_by_several"]


@dataclass(frozen=True)
class Queries:
    """
    B queries as a source may read them.

    Args:
        vectors (`np.ndarray` of shape `[B, D]`): Their embeddings.
        token_ids (sequence of B `np.ndarray`, *optional*): What the query tower embedded, `[CLS] x [SEP]`, with
            `[MASK]` where a query is masked; `None` where only vectors were given.
    """

    vectors: np.ndarray
    token_ids: Sequence[np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, places: np.ndarray) -> Queries:
        """Some of them, by their places int64 `[n]`."""
        ids = None if self.token_ids is None else [self.token_ids[place] for place in places.tolist()]
        return Queries(self.vectors[places], ids)

    def tokens(self) -> Sequence[np.ndarray]:
        """The token ids of each query; a `ValueError` if only vectors are known."""
        if self.token_ids is None:
            raise ValueError(
                "This candidate source reads tokens, and the queries came as vectors only: pass `token_ids=` to "
                "`retrieve`, or ask with texts (`search`)."
            )
        return self.token_ids

    def wordpieces(self, special_ids: Sequence[int]) -> list[np.ndarray]:
        """
        The wordpieces of each query, without special tokens.

        Args:
            special_ids (sequence of `int`): Ids to leave out, `tokenizer.all_special_ids`.

        Raises:
            ValueError: If only vectors are known.
        """
        return [ids[~np.isin(ids, special_ids)] for ids in map(np.asarray, self.tokens())]


class CandidateSource(Protocol):
    """What finds the candidates of queries. Several threads may call it at once."""

    def candidates(self, knowledge: Knowledge, queries: Queries, k: int, *, exclude: Exclusion) -> Found:
        """
        The `k` best rows of each query that it wants.

        Args:
            knowledge ([`Knowledge`]): Passages and index as they are now; an edit or a swap gives others.
            queries ([`Queries`]): B queries. There may be none where all ranks search an index together: a source that
                asks the index asks it as often as ever.
            k (`int`): How many rows, at least 1.
            exclude ([`Exclusion`]): What is left out.

        Returns:
            [`Found`]: Rows of passages that were not removed (`knowledge.corpus.live_rows`), best first.
        """


def found_by_several(scores: np.ndarray, rows: np.ndarray, parts: Sequence[Found]) -> Found:
    """
    One result made of several. A passage may be left out of each: the most that one left out, none is counted twice.

    Args:
        scores (`np.ndarray` of shape `[B, k]`): Of the result.
        rows (`np.ndarray` of shape `[B, k]`): Of the result.
        parts (sequence of [`Found`]): What it was made of, at least one.
    """
    return Found(
        scores,
        rows,
        np.max([part.excluded for part in parts], axis=0),
        np.max([part.duplicates for part in parts], axis=0),
        max(part.searched_deeper for part in parts),
    )


class IndexSource:
    """The rows that the index finds: the largest inner products."""

    def candidates(self, knowledge: Knowledge, queries: Queries, k: int, *, exclude: Exclusion) -> Found:
        """As [`CandidateSource.candidates`]."""
        return knowledge.index.search(queries.vectors, k, exclude=exclude)


class RankingSource(ABC):
    """
    A [`CandidateSource`] made of what ranks passages: [`rank`] is all that a subclass writes. What is excluded is left
    out of the ranking, which is made deeper where too little remains.
    """

    @abstractmethod
    def rank(self, knowledge: Knowledge, queries: Queries, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """
        The best passages of each query, whatever they hold.

        Args:
            knowledge ([`Knowledge`]): Passages and index as they are now.
            queries ([`Queries`]): n queries, n > 0.
            depth (`int`): How many rows, 1 to N.

        Returns:
            `tuple` of scores float32 `[n, depth]`, best first, and rows int64 `[n, depth]`. A negative row says that
            nothing more was found, and stands behind all others.
        """

    def candidates(self, knowledge: Knowledge, queries: Queries, k: int, *, exclude: Exclusion) -> Found:
        """As [`CandidateSource.candidates`]; an `IndexFileError` if a row is ranked that is not there."""
        size = len(knowledge.corpus)

        def ranked(places: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
            return checked_ranking(*self.rank(knowledge, queries[places], depth), size)

        return search_excluding(ranked, np.arange(len(queries)), k, size, exclude)
