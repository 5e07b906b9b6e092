"""The ranks that do something together, or wait for one that does it; each knows that those it waits for are at work.

Work that takes hours on one rank (training an index, writing it) is never waited for inside a collective: beside it a
thread of every rank meets the others ten times a second in a tiny all-reduce that says who is done, who failed and who
has made no progress. So a rank that dies, fails or hangs ends the work on all ranks, with an error that says which. A
timeout of days was rejected: a stopped rank held the job for as long. The meetings go over gloo on CPU tensors: they
neither wait for a GPU's queue nor disturb it, and NCCL, which gives up after ten minutes, has no part in them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from transformers.utils import logging

from realm_hf.refresh.base import RefreshError
from realm_hf.refresh.process_groups import STEP_TIMEOUT, LostRank, explain_lost_rank, step_group

logger = logging.get_logger(__name__)

Result = TypeVar("Result")

STALL_SECONDS = 1800.0
"""Longest without any sign of work of a rank that is not done. One that syncs tens of gigabytes to a slow disk gives
none for minutes."""
_MEETING_SECONDS = 0.1
_NOTE_SECONDS = 60.0
# Processor seconds that count as work.
_WORK_CPU_SECONDS = 0.01


class RankGroup:
    """
    The ranks of a job.

    Args:
        rank (`int`, *optional*, defaults to 0): This process's rank.
        world_size (`int`, *optional*, defaults to 1): Number of ranks; with more than one, constructing it is a
            collective call.
        stall_seconds (`float`, *optional*, defaults to 1800.0): Seconds without progress after which a rank that is
            not done counts as hanging.
        meeting_timeout (`timedelta`, *optional*, defaults to 10 minutes): Longest that a rank's process
            may give no answer at all.
    """

    def __init__(
        self,
        rank: int = 0,
        world_size: int = 1,
        *,
        stall_seconds: float = STALL_SECONDS,
        meeting_timeout: timedelta = STEP_TIMEOUT,
    ):
        self.rank = rank
        self.world_size = world_size
        self.stall_seconds = stall_seconds
        self.meeting_timeout = meeting_timeout
        self.group = step_group(meeting_timeout) if world_size > 1 else None
        self._meetings: Meetings | None = None

    @classmethod
    def of_all_ranks(cls, stall_seconds: float = STALL_SECONDS) -> RankGroup:
        """
        All ranks of this job, or this process alone; every rank calls it at the same point.

        Args:
            stall_seconds (`float`, *optional*, defaults to 1800.0): As above.
        """
        if not dist.is_initialized():
            return cls()
        return cls(dist.get_rank(), dist.get_world_size(), stall_seconds=stall_seconds)

    def on_main(self, function: Callable[[], Result], what: str) -> Result:
        """
        Let rank 0 do something while the others wait; its result, or its error, is everybody's.

        Without this an error on rank 0 would leave the others in a collective until it times out.

        Args:
            function (`Callable[[], Result]`): Its result is pickled to the other ranks.
            what (`str`): What it does, for messages: "write the checkpoint".

        Raises:
            RefreshError: Rank 0 hangs, or was lost.
        """
        if self.group is None:
            return function()

        def work() -> tuple[Result | None, Exception | None]:
            if self.rank != 0:
                return None, None
            try:
                return function(), None
            except Exception as error:  # noqa: BLE001 - raised again on every rank below
                return None, error

        outcome = [self.together(what, work)]
        with explain_lost_rank(f"hear how rank 0 could {what}", self.meeting_timeout):
            dist.broadcast_object_list(outcome, src=0, group=self.group)
        result, error = outcome[0]
        if error is not None:
            raise error
        return result  # type: ignore[return-value]

    def together(self, what: str, work: Callable[[], Result]) -> Result:
        """
        Do this rank's part of something; every rank calls it, and all return when all are done.

        Args:
            what (`str`): What is done, for messages: "embedding".
            work (`Callable[[], Result]`): This rank's part; no collective call of this group. It may take hours as
                long as it uses the processor or calls [`mark`].

        Raises:
            RefreshError: Another rank failed, or a rank hangs; its reason is in the message.
            LostRank: Another rank ended, or gave no answer.
        """
        if self.group is None:
            return work()
        self._meetings = Meetings(self, what)
        try:
            result = work()
        except BaseException as error:
            self._meetings.end(f"{type(error).__name__}: {error}")
            raise
        else:
            self._meetings.end(None)
            self._meetings.require_all_well()
            return result
        finally:
            self._meetings = None

    def mark(self) -> None:
        """
        Record that work was done, from inside `work`; cheap enough for every batch.

        Raises:
            RefreshError: Another rank has failed meanwhile: there is no use in going on.
        """
        if self._meetings is not None:
            self._meetings.marks += 1
            self._meetings.require_all_well()

    def broadcast(self, text: str) -> str:
        """Rank 0's text, on all ranks; they come to it within minutes of one another."""
        texts = [text]
        if self.group is not None:
            with explain_lost_rank("the broadcast of rank 0", self.meeting_timeout):
                dist.broadcast_object_list(texts, src=0, group=self.group)
        return texts[0]


