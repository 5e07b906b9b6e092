"""The refresh modes and how to choose one. [`Refresher`] says what the training loop sees of them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from transformers.utils import logging

from realm_hf.generations.store import GenerationInfo
from realm_hf.refresh.async_refresh import AsyncRefresher
from realm_hf.refresh.base import Refresher, RefreshError, RefreshHealth, RefreshMode
from realm_hf.refresh.store_refresher import SnapshotRefresher, StoreRefresher
from realm_hf.runs.directory import RunDirectory
from realm_hf.runs.heartbeat import FleetMonitor

if TYPE_CHECKING:
    from accelerate import Accelerator

    from realm_hf.models.modeling_realm import RealmEmbedder

__all__ = [
    "AsyncRefresher",
    "ExternalRefresher",
    "OffRefresher",
    "RefreshError",
    "RefreshHealth",
    "RefreshMode",
    "Refresher",
    "SyncRefresher",
    "make_refresher",
]

logger = logging.get_logger(__name__)

_LOOK_SECONDS = 1.0


class OffRefresher(StoreRefresher):
    """Refresh "off": the first index serves to the end (the paper's ablation of stale indexes, table 2)."""

    mode: RefreshMode = "off"

    def submit(self, step: int, embedder: RealmEmbedder) -> None:
        """Nothing is refreshed."""


class SyncRefresher(StoreRefresher):
    """Refresh "sync": all ranks build between two steps. Slow and deterministic: what "async" is compared with."""

    mode: RefreshMode = "sync"

    def submit(self, step: int, embedder: RealmEmbedder) -> None:
        """Build before returning."""
        self.build(step, embedder)


class ExternalRefresher(SnapshotRefresher):
    """Refresh "external": builders that were started elsewhere watch the run directory; here one only looks.

    Args:
        run: See [`StoreRefresher`].
        accelerator: See [`StoreRefresher`].
        heartbeat_timeout: Seconds without any builder's progress after which its absence is told, once a minute.
        retry_seconds: See [`SnapshotRefresher`].
        max_failures: See [`SnapshotRefresher`]; here it is the snapshots' writes that count. A builder that failed
            more often in a row is not taken to be building any more.
        keep_generations: See [`StoreRefresher`].
        build_threads: See [`StoreRefresher`].
    """

    mode: RefreshMode = "external"

    def __init__(
        self,
        run: RunDirectory,
        accelerator: Accelerator,
        *,
        heartbeat_timeout: float = 120.0,
        retry_seconds: float = 1.0,
        max_failures: int | None = 10,
        keep_generations: int | None = 2,
        build_threads: int | None = None,
    ):
        super().__init__(
            run,
            accelerator,
            retry_seconds=retry_seconds,
            max_failures=max_failures,
            keep_generations=keep_generations,
            build_threads=build_threads,
        )
        self._written_step = -1
        self.heartbeat_timeout = heartbeat_timeout
        self._fleet = FleetMonitor(run.heartbeats)
        self._next_look = 0.0
        self._told_at = 0.0

    def poll(self) -> GenerationInfo | None:
        """On rank 0 the newest generation of this epoch that is newer than the served one.

        Raises:
            RefreshError: More than `max_failures` snapshots in a row could not be written, another trainer has taken
                the run over, or the embedder's weights are NaN.
        """
        now = time.monotonic()
        if self.rank == 0 and now >= self._next_look:
            self._next_look = now + _LOOK_SECONDS
            self._check_commits()
            if self._committed_step > self._written_step:
                self._written_step = self._committed_step
                self._succeed()
            self._require_own_epoch()
            self._look_for_newest()
            silent = self._fleet.silent_seconds()
            if self._committed_step > self._built_step() and silent > self.heartbeat_timeout and now > self._told_at:
                self._told_at = now + 60.0
                logger.warning(
                    "no index builder has been seen at work on %s for %.0f s; start one with: realm-hf build-index "
                    "--watch %s",
                    self.run.root,
                    silent,
                    self.run.root,
                )
        return super().poll()

    def check_health(self) -> RefreshHealth:
        """How the refresh is doing."""
        silent = self._fleet.silent_seconds()
        beat = self._fleet.building(self.heartbeat_timeout, self.max_failures)
        failing = self._fleet.failing()
        return RefreshHealth(
            mode="external",
            building=beat is not None,
            builder_pid=None if beat is None else beat.pid,
            heartbeat_age_seconds=silent,
            submitted_step=self._submitted_step,
            built_step=self._built_step(),
            failures=self._failures if failing is None else max(self._failures, failing.failures),
            last_error=self._last_error if failing is None else f"builder on {failing.host}: {failing.error}",
            snapshot_seconds=self._snapshot_seconds,
            commit_seconds=self._commit_seconds,
        )


def make_refresher(
    mode: RefreshMode,
    run: RunDirectory,
    accelerator: Accelerator,
    *,
    builder_threads: int = 1,
    build_threads: int | None = None,
    index_threads: int | None = None,
    builder_device: str = "cpu",
    builder_nice: int = 0,
    heartbeat_timeout: float = 120.0,
    max_failures: int | None = 10,
    keep_generations: int | None = 2,
) -> Refresher:
    """Choose a refresh mode. Every rank calls it at the same point.

    Args:
        mode: "sync", "async", "external" or "off".
        run: The run directory; on rank 0 the very object whose lock is held.
        accelerator: Tells rank, number of ranks and device.
        builder_threads: Processor threads of the builder ("async").
        build_threads: Threads of the index where this process builds it, and training stands still; FAISS's own by
            default.
        index_threads: Threads of the index in the builder ("async"); `builder_threads` by default.
        builder_device: The builder's device ("async").
        builder_nice: Added to the builder's niceness ("async"). On a processor that training keeps busy, 10 leaves the
            builder about a tenth of a core's time and 0 an equal share: the trade of step time for staleness.
        heartbeat_timeout: Seconds without progress after which a builder is replaced ("async") or missed ("external").
        max_failures: Failed builds ("async") or writes of a snapshot ("async" and "external") in a row after which
            training ends; `None` for no limit.
        keep_generations: How many of the newest generations stay on disk; `None` keeps all.

    Raises:
        ValueError: There is no such mode, or a value is out of range.
    """
    if mode == "async":
        return AsyncRefresher(
            run,
            accelerator,
            builder_threads=builder_threads,
            index_threads=index_threads,
            builder_device=builder_device,
            builder_nice=builder_nice,
            heartbeat_timeout=heartbeat_timeout,
            max_failures=max_failures,
            keep_generations=keep_generations,
            build_threads=build_threads,
        )
    if mode == "external":
        return ExternalRefresher(
            run,
            accelerator,
            heartbeat_timeout=heartbeat_timeout,
            max_failures=max_failures,
            keep_generations=keep_generations,
            build_threads=build_threads,
        )
    if mode == "sync":
        return SyncRefresher(run, accelerator, keep_generations=keep_generations, build_threads=build_threads)
    if mode == "off":
        return OffRefresher(run, accelerator, keep_generations=keep_generations, build_threads=build_threads)
    raise ValueError(f"refresh is {mode!r}. Choose one of: sync, async, external, off.")
