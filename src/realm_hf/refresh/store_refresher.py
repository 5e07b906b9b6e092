"""What the refresh modes share: building with all ranks, committing snapshots beside training, looking for what is
newest.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from transformers.utils import logging

from realm_hf.data.passage_store import PassageStore
from realm_hf.index.generations import GenerationInfo, GenerationStore
from realm_hf.index.manifest import newest_generation
from realm_hf.refresh.build import Team, build_generation
from realm_hf.refresh.refresher import RefreshError, RefreshHealth, RefreshMode
from realm_hf.refresh.run_directory import RunDirectory
from realm_hf.refresh.snapshots import (
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

    from realm_hf.modeling_realm import RealmEmbedder

logger = logging.get_logger(__name__)


class StoreRefresher:
    """Base of all modes. Every rank constructs one at the same point; only rank 0 writes and looks.

    Args:
        run: The run directory; on rank 0 the very object whose lock is held, so that its epoch is this trainer's.
        accelerator: Tells rank, number of ranks and device.
        keep_generations: How many of the newest generations stay on disk, with the snapshots behind them, beside those
            that are served, leased or named by a checkpoint; `None` keeps all.
    """

    mode: RefreshMode

    def __init__(self, run: RunDirectory, accelerator: Accelerator, *, keep_generations: int | None = 2):
        if keep_generations is not None and keep_generations < 1:
            raise ValueError(f"keep_generations is {keep_generations}, but must be at least 1, or None to keep all.")
        self.run = run
        self.store = GenerationStore(run.index)
        self.rank = accelerator.process_index
        self.device: torch.device = accelerator.device
        self.keep_generations = keep_generations
        self._team = Team(self.rank, accelerator.num_processes)
        self._served: GenerationInfo | None = None
        self._newest: GenerationInfo | None = None
        # One thread for all that reaches the disk: snapshots in their order, then the removal of what they replace.
        self._background = ThreadPoolExecutor(max_workers=1, thread_name_prefix="refresh")

    @cached_property
    def passages(self) -> PassageStore:
        """RUN/passages, opened at the first build."""
        return PassageStore.load(self.run.passages)

    def start(self) -> None:
        """Make ready."""

    def build(self, step: int, embedder: RealmEmbedder) -> GenerationInfo | None:
        """Build a generation from `embedder` now, on all ranks together, and return it on rank 0 (`None` elsewhere).

        Every rank embeds its shard with the weights as the snapshot holds them: the rows can be recomputed from it, a
        sharded model needs no collective calls here, and neither mode nor gradients of the live model are touched.
        """
        state = copy_embedder_state(embedder)
        name = snapshot_name(step, self.run.config.epoch)
        if self.rank == 0:
            self._require_own_epoch()
            name = write_snapshot(self.run, embedder, step, self.run.config.epoch, state=state).name
        del state
        name = self._team.share(name)
        snapshot = read_snapshot(self.run, name)
        info = build_generation(
            self.run,
            snapshot,
            load_snapshot(self.run, snapshot, self.device),
            passages=self.passages,
            store=self.store,
            device=self.device,
            team=self._team,
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
        """Tell which generation is served now; what it replaces is removed in the background."""
        self._served = info
        if self.rank == 0 and self.keep_generations is not None:
            self._background.submit(self._collect, info.name, self.keep_generations)

    def check_health(self) -> RefreshHealth:
        """How the refresh is doing."""
        return RefreshHealth(mode=self.mode, built_step=self._built_step())

    def wait(self, timeout: float) -> GenerationInfo | None:
        """Poll for up to `timeout` seconds; on other ranks than 0 it returns at once."""
        deadline = time.monotonic() + timeout
        while (info := self.poll()) is None and self.rank == 0 and time.monotonic() < deadline:
            time.sleep(0.02)
        return info

    def stop(self) -> None:
        """Finish what is being written."""
        self._background.shutdown(wait=True)

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
            for shares in self.run.shards.glob("*"):
                # Left by ranks that were killed, if their snapshot is gone: nobody would build it any more.
                if not (self.run.snapshots / shares.name.rpartition("-")[0]).exists():
                    retire_directory(shares, place)
        except (OSError, ValueError) as error:
            logger.warning("old generations could not be removed: %s", error)


class SnapshotRefresher(StoreRefresher):
    """Base of the modes in which somebody else builds: a snapshot is copied between two steps and committed beside
    them.
    """

    def __init__(self, run: RunDirectory, accelerator: Accelerator, *, keep_generations: int | None = 2):
        super().__init__(run, accelerator, keep_generations=keep_generations)
        self._submitted_step = -1
        self._committed_step = -1
        self._snapshot_seconds = 0.0
        self._commit_seconds = 0.0
        self._commits: list[Future[None]] = []
        self._mailbox: tuple[int, dict[str, torch.Tensor]] | None = None
        self._mailbox_lock = threading.Lock()

    def submit(self, step: int, embedder: RealmEmbedder) -> None:
        """Copy the weights now; a thread makes a snapshot of them. One that still waits for the disk is replaced."""
        started = time.monotonic()
        state = copy_embedder_state(embedder)
        if self.rank == 0:
            self._require_own_epoch()
            with self._mailbox_lock:
                self._mailbox = (step, state)
            self._commits.append(self._background.submit(self._commit, embedder))
            self._submitted_step = step
        self._snapshot_seconds = time.monotonic() - started

    def check_health(self) -> RefreshHealth:
        """How the refresh is doing."""
        return RefreshHealth(
            mode=self.mode,
            submitted_step=self._submitted_step,
            built_step=self._built_step(),
            snapshot_seconds=self._snapshot_seconds,
            commit_seconds=self._commit_seconds,
        )

    def _commit(self, embedder: RealmEmbedder) -> None:
        with self._mailbox_lock:
            letter, self._mailbox = self._mailbox, None
        if letter is None:
            return  # a later submission was committed in place of this one
        step, state = letter
        started = time.monotonic()
        write_snapshot(self.run, embedder, step, self.run.config.epoch, state=state)
        self._commit_seconds = time.monotonic() - started
        self._committed_step = step

    def _check_commits(self) -> str | None:
        """What went wrong with snapshots since the last look: a full disk may pass, weights that are NaN do not."""
        done = [commit for commit in self._commits if commit.done()]
        self._commits = [commit for commit in self._commits if not commit.done()]
        trouble = None
        for commit in done:
            error = commit.exception()
            if isinstance(error, OSError):
                trouble = f"the snapshot could not be written: {error}"
            elif error is not None:
                raise RefreshError(str(error)) from error
        return trouble
