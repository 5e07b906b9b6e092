"""What a refresh costs the training beside it, on the same cores: real trainers, a real builder process.

A trainer takes some steps without a build, then submits a snapshot and goes on until the new generation is served;
and so on, so that steps with and without a build beside them take turns. The sync twin takes as many steps and
refreshes at the same steps, with all cores. Both run twice, in the order async, sync, sync, async. The work is small,
so that a build lasts seconds; the share of it that blocks the trainer only falls with the size of the corpus, for
neither a snapshot nor a swap depends on it.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import disable_progress_bars
from harness.alternation import half_interquartile_range
from harness.inputs import SCRATCH, load_passages, load_tokenizer
from harness.million import repeat_passages
from harness.rows import Row, Settings
from transformers.utils import logging

from realm_hf import RealmForPreTraining, RealmTokenizer
from realm_hf.data.passages import PassageStore
from realm_hf.data.rule_tagger import RuleTagger
from realm_hf.data.sentences import SentenceStore, build_sentences
from realm_hf.training.arguments import PreTrainingArguments
from realm_hf.training.callbacks import LoopCallback
from realm_hf.training.loop import TrainingLoop
from realm_hf.training.pretraining import PreTrainer
from rows.small_bert import make_config

WORDPIECES, QUICK_WORDPIECES = 80_000, 2_000
QUIET_STEPS, QUICK_QUIET_STEPS = 25, 3
REFRESHES, QUICK_REFRESHES = 3, 1
WARM_UP = 3
_NEVER = 10**9
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass
class Refreshes(LoopCallback):
    """Submits a snapshot after every `quiet` steps without a build, or at the steps given, and times what happens.

    With a builder the first refresh is not measured: the builder loads its libraries beside the steps before it.

    Args:
        count: Refreshes that are measured.
        quiet: Steps without a build before each.
        steps: Submit at these steps instead, counted from the first measured one.
        until: End at this step; see `steps`.
    """

    count: int
    quiet: int
    steps: tuple[int, ...] = ()
    until: int = 0
    submitted: list[int] = field(default_factory=list)
    blocked: list[float] = field(default_factory=list)
    snapshots: list[float] = field(default_factory=list)
    with_build: list[float] = field(default_factory=list)
    without: list[float] = field(default_factory=list)
    staleness: list[tuple[int, float]] = field(default_factory=list)
    builder_seconds: float = 0.0
    total: float = 0.0
    first_step: int | None = None
    last_step: int = 0
    _between: float = 0.0
    _begun: float = 0.0
    _last: float = 0.0
    _started: float = 0.0
    _building: bool = False
    _quiet_since: int = 0
    _server: int | None = None
    _used_before: float = 0.0

    def on_train_begin(self, loop: TrainingLoop) -> None:
        """Time what the loop waits for the refresh between its steps."""
        assert isinstance(loop, PreTrainer)
        after_step = loop.index.after_step

        def timed(*args: Any, **kwargs: Any) -> dict[str, Any] | None:
            started = time.perf_counter()
            try:
                return after_step(*args, **kwargs)
            finally:
                self._between += time.perf_counter() - started

        loop.index.after_step = timed  # type: ignore[method-assign]

    def on_step_end(self, loop: TrainingLoop, record: dict[str, Any]) -> None:
        """Take the step's time to its pile, and submit or end where it is time to."""
        assert isinstance(loop, PreTrainer)
        now = time.perf_counter()
        build = loop.index.refresher.check_health().builder_pid
        if loop.args.refresh == "async" and (found := _stat(build)):
            self._server = int(found[1])
        if self.first_step is None:
            has_builder = loop.args.refresh == "async"
            if loop.step == WARM_UP and has_builder:
                loop.index.refresher.submit(loop.step, loop.model.embedder)
            if record["events"] if has_builder else loop.step >= WARM_UP:
                self.first_step = self._quiet_since = loop.step
                self._started = self._last = now
                self._used_before = _processor_seconds(self._server)
            return
        (self.with_build if self._building else self.without).append(now - self._last)
        step = loop.step - self.first_step
        if self._building and record["events"]:
            self.blocked.append(self._between + self.snapshots[-1])
            self.staleness.append((record["events"][0]["staleness_steps"], now - self._begun))
            self._building, self._quiet_since = False, loop.step
        done = len(self.blocked) == self.count
        if not self._building and self._is_due(loop.step - self._quiet_since, step, done):
            self._submit(loop, step)
        self._last = time.perf_counter()
        if step >= self.until if self.steps else done:
            self.total, self.last_step = self._last - self._started, step
            self.builder_seconds = _processor_seconds(self._server) + _processor_seconds(build) - self._used_before
            loop.ends_early = True

    def _is_due(self, quiet: int, step: int, done: bool) -> bool:
        if not self.steps:
            return not done and quiet >= self.quiet
        # At the step itself, or as soon as the build before it is served.
        return len(self.submitted) < len(self.steps) and step >= self.steps[len(self.submitted)]

    def _submit(self, loop: PreTrainer, step: int) -> None:
        self._between, self._begun, self._building = 0.0, time.perf_counter(), True
        loop.index.refresher.submit(loop.step, loop.model.embedder)
        self.snapshots.append(time.perf_counter() - self._begun)
        self.submitted.append(step)


def _processor_seconds(pid: int | None) -> float:
    """Of a process and of its children that have ended."""
    return sum(map(int, _stat(pid)[11:15])) / _TICKS_A_SECOND


