"""A published retriever on this machine: downloaded, checked against its description, and memory-mapped.

Only Parquet and flat arrays are read from the Hub; Arrow files, which can crash the process that maps them, are
written here. That copy is made once for each description, and named by its hash.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, Value
from datasets.arrow_writer import ArrowWriter
from huggingface_hub import cached_assets_path
from tqdm.auto import tqdm
from transformers.utils import logging

from ..data.passages import PassageStore
from ..hub_files import HubArtefactError, Source, check_room, human_bytes
from ..storage.directories import StagedDirectory
from ..storage.errors import explained
from ..storage.files import HashingFile, describe_files, file_sha256, write_json
from .faiss_index import build_index
from .hub_manifest import ARRAYS, COLUMNS, HubManifest, IndexRecord
from .index_file import IndexFileError, open_index
from .index_probe import probe_index
from .manifest import EMBEDDINGS_FILE
from .published_rows import published_rows

if TYPE_CHECKING:
    import faiss

__all__ = ["open_published_index", "open_published_passages", "published_files"]

logger = logging.get_logger(__name__)

_ROW_FEATURES = Features(
    {
        "title": Value("large_string"),
        "text": Value("large_string"),
        "document": Value("int64"),
        "duplicate_group": Value("int32"),
    }
)
_COMPLETE = "complete.json"


def published_files(source: Source, manifest: HubManifest, names: list[str]) -> dict[str, Path]:
    """
    Fetch small files of a publication (tokenizer, passage tower) and compare their hashes.

    Raises:
        HubArtefactError: If one is missing or was changed.
    """
    paths = source.fetch(names, manifest.sizes())
    for name, path in paths.items():
        _check_hash(path, manifest.files[name].sha256)
    return paths


def open_published_passages(source: Source, manifest: HubManifest) -> tuple[PassageStore | Dataset, np.ndarray]:
    """
    Passages and embeddings of a publication, memory-mapped.

    The first time, their files are downloaded, hashed and rewritten; the disk that it takes is told before.

    Args:
        source ([`Source`]): Where they are.
        manifest ([`HubManifest`]): Their description.

    Returns:
        `tuple` of the passages and the embeddings `[N, D]`.

    Raises:
        HubArtefactError: If a file is missing, was changed, or does not hold what the description says.
        OSError: If the disk has too little room.
    """
    folder = _place(source, manifest.content[:40])
    if not (folder / _COMPLETE).exists():
        names = [shard.file for shard in manifest.shards] + manifest.below("passages")
        _say_what_it_takes(source, manifest, names, folder)
        paths = published_files(source, manifest, names)
        with explained("write the passages into", folder):
            try:
                with StagedDirectory(folder) as staged:
                    _assemble(staged.path, manifest, paths)
            except FileExistsError:  # another process was faster
                if not (folder / _COMPLETE).exists():
                    raise
    embeddings = np.load(folder / EMBEDDINGS_FILE, mmap_mode="r", allow_pickle=False)
    if manifest.store is not None:
        return PassageStore.load(folder / "passages"), embeddings
    return Dataset.from_file(str(folder / "rows.arrow")), embeddings


def open_published_index(
    source: Source, manifest: HubManifest, choice: bool | str, embeddings: np.ndarray, mmap: bool = True
) -> faiss.Index | None:
    """
    The index of a publication.

    Args:
        source ([`Source`]): Where it is.
        manifest ([`HubManifest`]): Its description.
        choice (`bool` or `str`): `True` for the default one, the name of a variant, `"exact"` for a "Flat" index that
            is built here from the embeddings, `False` for none. Nothing else is downloaded.
        embeddings (`np.ndarray` of shape `[N, D]`): For `"exact"`.
        mmap (`bool`, *optional*, defaults to `True`): Map it instead of reading it.

    Raises:
        HubArtefactError: If it was changed, does not fit, or is of a kind that is not loaded from strangers.
        ValueError: If there is no such variant.
    """
    if choice is False:
        return None
    if choice == "exact":
        return build_index(embeddings)
    name = manifest.default_index if choice is True else choice
    if name not in manifest.indexes:
        raise ValueError(
            f"{source.words} has no index {name!r}: choose among {sorted(manifest.indexes)}, 'exact' (built here), or "
            "False (none)."
        )
    record = manifest.indexes[name]
    place = _place(source, f"index-{record.sha256[:40]}")
    path = place / "index.faiss"
    if not (place / _COMPLETE).exists():
        parts = source.fetch(record.parts, manifest.sizes())
        with explained("write the index into", place):
            try:
                with StagedDirectory(place) as staged:
                    _join(list(parts.values()), staged.path / "index.faiss", record)
                    probe_index(staged.path / "index.faiss", rows=manifest.rows, dimension=manifest.dimension)
                    write_json(staged.path / _COMPLETE, {"sha256": record.sha256}, durable=False)
            except FileExistsError:
                if not (place / _COMPLETE).exists():
                    raise
    try:
        return open_index(path, mmap=mmap, rows=manifest.rows, dimension=manifest.dimension)
    except IndexFileError as error:
        raise HubArtefactError(f"The index of {source.words} is refused: {error}") from error


def _place(source: Source, name: str) -> Path:
    assets = None if source.cache_dir is None else Path(source.cache_dir)
    return cached_assets_path("realm_hf", namespace="retrievers", subfolder=name, assets_dir=assets)


def _check_hash(path: Path, expected: str) -> None:
    if file_sha256(path) != expected:
        raise HubArtefactError(
            f"{path} does not have the SHA-256 that its description names ({expected[:16]}...): it is damaged or was "
            "changed; remove it and load again."
        )


def _say_what_it_takes(source: Source, manifest: HubManifest, names: list[str], folder: Path) -> None:
    download = sum(manifest.files[name].bytes for name in names)
    vectors = manifest.rows * manifest.dimension * np.dtype(manifest.dtype).itemsize
    texts = 4 * sum(manifest.files[shard.file].bytes for shard in manifest.shards)  # zstd halves text or thirds it
    logger.warning(
        "%s: %s passages. Downloading takes up to %s; a memory-mapped copy about %s more, made once, in %s.",
        source.words,
        f"{manifest.rows:,}",
        human_bytes(download),
        human_bytes(vectors + texts),
        folder,
    )
    check_room(folder, vectors + texts // 4, "the memory-mapped copy")


def _assemble(work: Path, manifest: HubManifest, paths: dict[str, Path]) -> None:
    """Write the mapped form of a publication's passages and embeddings."""
    store = manifest.store
    numbers = {
        name: np.memmap(paths[f"passages/{name}.bin"], dtype=dtype, mode="r")
        for name, dtype in COLUMNS.items()
        if store is not None
    }
    rows_file = work / "rows.arrow"
    vectors = _Vectors(manifest)
    try:
        with (
            ArrowWriter(path=str(rows_file), features=_features(store is not None)) as rows,
            HashingFile(work / EMBEDDINGS_FILE) as file,
            tqdm(total=manifest.rows, desc="Reading passages", unit=" passages", disable=None) as bar,
        ):
            file.write(vectors.header())
            start = 0
            for batch in _rows(manifest, paths):
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
        _assemble_store(work, store, paths, rows_file)
    write_json(work / _COMPLETE, {"content": manifest.content}, durable=False)


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


