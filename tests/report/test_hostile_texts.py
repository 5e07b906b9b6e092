"""What stands in a run's files is text on the page: no field of any of them becomes markup."""

import copy
import json
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest

from realm_hf.report import write_answer_report, write_report

EVIL = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>"

PASSAGE = {
    "row": 7, "title": "Nicaragua", "text": "The capital is Managua.", "share": 0.75, "retrieval_probability": 0.5,
    "best_span": "Managua", "start_char": 15, "end_char": 22, "answer_places": [[15, 22]],
}  # fmt: skip
ANSWERS: dict[str, Any] = {
    "predictions.jsonl": [
        {
            "id": "1", "question": "Where?", "prediction": "Managua", "answers": ["Managua"], "regex": False,
            "correct": True, "answer_rank": 1, "probability": 0.6, "row": 7, "start_char": 15, "end_char": 22,
            "evidence": [PASSAGE, {**PASSAGE, "row": 8}],
        }
    ],
    "metrics.json": {
        "exact_match": 0.5, "token_f1": 0.6, "answer_recall": {"1": 0.25}, "retrieval_utility": 0.2,
        "latency_p50": 0.01, "latency_p99": 0.04, "questions_per_second": 8.5,
    },
}  # fmt: skip
SWAP = {
    "event": "swap", "name": "step-1-00000000", "swapped_at_step": 2, "snapshot_step": 1, "staleness_steps": 1,
    "build_seconds": 1.5, "open_seconds": 0.1, "churn": 0.2, "stale_recall": 0.9, "most_retrieved_share": 0.1,
    "builder_pid": 77,
}  # fmt: skip
RUN: dict[str, Any] = {
    "log.jsonl": [
        {
            "step": step, "loss": 2.0, "retrieval_utility": 0.1, "null_mass": 0.2, "entropy": 1.0, "lr": 0.1,
            "grad_norm": 1.0, "staleness_steps": 1, "step_seconds": 0.5, "search_seconds": 0.1, "building": step == 2,
            "eval_loss": 1.0, "events": [SWAP],
        }
        for step in (1, 2, 3)
    ],
    "summary.json": {"recall": {"initial": {"1": 0.5}}, "exact_match": {"realm": 50.0}},
    "run.json": {"arguments": {"name": "x", "list": ["a"]}},
    "examples.json": [
        {
            "text": "A [MASK].", "answer": "cat", "filling": "dog",
            "candidates": [{"probability": 0.5, "utility": 0.1, "title": "T", "text": "t"}],
        }
    ],
}  # fmt: skip


def places(content: Any, path: tuple = ()) -> Iterator[tuple]:
    """Every value and, marked by `KEY`, every key."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield (*path, KEY, key)
            yield from places(value, (*path, key))
    elif isinstance(content, list):
        for number, value in enumerate(content):
            yield from places(value, (*path, number))
    yield path


KEY = "<the key>"


def with_evil(content: Any, path: tuple) -> Any:
    if not path:
        return EVIL
    changed = copy.deepcopy(content)
    inner = changed
    for step in path[: -2 if KEY in path else -1]:
        inner = inner[step]
    if KEY in path:
        return rename(changed, inner, path[-1])
    inner[path[-1]] = EVIL
    return changed


def rename(changed: Any, inner: dict, key: str) -> Any:
    inner[EVIL] = inner.pop(key)
    return changed


def write(folder, files: dict[str, Any]) -> None:
    for name, content in files.items():
        lines = "".join(json.dumps(row) + "\n" for row in content) if name.endswith(".jsonl") else json.dumps(content)
        (folder / name).write_text(lines, encoding="utf-8")


class Page(HTMLParser):
    """Tags and attributes that no report has."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag in ("script", "img"):
            self.found.append(tag)
        self.found += [name for name, _ in attrs if name.startswith("on")]


CASES = [
    (files, name, path)
    for files in (ANSWERS, RUN)
    for name, content in files.items()
    for path in places(content)
    if not (name.endswith(".jsonl") and not path)
]


@pytest.mark.parametrize(("files", "name", "path"), CASES, ids=[f"{name}{list(path)}" for _, name, path in CASES])
def test_no_field_becomes_markup(tmp_path, files, name, path):
    write(tmp_path, {**files, name: with_evil(files[name], path)})
    report = write_answer_report if files is ANSWERS else write_report

    try:
        text = report(tmp_path, title="t").read_text() if files is ANSWERS else report(tmp_path).read_text()
    except ValueError as error:
        assert str(tmp_path) in str(error)
        return
    assert Page(text).found == []
    assert "<script" not in text


def test_the_honest_pages_are_written(tmp_path):
    write(tmp_path, {**ANSWERS, **RUN})

    assert "Managua" in write_answer_report(tmp_path).read_text()
    assert "step-1-00000000" in write_report(tmp_path).read_text()


@pytest.mark.parametrize("name", ["predictions.jsonl", "metrics.json", "summary.json", "run.json", "examples.json"])
def test_files_that_are_nested_without_end_are_named(tmp_path, name):
    write(tmp_path, {**ANSWERS, **RUN})
    (tmp_path / name).write_text("[" * 100_000)

    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        (write_answer_report if name in ANSWERS else write_report)(tmp_path)


def test_a_text_that_is_null_is_no_word(tmp_path):
    nothing = {**PASSAGE, "title": None, "text": None, "row": 9}
    answered = {**ANSWERS["predictions.jsonl"][0], "prediction": None, "evidence": [nothing]}
    example = {**RUN["examples.json"][0], "candidates": [{"probability": 0.5, "title": None, "text": None}]}
    write(tmp_path, {**RUN, "predictions.jsonl": [answered], "examples.json": [example]})

    for text in (write_answer_report(tmp_path).read_text(), write_report(tmp_path).read_text()):
        assert ">None<" not in text and "None " not in text
