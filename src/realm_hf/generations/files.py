"""The two data files of a generation: written from front to back, checked before they are mapped."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from realm_hf.generations.manifest import (
    EMBEDDINGS_FILE,
    INDEX_FILE,
    CorruptGenerationError,
    FileRecord,
    GenerationInfo,
)
from realm_hf.index.base import IndexFileError
from realm_hf.index.exact import ExactIndex
from realm_hf.index.faiss_index import check_finite
from realm_hf.index.faiss_search import open_search_index

if TYPE_CHECKING:
    from realm_hf.index.base import Embeddings, SearchIndex

__all__ = ["check_hash", "check_pair", "check_sizes", "map_files", "write_array"]

_ROWS_A_CHUNK = 65_536
_RETRY_SECONDS = (0.1, 0.4)  # a network file system may show a directory before its files' sizes


def check_pair(embeddings: np.ndarray, index: SearchIndex | None) -> None:
    """
    Refuse embeddings and an index that do not belong together; without an index only the embeddings are looked at.

    Raises:
        ValueError: If dtype or shapes are not what a generation holds.
    """
    if embeddings.ndim != 2 or embeddings.dtype not in (np.float32, np.float16):
        raise ValueError(
            f"Embeddings must be a float32 or float16 matrix [N, D], got {embeddings.dtype} {list(embeddings.shape)}."
        )
    if index is not None and (len(index), index.dimension) != embeddings.shape:
        raise ValueError(
            f"The index holds {len(index)} rows of dimension {index.dimension}, the embeddings are "
            f"{list(embeddings.shape)}: build it from these embeddings."
        )


def write_array(array: Embeddings, write: Callable[[bytes | memoryview], Any]) -> None:
    """
    Write an array in the `.npy` format piece by piece, refusing NaN and infinity.

    Args:
        array (`np.ndarray` of shape `[N, D]`): May be memory-mapped.
        write (`Callable`): Takes each piece.

    Raises:
        ValueError: Names the first row that is not finite.
    """
    header = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(array.dtype)
    np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": array.shape})
    write(header.getvalue())
    for start in range(0, len(array), _ROWS_A_CHUNK):
        rows = np.ascontiguousarray(array[start : start + _ROWS_A_CHUNK])
        check_finite(rows, start)
        write(rows.reshape(-1).view(np.uint8).data)


def check_sizes(path: Path, info: GenerationInfo) -> None:
    """
    Compare the files' sizes with the manifest, a few times: a reader on a network file system may be ahead of them.

    Raises:
        CorruptGenerationError: Names the file and both sizes.
    """
    for pause in (*_RETRY_SECONDS, None):
        sizes = {name: (path / name).stat().st_size if (path / name).is_file() else None for name in info.files}
        wrong = [name for name, record in info.files.items() if sizes[name] != record.bytes]
        if not wrong:
            return
        if pause is None:
            name = wrong[0]
            found = "missing" if sizes[name] is None else f"{sizes[name]} bytes long"
            raise CorruptGenerationError(
                f"{path / name} is {found}, its manifest says {info.files[name].bytes} bytes: the generation is "
                "damaged; quarantine it and build another."
            )
        time.sleep(pause)


def check_hash(path: Path, found: str, record: FileRecord) -> None:
    """
    Compare a file's SHA-256 with the manifest.

    Raises:
        CorruptGenerationError: Names the file and the first digits of both hashes.
    """
    if found != record.sha256:
        raise CorruptGenerationError(
            f"{path} was changed after it was written: its SHA-256 is {found[:16]}..., the manifest says "
            f"{record.sha256[:16]}...; the file is damaged, build or save it again."
        )


def map_files(path: Path, info: GenerationInfo, *, mmap: bool = True) -> tuple[np.ndarray, SearchIndex]:
    """
    Map a generation's embeddings and index, and compare their headers with the manifest.

    Args:
        path (`Path`): Its directory.
        info ([`GenerationInfo`]): Its manifest. Where that names no index file, the embeddings are searched exactly.
        mmap (`bool`, *optional*, defaults to `True`): Map them; else read them.

    Raises:
        CorruptGenerationError: If a header is damaged or does not fit.
    """
    try:
        embeddings = np.load(path / EMBEDDINGS_FILE, mmap_mode="r" if mmap else None, allow_pickle=False)
        index: SearchIndex = ExactIndex(embeddings)
        if INDEX_FILE in info.files:
            index = open_search_index(path / INDEX_FILE, mmap=mmap, rows=info.rows, dimension=info.dimension)
    except (ValueError, EOFError, IndexFileError) as error:
        raise CorruptGenerationError(f"{path} is damaged: {error} Quarantine it and build another.") from error
    if embeddings.shape != (info.rows, info.dimension) or embeddings.dtype.name != info.dtype:
        raise CorruptGenerationError(
            f"{path / EMBEDDINGS_FILE} holds {embeddings.dtype} {list(embeddings.shape)}, its manifest says "
            f"{info.dtype} {[info.rows, info.dimension]}: quarantine the generation and build another."
        )
    return embeddings, index
