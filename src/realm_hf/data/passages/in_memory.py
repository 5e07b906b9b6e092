"""A few passages in memory: what an edit adds to a corpus that is mapped from files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from realm_hf.data.flat_arrays import RaggedArray
from realm_hf.data.passages.packing import PassagePacker
from realm_hf.data.passages.tokens import PassageTokens
from realm_hf.data.vocabulary import SpecialTokens, require_fast_tokenizer, token_dtype

__all__ = ["PassageRecord", "PassagesInMemory", "pack_passages"]

logger = logging.get_logger(__name__)


@dataclass(frozen=True, eq=False)
class PassageRecord:
    """
    One passage, as the store's files would hold it.

    Args:
        title (`str`): Its title.
        text (`str`): Its body.
        title_ids (`np.ndarray`): Wordpieces of the title, without special tokens.
        body_ids (`np.ndarray`): Wordpieces of the body.
        sentence_starts (`np.ndarray`): First wordpiece of each sentence of the body.
        text_hash (`int`): Equal for texts that differ in case, punctuation and spacing only.
    """

    title: str
    text: str
    title_ids: np.ndarray
    body_ids: np.ndarray
    sentence_starts: np.ndarray
    text_hash: int


class PassagesInMemory(PassageTokens):
    """
    Passages that were not written to files.

    Args:
        records (sequence of [`PassageRecord`]): M passages.
        max_length (`int`): Most wordpieces of `[CLS] title [SEP] body [SEP]`.
        special_tokens ([`SpecialTokens`]): Ids of the tokenizer's special tokens.
        dtype (`np.dtype`): Type of the ids.
    """

    def __init__(
        self, records: Sequence[PassageRecord], max_length: int, special_tokens: SpecialTokens, dtype: np.dtype
    ):
        self.records = tuple(records)
        self.max_length = max_length
        self.special_tokens = special_tokens
        self.dtype = dtype
        self.title_tokens = RaggedArray.from_rows([record.title_ids for record in records], dtype)
        self.body_tokens = RaggedArray.from_rows([record.body_ids for record in records], dtype)
        self._sentence_starts = RaggedArray.from_rows([record.sentence_starts for record in records], dtype)


def pack_passages(
    texts: Sequence[str], titles: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> PassagesInMemory:
    """
    Tokenize ready-made passages, as [`passages_from_rows`] does: one text becomes one passage, cut to `max_length`.

    Args:
        texts (sequence of M `str`): The bodies.
        titles (sequence of M `str`): The titles.
        tokenizer (`PreTrainedTokenizerBase`): A fast tokenizer.
        max_length (`int`): Most wordpieces of `[CLS] title [SEP] body [SEP]`.

    Returns:
        [`PassagesInMemory`]: A text that was cut is warned of.

    Raises:
        TypeError: If a text or title is no string.
        ValueError: If there are not as many titles as texts, or a text holds no wordpiece.
    """
    require_fast_tokenizer(tokenizer)
    if len(texts) != len(titles):
        raise ValueError(f"There are {len(titles)} titles for {len(texts)} texts: give one for each, or none.")
    for value in (*texts, *titles):
        if not isinstance(value, str):
            raise TypeError(f"A passage has {value!r}, a {type(value).__name__}: texts and titles must be strings.")
    special_tokens, dtype = SpecialTokens.from_tokenizer(tokenizer), token_dtype(len(tokenizer))
    packer = PassagePacker(tokenizer, max_length, 1, "title", "text", whole=True)
    # Half of a surrogate pair is no character; tokenizers refuse it.
    clean = {
        name: [value.encode("utf-8", "replace").decode("utf-8") for value in values]
        for name, values in {"title": titles, "text": texts}.items()
    }
    packed = packer(clean) if len(texts) else {}
    empty = [number for number, kept in enumerate(packed.get("texts", ())) if not kept]
    if empty:
        raise ValueError(
            f"Text {empty[0]} ({texts[empty[0]]!r}) holds nothing to read: leave it out, or remove its passage with "
            "`remove_passages`."
        )
    cut = sum(packed.get("passages_truncated", ()))
    if cut:
        logger.warning(
            "%d of %d texts do not fit %d wordpieces with their title and were cut: give them in shorter pieces",
            cut,
            len(texts),
            max_length,
        )
    names = ("title", "texts", "title_tokens", "body_tokens", "sentence_starts", "text_hashes")
    records = [
        PassageRecord(title, kept[0], title_ids, body_ids, np.asarray(starts, dtype), hashes[0])
        for title, kept, title_ids, body_ids, starts, hashes in zip(*(packed.get(n, ()) for n in names), strict=True)
    ]
    return PassagesInMemory(records, max_length, special_tokens, dtype)
