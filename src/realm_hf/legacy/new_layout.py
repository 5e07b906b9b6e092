"""Writes an old checkpoint's records and embeddings as a saved retriever, front to back, in bounded memory.

Nothing is held as a whole: records go from the restricted reader into Parquet, embeddings from the weights file into
`embeddings.npy` and, for an exact index, into `index.faiss` in the same pass. Other indexes are built by FAISS, which
holds them in memory.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from realm_hf.generations.manifest import EMBEDDINGS_FILE, INDEX_FILE, FileRecord
from realm_hf.index.default_index import plan_index
from realm_hf.index.faiss_index import build_index, check_finite
from realm_hf.index.file import flat_index_head, write_index
from realm_hf.knowledge.files import write_manifest
from realm_hf.legacy.block_records import BlockRecords
from realm_hf.legacy.retriever import check_counts
from realm_hf.progress import progress_bar
from realm_hf.storage.checkpoint_tensors import StoredTensor
from realm_hf.storage.files import HashingFile, describe_files, file_sha256
from realm_hf.untrusted.checks import check_room

__all__ = ["Part", "write_new_layout"]

_PARQUET = "passages.parquet"
_SCHEMA = pa.schema([("title", pa.large_string()), ("text", pa.large_string())])
_ROWS_A_CHUNK = 16_384


@dataclass(frozen=True)
class Part:
    """
    What was converted, and how fast.

    Args:
        what (`str`): `"records"` or `"embeddings"`.
        rows (`int`): How many.
        bytes (`int`): Of what was read.
        seconds (`float`): Wall time.
    """

    what: str
    rows: int
    bytes: int
    seconds: float

    @property
    def words(self) -> str:
        """For people, with rates."""
        rate = self.rows / max(self.seconds, 1e-9)
        megabytes = self.bytes / 1e6 / max(self.seconds, 1e-9)
        return f"{self.rows:,} {self.what} in {self.seconds:.1f} s ({rate:,.0f}/s, {megabytes:,.0f} MB/s)"


def write_new_layout(
    folder: Path,
    records: BlockRecords,
    embeddings: StoredTensor,
    *,
    factory: str = "Flat",
    dtype: Literal["float32", "float16"] = "float32",
    errors: Literal["strict", "replace"] = "strict",
    train_size: int | None = None,
    write_embedder: Callable[[Path], Any] | None = None,
) -> list[Part]:
    """
    Write a retriever that [`RealmRetriever.from_pretrained`] loads.

    Args:
        folder (`Path`): An existing directory without a retriever.
        records ([`BlockRecords`]): N records.
        embeddings ([`StoredTensor`] of shape `[N, D]`): Theirs.
        factory (`str`, *optional*, defaults to `"Flat"`): The index, see [`build_index`]; "Flat" is streamed.
        dtype (`str`, *optional*, defaults to `"float32"`): Of the stored embeddings.
        errors (`str`, *optional*, defaults to `"strict"`): See [`BlockRecords.columns`].
        train_size (`int`, *optional*): See [`build_index`].
        write_embedder (`Callable`, *optional*): Saves the passage tower into the directory that it is given.

    Returns:
        `list[Part]`: What took how long.

    Raises:
        ValueError: If records and embeddings differ in number; `BlockRecordsError` if the records are no texts.
        OSError: If the disk has too little room.
    """
    check_counts(records, embeddings.shape)
    rows, dimension = embeddings.shape
    plan = plan_index(factory, rows, train_size)
    factory, train_size = plan.factory, plan.train_size
    vectors = rows * dimension * (np.dtype(dtype).itemsize + (4 if factory == "Flat" else 0))
    check_room(folder, records.path.stat().st_size + vectors, "the conversion")
    parts, files = [], {}
    started = time.perf_counter()
    with pq.ParquetWriter(folder / _PARQUET, _SCHEMA) as writer, progress_bar(rows, "writing", "records") as bar:
        for column in records.columns(errors):
            titles = pa.repeat(pa.scalar("", pa.large_string()), len(column))
            writer.write_table(pa.Table.from_arrays([titles, column], schema=_SCHEMA))
            bar.update(len(column))
    parts.append(Part("records", rows, records.path.stat().st_size, time.perf_counter() - started))
    files[_PARQUET] = FileRecord((folder / _PARQUET).stat().st_size, file_sha256(folder / _PARQUET))
    started = time.perf_counter()
    files |= _write_vectors(folder, embeddings, np.dtype(dtype), exact=factory == "Flat")
    if factory != "Flat":
        stored = np.load(folder / EMBEDDINGS_FILE, mmap_mode="r", allow_pickle=False)
        index = build_index(stored, factory, train_size=train_size, recall=plan.recall)
        with HashingFile(folder / INDEX_FILE) as file:
            write_index(index, file.write)
        files[INDEX_FILE] = FileRecord(file.bytes, file.sha256)
    parts.append(Part("embeddings", rows, rows * dimension * embeddings.dtype.itemsize, time.perf_counter() - started))
    if write_embedder is not None:
        write_embedder(folder / "embedder")
        described = describe_files(folder / "embedder", folder)
        files |= {name: FileRecord(**record) for name, record in described.items()}
    write_manifest(folder, files, rows=rows, dimension=dimension, generation_name=None)
    return parts


def _write_vectors(folder: Path, source: StoredTensor, dtype: np.dtype, *, exact: bool) -> dict[str, FileRecord]:
    """`embeddings.npy` and, if the index is exact, `index.faiss`: the same numbers in the same order."""
    head = io.BytesIO()
    description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": source.shape}
    np.lib.format.write_array_header_1_0(head, description)
    with ExitStack() as stack:
        stored = stack.enter_context(HashingFile(folder / EMBEDDINGS_FILE))
        stored.write(head.getvalue())
        written = {EMBEDDINGS_FILE: stored}
        if exact:
            written[INDEX_FILE] = stack.enter_context(HashingFile(folder / INDEX_FILE))
            written[INDEX_FILE].write(flat_index_head(*source.shape))
        for rows in _finite(source):
            rounded = np.ascontiguousarray(rows, dtype)
            stored.write(_bytes(rounded))
            if exact:
                written[INDEX_FILE].write(_bytes(np.ascontiguousarray(rounded, np.float32)))
    return {name: FileRecord(file.bytes, file.sha256) for name, file in written.items()}


def _finite(source: StoredTensor) -> Iterator[np.ndarray]:
    row = 0
    with progress_bar(source.shape[0], "writing", "embeddings") as bar:
        for rows in source.chunks(_ROWS_A_CHUNK):
            check_finite(rows, row)
            yield rows
            row += len(rows)
            bar.update(len(rows))


def _bytes(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data
