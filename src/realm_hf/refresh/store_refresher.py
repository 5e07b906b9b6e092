"""What the refresh modes share: building with all ranks, committing snapshots beside training, looking for what is
newest.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from functools import cached_property, partial
from typing import TYPE_CHECKING

import torch
from transformers.utils import logging

from realm_hf.data.passages.store import PassageStore
from realm_hf.generations.manifest import newest_generation
from realm_hf.generations.store import GenerationInfo, GenerationStore
from realm_hf.refresh.background import Background
from realm_hf.refresh.base import RefreshError, RefreshHealth, RefreshMode
from realm_hf.refresh.build import build_generation, builds_of, snapshot_of_build
from realm_hf.refresh.process_groups import explain_broken_connection
from realm_hf.refresh.rank_group import RankGroup
from realm_hf.runs.directory import RunDirectory
from realm_hf.runs.snapshots import (
    collect_snapshots,
    copy_embedder_state,
    load_snapshot,
    read_snapshot,
    snapshot_name,
    write_snapshot,
)
from realm_hf.storage.directories import retire_directory

if TYPE_CHECKING:
    from accelerate import Accelerator

    from realm_hf.models.modeling_realm import RealmEmbedder

logger = logging.get_logger(__name__)

MAX_FAILURES = 10
"""Failures in a row after which training ends."""
_MAX_BACKOFF_SECONDS = 300.0
_STOP_SECONDS = 300.0
"""Longest that the end of a run waits for the disk: a snapshot of gigabytes on a slow one takes a minute or two."""
_STOP_NOTE_SECONDS = 10.0


class StoreRefresher:
    """
    Base of all modes. Every rank constructs one at the same point; only rank 0 writes and looks.

    Args:
        run ([`RunDirectory`]): The run directory; on rank 0 the object whose lock is held, so that its epoch is
            this trainer's.
        accelerator (`Accelerator`): Its rank, number of ranks and device count.
        keep_generations (`int`, *optional*, defaults to 2): How many of the newest generations stay on disk, with
            the snapshots behind them, beside those that are served, leased or named by a checkpoint; `None` keeps all.
        build_threads (`int`, *optional*): Threads of the index where this process builds it, while training stands
            still; FAISS's own by default.
    """

    mode: RefreshMode

    def __init__(
        self,
        run: RunDirectory,
        accelerator: Accelerator,
        *,
        keep_generations: int | None = 2,
        build_threads: int | None = None,
    ):
        if keep_generations is not None and keep_generations < 1:
            raise ValueError(f"keep_generations is {keep_generations}, but must be at least 1, or None to keep all.")
        self.run = run
        self.store = GenerationStore(run.index)
        self.rank = accelerator.process_index
        self.device: torch.device = accelerator.device
        self.keep_generations = keep_generations
        self.build_threads = build_threads
        self._ranks = RankGroup(self.rank, accelerator.num_processes)
        self._served: GenerationInfo | None = None
        self._newest: GenerationInfo | None = None
        # One thread for all that reaches the disk: snapshots in their order, then the removal of what they replace.
        self._background = Background("refresh")

    @cached_property
    def passages(self) -> PassageStore:
        """RUN/passages, opened at the first build."""
        return PassageStore.load(self.run.passages)

    def start(self) -> None:
        """Make ready."""

    def build(self, step: int, embedder: RealmEmbedder) -> GenerationInfo | None:
        """
        Build a generation from `embedder` now, on all ranks together, and return it on rank 0 (`None` elsewhere).

        Every rank embeds its shard with the weights as the snapshot holds them: the rows can be recomputed from it, a
        sharded model needs no collective calls here, and neither mode nor gradients of the live model are touched.
        """
        with explain_broken_connection("gather the weights of the snapshot"):
            state = copy_embedder_state(embedder)
        name = snapshot_name(step, self.run.config.epoch)

        def write() -> None:
            if self.rank == 0:
                self._require_own_epoch()
                write_snapshot(self.run, embedder, step, self.run.config.epoch, state=state)

        self._ranks.together(f"writing the snapshot of step {step}", write)
        state.clear()
        snapshot = read_snapshot(self.run, self._ranks.broadcast(name))
        info = build_generation(
            self.run,
            snapshot,
            self._ranks.together(f"loading {snapshot.name}", lambda: load_snapshot(self.run, snapshot, self.device)),
            passages=self.passages,
            store=self.store,
            device=self.device,
            ranks=self._ranks,
            index_threads=self.build_threads,
        )
        if info is not None:
            self._newest = info
        return info

    def poll(self) -> GenerationInfo | None:
        """On rank 0 the newest generation of this epoch that is newer than the served one."""
        if self._newest is not None and not (self.store.root / self._newest.name).exists():
            self._newest_is_gone(self._newest)
        newest = self._newest
        if newest is None or (self._served is not None and newest.snapshot_step <= self._served.snapshot_step):
            return None
        return newest

    def mark_served(self, info: GenerationInfo) -> None:
        """Note which generation is served now; what it replaces is removed in the background."""
        self._served = info
        if self.rank == 0 and self.keep_generations is not None:
            self._background.submit(partial(self._collect, info.name, self.keep_generations))

    def check_health(self) -> RefreshHealth:
        """How the refresh is doing."""
        return RefreshHealth(mode=self.mode, built_step=self._built_step())

    def stop(self) -> None:
        """Finish what is being written, for a few minutes at the longest."""
        started = time.monotonic()
        while not self._background.close(_STOP_NOTE_SECONDS):
            waited = time.monotonic() - started
            if waited > _STOP_SECONDS:
                logger.error(
                    "the disk of %s has not finished a write for %.0f s: it is left incomplete there, which no reader "
                    "sees; a later run removes it.",
                    self.run.root,
                    waited,
                )
                return
            logger.warning(
                "waiting for the disk of %s to finish what is being written (%.0f s so far)", self.run.root, waited
            )

    def _built_step(self) -> int:
        return -1 if self._newest is None else self._newest.snapshot_step

    def _look_for_newest(self) -> None:
        """Read the store; generations of another epoch come from a trainer that was replaced and are passed over."""
        self._newest = newest_generation(self.store.list(), epoch=self.run.config.epoch)

    def _newest_is_gone(self, newest: GenerationInfo) -> None:
        """The newest generation is never collected: some rank could not open it, and rank 0 has quarantined it."""
        logger.warning("generation %s was taken out of the store", newest.name)
        self._look_for_newest()

    def _require_own_epoch(self) -> None:
        epoch = self.run.read_epoch()
        if epoch != self.run.config.epoch:
            raise RefreshError(
                f"{self.run.root} has been taken over by another trainer (epoch {epoch}, this one has "
                f"{self.run.config.epoch}): this trainer must end."
            )

    def _collect(self, served: str, keep_generations: int) -> None:
        try:
            place = self.run.place
            self.store.collect({served} | self.run.named_by_checkpoints(), keep_newest=keep_generations, place=place)
            behind = {snapshot_name(info.snapshot_step, info.epoch) for info in self.store.list()}
            collect_snapshots(self.run, behind)
            for build in builds_of(self.store).glob("step-*"):
                # Left by builders that were killed; without its snapshot nobody goes on with it.
                if not (self.run.snapshots / snapshot_of_build(build)).exists():
                    retire_directory(build, place)
        except (OSError, ValueError) as error:
            logger.warning("old generations could not be removed: %s", error)


class SnapshotRefresher(StoreRefresher):
    """
    Base of the modes in which somebody else builds: a snapshot is copied between two steps and committed beside them.
    One that cannot be written is kept in memory and written again after a pause, unless a newer one has come.

    Args:
        run ([`RunDirectory`]): See [`StoreRefresher`].
        accelerator (`Accelerator`): See [`StoreRefresher`].
        retry_seconds (`float`, *optional*, defaults to 1.0): Pause after the first failure; doubled with each
            further one, up to five minutes.
        max_failures (`int`, *optional*, defaults to 10): Failures in a row after which `poll()` raises; `None` for
            no limit.
        keep_generations (`int`, *optional*, defaults to 2): See [`StoreRefresher`].
        build_threads (`int`, *optional*): See [`StoreRefresher`].
    """

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
        super().__init__(run, accelerator, keep_generations=keep_generations, build_threads=build_threads)
        self.retry_seconds = retry_seconds
        self.max_failures = max_failures
        self._failures = 0
        self._last_error: str | None = None
        self._retry_at = 0.0
        self._write_again_at = 0.0
        self._submitted_step = -1
        self._committed_step = -1
        self._snapshot_seconds = 0.0
        self._commit_seconds = 0.0
        self._commits: list[Future[None]] = []
        self._pending: tuple[int, dict[str, torch.Tensor], RealmEmbedder] | None = None
        self._pending_lock = threading.Lock()

    def submit(self, step: int, embedder: RealmEmbedder) -> None:
        """Copy the weights now; a thread makes a snapshot of them. One that still waits for the disk is replaced."""
        started = time.monotonic()
        with explain_broken_connection("gather the weights of the snapshot"):
            state = copy_embedder_state(embedder)
        if self.rank == 0:
            self._require_own_epoch()
            with self._pending_lock:
                self._pending = (step, state, embedder)
            if started >= self._write_again_at:
                self._commits.append(self._background.submit(self._commit))
            self._submitted_step = step
        self._snapshot_seconds = time.monotonic() - started

    def check_health(self) -> RefreshHealth:
        """How the refresh is doing."""
        return RefreshHealth(
            mode=self.mode,
            submitted_step=self._submitted_step,
            built_step=self._built_step(),
            failures=self._failures,
            last_error=self._last_error,
            snapshot_seconds=self._snapshot_seconds,
            commit_seconds=self._commit_seconds,
        )

    def _commit(self) -> None:
        with self._pending_lock:
            pending, self._pending = self._pending, None
        if pending is None:
            return  # a later submission was committed in place of this one
        step, state, embedder = pending
        started = time.monotonic()
        try:
            write_snapshot(self.run, embedder, step, self.run.config.epoch, state=state)
        except OSError:
            with self._pending_lock:
                self._pending = self._pending or pending
            raise
        self._commit_seconds = time.monotonic() - started
        self._committed_step = step

    def _check_commits(self) -> None:
        """
        Look at how the writes of snapshots went. A full disk may pass: what could not be written is written again
        after a pause. Weights that are NaN do not.

        Raises:
            RefreshError: Too many writes failed in a row, one failed for another reason than the disk, or another
                trainer has taken the run over.
        """
        done = [commit for commit in self._commits if commit.done()]
        self._commits = [commit for commit in self._commits if not commit.done()]
        for commit in done:
            error = commit.exception()
            if isinstance(error, OSError):
                self._require_own_epoch()
                self._fail(f"the snapshot could not be written: {error}")
                self._write_again_at = self._retry_at
            elif error is not None:
                raise RefreshError(str(error)) from error
        if not self._commits and self._pending is not None and time.monotonic() >= self._write_again_at:
            self._commits.append(self._background.submit(self._commit))

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

    def _succeed(self) -> None:
        self._failures = 0
        self._last_error = None
