"""NaN and infinity: what must not reach the weights, and never the disk.

One NaN in a loss makes every weight NaN in one update. Two checkpoints later no good one is left. So a step whose loss
or gradient is not finite is left out, on all ranks alike, and weights are looked at before they are written.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

logger = logging.getLogger(__name__)


class TrainingDiverged(RuntimeError):  # noqa: N818 - it is the state that is named
    """Loss, gradient or weights are no finite numbers any more; the message says which, and what to do."""


class SkippedSteps:
    """Counts the steps that were left out.

    Args:
        limit (`int`): Steps in a row that may be left out; one more ends the training.
    """

    def __init__(self, limit: int):
        self.limit = limit
        #: Of the whole training, earlier sessions included.
        self.total = 0
        #: Since the last update.
        self.in_a_row = 0
        self.because = ""

    def judge(self, step: int, **figures: float) -> bool:
        """Whether this step is left out; logged the first time.

        Args:
            step (`int`): The step.
            figures (`float`, by name): The same on all ranks, so that all come to the same judgement.
        """
        wrong = [f"{name.replace('_', ' ')} is {value}" for name, value in figures.items() if not math.isfinite(value)]
        if not wrong:
            self.in_a_row = 0
            return False
        self.total, self.in_a_row, self.because = self.total + 1, self.in_a_row + 1, " and ".join(wrong)
        if self.in_a_row == 1:
            logger.warning("step %d: the %s, so that its update is left out", step, self.because)
        return True

    def require_progress(self, step: int, checkpoint: Path | None) -> None:
        """End a training that makes no step any more.

        Args:
            step (`int`): The newest step.
            checkpoint (`pathlib.Path`, *optional*): The last one that was written.

        Raises:
            TrainingDiverged: More than `limit` steps in a row were left out.
        """
        if self.in_a_row <= self.limit:
            return
        first = step - self.in_a_row + 1
        back = f"Resume from {checkpoint}" if checkpoint is not None else "There is no checkpoint yet: start again"
        raise TrainingDiverged(
            f"The updates of {self.in_a_row} steps in a row, {first} to {step}, were left out, because the "
            f"{self.because}; max_skipped_steps is {self.limit}. {back} with a lower learning_rate or a "
            "longer warm-up (allow_changed_arguments), or without bf16; if single examples are at fault, raise "
            "max_skipped_steps."
        )


def require_finite(tensors: Iterable[tuple[str, torch.Tensor]], what: str) -> None:
    """Refuse NaN and infinity; reads one number from each device.

    Args:
        tensors (`Iterable[tuple[str, torch.Tensor]]`): By name; only those of floating-point numbers are looked at.
        what (`str`): What was to be done with them, for the message: "saved".

    Raises:
        TrainingDiverged: One holds NaN or infinity.
    """
    looked_at = [(name, tensor.detach()) for name, tensor in tensors if tensor.is_floating_point()]
    if not looked_at:
        return
    flags = torch.stack([torch.isfinite(tensor).all().to(looked_at[0][1].device) for _, tensor in looked_at]).tolist()
    broken = [name for (name, _), finite in zip(looked_at, flags, strict=True) if not finite]
    if broken:
        raise TrainingDiverged(
            f"{broken[0]} holds NaN or infinity, as {len(broken)} of {len(flags)} tensors do: they are not {what}. "
            "Checkpoints written before are untouched: resume from one with a lower learning_rate or a longer warm-up "
            "(allow_changed_arguments)."
        )


def require_finite_weights(model: nn.Module, what: str) -> None:
    """[`require_finite`] for the weights of `model`."""
    require_finite(model.named_parameters(), what)
