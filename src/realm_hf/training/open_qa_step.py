"""One forward pass of fine-tuning: questions are embedded, their beam is searched, read, and scored (ORQA, section 6).

    L = -log P(passages with an answer)  over the wide beam          trains the query tower
        -log P(spans that are an answer) over all spans that are read trains both

The second softmax runs over all spans of all passages read at once, the passage's relevance score added to each of its
spans' logits, so that the reader's gradient reaches the retriever too. The query is embedded once, with gradient; its
values without gradient are what the index is searched with. The passages' vectors are the index's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from realm_hf.models.host_facts import RowFacts
from realm_hf.models.losses import relevance_scores, retriever_marginal_loss, span_marginal_loss
from realm_hf.models.modeling_outputs import SpanScores
from realm_hf.models.modeling_realm_qa import RealmForOpenQA
from realm_hf.models.transfer import to_device
from realm_hf.training.beams import Beam

SUMS = ("loss", "retriever_loss", "reader_loss", "answerless", "reader_answerless", "span_accuracy")


@dataclass(frozen=True)
class StepOutput:
    """Losses and figures of B questions.

    Args:
        loss: Sum over the questions, a scalar with gradient. One without an answer counts 0.
        retriever_loss: `[B]`.
        reader_loss: `[B]`.
        beam_has_answer: bool `[B]`: some passage of the wide beam holds an answer.
        read_has_answer: bool `[B]`: some span that the reader scores is an answer.
        best_is_answer: bool `[B]`: the best of them is.
    """

    loss: torch.Tensor
    retriever_loss: torch.Tensor
    reader_loss: torch.Tensor
    beam_has_answer: torch.Tensor
    read_has_answer: torch.Tensor
    best_is_answer: torch.Tensor

    def sums(self) -> torch.Tensor:
        """Sums over the questions, in the order of [`SUMS`]; float32 `[6]`, on the device."""
        sums = [self.loss, self.retriever_loss.sum(), self.reader_loss.sum()]
        counts = [(~self.beam_has_answer).sum(), (~self.read_has_answer).sum(), self.best_is_answer.sum()]
        return torch.stack([value.detach().float() for value in (*sums, *counts)])


def means(sums: list[float], questions: int) -> dict[str, float]:
    """Averages over the questions of the summed figures; those without an answer are counted."""
    total = dict(zip(SUMS, sums, strict=True))
    counts = ("answerless", "reader_answerless")
    averaged = {name: value / questions for name, value in total.items() if name not in counts}
    return {**averaged, **{name: round(total[name]) for name in counts}}


class OpenQAStep(nn.Module):
    """The forward pass as one module, for DistributedDataParallel sees the gradients of one `forward`.

    Args:
        model: Its parameters are this module's.
    """

    def __init__(self, model: RealmForOpenQA):
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        search: Callable[[torch.Tensor], Beam],
        facts: RowFacts | None = None,
    ) -> StepOutput:
        """
        Args:
            input_ids: `[CLS] question [SEP]`, int64 `[B, Lq]`, padded on the right.
            attention_mask: 1 at tokens, `[B, Lq]`.
            search: From query embeddings `[B, D]` to their [`Beam`].
            facts: Of the questions, where the host knows them.
        """
        queries = self.model.embed_questions(input_ids, attention_mask, facts)
        beam = search(queries.detach())
        count = len(queries)
        sent = to_device(
            {
                "embeddings": beam.embeddings,
                "has_answer": beam.has_answer,
                "present": beam.rows >= 0,
                "question": beam.read.question,
                "rank": beam.read.rank,
                **beam.read.tensors(),
            },
            queries.device,
        )
        # [B, S]
        scores = relevance_scores(queries, sent["embeddings"], self.model.config.score_scale)
        has_answer = sent["has_answer"]
        retriever_loss = retriever_marginal_loss(scores, has_answer, sent["present"])

        spans = self.model.reader.score_spans(
            sent["input_ids"],
            sent["attention_mask"],
            sent["token_type_ids"],
            sent["block_mask"],
            facts=beam.read.facts(),
        )
        # [T]
        logits = spans.logits + scores[sent["question"], sent["rank"]][spans.pair]
        correct = answers_among(spans, beam.gold, beam.read.input_ids.shape[1])
        of_question = sent["question"][spans.pair]
        reader_loss = span_marginal_loss(logits, correct, of_question, count)
        loss = (retriever_loss + reader_loss).sum()
        if len(logits) == 0:
            loss = loss + self._zero_with_gradient()
        return StepOutput(
            loss=loss,
            retriever_loss=retriever_loss.detach(),
            reader_loss=reader_loss.detach(),
            beam_has_answer=has_answer.any(-1),
            read_has_answer=_any_by(correct, of_question, count),
            best_is_answer=_best_is(correct, logits.detach(), of_question, count),
        )

    def _zero_with_gradient(self) -> torch.Tensor:
        """A zero that depends on the reader, which had no span to score: DistributedDataParallel waits for it."""
        touched = [parameter.flatten()[0] for parameter in self.model.reader.parameters() if parameter.requires_grad]
        return 0.0 * torch.stack(touched).sum()


def answers_among(spans: SpanScores, gold: np.ndarray, length: int) -> torch.Tensor:
    """Which spans are answers.

    Args:
        spans: T spans that the reader scored.
        gold: int64 `[3, G]`, see [`Beam`].
        length: Positions of a joint input.

    Returns:
        bool `[T]`. Answers that are no span of the reader, for instance wider ones, are among none.
    """
    pair, start, end = gold
    widest = int((end - start).max(initial=-1)) + 1
    # One flag for each joint input, start and width up to that of the widest answer; the last is of all other spans.
    flags = int(pair.max(initial=-1) + 1) * length * widest
    places = {"places": (pair * length + start) * widest + end - start}
    device = spans.pair.device
    table = torch.zeros(flags + 1, dtype=torch.bool, device=device)
    table[to_device(places, device)["places"]] = True
    width = spans.end - spans.start
    place = (spans.pair * length + spans.start) * widest + width
    return table[torch.where((width < widest) & (place < flags), place, flags)]


def _any_by(flags: torch.Tensor, question: torch.Tensor, count: int) -> torch.Tensor:
    """Whether any of a question's flags `[T]` is set, bool `[B]`."""
    return torch.zeros(count, dtype=torch.long, device=flags.device).index_add(0, question, flags.long()) > 0


def _best_is(correct: torch.Tensor, logits: torch.Tensor, question: torch.Tensor, count: int) -> torch.Tensor:
    """Whether a question's span of the largest logit is a right one, bool `[B]`."""
    best = logits.new_full((count,), -torch.inf).scatter_reduce(0, question, logits, "amax")
    return _any_by(correct & (logits == best[question]), question, count)
