"""What the data layer must know about a tokenizer: its special tokens, the width of its ids, and its fingerprint.

Nothing here is hard-coded to BERT's usual numbers: old REALM configurations say `pad/bos/eos = 1/0/2` on a vocabulary
whose `[PAD]` is 0, so the tokenizer is the only source that is right.
"""

import hashlib
import json
from dataclasses import asdict, dataclass

import numpy as np
from transformers import BatchEncoding, PreTrainedTokenizerBase

from realm_hf.data.word_edges import marks_continuations
from realm_hf.models.templates import first_word_differs, separators_between


@dataclass(frozen=True)
class SpecialTokens:
    """
    Ids of the special tokens that the released formats use.

    Args:
        pad (`int`): Id of `[PAD]`.
        cls (`int`): Id of `[CLS]`.
        sep (`int`): Id of `[SEP]`.
        mask (`int`): Id of `[MASK]`.
        separators (`int`, *optional*, defaults to 1): `[SEP]` between two texts: RoBERTa and MPNet write two.
        first_word_differs (`bool`, *optional*, defaults to `False`): Whether a word has other ids at the beginning of
            a text than behind a space, as in byte-level BPE.
    """

    pad: int
    cls: int
    sep: int
    mask: int
    separators: int = 1
    first_word_differs: bool = False

    @property
    def of_pair(self) -> int:
        """Special tokens of two texts in one input."""
        return 2 + self.separators

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerBase) -> "SpecialTokens":
        """
        Read the ids from a tokenizer.

        Raises:
            ValueError: If the tokenizer lacks one of the four tokens, or writes two texts in a form of its own.
        """
        found = {name: getattr(tokenizer, f"{name}_token_id") for name in ("pad", "cls", "sep", "mask")}
        missing = [f"{name}_token" for name, value in found.items() if value is None]
        if missing:
            raise ValueError(
                f"{type(tokenizer).__name__} has no {', '.join(missing)}, but the formats `[CLS] title [SEP] body "
                "[SEP]` and salient span masking need them: use a BERT-like tokenizer, or set these tokens on it"
            )
        return cls(**found, separators=separators_between(tokenizer), first_word_differs=first_word_differs(tokenizer))

    def to_dict(self) -> dict[str, int | bool]:
        """The four ids as a JSON-ready dictionary, and what differs from BERT's template."""
        content = asdict(self)
        usual = {"separators": 1, "first_word_differs": False}
        return {name: value for name, value in content.items() if usual.get(name) != value}


def token_dtype(vocabulary_size: int) -> np.dtype:
    """The narrowest unsigned type that holds every id of a vocabulary: uint16 up to 65,536 entries, else uint32."""
    return np.dtype(np.uint16 if vocabulary_size <= 2**16 else np.uint32)


def require_fast_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise a `ValueError` for a tokenizer without character offsets, which sentences and spans are mapped through."""
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} gives no character offsets (`is_fast` is False): sentences and salient "
            "spans are mapped to wordpieces through them; load the tokenizer with `RealmTokenizer` or `AutoTokenizer`"
        )


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], return_offsets_mapping: bool = False
) -> BatchEncoding:
    """
    Wordpieces of many texts, whole and without special tokens.

    A text that happens to contain `[SEP]` or `[MASK]` (an article about BERT) gets their characters, not the tokens.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): A fast tokenizer.
        texts (`list[str]`): Texts of any length.
        return_offsets_mapping (`bool`, *optional*, defaults to `False`): Also give the characters of each wordpiece.

    Returns:
        `BatchEncoding`: `input_ids` and, if asked for, `offset_mapping`, as lists; no wordpiece begins with a space.
    """
    encoded = tokenizer(
        texts,
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        return_offsets_mapping=return_offsets_mapping,
        padding=False,
        truncation=False,
        verbose=False,
    )
    if return_offsets_mapping and not marks_continuations(tokenizer):
        # A piece that stands for a space and a word begins where the word does.
        encoded["offset_mapping"] = [
            [(end - len(text[start:end].lstrip()), end) for start, end in offsets]
            for text, offsets in zip(texts, encoded["offset_mapping"], strict=True)
        ]
    return encoded


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """
    A name for everything that decides which ids a text becomes: vocabulary, normalisation, splitting, special tokens.

    Truncation and padding are left out: they are set on the shared backend by whoever called the tokenizer last.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): A fast tokenizer.

    Returns:
        `str`: 16 hexadecimal digits.
    """
    require_fast_tokenizer(tokenizer)
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    parts = {key: value for key, value in backend.items() if key not in ("truncation", "padding")}
    parts["special_tokens"] = SpecialTokens.from_tokenizer(tokenizer).to_dict()
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]
