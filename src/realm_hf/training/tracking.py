"""What a run tells: one JSON line a step, a summary, a progress bar and the user's trackers.

`log.jsonl` is the record: the summary and the report are made from it. A resumed run cuts off the lines of steps that
it takes again, so that the file reads as if nothing had happened.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from tqdm.auto import tqdm

from realm_hf.runs.records import read_log, swaps_in
from realm_hf.runs.term import Term
from realm_hf.storage.errors import explain_os_errors
from realm_hf.storage.files import replacement, write_json

if TYPE_CHECKING:
    from realm_hf.training.arguments import LoopArguments


class StepLog:
    """Appends records to `log.jsonl`; a line is on its way to the disk when `write` returns.

    Args:
        path: The file. It is a new one: a predecessor that was stopped and goes on appends to its own.
        after_step: Lines of later steps, which will be taken again, are cut off; 0 starts afresh.
        term: The trainer's term; each line first asks whether it still lasts.
    """

    def __init__(self, path: Path, after_step: int = 0, term: Term | None = None):
        self.path, self.term = path, term
        kept = [record for record in read_log(path) if record["step"] <= after_step]
        with explain_os_errors("write", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacement(path, place=None if term is None else term.place) as temporary:
                # Opened before the rename: by its name it might be a successor's already.
                self._file = temporary.open("a", encoding="utf-8")
                self._file.write("".join(json.dumps(record) + "\n" for record in kept))
                self._file.flush()

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record; figures that JSON cannot hold (NaN, infinity) become null.

        Raises:
            RunTakenOver: The run is another trainer's by now.
        """
        if self.term is not None:
            self.term.require()
        clean = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in record.items()
        }
        with explain_os_errors("write", self.path):
            self._file.write(json.dumps(clean) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def summarize(log: Path, summary: Path, extra: Mapping[str, Any], place: Path | None = None) -> None:
    """Write `summary.json` from the log: steps, seconds by phase, the generations that were served.

    Args:
        log: The run's `log.jsonl`.
        summary: The file to replace; what others put there under further keys is kept.
        extra: Further entries, e.g. the last evaluation.
        place: The trainer's own directory; see [`Term`].
    """
    records = read_log(log)
    generations = [
        {key: swap.get(key) for key in ("name", "snapshot_step", "builder_pid", "swapped_at_step", "staleness_steps")}
        for swap in swaps_in(records)
    ]
    phases = ("step_seconds", "search_wait_seconds", "eval_seconds", "save_seconds")
    seconds = {phase.removesuffix("_seconds"): sum(r.get(phase) or 0.0 for r in records) for phase in phases}
    before = json.loads(summary.read_text(encoding="utf-8")) if summary.exists() else {}
    steps = records[-1]["step"] if records else 0
    content = {**before, "steps": steps, "generations": generations, **extra}
    content["seconds"] = {**before.get("seconds", {}), **seconds}
    write_json(summary, content, place=place)


def installed_trackers(report_to: list[str]) -> list[str]:
    """`report_to` as Accelerate takes it.

    Raises:
        ValueError: A tracker has no such name or is not installed.
    """
    if report_to == ["none"]:
        return []
    available = [str(tracker) for tracker in get_available_trackers()]
    if report_to == ["all"]:
        return available
    for name in report_to:
        if name not in available:
            raise ValueError(f"report_to names {name!r}; installed here: {', '.join(available) or 'none'}.")
    return report_to


def start_trackers(accelerator: Accelerator, args: LoopArguments, project: str) -> None:
    """Hand the arguments to every tracker as the run's configuration."""
    flat = {k: v if isinstance(v, int | float | str | bool) else str(v) for k, v in asdict(args).items()}
    accelerator.init_trackers(project, config=flat)


def finish_trackers(accelerator: Accelerator) -> None:
    """End the trackers' run. (`accelerator.end_training` would also end the process group, which a warm start's
    successor still needs.)
    """
    for tracker in accelerator.trackers:
        tracker.finish()
    accelerator.trackers = []


def track(accelerator: Accelerator, record: Mapping[str, Any]) -> None:
    """Send the figures of one step to the trackers; words, events and missing figures stay in `log.jsonl`."""
    figures = {
        name: float(value)
        for name, value in record.items()
        if isinstance(value, int | float) and name != "step" and math.isfinite(value)
    }
    accelerator.log(figures, step=int(record["step"]))


class Progress:
    """A progress bar on the main process, with rate, time left and the newest figures.

    Args:
        total: Steps of the whole training.
        done: Steps done before.
        name: Shown at its left.
        shown: False on other processes, and where the user wants none.
    """

    def __init__(self, total: int, done: int, name: str, shown: bool):
        self._bar = tqdm(total=total, initial=done, desc=name, disable=not shown, dynamic_ncols=True, unit="step")

    def advance(self, record: Mapping[str, Any], figures: tuple[str, ...]) -> None:
        """One step was done."""
        self._bar.update(1)
        self._bar.set_postfix(
            {name: f"{record[name]:.3g}" for name in figures if isinstance(record.get(name), float)}, refresh=False
        )

    def start(self) -> None:
        """Rate and time left count from now: building the first index is no step."""
        self._bar.unpause()

    def say(self, message: str) -> bool:
        """Print a line above the bar; false where there is none."""
        if not self._bar.disable:
            self._bar.write(message)
        return not self._bar.disable

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()
