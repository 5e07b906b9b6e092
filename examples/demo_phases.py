"""What of a demo is done, so that one that was stopped goes on: RUN/demo.json.

    {"arguments": {"seed": 0, ...}, "results": {"initial recall": {...}, ...}, "seconds": {...}, "finished": false}

A phase that trains has its own checkpoints; what is recorded here is that it is over, and figures that later phases
could not measure again.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from realm_hf.training import TrainingResult

T = TypeVar("T")


class PhaseInterrupted(Exception):  # noqa: N818 - nothing went wrong
    """A phase was told to stop; the message says where, and how to go on.

    Args:
        message: For the user.
        exit_status: What the program ends with.
    """

    def __init__(self, message: str, exit_status: int):
        super().__init__(message)
        self.exit_status = exit_status


class Phases:
    """The phases of one demo, in the order in which they are asked for.

    Args:
        folder: The run. A finished demo that is there is removed, an interrupted one goes on.
        arguments: What the phases depend on.
        restart: Remove an interrupted one as well.

    Raises:
        SystemExit: The interrupted demo had other arguments, and `restart` is not set.
    """

    def __init__(self, folder: Path, arguments: dict[str, Any], restart: bool):
        self.path = folder / "demo.json"
        before = json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else None
        goes_on = before is not None and not before["finished"] and not restart
        if goes_on and before["arguments"] != arguments:
            differences = "; ".join(
                f"{name} {before['arguments'].get(name)!r} then, {value!r} now"
                for name, value in arguments.items()
                if before["arguments"].get(name) != value
            )
            raise SystemExit(
                f"{folder} holds a demo that was stopped, with other arguments: {differences}. Give the old ones to "
                "go on with it, --restart to begin again, or another --output_dir."
            )
        if goes_on:
            self.record: dict[str, Any] = before
            print(f"Going on with the demo that was stopped; done: {', '.join(before['seconds']) or 'nothing yet'}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            self.record = {"arguments": arguments, "results": {}, "seconds": {}, "finished": False}
            self._write()
        self._clock = time.perf_counter()

    def is_done(self, phase: str) -> bool:
        """Whether the phase is over."""
        return phase in self.record["seconds"]

    def result(self, name: str, make: Callable[[], T]) -> T:
        """A figure that was recorded, or is made and recorded now: JSON."""
        if name not in self.record["results"]:
            self.record["results"][name] = make()
            self._write()
        return self.record["results"][name]  # type: ignore[no-any-return]

    def train(self, phase: str, train: Callable[..., TrainingResult], checkpoints: Path) -> None:
        """Train, or go on with it.

        Raises:
            PhaseInterrupted: It was told to stop; its checkpoint is written.
        """
        result = train(resume_from_checkpoint=checkpoints.is_dir() and any(checkpoints.glob("step-*")))
        if result.interrupted:
            raise PhaseInterrupted(
                f"Stopped in the phase {phase!r} after step {result.step}; its checkpoint is {result.checkpoint}.",
                result.exit_status,
            )

    def done(self, phase: str) -> None:
        """The phase is over; counts the seconds since the last one, of this sitting."""
        now = time.perf_counter()
        if not self.is_done(phase):
            self.record["seconds"][phase] = round(now - self._clock, 1)
        self._clock = now
        self._write()

    def finish(self) -> dict[str, float]:
        """The demo is over: the next one begins afresh. Returns the seconds of each phase, and their total."""
        self.record["finished"] = True
        self._write()
        return {**self.record["seconds"], "total": round(sum(self.record["seconds"].values()), 1)}

    def _write(self) -> None:
        # In one rename: a kill in between leaves the earlier record.
        beside = self.path.with_name(f".tmp-{self.path.name}")
        beside.write_text(json.dumps(self.record, indent=2) + "\n", encoding="utf-8")
        beside.replace(self.path)
