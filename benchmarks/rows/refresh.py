"""What a refresh costs the training beside it, on the same cores: real trainers, a real builder process.

A trainer takes some steps without a build, submits a snapshot, and goes on while the new generation is built and
served; its sync twin takes the same steps and builds between two of them, with all cores. They run in turn, several
times, from the same weights over the same batches. Before any step counts, a builder has loaded its libraries and
built once. The work is small, so that a build lasts seconds; the share of it that blocks the trainer only falls with
the size of the corpus, for neither a snapshot nor a swap depends on it.
"""

import math
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
from harness.alternation import Alternation, Side, alternate
from harness.inputs import SCRATCH, load_passages, load_tokenizer
from harness.million import repeat_passages
from harness.rows import Row, Settings, timed_row
from transformers import TrainerCallback, TrainerControl
from transformers.utils import logging

from realm_hf import RealmForPreTraining, RealmTokenizer
from realm_hf.data.passages.build import PassageStore
from realm_hf.data.sentences.build import SentenceStore, build_sentences
from realm_hf.data.taggers.rules import RuleTagger
from realm_hf.refresh.base import Refresher
from realm_hf.training.arguments import RealmTrainingArguments
from realm_hf.training.pretraining import RealmTrainer
from rows.small_bert import make_config

WORDPIECES, QUICK_WORDPIECES = 80_000, 2_000
QUIET_STEPS, QUICK_QUIET_STEPS = 10, 2
# A builder is made ready after the first of these steps; what is measured begins after the second, in both modes.
READY_STEP, FIRST_STEP = 2, 5
# How much longer than the build of the first run a run goes on, so that the steps after a swap are in it.
_LONGER = 1.5
_NEVER = 10**9
_READY_SECONDS = 600.0
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass
class OneRefresh(TrainerCallback):
    """Submits a snapshot after `quiet` steps, and times everything until `steps` are taken and it is served.

    Args:
        quiet: Steps without a build before it.
        steps: Measured steps in all.
    """

    quiet: int
    steps: int
    blocked: float = 0.0
    snapshot: float = 0.0
    with_build: list[float] = field(default_factory=list)
    without: list[float] = field(default_factory=list)
    staleness_steps: int = 0
    staleness_seconds: float = 0.0
    builder_seconds: float = 0.0
    total: float = 0.0
    _measuring: bool = False
    _between: float = 0.0
    _submitted: float = 0.0
    _last: float = 0.0
    _started: float = 0.0
    _building: bool = False
    _served: bool = False
    _server: int | None = None
    _used_before: float = 0.0

    @property
    def taken(self) -> int:
        """Measured steps that were taken."""
        return len(self.with_build) + len(self.without)

    def share_left(self, threads: int) -> float:
        """Of `threads` cores, what the builder left while it built."""
        return 1.0 - self.builder_seconds / (threads * sum(self.with_build))

    def on_train_begin(self, *_: Any, trainer: RealmTrainer, **__: Any) -> None:
        """Time what the loop waits for the refresh between its steps."""
        after_step = trainer.index.after_step

        def timed(*args: Any, **kwargs: Any) -> dict[str, Any] | None:
            started = time.perf_counter()
            try:
                return after_step(*args, **kwargs)
            finally:
                self._between += time.perf_counter() - started

        trainer.index.after_step = timed  # type: ignore[method-assign]

    def on_step_end(
        self,
        _args: Any,
        _state: Any,
        control: TrainerControl,
        *,
        trainer: RealmTrainer,
        record: dict[str, Any],
        **__: Any,
    ) -> None:
        """Take the step's time to its pile, and submit or end where it is time to."""
        now = time.perf_counter()
        refresher, is_async = trainer.index.refresher, trainer.args.refresh == "async"
        if not self._measuring:
            if is_async and trainer.step == READY_STEP:
                refresher.submit(trainer.step, trainer.model.embedder)
                self._server = _ready(refresher)
            self._served = self._served or bool(record["events"])
            if trainer.step >= FIRST_STEP and (self._served or not is_async):
                self._measuring, self._served = True, False
                self._used_before = _processor_seconds(self._server)
                self._started = self._last = time.perf_counter()
            return
        (self.with_build if self._building else self.without).append(now - self._last)
        if self._building and record["events"]:
            self.blocked = self._between + self.snapshot
            self.staleness_steps, self.staleness_seconds = (
                record["events"][0]["staleness_steps"],
                now - self._submitted,
            )
            self.builder_seconds = _processor_seconds(self._server) - self._used_before
            self._building, self._served = False, True
        if self.taken == self.quiet:
            self._between, self._submitted, self._building = 0.0, time.perf_counter(), True
            refresher.submit(trainer.step, trainer.model.embedder)
            self.snapshot = time.perf_counter() - self._submitted
        self._last = time.perf_counter()
        if self._served and self.taken >= self.steps:
            self.total = self._last - self._started
            control.should_training_stop = True


