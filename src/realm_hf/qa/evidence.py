"""The passages that were read as evidence, and answers as characters of their texts.

An answer is a slice of its passage, not wordpieces put together again. Passages are stored as wordpieces without
offsets, so the few that are shown are tokenized once more. That gives the stored wordpieces again, with one exception:
where a single word was longer than a passage and was cut inside, the piece behind the cut began in the middle of a
word, and now it begins one. There the two are aligned, and a span that touches wordpieces which differ gets the
characters of that whole stretch: too wide, never too narrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

import numpy as np
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from realm_hf.data.questions.matching import normalize_answer
from realm_hf.data.reader_batch import ReaderBatch
from realm_hf.data.vocabulary import encode_texts
from realm_hf.qa.answers import Answer, Evidence
from realm_hf.qa.best_spans import BestSpans
from realm_hf.retriever.retriever import RealmRetriever

__all__ = ["ReadPassages", "SpanTexts", "align_characters"]

logger = logging.get_logger(__name__)


class ReadPassages:
    """
    What was read for B questions.

    Args:
        retriever ([`RealmRetriever`]): Has the passages' texts and titles.
        read ([`ReaderBatch`]): P joint inputs.
        found ([`BestSpans`]): Their best spans.
        probabilities (`np.ndarray` of shape `[P]`): p(z|x) of each joint input's passage.
        tokenizer (`PreTrainedTokenizerBase`): That of the passages.
    """

    def __init__(
        self,
        retriever: RealmRetriever,
        read: ReaderBatch,
        found: BestSpans,
        probabilities: np.ndarray,
        tokenizer: PreTrainedTokenizerBase,
    ):
        distinct, place = np.unique(read.row, return_inverse=True)
        texts, titles = retriever.texts(distinct), retriever.titles(distinct)
        self._texts = [texts[number] for number in place]
        self._titles = [titles[number] for number in place]
        self._spans = SpanTexts(read, texts, tokenizer)
        self._read, self._found, self._probabilities = read, found, probabilities

    def answer(self, question: int, text: str, null_probability: float | None) -> Answer:
        """
        The answer to one question of the batch.

        Args:
            question (`int`): Its number in the batch.
            text (`str`): The question as asked.
            null_probability (`float`, *optional*): Share of the null passage, where it is known.

        Returns:
            [`Answer`]
        """
        found = self._found
        first, last = np.searchsorted(self._read.question, [question, question + 1])
        pairs = first + np.argsort(-found.share[first:last], kind="stable")
        evidence = tuple(self._evidence(pair) for pair in pairs.tolist())
        best, pair = found.of_question, int(found.of_question.pair[question])
        if pair < 0:  # nothing was found, or nothing in it
            return Answer.none(text, evidence, null_probability)
        start, end = self._spans.characters(pair, best.start[question], best.end[question])
        span = self._texts[pair][start:end]
        sums, strings = self._strings(question)
        own = self._characters_of_string(int(found.string_of_best[question]))
        # An article or a full stop alone is no string that could be right.
        likeliest = max(sums, key=lambda normalised: (normalised != "", sums[normalised]))
        return Answer(
            question=text,
            text=span,
            row=int(self._read.row[pair]),
            title=self._titles[pair],
            start_char=start,
            end_char=end,
            probability=float(best.probability[question]),
            string_probability=sums[normalize_answer(own)],
            score=float(best.score[question]),
            best_string=strings[likeliest],
            evidence=evidence,
            null_probability=null_probability,
        )

    def _evidence(self, pair: int) -> Evidence:
        best = self._found.of_pair
        start, end = 0, 0
        if best.pair[pair] >= 0:
            start, end = self._spans.characters(pair, best.start[pair], best.end[pair])
        return Evidence(
            row=int(self._read.row[pair]),
            title=self._titles[pair],
            text=self._texts[pair],
            retrieval_probability=float(self._probabilities[pair]),
            share=float(self._found.share[pair]),
            best_span=self._texts[pair][start:end],
            start_char=start,
            end_char=end,
            span_probability=float(best.probability[pair]),
        )

    def _strings(self, question: int) -> tuple[dict[str, float], dict[str, str]]:
        """Summed probability of each normalised string of a question, and its likeliest form."""
        table = self._found.strings
        sums: dict[str, float] = {}
        forms: dict[str, tuple[float, str]] = {}
        for entry in np.flatnonzero(self._found.string_question == question).tolist():
            probability = float(table.probability[entry])
            form = self._characters_of_string(entry)
            normalised = normalize_answer(form)
            sums[normalised] = sums.get(normalised, 0.0) + probability
            if normalised not in forms or probability > forms[normalised][0]:
                forms[normalised] = probability, form
        return sums, {normalised: form for normalised, (_, form) in forms.items()}

    def _characters_of_string(self, entry: int) -> str:
        table = self._found.strings
        pair = int(table.pair[entry])
        start, end = self._spans.characters(pair, table.start[entry], table.end[entry])
        return self._texts[pair][start:end]


class SpanTexts:
    """
    Characters of the spans of a [`ReaderBatch`].

    Args:
        batch ([`ReaderBatch`]): What was read.
        texts (sequence of `str`): The passages' texts, one for each distinct row of `batch.row`, ascending.
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer of the passages; a fast one.
    """

    def __init__(self, batch: ReaderBatch, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> None:
        self._body_start = batch.body_start
        lengths = batch.block_mask.sum(1)
        rows, self._place = np.unique(batch.row, return_inverse=True)
        # Of a passage that several questions have, the joint input that holds most of it.
        longest = np.zeros(len(rows), np.int64)
        order = np.argsort(lengths, kind="stable")
        longest[self._place[order]] = order
        encoded = encode_texts(tokenizer, list(texts), return_offsets_mapping=True) if len(rows) else {}
        self._characters = [
            align_characters(batch.input_ids[pair, start : start + length], ids, np.array(offsets).reshape(-1, 2), row)
            for pair, start, length, ids, offsets, row in zip(
                longest,
                self._body_start[longest],
                lengths[longest],
                encoded.get("input_ids", ()),
                encoded.get("offset_mapping", ()),
                rows.tolist(),
                strict=True,
            )
        ]

    def characters(self, pair: int, start: int, end: int) -> tuple[int, int]:
        """
        The characters of a span in its passage's text.

        Args:
            pair (`int`): The joint input.
            start (`int`): First wordpiece in the joint input.
            end (`int`): Last wordpiece, inclusive.

        Returns:
            `tuple[int, int]`: First character, and the character after the last.
        """
        offsets, body = self._characters[self._place[pair]], self._body_start[pair]
        return int(offsets[start - body, 0]), int(offsets[end - body, 1])


def align_characters(stored: np.ndarray, fresh: Sequence[int], offsets: np.ndarray, row: int) -> np.ndarray:
    """
    Characters of stored wordpieces, from those of the text tokenized again.

    Args:
        stored (`np.ndarray`, int64 `[n]`): The passage's wordpieces, or the first n of them.
        fresh (sequence of `int`): The wordpieces of its text.
        offsets (`np.ndarray`, int64 `[len(fresh), 2]`): First character, and character after the last, of each.
        row (`int`): The passage, for the warning.

    Returns:
        `np.ndarray`: int64 `[n, 2]`.
    """
    known = np.asarray(fresh[: len(stored)], np.int64)
    if np.array_equal(stored, known):
        return offsets[: len(stored)]
    logger.warning_once(
        f"The text of passage {row} gives other wordpieces than those stored: a word was cut inside. Answers that "
        "touch such a place get a few characters more. This is logged once."
    )
    aligned = np.zeros((len(stored), 2), np.int64)
    matcher = SequenceMatcher(None, stored.tolist(), list(fresh), autojunk=False)
    last = 0
    for kind, first, stop, fresh_first, fresh_stop in matcher.get_opcodes():
        if kind == "equal":
            aligned[first:stop] = offsets[fresh_first:fresh_stop]
        elif fresh_first < fresh_stop:
            aligned[first:stop] = offsets[fresh_first, 0], offsets[fresh_stop - 1, 1]
        else:  # stored wordpieces that no character is left for: an empty slice between their neighbours
            aligned[first:stop] = last
        last = int(offsets[fresh_stop - 1, 1]) if fresh_stop else 0
    return aligned
