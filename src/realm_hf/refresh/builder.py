"""The index builder, a process of its own: `python -m realm_hf.refresh.builder RUN`, or `realm-hf build-index RUN`.

It is given a run directory and nothing else, builds the newest snapshot (older ones are skipped) and writes a
generation. The trainer's own builder ("async") is a fork of [`BuilderServer`] for every generation; a builder that was
started by hand ("external") watches the directory, alone or as the ranks of `accelerate launch`.

    exit code 0    a generation was built (--watch: it was asked to end)
              1    the build failed; the log ends with the traceback
              3    there was nothing to build
              4    the run directory cannot be used; the message says why
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
import uuid
from collections.abc import Sequence
from contextlib import ExitStack

import torch

from realm_hf.data.passages.store import PassageStore
from realm_hf.generations.store import GenerationInfo, GenerationStore
from realm_hf.index.faiss_search import set_faiss_threads
from realm_hf.index.threads import usable_cores
from realm_hf.refresh.build import build_generation
from realm_hf.refresh.builder_device import known_device
from realm_hf.refresh.builder_options import BuilderOptions, add_arguments
from realm_hf.refresh.priority import lower_priority
from realm_hf.refresh.rank_group import RankGroup
from realm_hf.runs.directory import RunDirectory
from realm_hf.runs.errors import RunDirectoryError
from realm_hf.runs.heartbeat import Heartbeat
from realm_hf.runs.snapshots import SnapshotInfo, latest_snapshot, leased_snapshot, load_snapshot, read_snapshot

logger = logging.getLogger("realm_hf.builder")

EXIT_BUILT = 0
EXIT_FAILED = 1
EXIT_NOTHING = 3
EXIT_UNUSABLE = 4

_MAX_BACKOFF_SECONDS = 300.0
_LOOKS = 5


class Builder:
    """
    Builds generations of one run.

    Args:
        run ([`RunDirectory`]): The run directory.
        name (`str`, *optional*): Names its heartbeat file; unique among the run's builders.
        device (`str`, *optional*, defaults to `"cpu"`): Where passages are embedded.
        ranks ([`RankGroup`], *optional*): The ranks that build together; this process alone by default.
        index_threads (`int`, *optional*): See [`build_generation`].
    """

    def __init__(
        self,
        run: RunDirectory,
        *,
        name: str | None = None,
        device: str = "cpu",
        ranks: RankGroup | None = None,
        index_threads: int | None = None,
    ):
        self.run = run
        self.index_threads = index_threads
        self.device = device
        self.ranks = ranks or RankGroup()
        self.passages = PassageStore.load(run.passages)
        self.store = GenerationStore(run.index)
        name = name or f"builder-{uuid.uuid4().hex[:12]}"
        run.heartbeats.mkdir(exist_ok=True)
        self.heartbeat = Heartbeat(run.heartbeats / f"{name}.json")

    def newest_unbuilt(self) -> SnapshotInfo | None:
        """The newest snapshot of the run's present epoch, unless its generation is complete already."""
        snapshot = latest_snapshot(self.run)
        if snapshot is None:
            return None
        built = {(info.epoch, info.snapshot_step) for info in self.store.list()}
        return None if (snapshot.epoch, snapshot.step) in built else snapshot

    def build_newest(self) -> GenerationInfo | None:
        """Build the newest snapshot; `None` if there is nothing to build (on other ranks than 0: always)."""
        with ExitStack() as lease:
            found = self.ranks.together("looking for a snapshot", lambda: self._lease_newest_unbuilt(lease))
            name = self.ranks.broadcast(found.name if found is not None else "")
            return self._build(name) if name else None

    def _lease_newest_unbuilt(self, lease: ExitStack) -> SnapshotInfo | None:
        """On rank 0 the newest unbuilt snapshot, which is kept from being collected until `lease` is closed."""
        for left in reversed(range(_LOOKS)):
            try:
                newest = self.newest_unbuilt() if self.ranks.rank == 0 else None
                return None if newest is None else lease.enter_context(leased_snapshot(self.run, newest.name))
            except FileNotFoundError:  # collected between two of these lines, as there is a newer one
                if not left:
                    raise
        raise AssertionError("unreachable")

    def _build(self, name: str) -> GenerationInfo | None:
        self.heartbeat.mark("starting", name)
        snapshot = read_snapshot(self.run, name)
        embedder = self.ranks.together(f"loading {name}", lambda: load_snapshot(self.run, snapshot, self.device))
        logger.info("building %s: %d passages on %s", name, len(self.passages), self.device)
        info = build_generation(
            self.run,
            snapshot,
            embedder,
            passages=self.passages,
            store=self.store,
            device=self.device,
            ranks=self.ranks,
            progress=lambda phase, done, total: self.heartbeat.mark(phase, name, done, total),
            index_threads=self.index_threads,
        )
        if info is not None:
            logger.info("built %s in %.1f s", info.name, info.build_seconds)
        return info

    def watch(self, poll_seconds: float) -> None:
        """Build every newest snapshot that appears, without end; a failed build is logged and tried again later."""
        failures = 0
        while True:
            pause = poll_seconds
            try:
                self.build_newest()
                failures = 0
                self.heartbeat.report_failure(0)
            except (OSError, RuntimeError, ValueError) as error:
                if self.ranks.world_size > 1:
                    raise  # the other ranks are in the middle of the build: only the launcher can start all anew
                failures += 1
                self.heartbeat.report_failure(failures, f"{type(error).__name__}: {error}")
                pause = min(_MAX_BACKOFF_SECONDS, poll_seconds * 2**failures)
                logger.exception("the build failed (%d in a row); trying again in %.0f s", failures, pause)
            deadline = time.monotonic() + pause
            while (left := deadline - time.monotonic()) > 0:
                self.heartbeat.mark("waiting")
                time.sleep(min(1.0, left))

    def close(self) -> None:
        """Stop the heartbeat."""
        self.heartbeat.stop()


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run a builder; returns its exit code."""
    return run(BuilderOptions.of(_parser().parse_args(arguments)))


def run(options: BuilderOptions) -> int:
    """Run a builder; returns its exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("realm_hf").setLevel(logging.INFO)
    if options.nice:
        lower_priority(os.getpid(), options.nice)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
        set_faiss_threads(options.threads)
    # A launcher leaves each rank one thread, but only the first of them builds the index, and the others wait for it.
    index_threads = options.index_threads or options.threads or usable_cores()
    try:
        directory = RunDirectory.open(options.run)
        known_device(options.device)
        ranks, device = _launched_ranks(options.device)
        builder = Builder(directory, name=options.name, device=device, ranks=ranks, index_threads=index_threads)
    except (RunDirectoryError, OSError, ValueError) as error:
        logger.error("%s", error)
        return EXIT_UNUSABLE
    try:
        return _watch(builder, options.poll_seconds) if options.watch else _once(builder)
    finally:
        builder.close()


def _once(builder: Builder) -> int:
    try:
        built = builder.build_newest()
    except (OSError, RuntimeError, ValueError):
        logger.exception("the build failed")
        return EXIT_FAILED
    if built is None and builder.ranks.rank == 0:
        logger.info("nothing to build: no snapshot of epoch %d lacks its generation", builder.run.read_epoch())
        return EXIT_NOTHING
    return EXIT_BUILT


def _watch(builder: Builder, poll_seconds: float) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    logger.info("watching %s", builder.run.root)
    try:
        builder.watch(poll_seconds)
    except KeyboardInterrupt:
        logger.info("asked to end")
    return EXIT_BUILT


def _launched_ranks(device: str) -> tuple[RankGroup, str]:
    """The ranks of `accelerate launch` or `torchrun`, if this is one of them, and this rank's device."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return RankGroup(), device
    from accelerate import PartialState

    # Without `cpu=True` accelerate takes several processes without a GPU for one process each.
    state = PartialState(cpu=device == "cpu")
    return RankGroup(state.process_index, state.num_processes), str(state.device)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m realm_hf.refresh.builder", description=__doc__.splitlines()[0])
    add_arguments(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
