"""From the scores of all spans to the few that are shown, by operations on whole arrays.

A batch of 32 questions has about half a million spans, so nothing here loops over them. Spans with equal wordpieces
are found by a 64-bit hash of their ids and summed; only sums of a thousandth or more (at most a thousand a question,
a handful as a rule) are handed on to be compared as strings.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
import torch

from realm_hf.models.losses import span_log_softmax
from realm_hf.models.modeling_outputs import SpanScores
from realm_hf.models.precision import has_float64

__all__ = ["BestSpans", "SpanTable", "best_spans"]

_SMALLEST_SUM = 1e-3
_MULTIPLIER = 6364136223846793005  # of a linear congruential generator with a period of 2^64 (Knuth's MMIX)
_INCREMENT = 1442695040888963407


@dataclass(frozen=True)
class SpanTable:
    """
    Some spans, one an entry.

    Args:
        pair (`np.ndarray`, int64 `[S]`): The joint input that it stands in; -1 where there is no span.
        start (`np.ndarray`, int64 `[S]`): First wordpiece in the joint input.
        end (`np.ndarray`, int64 `[S]`): Last wordpiece, inclusive.
        probability (`np.ndarray`, float64 `[S]`): Its probability among all spans of the question; 0 without a span.
        score (`np.ndarray`, float64 `[S]`): Its logit, the passage's relevance score included.
    """

    pair: np.ndarray
    start: np.ndarray
    end: np.ndarray
    probability: np.ndarray
    score: np.ndarray

    @classmethod
    def of(cls, columns: np.ndarray) -> Self:
        """From float64 `[5, S]`, in the order above."""
        return cls(*columns[:3].astype(np.int64), *columns[3:])


@dataclass(frozen=True)
class BestSpans:
    """
    What is kept of a batch's spans.

    Args:
        of_question ([`SpanTable`], B entries): The most probable span of each question.
        of_pair ([`SpanTable`], P entries): The most probable span of each joint input.
        share (`np.ndarray`, float64 `[P]`): Summed probability of all spans of each joint input.
        strings ([`SpanTable`], G entries): Of each run of wordpieces that matters the first span of its kind; its
            `probability` is the sum over equal runs.
        string_question (`np.ndarray`, int64 `[G]`): The question of each.
        string_of_best (`np.ndarray`, int64 `[B]`): Entry of `strings` with the wordpieces of each question's most
            probable span; -1 without one. Its characters may differ: an uncased vocabulary drops accents as well.
    """

    of_question: SpanTable
    of_pair: SpanTable
    share: np.ndarray
    strings: SpanTable
    string_question: np.ndarray
    string_of_best: np.ndarray


def best_spans(
    spans: SpanScores,
    relevance: torch.Tensor,
    pair_question: torch.Tensor,
    num_questions: int,
    input_ids: torch.Tensor,
) -> BestSpans:
    """
    One softmax over all spans of all passages of a question, and its best spans.

    Of equal scores the first wins, in the order of transformers 4.57.6: by rank of the passage, width, start. (Where
    passages tie, that release may take the span's place from another one than the passage that it names.)

    Args:
        spans ([`SpanScores`]): T spans of P joint inputs.
        relevance (`torch.Tensor` of shape `(P,)`): Relevance score of each joint input's passage; it is added to the
            logits, so that the retriever's belief is part of the softmax (ORQA).
        pair_question (`torch.LongTensor` of shape `(P,)`): The question of each joint input.
        num_questions (`int`): B.
        input_ids (`torch.LongTensor` of shape `(P, L)`): Wordpieces of the joint inputs.

    Returns:
        [`BestSpans`]
    """
    # In float32 the shares of half a million spans would add up to 1 only to the fifth digit.
    if not has_float64(spans.logits.device):
        spans = replace(spans, **{column.name: getattr(spans, column.name).cpu() for column in fields(spans)})
        relevance, pair_question, input_ids = relevance.cpu(), pair_question.cpu(), input_ids.cpu()
    scores = spans.logits.double() + relevance[spans.pair]
    if not len(scores):
        return _nothing_found(num_questions, len(pair_question))
    question = pair_question[spans.pair]
    probabilities = span_log_softmax(scores, question, num_questions).exp()

    def table(chosen: torch.Tensor, sums: torch.Tensor | None = None) -> torch.Tensor:
        """The columns of a [`SpanTable`], float64 `(5, S)`; T in `chosen` stands for no span."""
        present = chosen < len(scores)
        at = chosen.where(present, 0)

        def column(values: torch.Tensor, absent: float) -> torch.Tensor:
            return values[at].double().where(present, absent)

        return torch.stack(
            [
                column(spans.pair, -1),
                column(spans.start, 0),
                column(spans.end, 0),
                column(probabilities, 0.0) if sums is None else sums,
                column(scores, -torch.inf),
            ]
        )

    # [T]: number of each span by joint input, width, start; `spans` are by joint input, start, width
    width, length = spans.end - spans.start, input_ids.size(1)
    place = (spans.pair * length + width) * length + spans.start
    best = _first_largest(scores, question, num_questions, place)
    share = probabilities.new_zeros(len(pair_question)).index_add(0, spans.pair, probabilities)
    kind, first = _equal_runs(spans, question, input_ids)
    sums = probabilities.new_zeros(len(first)).index_add(0, kind, probabilities)
    answered = best < len(scores)
    kind_of_best = kind[best.where(answered, 0)]
    is_best = torch.zeros_like(first).index_add(0, kind_of_best, answered.long()) > 0
    kept = (sums >= _SMALLEST_SUM) | is_best
    strings = kept.nonzero().flatten()
    found = _read(
        of_question=table(best),
        of_pair=table(_first_largest(scores, spans.pair, len(pair_question), place)),
        share=share,
        strings=table(first[strings], sums[strings]),
        string_question=question[first[strings]],
        string_of_best=(kept.cumsum(0) - 1)[kind_of_best].where(answered, -1),
    )
    return BestSpans(
        of_question=SpanTable.of(found["of_question"]),
        of_pair=SpanTable.of(found["of_pair"]),
        share=found["share"],
        strings=SpanTable.of(found["strings"]),
        string_question=found["string_question"].astype(np.int64),
        string_of_best=found["string_of_best"].astype(np.int64),
    )


def _read(**tensors: torch.Tensor) -> dict[str, np.ndarray]:
    """Tensors by name as float64 arrays of their shapes; their device is waited for once."""
    everything = torch.cat([tensor.flatten().double() for tensor in tensors.values()]).cpu().numpy()
    pieces = np.split(everything, np.cumsum([tensor.numel() for tensor in tensors.values()])[:-1])
    return {name: piece.reshape(tensor.shape) for (name, tensor), piece in zip(tensors.items(), pieces, strict=True)}


def _nothing_found(questions: int, pairs: int) -> BestSpans:
    def absent(count: int) -> SpanTable:
        return SpanTable.of(np.repeat([[-1.0], [0.0], [0.0], [0.0], [-np.inf]], count, axis=1))

    none = np.zeros(0, np.int64)
    return BestSpans(absent(questions), absent(pairs), np.zeros(pairs), absent(0), none, np.full(questions, -1))


def _first_largest(scores: torch.Tensor, segment: torch.Tensor, segments: int, place: torch.Tensor) -> torch.Tensor:
    """Index of each segment's largest score, `(segments,)`; T in one without any. Of equal ones the lowest place."""
    largest = scores.new_full((segments,), -torch.inf).scatter_reduce(0, segment, scores, "amax")
    behind = torch.iinfo(torch.long).max
    tied = place.where(scores == largest[segment], behind)
    lowest = place.new_full((segments,), behind).scatter_reduce(0, segment, tied, "amin")
    # Places differ, so this is one span of each segment that has any.
    chosen = torch.arange(len(scores), device=scores.device).where(place == lowest[segment], len(scores))
    return place.new_full((segments,), len(scores)).scatter_reduce(0, segment, chosen, "amin")


def _equal_runs(
    spans: SpanScores, question: torch.Tensor, input_ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Distinct runs of wordpieces a question: the number of each span's `(T,)`, and the first span of each `(G,)`."""
    widths = spans.end - spans.start
    widest = int(widths.max()) + 1
    # Entry [w, p, i] is the hash of the w + 1 ids from position i on: int64 arithmetic modulo 2^64.
    hashes = torch.zeros((widest, *input_ids.shape), dtype=torch.long, device=input_ids.device)
    for width in range(widest):
        end = input_ids.size(1) - width
        before = hashes[width - 1, :, :end] if width else 0
        hashes[width, :, :end] = (before + input_ids[:, width:]) * _MULTIPLIER + _INCREMENT
    keys = (hashes[widths, spans.pair, spans.start] + question) * _MULTIPLIER + _INCREMENT
    distinct, kind = keys.unique(return_inverse=True)
    order = torch.arange(len(keys), device=keys.device)
    return kind, torch.full_like(distinct, len(keys)).scatter_reduce(0, kind, order, "amin")
