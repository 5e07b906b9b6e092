"""How a training ended."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from signal import Signals
from typing import Self


@dataclass(frozen=True)
class TrainingResult:
    """How `train` ended.

    Args:
        step (`int`): Optimizer steps done, those of earlier sessions included.
        interrupted (`bool`): Whether SIGTERM or Ctrl-C ended it early; a checkpoint was written then.
        checkpoint (`Path`, *optional*): The last checkpoint.
        metrics (`dict[str, float]`, *optional*): The last held-out evaluation, empty without one.
        signal (`signal.Signals`, *optional*): Which of the two it was, on whatever rank; the same on all.
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
        """Exit the program if the training was interrupted: for scripts that would go on with its model.

        Raises:
            SystemExit: It was interrupted; the status is [`exit_status`].
        """
        if self.interrupted:
            sys.stderr.write(f"Interrupted after step {self.step}; the checkpoint is {self.checkpoint}.\n")
            raise SystemExit(self.exit_status)
        return self
