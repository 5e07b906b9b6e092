"""The weight of words beside vectors, fitted on questions whose passages are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from realm_hf.retriever.bm25 import BM25Source
from realm_hf.retriever.candidates import Queries
from realm_hf.retriever.fused import FUSED_DEPTH, ScoredUnion, WeightedSource
from realm_hf.retriever.selection import PassageFilter
from realm_hf.retriever.text_search import embedded_texts, texts_token_ids

if TYPE_CHECKING:
    from realm_hf.retriever.retriever import RealmRetriever

__all__ = ["FittedMixture", "fit_mixture"]

_STEPS = np.exp2(np.arange(-4, 5))


class FittedMixture(NamedTuple):
    """
    A fitted mixture.

    Args:
        source ([`WeightedSource`]): With the best weight.
        weights (`list[float]`): Those that were tried, ascending.
        reciprocal_ranks (`list[float]`): Mean reciprocal rank of the known passages with each.
    """

    source: WeightedSource
    weights: list[float]
    reciprocal_ranks: list[float]


def fit_mixture(
    retriever: RealmRetriever,
    bm25: BM25Source,
    questions: Sequence[str],
    gold: Sequence[int],
    *,
    weights: Sequence[float] | None = None,
    depth: int = FUSED_DEPTH,
    batch_size: int = 64,
) -> FittedMixture:
    """
    Choose the weight of BM25's scores beside inner products by the mean reciprocal rank of the passages that are known
    to be right. A thousand training questions are enough; those that are evaluated on must not be among them.

    Args:
        retriever ([`RealmRetriever`]): With query tower, tokenizer and embeddings; it is not changed.
        bm25 ([`BM25Source`]): Of its passages.
        questions (sequence of Q `str`): Training questions.
        gold (sequence of Q `int`): The row of each question's passage; another with the same text counts as well.
        weights (sequence of `float`, *optional*): What to try; by default nine steps, each twice the one before,
            around the ratio of the two scores' spreads.
        depth (`int`, *optional*, defaults to 100): How deep each ranking is read.
        batch_size (`int`, *optional*, defaults to 64): Questions that are embedded and searched at once.

    Returns:
        [`FittedMixture`]

    Raises:
        ValueError: If there is no question, or not one passage for each; or as for [`RealmRetriever.search`].
    """
    if not len(questions) or len(gold) != len(questions):
        raise ValueError(
            f"There are {len(questions)} questions and {len(gold)} passages: give one for each, at least 1."
        )
    source = WeightedSource(bm25, 0.0, depth=depth)
    knowledge = retriever.knowledge
    vectors = embedded_texts(retriever, questions, batch_size=batch_size, show_progress_bar=False)
    ids = texts_token_ids(retriever, questions)
    unions, is_gold = [], []
    for start in range(0, len(questions), batch_size):
        part = slice(start, start + batch_size)
        queries = Queries(vectors[part], ids[part])
        unwanted = PassageFilter(knowledge.corpus, [None] * len(queries), 0)
        union = source.union(knowledge, queries, 1, exclude=unwanted)
        unions.append(union)
        is_gold += [
            unwanted.groups(np.append(row, right))[:-1] == unwanted.groups(np.append(row, right))[-1]
            for row, right in zip(union.rows, gold[part], strict=True)
        ]
    tried = np.sort(_grid(unions) if weights is None else np.asarray(weights, np.float64))
    ranks = [_mean_reciprocal_rank(unions, is_gold, weight) for weight in tried.tolist()]
    best = WeightedSource(bm25, float(tried[int(np.argmax(ranks))]), depth=depth)
    return FittedMixture(best, tried.tolist(), ranks)


def _grid(unions: Sequence[ScoredUnion]) -> np.ndarray:
    """Weights around the one with which both scores spread alike over a question's passages."""
    dense, words = (
        np.mean(
            [np.std(scores[row >= 0]) for union in unions for row, scores in zip(union.rows, of(union), strict=True)]
        )
        for of in (lambda union: union.dense, lambda union: union.words)
    )
    return _STEPS * dense / max(float(words), 1e-6)


def _mean_reciprocal_rank(unions: Sequence[ScoredUnion], is_gold: Sequence[np.ndarray], weight: float) -> float:
    """Of the known passages; one that neither ranking holds counts 0, equal scores count as ranked before it."""
    ranks: list[float] = []
    for union in unions:
        for scores in union.dense + weight * union.words:
            right = is_gold[len(ranks)] & np.isfinite(scores)
            ranks.append(1.0 / (scores >= scores[right].max()).sum() if right.any() else 0.0)
    return float(np.mean(ranks))
