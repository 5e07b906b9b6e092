"""The arguments that all trainings share: optimizer, schedule, checkpoints, log.

The fields carry the names of [`~transformers.TrainingArguments`] wherever it has the field, so that what a user knows
holds here. It is not subclassed: three quarters of its hundred fields would be knobs that this loop does not turn.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self, get_args

from realm_hf.training.elastic_restart import restarted_by_launcher

Optimizer = Literal["adamw_torch_fused", "adamw_torch", "adafactor"]
# Those of transformers that are a function of the step.
Schedule = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "warmup_stable_decay",
]

#: Where a run lies, how it is begun and what is shown of it: no part of what was trained.
UNREPORTED = frozenset(
    {"output_dir", "resume_from_checkpoint", "allow_changed_arguments", "report_to", "run_name", "disable_tqdm"}
)


@dataclass
class LoopArguments:
    """Parameters that the warm start and the pre-training share: optimizer, schedule, checkpoints, log.

    Raises:
        ValueError: a field has a value that no run can use; the message names the field, the value and the remedy.
    """

    #: Whether the trainer of these arguments can spread the weights over the ranks.
    can_shard: ClassVar[bool] = False

    # Parameters that control where the run lives and how long it is
    output_dir: str = field(metadata={"help": "The run directory: checkpoints, log, index and report go there."})
    max_steps: int = field(default=1000, metadata={"help": "Number of optimizer steps."})
    num_train_epochs: float | None = field(
        default=None, metadata={"help": "Passes over the training examples, in place of max_steps."}
    )
    seed: int = field(default=42, metadata={"help": "Seed of the data order, the masks and the dropout."})

    # Parameters that control the batch
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Examples a device forwards at once."})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Forward passes to one optimizer step."})

    # Parameters that control the optimizer (no decay on biases and LayerNorm)
    optim: Optimizer = field(
        default="adamw_torch_fused", metadata={"help": "adamw_torch_fused, adamw_torch or adafactor."}
    )
    learning_rate: float = field(default=3e-5, metadata={"help": "Peak learning rate (REALM 3e-5, ICT 1e-4)."})
    weight_decay: float = field(default=0.01, metadata={"help": "Decoupled weight decay."})
    adam_beta1: float = field(default=0.9, metadata={"help": "Decay rate of the first moment."})
    adam_beta2: float = field(default=0.999, metadata={"help": "Decay rate of the second moment."})
    adam_epsilon: float = field(default=1e-6, metadata={"help": "AdamW epsilon; BERT's 1e-6 as released."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Clip the global gradient norm; 0 switches it off."})
    lr_scheduler_type: Schedule = field(
        default="linear", metadata={"help": "Schedule after warm-up; linear: down to 0 after max_steps."}
    )
    lr_scheduler_kwargs: dict | str | None = field(
        default=None, metadata={"help": "Its further arguments, as JSON: '{\"min_lr_rate\": 0.1}'."}
    )
    warmup_steps: int = field(
        default=0,
        metadata={
            "help": "Steps in which the rate rises linearly to its peak; -1: as released, see num_warmup_steps."
        },
    )
    max_skipped_steps: int = field(
        default=10,
        metadata={"help": "A step whose loss or gradient is NaN or infinite is left out; more in a row end the run."},
    )

    # Parameters that control the device
    bf16: bool | None = field(
        default=None, metadata={"help": "Autocast to bfloat16. Default: only where the device computes it natively."}
    )
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Recompute activations in the backward."})
    use_cpu: bool = field(default=False, metadata={"help": "Train on the CPU even where there is an accelerator."})

    # Parameters that control checkpoints
    save_steps: int = field(default=500, metadata={"help": "A checkpoint every so many steps; 0: only at the end."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Keep the newest so many checkpoints."})
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "A checkpoint folder, or 'true' for the newest complete one of the run."}
    )
    allow_changed_arguments: bool = field(
        default=False,
        metadata={"help": "Resume although arguments that change objective, data or schedule are not the old ones."},
    )

    # Parameters that control log and trackers
    logging_steps: int = field(default=10, metadata={"help": "Print and track every so many steps."})
    eval_steps: int = field(default=0, metadata={"help": "Evaluate every so many steps; 0: only at the end."})
    report_to: list[str] = field(
        default_factory=lambda: ["none"], metadata={"help": "Trackers: none, all, or names (tensorboard, wandb ...)."}
    )
    run_name: str | None = field(
        default=None, metadata={"help": "The run's name in the trackers; default: the last part of output_dir."}
    )
    disable_tqdm: bool = field(default=False, metadata={"help": "No progress bar."})

    def __post_init__(self) -> None:
        if not self.output_dir:
            raise ValueError("output_dir is empty. Name the folder of the run, e.g. --output_dir runs/mine.")
        self._at_least(1, "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "logging_steps")
        self._at_least(-1, "warmup_steps")
        self._at_least(0, "save_steps", "eval_steps", "weight_decay", "max_grad_norm", "seed")
        self._at_least(0, "max_skipped_steps")
        if self.save_total_limit is not None:
            self._at_least(1, "save_total_limit")
        if self.num_train_epochs is not None and not self.num_train_epochs > 0:
            raise ValueError(f"num_train_epochs is {self.num_train_epochs}. Give a positive number, or use max_steps.")
        self._one_of("optim", get_args(Optimizer))
        self._one_of("lr_scheduler_type", get_args(Schedule))
        if isinstance(self.lr_scheduler_kwargs, str):
            try:
                self.lr_scheduler_kwargs = json.loads(self.lr_scheduler_kwargs)
            except json.JSONDecodeError as error:
                raise ValueError(f"lr_scheduler_kwargs is {self.lr_scheduler_kwargs!r}, which is no JSON.") from error
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}. Give a positive one, e.g. 3e-5.")

    def resolved(self, examples: int, processes: int) -> Self:
        """These arguments with `num_train_epochs` turned into `max_steps`.

        Args:
            examples (`int`): Training examples.
            processes (`int`): Processes that train.
        """
        if self.num_train_epochs is None:
            return self
        step = self.per_device_train_batch_size * self.gradient_accumulation_steps * processes
        return dataclasses.replace(self, max_steps=max(1, math.ceil(self.num_train_epochs * examples / step)))

    @property
    def num_warmup_steps(self) -> int:
        """`warmup_steps`; where that is -1, the released code's: a tenth of `max_steps`, at least 100 and at most
        10,000. In a run of less than 100 steps that warm-up does not end.
        """
        return min(10_000, max(100, self.max_steps // 10)) if self.warmup_steps == -1 else self.warmup_steps

    def reported(self) -> dict[str, Any]:
        """What `summary.json` has of them: without [`UNREPORTED`], and with the warm-up as the steps that it takes."""
        named = {name: value for name, value in dataclasses.asdict(self).items() if name not in UNREPORTED}
        return {**named, "warmup_steps": self.num_warmup_steps}

    def _at_least(self, least: int, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if not value >= least:
                raise ValueError(f"{name} is {value}, but must be at least {least}.")

    def _one_of(self, name: str, choices: Sequence[str]) -> None:
        value = getattr(self, name)
        if value not in choices:
            raise ValueError(f"{name} is {value!r}. Choose one of: {', '.join(choices)}.")

    @property
    def resume(self) -> bool | str:
        """`resume_from_checkpoint` as `train` takes it: a path, True (newest complete one) or False.

        A run that an elastic launcher has restarted goes on where it was: it has the arguments of its first start, by
        which it would be refused as a second training in the same directory.
        """
        value = self.resume_from_checkpoint
        if value is None or value.lower() in ("false", "no"):
            return restarted_by_launcher()
        return True if value.lower() in ("true", "yes") else value
