"""One ranking of several: by reciprocal ranks, or by a sum of scores whose weight is fitted on questions.

Fused scores order passages and say nothing else; a reader's p(z|x) is computed from the towers' embeddings as ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from realm_hf.index.base import ABSENT
from realm_hf.retriever.beam_embeddings import inner_products
from realm_hf.retriever.candidates import IndexSource, found_by_several

if TYPE_CHECKING:
    from realm_hf.index.base import Exclusion, Found
    from realm_hf.knowledge.knowledge import Knowledge
    from realm_hf.retriever.bm25 import BM25Source
    from realm_hf.retriever.candidates import CandidateSource, Queries

__all__ = ["FUSED_DEPTH", "FusedSource", "ScoredUnion", "WeightedSource"]

FUSED_DEPTH = 100
"""How deep each ranking is read."""


class FusedSource:
    """
    A [`CandidateSource`] that fuses the rankings of several by reciprocal ranks (Cormack et al., 2009): a passage
    scores the sum of 1 / (constant + rank) over the rankings that it is in. Nothing has to be fitted.

    Args:
        sources (sequence of [`CandidateSource`]): At least one.
        constant (`int`, *optional*, defaults to 60): The larger it is, the less the first ranks stand out.
        depth (`int`, *optional*, defaults to 100): How deep each ranking is read; deeper where more is asked for.

    Raises:
        ValueError: If there is no source, or a number is not positive.

    Example:
    ```python
    >>> retriever.candidate_source = FusedSource([BM25Source.build(passages, tokenizer), IndexSource()])
    ```
    """

    def __init__(self, sources: Sequence[CandidateSource], *, constant: int = 60, depth: int = FUSED_DEPTH):
        if not sources or constant < 1 or depth < 1:
            raise ValueError(
                f"There are {len(sources)} sources, the constant is {constant}, the depth {depth}: each must be at "
                "least 1."
            )
        self.sources, self.constant, self.depth = tuple(sources), constant, depth

    def candidates(self, knowledge: Knowledge, queries: Queries, k: int, *, exclude: Exclusion) -> Found:
        """As [`CandidateSource.candidates`]; the scores are sums of reciprocal ranks."""
        depth = min(max(k, self.depth), len(knowledge.corpus))
        found = [source.candidates(knowledge, queries, depth, exclude=exclude) for source in self.sources]
        scores = np.full((len(queries), k), -np.inf, np.float32)
        rows = np.full((len(queries), k), ABSENT, np.int64)
        for query in range(len(queries)):
            rankings = [part.rows[query][part.rows[query] >= 0] for part in found]
            ranks = np.concatenate([np.arange(1, len(ranking) + 1) for ranking in rankings])
            ranked, text = _distinct(np.concatenate(rankings), exclude)
            summed = np.bincount(text, weights=1.0 / (self.constant + ranks), minlength=len(ranked))
            best = np.lexsort((ranked, -summed))[:k]
            scores[query, : len(best)], rows[query, : len(best)] = summed[best], ranked[best]
        return found_by_several(scores, rows, found)


@dataclass(frozen=True)
class ScoredUnion:
    """
    What the index or BM25 finds for B queries, with both scores of each passage.

    Args:
        rows (`np.ndarray`, int64 `[B, U]`): Passages in no order, each text once; -2 fills up.
        dense (`np.ndarray`, float32 `[B, U]`): Inner products with the stored embeddings; `-inf` at -2.
        words (`np.ndarray`, float32 `[B, U]`): BM25's scores.
        parts (`tuple` of [`Found`]): What either found.
    """

    rows: np.ndarray
    dense: np.ndarray
    words: np.ndarray
    parts: tuple[Found, ...]


class WeightedSource:
    """
    A [`CandidateSource`] that ranks what the index or BM25 finds by a sum of both scores: inner product + weight *
    BM25. Both are exact for every passage, whichever found it. The weight depends on the model:
    [`~realm_hf.retriever.mixture_fit.fit_mixture`] fits it on questions.

    Args:
        bm25 ([`BM25Source`]): Of the passages.
        weight (`float`): Of BM25's scores, at least 0.
        depth (`int`, *optional*, defaults to 100): How deep each ranking is read; deeper where more is asked for.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(self, bm25: BM25Source, weight: float, *, depth: int = FUSED_DEPTH):
        if not 0 <= weight < np.inf or depth < 1:
            raise ValueError(f"The weight is {weight} and the depth {depth}: at least 0 and 1 are needed.")
        self.bm25, self.weight, self.depth = bm25, float(weight), depth

    def candidates(self, knowledge: Knowledge, queries: Queries, k: int, *, exclude: Exclusion) -> Found:
        """As [`CandidateSource.candidates`]; the scores are the weighted sums."""
        union = self.union(knowledge, queries, k, exclude=exclude)
        summed = union.dense + np.float32(self.weight) * union.words
        scores = np.full((len(queries), k), -np.inf, np.float32)
        rows = np.full((len(queries), k), ABSENT, np.int64)
        best = np.lexsort((union.rows, -summed), axis=1)[:, :k]
        scores[:, : best.shape[1]] = np.take_along_axis(summed, best, 1)
        rows[:, : best.shape[1]] = np.take_along_axis(union.rows, best, 1)
        return found_by_several(scores, rows, union.parts)

    def union(self, knowledge: Knowledge, queries: Queries, k: int, *, exclude: Exclusion) -> ScoredUnion:
        """
        What either finds, at least `k` deep, with both scores of each passage.

        Args:
            knowledge ([`Knowledge`]): As for [`candidates`], with embeddings.
            queries ([`Queries`]): B queries.
            k (`int`): How many passages will be wanted.
            exclude ([`Exclusion`]): As for [`candidates`].
        """
        depth = min(max(k, self.depth), len(knowledge.corpus))
        sources: tuple[CandidateSource, ...] = (IndexSource(), self.bm25)
        parts = tuple(source.candidates(knowledge, queries, depth, exclude=exclude) for source in sources)
        both = np.concatenate([part.rows for part in parts], axis=1)
        distinct = [_distinct(row[row >= 0], exclude)[0] for row in both]
        rows = np.full((len(queries), max([1, *map(len, distinct)])), ABSENT, np.int64)
        for place, ranked in enumerate(distinct):
            rows[place, : len(ranked)] = ranked
        return ScoredUnion(
            rows,
            inner_products(knowledge.embeddings, queries.vectors, rows),
            self.bm25.scores(knowledge, queries, rows),
            parts,
        )


def _distinct(rows: np.ndarray, exclude: Exclusion) -> tuple[np.ndarray, np.ndarray]:
    """Of rows int64 `[R]` the first of each text int64 `[n]`, and which of these each row stands for, int `[R]`."""
    _, first, text = np.unique(exclude.groups(rows), return_index=True, return_inverse=True)
    return rows[first], text
