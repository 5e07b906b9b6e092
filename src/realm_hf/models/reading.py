"""Retrieve, score, read: what the model's forward, a training step and an answerer have in common (ORQA, section 3).

    Beam.retrieve     embeddings of B questions -> S passages for each, and their stored embeddings; on the host
    beam_relevance    f(x, z) of each passage; minus infinity where there is none
    ReadBeam          all spans of the passages that are read: probabilities, the best ones, both losses

`RealmForOpenQA.read_beam` goes from a beam to a `ReadBeam`. What differs stays with the callers: who searches, how
joint inputs are made (from stored wordpieces, or from texts as in transformers 4.57.6), and what becomes of the spans.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, Self

import numpy as np
import torch

from realm_hf.models.host_facts import ReaderFacts
from realm_hf.models.losses import (
    relevance_scores,
    retriever_marginal_loss,
    span_log_softmax,
    span_marginal_loss,
)
from realm_hf.models.modeling_outputs import SpanScores
from realm_hf.models.precision import has_float64, in_float64
from realm_hf.models.transfer import to_device


class BeamRetriever(Protocol):
    """What the model asks of its retriever; [`RealmRetriever`] is one."""

    def retrieve(
        self, query_embeddings: torch.Tensor, k: int, *, token_ids: Sequence[np.ndarray], null_passage: bool
    ) -> Any:
        """Return an object whose `rows`, int64 `[B, k]`, are passages, best first; negative where there is none."""

    def beam_embeddings(self, rows: np.ndarray) -> np.ndarray:
        """Return the stored embeddings of `rows` `[B, S]` as float32 `[B, S, D]`."""

    def __call__(self, retrieved_block_ids: Any, question_input_ids: Any, answer_ids: Any, max_length: int) -> Any:
        """Return `has_answers`, `start_pos`, `end_pos` and the reader's inputs for one question."""


