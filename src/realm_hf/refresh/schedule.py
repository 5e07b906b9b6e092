"""When a snapshot is taken, when the loop swaps, and what it does when the index grows too old: one call per optimizer
step.

    refresh = RefreshScheduler(refresher, coordinator, refresh_steps=500, max_staleness=1500, on_stale="wait")
    refresh.start(0, model.embedder)
    for step in ...:
        ...
        swap = refresh.after_step(step, model.embedder)

Staleness is counted in optimizer steps: the current step minus that of the snapshot behind the served generation. It
is the same number on all ranks, so that all take the same decision without asking each other. Waiting is polling:
every rank goes round the same little loop, the ranks meet in the swap's tiny all-reduce and never inside a build. A
wait goes on as long as somebody works on a newer index, and ends with an error when nobody has for an hour.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from transformers.utils import logging

from realm_hf.refresh.base import Refresher, RefreshError
from realm_hf.refresh.swap import Swap, SwapCoordinator
from realm_hf.runs.snapshot_schedule import SnapshotSchedule

if TYPE_CHECKING:
    from realm_hf.models.modeling_realm import RealmEmbedder

logger = logging.get_logger(__name__)

OnStale = Literal["continue", "wait", "sync"]

_WAIT_NOTE_SECONDS = 30.0
_LOOK_SECONDS = 1.0
# Newer generations in a row that some rank could not open, after which no further one is waited for.
_MAX_SWAP_FAILURES = 10

WAIT_TIMEOUT_SECONDS = 3600.0
"""Longest that "wait" waits while nobody is seen to work on a newer index: time for a person or a scheduler to start a
builder again. A build at work may take longer."""


class RefreshScheduler:
    """
    Drives a refresher and a swap coordinator from the training loop. Every rank makes the same calls.

    Args:
        refresher ([`Refresher`]): The refresh mode.
        coordinator ([`SwapCoordinator`]): Keeps the ranks on one generation.
        refresh_steps (`int` or [`SnapshotSchedule`]): A snapshot is submitted every so many optimizer steps, or when
            the schedule says so.
        max_staleness (`int`, *optional*): Steps that the served generation may be behind, or `None` for no limit.
        on_stale (`OnStale`, *optional*, defaults to `"continue"`): What to do beyond `max_staleness`: "continue" (warn
            once a generation), "wait" (stop training until a newer generation is served) or "sync" (all ranks build
            one now).
        poll_seconds (`float`, *optional*, defaults to 0.02): Pause between two looks while waiting.
        wait_timeout (`float`, *optional*, defaults to 3600.0): Seconds that "wait" waits while nobody is seen to
            work on a newer index.

    Raises:
        ValueError: `max_staleness` is smaller than the time between two snapshots, which no refresh could ever keep.
    """

    def __init__(
        self,
        refresher: Refresher,
        coordinator: SwapCoordinator,
        *,
        refresh_steps: int | SnapshotSchedule,
        max_staleness: int | None = None,
        on_stale: OnStale = "continue",
        poll_seconds: float = 0.02,
        wait_timeout: float = WAIT_TIMEOUT_SECONDS,
    ):
        schedule = SnapshotSchedule.every(refresh_steps) if isinstance(refresh_steps, int) else refresh_steps
        if schedule.shortest < 1:
            raise ValueError(
                f"refresh_steps is {refresh_steps}, but must be at least 1; refresh='off' switches it off."
            )
        if max_staleness is not None and max_staleness < schedule.longest:
            raise ValueError(
                f"max_staleness is {max_staleness} steps but a snapshot is taken only every {schedule.longest} "
                "(refresh_steps): the index would always be too old. Raise max_staleness or lower refresh_steps."
            )
        if on_stale not in ("continue", "wait", "sync"):
            raise ValueError(f"on_stale is {on_stale!r}. Choose one of: continue, wait, sync.")
        self.refresher = refresher
        self.coordinator = coordinator
        self.schedule = schedule
        self.max_staleness = max_staleness
        self.on_stale = on_stale
        self.poll_seconds = poll_seconds
        self.wait_timeout = wait_timeout
        self.waited_seconds = 0.0
        self._submitted_step = -1
        self._warned_of: str | None = None

    def start(self, step: int, embedder: RealmEmbedder, generation: str | None = None) -> Swap:
        """
        Serve the first generation: the named one (resuming), or one built now from `embedder` by all ranks.

        Args:
            step (`int`): The optimizer step at which training begins or goes on.
            embedder ([`RealmEmbedder`]): The weights to build from if `generation` is `None`.
            generation (`str`, *optional*): The name of a complete generation to serve, the same on all ranks.

        Raises:
            SwapFailed: Some rank could not open it.
        """
        self.refresher.start()
        if generation is None:
            info = self.refresher.build(step, embedder)
            generation = info.name if info is not None else None
        return self._note(self.coordinator.swap_now(generation, step))

    def staleness(self, step: int) -> int:
        """Steps from the snapshot behind the served generation to `step`."""
        generation = self.coordinator.generation
        if generation is None:
            raise RuntimeError("No index generation is served yet: call start() before the first step.")
        return step - generation.info.snapshot_step

    def after_step(
        self, step: int, embedder: RealmEmbedder, *, interrupted: Callable[[], bool] = lambda: False
    ) -> Swap | None:
        """
        Submit a snapshot if one is due, swap if all ranks are ready, and keep the staleness budget.

        Args:
            step (`int`): The optimizer step just made, counted from 1.
            embedder ([`RealmEmbedder`]): The embedder as it is now.
            interrupted (`Callable[[], bool]`, *optional*, defaults to `lambda: False`): Ends a wait early when it is
                true on any rank: a caught SIGTERM.

        Returns:
            `Swap`, *optional*: The swap, if the served generation changed at this step; its step is the same on all
            ranks.

        Raises:
            RefreshError: The index cannot be refreshed, or a wait for a newer one was in vain; every rank raises it.
        """
        mode = self.refresher.mode
        if mode != "off" and self.schedule.is_due(step):
            self.refresher.submit(step, embedder)
            self._submitted_step = step
            if mode == "sync":
                return self._swap_now(step)
        swap = self._look(step)
        if mode == "off" or self.max_staleness is None or self.staleness(step) <= self.max_staleness:
            return swap
        if self.on_stale == "sync":
            return self._build_now(step, embedder)
        if self.on_stale == "wait":
            return self._wait(step, embedder, interrupted) or swap
        self._warn(step)
        return swap

    def stop(self) -> None:
        """End the builder and drop what is being opened; the served generation is closed."""
        self.refresher.stop()
        self.coordinator.close()

    def _look(self, step: int) -> Swap | None:
        info = self.refresher.poll()
        swap = self.coordinator.tick(info.name if info is not None else None, step)
        return None if swap is None else self._note(swap)

    def _swap_now(self, step: int) -> Swap:
        info = self.refresher.poll()
        return self._note(self.coordinator.swap_now(info.name if info is not None else None, step))

    def _build_now(self, step: int, embedder: RealmEmbedder) -> Swap:
        logger.warning("step %d: the index is %d steps old; all ranks build a new one now", step, self.staleness(step))
        info = self.refresher.build(step, embedder)
        return self._note(self.coordinator.swap_now(info.name if info is not None else None, step))

    def _wait(self, step: int, embedder: RealmEmbedder, interrupted: Callable[[], bool]) -> Swap | None:
        assert self.max_staleness is not None
        # A snapshot that is itself too old would be waited for in vain.
        if step - self._submitted_step > self.max_staleness:
            self.refresher.submit(step, embedder)
            self._submitted_step = step
        wait = _Wait(self, step)
        logger.warning("step %d: the index is %d steps old; waiting for a newer one", step, self.staleness(step))
        swap = None
        while self.staleness(step) > self.max_staleness:
            if self.coordinator.any_rank(interrupted() or wait.is_in_vain()):
                wait.require_hope()
                break
            time.sleep(self.poll_seconds)
            swap = self._look(step) or swap
        self.waited_seconds += time.monotonic() - wait.started
        return swap

    def _warn(self, step: int) -> None:
        generation = self.coordinator.generation
        if generation is not None and self._warned_of != generation.name:
            self._warned_of = generation.name
            logger.warning(
                "step %d: %s is %d steps old (max_staleness=%s); training goes on with it",
                step,
                generation.name,
                self.staleness(step),
                self.max_staleness,
            )

    def _note(self, swap: Swap) -> Swap:
        self.refresher.mark_served(swap.generation.info)
        return swap


class _Wait:
    """
    One wait for a newer index: whether anybody still works on one, logged every half minute.

    Args:
        refresh ([`RefreshScheduler`]): What waits.
        step (`int`): The optimizer step at which it waits.
    """

    def __init__(self, refresh: RefreshScheduler, step: int):
        self.refresh = refresh
        self.step = step
        self.started = time.monotonic()
        self._warned_at = self._looked_at = self._seen_at = self.started
        self._failures_before = len(refresh.coordinator.failures)
        self._steps_before = (-1, -1)
        self._reason: str | None = None

    def is_in_vain(self) -> bool:
        """Look, once a second; rank 0 sees the builders, so that it decides."""
        now = time.monotonic()
        coordinator = self.refresh.coordinator
        if coordinator.rank != 0 or now - self._looked_at < min(_LOOK_SECONDS, self.refresh.wait_timeout):
            return False
        self._looked_at = now
        health = self.refresh.refresher.check_health()
        steps = (health.submitted_step, health.built_step)
        if health.building or coordinator.pending is not None or steps != self._steps_before:
            self._seen_at, self._steps_before = now, steps
        dropped = len(coordinator.failures) - self._failures_before
        if now - self._seen_at > self.refresh.wait_timeout:
            self._reason = f"nobody has been seen to build one for {now - self._seen_at:.0f} s"
        elif dropped >= _MAX_SWAP_FAILURES:
            last = coordinator.failures[-1]
            self._reason = f"{dropped} newer ones could not be opened, the last because of {last.reasons}"
        if now - self._warned_at > _WAIT_NOTE_SECONDS:
            self._warned_at = now
            logger.warning("still waiting for a newer index (%.0f s so far): %s", now - self.started, health)
        return self._reason is not None

    def require_hope(self) -> None:
        """Raise on all ranks if rank 0 gave up; every rank calls it at the same point."""
        if not self.refresh.coordinator.any_rank(self._reason is not None):
            return
        health = self.refresh.refresher.check_health()
        trouble = f" Last trouble: {health.last_error}." if health.last_error else ""
        raise RefreshError(
            f"Step {self.step}: the index is {self.refresh.staleness(self.step)} steps old "
            f"(max_staleness={self.refresh.max_staleness}), and a newer one was waited for in vain: "
            f"{self._reason or 'rank 0 gave up, its output says why'}.{trouble} See to the builders "
            "(refresh='external': realm-hf build-index --watch RUN), then resume; or resume with on_stale='sync' or "
            "'continue', or a larger max_staleness."
        )
