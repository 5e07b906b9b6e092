"""The loop that all trainings share: optimizer, schedule, clipping, log, checkpoints, signals.

A [`TrainingTask`] says what one optimizer step computes and what happens between steps; all collectives besides the
gradients' are small sums over gloo ([`Ranks`]), so that no rank waits in NCCL for another's disk or index. What a step
computed is read from the device once, at its end; where it is no finite number, there is no update.
`transformers.Trainer` was rejected: a step's examples depend on an index that changes while it runs, its global
normaliser on masks drawn for all micro-batches beforehand, and its checkpoints pickle.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from signal import Signals
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel

from realm_hf.models.precision import autocast
from realm_hf.runs.lock import TrainerLock
from realm_hf.runs.term import Term
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
from realm_hf.training.finite import SkippedSteps, require_finite_weights
from realm_hf.training.launch_environment import check_accelerator
from realm_hf.training.optimization import adamw, enable_activation_checkpointing, learning_rate, uses_bfloat16
from realm_hf.training.ranks import Ranks
from realm_hf.training.resumed_arguments import check_resumed, recorded
from realm_hf.training.signals import StopRequest
from realm_hf.training.task import TrainingTask
from realm_hf.training.tenure import Tenure
from realm_hf.training.tracking import Progress, StepLog, finish_trackers, start_trackers, summarize, track

logger = logging.getLogger(__name__)

T = TypeVar("T")


class TrainingLoop(TrainingTask):
    """Takes `args.max_steps` optimizer steps on `module`; a subclass says of what.

    Args:
        model: What checkpoints hold.
        module: What is trained and called in a step: the model, or a part of it under a wrapper.
        args: The arguments.
        directory: `checkpoints/`, `log.jsonl` and `summary.json` go here.
        accelerator: Made by [`make_accelerator`].
        callbacks: Called in order.
    """

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
        #: Set by SIGTERM and Ctrl-C while `train` runs, or by whoever wants the training to end after this step.
        self.stop_requested = StopRequest()
        self._ranks = Ranks(accelerator, self.stop_requested)
        self._tenure = Tenure(self._ranks)
        self.skipped_steps = SkippedSteps(args.max_skipped_steps)
        self.step = 0
        self.cursor = 0
        self.log: StepLog | None = None
        #: Set by a subclass on all ranks: no further step is taken, and the training ends as after its last one.
        self.ends_early = False
        #: Whether a stop ended the training before its end; known from `on_train_end` on.
        self.interrupted = False
        self._evaluated_step: int | None = None
        self._last_saved: tuple[int, Path] | None = None
        self._metrics: dict[str, float] = {}

    # The loop

    def train(self, resume_from_checkpoint: bool | str | Path | None = None) -> TrainingResult:
        """Train up to `args.max_steps`.

        Args:
            resume_from_checkpoint: `True` for the newest complete checkpoint, or the path of one. By default what the
                arguments say.

        Raises:
            RunDirectoryError: The directory is in use by another trainer, holds an earlier run that is not resumed,
                or cannot be written to; or the checkpoint is of other arguments.
            TrainingDiverged: Too many steps in a row had no finite loss or gradient, or the weights are not finite.
        """
        resume = self.args.resume if resume_from_checkpoint is None else resume_from_checkpoint
        with self._tenure.over(self.directory, self.acquire_lock), self.stop_requested.listening():
            checkpoint = self.on_main(lambda: find_checkpoint(self.checkpoints, resume), "look for a checkpoint")
            if checkpoint is not None:
                self._restore(checkpoint)
            later = partial(set_later_aside, self.checkpoints, checkpoint, self.place)
            self.on_main(later, "set later checkpoints aside")
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
        begun_at = self.step
        while self.step < self.args.max_steps and not self._stopped_by and not self.ends_early:
            record = self._one_step(self.step + 1)
            if self.step % self.args.logging_steps == 0:
                track(self.accelerator, record)
            if self._due(self.args.eval_steps):
                self._evaluate()
            if self._due(self.args.save_steps):
                self.save()
        signal = self._stopped_by
        self.interrupted = signal is not None
        # Save first: neither the last index nor the last evaluation may cost what was trained.
        self.save()
        extra: dict[str, Any] = {}
        if signal is None:
            if self.step > begun_at or not (self.directory / "model").is_dir():
                self.write_result()
            extra = self.finish()
            self._evaluate()
        else:
            self._tell_interrupted(signal.name)
        self._call("on_train_end")
        if self.accelerator.is_main_process:
            facts = {**extra, "evaluation": self._metrics, "skipped_steps": self.skipped_steps.total}
            summarize(self.log_path, self.directory / "summary.json", facts, self.place)
        finish_trackers(self.accelerator)
        # A warm start's moments would otherwise stay in memory for as long as the accelerator that both share.
        self.accelerator.free_memory()
        saved = self._last_saved[1] if self._last_saved else None
        return TrainingResult(self.step, self.interrupted, saved, self._metrics, signal)

    def _tell_interrupted(self, signal: str) -> None:
        left = (
            "" if self.step < self.args.max_steps else " All steps are taken; the last index and evaluation are left."
        )
        logger.warning(
            "%s: stopped after step %d of %d.%s Go on with resume_from_checkpoint=true.",
            signal,
            self.step,
            self.args.max_steps,
            left,
        )

    def _one_step(self, step: int) -> dict[str, Any]:
        started = time.perf_counter()
        self.module.train()
        rate = learning_rate(self.args, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        figures, norm, norms = self._figures(step)
        record: dict[str, Any] = {"step": step, **figures, "lr": rate, "grad_norm": norm}
        if self.skipped_steps.judge(step, loss=record["loss"], gradient_norm=norms):
            record |= {"skipped_steps": self.skipped_steps.total, "skipped_because": self.skipped_steps.because}
        else:
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
        self.skipped_steps.require_progress(step, self._last_saved[1] if self._last_saved else None)
        return record

    def _figures(self, step: int) -> tuple[dict[str, Any], float, float]:
        """The step's record, the gradient norm, and its sum over the ranks: finite if each rank's is."""
        computed = self.accumulate(step)
        limit = self.args.max_grad_norm or float("inf")
        norm = self.accelerator.clip_grad_norm_(self.module.parameters(), limit)
        own = torch.cat([computed.sums, norm.detach().reshape(1).to(computed.sums)]).tolist()
        *sums, norms = self.sum_over_ranks(own)
        return computed.record(sums), own[-1], norms

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
        """See [`Ranks.sum`]."""
        return self._ranks.sum(values)

    def together(self, what: str, work: Callable[[], T]) -> T:
        """See [`Ranks.together`]."""
        return self._ranks.together(what, work)

    def on_main(self, function: Callable[[], T], what: str) -> T:
        """Run `function` on the main process; its result, or its error, is everybody's. See [`RankGroup.on_main`]."""
        return self._ranks.on_main(function, what)

    @property
    def _stopped_by(self) -> Signals | None:
        return self._ranks.stopped_by

    def save(self) -> Path:
        """Write a checkpoint of the step that is done; on every rank."""
        if self._last_saved is not None and self._last_saved[0] == self.step:
            return self._last_saved[1]
        started = time.perf_counter()
        state, tensors = self.loop_state()
        state |= {"step": self.step, "cursor": self.cursor, "world_size": self.world_size, "seed": self.args.seed}
        state |= {"term": self._tenure.epoch, "skipped_steps": self.skipped_steps.total}
        state |= recorded(self.args, self.trained_on())
        everything = {
            f"rank{rank}.{name}": t for rank, own in enumerate(self._ranks.gather(tensors)) for name, t in own.items()
        }

        def write() -> Path:
            path = save_checkpoint(
                self.checkpoints,
                self.model,
                self.optimizer.optimizer,
                state=state,
                tensors=everything,
                place=self.place,
            )
            prune_checkpoints(self.checkpoints, self.args.save_total_limit, self.place)
            return path

        path = self.on_main(write, "write the checkpoint")
        self._last_saved = (self.step, path)
        self._note({"save_seconds": time.perf_counter() - started})
        self._call("on_save", path)
        return path

    def _restore(self, checkpoint: Checkpoint) -> None:
        check_resumed(checkpoint.path, checkpoint.state, self.args, self.trained_on(), self.world_size)
        self.on_main(self.verify_data, "compare the corpus with its hashes")
        checkpoint.load_model(self.model)
        require_finite_weights(self.model, f"resumed from {checkpoint.path}")
        checkpoint.load_optimizer(self.optimizer.optimizer, self.model)
        self.step, self.cursor = checkpoint.step, int(checkpoint.state["cursor"])
        self.skipped_steps.total = int(checkpoint.state.get("skipped_steps", 0))
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
    def term(self) -> Term | None:
        """On the main process, once it trains: what it changes in the directory goes through the term's place."""
        return self._tenure.term

    @property
    def place(self) -> Path | None:
        """The directory through which this process publishes and removes; see [`Term`]."""
        return None if self.term is None else self.term.place
