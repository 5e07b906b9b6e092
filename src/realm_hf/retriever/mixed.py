"""Candidates of several sources, a fixed number from each: `{"bm25": 2, "dense": 2}` in pre-training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from realm_hf.index.base import ABSENT
from realm_hf.retriever.beam_embeddings import inner_products
from realm_hf.retriever.candidates import found_by_several

if TYPE_CHECKING:
    from realm_hf.index.base import Exclusion, Found
    from realm_hf.knowledge.knowledge import Knowledge
    from realm_hf.retriever.candidates import CandidateSource, Queries

__all__ = ["MixedSource"]


class MixedSource:
    """
    A [`CandidateSource`] that takes a number of candidates from each of several sources, in turn.

    A passage, or another with its text, that a source has given already is not taken again: the next best of the
    source is. Where a source has nothing more, the others fill its places. Where another number of candidates is asked
    for than the quotas add up to, each source's share stays as near to its quota's as whole numbers can be.

    Scores are inner products with the stored embeddings, whatever found a passage; so they do not descend.

    Args:
        parts (sequence of `tuple` of [`CandidateSource`] and `int`): The sources, and how many candidates each gives.

    Raises:
        ValueError: If there is no source, or a number is not positive.

    Example:
    ```python
    >>> source = MixedSource([(BM25Source.build(passages, tokenizer), 2), (IndexSource(), 2)])
    ```
    """

    def __init__(self, parts: Sequence[tuple[CandidateSource, int]]):
        if not parts or min(quota for _, quota in parts) < 1:
            raise ValueError(
                f"The quotas are {[quota for _, quota in parts]}: give at least one source, and each at least 1."
            )
        self.parts = tuple(parts)

    def candidates(self, knowledge: Knowledge, queries: Queries, k: int, *, exclude: Exclusion) -> Found:
        """As [`CandidateSource.candidates`]."""
        # Of any source no more than k are used: at worst all but its own last are copies of what others gave.
        found = [source.candidates(knowledge, queries, k, exclude=exclude) for source, _ in self.parts]
        rows = np.full((len(queries), k), ABSENT, np.int64)
        turns = self._turns(k)
        for query in range(len(queries)):
            rankings = [part.rows[query][part.rows[query] >= 0] for part in found]
            rows[query] = _dealt(rankings, turns, exclude.groups(np.concatenate(rankings)))
        return found_by_several(inner_products(knowledge.embeddings, queries.vectors, rows), rows, found)

    def _turns(self, k: int) -> list[int]:
        """Whose turn each of `k` places is: the source that lags most behind its share."""
        quotas = np.array([quota for _, quota in self.parts])
        behind, turns = np.zeros(len(quotas), np.int64), []
        for _ in range(k):
            behind += quotas
            turns.append(int(behind.argmax()))
            behind[turns[-1]] -= quotas.sum()
        return turns


def _dealt(rankings: Sequence[np.ndarray], turns: Sequence[int], groups: np.ndarray) -> np.ndarray:
    """
    The rows of one query, int64 `[k]`.

    Args:
        rankings (sequence of `np.ndarray`): Rows of each source, best first.
        turns (sequence of k `int`): Whose turn each place is.
        groups (`np.ndarray`): Of all rankings' rows, one after the other: equal for equal texts.
    """
    ends = np.cumsum([len(ranking) for ranking in rankings])
    left = [
        iter(zip(ranking.tolist(), of_row.tolist(), strict=True))
        for ranking, of_row in zip(rankings, np.split(groups, ends[:-1]), strict=True)
    ]
    taken: set[int] = set()
    dealt = np.full(len(turns), ABSENT, np.int64)
    for place, turn in enumerate(turns):
        for part in [turn, *(other for other in range(len(left)) if other != turn)]:
            new = next(((row, group) for row, group in left[part] if group not in taken), None)
            if new is not None:
                dealt[place] = new[0]
                taken.add(new[1])
                break
    return dealt
