"""An edited corpus as a new [`PassageStore`]: nothing is tokenized again, and nothing of the old store is changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from realm_hf.data.passages.build import packed_features, write_store
from realm_hf.data.passages.in_memory import PassageRecord
from realm_hf.data.passages.packing import COUNTS, content_hash, normalised_text_hash
from realm_hf.data.passages.store import PassageStore
from realm_hf.storage.files import write_json

__all__ = ["write_edited_passages"]

_PASSAGES_A_BATCH = 64  # as in a build: the fingerprint depends on it
_NO_DOCUMENT = -1


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
        documents=len(rows),
        tokenizer_name=store.tokenizer_fingerprint,
        special_tokens=store.special_tokens,
        dtype=store.dtype,
        max_length=store.max_length,
        if_none="all passages were removed",
    )
    (work / "packed_rows.arrow").unlink()
    write_json(work / "passages.json", info, durable=False)


def _batches(store: PassageStore, rows: np.ndarray, edited: Mapping[int, PassageRecord]) -> Iterator[pa.Table]:
    schema = packed_features(store.dtype).arrow_schema.append(pa.field("document", pa.int64())).remove_metadata()
    for start in range(0, len(rows), _PASSAGES_A_BATCH):
        part = rows[start : start + _PASSAGES_A_BATCH].tolist()
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
