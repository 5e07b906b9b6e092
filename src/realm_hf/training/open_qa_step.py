"""One forward pass of fine-tuning: questions are embedded, their beam is searched, read, and scored (ORQA, section 6).

    L = -log P(passages with an answer)  over the wide beam          trains the query tower
        -log P(spans that are an answer) over all spans that are read trains both

The second softmax runs over all spans of all passages read at once, the passage's relevance score added to each of its
spans' logits, so that the reader's gradient reaches the retriever too. The query is embedded once, with gradient; its
values without gradient are what the index is searched with. The passages' vectors are the index's. So the search
stands between two halves of one forward pass, and nothing of a beam, its answers included, can be prepared in advance.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from realm_hf.data.questions.answer_finder import AnswerFinder, AnswerSpans
from realm_hf.data.questions.load import OpenQAExample
from realm_hf.data.reader_batch import ReaderBatch
from realm_hf.models.host_facts import RowFacts
from realm_hf.models.modeling_realm_qa import RealmForOpenQA
from realm_hf.models.reading import Beam, ReadBeam
from realm_hf.models.transfer import to_device
from realm_hf.retriever.retriever import RealmRetriever

SUMS = ("loss", "retriever_loss", "reader_loss", "answerless", "reader_answerless", "span_accuracy")


@dataclass(frozen=True, kw_only=True)
class AnsweredBeam(Beam):
    """
    The passages of B questions, with the answers in them.

    Args:
        has_answer (`np.ndarray`, bool `[B, S]`): Whether a passage holds an answer.
        read ([`ReaderBatch`]): The first R passages of each question as P joint inputs.
        gold (`np.ndarray`, int64 `[3, G]`): Joint input, first and last position of each answer span in it.
        search_seconds (`float`): Time of the search.
        answer_seconds (`float`): Time spent looking for answers.
    """

    has_answer: np.ndarray
    read: ReaderBatch
    gold: np.ndarray
    search_seconds: float
    answer_seconds: float


class BeamSearch:
    """
    Retrieves, and looks for the answers.

    Args:
        finder ([`AnswerFinder`]): Finds answers in the passages.
        searcher_beam_size (`int`): S, passages of a question; the corpus if that is smaller.
        reader_beam_size (`int`): R, passages that are read.
        reader_seq_len (`int`): Wordpieces of a joint input.
    """

    def __init__(self, finder: AnswerFinder, searcher_beam_size: int, reader_beam_size: int, reader_seq_len: int):
        self.finder = finder
        # A beam narrower than what is read would leave passages without a retriever's loss.
        self.wide = min(max(searcher_beam_size, reader_beam_size), len(finder.passages))
        self.read, self.length = min(reader_beam_size, self.wide), reader_seq_len

    def __call__(
        self,
        retriever: RealmRetriever,
        queries: torch.Tensor,
        question_ids: Sequence[np.ndarray],
        examples: Sequence[OpenQAExample],
    ) -> AnsweredBeam:
        """
        Search for B questions.

        Args:
            retriever ([`RealmRetriever`]): Over the finder's passages.
            queries (`torch.Tensor` of shape `(B, D)`): Embeddings; no gradient is taken through the search.
            question_ids (sequence of B `np.ndarray`): `[CLS] question [SEP]` of each.
            examples (sequence of B [`OpenQAExample`]): The questions with their answers.

        Returns:
            [`AnsweredBeam`]
        """
        started = time.perf_counter()
        beam = Beam.retrieve(retriever, queries, self.wide, question_ids)
        read = retriever.reader_batch(question_ids, beam.rows[:, : self.read], self.length)
        searched = time.perf_counter()
        found = [
            self.finder.find(row, example.answers, regex=example.regex, span_rows=self.read)
            for row, example in zip(beam.rows, examples, strict=True)
        ]
        return AnsweredBeam(
            beam.rows,
            beam.embeddings,
            has_answer=np.stack([spans.has_answer for spans in found]),
            read=read,
            gold=gold_spans(found, read, (len(found), self.read)),
            search_seconds=searched - started,
            answer_seconds=time.perf_counter() - searched,
        )


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
    """

    def __init__(self, model: RealmForOpenQA):
        super().__init__()
        self.model = model

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
        queries = self.model.embed_questions(input_ids, attention_mask, facts)
        beam = search(queries.detach())
        sent = beam.to_device(beam.read, queries.device, {"has_answer": beam.has_answer})
        read = self.model.read_beam(queries, sent, beam.read.facts())
        has_answer, correct = sent["has_answer"], answers_among(read, beam.gold)
        retriever_loss, reader_loss = read.losses(has_answer, correct)
        loss = (retriever_loss + reader_loss).sum()
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


def gold_spans(found: Sequence[AnswerSpans], read: ReaderBatch, shape: tuple[int, int]) -> np.ndarray:
    """
    From wordpieces of bodies to positions in joint inputs.

    Args:
        found (sequence of B [`AnswerSpans`]): What was found for each question, in the passages of its beam.
        read ([`ReaderBatch`]): Their joint inputs.
        shape (`tuple[int, int]`): `(B, R)`.

    Returns:
        `np.ndarray`: int64 `[3, G]`: joint input, start, end. Answers that the joint input cuts off are left out.
    """
    pair_of = np.full(shape, -1)
    pair_of[read.question, read.rank] = np.arange(len(read))
    question = np.repeat(np.arange(len(found)), [len(spans.start) for spans in found])
    rank, start, end = (
        np.concatenate([getattr(spans, name) for spans in found]) for name in ("passage", "start", "end")
    )
    pair = pair_of[question, rank]
    offset = read.body_start[pair]
    inside = end + offset < read.input_ids.shape[1]
    return np.stack([pair, start + offset, end + offset])[:, inside]