class JointInputs(Protocol):
    """P joint inputs of a question and a passage of its beam, on the host; [`ReaderBatch`] is one."""

    @property
    def question(self) -> np.ndarray:
        """int64 `[P]`: number of the question."""

    @property
    def rank(self) -> np.ndarray:
        """int64 `[P]`: the passage's place in the question's beam."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """`input_ids`, `attention_mask`, `token_type_ids` and `block_mask`, `(P, L)` each."""

    def facts(self) -> ReaderFacts:
        """What the host knows of them."""


@dataclass(frozen=True)
class Beam:
    """
    The passages of B questions, best first; on the host.

    Args:
        rows (`np.ndarray`, int64 `[B, S]`): The passages; negative where there is none.
        embeddings (`np.ndarray`, float32 `[B, S, D]`, *optional*): Their stored embeddings.
        scores (`np.ndarray`, float32 `[B, S]`, *optional*):
            The index's own scores, which stand for the relevance where no embeddings are stored.
    """

    rows: np.ndarray
    embeddings: np.ndarray | None
    scores: np.ndarray | None = None

    @classmethod
    def retrieve(
        cls, retriever: BeamRetriever, queries: torch.Tensor, k: int, token_ids: Sequence[np.ndarray]
    ) -> Self:
        """
        Search for the `k` best passages of each question.

        Args:
            retriever ([`BeamRetriever`]): Has the index and the stored embeddings.
            queries (`torch.Tensor` of shape `(B, D)`): Embeddings of the questions; no gradient goes into the search.
            k (`int`): Passages of each.
            token_ids (sequence of B `np.ndarray`): `[CLS] question [SEP]` of each, for what searches by words.

        Returns:
            [`Beam`]: S is `k`, or what the question with most passages has if that is less, but at least 1.

        Raises:
            `ValueError`: the retriever has no embeddings.
        """
        rows = best_rows(retriever, queries, k, token_ids)
        return cls(rows, retriever.beam_embeddings(rows))

    def arrays(self) -> dict[str, np.ndarray]:
        """What [`beam_relevance`] needs on the device."""
        if self.embeddings is not None:
            return {"embeddings": self.embeddings, "absent": self.rows < 0}
        if self.scores is None:
            raise ValueError("The beam has neither embeddings nor scores: its passages cannot be scored. Give one.")
        return {"scores": self.scores, "absent": self.rows < 0}

    def to_device(
        self, joint: JointInputs, device: torch.device, more: Mapping[str, np.ndarray]
    ) -> dict[str, torch.Tensor]:
        """
        Send what [`RealmForOpenQA.read_beam`] takes, in one copy.

        Args:
            joint ([`JointInputs`]): Joint inputs of the passages that are read.
            device (`torch.device`): Where to.
            more (`Mapping[str, np.ndarray]`): What the caller needs there, by names of its own.

        Returns:
            `dict[str, torch.Tensor]`: All of them by name.
        """
        places = {"question": joint.question, "rank": joint.rank}
        return to_device({**self.arrays(), **places, **joint.tensors(), **more}, device)


def best_rows(retriever: BeamRetriever, queries: torch.Tensor, k: int, token_ids: Sequence[np.ndarray]) -> np.ndarray:
    """The rows of [`Beam.retrieve`], int64 `[B, S]`."""
    rows = np.asarray(retriever.retrieve(queries.detach(), k, token_ids=token_ids, null_passage=False).rows)
    return rows[:, : max(1, int((rows >= 0).sum(axis=1).max()))]


def beam_relevance(queries: torch.Tensor, beam: Mapping[str, torch.Tensor], scale: float) -> torch.Tensor:
    """
    f(x, z) of the passages of a beam.

    Args:
        queries (`torch.Tensor` of shape `(B, D)`): Embeddings of the questions; gradients flow into them.
        beam (`Mapping[str, torch.Tensor]`): What [`Beam.arrays`] gave, on the device of `queries`.
        scale (`float`): Factor on the inner products.

    Returns:
        `torch.Tensor` of shape `(B, S)`: The scores, in at least float32; minus infinity where there is no passage.
    """
    stored = "embeddings" in beam
    scores = relevance_scores(queries, beam["embeddings"], scale) if stored else beam["scores"] * scale
    return scores.masked_fill(beam["absent"], -torch.inf)


@dataclass(frozen=True)
class ReadBeam:
    """
    All spans of the passages that were read for B questions.

    Args:
        spans ([`SpanScores`]): T spans of P joint inputs, with the reader's own logits.
        relevance (`torch.Tensor` of shape `(B, S)`): Scores of the beam; minus infinity where there is no passage.
        input_question (`torch.LongTensor` of shape `(P,)`): The question of each joint input.
        input_rank (`torch.LongTensor` of shape `(P,)`): The place of its passage in the beam.
        length (`int`): L, the positions of a joint input.
    """

    spans: SpanScores
    relevance: torch.Tensor
    input_question: torch.Tensor
    input_rank: torch.Tensor
    length: int

    @cached_property
    def logits(self) -> torch.Tensor:
        """The reader's logit of each span plus the relevance score of its passage, `(T,)`, so that the retriever's
        belief is part of the softmax (ORQA) and the reader's gradient reaches the query tower.
        """
        return self.spans.logits + self.relevance[self.input_question, self.input_rank][self.spans.pair]

    @cached_property
    def question(self) -> torch.Tensor:
        """The question of each span, int64 `(T,)`."""
        return self.input_question[self.spans.pair]

    def in_float64(self) -> Self:
        """The same with scores in float64; on the CPU where the device has no float64."""
        device = self.relevance.device if has_float64(self.relevance.device) else torch.device("cpu")
        spans = self.spans
        return replace(
            self,
            spans=SpanScores(
                in_float64(spans.logits), spans.pair.to(device), spans.start.to(device), spans.end.to(device)
            ),
            relevance=in_float64(self.relevance),
            input_question=self.input_question.to(device),
            input_rank=self.input_rank.to(device),
        )

    def log_probs(self) -> torch.Tensor:
        """Log probability of each span among all spans of its question, `(T,)`."""
        return span_log_softmax(self.logits, self.question, len(self.relevance))

    def losses(self, has_answer: torch.Tensor, correct: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Both losses of ORQA.

        Args:
            has_answer (`torch.BoolTensor` of shape `(B, S)`): Whether a passage of the beam contains an answer.
            correct (`torch.BoolTensor` of shape `(T,)`): Whether a span is an answer.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]` of shape `(B,)` each: The retriever's and the reader's, in nats; 0
            where there is no answer.
        """
        retriever = retriever_marginal_loss(self.relevance, has_answer)
        return retriever, span_marginal_loss(self.logits, correct, self.question, len(self.relevance))

    def best_of_questions(self) -> torch.Tensor:
        """
        The best span of each question.

        Of equal ones the first wins, in the order of transformers 4.57.6: by rank of the passage, width, start. (Where
        passages tie, that release may take the span's place from another one than the passage that it names.)

        Returns:
            `torch.LongTensor` of shape `(B,)`: Indices of spans; T where a question has none.
        """
        return self._first_largest(self.question, len(self.relevance))

    def best_of_inputs(self) -> torch.Tensor:
        """The best span of each joint input by the same rule, `(P,)`; T where one has none."""
        return self._first_largest(self.spans.pair, len(self.input_question))

    def _first_largest(self, group: torch.Tensor, groups: int) -> torch.Tensor:
        """Index of the best span of each group, `(groups,)`; `group` `(T,)` is that of each span."""
        scores, spans = self.logits.detach(), self.spans
        largest = scores.new_full((groups,), -torch.inf).scatter_reduce(0, group, scores, "amax")
        # [T]: number of each span by joint input, width, start; the spans themselves come by joint input, start, width
        place = (spans.pair * self.length + spans.end - spans.start) * self.length + spans.start
        behind = torch.iinfo(torch.long).max
        tied = place.where(scores == largest[group], behind)
        lowest = place.new_full((groups,), behind).scatter_reduce(0, group, tied, "amin")
        # Places differ, so this is one span of each group that has any.
        chosen = torch.arange(len(scores), device=scores.device).where(place == lowest[group], len(scores))
        return place.new_full((groups,), len(scores)).scatter_reduce(0, group, chosen, "amin")


__all__ = ["Beam", "BeamRetriever", "JointInputs", "ReadBeam", "beam_relevance", "best_rows"]