def _stat(pid: int | None) -> list[str]:
    """Fields of /proc/PID/stat from the third on; empty where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except FileNotFoundError:
        return []


def measure(settings: Settings) -> Iterator[Row]:
    """Three rows: the time that is blocked, the speed beside a build, the time in all."""
    logging.set_verbosity_error()
    disable_progress_bars()
    tokenizer = load_tokenizer()
    count = QUICK_REFRESHES if settings.quick else REFRESHES
    quiet = QUICK_QUIET_STEPS if settings.quick else QUIET_STEPS
    with tempfile.TemporaryDirectory(dir=SCRATCH) as work:
        folder = Path(work)
        passages, sentences = _corpus(settings, tokenizer, folder)

        def train(mode: str, name: str, refreshes: Refreshes) -> Refreshes:
            return _train(mode, refreshes, settings, tokenizer, passages, sentences, folder, name)

        first = train("async", "async-1", Refreshes(count, quiet))

        def again(mode: str, name: str) -> Refreshes:
            return train(mode, name, Refreshes(count, quiet, tuple(first.submitted), first.last_step))

        twins = [again("sync", "sync-1"), again("sync", "sync-2")]
        besides = [first, again("async", "async-2")]
    words = f"{len(passages):,} passages of {passages.statistics['wordpieces']:,} wordpieces"
    yield _blocked(besides, twins, words)
    yield _speed(besides, settings.threads, words)
    ours, theirs = ([run.total for run in runs] for runs in (besides, twins))
    yield Row(
        f"steps with {count} refreshes, async",
        statistics.mean(ours),
        statistics.mean(theirs),
        "s",
        1.0,
        "at_most",
        "sync, same steps and refreshes",
        half_interquartile_range(ours),
        half_interquartile_range(theirs),
        f"{first.last_step} steps; two runs of each, {_seconds(ours)} and {_seconds(theirs)}; {words}.",
    )


def _seconds(values: list[float]) -> str:
    return ", ".join(f"{value:.0f} s" for value in values)


def _of_all(runs: list[Refreshes], name: str) -> list[Any]:
    """The lists of that name, one after the other."""
    return [value for run in runs for value in getattr(run, name)]


def _blocked(besides: list[Refreshes], twins: list[Refreshes], words: str) -> Row:
    blocked: list[float] = _of_all(besides, "blocked")
    builds: list[float] = _of_all(twins, "snapshots")
    snapshot = statistics.median(_of_all(besides, "snapshots"))
    return Row(
        "trainer blocked by a refresh",
        statistics.median(blocked),
        statistics.median(builds),
        "s",
        0.02,
        "at_most",
        "the build between two steps, all cores",
        half_interquartile_range(blocked),
        half_interquartile_range(builds),
        f"Snapshot {1e3 * snapshot:.0f} ms, the rest is looking for the generation and swapping; {words}.",
    )


def _speed(besides: list[Refreshes], threads: int, words: str) -> Row:
    with_build: list[float] = _of_all(besides, "with_build")
    without: list[float] = _of_all(besides, "without")
    builder_seconds = sum(run.builder_seconds for run in besides)
    alone, busy = len(without) / sum(without), len(with_build) / sum(with_build)
    left = 1.0 - builder_seconds / (threads * sum(with_build))
    staleness: list[tuple[int, float]] = _of_all(besides, "staleness")
    steps, seconds = (statistics.mean(values) for values in zip(*staleness, strict=True))
    return Row(
        "steps a second while a build runs",
        busy,
        alone * left,
        "steps/s",
        0.95,
        "at_least",
        "steps a second without, times the share of the cores that the builder left",
        _rate_spread(with_build),
        left * _rate_spread(without),
        f"Without a build {alone:.2f} steps/s; the builder used {builder_seconds:.1f} s of processor time in "
        f"{sum(with_build):.0f} s and left {left:.3f} of {threads} cores. A generation is served {steps:.0f} "
        f"steps ({seconds:.0f} s) after its snapshot; {words}.",
    )


def _rate_spread(seconds: list[float]) -> float:
    return half_interquartile_range([1.0 / value for value in seconds])


def _corpus(settings: Settings, tokenizer: RealmTokenizer, folder: Path) -> tuple[PassageStore, SentenceStore]:
    """So many passages that a build takes seconds, and sentences of them."""
    sample = load_passages(settings, tokenizer)
    wanted = QUICK_WORDPIECES if settings.quick else WORDPIECES
    count = max(64, round(wanted * len(sample) / sample.statistics["wordpieces"]))
    repeat_passages(sample, count, folder / "passages")
    texts = sample.rows[: min(400, len(sample))]["text"]
    sentences = build_sentences(
        texts, tokenizer, RuleTagger(), folder / "sentences", heldout_fraction=0.0, cache_dir=folder / "cache"
    )
    return PassageStore.load(folder / "passages"), sentences


def _train(
    mode: str,
    refreshes: Refreshes,
    settings: Settings,
    tokenizer: RealmTokenizer,
    passages: PassageStore,
    sentences: SentenceStore,
    folder: Path,
    name: str,
) -> Refreshes:
    torch.manual_seed(0)
    args = PreTrainingArguments(
        output_dir=str(folder / name),
        max_steps=100_000,
        per_device_train_batch_size=4,
        learning_rate=1e-6,
        save_steps=0,
        refresh=mode,  # type: ignore[arg-type]
        refresh_steps=_NEVER,
        probe_queries=0,
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
    )
    model = RealmForPreTraining(make_config(settings))
    PreTrainer(model, tokenizer, passages, sentences, args, callbacks=[refreshes]).train()
    return refreshes
