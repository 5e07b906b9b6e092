"""What a run left behind, read into one record: for the report, for a model's card, and for training that goes on.

This is the only reader of `log.jsonl`, `summary.json` and `examples.json`. It uses the standard library alone, so that
a report can be made on any machine. One rule holds for damaged logs: a line that is no record is left out, wherever it
stands, and counted. A trainer that was killed leaves half a line at the end; a resumed one writes whole lines only.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

__all__ = [
    "EVALUATION_PREFIX",
    "RunRecord",
    "parse_json",
    "read_log",
    "read_run",
    "retrieval_figure",
    "stage_name",
    "swaps_in",
]

EVALUATION_PREFIX = "eval_"
"""Of the names of held-out figures."""

_RETRIEVAL = re.compile(EVALUATION_PREFIX + r"(recall|ndcg)_at_(\d+)")
_TITLES = {"recall": "recall", "ndcg": "nDCG"}
_STAGES = {
    "initial": "initial weights",
    "recurring": "after recurring spans",
    "ict": "after ICT",
    "realm": "after REALM",
    "hybrid": "after REALM, with BM25",
    "bm25": "BM25",
}
_CORPORA = {"passages": "passages-settings.json", "sentences": "sentences-settings.json"}
_LOG, _SUMMARY, _SETTINGS, _EXAMPLES = "log.jsonl", "summary.json", "run.json", "examples.json"


@dataclass(frozen=True)
class RunRecord:
    """
    A run's files, parsed. What was not recorded is empty.

    Args:
        root (`Path`): The run directory.
        steps (`list[dict]`): The training records of `log.jsonl` by ascending `step`; of a step that was logged twice
            the later record.
        evaluations (`list[dict]`): The records that carry held-out figures (`eval_*`), by ascending `step`.
        events (`list[dict]`): The records that carry `events`, in the order of the log.
        summary (`dict`): `summary.json`.
        settings (`dict`): `run.json`.
        corpora (`dict[str, dict]`): What "passages" and "sentences" were made of, from `passages-settings.json` and
            `sentences-settings.json`.
        examples (`list[dict]`): `examples.json`: masked sentences with their retrieved passages.
        unreadable_lines (`int`): Lines of the log that are no JSON object with a numeric `step`.
    """

    root: Path
    steps: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    corpora: dict[str, dict[str, Any]] = field(default_factory=dict)
    examples: list[dict[str, Any]] = field(default_factory=list)
    unreadable_lines: int = 0

    def series(self, name: str) -> list[tuple[float, float]]:
        """`(step, value)` of every training record that has a finite number called `name`."""
        return list(_points(self.steps, name))

    def evaluation_series(self, name: str) -> list[tuple[float, float]]:
        """`(step, value)` of the held-out figure `eval_<name>`."""
        return list(_points(self.evaluations, EVALUATION_PREFIX + name))

    def retrieval(self) -> dict[int, dict[str, float]]:
        """What was measured on questions, by step, in percent: `{0: {"recall@1": 48.0, "nDCG@10": 51.2}, ...}`."""
        found = {}
        for record in self.evaluations:
            shown = {name: retrieval_figure(name) for name in record}
            figures = {title: 100.0 * record[n] for n, title in shown.items() if title and _is_number(record[n])}
            if figures:
                found[record["step"]] = figures
        return found

    def build_intervals(self) -> list[tuple[float, float]]:
        """Closed intervals of steps during which an index was being built (`building` is true)."""
        intervals: list[tuple[float, float]] = []
        start: float | None = None
        last = 0.0
        for record in self.steps:
            step = float(record["step"])
            if record.get("building"):
                start = step if start is None else start
            elif start is not None:
                intervals.append((start, last))
                start = None
            last = step
        if start is not None:
            intervals.append((start, last))
        return intervals

    def swaps(self) -> list[dict[str, Any]]:
        """The `swap` events of the log, first to last: one for each generation that was served."""
        return swaps_in(self.events)

    def swap_steps(self) -> list[float]:
        """Steps after which another generation was served; the first index of the run is no swap in training."""
        steps = [event.get("swapped_at_step") for event in self.swaps()]
        return [float(step) for step in steps if isinstance(step, int | float) and step > 0]

    @property
    def steps_taken(self) -> int | None:
        """Optimizer steps, from the summary; `None` before the run has ended."""
        return self.summary.get("steps")

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase, from the summary."""
        return _numbers(self.summary.get("seconds"))

    @property
    def evaluation(self) -> dict[str, float]:
        """Held-out figures after the last step, from the summary."""
        return _numbers(self.summary.get("evaluation"))

    @property
    def generations(self) -> list[dict[str, Any]]:
        """The generations that were served, each with `name` and `snapshot_step`, from the summary."""
        return list(self.summary.get("generations") or [])

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the training, from the summary."""
        return dict(self.summary.get("arguments") or {})

    @property
    def base_model(self) -> str | None:
        """The Hub's name of the weights that training started from, from the summary; `None` where it is unknown."""
        return self.summary.get("base_model")

    @property
    def local_start(self) -> str | None:
        """The last part of the folder that training started from, where no name on the Hub is known."""
        name = self.summary.get("started_from")
        return None if self.base_model or not name else f"{Path(str(name)).name} (a folder)"

    @property
    def examples_per_step(self) -> int | None:
        """Examples of one optimizer step over all processes, from the summary."""
        return self.summary.get("examples_per_step")

    @property
    def trained_passage_tower(self) -> bool:
        """Whether training moved what embeds passages: always in pre-training, in fine-tuning with refreshes only."""
        return not self.answers_questions or self.arguments.get("refresh") != "off"

    @property
    def answers_questions(self) -> bool:
        """Whether it is a run of fine-tuning on questions that has ended."""
        return "trained_questions" in self.summary

    @property
    def hardware(self) -> dict[str, Any]:
        """What the run ran on, from the summary."""
        return dict(self.summary.get("hardware") or {})

    @property
    def packages(self) -> dict[str, str]:
        """Versions of the libraries that made the run, from its settings."""
        return dict(self.settings.get("packages") or {})

    @property
    def recall(self) -> dict[str, dict[str, float]]:
        """Recall@k in percent by stage and k, from the summary, which may have it as shares of 1."""
        stages = {str(stage): _numbers(figures) for stage, figures in (self.summary.get("recall") or {}).items()}
        # All figures at most 1 are shares: percentages of a whole run would not be that small.
        scale = 100.0 if all(value <= 1.0 for figures in stages.values() for value in figures.values()) else 1.0
        return {stage: {k: scale * value for k, value in figures.items()} for stage, figures in stages.items()}

    def largest(self, name: str) -> float | None:
        """The largest value that the training records have of `name`; `None` if none has it."""
        return max((value for _, value in self.series(name)), default=None)


