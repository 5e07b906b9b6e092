"""Results of an evaluation: one record for each question, and the figures over all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from realm_hf.qa.answers import Answer

__all__ = ["OpenQAResult", "QuestionRecord"]


@dataclass(frozen=True)
class QuestionRecord:
    """
    One question with its answer and the scores of it.

    Args:
        id (`str`): Of the question.
        question (`str`): As asked.
        answers (`tuple[str, ...]`): The right answers, or regular expressions.
        regex (`bool`): Whether they are regular expressions.
        answer ([`~realm_hf.Answer`]): What was answered, with its evidence.
        correct (`bool`): Exact match, or regex match, of `answer.text`.
        best_string_correct (`bool`): The same of `answer.best_string`, the likeliest sum over equal strings.
        f1 (`float`, *optional*): Token F1; `None` for regular expressions.
        answer_rank (`int`, *optional*): Rank of the first passage that holds an answer, from 1; `None` if none does.
        shuffled_correct (`bool`, *optional*): Whether the answer out of another question's passages is right;
            `None` if that was not asked.
        pattern_timed_out (`bool`, *optional*, defaults to `False`): A pattern took too long and was stopped; what
            it should have decided counts as wrong or not found.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    regex: bool
    answer: Answer
    correct: bool
    best_string_correct: bool
    f1: float | None
    answer_rank: int | None
    shuffled_correct: bool | None = None
    pattern_timed_out: bool = False


@dataclass(frozen=True)
class OpenQAResult:
    """
    The figures of an evaluation; shares from 0 to 1.

    Args:
        questions (`int`): How many were asked.
        exact_match (`float`): Share of questions answered rightly: exact match, or regex match where the answers are
            regular expressions.
        best_string_match (`float`): The same for `best_string`. Benchmarks are reported for `exact_match`.
        token_f1 (`float`, *optional*): Mean over the questions with plain answers; `None` if there are none.
        answer_recall (`dict[int, float]`): By depth k: share of questions with an answer in one of their first k
            passages.
        shuffled_exact_match (`float`, *optional*): `exact_match` when every question is read with the passages of
            another one.
        retrieval_utility (`float`, *optional*): `exact_match - shuffled_exact_match`: what it is worth to read the
            passages retrieved for the question. Pre-training's utility, log p(y|x) - log p(y|null, x), has no second
            term here: the reader answers out of passages, and without any it has no answer.
        unanswered (`int`): Questions with an empty answer.
        pattern_timeouts (`int`): Questions with a pattern that was stopped.
        latency_p50 (`float`, *optional*): Median seconds from one question to its answer, asked one at a time.
        latency_p99 (`float`, *optional*): The 99th percentile.
        latency_questions (`int`): Over how many questions.
        questions_per_second (`float`, *optional*): All questions over the time to answer them in batches, by all
            processes together.
        records (`tuple[QuestionRecord, ...]`): In the order of the examples; left out of `to_dict`.
    """

    questions: int
    exact_match: float
    best_string_match: float
    token_f1: float | None
    answer_recall: dict[int, float]
    shuffled_exact_match: float | None
    retrieval_utility: float | None
    unanswered: int
    pattern_timeouts: int
    latency_p50: float | None
    latency_p99: float | None
    latency_questions: int
    questions_per_second: float | None
    records: tuple[QuestionRecord, ...] = field(repr=False)

    @classmethod
    def of(
        cls,
        records: Sequence[QuestionRecord],
        ks: Sequence[int],
        latencies: Sequence[float] = (),
        questions_per_second: float | None = None,
    ) -> OpenQAResult:
        """
        The figures of records.

        Args:
            records (`Sequence[QuestionRecord]`): At least one.
            ks (`Sequence[int]`): Depths of recall, at most that to which `answer_rank` was looked for.
            latencies (`Sequence[float]`, *optional*): Seconds of single questions.
            questions_per_second (`float`, *optional*): As measured.
        """
        exact = _share(records, lambda record: record.correct)
        shuffled = None
        if all(record.shuffled_correct is not None for record in records):
            shuffled = _share(records, lambda record: bool(record.shuffled_correct))
        ranks = np.array([np.inf if record.answer_rank is None else record.answer_rank for record in records])
        f1 = [record.f1 for record in records if record.f1 is not None]
        return cls(
            questions=len(records),
            exact_match=exact,
            best_string_match=_share(records, lambda record: record.best_string_correct),
            token_f1=float(np.mean(f1)) if f1 else None,
            answer_recall={k: float(np.mean(ranks <= k)) for k in ks},
            shuffled_exact_match=shuffled,
            retrieval_utility=None if shuffled is None else exact - shuffled,
            unanswered=sum(not record.answer.text for record in records),
            pattern_timeouts=sum(record.pattern_timed_out for record in records),
            latency_p50=float(np.percentile(latencies, 50)) if len(latencies) else None,
            latency_p99=float(np.percentile(latencies, 99)) if len(latencies) else None,
            latency_questions=len(latencies),
            questions_per_second=questions_per_second,
            records=tuple(records),
        )

    def to_dict(self) -> dict[str, Any]:
        """The figures by name, ready for JSON; recall as `{"1": ..., "5": ...}`."""
        named = {name: value for name, value in vars(self).items() if name != "records"}
        return {**named, "answer_recall": {str(k): share for k, share in self.answer_recall.items()}}

    def table(self) -> str:
        """The figures in lines for people, shares in percent."""
        matched = "regex match" if all(record.regex for record in self.records) else "exact match"
        lines = [("questions", f"{self.questions:,}"), (matched, _percent(self.exact_match))]
        if self.token_f1 is not None:
            lines.append(("token F1", _percent(self.token_f1)))
        lines += [(f"answer recall@{k}", _percent(share)) for k, share in self.answer_recall.items()]
        if self.retrieval_utility is not None and self.shuffled_exact_match is not None:
            lines.append((f"{matched}, passages shuffled", _percent(self.shuffled_exact_match)))
            lines.append(("retrieval utility", f"{100 * self.retrieval_utility:+.1f} points"))
        lines.append((f"{matched}, equal strings summed", _percent(self.best_string_match)))
        if self.unanswered:
            lines.append(("without an answer", f"{self.unanswered:,}"))
        if self.pattern_timeouts:
            lines.append(("patterns stopped", f"{self.pattern_timeouts:,}"))
        if self.latency_p50 is not None and self.latency_p99 is not None:
            lines.append(("latency p50, p99", f"{1000 * self.latency_p50:.0f} ms, {1000 * self.latency_p99:.0f} ms"))
        if self.questions_per_second is not None:
            lines.append(("questions a second", f"{self.questions_per_second:.1f}"))
        width = max(len(name) for name, _ in lines)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


def _share(records: Sequence[QuestionRecord], judged: Callable[[QuestionRecord], bool]) -> float:
    return sum(map(judged, records)) / len(records)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