def _rows(manifest: HubManifest, paths: dict[str, Path]) -> Iterator[pa.Table]:
    for shard in manifest.shards:
        yield from published_rows(shard, paths[shard.file], manifest.dimension)


def _assemble_store(work: Path, store: dict[str, Any], paths: dict[str, Path], rows_file: Path) -> None:
    folder = work / "passages"
    folder.mkdir()
    for name in [f"{array}{end}.bin" for array in ARRAYS for end in ("", "_offsets")]:
        _link(paths[f"passages/{name}"], folder / name)
    for array in ARRAYS:
        _check_ragged(folder, array, np.dtype(store["dtype"]))
    Dataset.from_file(str(rows_file)).save_to_disk(str(folder / "rows"))
    rows_file.unlink()
    write_json(folder / "passages.json", {**store, "files": describe_files(folder, folder)}, durable=False)
    try:
        PassageStore(folder)
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise HubArtefactError(f"The published passages do not fit together: {error}") from error


def _check_ragged(folder: Path, name: str, dtype: np.dtype) -> None:
    """Offsets that go backwards or past the end would make rows overlap or end."""
    offsets = np.memmap(folder / f"{name}_offsets.bin", dtype=np.int64, mode="r")
    size = (folder / f"{name}.bin").stat().st_size
    if offsets[0] != 0 or offsets[-1] * dtype.itemsize != size or (np.diff(offsets) < 0).any():
        raise HubArtefactError(f"passages/{name}_offsets.bin does not describe {name}.bin: rows would overlap or end.")


def _link(source: Path, target: Path) -> None:
    """The same file under another name where the file system can, else a copy."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def _join(parts: list[Path], target: Path, record: IndexRecord) -> None:
    if len(parts) == 1:
        _link(parts[0], target)
    else:
        check_room(target.parent, record.bytes, "the joined index")
        with HashingFile(target) as file:
            for part in parts:
                with part.open("rb") as reader:
                    while piece := reader.read(4 << 20):
                        file.write(piece)
    _check_hash(target, record.sha256)