def retrieval_figure(name: str) -> str | None:
    """How a figure of retrieval is written, "recall@5" for `eval_recall_at_5`; `None` for any other name."""
    found = _RETRIEVAL.fullmatch(name)
    return None if found is None else f"{_TITLES[found[1]]}@{found[2]}"


def stage_name(stage: str) -> str:
    """How a stage of [`RunRecord.recall`] is written; one that is not known stays as it is."""
    return _STAGES.get(stage, stage)


def read_log(path: Path) -> list[dict[str, Any]]:
    """
    The records of a `log.jsonl`, in its order; lines that are none are left out.

    Args:
        path (`Path`): The file; where there is none, there are no records.
    """
    return _read_log(path)[0]


def swaps_in(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The `swap` events of records of a log, first to last."""
    events = [event for record in records for event in record.get("events") or []]
    return [event for event in events if event.get("event") == "swap"]


def read_run(run_dir: str | Path) -> RunRecord:
    """
    Read a run directory, of a run that goes on or has ended.

    Args:
        run_dir (`str` or `Path`): The run directory, RUN in the documentation.

    Returns:
        [`RunRecord`]

    Raises:
        FileNotFoundError: None of a run's files is there.
        ValueError: One of the JSON files is damaged, or has another form than a run writes.
    """
    root = Path(run_dir)
    names = (_LOG, _SUMMARY, _SETTINGS)
    if not any((root / name).is_file() for name in names):
        raise FileNotFoundError(
            f"{root} has none of {', '.join(names)}: give the `output_dir` of a run that has taken at least one step."
        )
    records, unreadable = _read_log(root / _LOG)
    evaluated = [record for record in records if any(name.startswith(EVALUATION_PREFIX) for name in record)]
    return RunRecord(
        root=root,
        steps=_by_step([record for record in records if "loss" in record]),
        evaluations=_by_step(evaluated),
        events=[record for record in records if record.get("events")],
        summary=_read_json(root / _SUMMARY, dict),
        settings=_read_json(root / _SETTINGS, dict),
        corpora={name: found for name, file in _CORPORA.items() if (found := _read_json(root / file, dict))},
        examples=_read_json(root / _EXAMPLES, list),
        unreadable_lines=unreadable,
    )


def parse_json(text: str, where: str, kind: type = dict) -> Any:
    """
    The content of a file that must be JSON of one kind.

    Args:
        text (`str`): The JSON.
        where (`str`): The file, for the message.
        kind (`type`, *optional*, defaults to `dict`): `dict` or `list`.

    Raises:
        ValueError: It is no JSON, or of another kind; the message names the file.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not valid JSON ({error}): restore it, or delete it to do without it.") from error
    if not isinstance(content, kind):
        raise ValueError(f"{where} holds a {type(content).__name__}, but must hold a {kind.__name__}: restore it.")
    return content


def _read_log(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The records, and how many lines are none."""
    if not path.is_file():
        return [], 0
    records, unreadable = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        record = _parse(line)
        if record is not None:
            records.append(record)
        else:
            unreadable += bool(line.strip())
    return records, unreadable


def _parse(line: str) -> dict[str, Any] | None:
    """The line's object, or `None` where it is no JSON object with a numeric `step`."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int | float) else None


def _by_step(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The later record of each step, by ascending step."""
    latest = {record["step"]: record for record in records}
    return [latest[step] for step in sorted(latest)]


def _read_json(path: Path, kind: type) -> Any:
    return parse_json(path.read_text(encoding="utf-8"), str(path), kind) if path.is_file() else kind()


def _points(records: Iterable[Mapping[str, Any]], name: str) -> Iterator[tuple[float, float]]:
    for record in records:
        value = record.get(name)
        if _is_number(value):
            yield float(record["step"]), float(value)


def _numbers(content: object) -> dict[str, float]:
    if not isinstance(content, dict):
        return {}
    return {str(name): value for name, value in content.items() if _is_number(value)}


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
