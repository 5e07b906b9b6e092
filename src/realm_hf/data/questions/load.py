"""Questions with their acceptable answers, from one's own file or from the Hub.

NaturalQuestions-open, WebQuestions, CuratedTREC and SQuAD come with different columns for the same thing; here they
become one. CuratedTREC's answers are regular expressions, and say so, for they are searched in training as well as
compared in evaluation.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers.utils import logging

from realm_hf.data.documents import load_documents
from realm_hf.data.json_lines import parse_line
from realm_hf.data.questions.matching import compile_pattern

__all__ = ["OpenQAExample", "load_questions"]

logger = logging.get_logger(__name__)

_ANSWER_COLUMNS = ("answers", "answer")


@dataclass(frozen=True)
class OpenQAExample:
    """
    A question and what counts as its answer.

    Args:
        question (`str`): The question.
        answers (`tuple[str, ...]`): Acceptable answers, or regular expressions for them.
        regex (`bool`, *optional*, defaults to `False`): Whether the answers are regular expressions.
        id (`str`, *optional*, defaults to `""`): Names it in predictions.
        gold (`tuple` of `int` or `str`, *optional*, defaults to `()`): Passages that hold the answer, where the data
            set names them: numbers of documents of the knowledge corpus, or texts.
    """

    question: str
    answers: tuple[str, ...]
    regex: bool = False
    id: str = ""
    gold: tuple[int | str, ...] = ()


def load_questions(
    source: str | Path | Dataset | Iterable[Mapping[str, Any]],
    split: str = "train",
    *,
    name: str | None = None,
    revision: str | None = None,
    question_column: str = "question",
    answer_column: str | None = None,
    gold_column: str | None = None,
    regex: bool = False,
    need_answers: bool = True,
) -> list[OpenQAExample]:
    """
    Load questions from a file, a directory, the Hub, or from rows at hand.

    A row has a question and `answer` or `answers`: one string, a list of them, or a mapping with a list under `text`
    or `value` (SQuAD). A row's own `regex` wins over the argument. Repeated answers are taken once.

    One string that is a whole Python list of strings, as in copies of NQ-open that went through CSV, is read as that
    list; the log says how many were. What begins and ends like such a list but is none, since quotes were lost on the
    way, is left as it stands, with a warning. Regular expressions are never read as lists.

    Args:
        source (`str`, `Path`, `Dataset` or rows): JSON lines, Parquet or CSV; anything else
            [`~realm_hf.data.load_documents`] reads; a `Dataset`; or mappings.
        split (`str`, *optional*, defaults to `"train"`): Split of a Hub dataset.
        name (`str`, *optional*): Configuration of a Hub dataset.
        revision (`str`, *optional*): Branch, tag or commit of a Hub dataset.
        question_column (`str`, *optional*, defaults to `"question"`): Column of the question.
        answer_column (`str`, *optional*): Column of the answers; `answers` or `answer` by default.
        gold_column (`str`, *optional*): Column of the gold passages: a number of a document, a text, or a list of
            them; `None` in a row says that it has none. Not read by default.
        regex (`bool`, *optional*, defaults to `False`): The answers are regular expressions (CuratedTREC).
        need_answers (`bool`, *optional*, defaults to `True`): `False` lets rows with a gold passage do without
            answers: enough to evaluate retrieval.

    Returns:
        `list[OpenQAExample]`: In the source's order. `id` is the row's `id`, or its number.

    Raises:
        FileNotFoundError: If a path does not exist.
        ValueError: If there are no questions, a column is missing, or a row has an empty question, no answer, a
            regular expression that does not compile, or a gold passage that is neither number nor text; the row is
            named.
    """
    where = "the given rows" if not isinstance(source, (str, Path)) else str(source)
    rows = _rows(source, split, name, revision)
    lists = _WrittenLists()
    examples = []
    for number, row in enumerate(rows):
        here = f"{where}, row {number}"
        gold = () if gold_column is None else _gold(row, gold_column, here)
        needed = need_answers or not gold
        example = _example(row, here, number, question_column, answer_column, regex, needed, lists)
        examples.append(replace(example, gold=gold))
    if not examples:
        raise ValueError(f"{where} holds no questions: check the source and the split.")
    lists.log(where)
    return examples


class _WrittenLists:
    """Reads answers that are lists written out as one string, and counts them."""

    def __init__(self) -> None:
        self.read: list[str] = []
        self.damaged: list[str] = []

    def __call__(self, value: Any) -> Any:
        """The list, if `value` is one; otherwise `value`."""
        text = value.strip() if isinstance(value, str) else ""
        if not (text.startswith("[") and text.endswith("]")):
            return value
        try:
            found = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            found = None
        if not isinstance(found, list) or not all(isinstance(answer, str) for answer in found):
            self.damaged.append(text)
            return value
        self.read.append(text)
        return found

    def log(self, source: str) -> None:
        """One line in the log for each kind."""
        if self.read:
            logger.info("%s: %d answers are written as lists and were read as such.", source, len(self.read))
        if self.damaged:
            logger.warning(
                "%s: %d answers stand in brackets, such as %.60s, but are no list of quoted strings. Each is one "
                "answer as it stands, brackets and all: if they were lists, take a copy whose quotes are whole.",
                source,
                len(self.damaged),
                self.damaged[0],
            )


def _rows(source: Any, split: str, name: str | None, revision: str | None) -> Iterable[Mapping[str, Any]]:
    if not isinstance(source, (str, Path)):
        return source
    path = Path(source).expanduser()
    if path.is_file() and path.suffix.lower() == ".jsonl":
        # Not by `datasets`: an Arrow column cannot hold strings in one row and lists in the next.
        return _json_lines(path)
    return load_documents(source, split, name=name, revision=revision)


def _json_lines(path: Path) -> list[dict[str, Any]]:
    # Not by `str.splitlines`, which would also cut at separators inside a text, such as U+2028.
    lines = enumerate(path.read_bytes().split(b"\n"), start=1)
    return [parse_line(line, path, number) for number, line in lines if line.strip()]


def _example(
    row: Mapping[str, Any],
    where: str,
    number: int,
    question_column: str,
    answer_column: str | None,
    regex: bool,
    needed: bool,
    lists: _WrittenLists,
) -> OpenQAExample:
    columns = [answer_column] if answer_column is not None else [c for c in _ANSWER_COLUMNS if c in row]
    has_answers = bool(columns) and columns[0] in row
    if question_column not in row or (needed and not has_answers):
        wanted = answer_column or " or ".join(_ANSWER_COLUMNS)
        raise ValueError(
            f"{where} has the columns {sorted(row)}, but {question_column} and {wanted} are needed: name yours with "
            "question_column and answer_column."
        )
    question = row[question_column]
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"{where} has the question {question!r}: a text is needed.")
    is_regex = bool(row.get("regex", regex))
    answers: tuple[str, ...] = ()
    if has_answers:
        answers = _strings(row[columns[0]] if is_regex else lists(row[columns[0]]))
    if needed and not answers:
        raise ValueError(
            f"{where} ({question!r}) has {columns[0]} {row[columns[0]]!r}, which holds no text: leave out questions "
            "without an answer."
        )
    if is_regex:
        _check_patterns(answers, where)
    given = row.get("id")
    return OpenQAExample(question, answers, is_regex, str(number) if given is None else str(given))


def _gold(row: Mapping[str, Any], column: str, where: str) -> tuple[int | str, ...]:
    """What a row says of its gold passages."""
    if column not in row:
        raise ValueError(f"{where} has the columns {sorted(row)}, but no {column}: name yours with gold_column.")
    value = row[column]
    values = [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
    wrong = [each for each in values if isinstance(each, bool) or not isinstance(each, (int, str))]
    if wrong:
        raise ValueError(
            f"{where} has {column} {wrong[0]!r}: a gold passage is the number of a document of the corpus, or a text."
        )
    return tuple(dict.fromkeys(each for each in values if not isinstance(each, str) or each.strip()))


def _strings(value: Any) -> tuple[str, ...]:
    """The texts in an answer field, each once, in order."""
    if isinstance(value, Mapping):
        value = value.get("text", value.get("value"))
    values = [value] if isinstance(value, str) else list(value) if isinstance(value, (list, tuple)) else []
    return tuple(dict.fromkeys(text for text in values if isinstance(text, str) and text.strip()))


def _check_patterns(patterns: tuple[str, ...], where: str) -> None:
    for pattern in patterns:
        try:
            compile_pattern(pattern)
        except ValueError as error:
            raise ValueError(f"{where}: {error} Or load plain answers with regex=False.") from error
