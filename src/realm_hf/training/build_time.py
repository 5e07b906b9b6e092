"""Whether the builder beside a training can keep up with it: a warning at the start, not after weeks of a stale index.

A builder on the processor is timed on a few passages; one on an accelerator by what the first index took the training
devices. Steps are timed when they come; a build that is longer than any steps could be is reported before the first.
"""

from __future__ import annotations

import copy
import logging
import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from realm_hf.estimate import packaged_rates, time_in_words
from realm_hf.estimate.index_costs import index_operations
from realm_hf.generations.embedding import embed_passages
from realm_hf.models.precision import encoding_in, resolved_encode_dtype

if TYPE_CHECKING:
    from realm_hf.data.passages.build import PassageStore
    from realm_hf.models.modeling_realm import RealmEmbedder
    from realm_hf.runs.directory import RunConfig

logger = logging.getLogger(__name__)

_TIMED_PASSAGES = 8
_TIMED_STEPS = 4
_SLOW_STEP_SECONDS = 60.0


def processor_build_seconds(
    embedder: RealmEmbedder, passages: PassageStore, config: RunConfig, *, threads: int, index_threads: int
) -> float:
    """What a generation takes a builder on this machine's processor, while nothing else does.

    Args:
        embedder ([`RealmEmbedder`]): The passage tower; copied to the CPU.
        passages ([`PassageStore`]): The corpus, of which a few are embedded.
        config ([`RunConfig`]): Of the run.
        threads (`int`): The builder's.
        index_threads (`int`): Those of its index.
    """
    cpu = torch.device("cpu")
    tower = copy.deepcopy(embedder).to(cpu)  # type: ignore[arg-type]
    spread = np.linspace(0, len(passages) - 1, min(_TIMED_PASSAGES, len(passages))).astype(np.int64)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with encoding_in(resolved_encode_dtype(config.encode_dtype, cpu), cpu):
            embed_passages(tower, passages, rows=spread[:1])  # what only the first call takes
            started = time.perf_counter()
            embed_passages(tower, passages, rows=spread)
            seconds = time.perf_counter() - started
    finally:
        torch.set_num_threads(before)
    embedding = seconds * float(passages.lengths.sum(dtype=np.int64)) / float(passages.lengths[spread].sum())
    rate = packaged_rates()["cpu-core"].index_tflops * 1e12 * index_threads
    dimension = embedder.config.retriever_proj_size
    return embedding + index_operations(len(passages), dimension, config.index_factory, config.index_train_size) / rate


@dataclass
class BuildForecast:
    """Compares the time of a build with that of steps, and warns once.

    Args:
        build_seconds (`float`): From a snapshot to its generation.
        passages (`int`): Of the corpus.
        builder (`str`): In words, such as "cpu, 1 thread".
        refresh_steps (`int`): As in the arguments; of a schedule the shortest interval.
        max_staleness (`int`, *optional*): As in the arguments.
    """

    build_seconds: float
    passages: int
    builder: str
    refresh_steps: int
    max_staleness: int | None
    _seconds: list[float] = field(default_factory=list)
    _last: float | None = None
    _is_reported: bool = False

    def begin(self) -> None:
        """Before the first step: log the estimate, and warn where even steps of a minute would be too short."""
        logger.info("%s", self._estimate())
        if self._missed(_SLOW_STEP_SECONDS):
            self._warn(None)

    def step_done(self) -> None:
        """After a step; once a few have been timed, the verdict stands."""
        if self._is_reported:
            return
        now = time.perf_counter()
        if self._last is not None:
            self._seconds.append(now - self._last)
        self._last = now
        if len(self._seconds) == _TIMED_STEPS:
            step = statistics.median(self._seconds)
            self._is_reported = True
            if self._missed(step):
                self._warn(step)

    def _missed(self, step: float) -> str | None:
        """The budget that steps of so many seconds leave no builder time to keep."""
        between = self.refresh_steps * step
        oldest = self.build_seconds + max(between, self.build_seconds)
        if self.max_staleness is not None and oldest > self.max_staleness * step:
            return f"max_staleness={self.max_staleness}"
        return f"refresh_steps={self.refresh_steps}" if self.build_seconds > between else None

    def _warn(self, step: float | None) -> None:
        self._is_reported = True
        missed = self._missed(_SLOW_STEP_SECONDS if step is None else step)
        if step is None:
            least = time_in_words(self.build_seconds / self.refresh_steps)
            verdict = f"{missed} could be kept only if a step took {least} or more"
        else:
            verdict = (
                f"a step takes {time_in_words(step)}, so that an index will be "
                f"{2 * self.build_seconds / step:,.0f} steps old before the next one serves, and {missed} cannot be "
                "kept"
            )
        logger.warning(
            "%s: %s. Give it a GPU (--builder_device cuda:1) or more --builder_threads, start builders elsewhere "
            "(--refresh external), or allow for it with larger --refresh_steps and --max_staleness.",
            self._estimate(),
            verdict,
        )

    def _estimate(self) -> str:
        return (
            f"The index builder ({self.builder}) needs about {time_in_words(self.build_seconds)} for a generation of "
            f"{self.passages:,} passages"
        )
