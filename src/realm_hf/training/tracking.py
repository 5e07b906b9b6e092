"""What a run reports: one JSON line a step, a summary, a progress bar and the user's trackers.

`log.jsonl` is the record: the summary and the report are made from it. A resumed run cuts off the lines of steps that
it takes again, so that the file reads as if nothing had happened.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from tqdm.auto import tqdm

from realm_hf.runs.records import EVALUATION_PREFIX, read_log, swaps_in
from realm_hf.runs.term import Term
from realm_hf.storage.errors import explain_os_errors
from realm_hf.storage.files import replacement, write_json

if TYPE_CHECKING:
    from realm_hf.training.loop_arguments import LoopArguments

logger = logging.getLogger(__name__)


class StepLog:
    """Appends records to `log.jsonl`; a line is on its way to the disk when `write` returns.

    Args:
        path (`pathlib.Path`): The file. It is a new one: a predecessor that was stopped and goes on appends to its
            own.
        after_step (`int`, *optional*, defaults to `0`): Lines of later steps, which will be taken again, are cut off;
            0 starts afresh.
        term ([`Term`], *optional*): The trainer's term; each line first asks whether it still lasts.
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
        log (`pathlib.Path`): The run's `log.jsonl`.
        summary (`pathlib.Path`): The file to replace; what others put there under further keys is kept.
        extra (`Mapping[str, Any]`): Further entries, e.g. the last evaluation.
        place (`pathlib.Path`, *optional*): The trainer's own directory; see [`Term`].
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


def start_trackers(accelerator: Accelerator, args: LoopArguments) -> None:
    """Start every tracker, under the run's name and with the arguments as its configuration."""
    flat = {k: v if isinstance(v, int | float | str | bool) else str(v) for k, v in asdict(args).items()}
    accelerator.init_trackers(args.run_name or Path(args.output_dir).resolve().name, config=flat)


def finish_trackers(accelerator: Accelerator) -> None:
    """End the trackers' run. (`accelerator.end_training` would also end the process group, which a warm start's
    successor still needs.)
    """
    for tracker in accelerator.trackers:
        tracker.finish()
    accelerator.trackers = []


def figures_of(record: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a record of `log.jsonl`, those of its events as `<event>/<name>`: `swap/churn`."""
    named = [(name, value) for name, value in record.items() if name != "step"]
    for event in record.get("events", []):
        named += [(f"{event['event']}/{name}", value) for name, value in event.items() if name != "builder_pid"]
    return {name: float(value) for name, value in named if isinstance(value, int | float) and math.isfinite(value)}


def track(accelerator: Accelerator, record: Mapping[str, Any]) -> None:
    """Send the figures of one record to the trackers; texts and missing figures stay in `log.jsonl`."""
    figures = figures_of(record)
    if figures:
        accelerator.log(figures, step=int(record["step"]))


class Progress:
    """A progress bar on the main process, with rate, time left and the newest figures.

    Args:
        total (`int`): Steps of the whole training.
        done (`int`): Steps done before.
        name (`str`): Shown at its left.
        shown (`bool`): False on other processes, and where the user wants none.
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


class Reporter:
    """What a running training reports: each record to `log.jsonl`, its figures to the trackers, and a progress bar.

    Args:
        accelerator (`accelerate.Accelerator`): Its main process writes; it holds the trackers.
        args ([`LoopArguments`]): The run's arguments.
        log (`Path`): The run's `log.jsonl`.
        name (`str`): Shown beside the progress bar.
        step (`int`, *optional*, defaults to 0): Optimizer steps done before.
        term ([`Term`], *optional*): The trainer's term.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        args: LoopArguments,
        log: Path,
        *,
        name: str,
        step: int = 0,
        term: Term | None = None,
    ):
        self._accelerator, self._is_main = accelerator, accelerator.is_main_process
        self._args, self._term = args, term
        self._log = StepLog(log, step, term) if self._is_main else None
        start_trackers(accelerator, args)
        self.progress = Progress(args.max_steps, step, name, self._is_main and not args.disable_tqdm)

    def write(self, record: Mapping[str, Any], *, sampled: bool = True) -> None:
        """Write a record to the log and send its figures to the trackers.

        Args:
            record (`dict[str, Any]`): It has a "step".
            sampled (`bool`, *optional*, defaults to `True`): False for a step between two that are tracked: only what
                is rare, its events, the count of skipped steps and held-out figures, is sent.
        """
        if self._log is not None:
            self._log.write(record)
        rare = ("step", "events", "skipped_steps")
        kept = {n: value for n, value in record.items() if sampled or n in rare or n.startswith(EVALUATION_PREFIX)}
        track(self._accelerator, kept)

    def summarize(self, summary: Path, facts: Mapping[str, Any]) -> None:
        """Write `summary.json` from the log, with the arguments; on the main process. See [`summarize`].

        Args:
            summary (`pathlib.Path`): The file.
            facts (`dict[str, Any]`): Further entries.
        """
        if self._log is not None:
            place = None if self._term is None else self._term.place
            summarize(self._log.path, summary, {**facts, "arguments": self._args.reported()}, place)

    def say(self, message: str) -> None:
        """Print a line above the progress bar, or log it; on the main process."""
        if self._is_main and not self.progress.say(message):
            logger.info(message)

    def close(self) -> None:
        """Close the progress bar and the log; the trackers end in [`finish_trackers`]."""
        self.progress.close()
        if self._log is not None:
            self._log.close()
