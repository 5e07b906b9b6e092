"""What a question answerer returns: plain values, ready for JSON."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from realm_hf.qa.whole_words import whole_words

__all__ = ["Answer", "Evidence"]


@dataclass(frozen=True)
class Evidence:
    """
    One passage that was read for a question.

    Args:
        row (`int`): The passage's row.
        title (`str`): Its title; not read by the reader, as released.
        text (`str`): Its text as stored.
        retrieval_probability (`float`): p(z|x): the softmax of the relevance scores over the passages read, and over
            the null passage where its score is known (see [`Answer`]).
        share (`float`): The sum of the probabilities of all spans in it. Shares of a question's passages add up to 1.
        best_span (`str`): Its most probable span, `text[start_char:end_char]`; empty if it has no span.
        start_char (`int`): First character of the span in `text`.
        end_char (`int`): The character after the span.
        span_probability (`float`): Probability of that one span.
    """

    row: int
    title: str
    text: str
    retrieval_probability: float
    share: float
    best_span: str
    start_char: int
    end_char: int
    span_probability: float

    @property
    def shown_span(self) -> tuple[int, int]:
        """The span's characters widened to whole words, for what is shown."""
        return whole_words(self.text, self.start_char, self.end_char)


@dataclass(frozen=True)
class Answer:
    """
    The answer to one question: the single most probable span of all spans in all passages read (the released rule).

    Where there is no answer, because nothing was asked or no passage with a span was found, `text` is empty and `row`
    is `None`.

    Args:
        question (`str`): The question as asked.
        text (`str`): The answer, the exact characters of its passage.
        row (`int`, *optional*): The passage that holds it; `None` without an answer.
        title (`str`): Title of that passage.
        start_char (`int`): First character in the passage's text: `text == passage[start_char:end_char]`.
        end_char (`int`): The character after the last.
        probability (`float`): Probability of that one span.
        string_probability (`float`): The sum over spans whose strings are equal after the benchmarks' normalisation
            (case, articles, punctuation). Strings of less than 0.001 in all are left out of the sum.
        score (`float`): The span's logit, the passage's relevance score included; `-inf` without an answer.
        best_string (`str`): The string with the largest such sum; mostly equal to `text`. Benchmarks are reported for
            `text`.
        evidence (`tuple[Evidence, ...]`): The passages read, the largest share first.
        null_probability (`float`, *optional*): Share of the null passage in the retrieval probabilities: how little
            the retriever expects of any passage. `None` if the retriever has no passage tower (`embedder`), which
            embeds the null passage. It holds no answer and is in none of the other probabilities.
    """

    question: str
    text: str
    row: int | None
    title: str
    start_char: int
    end_char: int
    probability: float
    string_probability: float
    score: float
    best_string: str
    evidence: tuple[Evidence, ...]
    null_probability: float | None

    @classmethod
    def none(cls, question: str, evidence: tuple[Evidence, ...] = (), null_probability: float | None = None) -> Answer:
        """
        The answer where nothing was found.

        Args:
            question (`str`): The question as asked.
            evidence (`tuple[Evidence, ...]`, *optional*, defaults to `()`): The passages read, if any.
            null_probability (`float`, *optional*): See the class.

        Returns:
            [`Answer`]: With an empty text and probabilities of 0.
        """
        return cls(question, "", None, "", 0, 0, 0.0, 0.0, -math.inf, "", evidence, null_probability)

    @property
    def shown(self) -> str:
        """The answer in whole words, for the eye: "68,636" where `text`, which is what is judged, is "68,"."""
        passage = next((found for found in self.evidence if found.row == self.row), None)
        if passage is None:
            return self.text
        start, end = self.shown_span
        return passage.text[start:end]

    @property
    def shown_span(self) -> tuple[int, int]:
        """Its characters in its passage's text."""
        passage = next((found for found in self.evidence if found.row == self.row), None)
        if passage is None:
            return self.start_char, self.end_char
        return whole_words(passage.text, self.start_char, self.end_char)

    def to_dict(self) -> dict[str, Any]:
        """
        The fields by name, and `shown`. Evidence is a list of dictionaries; `score` is `None` without an answer (for
        JSON).
        """
        return {
            **asdict(self),
            "shown": self.shown,
            "evidence": [asdict(passage) for passage in self.evidence],
            "score": self.score if math.isfinite(self.score) else None,
        }
