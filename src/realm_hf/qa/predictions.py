"""Predictions as JSON lines: the answer, whether it is right, and the passages that were read.

A line has the released evaluation's fields `question` and `prediction`, so that other tools read the file too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from realm_hf.data.questions.matching import answer_places
from realm_hf.qa.results import QuestionRecord
from realm_hf.storage.files import replacement

__all__ = ["read_predictions", "write_predictions"]


def write_predictions(records: Sequence[QuestionRecord], path: str | Path) -> Path:
    """
    Writes one JSON object a question.

    Fields: `id`, `question`, `prediction`, `answers`, `regex`, `correct`, `best_string_correct`, `f1`, `answer_rank`,
    `shuffled_correct`, `pattern_timed_out`; those of [`~realm_hf.Answer`] besides `question` and `text`, with
    `shown_span`, the characters of `shown` in the passage; and in each passage of `evidence`, beside its own,
    `shown_span` and `answer_places`, the character ranges where right answers stand.

    Args:
        records (`Sequence[QuestionRecord]`): Of [`OpenQAResult`].
        path (`str` or `Path`): The file; replaced in one step when it exists.

    Returns:
        `Path`: The file written.
    """
    # Half of a surrogate pair in a question becomes its JSON escape.
    with replacement(Path(path)) as partial, partial.open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(json.dumps(_line(record), ensure_ascii=False) + "\n" for record in records)
    return Path(path)


def read_predictions(path: str | Path) -> list[dict[str, Any]]:
    """
    Reads what [`write_predictions`] wrote.

    Args:
        path (`str` or `Path`): The file.

    Returns:
        `list[dict]`: One for each question, in order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is no JSON object with `question` and `prediction`.
    """
    predictions = []
    with Path(path).open(encoding="utf-8") as file:  # `str.splitlines` would also cut at separators inside a text
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{path}, line {number} is no JSON ({error}): write the predictions again."
                ) from error
            if not isinstance(row, dict) or not {"question", "prediction"} <= set(row):
                raise ValueError(
                    f"{path}, line {number} has no question and prediction: give a file of write_predictions."
                )
            predictions.append(row)
    return predictions


def _line(record: QuestionRecord) -> dict[str, Any]:
    answer = record.answer.to_dict()
    evidence = [
        {**passage, "shown_span": read.shown_span, "answer_places": _places(record, passage["text"])}
        for passage, read in zip(answer["evidence"], record.answer.evidence, strict=True)
    ]
    judged = {name: value for name, value in vars(record).items() if name not in ("answer", "id", "question")}
    answered = {name: value for name, value in answer.items() if name not in ("question", "text", "evidence")}
    return {
        "id": record.id,
        "question": record.question,
        "prediction": record.answer.text,
        **judged,
        **answered,
        "shown_span": record.answer.shown_span,
        "evidence": evidence,
    }


def _places(record: QuestionRecord, text: str) -> list[tuple[int, int]]:
    if record.pattern_timed_out:
        return []
    try:
        return answer_places(text, record.answers, regex=record.regex)
    except TimeoutError:
        return []
