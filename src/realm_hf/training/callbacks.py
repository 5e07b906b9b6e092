"""Hooks into the training loops, and how a training ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from realm_hf.training.loop import TrainingLoop


@dataclass(frozen=True)
class TrainingResult:
    """How `train` ended.

    Args:
        step: Optimizer steps done, those of earlier sessions included.
        interrupted: Whether a SIGTERM ended it early; a checkpoint was written then.
        checkpoint: The last checkpoint.
        metrics: The last held-out evaluation, empty without one.
    """

    step: int
    interrupted: bool
    checkpoint: Path | None
    metrics: dict[str, float] = field(default_factory=dict)


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
