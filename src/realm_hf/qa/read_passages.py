"""The passages of one batch as evidence, and the answers that stand in them."""

from __future__ import annotations

import numpy as np
from transformers import PreTrainedTokenizerBase

from realm_hf.data.questions.matching import normalize_answer
from realm_hf.data.reader_batch import ReaderBatch
from realm_hf.qa.answers import Answer, Evidence
from realm_hf.qa.best_spans import BestSpans
from realm_hf.qa.span_texts import SpanTexts
from realm_hf.retriever.retriever import RealmRetriever

__all__ = ["ReadPassages"]


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
        """The answer to one question of the batch."""
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
