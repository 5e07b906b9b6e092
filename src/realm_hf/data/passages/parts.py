"""A passage store in parts: what each range of documents gives, and how the parts become one store.

A part holds what the store will hold of its documents, and the hashes of its texts. Its digest is of its own content
alone, so that the fingerprint of the store, which is made of all digests in order, needs no second look at the content
and does not depend on who made which part. A store of one part has the fingerprint that stores had before there were
parts (format 1); the files are the same.
"""

import hashlib
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, List, Value, concatenate_datasets
from datasets.arrow_writer import ArrowWriter

from realm_hf.data.flat_arrays import RaggedArray, RaggedWriter
from realm_hf.data.passages.packing import COUNTS
from realm_hf.data.passages.store import FORMAT_VERSION
from realm_hf.data.ranges import RANGE_DOCUMENTS, Part
from realm_hf.data.vocabulary import SpecialTokens
from realm_hf.storage.files import describe_files, json_sha256

__all__ = ["DOCUMENTS_A_BATCH", "join_parts", "packed_features", "write_part", "write_store"]

DOCUMENTS_A_BATCH = 64
"""Digests depend on it."""
_ROW_FEATURES = Features({"title": Value("large_string"), "text": Value("large_string"), "document": Value("int64")})
_ARRAYS = ("title_tokens", "body_tokens", "sentence_starts")
_ROWS_A_CHUNK = 65_536
_ROWS_FILE, _HASHES_FILE = "rows.arrow", "text_hashes.npy"


def packed_features(dtype: np.dtype) -> Features:
    """One row a document. `List` offsets are 32-bit, which is ample for the passages of one batch of documents."""
    tokens, number = List(Value(dtype.name)), List(Value("int64"))
    columns: dict[str, Any] = {
        "title": Value("large_string"),
        "texts": List(Value("large_string")),
        "title_tokens": tokens,
        "body_tokens": tokens,
        "body_lengths": number,
        "sentence_starts": number,
        "sentence_counts": number,
        "text_hashes": number,
        "content_hashes": number,
    }
    return Features(columns | {name: Value("int64") for name in COUNTS})


@dataclass
class _ContentDigest:
    """Running hash of what the store says, apart from how its files happen to be laid out."""

    sha256: Any = field(default_factory=hashlib.sha256)

    def update(self, *arrays: np.ndarray) -> None:
        for array in arrays:
            self.sha256.update(np.ascontiguousarray(array, np.int64).tobytes())


def write_part(batches: Iterable[pa.Table], folder: Path, *, dtype: np.dtype, first_document: int) -> dict[str, Any]:
    """
    Stream the packed documents of a range into the flat arrays and rows of a part.

    Args:
        batches (iterable of `pa.Table`): [`DOCUMENTS_A_BATCH`] documents each, one a row, with the columns of
            [`packed_features`]; a column `document` gives each document another number than its place.
        folder (`Path`): The directory to write into.
        dtype (`np.dtype`): Type of the ids.
        first_document (`int`): Number of the first document.

    Returns:
        `dict[str, Any]`: What [`join_parts`] must know: documents, passages, counts, digest of the content.
    """
    writers = {name: RaggedWriter(folder, name, dtype) for name in _ARRAYS}
    counts: Counter[str] = Counter(dict.fromkeys(COUNTS, 0))
    digest, text_hashes, documents = _ContentDigest(), [np.zeros(0, np.int64)], 0
    with ArrowWriter(path=str(folder / _ROWS_FILE), features=_ROW_FEATURES) as rows:
        for batch in batches:
            passages = pc.list_value_length(batch["texts"]).to_numpy()
            of_document = np.repeat(np.arange(batch.num_rows), passages)
            numbers = first_document + documents + np.arange(batch.num_rows)
            if "document" in batch.column_names:
                numbers = batch["document"].to_numpy()
            title_lengths = pc.list_value_length(batch["title_tokens"]).to_numpy()
            body_lengths, sentence_counts = _flat(batch["body_lengths"]), _flat(batch["sentence_counts"])
            titles = _repeat_rows(_flat(batch["title_tokens"]), title_lengths, passages)
            writers["title_tokens"].append(titles, title_lengths[of_document])
            writers["body_tokens"].append(_flat(batch["body_tokens"]), body_lengths)
            writers["sentence_starts"].append(_flat(batch["sentence_starts"]), sentence_counts)
            rows.write_table(
                pa.table(
                    {
                        "title": batch["title"].take(pa.array(of_document)),
                        "text": batch["texts"].combine_chunks().flatten(),
                        "document": pa.array(numbers[of_document]),
                    }
                )
            )
            text_hashes.append(_flat(batch["text_hashes"]))
            digest.update(
                _flat(batch["content_hashes"]), body_lengths, sentence_counts, _flat(batch["sentence_starts"])
            )
            digest.update(titles, _flat(batch["body_tokens"]))
            counts.update({name: int(pc.sum(batch[name]).as_py()) for name in COUNTS})
            documents += batch.num_rows
        rows.finalize()
    for writer in writers.values():
        writer.close()
    np.save(folder / _HASHES_FILE, np.concatenate(text_hashes))
    passages_in_all = writers["body_tokens"].rows
    content = digest.sha256.hexdigest()
    return {"documents": documents, "passages": passages_in_all, "content": content, "counts": dict(counts)}


