"""Ask all questions of a benchmark and score the answers, in one process or in many.

Four passes measure different things: answers in batches (throughput), the wide beam (recall), single questions
(latency), and the passages of other questions (what retrieval is worth). The scores do not depend on the number of
processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers.utils import logging

from realm_hf.data.questions.matching import (
    compile_pattern,
    contains_answer,
    contains_regex,
    exact_match,
    regex_match,
    token_f1,
)
from realm_hf.progress import progress_bar
from realm_hf.qa.results import OpenQAResult, QuestionRecord

if TYPE_CHECKING:
    from realm_hf.data.questions.load import OpenQAExample
    from realm_hf.qa.answerer import QuestionAnswerer
    from realm_hf.qa.answers import Answer

__all__ = ["evaluate_open_qa"]

logger = logging.get_logger(__name__)


def evaluate_open_qa(
    answerer: QuestionAnswerer,
    examples: Sequence[OpenQAExample],
    ks: Sequence[int] = (1, 5, 20),
    *,
    top_k: int | None = None,
    batch_size: int | None = None,
    latency_questions: int = 100,
    retrieval_utility: bool = True,
    accelerator: Accelerator | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> OpenQAResult:
    """
    Answers questions and scores the answers by the rules of their benchmarks.

    Args:
        answerer ([`~realm_hf.QuestionAnswerer`]): Model and corpus.
        examples (`Sequence[OpenQAExample]`): The questions, each with its right answers.
        ks (`Sequence[int]`, *optional*, defaults to `(1, 5, 20)`): Depths of recall by answer string. A depth
            beyond the corpus means all of it.
        top_k (`int`, *optional*): Passages read a question; `config.reader_beam_size` by default.
        batch_size (`int`, *optional*): Questions read at once; the answerer's by default.
        latency_questions (`int`, *optional*, defaults to 100): This many questions, the first ones, are asked again,
            one at a time, by the main process alone; 0 for none.
        retrieval_utility (`bool`, *optional*, defaults to `True`): Whether to read every question with the passages of
            another one too; see [`OpenQAResult`]. Left out if there is a single question, or if the retriever has no
            embeddings to score those passages with.
        accelerator (`accelerate.Accelerator`, *optional*): Shards the questions over its processes. All of them must
            call; all get the whole result.
        progress (`Callable`, *optional*): Called with the number of this process's questions that are answered, and of
            all that it will answer; a bar by default, see [`progress_bar`].

    Returns:
        [`OpenQAResult`], with a record of every question in the order of `examples`.

    Raises:
        ValueError: there are no examples, one has no answer or an invalid regular expression (the question is named),
            or a depth is below 1.
    """
    if not examples:
        raise ValueError("there are no questions to evaluate: give at least one example.")
    if not ks or min(ks) < 1:
        raise ValueError(f"ks must hold depths of at least 1, but got {tuple(ks)!r}.")
    for example in examples:
        _check(example)
    process, processes = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    mine = list(range(process, len(examples), processes))
    questions = [examples[number].question for number in mine]
    size = answerer.batch_size if batch_size is None else batch_size
    options: dict[str, Any] = {"batch_size": size}

    answers: list[Answer] = []
    started = time.perf_counter()
    with progress_bar(len(questions), "answering", "questions", None if progress is None else False) as bar:
        for first in range(0, len(questions), size):
            answers += answerer(questions[first : first + size], top_k=top_k, batch_size=size)
            bar.update(len(answers) - bar.n)
            if progress is not None:
                progress(len(answers), len(questions))
    seconds = time.perf_counter() - started

    read = answerer.model.config.reader_beam_size if top_k is None else top_k
    depth = min(max(*ks, read), len(answerer.retriever))
    rows = np.empty((0, depth), np.int64)
    if questions:  # with fewer questions than processes there may be none here
        rows = answerer.retrieve(questions, top_k=depth, **options).batch.rows
    shuffled: list[str] | list[None] = [None] * len(mine)
    if retrieval_utility and len(examples) > 1 and answerer.retriever.embeddings is not None:
        shuffled = _answers_shuffled(answerer, questions, mine, rows[:, :read], len(examples), accelerator, options)
    judged = [
        (number, _judge(examples[number], answer, answerer.retriever.texts(found[found >= 0][: max(ks)]), other))
        for number, answer, found, other in zip(mine, answers, rows, shuffled, strict=True)
    ]

    latencies: list[float] = []
    if process == 0:
        latencies = _latencies(answerer, [example.question for example in examples[:latency_questions]], top_k)
    gathered = _gather([(judged, seconds)], accelerator)
    records = dict(pair for part, _ in gathered for pair in part)
    slowest = max(spent for _, spent in gathered)
    return OpenQAResult.of(
        [records[number] for number in range(len(examples))],
        ks,
        latencies=_gather(latencies, accelerator),
        questions_per_second=len(examples) / slowest if slowest > 0 else None,
    )


def _check(example: OpenQAExample) -> None:
    if not example.answers:
        raise ValueError(f"the question {example.question!r} has no answer to compare with: leave it out.")
    for pattern in example.answers if example.regex else ():
        try:
            compile_pattern(pattern)
        except ValueError as error:
            raise ValueError(f"the question {example.question!r}: {error}") from error


def _judge(example: OpenQAExample, answer: Answer, passages: Sequence[str], shuffled: str | None) -> QuestionRecord:
    """The record of one question; `passages` are the texts of its wide beam, best first."""
    right = _RightAnswers(example)
    return QuestionRecord(
        id=example.id,
        question=example.question,
        answers=tuple(example.answers),
        regex=example.regex,
        answer=answer,
        correct=right.match(answer.text),
        best_string_correct=right.match(answer.best_string),
        f1=None if example.regex else token_f1(answer.text, example.answers),
        answer_rank=next((rank for rank, text in enumerate(passages, 1) if right.held_by(text)), None),
        shuffled_correct=None if shuffled is None else right.match(shuffled),
        pattern_timed_out=right.timed_out,
    )


class _RightAnswers:
    """The right answers of one question. A pattern that times out ends it: nothing matches from then on."""

    def __init__(self, example: OpenQAExample):
        self._example = example
        self.timed_out = False

    def match(self, text: str) -> bool:
        return self._decide(regex_match if self._example.regex else exact_match, text)

    def held_by(self, passage: str) -> bool:
        return self._decide(contains_regex if self._example.regex else contains_answer, passage)

    def _decide(self, rule: Callable[[str, Sequence[str]], bool], text: str) -> bool:
        if self.timed_out:
            return False
        try:
            return rule(text, self._example.answers)
        except TimeoutError as error:
            self.timed_out = True
            logger.warning("The question %r counts as not answered: %s", self._example.question, error)
            return False


def _answers_shuffled(
    answerer: QuestionAnswerer,
    questions: Sequence[str],
    mine: Sequence[int],
    rows: np.ndarray,
    total: int,
    accelerator: Accelerator | None,
    options: dict[str, Any],
) -> list[str]:
    """Answers to this process's questions out of the passages of others, drawn over all processes' questions."""
    everybody = dict(pair for part in _gather([list(zip(mine, rows, strict=True))], accelerator) for pair in part)
    if not questions:
        return []
    # In SQuAD neighbours ask about the same passage, so the questions are shuffled, with a fixed seed. A cycle through
    # them gives no question its own passages.
    order = np.random.default_rng(0).permutation(total)
    partner = np.empty(total, np.int64)
    partner[order] = np.roll(order, 1)
    others = np.stack([everybody[int(partner[number])] for number in mine])
    return [answer.text for answer in answerer.read(questions, others, **options)]


def _latencies(answerer: QuestionAnswerer, questions: Sequence[str], top_k: int | None) -> list[float]:
    """Seconds of each question, asked alone, after one question to warm up."""
    seconds = []
    for question in [*questions[:1], *questions]:
        started = time.perf_counter()
        answerer(question, top_k=top_k, batch_size=1)
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


def _gather(objects: list[Any], accelerator: Accelerator | None) -> list[Any]:
    """The objects of all processes, in the order of the processes."""
    return objects if accelerator is None or accelerator.num_processes == 1 else gather_object(objects)
