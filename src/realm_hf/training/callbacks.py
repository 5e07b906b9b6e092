"""Hooks into the training loops: transformers' own callback classes, and the event that they do not have.

Any [`~transformers.TrainerCallback`] can be given to the trainers. `args` are the run's arguments, named as those of
[`~transformers.TrainingArguments`] where that has the field; `state` is a [`~transformers.TrainerState`] and `control`
a [`~transformers.TrainerControl`]. Of its flags `should_training_stop`, `should_log`, `should_evaluate` and
`should_save` are honoured. Every event has the keyword arguments `trainer`, `model`, `processing_class` and
`optimizer`; `on_step_end` has `record`, what `log.jsonl` gets of the step, and may add to it; `on_log` has `logs`,
`on_evaluate` `metrics`, `on_save` `checkpoint` (its path) and `on_index_swap` `swap`. Events of transformers that are
not called: `on_init_end`, `on_substep_end`, `on_prediction_step`, `on_predict` and `on_push_begin`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from realm_hf.training.ranks import Ranks

if TYPE_CHECKING:
    from realm_hf.training.loop_arguments import LoopArguments
    from realm_hf.training.task import TrainingTask

_FLAGS = ("should_training_stop", "should_log", "should_evaluate", "should_save")


class RealmCallback(TrainerCallback):
    """A [`~transformers.TrainerCallback`] that also hears of the index; override what you need.

    Called on every rank. Give the same callbacks on all ranks; a flag of `control` that is set on one of them counts
    on all. Under FSDP2 `model` holds a part of its weights: to read them, take `trainer.weights.whole(model)` on every
    rank.
    """

    def on_index_swap(
        self, args: LoopArguments, state: TrainerState, control: TrainerControl, swap: dict[str, Any], **kwargs: Any
    ) -> None:
        """After another generation of the index is served; the first one before `on_train_begin`.

        Args:
            args ([`LoopArguments`]): The run's arguments.
            state ([`~transformers.TrainerState`]): Where the training is.
            control ([`~transformers.TrainerControl`]): What is to happen next.
            swap (`dict[str, Any]`): The swap as `log.jsonl` has it: `name`, `snapshot_step`, `staleness_steps`,
                `build_seconds` and, on the main process, `churn`, `stale_recall` and `most_retrieved_share`.
            kwargs (`Any`): `trainer`, `model`, `processing_class`, `optimizer`.
        """


class CallbackList:
    """The callbacks of a training with the state that they read and the control that they set.

    Args:
        callbacks (`list` of [`~transformers.TrainerCallback`]): Instances or classes, called in order.
        ranks ([`Ranks`]): Those of the training.
    """

    def __init__(self, callbacks: Sequence[TrainerCallback | type[TrainerCallback]], ranks: Ranks):
        self.callbacks = [callback() if isinstance(callback, type) else callback for callback in callbacks]
        self.state, self.control = TrainerState(), TrainerControl()
        self._ranks = ranks

    def start(self, trainer: TrainingTask) -> None:
        """Set state and control for the beginning of a training."""
        args, accelerator = trainer.args, trainer.accelerator
        self.state = TrainerState(
            max_steps=args.max_steps,
            num_train_epochs=-(-args.max_steps * trainer.examples_per_step // trainer.examples_per_epoch),
            logging_steps=args.logging_steps,
            eval_steps=args.eval_steps,
            save_steps=args.save_steps,
            train_batch_size=args.per_device_train_batch_size,
            is_local_process_zero=accelerator.is_local_main_process,
            is_world_process_zero=accelerator.is_main_process,
        )
        self.control = TrainerControl()

    def begin_step(self, trainer: TrainingTask) -> None:
        """Reset the flags that hold for one step, and call `on_step_begin`."""
        self.control.should_log = self.control.should_evaluate = self.control.should_save = False
        self.call("on_step_begin", trainer)

    def end_step(self, trainer: TrainingTask, record: dict[str, Any]) -> None:
        """Set the flags that are due by the arguments, call `on_step_end`, and let the ranks agree on all of them."""
        step, args, control = trainer.step, trainer.args, self.control
        control.should_log |= step % args.logging_steps == 0
        control.should_evaluate |= args.eval_steps > 0 and step % args.eval_steps == 0
        control.should_save |= args.save_steps > 0 and step % args.save_steps == 0
        self.call("on_step_end", trainer, record=record)
        self.agree()

    def call(self, event: str, trainer: TrainingTask, **kwargs: Any) -> None:
        """Call every callback that knows `event`."""
        self.state.global_step, self.state.epoch = trainer.step, trainer.epoch
        for callback in self.callbacks:
            if event == "on_index_swap" and not isinstance(callback, RealmCallback):
                continue
            returned = getattr(callback, event)(
                trainer.args,
                self.state,
                self.control,
                trainer=trainer,
                model=trainer.model,
                processing_class=trainer.processing_class,
                optimizer=trainer.optimizer,
                **kwargs,
            )
            if returned is not None:
                self.control = returned

    def log(self, trainer: TrainingTask, logs: dict[str, float]) -> None:
        """`on_log`, and the state's `log_history`."""
        logs = {**logs, "epoch": trainer.epoch}
        self.state.log_history.append({**logs, "step": trainer.step})
        self.call("on_log", trainer, logs=logs)

    def agree(self) -> None:
        """Let all ranks have the flags of `control` that any of them has set."""
        if self.callbacks:
            agreed = self._ranks.any([getattr(self.control, name) for name in _FLAGS])
            for name, flag in zip(_FLAGS, agreed, strict=True):
                setattr(self.control, name, flag)
