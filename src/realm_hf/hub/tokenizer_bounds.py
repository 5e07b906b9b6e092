"""What a stranger's `tokenizer.json` and `tokenizer_config.json` may say.

A tokenizer is a small program: each step rewrites the text for the next. Steps that take a pattern or a text of the
file's own are not read, because what they do depends on a text that nobody has seen yet: five replacements of one
letter by thirty make 700 MB of a sentence, and a pattern may search for ever. The steps that are read cannot be made
larger than they are, and each stands there once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from realm_hf.untrusted.checks import HubArtefactError

__all__ = ["LARGEST_TOKENIZER", "check_tokenizer", "kept_configuration"]

LARGEST_TOKENIZER = 64 << 20
"""Bytes of a tokenizer's file; a vocabulary of 250,000 entries has 17 MB."""
_MOST_ENTRIES, _LONGEST_ENTRY = 1 << 21, 256  # of a vocabulary; BERT's have 30,522 of at most 18 characters
_MOST_ADDED = 10_000
_LONGEST_WORD = 200  # characters of a word that WordPiece cuts, in quadratic time; BERT's have 100
_LONGEST_PREFIX = 16
_MOST_IN_TEMPLATE = 16
_LONGEST_INPUT = 1 << 16
_LONGEST_STRING = 1000

_STEPS = {
    "normalizer": {
        "BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Sequence", "Strip", "StripAccents",
    },
    "pre_tokenizer": {
        "BertPreTokenizer", "ByteLevel", "Digits", "Metaspace", "Punctuation", "Sequence", "UnicodeScripts",
        "Whitespace", "WhitespaceSplit",
    },
    "post_processor": {"BertProcessing", "ByteLevel", "RobertaProcessing", "Sequence", "TemplateProcessing"},
    "decoder": {"BPEDecoder", "ByteFallback", "ByteLevel", "Fuse", "Metaspace", "Sequence", "WordPiece"},
}  # fmt: skip
_PARTS_OF_SEQUENCE = {
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
    "post_processor": "processors",
    "decoder": "decoders",
}
_MODELS = {"BPE", "Unigram", "WordLevel", "WordPiece"}

CLASSES = {
    "BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MPNetTokenizer", "PreTrainedTokenizerFast",
    "RealmTokenizer", "RobertaTokenizer", "TokenizersBackend",
}  # fmt: skip
_Kinds = type | tuple[type, ...]
_TOKEN = (str, dict)  # its text, or that and how it is cut off from its neighbours
_KEPT: dict[str, _Kinds] = {
    "tokenizer_class": str,
    **dict.fromkeys(("do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_prefix_space"), bool),
    "clean_up_tokenization_spaces": bool,
    "model_max_length": (int, float),
    "model_input_names": list,
    **dict.fromkeys(("padding_side", "truncation_side"), str),
    **dict.fromkeys(("unk_token", "sep_token", "pad_token", "cls_token", "mask_token"), _TOKEN),
    **dict.fromkeys(("bos_token", "eos_token"), _TOKEN),
    "additional_special_tokens": list,
    "extra_special_tokens": (list, dict),
    "added_tokens_decoder": dict,
}


def check_tokenizer(content: Mapping[str, Any]) -> None:
    """
    Raise a `HubArtefactError` if a `tokenizer.json` has a step that is not read, or one beyond bounds.

    Raises:
        HubArtefactError: Names the step.
        KeyError, TypeError, AttributeError: If it has another form than a tokenizer's file.
    """
    for part in _STEPS:
        if content.get(part) is not None:
            _check_step(content[part], part, set())
    _check_model(content["model"])
    _check_count(content.get("added_tokens") or [], _MOST_ADDED, "added tokens")
    _check_lengths((token["content"] for token in content.get("added_tokens") or []), "added token")
    for part in ("truncation", "padding"):
        settings = content.get(part) or {}
        numbers = [settings.get(name) for name in ("max_length", "stride", "pad_to_multiple_of")]
        strategy = settings.get("strategy")
        numbers += list(strategy.values()) if isinstance(strategy, dict) else []
        if any(number is not None and not _is_count(number, _LONGEST_INPUT) for number in numbers):
            raise HubArtefactError(f"its {part} is {str(settings)[:200]}; lengths go up to {_LONGEST_INPUT}")


