"""Refresh "async": a builder process for each generation beside the trainer, watched from the training loop's polls.

Supervision happens inside `poll()`, a few system calls every tenth of a second: no thread can race with the training
loop, and a loop that does not poll does not need a new index.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from transformers.utils import logging

from realm_hf.index.generations import GenerationInfo
from realm_hf.refresh.builder_process import Build, BuilderProcess
from realm_hf.refresh.refresher import RefreshError, RefreshHealth, RefreshMode
from realm_hf.refresh.run_directory import RunDirectory
from realm_hf.refresh.store_refresher import SnapshotRefresher

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.get_logger(__name__)

_LOOK_SECONDS = 0.1
_MAX_BACKOFF_SECONDS = 300.0


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
        retry_seconds: Pause after the first failure; doubled with each further one, up to five minutes.
        max_failures: Failures in a row after which `poll()` raises; `None` for no limit.
        keep_generations: See [`StoreRefresher`].
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
    ):
        super().__init__(run, accelerator, keep_generations=keep_generations)
        if builder_threads < 1:
            raise ValueError(f"builder_threads is {builder_threads}, but must be at least 1.")
        if not 0 <= builder_nice <= 19:
            raise ValueError(f"builder_nice is {builder_nice}, but niceness is added: choose one from 0 to 19.")
        self.builder_threads = builder_threads
        self.index_threads = index_threads
        self.builder_device = builder_device
        self.builder_nice = builder_nice
        self.heartbeat_timeout = heartbeat_timeout
        self.retry_seconds = retry_seconds
        self.max_failures = max_failures
        self._builder: BuilderProcess | None = None
        self._failures = 0
        self._last_error: str | None = None
        self._retry_at = 0.0
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
            trouble = self._check_commits()
            if trouble is not None:
                self._fail(trouble)
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
            self._builder = self._spawn()
        if self._builder.build is None and self._committed_step > self._built_step():
            self._builder.request()

    def _watch(self, builder: BuilderProcess, build: Build) -> None:
        if build.status is None:
            if builder.silent_seconds() > self.heartbeat_timeout:
                self._replace(
                    builder, f"No progress for {self.heartbeat_timeout:.0f} s, so it is killed. {build.describe()}"
                )
            return
        builder.build = None
        build.monitor.path.unlink(missing_ok=True)
        if not self._has_built():
            self._fail(build.describe())

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
        self._failures = 0
        self._last_error = None
        return True

    def _newest_is_gone(self, newest: GenerationInfo) -> None:
        self._look_for_newest()
        self._fail(f"generation {newest.name} was taken out of the store: some rank could not open it")

    def _fail(self, error: str) -> None:
        self._failures += 1
        self._last_error = error
        pause = min(_MAX_BACKOFF_SECONDS, self.retry_seconds * 2 ** (self._failures - 1))
        self._retry_at = time.monotonic() + pause
        if self.max_failures is not None and self._failures > self.max_failures:
            raise RefreshError(f"The index could not be refreshed {self._failures} times in a row. Last: {error}")
        logger.warning(
            "index refresh failed (%d in a row), next try in %.0f s, the old index serves on: %s",
            self._failures,
            pause,
            error,
        )

    def _spawn(self) -> BuilderProcess:
        return BuilderProcess(
            self.run,
            threads=self.builder_threads,
            index_threads=self.index_threads,
            device=self.builder_device,
            nice=self.builder_nice,
        )
