"""The passages and embeddings of a publication on this machine: downloaded, checked and memory-mapped.

Only Parquet and flat arrays are read from the Hub; Arrow files, which can crash the process that maps them, are
written here. That copy is made once for each description, and named by its hash.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, Value
from datasets.arrow_writer import ArrowWriter
from transformers.utils import logging

from realm_hf.data.passages.build import PassageStore
from realm_hf.generations.manifest import EMBEDDINGS_FILE
from realm_hf.hub.hub_files import HubFiles
from realm_hf.hub.manifest import ARRAYS, COLUMNS, HubManifest
from realm_hf.hub.own_copies import COMPLETE, check_hash, place_of, take, write_once
from realm_hf.hub.parquet_rows import published_rows
from realm_hf.progress import progress_bar
from realm_hf.storage.files import HashingFile, describe_files, write_json
from realm_hf.untrusted.checks import HubArtefactError, check_room, human_bytes
from realm_hf.untrusted.refusing import refusing

__all__ = ["open_published_passages"]

logger = logging.get_logger(__name__)

_ROW_FEATURES = Features(
    {
        "title": Value("large_string"),
        "text": Value("large_string"),
        "document": Value("int64"),
        "duplicate_group": Value("int32"),
    }
)


def open_published_passages(source: HubFiles, manifest: HubManifest) -> tuple[PassageStore | Dataset, np.ndarray]:
    """
    Passages and embeddings of a publication, memory-mapped.

    The first time, their files are downloaded, hashed and rewritten; how much disk that takes is logged before.

    Args:
        source ([`HubFiles`]): Where they are.
        manifest ([`HubManifest`]): Their description.

    Returns:
        `tuple` of the passages and the embeddings `[N, D]`.

    Raises:
        HubArtefactError: If a file is missing, was changed, or does not hold what the description says.
        OSError: If the disk has too little room.
    """
    folder = place_of(source, manifest.content[:40])
    if not (folder / COMPLETE).exists():
        names = [shard.file for shard in manifest.shards] + manifest.below("passages")
        _say_what_it_takes(source, manifest, names, folder)
        paths = source.fetch(names, manifest.sizes())
        write_once(folder, "write the passages into", lambda work: _assemble(work, source, manifest, paths))
    embeddings = np.load(folder / EMBEDDINGS_FILE, mmap_mode="r", allow_pickle=False)
    if manifest.store is not None:
        return PassageStore.load(folder / "passages"), embeddings
    return Dataset.from_file(str(folder / "rows.arrow")), embeddings


def _say_what_it_takes(source: HubFiles, manifest: HubManifest, names: list[str], folder: Path) -> None:
    download = sum(manifest.files[name].bytes for name in names)
    vectors = manifest.rows * manifest.dimension * np.dtype(manifest.dtype).itemsize
    texts = 4 * sum(manifest.files[shard.file].bytes for shard in manifest.shards)  # zstd halves text or thirds it
    logger.warning(
        "%s: %s passages. Downloading takes up to %s; a memory-mapped copy about %s more, made once, in %s.",
        source.label,
        f"{manifest.rows:,}",
        human_bytes(download),
        human_bytes(vectors + texts),
        folder,
    )
    check_room(folder, vectors + texts // 4, "the memory-mapped copy")


def _assemble(work: Path, source: HubFiles, manifest: HubManifest, paths: dict[str, Path]) -> None:
    """Write the mapped form of a publication's passages and embeddings."""
    store = manifest.store
    for name in manifest.below("passages"):
        take(source, paths[name], work / name)
        check_hash(work / name, manifest.files[name].sha256, paths[name])
    numbers = {
        name: np.memmap(work / f"passages/{name}.bin", dtype=dtype, mode="r")
        for name, dtype in COLUMNS.items()
        if store is not None
    }
    rows_file = work / "rows.arrow"
    vectors = _Vectors(manifest)
    try:
        with (
            ArrowWriter(path=str(rows_file), features=_features(store is not None)) as rows,
            HashingFile(work / EMBEDDINGS_FILE) as file,
            progress_bar(manifest.rows, "reading", "passages") as bar,
        ):
            file.write(vectors.header())
            start = 0
            for batch in _rows(work, source, manifest, paths):
                stop = start + len(batch)
                columns = {name: batch[name] for name in ("title", "text")}
                columns |= {name: pa.array(values[start:stop]) for name, values in numbers.items()}
                rows.write_table(pa.table(columns))
                file.write(vectors.of(batch, start).reshape(-1).view(np.uint8).data)
                start = stop
                bar.update(len(batch))
            rows.finalize()
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise HubArtefactError(f"The published Parquet files are damaged: {error}") from error
    if store is not None:
        _assemble_store(work, store, rows_file)
    write_json(work / COMPLETE, {"content": manifest.content}, durable=False)