def join_parts(
    parts: Sequence[Part],
    work: Path,
    *,
    tokenizer_name: str,
    special_tokens: SpecialTokens,
    dtype: np.dtype,
    max_length: int,
    if_none: str,
) -> dict[str, Any]:
    """
    Make one store of parts: their arrays and rows one behind the other, and the groups of equal texts among all.

    Args:
        parts (sequence of [`~realm_hf.data.ranges.Part`]): In the order of the documents.
        work (`Path`): The directory to write into.
        tokenizer_name (`str`): Fingerprint of the tokenizer.
        special_tokens ([`SpecialTokens`]): Its special tokens.
        dtype (`np.dtype`): Type of the ids.
        max_length (`int`): Most wordpieces of a candidate input.
        if_none (`str`): What to do if there is no passage.

    Returns:
        `dict[str, Any]`: The content of `passages.json`, which the caller writes last.

    Raises:
        ValueError: If there is no passage.
    """
    documents, count = (sum(part.facts[name] for part in parts) for name in ("documents", "passages"))
    counts = {name: sum(part.facts["counts"][name] for part in parts) for name in COUNTS}
    if not count:
        raise ValueError(f"no passage came out of {documents} documents ({counts}): {if_none}")
    writers = {name: RaggedWriter(work, name, dtype) for name in _ARRAYS}
    files: dict[str, dict[str, Any]] = {}
    for name, writer in writers.items():
        for part in parts:
            _append(writer, RaggedArray(part.path, name, dtype))
        files |= writer.close()
    groups = _duplicate_groups(np.concatenate([np.load(part.path / _HASHES_FILE) for part in parts]))
    filled = [Dataset.from_file(str(part.path / _ROWS_FILE)) for part in parts if part.facts["passages"]]
    concatenate_datasets(filled).add_column("duplicate_group", groups).save_to_disk(str(work / "rows"))
    files |= describe_files(work / "rows", work)
    digests = [part.facts["content"] for part in parts]
    identity = {
        "format_version": 1 if len(parts) == 1 else FORMAT_VERSION,
        "tokenizer_fingerprint": tokenizer_name,
        "max_length": max_length,
        "content": digests[0] if len(parts) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest(),
    }
    return {
        "count": count,
        "fingerprint": json_sha256(identity)[:16],
        **identity,
        "dtype": dtype.name,
        "special_tokens": special_tokens.to_dict(),
        "statistics": {
            "documents": documents,
            "passages": count,
            "wordpieces": writers["body_tokens"].values,
            "duplicate_passages": count - int(groups.max()) - 1,
            **counts,
        },
        "files": files,
    }


def write_store(batches: Iterable[pa.Table], work: Path, *, dtype: np.dtype, **options: Any) -> dict[str, Any]:
    """
    Make a store of packed documents in this process: range by range, and then joined.

    Args:
        batches (iterable of `pa.Table`): See [`write_part`].
        work (`Path`): The directory to write into.
        dtype (`np.dtype`): Type of the ids.
        options: The others of [`join_parts`].

    Returns:
        `dict[str, Any]`: The content of `passages.json`, which the caller writes last.
    """
    folder, parts, documents = work / "parts", [], 0
    for number, batches_of_range in enumerate(_ranges(batches)):
        path = folder / str(number)
        path.mkdir(parents=True)
        parts.append(Part(path, write_part(batches_of_range, path, dtype=dtype, first_document=documents)))
        documents += parts[-1].facts["documents"]
    info = join_parts(parts, work, dtype=dtype, **options)
    shutil.rmtree(folder)
    return info


def _ranges(batches: Iterable[pa.Table]) -> Iterator[Iterator[pa.Table]]:
    """The batches of each range; those of one are read before the next is asked for."""
    rest = iter(batches)
    for first in rest:
        yield chain([first], islice(rest, RANGE_DOCUMENTS // DOCUMENTS_A_BATCH - 1))


def _append(writer: RaggedWriter, array: RaggedArray) -> None:
    for start in range(0, len(array), _ROWS_A_CHUNK):
        offsets = array.offsets[start : start + _ROWS_A_CHUNK + 1]
        writer.append(array.values[offsets[0] : offsets[-1]], np.diff(offsets))


def _flat(column: pa.ChunkedArray) -> np.ndarray:
    """All values of a list column as one numpy array."""
    return column.combine_chunks().flatten().to_numpy(zero_copy_only=False)


def _repeat_rows(values: np.ndarray, lengths: np.ndarray, repeats: np.ndarray) -> np.ndarray:
    """Ragged `np.repeat`: row `i` of `values` comes `repeats[i]` times, rows one after the other."""
    starts = np.repeat(np.cumsum(lengths) - lengths, repeats)
    sizes = np.repeat(lengths, repeats)
    within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return values[np.repeat(starts, sizes) + within]


def _duplicate_groups(hashes: np.ndarray) -> np.ndarray:
    """Number the distinct hashes 0, 1, ... in order of their first passage, int32 `[N]`."""
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int32)
    rank[np.argsort(first)] = np.arange(len(first), dtype=np.int32)
    return rank[inverse]
