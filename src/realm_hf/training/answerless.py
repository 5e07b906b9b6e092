"""Fine-tuning says early when it has little to learn from, and what helps."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from realm_hf.runs.records import read_log
from realm_hf.training.open_qa_arguments import OpenQATrainingArguments

logger = logging.getLogger(__name__)

_QUESTIONS = 50


class AnswerlessWatch:
    """
    Looks at the first 50 questions or more, and warns once if most of them were read without an answer.

    Args:
        args ([`OpenQATrainingArguments`]): What can still be changed.
        wide (`int`): Passages of a beam.
        read (`int`): How many of them are read.
    """

    def __init__(self, args: OpenQATrainingArguments, wide: int, read: int):
        self.args, self.wide, self.read = args, wide, read
        self.questions = self.answerless = self.reader_answerless = 0

    def see(self, record: Mapping[str, Any]) -> None:
        """Count the record of a step."""
        if self.questions >= _QUESTIONS:
            return
        self.questions += record["questions"]
        self.answerless += record["answerless"]
        self.reader_answerless += record["reader_answerless"]
        if self.questions >= _QUESTIONS and 2 * self.reader_answerless > self.questions:
            logger.warning(
                "%d of the first %d questions (%.0f %%) teach the reader nothing: no answer is in the %d passages "
                "that are read, and for %d of them none in the beam of %d. %s",
                self.reader_answerless,
                self.questions,
                100 * self.reader_answerless / self.questions,
                self.read,
                self.answerless,
                self.wide,
                self._remedy(),
            )

    def _remedy(self) -> str:
        if self.args.gold_passages:
            return (
                "Few gold passages hold their answer: check that their column numbers the documents of this corpus, "
                "and that the answers stand there word for word."
            )
        return (
            "What helps: the gold passages, where the questions name them (gold_passages); reading more "
            "(reader_beam_size); passages found by BM25 (candidate_mix); a retriever that is trained longer before. "
            "Or the corpus does not hold the answers."
        )


def trained_questions(log: Path) -> dict[str, int]:
    """Sums over the log of a run: questions, and those without an answer in the beam and in what was read of it."""
    records = [record for record in read_log(log) if "answerless" in record]
    names = ("questions", "answerless", "reader_answerless")
    return {name: sum(record[name] for record in records) for name in names}
