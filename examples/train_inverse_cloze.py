"""Warm-start a retriever alone by the inverse cloze task (ORQA; REALM, section 3.4).

    accelerate launch examples/train_inverse_cloze.py --knowledge_corpus wiki.parquet \
        --model_name_or_path google-bert/bert-base-uncased --output_dir runs/ict \
        --max_steps 1000 --per_device_train_batch_size 32 --gradient_accumulation_steps 8

The contrastive batch is the product of batch size, accumulation steps and processes: gradient caching makes every
accumulated example a negative of all others. RUN/model is a REALM model whose towers are trained and whose encoder is
the BERT it started from; give it to `pretrain.py --model_name_or_path`.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from corpora import (
    KnowledgeArguments,
    ModelArguments,
    load_model,
    load_tokenizer,
    prepare_passages,
    set_up_logging,
    train_and_save,
)
from realm_hf.data import MAX_PASSAGE_LENGTH
from realm_hf.training import (
    InverseClozeTrainer,
    InverseClozeTrainingArguments,
    make_accelerator,
    parse_arguments,
)


@dataclass
class PassageArguments:
    """Parameters that control the passages' length."""

    max_candidate_length: int = field(
        default=MAX_PASSAGE_LENGTH, metadata={"help": "Wordpieces of a passage, specials included."}
    )


def main() -> int:
    knowledge, lengths, model_args, args = parse_arguments(
        [KnowledgeArguments, PassageArguments, ModelArguments, InverseClozeTrainingArguments]
    )
    accelerator = make_accelerator(args)
    set_up_logging(accelerator)
    run = Path(args.output_dir)
    tokenizer = load_tokenizer(model_args)
    passages = prepare_passages(knowledge, tokenizer, run / "passages", lengths.max_candidate_length)
    model = load_model(model_args, args.seed, passages)
    trainer = InverseClozeTrainer(
        model, args, train_dataset=passages, processing_class=tokenizer, accelerator=accelerator
    )
    if accelerator.is_main_process:
        print(f"{len(passages):,} passages; {trainer.examples_per_step} sentences, and as many negatives, a step")
    return train_and_save(trainer, tokenizer, accelerator)


if __name__ == "__main__":
    sys.exit(main())
