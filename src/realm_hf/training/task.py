"""What one training is beside the loop: the figures of a step, the checks of a resume, and what is left at the end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from pathlib import Path

    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from realm_hf.training.checkpoints import Checkpoint
    from realm_hf.training.finite import SkippedSteps
    from realm_hf.training.loop_arguments import LoopArguments
    from realm_hf.training.model_weights import ModelWeights


@dataclass(frozen=True)
class StepFigures:
    """What this rank computed in the forward and backward passes of one optimizer step.

    Args:
        sums (`torch.Tensor` of shape `[S]`): On the device, no gradient: read once, and summed over the ranks.
        record (`Callable`): From the sums over all ranks to what the log gets; its "loss" decides whether there is an
            update.
    """

    sums: torch.Tensor
    record: Callable[[list[float]], dict[str, Any]]


class TrainingTask(ABC):
    """What [`TrainingLoop`] asks its subclass for. Every rank is asked at the same points.

    The annotated attributes are the loop's, for those who serve it: its callbacks and its checkpoints.
    """

    model: PreTrainedModel
    args: LoopArguments
    accelerator: Accelerator
    optimizer: AcceleratedOptimizer
    processing_class: PreTrainedTokenizerBase
    weights: ModelWeights
    skipped_steps: SkippedSteps
    world_size: int
    #: Optimizer steps that are done, and examples that they have taken.
    step: int
    cursor: int

    @property
    @abstractmethod
    def epoch(self) -> float:
        """Passes over the data that are done."""

    @property
    @abstractmethod
    def examples_per_step(self) -> int:
        """Examples of one optimizer step over all ranks."""

    @property
    @abstractmethod
    def checkpoints(self) -> Path:
        """Directory of the checkpoints."""

    @property
    @abstractmethod
    def place(self) -> Path | None:
        """The trainer's own place in the run directory, through which it publishes and removes."""

    @property
    @abstractmethod
    def term_number(self) -> int:
        """Number of the trainer's term."""

    #: Shown at the left of the progress bar.
    name = "training"
    #: Of the record: shown beside the progress bar.
    figures: tuple[str, ...] = ("loss",)

    @abstractmethod
    def begin(self, checkpoint: Checkpoint | None) -> None:
        """Prepare the first step; after a resume, put back what `loop_state` had given."""

    @abstractmethod
    def accumulate(self, step: int) -> StepFigures:
        """Forward and backward of one optimizer step."""

    @property
    @abstractmethod
    def examples_per_epoch(self) -> int:
        """Training examples in one pass over the data."""

    @abstractmethod
    def trained_on(self) -> dict[str, Any]:
        """Fingerprints of the data, and what the objective takes from the model's configuration: a checkpoint records
        them, and a resume compares them.
        """

    @abstractmethod
    def verify_data(self) -> None:
        """Compare what can be compared of the data on disk with its recorded hashes; on the main process, at a resume.

        Raises:
            ValueError: A file was changed.
        """

    def own_rates(self) -> dict[nn.Module, float]:
        """Peak learning rates of submodules that have one of their own."""
        return {}

    def after_step(self, step: int) -> dict[str, Any]:  # noqa: ARG002 - subclasses read it
        """Between two optimizer steps; what it returns is added to the record."""
        return {}

    def loop_state(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """What the checkpoint must hold beside weights and optimizer: JSON (main process) and tensors (every rank)."""
        return {}, {}

    def evaluate(self) -> dict[str, float]:
        """Held-out figures, names beginning with `eval_`; empty where there is nothing held out."""
        return {}

    def write_result(self) -> None:  # noqa: B027 - a training may leave nothing but its checkpoints
        """After the last step and its checkpoint: leave the model, before anything that may fail or take hours."""

    def finish(self) -> dict[str, Any]:
        """Then: the last index, examples, and so on; what it returns goes into `summary.json`. A run that ended in
        here does it again when it is resumed.
        """
        return {}

    @abstractmethod
    def close(self) -> None:
        """End threads and child processes, also after an error."""
