"""What the data layer must know about a tokenizer: its special tokens, the width of its ids, and its fingerprint.

Nothing here is hard-coded to BERT's usual numbers: old REALM configurations say `pad/bos/eos = 1/0/2` on a vocabulary
whose `[PAD]` is 0, so the tokenizer is the only source that is right.
"""

import hashlib
import json
from dataclasses import asdict, dataclass

import numpy as np
from transformers import BatchEncoding, PreTrainedTokenizerBase


@dataclass(frozen=True)
class SpecialTokens:
    """
    Ids of the special tokens that the released formats use.

    Args:
        pad (`int`): Id of `[PAD]`.
        cls (`int`): Id of `[CLS]`.
        sep (`int`): Id of `[SEP]`.
        mask (`int`): Id of `[MASK]`.
    """

    pad: int
    cls: int
    sep: int
    mask: int

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerBase) -> "SpecialTokens":
        """
        Read the ids from a tokenizer.

        Raises:
            ValueError: If the tokenizer lacks one of the four tokens.
        """
        found = {name: getattr(tokenizer, f"{name}_token_id") for name in ("pad", "cls", "sep", "mask")}
        missing = [f"{name}_token" for name, value in found.items() if value is None]
        if missing:
            raise ValueError(
                f"{type(tokenizer).__name__} has no {', '.join(missing)}, but the formats `[CLS] title [SEP] body "
                "[SEP]` and salient span masking need them: use a BERT-like tokenizer, or set these tokens on it"
            )
        return cls(**found)

    def to_dict(self) -> dict[str, int]:
        """The four ids as a JSON-ready dictionary."""
        return asdict(self)


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
        `BatchEncoding`: `input_ids` and, if asked for, `offset_mapping`, as lists.
    """
    return tokenizer(
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


def word_continuations(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """
    Which wordpieces go on with a word that another one began.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): A WordPiece tokenizer, which marks them with "##".

    Returns:
        `np.ndarray`: bool `[vocabulary size]`.

    Raises:
        ValueError: If no wordpiece is marked, so that nothing tells where a word ends.
    """
    vocabulary = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    continues = np.array([piece.startswith("##") for piece in vocabulary])
    if not continues.any():
        raise ValueError(
            f"{type(tokenizer).__name__} marks no wordpiece with '##', so that whole words cannot be told from their "
            "pieces: use a WordPiece tokenizer"
        )
    return continues


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
