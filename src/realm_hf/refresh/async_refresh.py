"""Refresh "async": a builder process for each generation beside the trainer, watched from the training loop's polls.

Supervision happens inside `poll()`, a few system calls every tenth of a second: no thread can race with the training
loop, and a loop that does not poll does not need a new index.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from transformers.utils import logging

from realm_hf.generations.store import GenerationInfo
from realm_hf.refresh.base import RefreshHealth, RefreshMode
from realm_hf.refresh.builder_process import Build, BuilderProcess
from realm_hf.refresh.store_refresher import SnapshotRefresher
from realm_hf.runs.directory import RunDirectory

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.get_logger(__name__)

_LOOK_SECONDS = 0.1


class AsyncRefresher(SnapshotRefresher):
    """Keeps one builder process and gives it the newest snapshot; restarts it when it dies or hangs.

    Args:
        run: See [`StoreRefresher`].
        accelerator: See [`StoreRefresher`].
        builder_threads: Processor threads of the builder.
        index_threads: Those of its index; `builder_threads` by default.
        builder_device: Its device, such as "cpu" or "cuda:1".
        builder_nice: Added to its niceness.
        heartbeat_timeout: Seconds without progress after which a builder is killed and replaced.
        retry_seconds: See [`SnapshotRefresher`].
        max_failures: See [`SnapshotRefresher`].
        keep_generations: See [`StoreRefresher`].
        build_threads: See [`StoreRefresher`].
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
        builder_nice: int = 0,
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
        if builder_threads < 1:
            raise ValueError(f"builder_threads is {builder_threads}, but must be at least 1.")
        if not 0 <= builder_nice <= 19:
            raise ValueError(f"builder_nice is {builder_nice}, but niceness is added: choose one from 0 to 19.")
        self.builder_threads = builder_threads
        self.index_threads = index_threads
        self.builder_device = builder_device
        self.builder_nice = builder_nice
        self.heartbeat_timeout = heartbeat_timeout
        self._builder: BuilderProcess | None = None
        self._next_look = 0.0
        self._stopped = False

    def start(self) -> None:
        """Start the builder; it loads its libraries beside the first steps."""
        if self.rank == 0 and self._builder is None:
            self._builder = self._spawn()

    def poll(self) -> GenerationInfo | None:
        """Supervise the builder; on rank 0 the newest generation of this epoch that is newer than the served one.

        Raises:
            RefreshError: More than `max_failures` builds failed in a row, another trainer has taken the run over, or
                the embedder's weights are NaN.
        """
        if self.rank == 0 and not self._stopped and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + _LOOK_SECONDS
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
            nice=self.builder_nice,
        )
