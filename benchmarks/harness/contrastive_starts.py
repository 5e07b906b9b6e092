"""The contrastive warm starts as arms: the inverse cloze task, recurring spans, or half of the steps of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from realm_hf import RealmEmbedder, RealmForPreTraining, RealmTokenizer
from realm_hf.data.passages.recurring import RecurringSpans
from realm_hf.data.passages.store import PassageStore
from realm_hf.training.arguments import InverseClozeTrainingArguments, RecurringSpanTrainingArguments
from realm_hf.training.contrastive import ContrastiveTrainer
from realm_hf.training.inverse_cloze import InverseClozeTrainer
from realm_hf.training.recurring_spans import RecurringSpanTrainer

ICT, RECURRING, BOTH = "ict", "recurring", "both"


def tasks_of(arm: str, steps: int) -> list[tuple[str, int]]:
    """The tasks of an arm, each with its steps; of both the first may have none, and is left out."""
    if arm != BOTH:
        return [(arm, steps)]
    half = steps // 2
    return [*([(ICT, half)] if half else []), (RECURRING, steps - half)]


def contrastive_trainer(
    task: str,
    model: RealmEmbedder | RealmForPreTraining,
    passages: PassageStore,
    tokenizer: RealmTokenizer,
    recurring: RecurringSpans,
    run: Path,
    **settings: Any,
) -> ContrastiveTrainer:
    """The trainer of one task.

    Args:
        task: ICT or RECURRING.
        model: Its towers are trained.
        passages: What they are trained on.
        tokenizer: Theirs.
        recurring: The recurring spans of the passages.
        run: The run directory.
        settings: Arguments of both trainings; a tenth of `max_steps` warms up.
    """
    common: dict[str, Any] = {
        "output_dir": str(run),
        "warmup_steps": max(1, settings["max_steps"] // 10),
        "disable_tqdm": True,
        **settings,
    }
    data: dict[str, Any] = {"train_dataset": passages, "processing_class": tokenizer}
    if task == ICT:
        return InverseClozeTrainer(model, InverseClozeTrainingArguments(**common), **data)
    return RecurringSpanTrainer(model, RecurringSpanTrainingArguments(**common), recurring=recurring, **data)
