"""`realm-hf warm-start masked-lm`: an encoder learns to read, by masked language modelling on the passages.

    accelerate launch -m realm_hf warm-start masked-lm --knowledge_corpus wiki.parquet --output_dir runs/masked-lm \
        --model_name_or_path sentence-transformers/all-MiniLM-L6-v2 --max_steps 5000 --learning_rate 5e-4

An encoder without a prediction head, as all sentence encoders are, begins with one that is tied to its word
embeddings. `--from_nothing` begins with no weights at all and makes its own vocabulary:

    --vocab_size 8192 --from_nothing hidden_size=256,num_hidden_layers=4,num_attention_heads=4,intermediate_size=1024

RUN/model holds the encoder; give it to the other warm starts or to `realm-hf pretrain` as `--model_name_or_path`:
towers and encoder start from it.
"""

from pathlib import Path
from typing import Any

from tokenizers import BertWordPieceTokenizer

from realm_hf.cli.arguments import EncoderArguments, KnowledgeArguments, LengthArguments
from realm_hf.cli.corpora import (
    hold_out_articles,
    once,
    prepare_passages,
    recurring_spans_of,
    train_and_save,
)
from realm_hf.cli.programs import one_line_errors, set_up_logging
from realm_hf.models.configuration_realm import RealmConfig
from realm_hf.models.modeling_realm import RealmKnowledgeAugEncoder
from realm_hf.models.tokenization_realm import RealmTokenizer
from realm_hf.training import (
    MaskedLMTrainer,
    MaskedLMTrainingArguments,
    make_accelerator,
)


def _sizes(text: str) -> dict[str, Any]:
    try:
        pairs = dict(part.split("=") for part in text.split(","))
        return {name: int(value) if value.isdigit() else float(value) for name, value in pairs.items()}
    except ValueError:
        raise SystemExit(f"--from_nothing is {text!r}: give names and numbers, as in hidden_size=256.") from None


def new_tokenizer(knowledge: KnowledgeArguments, vocab_size: int, folder: Path) -> RealmTokenizer:
    """A WordPiece vocabulary of the corpus, made once."""

    def build() -> None:
        made = BertWordPieceTokenizer(lowercase=True)
        texts = (text for batch in knowledge.documents().iter(1000) for text in batch[knowledge.text_column])
        made.train_from_iterator(texts, vocab_size=vocab_size, show_progress=False)
        words = sorted(made.get_vocab().items(), key=lambda item: item[1])
        # Under another name until it is whole: a kill leaves no vocabulary that the next start would take for one.
        partial = folder.with_name(f"{folder.name}-partial")
        partial.mkdir(parents=True, exist_ok=True)
        vocabulary = partial / "vocab.txt"
        vocabulary.write_text("".join(f"{word}\n" for word, _ in words), encoding="utf-8")
        RealmTokenizer(vocab=str(vocabulary), do_lower_case=True).save_pretrained(partial)
        partial.rename(folder)

    once(folder, {"knowledge_corpus": knowledge.knowledge_corpus, "vocab_size": vocab_size}, build)
    return RealmTokenizer.from_pretrained(folder)


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
            tokenizer = RealmTokenizer.from_pretrained(start.model_name_or_path)
            encoder = RealmKnowledgeAugEncoder.from_bert(start.model_name_or_path, pooler="identity", seed=args.seed)
        else:
            tokenizer = new_tokenizer(knowledge, start.vocab_size, run / "tokenizer")
            dropout: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
            config = RealmConfig(vocab_size=len(tokenizer), **dropout, **_sizes(start.from_nothing))
            encoder = RealmKnowledgeAugEncoder.from_scratch(config, args.seed)
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
