"""The loop that all trainings share: optimizer, schedule, clipping, log, checkpoints, signals.

A [`TrainingTask`] says what one optimizer step computes and what happens between steps; all collectives besides the
gradients' are small sums over gloo ([`Ranks`]), so that no rank waits in NCCL for another's disk or index. What a step
computed is read from the device once, at its end; where it is no finite number, there is no update.
`transformers.Trainer` was rejected: a step's examples depend on an index that changes while it runs, its global
normaliser on masks drawn for all micro-batches beforehand, and its checkpoints pickle.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from signal import Signals
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState

from realm_hf.models.precision import autocast
from realm_hf.runs.lock import TrainerLock
from realm_hf.runs.term import Term
from realm_hf.training.callbacks import CallbackList
from realm_hf.training.checkpoints import Checkpoint, micro_batch_seed
from realm_hf.training.finite import SkippedSteps
from realm_hf.training.launch_environment import check_accelerator
from realm_hf.training.loop_arguments import LoopArguments
from realm_hf.training.model_weights import ModelWeights, whole_tensor
from realm_hf.training.optimization import (
    enable_activation_checkpointing,
    learning_rate,
    make_optimizer,
    uses_bfloat16,
)
from realm_hf.training.ranks import Ranks
from realm_hf.training.result import TrainingResult
from realm_hf.training.run_checkpoints import RunCheckpoints
from realm_hf.training.run_facts import run_facts
from realm_hf.training.sharding_launch import asked_sharding
from realm_hf.training.signals import StopRequest, report_interruption
from realm_hf.training.task import TrainingTask
from realm_hf.training.tenure import Tenure
from realm_hf.training.tracking import Reporter, figures_of, finish_trackers

T = TypeVar("T")


class TrainingLoop(TrainingTask):
    """Takes `args.max_steps` optimizer steps on `module`; a subclass says what a step is.

    Args:
        model ([`~transformers.PreTrainedModel`]): What checkpoints hold.
        module (`nn.Module`): What is trained and called in a step: the model, or a part of it under a wrapper.
        args ([`LoopArguments`]): The arguments.
        directory (`pathlib.Path`): `checkpoints/`, `log.jsonl` and `summary.json` go here.
        accelerator (`accelerate.Accelerator`): Made by [`make_accelerator`].
        processing_class ([`~transformers.PreTrainedTokenizerBase`]): The tokenizer.
        callbacks (`Sequence[TrainerCallback]`, *optional*): Called in order; see [`RealmCallback`].
    """

    def __init__(
        self,
        model: PreTrainedModel,
        module: nn.Module,
        args: LoopArguments,
        directory: Path,
        accelerator: Accelerator,
        processing_class: PreTrainedTokenizerBase,
        callbacks: Sequence[TrainerCallback] = (),
    ):
        self.model, self.args, self.directory, self.accelerator = model, args, directory, accelerator
        self.processing_class = processing_class
        self.rank, self.world_size = accelerator.process_index, accelerator.num_processes
        self.device = accelerator.device
        check_accelerator(accelerator, args)
        self.bf16 = uses_bfloat16(args, accelerator)
        if args.gradient_checkpointing:
            enable_activation_checkpointing(model)
        model.to(self.device)
        #: Set by SIGTERM and Ctrl-C while `train` runs, or by whoever wants the training to end after this step.
        self.stop_requested = StopRequest()
        self._ranks = Ranks(accelerator, self.stop_requested)
        self.weights = ModelWeights(model, accelerator, self._ranks, asked_sharding(args))
        self.module = self.weights.prepare(module)
        self.optimizer = accelerator.prepare_optimizer(make_optimizer(module, args, self.own_rates()))
        self._callbacks = CallbackList(callbacks, self._ranks)
        self._tenure = Tenure(self._ranks)
        self.skipped_steps = SkippedSteps(args.max_skipped_steps)
        self.step = 0
        self.cursor = 0
        #: Set by a subclass on all ranks: no further step is taken, and the training ends as after its last one.
        self.ends_early = False
        #: Whether a stop ended the training before its end; known from `on_train_end` on.
        self.interrupted = False
        self._evaluated_step: int | None = None
        self._saved = RunCheckpoints(self._ranks)
        self._metrics: dict[str, float] = {}

    # The loop

    def train(self, resume_from_checkpoint: bool | str | Path | None = None) -> TrainingResult:
        """Train up to `args.max_steps`.

        Args:
            resume_from_checkpoint (`bool` or `str` or `pathlib.Path`, *optional*): `True` for the newest complete
                checkpoint, or the path of one. By default what the arguments say.

        Raises:
            RunDirectoryError: The directory is in use by another trainer, holds an earlier run that is not resumed,
                or cannot be written to; or the checkpoint is of other arguments.
            TrainingDiverged: Too many steps in a row had no finite loss or gradient, or the weights are not finite.
        """
        resume = self.args.resume if resume_from_checkpoint is None else resume_from_checkpoint
        with self._tenure.over(self.directory, self.acquire_lock), self.stop_requested.listening():
            checkpoint = self._saved.resume(self, resume)
            self.reporter = Reporter(
                self.accelerator, self.args, self.log_path, name=self.name, step=self.step, term=self.term
            )
            try:
                return self._run(checkpoint)
            finally:
                self.close()
                self.reporter.close()

    def _run(self, checkpoint: Checkpoint | None) -> TrainingResult:
        self._callbacks.start(self)
        self.begin(checkpoint)
        self._call("on_train_begin")
        if self.step == 0:
            self._evaluate()
        self._callbacks.agree()
        self.reporter.progress.start()
        begun_at = self.step
        self._call("on_epoch_begin")
        while self._goes_on:
            self._one_step(self.step + 1)
        self._call("on_epoch_end")
        signal = self._stopped_by
        self.interrupted = signal is not None
        # Save first: neither the last index nor the last evaluation may cost what was trained.
        self.save()
        extra = run_facts(self.model, self.accelerator, self.examples_per_step)
        if signal is None:
            if self.step > begun_at or not (self.directory / "model").is_dir():
                self.write_result()
            extra |= self.finish()
            self._evaluate()
        else:
            report_interruption(signal, self.step, self.args.max_steps)
        self._call("on_train_end")
        facts = {**extra, "evaluation": self._metrics, "skipped_steps": self.skipped_steps.total}
        self.reporter.summarize(self.directory / "summary.json", facts)
        finish_trackers(self.accelerator)
        # A warm start's moments would otherwise stay in memory for as long as the accelerator that both share.
        self.accelerator.free_memory()
        return TrainingResult(self.step, self.interrupted, self._saved.path, self._metrics, signal)

    @property
    def _goes_on(self) -> bool:
        ended = self.ends_early or self.control.should_training_stop or self._stopped_by is not None
        return self.step < self.args.max_steps and not ended

    def _one_step(self, step: int) -> None:
        started = time.perf_counter()
        self._callbacks.begin_step(self)
        self.module.train()
        rate = learning_rate(self.args, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        figures, norm, norms = self._figures(step)
        record: dict[str, Any] = {"step": step, **figures, "lr": rate, "grad_norm": norm}
        if self.skipped_steps.judge(step, loss=record["loss"], gradient_norm=norms):
            record |= {"skipped_steps": self.skipped_steps.total, "skipped_because": self.skipped_steps.because}
        else:
            self._call("on_pre_optimizer_step")
            self.optimizer.step()
            self._call("on_optimizer_step")
        self.optimizer.zero_grad(set_to_none=True)
        self.step = step
        self.cursor += self.examples_per_step
        record |= self.after_step(step)
        record["step_seconds"] = time.perf_counter() - started - record.get("eval_seconds", 0.0)
        for event in record.get("events", []):
            self._call("on_index_swap", swap=event)
        self._end_step(record)

    def _end_step(self, record: dict[str, Any]) -> None:
        """Log, evaluate and save, where the arguments or a callback say so."""
        self._callbacks.end_step(self, record)
        step, control = self.step, self.control
        self.reporter.write(record, sampled=control.should_log)
        self.reporter.progress.advance(record, self.figures)
        self.skipped_steps.require_progress(step, self._saved.path)
        if control.should_log:
            self._callbacks.log(self, figures_of(record))
        # What ends here is evaluated and saved after the loop, over its last index.
        if control.should_evaluate and not control.should_training_stop and step < self.args.max_steps:
            self._evaluate()
        if control.should_save and step < self.args.max_steps:
            self.save()
        if control.should_log or control.should_evaluate or control.should_save:
            self._callbacks.agree()
        if self._goes_on and int(self.epoch) > int((self.cursor - self.examples_per_step) / self.examples_per_epoch):
            self._call("on_epoch_end")
            self._call("on_epoch_begin")

    def _figures(self, step: int) -> tuple[dict[str, Any], float, float]:
        """The step's record, the gradient norm, and its sum over the ranks: finite if each rank's is."""
        computed = self.accumulate(step)
        limit = self.args.max_grad_norm or float("inf")
        norm = whole_tensor(self.accelerator.clip_grad_norm_(self.module.parameters(), limit))
        own = torch.cat([computed.sums, norm.detach().reshape(1).to(computed.sums)]).tolist()
        *sums, norms = self.sum_over_ranks(own)
        return computed.record(sums), own[-1], norms

    @property
    def examples_per_step(self) -> int:
        """Examples of one optimizer step over all ranks."""
        args = self.args
        return args.per_device_train_batch_size * args.gradient_accumulation_steps * self.world_size

    @property
    def epoch(self) -> float:
        """Passes over the training examples done."""
        return self.cursor / self.examples_per_epoch

    @contextmanager
    def micro_batch(self, step: int, index: int, last: bool) -> Iterator[None]:
        """Surrounds the forward and backward of micro-batch `index`: seeds dropout by its place in the global batch
        and says when gradients are summed over the ranks.
        """
        torch.manual_seed(micro_batch_seed(self.args.seed, step, index * self.world_size + self.rank))
        with self._ranks.reducing(step), self.weights.accumulating(self.module, last):
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
        """Write a checkpoint of the step that is done, unless there is one; on every rank. Returns its directory."""
        if self._saved.step != self.step:
            started = time.perf_counter()
            path = self._saved.write(self)
            self._note({"save_seconds": time.perf_counter() - started})
            self._call("on_save", checkpoint=path)
        assert self._saved.path is not None
        return self._saved.path

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
        self._callbacks.log(self, metrics)
        self._say("  ".join([f"step {self.step}"] + [f"{name} {value:.4g}" for name, value in metrics.items()]))
        self._call("on_evaluate", metrics=metrics)

    def _note(self, record: dict[str, Any]) -> None:
        self.reporter.write({"step": self.step, **record})
        for event in record.get("events", []):
            self._evaluated_step = None  # whatever was evaluated at this step was another index
            self._call("on_index_swap", swap=event)

    def _say(self, message: str) -> None:
        self.reporter.say(message)

    def _call(self, event: str, **kwargs: Any) -> None:
        self._callbacks.call(event, self, **kwargs)

    @property
    def callbacks(self) -> list[TrainerCallback]:
        """Called in order; may be added to."""
        return self._callbacks.callbacks

    @property
    def state(self) -> TrainerState:
        """Where the training is, as callbacks see it."""
        return self._callbacks.state

    @property
    def control(self) -> TrainerControl:
        """What callbacks may set."""
        return self._callbacks.control

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
    def term_number(self) -> int:
        """Number of this trainer's term, on every rank."""
        return self._tenure.epoch

    @property
    def term(self) -> Term | None:
        """On the main process, once it trains: what it changes in the directory goes through the term's place."""
        return self._tenure.term

    @property
    def place(self) -> Path | None:
        """The directory through which this process publishes and removes; see [`Term`]."""
        return None if self.term is None else self.term.place