def _ready(refresher: Refresher) -> int:
    """Wait until the snapshot that was just submitted is built; returns the process id of the builder's server."""
    server, deadline = 0, time.monotonic() + _READY_SECONDS
    while refresher.poll() is None:
        if found := _stat(refresher.check_health().builder_pid):
            server = int(found[1])
        if time.monotonic() > deadline:
            raise RuntimeError(f"the builder built nothing in {_READY_SECONDS:.0f} s: see the run's logs")
        time.sleep(0.02)
    return server


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
    quiet = QUICK_QUIET_STEPS if settings.quick else QUIET_STEPS
    runs: dict[str, list[OneRefresh]] = {"async": [], "sync": []}
    with tempfile.TemporaryDirectory(dir=SCRATCH) as work:
        folder = Path(work)
        passages, sentences = _corpus(settings, tokenizer, folder)

        def train(mode: str, steps: int) -> OneRefresh:
            refresh = OneRefresh(quiet, steps)
            with tempfile.TemporaryDirectory(dir=folder) as run:
                _train(mode, refresh, settings, tokenizer, passages, sentences, Path(run))
            return refresh

        steps = quiet + math.ceil(_LONGER * train("async", 0).staleness_steps)

        def side(mode: str) -> Side:
            def work() -> float:
                runs[mode].append(train(mode, steps))
                return runs[mode][-1].total

            return work

        totals = alternate(side("async"), side("sync"), settings.rounds, warm_up=0)
    words = f"{len(passages):,} passages of {passages.statistics['wordpieces']:,} wordpieces"
    yield _blocked(runs["async"], runs["sync"], words)
    yield _speed(runs["async"], settings.threads, words)
    yield timed_row(
        totals,
        1.0,
        name="steps with a refresh, async",
        beside="sync, same steps and refresh",
        unit="s",
        goal=1.0,
        kind="at_most",
        note=f"{steps} steps, the snapshot after {quiet}; {words}.",
    )


def _blocked(besides: list[OneRefresh], twins: list[OneRefresh], words: str) -> Row:
    snapshot = statistics.median(run.snapshot for run in besides)
    return timed_row(
        Alternation(tuple(run.blocked for run in besides), tuple(run.snapshot for run in twins)),
        1.0,
        name="trainer blocked by a refresh",
        beside="the build between two steps, all cores",
        unit="s",
        goal=0.02,
        kind="at_most",
        note=f"Snapshot {1e3 * snapshot:.0f} ms, the rest is looking for the generation and swapping; {words}.",
    )


def _speed(besides: list[OneRefresh], threads: int, words: str) -> Row:
    left = statistics.median(run.share_left(threads) for run in besides)
    used = statistics.median(run.builder_seconds for run in besides)
    beside = statistics.median(sum(run.with_build) for run in besides)
    alone = statistics.median(len(run.without) / sum(run.without) for run in besides)
    steps = statistics.median(run.staleness_steps for run in besides)
    seconds = statistics.median(run.staleness_seconds for run in besides)
    rates = tuple(len(run.with_build) / sum(run.with_build) for run in besides)
    limits = tuple(len(run.without) / sum(run.without) * run.share_left(threads) for run in besides)
    return timed_row(
        Alternation(rates, limits),
        1.0,
        name="steps a second while a build runs",
        beside="steps a second without, times the share of the cores that the builder left",
        unit="steps/s",
        goal=0.95,
        kind="at_least",
        note=f"Without a build {alone:.2f} steps/s; the builder used {used:.1f} s of processor time in {beside:.0f} s "
        f"and left {left:.3f} of {threads} cores. A generation is served {steps:.0f} steps ({seconds:.0f} s) after "
        f"its snapshot; {words}.",
    )


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
    refresh: OneRefresh,
    settings: Settings,
    tokenizer: RealmTokenizer,
    passages: PassageStore,
    sentences: SentenceStore,
    run: Path,
) -> None:
    torch.manual_seed(0)
    args = RealmTrainingArguments(
        output_dir=str(run),
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
    RealmTrainer(
        model,
        args,
        train_dataset=sentences,
        processing_class=tokenizer,
        passages=passages,
        callbacks=[refresh],
    ).train().exit_if_interrupted()
