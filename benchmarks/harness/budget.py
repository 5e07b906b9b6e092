"""A time budget over phases: each gets its share of what is left, in steps by their measured time."""

from __future__ import annotations

import faulthandler
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState

from realm_hf.runs.records import read_log
from realm_hf.training.loop import TrainingLoop
from realm_hf.training.loop_arguments import LoopArguments

TRIAL_STEPS = 6
_SAFETY = 0.9  # of the time that is left after the trial


class Report:
    """A file of JSON lines; each is on its way to the disk when it was written, whatever ends the program.

    Args:
        path: The file, begun anew.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file, self._began = path.open("w", encoding="utf-8"), time.monotonic()

    def write(self, phase: str, **facts: Any) -> None:
        """Write a line, and show it."""
        line = json.dumps({"phase": phase, "at": round(time.monotonic() - self._began, 1), **facts})
        self._file.write(line + "\n")
        self._file.flush()
        print(line, flush=True)


class Budget:
    """Time for some phases.

    Args:
        seconds: All that there is, from now on. A process that still runs then is ended, whatever it does.
        shares: Of each phase that is still to come, in any unit.
    """

    def __init__(self, seconds: float, shares: dict[str, float]):
        self._end = time.monotonic() + seconds
        self._shares = dict(shares)
        # A thread of C: it needs neither the interpreter's lock nor an end of what is computed.
        faulthandler.dump_traceback_later(seconds, exit=True)

    @property
    def left(self) -> float:
        """Seconds that are left of all."""
        return self._end - time.monotonic()

    @contextmanager
    def phase(self, name: str) -> Iterator[float]:
        """One phase; the moment, by `time.monotonic`, when it should have ended."""
        share = self._shares[name] / sum(self._shares.values())
        yield time.monotonic() + share * self.left
        del self._shares[name]

    def close(self) -> None:
        """All is done: let the process live."""
        faulthandler.cancel_dump_traceback_later()


class TimeLimit(TrainerCallback):
    """Ends a training at a time, and reports how it goes every few seconds.

    Args:
        phase: Its name in the report.
        until: No step is begun after this moment of `time.monotonic`.
        report: Where it is reported.
        every: Seconds between two lines.
    """

    def __init__(self, phase: str, until: float, report: Report, every: float = 10.0):
        self.phase, self.until, self.report, self.every = phase, until, report, every
        self._reported = time.monotonic()

    def on_step_end(
        self,
        args: LoopArguments,  # noqa: ARG002 - transformers passes it
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,
        record: dict[str, Any],
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """After each step."""
        now = time.monotonic()
        control.should_training_stop |= now > self.until
        if now - self._reported > self.every:
            self._reported = now
            numbers = {name: round(value, 4) for name, value in record.items() if isinstance(value, int | float)}
            self.report.write(f"{self.phase}, step", **numbers)


def trained_until(
    phase: str,
    until: float,
    report: Report,
    run: Path,
    make: Callable[[Path, int, list[TrainerCallback], bool], TrainingLoop],
    builds: int = 0,
) -> dict[str, Any]:
    """Train for as many steps as there is time, by the time that a few steps of a copy take.

    Args:
        phase: Its name.
        until: The moment at which it should have ended.
        report: Where it is reported.
        run: The run directory.
        make: Makes a trainer from run directory, steps, callbacks, and whether it is the trial, which trains a copy.
        builds: How often the index is built in the training, the first and the last one counted.

    Returns:
        Seconds, steps, and the last evaluation.
    """
    began = time.monotonic()
    make(run / "trial", TRIAL_STEPS, [], True).train().exit_if_interrupted()
    step, build, rest = _measured(run / "trial", time.monotonic() - began)
    shutil.rmtree(run / "trial")
    steps = steps_in(_SAFETY * (until - time.monotonic()) - builds * build - rest, step)
    report.write(f"{phase}, plan", steps=steps, step_seconds=round(step, 4), build_seconds=round(build, 2))
    limit = TimeLimit(phase, until - build, report)
    result = make(run / "all", steps, [limit], False).train().exit_if_interrupted()
    facts = {"seconds": round(time.monotonic() - began, 1), "planned": steps, "steps": result.step, **result.metrics}
    report.write(phase, **facts)
    return facts


def steps_in(seconds: float, step: float) -> int:
    """How many steps there is time for, at least one."""
    return max(1, int(seconds / step))


def _measured(run: Path, seconds: float) -> tuple[float, float, float]:
    """Of a trial: a step (the median of its second half), a build of the index, and what is neither."""
    records = read_log(run / "log.jsonl")
    steps = [record["step_seconds"] for record in records if "step_seconds" in record]
    build = sum(record.get("index_seconds") or 0.0 for record in records)
    return float(np.median(steps[len(steps) // 2 :])), build, max(0.0, seconds - sum(steps) - build)
