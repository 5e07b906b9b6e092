"""How the development questions of fine-tuning were answered."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from realm_hf.data.questions.answer_finder import AnswerFinder
from realm_hf.data.questions.load import OpenQAExample
from realm_hf.data.questions.matching import exact_match, regex_match
from realm_hf.qa.answerer import QuestionAnswerer
from realm_hf.qa.answers import Answer


def answered(examples: Sequence[OpenQAExample], answerer: QuestionAnswerer, finder: AnswerFinder) -> list[float]:
    """How many answers are right, for how many questions a passage that was read holds one, and how many there are."""
    answers = answerer([example.question for example in examples])
    pairs = list(zip(examples, answers, strict=True))
    right = sum(is_right(example, answer) for example, answer in pairs)
    held = sum(holds_answer(example, answer, finder) for example, answer in pairs)
    return [float(right), float(held), float(len(pairs))]


def is_right(example: OpenQAExample, answer: Answer) -> bool:
    """Whether an answer is one of the example's, by the benchmark's own rule."""
    match = regex_match if example.regex else exact_match
    return bool(match(answer.text, example.answers))


def holds_answer(example: OpenQAExample, answer: Answer, finder: AnswerFinder) -> bool:
    """Whether a passage that was read holds an answer."""
    rows = np.array([passage.row for passage in answer.evidence], np.int64)
    return bool(finder.find(rows, example.answers, regex=example.regex, span_rows=0).has_answer.any())
