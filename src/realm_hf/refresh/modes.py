"""The refresh modes and how to choose one. [`Refresher`] says what the training loop sees of them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from transformers.utils import logging

from realm_hf.generations.store import GenerationInfo
from realm_hf.refresh.base import Refresher, RefreshHealth, RefreshMode
from realm_hf.refresh.builder_process import Build, BuilderProcess
from realm_hf.refresh.store_refresher import MAX_FAILURES, SnapshotRefresher, StoreRefresher
from realm_hf.runs.directory import RunDirectory
from realm_hf.runs.heartbeat import FleetMonitor

if TYPE_CHECKING:
    from accelerate import Accelerator

    from realm_hf.models.modeling_realm import RealmEmbedder

logger = logging.get_logger(__name__)

HEARTBEAT_TIMEOUT_SECONDS = 120.0
"""Seconds without progress after which a builder is replaced ("async") or reported missing ("external")."""
_LOOK_SECONDS = 1.0
_SUPERVISION_SECONDS = 0.1


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
    """
    Refresh "external": builders that were started elsewhere watch the run directory; here one only looks.

    Args:
        run ([`RunDirectory`]): See [`StoreRefresher`].
        accelerator (`Accelerator`): See [`StoreRefresher`].
        retry_seconds (`float`, *optional*, defaults to 1.0): See [`SnapshotRefresher`].
        max_failures (`int`, *optional*, defaults to 10): See [`SnapshotRefresher`]; here it is the snapshots' writes
            that count. A builder that failed more often in a row is not taken to be building any more.
        keep_generations (`int`, *optional*, defaults to 2): See [`StoreRefresher`].
        build_threads (`int`, *optional*): See [`StoreRefresher`].
    """

    mode: RefreshMode = "external"

    def __init__(
        self,
        run: RunDirectory,
        accelerator: Accelerator,
        *,
        retry_seconds: float = 1.0,
        max_failures: int | None = MAX_FAILURES,
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
        self._fleet = FleetMonitor(run.heartbeats)
        self._next_look = 0.0
        self._warned_at = 0.0

    def poll(self) -> GenerationInfo | None:
        """
        On rank 0 the newest generation of this epoch that is newer than the served one.

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
            if (
                self._committed_step > self._built_step()
                and silent > HEARTBEAT_TIMEOUT_SECONDS
                and now > self._warned_at
            ):
                self._warned_at = now + 60.0
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
        beat = self._fleet.building(HEARTBEAT_TIMEOUT_SECONDS, self.max_failures)
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


