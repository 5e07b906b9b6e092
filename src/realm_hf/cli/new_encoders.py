"""A new encoder, for `realm-hf warm-start masked-lm --from_nothing`: its configuration and its vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tokenizers import BertWordPieceTokenizer, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from realm_hf.cli.arguments import KnowledgeArguments
from realm_hf.cli.corpora import once
from realm_hf.models.any_encoder import encoder_configuration, positions_of
from realm_hf.models.configuration_realm import RealmConfig
from realm_hf.models.tokenization_realm import RealmTokenizer

__all__ = ["new_configuration", "new_tokenizer", "read_sizes"]

_BERT = "bert"
# Numbered as RoBERTa's: it counts positions from behind `pad`.
_SPECIAL = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
_DROPOUTS = (
    "attention_dropout",
    "attention_probs_dropout_prob",
    "dropout",
    "embedding_dropout",
    "hidden_dropout_prob",
    "mlp_dropout",
)


def read_sizes(text: str) -> tuple[str, dict[str, int | float]]:
    """
    What `--from_nothing` says.

    Args:
        text (`str`): Names and numbers, `hidden_size=256,num_hidden_layers=4`, and `model_type` for another kind of
            encoder than BERT.

    Returns:
        `tuple[str, dict]`: The kind, and the sizes.

    Raises:
        SystemExit: It is written otherwise.
    """
    try:
        entries = dict(part.split("=") for part in text.split(","))
        kind = entries.pop("model_type", _BERT)
        return kind, {name: int(value) if value.isdigit() else float(value) for name, value in entries.items()}
    except ValueError:
        raise SystemExit(f"--from_nothing is {text!r}: give names and numbers, as in hidden_size=256.") from None


def new_configuration(kind: str, sizes: dict[str, int | float], tokenizer: PreTrainedTokenizerBase) -> RealmConfig:
    """
    The configuration of a new encoder, without dropout unless `sizes` say otherwise.

    Args:
        kind (`str`): `"bert"`, or another `model_type` of transformers.
        sizes (`dict[str, int | float]`): Entries of its configuration.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.

    Raises:
        ValueError: transformers has no such encoder, or it has no such size.
    """
    if kind == _BERT:
        dropout: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        return RealmConfig(vocab_size=len(tokenizer), **(dropout | sizes))
    usual = encoder_configuration({"model_type": kind})
    entries = usual.to_dict()
    unknown = sorted(set(sizes) - set(entries) - set(usual.attribute_map))
    if unknown:
        raise ValueError(f"An encoder of type {kind!r} has no {', '.join(unknown)}: check the spelling.")
    special = {
        "pad_token_id": tokenizer.pad_token_id,
        **dict.fromkeys(("bos_token_id", "cls_token_id"), tokenizer.cls_token_id),
        **dict.fromkeys(("eos_token_id", "sep_token_id"), tokenizer.sep_token_id),
    }
    own: dict[str, Any] = {name: value for name, value in special.items() if name in entries}
    own |= {name: 0.0 for name in _DROPOUTS if name in entries}
    made: Any = type(usual)(**(own | {"vocab_size": len(tokenizer)} | sizes))
    if "max_position_embeddings" not in sizes:
        # Where padding takes some, as in RoBERTa, there are as many more.
        made.max_position_embeddings += made.max_position_embeddings - positions_of(made)
    return RealmConfig(encoder_config=made)


def new_tokenizer(knowledge: KnowledgeArguments, kind: str, vocab_size: int, folder: Path) -> PreTrainedTokenizerBase:
    """
    A vocabulary of the corpus, made once: wordpieces for a BERT, byte-level BPE for other kinds of encoders.

    Args:
        knowledge (`KnowledgeArguments`): The corpus.
        kind (`str`): Of the encoder.
        vocab_size (`int`): Tokens of the vocabulary.
        folder (`Path`): Where the tokenizer is stored.
    """
    write = _wordpieces if kind == _BERT else _byte_level

    def build() -> None:
        texts = (text for batch in knowledge.documents().iter(1000) for text in batch[knowledge.text_column])
        # Under another name until it is whole: a kill leaves no vocabulary that the next start would take for one.
        partial = folder.with_name(f"{folder.name}-partial")
        partial.mkdir(parents=True, exist_ok=True)
        write(texts, vocab_size, partial)
        partial.rename(folder)

    settings: dict[str, Any] = {"knowledge_corpus": knowledge.knowledge_corpus, "vocab_size": vocab_size}
    once(folder, settings if kind == _BERT else settings | {"model_type": kind}, build)
    found: Callable[..., PreTrainedTokenizerBase] = (
        RealmTokenizer.from_pretrained if kind == _BERT else PreTrainedTokenizerFast.from_pretrained
    )
    return found(folder)


def _wordpieces(texts: Iterable[str], vocab_size: int, folder: Path) -> None:
    made = BertWordPieceTokenizer(lowercase=True)
    made.train_from_iterator(texts, vocab_size=vocab_size, show_progress=False)
    words = sorted(made.get_vocab().items(), key=lambda item: item[1])
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("".join(f"{word}\n" for word, _ in words), encoding="utf-8")
    RealmTokenizer(vocab=str(vocabulary), do_lower_case=True).save_pretrained(folder)


def _byte_level(texts: Iterable[str], vocab_size: int, folder: Path) -> None:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(_SPECIAL.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    cls, sep = _SPECIAL["cls"], _SPECIAL["sep"]
    made.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} {sep} $B:1 {sep}:1",
        special_tokens=[(token, made.token_to_id(token)) for token in (cls, sep)],
    )
    tokens = {f"{name}_token": token for name, token in _SPECIAL.items()}
    PreTrainedTokenizerFast(tokenizer_object=made, **tokens).save_pretrained(folder)
