"""What a run left behind, read into one record. Only `log.jsonl` has to be there."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EVALUATION_PREFIX = "eval_"


@dataclass(frozen=True)
class RunRecord:
    """
    A run's files, parsed.

    Args:
        root (`Path`):
            The run directory.
        steps (`list[dict]`):
            The training records of `log.jsonl` by ascending `step`; of a step that was logged twice (before a kill and
            again after the resume) the later record.
        evaluations (`list[dict]`):
            The records that carry held-out figures (`eval_*`), by ascending `step`.
        events (`list[dict]`):
            The records that carry `events`, in the order of the log.
        summary (`dict`):
            `summary.json`, or empty.
        settings (`dict`):
            `run.json`, or empty.
        examples (`list[dict]`):
            `examples.json`, or empty: masked sentences with their retrieved passages.
        unreadable_lines (`int`):
            Lines of the log that are no JSON object; a trainer that was killed leaves at most one.
    """

    root: Path
    steps: list[dict[str, Any]]
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    examples: list[dict[str, Any]] = field(default_factory=list)
    unreadable_lines: int = 0

    def series(self, name: str) -> list[tuple[float, float]]:
        """`(step, value)` of every training record that has a finite number called `name`."""
        return list(_points(self.steps, name))

    def evaluation_series(self, name: str) -> list[tuple[float, float]]:
        """`(step, value)` of the held-out figure `eval_<name>`."""
        return list(_points(self.evaluations, EVALUATION_PREFIX + name))

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
        events = [event for record in self.events for event in record["events"]]
        return [event for event in events if event.get("event") == "swap"]

    def swap_steps(self) -> list[float]:
        """Steps after which another generation was served; the first index of the run is no swap in training."""
        steps = [event.get("swapped_at_step") for event in self.swaps()]
        return [float(step) for step in steps if isinstance(step, int | float) and step > 0]


def read_run(run_dir: str | Path) -> RunRecord:
    """
    Reads a run directory.

    Args:
        run_dir (`str` or `Path`):
            The run directory, RUN in the documentation.

    Returns:
        [`RunRecord`].

    Raises:
        FileNotFoundError: there is no `log.jsonl`: not a run directory, or no step was taken yet.
        ValueError: one of the JSON files is damaged, or has another form than a run writes.
    """
    root = Path(run_dir)
    log = root / "log.jsonl"
    if not log.is_file():
        raise FileNotFoundError(f"{log} does not exist: give the directory of a run that has taken at least one step.")
    steps: dict[float, dict[str, Any]] = {}
    evaluations: dict[float, dict[str, Any]] = {}
    events: list[dict[str, Any]] = []
    unreadable = 0
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        record = _parse(line)
        if record is None:
            unreadable += bool(line.strip())
            continue
        if any(name.startswith(EVALUATION_PREFIX) for name in record):
            evaluations[record["step"]] = record
        if record.get("events"):
            events.append(record)
        if "loss" in record:
            steps[record["step"]] = record
    return RunRecord(
        root=root,
        steps=[steps[step] for step in sorted(steps)],
        evaluations=[evaluations[step] for step in sorted(evaluations)],
        events=events,
        summary=_read_json(root / "summary.json", dict),
        settings=_read_json(root / "run.json", dict),
        examples=_read_json(root / "examples.json", list),
        unreadable_lines=unreadable,
    )


def _parse(line: str) -> dict[str, Any] | None:
    """The line's object, or None where it is no JSON object with a numeric `step`."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int | float) else None


def _read_json(path: Path, kind: type) -> Any:
    if not path.is_file():
        return kind()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is not valid JSON ({error}): restore it, or delete it to report without it."
        ) from error
    if not isinstance(content, kind):
        raise ValueError(f"{path} holds a {type(content).__name__}, but a run writes a {kind.__name__} there.")
    return content


def _points(records: list[dict[str, Any]], name: str) -> Iterator[tuple[float, float]]:
    for record in records:
        value = record.get(name)
        if isinstance(value, int | float) and math.isfinite(value):
            yield float(record["step"]), float(value)
