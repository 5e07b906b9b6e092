"""When a snapshot is taken, when the loop swaps, and what it does when the index grows too old: one call per optimizer
step.

    refresh = IndexRefresh(refresher, coordinator, refresh_steps=500, max_staleness=1500, on_stale="wait")
    refresh.start(0, model.embedder)
    for step in ...:
        ...
        swap = refresh.after_step(step, model.embedder)

Staleness is counted in optimizer steps: the current step minus that of the snapshot behind the served generation. It
is the same number on all ranks, so that all take the same decision without asking each other. Waiting is polling:
every rank goes round the same little loop, the ranks meet in the swap's tiny all-reduce and never inside a build.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from transformers.utils import logging

from realm_hf.refresh.modes import Refresher
from realm_hf.refresh.swap import Swap, SwapCoordinator

if TYPE_CHECKING:
    from realm_hf.modeling_realm import RealmEmbedder

logger = logging.get_logger(__name__)

OnStale = Literal["continue", "wait", "sync"]

_WAIT_NOTE_SECONDS = 30.0


class IndexRefresh:
    """Drives a refresher and a swap coordinator from the training loop. Every rank makes the same calls.

    Args:
        refresher: The refresh mode.
        coordinator: Keeps the ranks on one generation.
        refresh_steps: A snapshot is submitted every so many optimizer steps.
        max_staleness: Steps that the served generation may be behind, or `None` for no limit.
        on_stale: What to do beyond `max_staleness`: "continue" (warn once a generation), "wait" (stop training until a
            newer generation is served) or "sync" (all ranks build one now).
        poll_seconds: Pause between two looks while waiting.

    Raises:
        ValueError: `max_staleness` is smaller than `refresh_steps`, which no refresh could ever keep.
    """

    def __init__(
        self,
        refresher: Refresher,
        coordinator: SwapCoordinator,
        *,
        refresh_steps: int,
        max_staleness: int | None = None,
        on_stale: OnStale = "continue",
        poll_seconds: float = 0.02,
    ):
        if refresh_steps < 1:
            raise ValueError(
                f"refresh_steps is {refresh_steps}, but must be at least 1; refresh='off' switches it off."
            )
        if max_staleness is not None and max_staleness < refresh_steps:
            raise ValueError(
                f"max_staleness is {max_staleness} steps but a snapshot is taken only every {refresh_steps} "
                "(refresh_steps): the index would always be too old. Raise max_staleness or lower refresh_steps."
            )
        if on_stale not in ("continue", "wait", "sync"):
            raise ValueError(f"on_stale is {on_stale!r}. Choose one of: continue, wait, sync.")
        self.refresher = refresher
        self.coordinator = coordinator
        self.refresh_steps = refresh_steps
        self.max_staleness = max_staleness
        self.on_stale = on_stale
        self.poll_seconds = poll_seconds
        self.waited_seconds = 0.0
        self._submitted_step = -1
        self._warned_of: str | None = None

    def start(self, step: int, embedder: RealmEmbedder, generation: str | None = None) -> Swap:
        """Serve the first generation: the named one (resuming), or one built now from `embedder` by all ranks.

        Args:
            step: The optimizer step at which training begins or goes on.
            embedder: The weights to build from if `generation` is `None`.
            generation: The name of a complete generation to serve, the same on all ranks.

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
        """Submit a snapshot if one is due, swap if all ranks are ready, and keep the staleness budget.

        Args:
            step: The optimizer step just made, counted from 1.
            embedder: The embedder as it is now.
            interrupted: Ends a wait early when it is true on any rank: a caught SIGTERM.

        Returns:
            The swap, if the served generation changed at this step; its step is the same on all ranks.
        """
        mode = self.refresher.mode
        if mode != "off" and step % self.refresh_steps == 0:
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
        started = told = time.monotonic()
        logger.warning("step %d: the index is %d steps old; waiting for a newer one", step, self.staleness(step))
        swap = None
        while self.staleness(step) > self.max_staleness and not self.coordinator.any_rank(interrupted()):
            time.sleep(self.poll_seconds)
            swap = self._look(step) or swap
            if time.monotonic() - told > _WAIT_NOTE_SECONDS:
                told = time.monotonic()
                logger.warning("still waiting for a newer index: %s", self.refresher.check_health())
        self.waited_seconds += time.monotonic() - started
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
