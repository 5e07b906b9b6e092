"""Passages in memory: what an edit adds to a corpus that is mapped from files.

An edited corpus can be written as a store of its own: only what was added is tokenized; the old store stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from realm_hf.data.flat_arrays import RaggedArray
from realm_hf.data.passages.packing import COUNTS, PassagePacker, content_hash, normalised_text_hash
from realm_hf.data.passages.parts import DOCUMENTS_A_BATCH, packed_features, write_store
from realm_hf.data.passages.store import PassageStore
from realm_hf.data.passages.tokens import PassageTokens
from realm_hf.data.vocabulary import SpecialTokens, require_fast_tokenizer, token_dtype
from realm_hf.storage.files import write_json

__all__ = ["PassageRecord", "PassagesInMemory", "pack_passages", "write_edited_passages"]

logger = logging.get_logger(__name__)

_NO_DOCUMENT = -1


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


def write_edited_passages(
    store: PassageStore, rows: np.ndarray, edited: Mapping[int, PassageRecord], work: Path
) -> None:
    """
    Write the passages of `rows`, in that order, as a store.

    Its fingerprint is that of the store that [`passages_from_rows`] makes of the same titles and texts. Replaced
    passages keep their `document`, added ones get -1.

    Args:
        store ([`PassageStore`]): The passages as they were.
        rows (`np.ndarray`, int64 `[n]`): Which passages stay; rows from `len(store)` on are in `edited`.
        edited (`Mapping[int, PassageRecord]`): Row -> its passage as it is now, for those that differ.
        work (`Path`): An existing directory, which becomes the store.
    """
    info = write_store(
        _batches(store, rows, edited),
        work,
        tokenizer_name=store.tokenizer_fingerprint,
        special_tokens=store.special_tokens,
        dtype=store.dtype,
        max_length=store.max_length,
        if_none="all passages were removed",
    )
    write_json(work / "passages.json", info, durable=False)


def _batches(store: PassageStore, rows: np.ndarray, edited: Mapping[int, PassageRecord]) -> Iterator[pa.Table]:
    schema = packed_features(store.dtype).arrow_schema.append(pa.field("document", pa.int64())).remove_metadata()
    for start in range(0, len(rows), DOCUMENTS_A_BATCH):
        part = rows[start : start + DOCUMENTS_A_BATCH].tolist()
        untouched = [row for row in part if row not in edited]
        stored = iter(_records(store, untouched))
        records = [edited[row] if row in edited else next(stored) for row in part]
        table = {
            "title": [record.title for record in records],
            "texts": [[record.text] for record in records],
            "title_tokens": [record.title_ids for record in records],
            "body_tokens": [record.body_ids for record in records],
            "body_lengths": [[len(record.body_ids)] for record in records],
            "sentence_starts": [record.sentence_starts for record in records],
            "sentence_counts": [[len(record.sentence_starts)] for record in records],
            "text_hashes": [[record.text_hash] for record in records],
            "content_hashes": [[content_hash(record.title, record.text)] for record in records],
            "document": [int(store.documents[row]) if row < len(store) else _NO_DOCUMENT for row in part],
            **{name: [0] * len(records) for name in COUNTS},
        }
        table["sentences"] = [len(record.sentence_starts) for record in records]
        yield pa.table(table, schema=schema)


def _records(store: PassageStore, rows: list[int]) -> list[PassageRecord]:
    columns = store.rows[rows] if rows else {"title": [], "text": []}
    return [
        PassageRecord(
            title=title or "",
            text=text,
            title_ids=store.title_ids(row),
            body_ids=store.body_ids(row),
            sentence_starts=store.sentence_starts(row),
            text_hash=normalised_text_hash(text),
        )
        for row, title, text in zip(rows, columns["title"], columns["text"], strict=True)
    ]
