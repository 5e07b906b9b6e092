"""What the ranks of a training agree on between the collectives of the gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from signal import SIGINT, SIGTERM, Signals
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator

from realm_hf.refresh.process_groups import STEP_TIMEOUT, explain_broken_connection, explain_lost_rank
from realm_hf.refresh.rank_group import RankGroup
from realm_hf.training.signals import StopRequest

T = TypeVar("T")


class Ranks:
    """Small sums over the ranks, and work that one of them does for all. Every rank makes the same calls.

    Args:
        accelerator (`accelerate.Accelerator`): Its process and their number; constructing this is a collective call
            where there are several.
        stop ([`StopRequest`]): This rank's wish to stop.
        timeout (`datetime.timedelta`, *optional*, defaults to `STEP_TIMEOUT`): Longest that a rank may come later than
            another to a sum.
    """

    def __init__(self, accelerator: Accelerator, stop: StopRequest, timeout: timedelta = STEP_TIMEOUT):
        self._stop, self._timeout = stop, timeout
        self._group = RankGroup(accelerator.process_index, accelerator.num_processes, meeting_timeout=timeout)
        #: The signal that ends the training, once all ranks know of it.
        self.stopped_by: Signals | None = None

    def sum(self, values: Sequence[float]) -> list[float]:
        """Element-wise sum over the ranks in float64. The ranks also learn here whether one of them is to stop.

        Raises:
            LostRank: Another rank ended, or did not come within `timeout`.
        """
        asked = self._stop.signal
        total = torch.tensor([*values, float(asked == SIGINT), float(asked == SIGTERM)], dtype=torch.float64)
        if self._group.group is not None:
            with explain_lost_rank("a sum over the ranks", self._timeout):
                dist.all_reduce(total, group=self._group.group)
        *sums, interrupts, terminations = total.tolist()
        if self.stopped_by is None and interrupts + terminations > 0:
            self.stopped_by = SIGINT if interrupts > 0 else SIGTERM
        return sums

    def reducing(self, step: int) -> AbstractContextManager[None]:
        """Surrounds a backward pass, in which gradients are summed over the ranks.

        Raises:
            LostRank: Another rank ended, or did not come in time.
        """
        return explain_broken_connection(f"the gradients of step {step}")

    def any(self, flags: Sequence[bool]) -> list[bool]:
        """For each flag, whether some rank has set it."""
        count = torch.tensor(flags, dtype=torch.int64)
        if self._group.group is not None:
            with explain_lost_rank("an agreement of the ranks", self._timeout):
                dist.all_reduce(count, group=self._group.group)
        return [bool(number) for number in count.tolist()]

    def largest(self, value: int) -> int:
        """The largest `value` of all ranks."""
        most = torch.tensor(value, dtype=torch.int64)
        if self._group.group is not None:
            with explain_lost_rank("an agreement of the ranks", self._timeout):
                dist.all_reduce(most, op=dist.ReduceOp.MAX, group=self._group.group)
        return int(most.item())

    def together(self, what: str, work: Callable[[], T]) -> T:
        """Do this rank's part of what one may be hours longer at than another; see [`RankGroup.together`]."""
        return self._group.together(what, work)

    def on_main(self, function: Callable[[], T], what: str) -> T:
        """Run `function` on rank 0; see [`RankGroup.on_main`]."""
        return self._group.on_main(function, what)

    def gather(self, value: Any) -> list[Any]:
        """Every rank's `value`, in the order of the ranks."""
        if self._group.group is None:
            return [value]
        gathered: list[Any] = [None] * self._group.world_size
        with explain_lost_rank("gather what the ranks keep", self._timeout):
            dist.all_gather_object(gathered, value, group=self._group.group)
        return gathered
