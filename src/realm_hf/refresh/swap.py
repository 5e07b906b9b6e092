"""Two-phase swap: all ranks begin to search a new index generation at the same optimizer step, and none ever waits for
it.

Phase one: rank 0 proposes a generation, every rank opens it in a background thread while training goes on. Phase two:
one tiny all-reduce a step counts the ranks that have opened it; at the first step at which all are ready, all swap; if
any failed, all drop it and rank 0 quarantines it. A barrier at the proposal was rejected: the slowest file system
would stop every rank for as long as it takes to read gigabytes.

The all-reduce runs over a gloo group of its own, on CPU tensors, so that it never forces a GPU to finish its queue. No
wait is without an end: a rank that has not opened a generation in time says that it failed, and one that does not come
to the all-reduce ends training with an error that says so.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from transformers.utils import logging

from realm_hf.refresh.opening import OPEN_TIMEOUT_SECONDS, Opening
from realm_hf.refresh.process_groups import STEP_TIMEOUT, explain_lost_rank, step_group

if TYPE_CHECKING:
    from accelerate import Accelerator

    from realm_hf.generations.store import Generation

logger = logging.get_logger(__name__)

_WAIT_NOTE_SECONDS = 30.0


class SwapFailed(RuntimeError):  # noqa: N818 - it is the event that is named
    """A generation that had to be served at once could not be opened on every rank."""


@dataclass(frozen=True)
class Swap:
    """
    A generation that every rank begins to serve at this step.

    Args:
        generation ([`Generation`]): The opened generation; the coordinator closes it after its successor took over and
            its readers left.
        name (`str`): Its name.
        step (`int`): Optimizer step of the swap.
        proposed_at_step (`int`): Optimizer step at which the ranks began to open it.
        open_seconds (`float`): Seconds that this rank's thread took to open it.
        pending_seconds (`float`): Seconds from the proposal to the swap, by this rank's clock.
        staleness_steps (`int`): `step` minus the step of the snapshot behind it, at the moment of the swap.
    """

    generation: Generation
    name: str
    step: int
    proposed_at_step: int
    open_seconds: float
    pending_seconds: float
    staleness_steps: int


@dataclass(frozen=True)
class SwapFailure:
    """
    A proposal that was dropped by all ranks.

    Args:
        name (`str`): The generation's name.
        step (`int`): Optimizer step at which it was dropped.
        reasons (`dict[int, str]`): Rank -> what went wrong there.
    """

    name: str
    step: int
    reasons: dict[int, str]

    @property
    def by_rank(self) -> str:
        """The reasons as one line."""
        return "; ".join(f"rank {rank}: {reason}" for rank, reason in self.reasons.items())


class _HeldGeneration:
    """A generation, and how many searches hold it open; a retired one is closed when the last of them is done."""

    def __init__(self, generation: Generation):
        self.generation = generation
        self.readers = 0
        self.retired = False


class SwapCoordinator:
    """
    Keeps all ranks on one generation.

    Every rank constructs one at the same point (with more than one process that is a collective call) and calls
    [`tick`] once per optimizer step. Searches go through [`reading`], which keeps the generation open until the search
    is done:

        with coordinator.reading() as generation:
            scores, rows = search(generation.index, queries, k)

    Args:
        accelerator (`Accelerator`): Its `process_index` and `num_processes` count; with one process there is no
            communication.
        open_generation (`Callable[[str], Generation]`): Opens a generation by name; runs in a background thread.
        quarantine (`Callable[[str, str], None]`, *optional*): Called on rank 0 with the name and the reason of a
            generation that some rank could not open.
        open_timeout (`float`, *optional*, defaults to 1800.0): Seconds after which a rank that is still opening a
            generation counts as failed.
        meeting_timeout (`timedelta`, *optional*, defaults to 10 minutes): Longest that one rank may come
            later than another to a meeting.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        open_generation: Callable[[str], Generation],
        quarantine: Callable[[str, str], None] | None = None,
        *,
        open_timeout: float = OPEN_TIMEOUT_SECONDS,
        meeting_timeout: timedelta = STEP_TIMEOUT,
    ):
        self.rank = accelerator.process_index
        self.world_size = accelerator.num_processes
        self.failures: list[SwapFailure] = []
        self._open_generation = open_generation
        self._quarantine = quarantine
        self._opening: Opening | None = None
        self._served: _HeldGeneration | None = None
        self._readers_lock = threading.Lock()
        self._open_timeout = open_timeout
        self._meeting_timeout = meeting_timeout
        self._group = step_group(meeting_timeout) if self.world_size > 1 else None

    @property
    def generation(self) -> Generation | None:
        """The served generation; search it inside [`reading`] only."""
        return None if self._served is None else self._served.generation

    @property
    def pending(self) -> str | None:
        """The name of the generation that the ranks are opening."""
        return None if self._opening is None else self._opening.name

    def tick(self, proposal: str | None, step: int) -> Swap | None:
        """
        One step of the protocol; every rank calls it once per optimizer step, at the same steps.

        Args:
            proposal (`str`, *optional*): On rank 0 the newest generation that should be served (ignored while another
                is being opened and if it is served already); the other ranks' value is not read.
            step (`int`): The optimizer step, the same on all ranks.

        Returns:
            `Swap`, *optional*: On all ranks in the same call: the generation to serve from now on. Else `None`.

        Raises:
            LostRank: Another rank ended, or did not come in time.
        """
        opening = self._opening
        ready, failed = (False, False) if opening is None else opening.look()
        name, ready_ranks, failed_ranks = self._exchange(self._fresh(proposal), step, ready=ready, failed=failed)
        if opening is None:
            if name:
                self._opening = Opening(name, step, self._open_generation, self._open_timeout)
            return None
        if failed_ranks:
            self._drop(opening, step)
            return None
        return self._serve(opening, step) if ready_ranks == self.world_size else None

    def swap_now(self, proposal: str | None, step: int) -> Swap:
        """
        Open and serve a generation before the next step: the first one of a run, or in "sync" mode.

        Every rank calls it; a proposal that is still pending is settled first.

        Raises:
            SwapFailed: Some rank could not open it; the reasons of all ranks are in the message.
            LostRank: Another rank ended, or did not come in time.
        """
        if self.rank == 0 and proposal is None:
            raise ValueError("swap_now needs a generation's name on rank 0, got None")
        self._settle(step)
        failures = len(self.failures)
        self.tick(proposal, step)
        if not self._is_opening():
            raise SwapFailed(f"Generation {proposal} is served already: there is nothing to swap to at step {step}.")
        swap = self._settle(step)
        if swap is not None:
            return swap
        assert len(self.failures) > failures
        failure = self.failures[-1]
        raise SwapFailed(f"Generation {failure.name} could not be opened on every rank ({failure.by_rank}).")

    def any_rank(self, flag: bool) -> bool:
        """
        Whether `flag` is true on any rank; every rank calls it at the same point (a caught SIGTERM, a wait to end).

        Raises:
            LostRank: Another rank ended, or did not come in time.
        """
        if self._group is None:
            return flag
        count = torch.tensor([int(flag)], dtype=torch.int32)
        with explain_lost_rank("a meeting between two steps", self._meeting_timeout):
            dist.all_reduce(count, op=dist.ReduceOp.SUM, group=self._group)
        return bool(count.item())

    @contextmanager
    def reading(self) -> Iterator[Generation]:
        """
        Hold the served generation open for the time of a search; safe in any thread.

        Raises:
            RuntimeError: No generation is served yet.
        """
        with self._readers_lock:
            served = self._served
            if served is None:
                raise RuntimeError("No index generation is served yet: call swap_now() before the first search.")
            served.readers += 1
        try:
            yield served.generation
        finally:
            with self._readers_lock:
                served.readers -= 1
                last_one_out = served.retired and served.readers == 0
            if last_one_out:
                served.generation.close()

    def close(self) -> None:
        """Drop a pending proposal and release the served generation once its readers have left."""
        if self._opening is not None:
            self._opening.abandon()
            self._opening = None
        self._replace(None)

    def _fresh(self, proposal: str | None) -> str:
        served = self._served is not None and self._served.generation.name == proposal
        return "" if proposal is None or served or self._opening is not None or self.rank != 0 else proposal

    def _exchange(self, name: str, step: int, *, ready: bool, failed: bool) -> tuple[str, int, int]:
        """Rank 0's proposal (`""` for none), and on how many ranks the pending one is ready and has failed."""
        if self._group is None:
            return name, int(ready), int(failed)
        # Three numbers a step; a name travels only at the rare step at which rank 0 says that it has one.
        counts = torch.tensor([int(ready), int(failed), int(bool(name))], dtype=torch.int32)
        with explain_lost_rank(f"the swap's meeting at step {step}", self._meeting_timeout):
            dist.all_reduce(counts, op=dist.ReduceOp.SUM, group=self._group)
            ready_ranks, failed_ranks, is_proposed = counts.tolist()
            names = [name]
            if is_proposed:
                dist.broadcast_object_list(names, src=0, group=self._group)
        return names[0], ready_ranks, failed_ranks

    def _is_opening(self) -> bool:
        return self._opening is not None

    def _settle(self, step: int) -> Swap | None:
        """Tick until nothing is being opened, on all ranks equally often. The openings' deadlines end it."""
        swap = None
        warned_at = time.monotonic()
        while (opening := self._opening) is not None:
            swap = self.tick(None, step)
            if not self._is_opening():
                break
            time.sleep(0.002)
            if time.monotonic() - warned_at > _WAIT_NOTE_SECONDS:
                warned_at = time.monotonic()
                logger.warning(
                    "step %d: %.0f s so far for all ranks to open generation %s (at most %.0f s); it is %s here",
                    step,
                    warned_at - opening.started,
                    opening.name,
                    self._open_timeout,
                    "open" if opening.generation is not None else "not open yet",
                )
        return swap

    def _serve(self, opening: Opening, step: int) -> Swap:
        generation = opening.generation
        assert generation is not None
        self._opening = None
        self._replace(generation)
        swap = Swap(
            generation=generation,
            name=opening.name,
            step=step,
            proposed_at_step=opening.step,
            open_seconds=opening.seconds,
            pending_seconds=time.monotonic() - opening.started,
            staleness_steps=step - generation.info.snapshot_step,
        )
        logger.info("step %d: serving %s (opened in %.2f s)", step, swap.name, swap.open_seconds)
        return swap

    def _drop(self, opening: Opening, step: int) -> None:
        reasons = self._gather_reasons(opening.error)
        self._opening = None
        opening.abandon()
        failure = SwapFailure(name=opening.name, step=step, reasons=reasons)
        self.failures.append(failure)
        logger.warning("step %d: generation %s is dropped by all ranks (%s)", step, opening.name, failure.by_rank)
        if self.rank == 0 and self._quarantine is not None:
            try:
                self._quarantine(opening.name, failure.by_rank)
            except OSError as error:  # a full disk may pass; until then it is proposed and dropped again
                logger.error("generation %s could not be put into quarantine: %s", opening.name, error)

    def _gather_reasons(self, error: str | None) -> dict[int, str]:
        errors: list[str | None] = [error]
        if self._group is not None:
            errors = [None] * self.world_size
            with explain_lost_rank("the exchange of why a generation could not be opened", self._meeting_timeout):
                dist.all_gather_object(errors, error, group=self._group)
        return {rank: reason for rank, reason in enumerate(errors) if reason is not None}

    def _replace(self, generation: Generation | None) -> None:
        with self._readers_lock:
            old, self._served = self._served, None if generation is None else _HeldGeneration(generation)
            if old is None:
                return
            old.retired = True
            unread = old.readers == 0
        if unread:
            old.generation.close()
