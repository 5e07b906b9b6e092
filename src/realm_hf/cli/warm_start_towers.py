"""`realm-hf warm-start inverse-cloze` and `recurring-spans`: the towers of a retriever learn first.

    realm-hf warm-start inverse-cloze --knowledge_corpus wiki.parquet --output_dir runs/ict \
        --model_name_or_path google-bert/bert-base-uncased \
        --max_steps 1000 --per_device_train_batch_size 32 --gradient_accumulation_steps 8

By the inverse cloze task (ORQA; REALM, section 3.4) a sentence asks for its passage; by recurring spans (Ram et al.,
2022) the words around a span ask for another passage with it. The contrastive batch is the product of batch size,
accumulation steps and processes: gradient caching makes every accumulated example a negative of all others. RUN/model
is a REALM model whose towers are trained and whose encoder is the BERT it started from; give it to `realm-hf pretrain`
as `--model_name_or_path`. With `--eval_questions` the towers are asked, before the first step, every `--eval_steps`
and at the end, how often they find a passage with the answer; each time they embed all passages.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from realm_hf.cli.arguments import EvaluationArguments, KnowledgeArguments, LengthArguments, ModelArguments
from realm_hf.cli.corpora import (
    load_model,
    load_tokenizer,
    prepare_passages,
    recurring_spans_of,
    train_and_save,
)
from realm_hf.cli.eval_questions import load_eval_questions
from realm_hf.cli.programs import one_line_errors, set_up_logging
from realm_hf.training import (
    InverseClozeTrainer,
    InverseClozeTrainingArguments,
    RecurringSpanTrainer,
    RecurringSpanTrainingArguments,
    make_accelerator,
)

__all__ = ["main"]


def main(
    knowledge: KnowledgeArguments,
    lengths: LengthArguments,
    model_args: ModelArguments,
    evaluation: EvaluationArguments,
    args: InverseClozeTrainingArguments,
) -> int:
    """Run the task that the arguments are of; returns its exit code."""
    task = "recurring-spans" if isinstance(args, RecurringSpanTrainingArguments) else "inverse-cloze"
    with one_line_errors(f"warm-start {task}"):
        accelerator = make_accelerator(args)
        set_up_logging(accelerator)
        run = Path(args.output_dir)
        tokenizer = load_tokenizer(model_args)
        passages = prepare_passages(knowledge, tokenizer, run / "passages", lengths.max_candidate_length)
        model = load_model(model_args, args.seed, passages)
        common: dict[str, Any] = {
            "train_dataset": passages,
            "processing_class": tokenizer,
            "eval_retrieval": load_eval_questions(evaluation),
            "accelerator": accelerator,
        }
        trainer: InverseClozeTrainer | RecurringSpanTrainer
        if isinstance(args, RecurringSpanTrainingArguments):
            recurring = recurring_spans_of(passages, tokenizer, run)
            trainer = RecurringSpanTrainer(model, args, recurring=recurring, **common)
        else:
            trainer = InverseClozeTrainer(model, args, **common)
    if accelerator.is_main_process:
        print(f"{len(passages):,} passages; {trainer.examples_per_step} queries, and as many negatives, a step")
    return train_and_save(trainer, tokenizer, accelerator)
