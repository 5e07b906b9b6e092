"""Refreshing the index while training runs: what the training loop sees of it.

Four modes, one interface. "sync" embeds the corpus on all ranks between two steps (the deterministic twin), "async"
keeps a builder process beside the trainer, "external" leaves building to `realm-hf build-index --watch RUN` on any
machine, "off" never refreshes. The loop cannot tell them apart: it submits a snapshot every R steps, polls for a
finished generation, and hands that to the [`SwapCoordinator`].

    refresher = make_refresher("async", run, accelerator)
    refresher.start()
    first = refresher.build(0, embedder)                   # every rank; the run needs an index before its first search
    coordinator.swap_now(first.name if first else None, 0)
    ...
    if step % refresh_steps == 0:
        refresher.submit(step, embedder)                   # every rank
    info = refresher.poll()                                # every rank; an answer on rank 0 only
    swap = coordinator.tick(info.name if info else None, step)
    if swap is not None:
        refresher.mark_served(swap.generation.info)

(Section 3.3 of the paper: "asynchronously refresh the index by re-embedding and re-indexing all documents every
several hundred training steps".)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from realm_hf.generations.store import GenerationInfo
    from realm_hf.models.modeling_realm import RealmEmbedder

RefreshMode = Literal["sync", "async", "external", "off"]


class RefreshError(RuntimeError):
    """The index cannot be refreshed; the message holds the reason and the end of the builder's log."""


@dataclass(frozen=True)
class RefreshHealth:
    """
    How the refresh is doing, for the log.

    Args:
        mode (`RefreshMode`): "sync", "async", "external" or "off".
        building (`bool`, *optional*, defaults to `False`): Whether a generation is being built now, as far as can be
            seen from here.
        builder_pid (`int`, *optional*): Process id of the builder at work ("async"), or `None`.
        heartbeat_age_seconds (`float`, *optional*): Seconds since a builder was last seen to make progress, by this
            process's monotonic clock.
        submitted_step (`int`, *optional*, defaults to -1): Step of the newest snapshot that was submitted, or -1.
        built_step (`int`, *optional*, defaults to -1): Snapshot step of the newest complete generation of this
            epoch, or -1.
        failures (`int`, *optional*, defaults to 0): Failed builds, or failed writes of a snapshot, in a row.
        last_error (`str`, *optional*): What went wrong in the last of them.
        snapshot_seconds (`float`, *optional*, defaults to 0.0): Seconds that the last snapshot kept the training
            loop.
        commit_seconds (`float`, *optional*, defaults to 0.0): Seconds that it then took to reach the disk, beside
            training.
    """

    mode: RefreshMode
    building: bool = False
    builder_pid: int | None = None
    heartbeat_age_seconds: float | None = None
    submitted_step: int = -1
    built_step: int = -1
    failures: int = 0
    last_error: str | None = None
    snapshot_seconds: float = 0.0
    commit_seconds: float = 0.0


class Refresher(Protocol):
    """What the training loop asks of a refresh mode; every rank makes the same calls at the same steps."""

    mode: RefreshMode

    def start(self) -> None:
        """Make ready; on rank 0 of "async" a builder process begins to warm up."""

    def build(self, step: int, embedder: RealmEmbedder) -> GenerationInfo | None:
        """Build a generation from `embedder` now, on all ranks together; returns it on rank 0 only."""

    def submit(self, step: int, embedder: RealmEmbedder) -> None:
        """Submit the embedder as it is after `step`. Only "sync" builds before it returns."""

    def poll(self) -> GenerationInfo | None:
        """
        On rank 0 the newest complete generation of this epoch that is newer than the one served; never waits.

        Raises:
            RefreshError: The builder failed more often in a row than is allowed.
        """

    def mark_served(self, info: GenerationInfo) -> None:
        """Note which generation is served now."""

    def check_health(self) -> RefreshHealth:
        """How the refresh is doing."""

    def stop(self) -> None:
        """End the builder, if this process started one, and every thread."""
