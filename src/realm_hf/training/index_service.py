"""The index as a training loop uses it: served, refreshed, swapped, measured, and named in checkpoints."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch

from realm_hf.generations.store import GenerationError, GenerationStore
from realm_hf.models.fingerprints import state_fingerprint
from realm_hf.refresh.base import Refresher
from realm_hf.refresh.builder_device import build_bytes, check_on_all_ranks
from realm_hf.refresh.builder_options import devices_of
from realm_hf.refresh.modes import make_refresher
from realm_hf.refresh.schedule import RefreshScheduler
from realm_hf.refresh.swap import Swap, SwapCoordinator
from realm_hf.retriever.retriever import RealmRetriever
from realm_hf.runs.directory import RunDirectory
from realm_hf.runs.errors import RunDirectoryError
from realm_hf.runs.snapshots import copy_embedder_state, load_snapshot, read_snapshot, snapshot_name
from realm_hf.training.arguments import QueryEncoder, RefreshArguments
from realm_hf.training.build_time import BuildForecast, processor_build_seconds
from realm_hf.training.index_threads import IndexThreads
from realm_hf.training.optimization import uses_bfloat16
from realm_hf.training.prefetch import LiveIndex
from realm_hf.training.swap_probes import ProbeReport, SwapProbes

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase

    from realm_hf.data.passages.build import PassageStore
    from realm_hf.generations.store import Generation, GenerationInfo
    from realm_hf.models.modeling_realm import RealmEmbedder
    from realm_hf.retriever.candidates import CandidateSource

logger = logging.getLogger(__name__)


class IndexService:
    """Every rank holds one and makes the same calls at the same steps.

    Args:
        run ([`RunDirectory`]): The run directory.
        passages ([`PassageStore`]): The corpus.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        args ([`RefreshArguments`]): The refresh's arguments.
        accelerator (`accelerate.Accelerator`): Its process and device.
        probes ([`SwapProbes`]): Measures every swap, on the main process.
        query_encoder (`str`, *optional*, defaults to `"live"`): "snapshot" opens a generation together with the
            weights it was built from.
        candidate_source ([`CandidateSource`], *optional*): Finds candidates instead of the index.
    """

    def __init__(
        self,
        run: RunDirectory,
        passages: PassageStore,
        tokenizer: PreTrainedTokenizerBase,
        args: RefreshArguments,
        accelerator: Accelerator,
        probes: SwapProbes,
        query_encoder: QueryEncoder = "live",
        candidate_source: CandidateSource | None = None,
    ):
        self.run, self.passages, self.tokenizer, self.args = run, passages, tokenizer, args
        self.accelerator, self.probes, self.query_encoder = accelerator, probes, query_encoder
        self.candidate_source = candidate_source
        self.bf16 = uses_bfloat16(args, accelerator)
        local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
        self.threads = IndexThreads.of(args, accelerator.device.type, local_ranks)
        self.store = GenerationStore(run.index)
        self._reports: dict[str, ProbeReport | None] = {}
        self._refresh: RefreshScheduler | None = None
        self._forecast: BuildForecast | None = None

    @property
    def refresh(self) -> RefreshScheduler:
        """Snapshots, builds and swaps."""
        if self._refresh is None:
            raise RuntimeError("The index is not served yet: call start() first.")
        return self._refresh

    @property
    def refresher(self) -> Refresher:
        """The refresh mode at work."""
        return self.refresh.refresher

    @property
    def coordinator(self) -> SwapCoordinator:
        """Keeps the ranks on one generation."""
        return self.refresh.coordinator

    @property
    def is_building(self) -> bool:
        """Whether a generation is being built, as far as this rank sees."""
        return self.refresher.check_health().building

    @property
    def generation(self) -> str:
        """Name of the generation that is served."""
        with self.reading() as served:
            return served.name

    def submit(self, step: int, embedder: RealmEmbedder) -> None:
        """Hand a snapshot over to be built, beside those of `after_step`; on every rank."""
        self.refresher.submit(step, embedder)

    def keep(self, name: str) -> AbstractContextManager[Generation]:
        """Hold a generation open: no collection removes it meanwhile.

        Raises:
            GenerationNotFoundError: It is gone.
        """
        return self.store.open(name)

    def reading(self) -> AbstractContextManager[LiveIndex]:
        """Hold the served generation open for the time of a search."""
        return cast(AbstractContextManager[LiveIndex], self.coordinator.reading())

    def start(self, step: int, embedder: RealmEmbedder, name: str | None) -> dict[str, Any]:
        """Serve generation `name`, or one built now; returns the swap as the log has it.

        Args:
            step (`int`): Optimizer steps done.
            embedder ([`RealmEmbedder`]): The passage tower as it is now.
            name (`str`, *optional*): A generation that [`servable`] returned, the same on all ranks.

        Raises:
            ValueError: The builder's device cannot be used, or has too little memory left.
        """
        args = self.args
        if args.refresh == "async":
            needed = build_bytes(embedder, self.run.config.max_tokens_per_batch)
            check_on_all_ranks(args.builder_device, needed)
        self._forecast = self._forecast_builds(embedder)
        refresher = make_refresher(
            args.refresh,
            self.run,
            self.accelerator,
            builder_threads=args.builder_threads,
            build_threads=self.threads.build,
            index_threads=self.threads.builder,
            builder_device=args.builder_device,
            keep_generations=args.keep_generations or None,
        )
        # To the coordinator a generation is something with a name, a manifest and close().
        opener = cast("Callable[[str], Generation]", self._open)
        self._refresh = RefreshScheduler(
            refresher,
            SwapCoordinator(self.accelerator, opener, quarantine=partial(self.store.quarantine, place=self.run.place)),
            refresh_steps=args.snapshot_schedule,
            max_staleness=args.max_staleness,
            on_stale=args.on_stale,
        )
        swap = self._refresh.start(step, embedder, name)
        if self._forecast is None and name is None:
            self._forecast = self._forecast_on_card(swap.generation.info)
        if self._forecast is not None:
            self._forecast.begin()
        return self._event(swap)

    def resumed(self, name: str, step: int, embedder: RealmEmbedder, ended: bool) -> str | None:
        """What a resumed run serves; on the main process.

        Args:
            name (`str`): The checkpoint's generation.
            step (`int`): Its step.
            embedder ([`RealmEmbedder`]): The passage tower with its weights.
            ended (`bool`): No step is left: then rather the last index, which was built after that checkpoint.

        Returns:
            `None` where nothing can be served that fits.
        """
        if ended:
            weights = state_fingerprint(copy_embedder_state(embedder))
            for info in reversed(self.store.list()):
                if (info.snapshot_step, info.embedder_fingerprint) == (step, weights):
                    return self.servable(info.name)
        return self.servable(name)

    def servable(self, name: str) -> str | None:
        """`name`, if that generation can still be opened and its query weights are there, else `None`."""
        try:
            with self.store.open(name) as generation:
                if self.query_encoder == "snapshot":
                    info = generation.info
                    read_snapshot(self.run, snapshot_name(info.snapshot_step, info.epoch))
        except (OSError, GenerationError, RunDirectoryError) as error:
            logger.warning("%s cannot be served again (%s): the checkpoint's weights are indexed anew.", name, error)
            return None
        return name

    def after_step(self, step: int, embedder: RealmEmbedder, interrupted: Callable[[], bool]) -> dict[str, Any] | None:
        """Between two optimizer steps; returns the swap, if there was one, as the log has it."""
        if self._forecast is not None:
            self._forecast.step_done()
        swap = self.refresh.after_step(step, embedder, interrupted=interrupted)
        return None if swap is None else self._event(swap)

    def final(self, step: int, embedder: RealmEmbedder) -> dict[str, Any] | None:
        """Index the final weights and serve them, unless they are served already or nothing is ever refreshed."""
        if self.refresher.mode == "off" or self.refresh.staleness(step) == 0:
            return None
        info = self.refresher.build(step, embedder)
        swap = self.coordinator.swap_now(info.name if info is not None else None, step)
        self.refresher.mark_served(swap.generation.info)
        return self._event(swap)

    def state(self) -> dict[str, Any]:
        """For the checkpoint: names that collection must keep, and whether a snapshot waits to be built."""
        with self.reading() as served:
            info = served.info
        health = self.refresher.check_health()
        waits = health.submitted_step > info.snapshot_step
        return {
            "generation": info.name,
            "snapshot": snapshot_name(info.snapshot_step, info.epoch),
            "pending_snapshot": health.submitted_step if waits else None,
        }

    def stop(self) -> None:
        """End the builder and give the generation back."""
        if self._refresh is not None:
            self._refresh.stop()

    def _forecast_builds(self, embedder: RealmEmbedder) -> BuildForecast | None:
        """On the main process, with a builder beside training on the processor: that is timed on a few passages."""
        if self.args.builder_device != "cpu" or self.args.refresh != "async" or not self.accelerator.is_main_process:
            return None
        threads = self.args.builder_threads
        seconds = processor_build_seconds(
            embedder, self.passages, self.run.config, threads=threads, index_threads=self.threads.builder
        )
        return self._forecast_of(seconds, f"cpu, {threads} thread{'s' if threads > 1 else ''}")

    def _forecast_on_card(self, first: GenerationInfo) -> BuildForecast | None:
        """On the main process, with a builder on a card like those that have just built the first index together."""
        devices = devices_of(self.args.builder_device)
        alike = self.args.refresh == "async" and torch.device(devices[0]).type == self.accelerator.device.type != "cpu"
        if not alike or not self.accelerator.is_main_process:
            return None
        seconds = first.build_seconds * self.accelerator.num_processes / len(devices)
        return self._forecast_of(seconds, self.args.builder_device)

    def _forecast_of(self, seconds: float, builder: str) -> BuildForecast:
        args = self.args
        shortest = args.snapshot_schedule.shortest
        return BuildForecast(seconds, len(self.passages), builder, shortest, args.max_staleness)

    def _open(self, name: str) -> LiveIndex:
        """Open a generation with its retriever and query weights, and probe it; in a background thread."""
        generation = self.store.open(name)
        try:
            retriever = RealmRetriever.from_generation(
                self.passages, generation, self.tokenizer, threads=self.threads.search
            )
            retriever.candidate_source = self.candidate_source
            by_snapshot = self.query_encoder == "snapshot"
            probing = self.accelerator.is_main_process and bool(self.probes.queries)
            encoder = None
            if by_snapshot or probing:
                snapshot = snapshot_name(generation.info.snapshot_step, generation.info.epoch)
                encoder = load_snapshot(self.run, snapshot, self.accelerator.device)
            served = LiveIndex(generation, retriever, encoder if by_snapshot else None, bf16=self.bf16)
            if probing and encoder is not None:
                self._reports[name] = self._probe(served, encoder)
        except BaseException:
            generation.close()
            raise
        return served

    def _probe(self, new: LiveIndex, encoder: RealmEmbedder) -> ProbeReport | None:
        if self.coordinator.generation is None:
            return self.probes.measure(new, None, encoder)
        with self.reading() as old:
            return self.probes.measure(new, old, encoder)

    def _event(self, swap: Swap) -> dict[str, Any]:
        info = swap.generation.info
        report = self._reports.pop(swap.name, None)
        return {
            "event": "swap",
            "name": swap.name,
            "snapshot_step": info.snapshot_step,
            "builder_pid": info.builder_pid,
            "swapped_at_step": swap.step,
            "staleness_steps": swap.staleness_steps,
            "proposed_at_step": swap.proposed_at_step,
            "open_seconds": swap.open_seconds,
            "pending_seconds": swap.pending_seconds,
            "build_seconds": info.build_seconds,
            **(asdict(report) if report is not None else {}),
        }
