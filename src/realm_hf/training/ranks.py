"""What the ranks of a training agree on between the collectives of the gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from signal import SIGINT, SIGTERM, Signals
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator

from realm_hf.training.process_groups import patient_group, run_on_main, step_group, told_while_waiting
from realm_hf.training.signals import StopRequest

T = TypeVar("T")


class Ranks:
    """Small sums over the ranks, and work that one of them does for all. Every rank makes the same calls.

    Args:
        accelerator: Its process and their number; constructing this is a collective call where there are several.
        stop: This rank's wish to stop.
    """

    def __init__(self, accelerator: Accelerator, stop: StopRequest):
        self.rank, self.size = accelerator.process_index, accelerator.num_processes
        self._stop = stop
        self._step_group, self._patient_group = step_group(), patient_group()
        #: The signal that ends the training, once all ranks know of it.
        self.stopped_by: Signals | None = None

    def sum(self, values: Sequence[float], waits: str | None = None) -> list[float]:
        """Element-wise sum over the ranks in float64. The ranks also learn here whether one of them is to stop.

        Args:
            values: As many on every rank.
            waits: For sums that a rank may come to hours later than another: what it is busy with until then.
        """
        asked = self._stop.signal
        total = torch.tensor([*values, float(asked == SIGINT), float(asked == SIGTERM)], dtype=torch.float64)
        if self._step_group is not None:
            if waits is None:
                dist.all_reduce(total, group=self._step_group)
            else:
                with told_while_waiting(f"for the other ranks to {waits}"):
                    dist.all_reduce(total, group=self._patient_group)
        *sums, interrupts, terminations = total.tolist()
        if self.stopped_by is None and interrupts + terminations > 0:
            self.stopped_by = SIGINT if interrupts > 0 else SIGTERM
        return sums

    def on_main(self, function: Callable[[], T], what: str) -> T:
        """Run `function` on rank 0; see [`run_on_main`]."""
        return run_on_main(function, what, self._patient_group)

    def gather(self, value: Any) -> list[Any]:
        """Every rank's `value`, in the order of the ranks."""
        if self._step_group is None:
            return [value]
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, value, group=self._step_group)
        return gathered