class Meetings:
    """
    The meetings of the ranks beside one piece of work, in a thread of this rank.

    Args:
        ranks ([`RankGroup`]): The ranks.
        what (`str`): What is done, for messages.
    """

    def __init__(self, ranks: RankGroup, what: str):
        self.ranks = ranks
        self.what = what
        self.marks = 0
        self.failure: RefreshError | None = None
        self._reason: str | None = None
        self._done = threading.Event()
        self._processor_seconds = _clock_of_this_thread()
        self._thread = threading.Thread(target=self._meet_until_all_are_done, name=f"meet-{what}", daemon=True)
        self._thread.start()

    def end(self, reason: str | None) -> None:
        """This rank is done, or failed for a reason; returns when all are done or one failed."""
        self._reason = reason
        self._done.set()
        self._thread.join()  # its meetings have a timeout, and a rank that hangs ends them

    def require_all_well(self) -> None:
        """Raise what another rank failed with."""
        if self.failure is not None:
            raise self.failure

    def _meet_until_all_are_done(self) -> None:
        try:
            with explain_lost_rank(f"a meeting beside {self.what}", self.ranks.meeting_timeout):
                self._meet()
        except LostRank as error:
            self.failure = error

    def _meet(self) -> None:
        marks, work, moved_at = -1, 0.0, time.monotonic()
        warned_at = started = time.monotonic()
        while True:
            now, used = time.monotonic(), self._processor_seconds()
            if marks != self.marks or used - work > _WORK_CPU_SECONDS:
                marks, work, moved_at = self.marks, used, now
            done, failed, silent = self._exchange(0.0 if self._done.is_set() else now - moved_at)
            if any(failed):
                self.failure = self._hear_reasons()
                return
            if all(done):
                return
            if max(silent) > self.ranks.stall_seconds:
                rank = silent.index(max(silent))
                self.failure = RefreshError(
                    f"Rank {rank} has made no progress with {self.what} for {silent[rank]:.0f} s, so it is given up: "
                    f"does the file system answer? End the job, and resume from the newest checkpoint."
                )
                return
            if now - warned_at > _NOTE_SECONDS:
                warned_at = now
                missing = ", ".join(str(rank) for rank, ready in enumerate(done) if not ready)
                logger.warning("%s: %.0f s so far, ranks at work: %s", self.what, now - started, missing)
            self._done.wait(_MEETING_SECONDS)
            if self._done.is_set():
                time.sleep(_MEETING_SECONDS / 10)

    def _exchange(self, silent: float) -> tuple[list[bool], list[bool], list[float]]:
        """For each rank whether it is done, whether it failed, and its seconds without progress."""
        state = torch.zeros(3, self.ranks.world_size, dtype=torch.float64)
        is_done = self._done.is_set()
        state[:, self.ranks.rank] = torch.tensor([float(is_done), float(is_done and self._reason is not None), silent])
        dist.all_reduce(state, group=self.ranks.group)
        done, failed, silences = state.tolist()
        return [value > 0 for value in done], [value > 0 for value in failed], silences

    def _hear_reasons(self) -> RefreshError:
        reasons: list[str | None] = [None] * self.ranks.world_size
        dist.all_gather_object(reasons, self._reason if self._done.is_set() else None, group=self.ranks.group)
        by_rank = "; ".join(f"rank {rank}: {reason}" for rank, reason in enumerate(reasons) if reason is not None)
        return RefreshError(f"The ranks could not go on together, {self.what} failed ({by_rank}).")


def _clock_of_this_thread() -> Callable[[], float]:
    """Reads this thread's processor time from any thread. The whole process's would not do: a meeting uses some."""
    if not hasattr(time, "pthread_getcpuclockid"):  # macOS
        return time.process_time
    clock = time.pthread_getcpuclockid(threading.get_ident())
    return lambda: time.clock_gettime(clock)
