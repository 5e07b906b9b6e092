"""One forward pass of fine-tuning: questions are embedded, their beam is searched, read, and scored (ORQA, section 6).

    L = -log P(passages with an answer)  over the wide beam          trains the query tower
        -log P(spans that are an answer) over all spans that are read trains both

The second softmax runs over all spans of all passages read at once, the passage's relevance score added to each of its
spans' logits, so that the reader's gradient reaches the retriever too. The query is embedded once, with gradient; its
values without gradient are what the index is searched with. The passages' vectors are the index's. So the search
stands between two halves of one forward pass, and nothing of a beam, its answers included, can be prepared in advance.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from realm_hf.generations.embedding import evaluating
from realm_hf.models.host_facts import RowFacts
from realm_hf.models.modeling_realm_qa import RealmForOpenQA
from realm_hf.models.reading import ReadBeam
from realm_hf.models.transfer import to_device
from realm_hf.training.open_qa_beam import AnsweredBeam

SUMS = ("loss", "retriever_loss", "reader_loss", "answerless", "reader_answerless", "span_accuracy")


@dataclass(frozen=True)
class StepOutput:
    """
    Losses and figures of B questions.

    Args:
        loss (`torch.Tensor` of shape `()`): Sum over the questions, with gradient. One without an answer counts 0.
        retriever_loss (`torch.Tensor` of shape `(B,)`): In nats, without gradient.
        reader_loss (`torch.Tensor` of shape `(B,)`): The same.
        beam_has_answer (`torch.BoolTensor` of shape `(B,)`): Some passage of the wide beam holds an answer.
        read_has_answer (`torch.BoolTensor` of shape `(B,)`): Some span that the reader scores is an answer.
        best_is_answer (`torch.BoolTensor` of shape `(B,)`): The best of them is.
    """

    loss: torch.Tensor
    retriever_loss: torch.Tensor
    reader_loss: torch.Tensor
    beam_has_answer: torch.Tensor
    read_has_answer: torch.Tensor
    best_is_answer: torch.Tensor

    def sums(self) -> torch.Tensor:
        """Sums over the questions, in the order of [`SUMS`]; float32 `(6,)`, on the device."""
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
    """
    The forward pass as one module, for DistributedDataParallel sees the gradients of one `forward`.

    Args:
        model ([`RealmForOpenQA`]): Its parameters are this module's.
        freeze_retriever (`bool`, *optional*, defaults to `False`): The query tower learns nothing: it embeds without
            gradient and without dropout, and the retriever's loss is measured only.
    """

    def __init__(self, model: RealmForOpenQA, freeze_retriever: bool = False):
        super().__init__()
        self.model, self.freeze_retriever = model, freeze_retriever
        if freeze_retriever:
            model.embedder.requires_grad_(False)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        search: Callable[[torch.Tensor], AnsweredBeam],
        facts: RowFacts | None = None,
    ) -> StepOutput:
        """
        Embed, search, read, compare with the answers.

        Args:
            input_ids (`torch.LongTensor` of shape `(B, L)`): `[CLS] question [SEP]`, padded on the right.
            attention_mask (`torch.Tensor` of shape `(B, L)`): 1 at tokens, 0 at padding.
            search (`Callable`): From query embeddings `(B, D)` to their [`AnsweredBeam`].
            facts ([`RowFacts`], *optional*): Of the questions, where the host knows them.

        Returns:
            [`StepOutput`]
        """
        queries = self._embed(input_ids, attention_mask, facts)
        beam = search(queries.detach())
        sent = beam.to_device(beam.read, queries.device, {"has_answer": beam.has_answer})
        read = self.model.read_beam(queries, sent, beam.read.facts())
        has_answer, correct = sent["has_answer"], answers_among(read, beam.gold)
        retriever_loss, reader_loss = read.losses(has_answer, correct)
        loss = (reader_loss if self.freeze_retriever else retriever_loss + reader_loss).sum()
        if not len(correct):
            loss = loss + self._zero_with_gradient()
        counted = torch.zeros(len(queries), dtype=torch.long, device=correct.device)
        return StepOutput(
            loss=loss,
            retriever_loss=retriever_loss.detach(),
            reader_loss=reader_loss.detach(),
            beam_has_answer=has_answer.any(-1),
            read_has_answer=counted.index_add(0, read.question, correct.long()) > 0,
            best_is_answer=F.pad(correct, (0, 1))[read.best_of_questions()],
        )

    def _embed(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, facts: RowFacts | None) -> torch.Tensor:
        frozen = self.freeze_retriever
        with torch.set_grad_enabled(not frozen), evaluating(self.model.embedder) if frozen else nullcontext():
            return self.model.embed_questions(input_ids, attention_mask, facts)

    def _zero_with_gradient(self) -> torch.Tensor:
        """A zero that depends on the reader, which had no span to score: DistributedDataParallel waits for it."""
        touched = [parameter.flatten()[0] for parameter in self.model.reader.parameters() if parameter.requires_grad]
        return 0.0 * torch.stack(touched).sum()


def answers_among(read: ReadBeam, gold: np.ndarray) -> torch.Tensor:
    """
    Which spans are answers.

    Args:
        read ([`ReadBeam`]): T spans that the reader scored.
        gold (`np.ndarray`, int64 `[3, G]`): See [`AnsweredBeam`].

    Returns:
        `torch.BoolTensor` of shape `(T,)`: Answers that are no span of the reader, for instance wider ones, are among
        none.
    """
    spans, length = read.spans, read.length
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
