"""The warm starts of `realm-hf pretrain`, each a training of its own in a folder of the run, in this order:

    RUN/masked_lm        the encoder learns to fill in words of the passages, and to copy from a second one
    RUN/inverse_cloze    the towers learn that a sentence asks for its passage (REALM, section 3.4)
    RUN/recurring_spans  the towers learn that the words around a span ask for another passage with it (Spider)

One that is over is only loaded; one that was stopped goes on from its newest checkpoint.
"""

from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from realm_hf.cli.arguments import WarmStartArguments
from realm_hf.cli.corpora import hold_out_articles, recurring_spans_of
from realm_hf.data import PassageStore
from realm_hf.models.modeling_realm import RealmForPreTraining
from realm_hf.training import (
    InverseClozeTrainer,
    InverseClozeTrainingArguments,
    MaskedLMTrainer,
    MaskedLMTrainingArguments,
    RealmTrainingArguments,
    RecurringSpanTrainer,
    RecurringSpanTrainingArguments,
    TrainingLoop,
    TrainingResult,
)
from realm_hf.training.sharding_launch import asked_sharding

_STEPS = ("masked_lm_steps", "inverse_cloze_steps", "recurring_span_steps")


def check_launch_of_warm_starts(warm: WarmStartArguments, args: RealmTrainingArguments) -> None:
    """Refuse warm starts under a launcher that shards the weights, before anything is prepared.

    Raises:
        ValueError: Both are asked for.
    """
    steps = {name: value for name, value in vars(warm).items() if name in _STEPS and value}
    if steps and asked_sharding(args) is not None:
        asked = " ".join(f"--{name} {value}" for name, value in steps.items())
        raise ValueError(
            f"The launcher asks for FSDP, but warm starts ({asked}) keep whole weights on each device. Take them in a "
            "run without FSDP, and start from its model: --model_name_or_path RUN/model."
        )


def warm_up(
    model: RealmForPreTraining,
    passages: PassageStore,
    tokenizer: PreTrainedTokenizerBase,
    warm: WarmStartArguments,
    args: RealmTrainingArguments,
    accelerator: Accelerator,
) -> TrainingResult | None:
    """All warm starts that are asked for; returns the result of the one that was interrupted, if one was."""
    run = Path(args.output_dir)
    common: dict[str, Any] = {"train_dataset": passages, "processing_class": tokenizer, "accelerator": accelerator}

    def masked_lm() -> TrainingLoop:
        train, heldout = hold_out_articles(passages)
        settings = MaskedLMTrainingArguments(
            max_length=warm.masked_lm_max_length,
            pair_probability=warm.masked_lm_pair_probability,
            eval_steps=args.eval_steps,
            **_shared(warm, args, "masked_lm", "masked_lm"),
        )
        recurring = recurring_spans_of(passages, tokenizer, run)
        return MaskedLMTrainer(model, settings, recurring=recurring, rows=train, eval_rows=heldout, **common)

    def inverse_cloze() -> TrainingLoop:
        settings = InverseClozeTrainingArguments(
            keep_probability=warm.inverse_cloze_keep_probability,
            mask_probability=warm.inverse_cloze_mask_probability,
            max_query_length=args.max_query_length,
            **_shared(warm, args, "inverse_cloze", "inverse_cloze"),
        )
        return InverseClozeTrainer(model, settings, **common)

    def recurring_spans() -> TrainingLoop:
        settings = RecurringSpanTrainingArguments(
            keep_probability=warm.recurring_span_keep_probability,
            max_query_length=args.max_query_length,
            **_shared(warm, args, "recurring_spans", "recurring_span"),
        )
        return RecurringSpanTrainer(model, settings, recurring=recurring_spans_of(passages, tokenizer, run), **common)

    asked = {
        masked_lm: warm.masked_lm_steps,
        inverse_cloze: warm.inverse_cloze_steps,
        recurring_spans: warm.recurring_span_steps,
    }
    for make, steps in asked.items():
        if steps:
            result = make().train(resume_from_checkpoint=True)
            if result.interrupted:
                return result
    return None


def _shared(warm: WarmStartArguments, args: RealmTrainingArguments, folder: str, prefix: str) -> dict[str, Any]:
    """The arguments of one warm start that all have, and those that are the run's."""
    run = Path(args.output_dir)
    names = ("seed", "bf16", "gradient_checkpointing", "use_cpu", "save_steps", "logging_steps", "disable_tqdm")
    return {
        "output_dir": str(run / folder),
        "run_name": f"{args.run_name or run.name}-{folder.replace('_', '-')}",
        "max_steps": getattr(warm, f"{prefix}_steps"),
        "per_device_train_batch_size": getattr(warm, f"{prefix}_batch_size"),
        "gradient_accumulation_steps": getattr(warm, f"{prefix}_accumulation_steps"),
        "learning_rate": getattr(warm, f"{prefix}_learning_rate"),
        "warmup_steps": getattr(warm, f"{prefix}_warmup_steps"),
        "save_total_limit": 1,
        **{name: getattr(args, name) for name in (*names, "max_skipped_steps", "allow_changed_arguments")},
    }