def _features(of_store: bool) -> Features:
    names = list(_ROW_FEATURES) if of_store else ["title", "text"]
    return Features({name: _ROW_FEATURES[name] for name in names})


class _Vectors:
    """The embeddings of a publication, in the type that they had."""

    def __init__(self, manifest: HubManifest):
        self.rows, self.dimension, self.dtype = manifest.rows, manifest.dimension, np.dtype(manifest.dtype)

    def header(self) -> bytes:
        """Of the `.npy` file; its rows follow as they come."""
        buffer = io.BytesIO()
        shape = (self.rows, self.dimension)
        description = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(buffer, description)
        return buffer.getvalue()

    def of(self, batch: pa.Table, start: int) -> np.ndarray:
        column = batch["embeddings"].combine_chunks()
        values = column.flatten()
        if column.null_count or values.null_count or len(values) != len(batch) * self.dimension:
            raise HubArtefactError(
                f"Rows {start} to {start + len(batch)} lack embeddings of {self.dimension} numbers."
            )
        vectors = values.to_numpy(zero_copy_only=False).reshape(len(batch), self.dimension)
        if not np.isfinite(vectors).all():
            raise HubArtefactError(f"An embedding among rows {start} to {start + len(batch)} holds NaN or infinity.")
        return vectors.astype(self.dtype)


def _rows(work: Path, source: HubFiles, manifest: HubManifest, paths: dict[str, Path]) -> Iterator[pa.Table]:
    """All rows; one file after the other lies in `work` while it is read, so that nobody changes it meanwhile."""
    taken = work / "shard.parquet"
    for shard in manifest.shards:
        take(source, paths[shard.file], taken)
        check_hash(taken, manifest.files[shard.file].sha256, paths[shard.file])
        yield from published_rows(shard, taken, manifest.dimension)
        taken.unlink()


def _assemble_store(work: Path, store: dict[str, Any], rows_file: Path) -> None:
    folder = work / "passages"
    for name in COLUMNS:
        (folder / f"{name}.bin").unlink()  # they are columns of the rows now
    for array in ARRAYS:
        _check_ragged(folder, array, np.dtype(store["dtype"]))
    Dataset.from_file(str(rows_file)).save_to_disk(str(folder / "rows"))
    rows_file.unlink()
    write_json(folder / "passages.json", {**store, "files": describe_files(folder, folder)}, durable=False)
    with refusing("The published passages, which do not fit together,"):
        PassageStore(folder)


def _check_ragged(folder: Path, name: str, dtype: np.dtype) -> None:
    """Offsets that go backwards or past the end would make rows overlap or end."""
    offsets = np.memmap(folder / f"{name}_offsets.bin", dtype=np.int64, mode="r")
    size = (folder / f"{name}.bin").stat().st_size
    if offsets[0] != 0 or offsets[-1] * dtype.itemsize != size or (np.diff(offsets) < 0).any():
        raise HubArtefactError(f"passages/{name}_offsets.bin does not describe {name}.bin: rows would overlap or end.")
