"""From the scores of all spans to the few that are shown.

A batch of 32 questions has about half a million spans, so all operations are on whole arrays. Spans with equal
wordpieces are found by a 64-bit hash of their ids and summed; only sums of a thousandth or more (at most a thousand a
question, a handful as a rule) are compared as strings later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch

from realm_hf.models.modeling_outputs import SpanScores
from realm_hf.models.reading import ReadBeam

__all__ = ["BestSpans", "SpanTable", "best_spans"]

_SMALLEST_SUM = 1e-3
_MULTIPLIER = 6364136223846793005  # of a linear congruential generator with a period of 2^64 (Knuth's MMIX)
_INCREMENT = 1442695040888963407


@dataclass(frozen=True)
class SpanTable:
    """
    Some spans, one an entry.

    Args:
        pair (`np.ndarray`, int64 `[S]`): The joint input of each; -1 where there is no span.
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


def best_spans(read: ReadBeam, input_ids: torch.Tensor) -> BestSpans:
    """
    One softmax over all spans of all passages of a question, and its best spans.

    Args:
        read ([`ReadBeam`]): T spans of P joint inputs of B questions.
        input_ids (`torch.LongTensor` of shape `(P, L)`): Wordpieces of the joint inputs.

    Returns:
        [`BestSpans`]: Of equal scores the first wins, see [`ReadBeam.best_of_questions`].
    """
    # In float32 the shares of half a million spans would add up to 1 only to the fifth digit.
    read = read.in_float64()
    input_ids = input_ids.to(read.relevance.device)
    spans, scores, question = read.spans, read.logits, read.question
    pairs = len(read.input_question)
    if not len(scores):
        return _nothing_found(len(read.relevance), pairs)
    probabilities = read.log_probs().exp()

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

    best = read.best_of_questions()
    share = probabilities.new_zeros(pairs).index_add(0, spans.pair, probabilities)
    kind, first = _equal_runs(spans, question, input_ids)
    sums = probabilities.new_zeros(len(first)).index_add(0, kind, probabilities)
    answered = best < len(scores)
    kind_of_best = kind[best.where(answered, 0)]
    is_best = torch.zeros_like(first).index_add(0, kind_of_best, answered.long()) > 0
    kept = (sums >= _SMALLEST_SUM) | is_best
    strings = kept.nonzero().flatten()
    found = _read(
        of_question=table(best),
        of_pair=table(read.best_of_inputs()),
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
