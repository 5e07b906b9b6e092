"""What a fine-tuning step knows of its questions once they are embedded: their beams, and the answers in them.

The beam is searched with the query embeddings of the very step, so nothing of this can be prepared in advance: the
search stands between two halves of one forward pass.
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
from realm_hf.retriever.retriever import RealmRetriever


@dataclass(frozen=True)
class Beam:
    """The passages of B questions.

    Args:
        rows: int64 `[B, S]`, best first; -2 where there is no more.
        embeddings: float32 `[B, S, D]`, the index's own vectors.
        has_answer: bool `[B, S]`.
        read: The first R passages of each question as P joint inputs.
        gold: int64 `[3, G]`: joint input, first and last position of each answer span in it.
        search_seconds: Time of the search.
        answer_seconds: Time spent looking for answers.
    """

    rows: np.ndarray
    embeddings: np.ndarray
    has_answer: np.ndarray
    read: ReaderBatch
    gold: np.ndarray
    search_seconds: float
    answer_seconds: float


class BeamSearch:
    """Retrieves, and looks for the answers.

    Args:
        finder: Finds answers in the passages.
        searcher_beam_size: S, passages of a question; the corpus if that is smaller.
        reader_beam_size: R, passages that are read.
        reader_seq_len: Wordpieces of a joint input.
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
    ) -> Beam:
        """Search for B questions.

        Args:
            retriever: Over the finder's passages.
            queries: Embeddings `[B, D]`; no gradient is taken through the search.
            question_ids: `[CLS] question [SEP]` of each.
            examples: The questions with their answers.
        """
        started = time.perf_counter()
        rows = np.asarray(retriever.retrieve(queries.detach(), self.wide, null_passage=False).rows)
        embeddings = retriever.beam_embeddings(rows)
        read = retriever.reader_batch(question_ids, rows[:, : self.read], self.length)
        searched = time.perf_counter()
        found = [
            self.finder.find(row, example.answers, regex=example.regex, span_rows=self.read)
            for row, example in zip(rows, examples, strict=True)
        ]
        return Beam(
            rows=rows,
            embeddings=embeddings,
            has_answer=np.stack([spans.has_answer for spans in found]),
            read=read,
            gold=gold_spans(found, read, (len(rows), self.read)),
            search_seconds=searched - started,
            answer_seconds=time.perf_counter() - searched,
        )


def gold_spans(found: Sequence[AnswerSpans], read: ReaderBatch, shape: tuple[int, int]) -> np.ndarray:
    """From wordpieces of bodies to positions in joint inputs.

    Args:
        found: What was found for each of B questions, in the passages of its beam.
        read: Their joint inputs.
        shape: `(B, R)`.

    Returns:
        int64 `[3, G]`: joint input, start, end. Answers that the joint input cuts off are left out.
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
