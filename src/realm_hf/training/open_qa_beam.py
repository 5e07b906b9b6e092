"""The passages of a step of fine-tuning: the index's beam, what is read of it, and the answers in it.

The first `reader_beam_size` passages of the beam are read. Where a data set names passages that hold the answer, or
another source finds some, these are moved or put there in place of the worst: a reader that is shown no answer learns
nothing. They stay in the softmax over the beam, scored by the query tower like all others.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from realm_hf.data.questions.answer_finder import AnswerFinder, AnswerSpans
from realm_hf.data.questions.load import OpenQAExample
from realm_hf.data.reader_batch import ReaderBatch
from realm_hf.index.base import ABSENT
from realm_hf.models.reading import Beam, best_rows
from realm_hf.retriever.candidates import CandidateSource
from realm_hf.retriever.retriever import RealmRetriever


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
        reading_source ([`CandidateSource`], *optional*): Finds what is read, R passages of each question; the best of
            the beam by default.
    """

    def __init__(
        self,
        finder: AnswerFinder,
        searcher_beam_size: int,
        reader_beam_size: int,
        reader_seq_len: int,
        reading_source: CandidateSource | None = None,
    ):
        self.finder, self.reading_source = finder, reading_source
        # A beam narrower than what is read would leave passages without a retriever's loss.
        self.wide = min(max(searcher_beam_size, reader_beam_size), len(finder.passages))
        self.read, self.length = min(reader_beam_size, self.wide), reader_seq_len

    def __call__(
        self,
        retriever: RealmRetriever,
        queries: torch.Tensor,
        question_ids: Sequence[np.ndarray],
        examples: Sequence[OpenQAExample],
        gold_rows: Sequence[np.ndarray] | None = None,
    ) -> AnsweredBeam:
        """
        Search for B questions.

        Args:
            retriever ([`RealmRetriever`]): Over the finder's passages.
            queries (`torch.Tensor` of shape `(B, D)`): Embeddings; no gradient is taken through the search.
            question_ids (sequence of B `np.ndarray`): `[CLS] question [SEP]` of each.
            examples (sequence of B [`OpenQAExample`]): The questions with their answers.
            gold_rows (sequence of B `np.ndarray`, *optional*): Rows of each question's gold passages: the first of
                them that holds an answer is read.

        Returns:
            [`AnsweredBeam`]
        """
        started = time.perf_counter()
        rows = best_rows(retriever, queries, self.wide, question_ids)
        if gold_rows is not None or self.reading_source is not None:
            wanted = self._wanted(retriever, queries, question_ids, examples, gold_rows)
            rows = read_first(rows, wanted, self.read, self.wide, self.finder.passages.duplicate_groups)
        beam = Beam(rows, retriever.beam_embeddings(rows))
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

    def _wanted(
        self,
        retriever: RealmRetriever,
        queries: torch.Tensor,
        question_ids: Sequence[np.ndarray],
        examples: Sequence[OpenQAExample],
        gold_rows: Sequence[np.ndarray] | None,
    ) -> list[np.ndarray]:
        """For each question the rows that shall be read, the most important first."""
        wanted = [np.zeros(0, np.int64) for _ in examples]
        if gold_rows is not None:
            wanted = [self._gold_with_answer(rows, e) for rows, e in zip(gold_rows, examples, strict=True)]
        if self.reading_source is not None:
            other = retriever.snapshot()
            other.candidate_source = self.reading_source
            found = other.retrieve(queries, self.read, token_ids=question_ids, null_passage=False).rows
            wanted = [np.concatenate([first, rows[rows >= 0]]) for first, rows in zip(wanted, found, strict=True)]
        return wanted

    def _gold_with_answer(self, rows: np.ndarray, example: OpenQAExample) -> np.ndarray:
        """The first gold row that holds an answer: of a long document most passages do not."""
        return rows[self.finder.find(rows, example.answers, regex=example.regex, span_rows=0).has_answer][:1]


def read_first(rows: np.ndarray, wanted: Sequence[np.ndarray], read: int, wide: int, groups: np.ndarray) -> np.ndarray:
    """
    Beams whose first passages include those that are wanted; the others keep their order.

    A wanted passage that is in the beam, or whose text is, is moved; another one comes last of those that are read.

    Args:
        rows (`np.ndarray`, int64 `[B, S]`): The beams, best first; negative where there is nothing more.
        wanted (sequence of B `np.ndarray`): Rows, the most important first; of more than `read` texts the rest is not.
        read (`int`): How many are the first ones.
        wide (`int`): Most passages of a beam: the worst are dropped.
        groups (`np.ndarray`, int `[N]`): Equal for passages of the same text.

    Returns:
        `np.ndarray`: int64 `[B, S']`, -2 where there is nothing more.
    """
    beams = [_read_first(beam[beam >= 0], own, read, groups)[:wide] for beam, own in zip(rows, wanted, strict=True)]
    filled = np.full((len(beams), max(1, *map(len, beams))), ABSENT, np.int64)
    for row, beam in zip(filled, beams, strict=True):
        row[: len(beam)] = beam
    return filled


def _read_first(beam: np.ndarray, wanted: np.ndarray, read: int, groups: np.ndarray) -> np.ndarray:
    wanted = wanted[np.sort(np.unique(groups[wanted], return_index=True)[1])][:read]
    first = np.isin(groups[beam], groups[wanted])
    first[np.flatnonzero(~first)[: read - len(wanted)]] = True
    missing = wanted[~np.isin(groups[wanted], groups[beam])]
    return np.concatenate([beam[first], missing, beam[~first]])


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