def kept_configuration(content: Mapping[str, Any]) -> dict[str, Any]:
    """
    The entries of a `tokenizer_config.json` that are read; others, such as templates, are left out.

    Raises:
        HubArtefactError: If one of them is beyond bounds, or the class is not among those that are loaded.
    """
    name = content.get("tokenizer_class")
    if not isinstance(name, str) or name.removesuffix("Fast") not in {one.removesuffix("Fast") for one in CLASSES}:
        raise HubArtefactError(
            f"its class is {str(name)[:80]!r}; loaded are {', '.join(sorted(CLASSES))}: save it as one of them"
        )
    kept = {name: content[name] for name in _KEPT if name in content}
    for entry, value in kept.items():
        if value is not None and not isinstance(value, _KEPT[entry]):
            raise HubArtefactError(f"its {entry} is {str(value)[:80]!r}, a {type(value).__name__}")
    _check_plain(kept, 0)
    return kept


def _check_plain(value: object, depth: int) -> None:
    """Short texts, numbers and lists of them, not deeper than an added token."""
    if isinstance(value, str) and len(value) > _LONGEST_STRING:
        raise HubArtefactError(f"its configuration holds a text of {len(value)} characters")
    if isinstance(value, Mapping | list):
        if depth > 3 or len(value) > _MOST_ADDED:
            raise HubArtefactError(f"its configuration holds {len(value)} entries, {depth} deep")
        for inner in [*value, *value.values()] if isinstance(value, Mapping) else value:
            _check_plain(inner, depth + 1)


def _check_step(step: Mapping[str, Any], part: str, seen: set[str]) -> None:
    kind = step["type"]
    if kind not in _STEPS[part] or kind in seen:
        raise HubArtefactError(
            f"its {part} has a step {str(kind)[:80]!r}, {'twice' if kind in seen else 'which is not read'}; read are, "
            f"once each, {', '.join(sorted(_STEPS[part]))}"
        )
    seen.add(kind)
    if kind == "Sequence":
        for inner in step[_PARTS_OF_SEQUENCE[part]]:
            _check_step(inner, part, seen)
    if kind == "TemplateProcessing":
        for name in ("single", "pair", "special_tokens"):
            _check_count(step[name], _MOST_IN_TEMPLATE, f"entries of {name}")
        for token in step["special_tokens"].values():
            _check_count(token["ids"], _MOST_IN_TEMPLATE, "ids of a special token")
    for name in ("prefix", "suffix", "replacement"):
        _check_prefix(step.get(name), name)


def _check_model(model: Mapping[str, Any]) -> None:
    kind = model["type"]
    if kind not in _MODELS or model.get("dropout"):
        raise HubArtefactError(f"its model is {str(kind)[:80]!r} with dropout {str(model.get('dropout'))[:20]}")
    vocabulary = model["vocab"]
    _check_count(vocabulary, _MOST_ENTRIES, "entries of the vocabulary")
    _check_lengths((one if isinstance(one, str) else one[0] for one in vocabulary), "entry of the vocabulary")
    _check_count(model.get("merges") or [], _MOST_ENTRIES, "merges")
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        _check_prefix(model.get(name), name)
    if not _is_count(model.get("max_input_chars_per_word", 0), _LONGEST_WORD):
        raise HubArtefactError(
            f"it cuts words of {str(model['max_input_chars_per_word'])[:40]} characters; at most {_LONGEST_WORD}"
        )


def _check_prefix(value: object, name: str) -> None:
    if value is not None and not (isinstance(value, str) and len(value) <= _LONGEST_PREFIX):
        raise HubArtefactError(f"its {name} is {str(value)[:40]!r}; at most {_LONGEST_PREFIX} characters")


def _check_count(values: Any, most: int, what: str) -> None:
    if len(values) > most:
        raise HubArtefactError(f"it has {len(values)} {what}; at most {most} are read")


def _check_lengths(texts: Iterable[str], what: str) -> None:
    longest = max((len(text) for text in texts), default=0)
    if longest > _LONGEST_ENTRY:
        raise HubArtefactError(f"an {what} has {longest} characters; at most {_LONGEST_ENTRY} are read")


def _is_count(value: object, most: int) -> bool:
    return type(value) is int and 0 <= value <= most
