"""What a training run is told: dataclasses read from the command line or from one YAML file.

The fields carry the names of [`~transformers.TrainingArguments`] wherever it has the field, so that what a user knows
holds here. It is not subclassed: three quarters of its hundred fields would be knobs that this loop does not turn.
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from transformers import HfArgumentParser

from realm_hf.models.configuration_realm import MAX_PASSAGE_LENGTH, MAX_QUERY_LENGTH
from realm_hf.training.launch_environment import restarted_by_launcher

RefreshMode = Literal["sync", "async", "external", "off"]
OnStale = Literal["continue", "wait", "sync"]
Masking = Literal["salient", "span", "uniform"]
Marginalization = Literal["token", "span"]
EncodeDtype = Literal["auto", "float32", "tf32", "bfloat16"]
QueryEncoder = Literal["snapshot", "live"]


@dataclass
class LoopArguments:
    """Parameters that the warm start and the pre-training share: optimizer, schedule, checkpoints, log.

    Raises:
        ValueError: a field has a value that no run can use; the message names the field, the value and the remedy.
    """

    # Parameters that control where the run lives and how long it is
    output_dir: str = field(metadata={"help": "The run directory: checkpoints, log, index and report go there."})
    max_steps: int = field(default=1000, metadata={"help": "Number of optimizer steps."})
    seed: int = field(default=42, metadata={"help": "Seed of the data order, the masks and the dropout."})

    # Parameters that control the batch
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Examples a device forwards at once."})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Forward passes to one optimizer step."})

    # Parameters that control the optimizer (AdamW; no decay on biases and LayerNorm)
    learning_rate: float = field(default=3e-5, metadata={"help": "Peak learning rate (REALM 3e-5, ICT 1e-4)."})
    weight_decay: float = field(default=0.01, metadata={"help": "Decoupled weight decay."})
    adam_beta1: float = field(default=0.9, metadata={"help": "Decay rate of the first moment."})
    adam_beta2: float = field(default=0.999, metadata={"help": "Decay rate of the second moment."})
    adam_epsilon: float = field(default=1e-6, metadata={"help": "AdamW epsilon; BERT's 1e-6 as released."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Clip the global gradient norm; 0 switches it off."})
    warmup_steps: int = field(default=0, metadata={"help": "Linear warm-up; then linear decay to 0 at max_steps."})
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

    # Parameters that control what is told
    logging_steps: int = field(default=10, metadata={"help": "Print and track every so many steps."})
    eval_steps: int = field(default=0, metadata={"help": "Evaluate every so many steps; 0: only at the end."})
    report_to: list[str] = field(
        default_factory=lambda: ["none"], metadata={"help": "Trackers: none, all, or names (tensorboard, wandb ...)."}
    )
    disable_tqdm: bool = field(default=False, metadata={"help": "No progress bar."})

    def __post_init__(self) -> None:
        if not self.output_dir:
            raise ValueError("output_dir is empty. Name the folder of the run, e.g. --output_dir runs/mine.")
        self._at_least(1, "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "logging_steps")
        self._at_least(0, "warmup_steps", "save_steps", "eval_steps", "weight_decay", "max_grad_norm", "seed")
        self._at_least(0, "max_skipped_steps")
        if self.save_total_limit is not None:
            self._at_least(1, "save_total_limit")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}. Give a positive one, e.g. 3e-5.")

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


@dataclass
class InverseClozeTrainingArguments(LoopArguments):
    """Parameters of the ICT warm start (ORQA, section 5; REALM, section 3.4).

    The contrastive batch is `per_device_train_batch_size * gradient_accumulation_steps * processes`: by gradient
    caching every accumulated example is a negative for all others, so memory does not bound the negatives.
    """

    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate (REALM 3e-5, ICT 1e-4)."})
    keep_probability: float = field(
        default=0.1, metadata={"help": "How often the sentence stays in its passage, so that words are learned too."}
    )
    mask_probability: float = field(
        default=0.0, metadata={"help": "How often some wordpieces of the sentence are masked, as in pre-training."}
    )
    max_query_length: int = field(
        default=MAX_QUERY_LENGTH, metadata={"help": "Wordpieces of a query, special tokens included."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("keep_probability", "mask_probability"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is {getattr(self, name)}, but is a probability: between 0 and 1.")
        self._at_least(4, "max_query_length")
        if self.per_device_train_batch_size * self.gradient_accumulation_steps < 2:
            raise ValueError(
                "The contrastive batch is 1: an example has no negative. Raise per_device_train_batch_size or "
                "gradient_accumulation_steps."
            )


@dataclass
class RefreshArguments(LoopArguments):
    """Parameters that the loops with an index share: pre-training and fine-tuning."""

    # Parameters that control the optimizer
    retriever_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Peak rate of the towers, on the same schedule; default: learning_rate, as published."},
    )

    # Parameters that control the refresh of the index (section 3.3)
    refresh: RefreshMode = field(default="async", metadata={"help": "sync, async, external or off."})
    refresh_steps: int = field(default=500, metadata={"help": "A snapshot for the builder every so many steps."})
    max_staleness: int | None = field(
        default=None, metadata={"help": "Steps that the served generation may lag behind; see on_stale."}
    )
    on_stale: OnStale = field(
        default="continue", metadata={"help": "Beyond max_staleness: continue (and warn), wait, or sync (build now)."}
    )
    index_factory: str = field(
        default="auto",
        metadata={"help": "A FAISS factory string; auto: Flat up to 100,000 passages, then lists at recall 0.97."},
    )
    encode_dtype: EncodeDtype = field(
        default="auto",
        metadata={"help": "Passages are embedded in float32, tf32 or bfloat16; auto: tf32 on GPUs that have it."},
    )
    index_threads: int | None = field(
        default=None,
        metadata={"help": "CPU threads of the index; default: all cores where training does not need them."},
    )
    builder_threads: int = field(default=1, metadata={"help": "CPU threads of the builder process."})
    builder_device: str = field(default="cpu", metadata={"help": "Device of the builder process, e.g. cuda:1."})
    keep_generations: int = field(
        default=2, metadata={"help": "Newest generations left on disk, with their snapshots; 0: all."}
    )
    probe_queries: int = field(default=32, metadata={"help": "Queries on which each swap's churn is measured."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.retriever_learning_rate is not None and not self.retriever_learning_rate > 0:
            raise ValueError(f"retriever_learning_rate is {self.retriever_learning_rate}. Give a positive one.")
        self._one_of("refresh", get_args(RefreshMode))
        self._one_of("on_stale", get_args(OnStale))
        self._one_of("encode_dtype", get_args(EncodeDtype))
        self._at_least(1, "refresh_steps", "builder_threads")
        self._at_least(0, "probe_queries", "keep_generations")
        if self.index_threads is not None:
            self._at_least(1, "index_threads")
        if self.max_staleness is None:
            if self.on_stale != "continue":
                raise ValueError(f"on_stale is {self.on_stale!r}, but max_staleness is not set. Give it in steps.")
        elif self.max_staleness < self.refresh_steps:
            raise ValueError(
                f"max_staleness is {self.max_staleness} steps, but a new generation is begun only every refresh_steps "
                f"= {self.refresh_steps}. Raise the first or lower the second."
            )
        if self.on_stale == "sync" and self.refresh in ("external", "off"):
            raise ValueError(
                f"on_stale='sync' builds in the trainer, which refresh={self.refresh!r} forbids. Use on_stale='wait' "
                "or refresh='async'."
            )
        if self.refresh == "off" and self.max_staleness is not None:
            raise ValueError("refresh='off' never renews the index, so max_staleness cannot hold. Drop one of them.")

    @property
    def index_settings(self) -> dict[str, Any]:
        """What a run directory is created with, and must have been created with."""
        return {"index_factory": self.index_factory, "encode_dtype": self.encode_dtype}


@dataclass
class RealmTrainingArguments(RefreshArguments):
    """Parameters of REALM pre-training (section 3)."""

    # Parameters that control the example
    masking: Masking = field(default="salient", metadata={"help": "salient (section 3.4), span or uniform."})
    max_masked_tokens: int = field(default=10, metadata={"help": "A longer span is skipped, and counted."})
    max_query_length: int = field(
        default=MAX_QUERY_LENGTH, metadata={"help": "Wordpieces of a query, special tokens included."}
    )
    max_candidate_length: int = field(
        default=MAX_PASSAGE_LENGTH, metadata={"help": "Wordpieces of a candidate, specials included."}
    )

    # Parameters that control the objective
    num_candidates: int = field(default=8, metadata={"help": "K, the null passage counted."})
    marginalization: Marginalization | None = field(
        default=None, metadata={"help": "token (released) or span (paper, eq. 1). Default: what the model says."}
    )
    freeze_retriever_steps: int = field(
        default=0, metadata={"help": "The towers get no update in the first so many steps: the encoder reads first."}
    )
    reading_candidates: int | None = field(
        default=None,
        metadata={"help": "K while the towers are frozen; default: num_candidates. Fewer means faster steps."},
    )
    detach_retrieval: bool = field(
        default=False, metadata={"help": "Ablation: p(z|x) is a constant, so that the retriever learns nothing."}
    )

    # Parameters that control retrieval
    retrieval_depth: int = field(default=1, metadata={"help": "Steps whose candidates are retrieved in advance."})
    query_encoder: QueryEncoder = field(
        default="snapshot",
        metadata={"help": "snapshot: queries by the weights the index was built from (released); live: by today's."},
    )

    # Parameters that control the held-out evaluation
    per_device_eval_batch_size: int = field(default=8, metadata={"help": "Examples a device evaluates at once."})
    max_eval_sentences: int = field(default=256, metadata={"help": "Evaluate on the first so many held-out ones."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self._one_of("masking", get_args(Masking))
        self._one_of("query_encoder", get_args(QueryEncoder))
        if self.reading_candidates is not None:
            self._at_least(1, "reading_candidates")
            if self.freeze_retriever_steps == 0:
                raise ValueError(
                    f"reading_candidates is {self.reading_candidates}, but freeze_retriever_steps is 0: no step would "
                    "use it. Set the second, or drop the first."
                )
        if self.marginalization is not None:
            self._one_of("marginalization", get_args(Marginalization))
        self._at_least(1, "max_masked_tokens", "num_candidates", "per_device_eval_batch_size", "max_eval_sentences")
        self._at_least(0, "freeze_retriever_steps", "retrieval_depth")
        self._at_least(4, "max_query_length", "max_candidate_length")


def parse_arguments(types: Sequence[Any], argv: Sequence[str] | None = None) -> tuple[Any, ...]:
    """Fill dataclasses from the command line; a YAML file given first sets what the command line does not.

    Args:
        types: dataclasses whose field names are distinct.
        argv: arguments; `sys.argv[1:]` by default. `["run.yaml", "--max_steps", "5"]` reads the file, then overrides.

    Returns:
        One instance for each type, in order.

    Raises:
        FileNotFoundError: the YAML file is not there.
        ValueError: the file is no mapping, or names a field that no dataclass has.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    known = {f.name for kind in types for f in dataclasses.fields(kind) if f.init}
    if arguments and arguments[0].endswith((".yaml", ".yml")):
        arguments = _yaml_as_arguments(Path(arguments[0]), known) + arguments[1:]
    parser = HfArgumentParser(list(types), allow_abbrev=False)
    *parsed, unknown = parser.parse_args_into_dataclasses(args=arguments, return_remaining_strings=True)
    if unknown:
        raise ValueError(_unknown(unknown[0].split("=")[0].lstrip("-"), known))
    return tuple(parsed)


def _unknown(name: str, known: set[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return f"There is no argument {name!r}." + (f" Did you mean {near[0]!r}?" if near else " See --help.")


def _yaml_as_arguments(path: Path, known: set[str]) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no configuration file {path}. Give the path of a YAML file, or --options.")
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}, but must be a mapping of argument names to values.")
    words: list[str] = []
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"{path}: {_unknown(str(name), known)}")
        if value is None:
            continue
        items = value if isinstance(value, list) else [value]
        # `--name=value` keeps values that begin with a dash; a list needs separate words.
        words += [f"--{name}", *map(str, items)] if isinstance(value, list) else [f"--{name}={items[0]}"]
    return words
