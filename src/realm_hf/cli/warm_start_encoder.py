"""`realm-hf warm-start masked-lm`: an encoder learns to read, by masked language modelling on the passages.

    accelerate launch -m realm_hf warm-start masked-lm --knowledge_corpus wiki.parquet --output_dir runs/masked-lm \
        --model_name_or_path sentence-transformers/all-MiniLM-L6-v2 --max_steps 5000 --learning_rate 5e-4

Any encoder of transformers will do. One without a prediction head, as all sentence encoders are, begins with a new one
that is tied to its word embeddings. `--from_nothing` begins with no weights at all and makes its own vocabulary,
wordpieces for a BERT, byte-level BPE for another kind, as with model_type=roberta among the sizes:

    --vocab_size 8192 --from_nothing hidden_size=256,num_hidden_layers=4,num_attention_heads=4,intermediate_size=1024

RUN/model holds the encoder; give it to the other warm starts or to `realm-hf pretrain` as `--model_name_or_path`:
towers and encoder start from it.
"""

from pathlib import Path

from transformers import AutoConfig

from realm_hf.cli.arguments import EncoderArguments, KnowledgeArguments, LengthArguments
from realm_hf.cli.corpora import (
    hold_out_articles,
    is_another_encoder,
    prepare_passages,
    recurring_spans_of,
    tokenizer_of,
    train_and_save,
)
from realm_hf.cli.new_encoders import new_configuration, new_tokenizer, read_sizes
from realm_hf.cli.programs import one_line_errors, set_up_logging
from realm_hf.models.modeling_realm import RealmKnowledgeAugEncoder
from realm_hf.training import (
    MaskedLMTrainer,
    MaskedLMTrainingArguments,
    make_accelerator,
)


def load_encoder(name_or_path: str, seed: int) -> RealmKnowledgeAugEncoder:
    """An encoder that is there, with a new prediction head if it has none."""
    if is_another_encoder(AutoConfig.from_pretrained(name_or_path)):
        return RealmKnowledgeAugEncoder.from_encoders(encoder=name_or_path, new_head=True, seed=seed)
    return RealmKnowledgeAugEncoder.from_bert(name_or_path, pooler="identity", seed=seed)


def main(
    knowledge: KnowledgeArguments, lengths: LengthArguments, start: EncoderArguments, args: MaskedLMTrainingArguments
) -> int:
    """Run the command with these arguments; returns its exit code."""
    with one_line_errors("warm-start masked-lm"):
        accelerator = make_accelerator(args)
        set_up_logging(accelerator)
        run = Path(args.output_dir)
        if start.from_nothing is None:
            assert start.model_name_or_path is not None  # one of the two is given
            tokenizer = tokenizer_of(start.model_name_or_path)
            encoder = load_encoder(start.model_name_or_path, args.seed)
        else:
            kind, sizes = read_sizes(start.from_nothing)
            tokenizer = new_tokenizer(knowledge, kind, start.vocab_size, run / "tokenizer")
            encoder = RealmKnowledgeAugEncoder.from_scratch(new_configuration(kind, sizes, tokenizer), args.seed)
        passages = prepare_passages(knowledge, tokenizer, run / "passages", lengths.max_candidate_length)
        recurring = recurring_spans_of(passages, tokenizer, run)
        train, held_out = hold_out_articles(passages, start.heldout_fraction)
        trainer = MaskedLMTrainer(
            encoder,
            args,
            train_dataset=passages,
            processing_class=tokenizer,
            recurring=recurring,
            rows=train,
            eval_rows=held_out,
            accelerator=accelerator,
        )
    if accelerator.is_main_process:
        print(f"{len(passages):,} passages, {len(train):,} of them to train on; {len(recurring):,} spans recur")
    return train_and_save(trainer, tokenizer, accelerator)