class AsyncRefresher(SnapshotRefresher):
    """
    Refresh "async": one builder process beside the trainer makes a generation of the newest snapshot, and is replaced
    when it dies or hangs.

    It is watched inside `poll()`, a few system calls every tenth of a second: no thread can race with the training
    loop, and a loop that does not poll does not need a new index.

    Args:
        run ([`RunDirectory`]): See [`StoreRefresher`].
        accelerator (`Accelerator`): See [`StoreRefresher`].
        builder_threads (`int`, *optional*, defaults to 1): Processor threads of the builder.
        index_threads (`int`, *optional*, defaults to `builder_threads`): Those of its index.
        builder_device (`str`, *optional*, defaults to `"cpu"`): Its device, such as `"cuda:1"`, or several:
            `"cuda:1,cuda:2"` has a process on each, which build one generation together.
        heartbeat_timeout (`float`, *optional*, defaults to 120.0): Seconds without progress after which a builder is
            killed and replaced.
        retry_seconds (`float`, *optional*, defaults to 1.0): See [`SnapshotRefresher`].
        max_failures (`int`, *optional*, defaults to 10): See [`SnapshotRefresher`].
        keep_generations (`int`, *optional*, defaults to 2): See [`StoreRefresher`].
        build_threads (`int`, *optional*): See [`StoreRefresher`].

    Raises:
        ValueError: `builder_threads` is less than 1.
    """

    mode: RefreshMode = "async"

    def __init__(
        self,
        run: RunDirectory,
        accelerator: Accelerator,
        *,
        builder_threads: int = 1,
        index_threads: int | None = None,
        builder_device: str = "cpu",
        heartbeat_timeout: float = HEARTBEAT_TIMEOUT_SECONDS,
        retry_seconds: float = 1.0,
        max_failures: int | None = MAX_FAILURES,
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
        if builder_threads < 1:
            raise ValueError(f"builder_threads is {builder_threads}, but must be at least 1.")
        self.builder_threads = builder_threads
        self.index_threads = index_threads
        self.builder_device = builder_device
        self.heartbeat_timeout = heartbeat_timeout
        self._builder: BuilderProcess | None = None
        self._next_look = 0.0
        self._stopped = False

    def start(self) -> None:
        """Start the builder; it loads its libraries beside the first steps."""
        if self.rank == 0 and self._builder is None:
            self._builder = self._spawn()

    def poll(self) -> GenerationInfo | None:
        """
        Supervise the builder; on rank 0 the newest generation of this epoch that is newer than the served one.

        Raises:
            RefreshError: More than `max_failures` builds failed in a row, another trainer has taken the run over, or
                the embedder's weights are NaN.
        """
        if self.rank == 0 and not self._stopped and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + _SUPERVISION_SECONDS
            self._check_commits()
            self._supervise()
        return super().poll()

    def check_health(self) -> RefreshHealth:
        """How the refresh is doing."""
        build = None if self._builder is None else self._builder.build
        return RefreshHealth(
            mode="async",
            building=build is not None,
            builder_pid=None if build is None else build.pid,
            heartbeat_age_seconds=None if build is None else build.monitor.silent_seconds(),
            submitted_step=self._submitted_step,
            built_step=self._built_step(),
            failures=self._failures,
            last_error=self._last_error,
            snapshot_seconds=self._snapshot_seconds,
            commit_seconds=self._commit_seconds,
        )

    def stop(self) -> None:
        """End the builder, wherever it stands, and finish the snapshot that is being written."""
        self._stopped = True
        super().stop()
        if self._builder is not None:
            self._builder.stop()
            self._builder = None

    def _supervise(self) -> None:
        builder = self._builder
        if builder is not None:
            builder.look()
            if not builder.is_alive:
                self._replace(builder, builder.describe_end())
            elif builder.build is not None:
                self._watch(builder, builder.build)
        if time.monotonic() < self._retry_at:
            return
        if self._builder is None:
            try:
                self._builder = self._spawn()
            except OSError as error:  # no room for its log, no process to be had: both may pass
                self._fail(f"the index builder could not be started: {error}")
                return
        if self._builder.build is None and self._committed_step > self._built_step():
            self._builder.request()

    def _watch(self, builder: BuilderProcess, build: Build) -> None:
        if build.status is None:
            if builder.silent_seconds() > self.heartbeat_timeout:
                self._replace(
                    builder,
                    f"No progress for {self.heartbeat_timeout:.0f} s, so it is killed. {build.describe_failure()}",
                )
            return
        builder.build = None
        build.monitor.path.unlink(missing_ok=True)
        if not self._has_built():
            self._fail(build.describe_failure())

    def _replace(self, builder: BuilderProcess, why: str) -> None:
        self._builder = None
        builder.kill()
        if not self._has_built():
            self._fail(why)

    def _has_built(self) -> bool:
        """Whether a generation appeared. It counts, not the exit code: a builder may be killed after the commit."""
        built_before = self._built_step()
        self._look_for_newest()
        if self._built_step() <= built_before:
            return False
        self._succeed()
        return True

    def _newest_is_gone(self, newest: GenerationInfo) -> None:
        self._look_for_newest()
        self._fail(f"generation {newest.name} was taken out of the store: some rank could not open it")

    def _spawn(self) -> BuilderProcess:
        return BuilderProcess(
            self.run,
            threads=self.builder_threads,
            index_threads=self.index_threads,
            device=self.builder_device,
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
    keep_generations: int | None = 2,
) -> Refresher:
    """
    Choose a refresh mode. Every rank calls it at the same point.

    Args:
        mode (`RefreshMode`): "sync", "async", "external" or "off".
        run ([`RunDirectory`]): The run directory; on rank 0 the object whose lock is held.
        accelerator (`Accelerator`): Its rank, number of ranks and device count.
        builder_threads (`int`, *optional*, defaults to 1): Processor threads of the builder ("async").
        build_threads (`int`, *optional*): Threads of the index where this process builds it, and training stands
            still; FAISS's own by default.
        index_threads (`int`, *optional*): Threads of the index in the builder ("async"); `builder_threads` by default.
        builder_device (`str`, *optional*, defaults to `"cpu"`): The builder's device, or several with commas between
            them ("async").
        keep_generations (`int`, *optional*, defaults to 2): How many of the newest generations stay on disk; `None`
            keeps all.

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
            keep_generations=keep_generations,
            build_threads=build_threads,
        )
    if mode == "external":
        return ExternalRefresher(run, accelerator, keep_generations=keep_generations, build_threads=build_threads)
    if mode == "sync":
        return SyncRefresher(run, accelerator, keep_generations=keep_generations, build_threads=build_threads)
    if mode == "off":
        return OffRefresher(run, accelerator, keep_generations=keep_generations, build_threads=build_threads)
    raise ValueError(f"refresh is {mode!r}. Choose one of: sync, async, external, off.")
