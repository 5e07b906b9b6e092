"""The loop that all trainings share: optimizer, schedule, clipping, log, checkpoints, signals.

A subclass says what one optimizer step computes (`accumulate`) and what happens between steps (`after_step`); all
collectives besides the gradients' are small sums over a gloo group, so that no rank waits for another's disk or index.
`transformers.Trainer` was rejected: a step's examples depend on an index that changes while it runs, its global
normaliser on masks drawn for all micro-batches beforehand, and its checkpoints pickle.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn
from transformers import PreTrainedModel

from realm_hf.precision import autocast
from realm_hf.refresh.errors import RunDirectoryError
from realm_hf.refresh.leftovers import remove_leftovers
from realm_hf.refresh.lock import TrainerLock
from realm_hf.refresh.term import Term
from realm_hf.storage.errors import explained
from realm_hf.training.arguments import LoopArguments
from realm_hf.training.callbacks import LoopCallback, TrainingResult
from realm_hf.training.checkpoints import (
    Checkpoint,
    find_checkpoint,
    micro_batch_seed,
    prune_checkpoints,
    save_checkpoint,
    set_later_aside,
)
from realm_hf.training.launch_environment import check_accelerator
from realm_hf.training.optimization import adamw, enable_activation_checkpointing, learning_rate, uses_bfloat16
from realm_hf.training.signals import set_on_sigterm
from realm_hf.training.tracking import Progress, StepLog, finish_trackers, start_trackers, summarize, track

logger = logging.getLogger(__name__)

T = TypeVar("T")


class TrainingLoop(ABC):
    """Takes `args.max_steps` optimizer steps on `module`.

    Args:
        model: What checkpoints hold.
        module: What is trained and called in a step: the model, or a part of it under a wrapper.
        args: The arguments.
        directory: `checkpoints/`, `log.jsonl` and `summary.json` go here.
        accelerator: Made by [`make_accelerator`].
        callbacks: Called in order.
    """

    name = "training"
    figures: tuple[str, ...] = ("loss",)

    def __init__(
        self,
        model: PreTrainedModel,
        module: nn.Module,
        args: LoopArguments,
        directory: Path,
        accelerator: Accelerator,
        callbacks: Sequence[LoopCallback] = (),
    ):
        self.model, self.args, self.directory, self.accelerator = model, args, directory, accelerator
        self.callbacks = list(callbacks)
        self.rank, self.world_size = accelerator.process_index, accelerator.num_processes
        self.device = accelerator.device
        check_accelerator(accelerator, args)
        self.bf16 = uses_bfloat16(args, accelerator)
        if args.gradient_checkpointing:
            enable_activation_checkpointing(model)
        model.to(self.device)
        self.module = accelerator.prepare_model(module)
        self.optimizer = accelerator.prepare_optimizer(adamw(module, args, self.own_rates()))
        # Small sums go over gloo on CPU tensors: they neither wait for the GPU's queue nor disturb it.
        self._group = dist.new_group(backend="gloo") if self.world_size > 1 else None
        self.step = 0
        self.cursor = 0
        self.epoch = 0
        #: On the main process, while it trains: what it changes in the directory goes through the term's place.
        self.term: Term | None = None
        self.log: StepLog | None = None
        self.stop_requested = threading.Event()
        self._stop_agreed = False
        #: Set by a subclass on all ranks: no further step is taken, and the training ends as after its last one.
        self.ends_early = False
        self._evaluated_step: int | None = None
        self._last_saved: tuple[int, Path] | None = None
        self._metrics: dict[str, float] = {}

    # What a subclass fills in

    @abstractmethod
    def begin(self, checkpoint: Checkpoint | None) -> None:
        """Prepare the first step; after a resume, put back what `loop_state` had given."""

    @abstractmethod
    def accumulate(self, step: int) -> dict[str, Any]:
        """Forward and backward of one optimizer step; returns its record, the same on all ranks, with a "loss"."""

    def own_rates(self) -> dict[nn.Module, float]:
        """Peak learning rates of submodules that have one of their own."""
        return {}

    def after_step(self, step: int) -> dict[str, Any]:  # noqa: ARG002 - subclasses read it
        """Between two optimizer steps; what it returns is added to the record."""
        return {}

    def loop_state(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """What the checkpoint must hold beside weights and optimizer: JSON (main process) and tensors (every rank)."""
        return {}, {}

    def evaluate(self) -> dict[str, float]:
        """Held-out figures, names beginning with `eval_`; empty where there is nothing held out."""
        return {}

    def finish(self) -> dict[str, Any]:
        """After the last step: what it returns goes into `summary.json`."""
        return {}

    @abstractmethod
    def close(self) -> None:
        """End threads and child processes, also after an error."""

    # The loop

    def train(self, resume_from_checkpoint: bool | str | Path | None = None) -> TrainingResult:
        """Train up to `args.max_steps`.

        Args:
            resume_from_checkpoint: `True` for the newest complete checkpoint, or the path of one. By default what the
                arguments say.

        Raises:
            RunDirectoryError: The directory is in use by another trainer, holds an earlier run that is not resumed,
                or cannot be written to.
        """
        resume = self.args.resume if resume_from_checkpoint is None else resume_from_checkpoint
        with self._exclusive(), set_on_sigterm(self.stop_requested):
            checkpoint = self.on_main(lambda: find_checkpoint(self.checkpoints, resume))
            if checkpoint is not None:
                self._restore(checkpoint)
            self.on_main(lambda: set_later_aside(self.checkpoints, checkpoint, self.place))
            self.log = StepLog(self.log_path, self.step, self.term) if self.accelerator.is_main_process else None
            start_trackers(self.accelerator, self.args, self.name)
            self.progress = Progress(
                self.args.max_steps,
                self.step,
                self.name,
                self.accelerator.is_main_process and not self.args.disable_tqdm,
            )
            try:
                return self._run(checkpoint)
            finally:
                self.close()
                self.progress.close()
                if self.log is not None:
                    self.log.close()

    def _run(self, checkpoint: Checkpoint | None) -> TrainingResult:
        self.begin(checkpoint)
        self._call("on_train_begin")
        if self.step == 0:
            self._evaluate()
        self.progress.start()
        while self.step < self.args.max_steps and not self._stop_agreed and not self.ends_early:
            record = self._one_step(self.step + 1)
            if self.step % self.args.logging_steps == 0:
                track(self.accelerator, record)
            if self._due(self.args.eval_steps):
                self._evaluate()
            if self._due(self.args.save_steps):
                self.save()
        interrupted = self.step < self.args.max_steps and not self.ends_early
        extra: dict[str, Any] = {}
        if interrupted:
            logger.warning("SIGTERM: stopped after step %d; go on with resume_from_checkpoint=true.", self.step)
        else:
            extra = self.finish()
            self._evaluate()
        self.save()
        self._call("on_train_end")
        if self.accelerator.is_main_process:
            facts = {**extra, "evaluation": self._metrics}
            summarize(self.log_path, self.directory / "summary.json", facts, self.place)
        finish_trackers(self.accelerator)
        # A warm start's moments would otherwise stay in memory for as long as the accelerator that both share.
        self.accelerator.free_memory()
        return TrainingResult(self.step, interrupted, self._last_saved[1] if self._last_saved else None, self._metrics)

    def _one_step(self, step: int) -> dict[str, Any]:
        started = time.perf_counter()
        self.module.train()
        rate = learning_rate(self.args, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        record: dict[str, Any] = {"step": step, **self.accumulate(step), "lr": rate}
        limit = self.args.max_grad_norm or float("inf")
        record["grad_norm"] = float(self.accelerator.clip_grad_norm_(self.module.parameters(), limit))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step = step
        self.cursor += self.examples_per_step
        record |= self.after_step(step)
        record["step_seconds"] = time.perf_counter() - started
        self._call("on_step_end", record)
        if self.log is not None:
            self.log.write(record)
        self.progress.advance(record, self.figures)
        return record

    @property
    def examples_per_step(self) -> int:
        """Examples of one optimizer step over all ranks."""
        args = self.args
        return args.per_device_train_batch_size * args.gradient_accumulation_steps * self.world_size

    @contextmanager
    def micro_batch(self, step: int, index: int, last: bool) -> Iterator[None]:
        """Surrounds the forward and backward of micro-batch `index`: seeds dropout by its place in the global batch
        and keeps DDP from reducing gradients before the last one.
        """
        torch.manual_seed(micro_batch_seed(self.args.seed, step, index * self.world_size + self.rank))
        with nullcontext() if last else self.accelerator.no_sync(self.module):
            yield

    def autocast(self) -> AbstractContextManager[None]:
        """Surrounds a forward pass: bfloat16 where the run uses it."""
        return autocast(self.device, self.bf16)

    def sum_over_ranks(self, values: Sequence[float]) -> list[float]:
        """Element-wise sum over the ranks in float64. The ranks also learn here whether one of them is to stop."""
        total = torch.tensor([*values, float(self.stop_requested.is_set())], dtype=torch.float64)
        if self._group is not None:
            dist.all_reduce(total, group=self._group)
        *sums, stops = total.tolist()
        self._stop_agreed |= stops > 0
        return sums

    def on_main(self, function: Callable[[], T]) -> T:
        """Run `function` on the main process; its result, or its error, is everybody's.

        Without this an error on the main process would leave the others in a collective until it times out.
        """
        if self.world_size == 1:
            return function()
        outcome: list[Any] = [None, None]
        if self.accelerator.is_main_process:
            try:
                outcome[0] = function()
            except Exception as error:  # noqa: BLE001 - raised again on every rank below
                outcome[1] = error
        broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def save(self) -> Path:
        """Write a checkpoint of the step that is done; on every rank."""
        if self._last_saved is not None and self._last_saved[0] == self.step:
            return self._last_saved[1]
        started = time.perf_counter()
        state, tensors = self.loop_state()
        state |= {"step": self.step, "cursor": self.cursor, "world_size": self.world_size, "seed": self.args.seed}
        state["term"] = self.epoch
        ranks = gather_object([tensors]) if self.world_size > 1 else [tensors]
        everything = {f"rank{rank}.{name}": t for rank, own in enumerate(ranks) for name, t in own.items()}
        path = self.on_main(
            lambda: save_checkpoint(
                self.checkpoints,
                self.model,
                self.optimizer.optimizer,
                state=state,
                tensors=everything,
                place=self.place,
            )
        )
        self._last_saved = (self.step, path)
        if self.accelerator.is_main_process:
            prune_checkpoints(self.checkpoints, self.args.save_total_limit, self.place)
        self._note({"save_seconds": time.perf_counter() - started})
        self._call("on_save", path)
        return path

    def _restore(self, checkpoint: Checkpoint) -> None:
        if checkpoint.state["seed"] != self.args.seed:
            raise RunDirectoryError(
                f"{checkpoint.path} was trained with seed {checkpoint.state['seed']}, but seed is {self.args.seed}: "
                "the data order would change. Give the old seed."
            )
        checkpoint.load_model(self.model)
        checkpoint.load_optimizer(self.optimizer.optimizer, self.model)
        self.step, self.cursor = checkpoint.step, int(checkpoint.state["cursor"])
        if checkpoint.path.parent.resolve() == self.checkpoints.resolve():
            self._last_saved = (checkpoint.step, checkpoint.path)
        logger.info("resuming from %s", checkpoint.path)

    def _evaluate(self) -> None:
        """Once a step: an early end finds that its evaluation is done."""
        if self._evaluated_step == self.step:
            return
        started = time.perf_counter()
        metrics = self.evaluate()
        if not metrics:
            return
        self._metrics, self._evaluated_step = metrics, self.step
        self._note({**metrics, "eval_seconds": time.perf_counter() - started})
        track(self.accelerator, {"step": self.step, **metrics})
        self._say("  ".join([f"step {self.step}"] + [f"{name} {value:.4g}" for name, value in metrics.items()]))
        self._call("on_evaluate", metrics)

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0 and self.step < self.args.max_steps

    def _note(self, record: dict[str, Any]) -> None:
        if self.log is not None:
            self.log.write({"step": self.step, **record})

    def _say(self, message: str) -> None:
        if self.accelerator.is_main_process and not self.progress.say(message):
            logger.info(message)

    def _call(self, hook: str, *arguments: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, hook)(self, *arguments)

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints are."""
        return self.directory / "checkpoints"

    @property
    def log_path(self) -> Path:
        """One JSON line a step."""
        return self.directory / "log.jsonl"

    def acquire_lock(self) -> TrainerLock:
        """Take the directory's lock; on the main process."""
        return TrainerLock.acquire(self.directory / "trainer.lock", 0)

    @property
    def place(self) -> Path | None:
        """The directory through which this process publishes and removes; see [`Term`]."""
        return None if self.term is None else self.term.place

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Make the directory this trainer's own for the time of the training.

        Raises:
            RunTakenOver: It is another trainer's by now; whatever failed for that reason ends in these words.
        """
        lock: TrainerLock | None = None

        def acquire() -> int:
            nonlocal lock
            with explained("create", self.checkpoints):
                self.checkpoints.mkdir(parents=True, exist_ok=True)
            lock = self.acquire_lock()
            return lock.epoch

        self.epoch = self.on_main(acquire)
        try:
            if lock is None:
                yield
            else:
                self.term = lock.term
                with lock.term.enforced():
                    remove_leftovers(self.directory)
                    yield
                    lock.term.require()
        finally:
            if lock is not None:
                lock.release()
