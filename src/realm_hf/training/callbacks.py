"""Hooks into the training loops, and how a training ended."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from realm_hf.training.loop import TrainingLoop


@dataclass(frozen=True)
class TrainingResult:
    """How `train` ended.

    Args:
        step: Optimizer steps done, those of earlier sessions included.
        interrupted: Whether SIGTERM or Ctrl-C ended it early; a checkpoint was written then.
        checkpoint: The last checkpoint.
        metrics: The last held-out evaluation, empty without one.
        signal: Which of the two it was, on whatever rank; the same on all.
    """

    step: int
    interrupted: bool
    checkpoint: Path | None
    metrics: dict[str, float] = field(default_factory=dict)
    signal: Signals | None = None

    @property
    def exit_status(self) -> int:
        """What a program that did nothing else should exit with: 0, 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + self.signal if self.signal is not None else 0

    def exit_if_interrupted(self) -> Self:
        """End the program where the training did not come to its end: for scripts that would go on with its model.

        Raises:
            SystemExit: It was interrupted; the status is [`exit_status`].
        """
        if self.interrupted:
            sys.stderr.write(f"Interrupted after step {self.step}; the checkpoint is {self.checkpoint}.\n")
            raise SystemExit(self.exit_status)
        return self


class LoopCallback:
    """Hooks into the loop, as in [`~transformers.TrainerCallback`]; override what you need. Called on every rank."""

    def on_train_begin(self, loop: TrainingLoop) -> None:
        """Before the first step; weights, data cursor and index are in place."""

    def on_step_end(self, loop: TrainingLoop, record: dict[str, Any]) -> None:
        """After an optimizer step; `record` is what `log.jsonl` gets, and may be added to."""

    def on_evaluate(self, loop: TrainingLoop, metrics: dict[str, float]) -> None:
        """After a held-out evaluation."""

    def on_save(self, loop: TrainingLoop, path: Path) -> None:
        """After a checkpoint was written."""

    def on_train_end(self, loop: TrainingLoop) -> None:
        """After the last step."""
