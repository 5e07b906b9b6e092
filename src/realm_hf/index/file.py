"""FAISS index files: written with every error reported, opened memory-mapped and guarded."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss

from realm_hf.index.base import IndexFileError, Saveable
from realm_hf.index.guarded_read import ForeignListsError, read_guarded
from realm_hf.index.structure import StructureError, check_structure
from realm_hf.storage.files import replacement

__all__ = [
    "check_family",
    "faiss_reason",
    "flat_index_head",
    "index_file_bytes",
    "open_index",
    "save_index",
    "write_index",
]

_FAISS_CLASSES = re.compile(
    r"Index(Flat(IP)?|ScalarQuantizer|PQ(FastScan)?|IVF(Flat|PQ|ScalarQuantizer|PQFastScan)|HNSW(Flat|SQ|PQ)"
    r"|PreTransform|Refine(Flat)?)"
)


def check_family(index: faiss.Index, what: str) -> None:
    """
    Allow only families whose ids are row numbers and which keep all their data in their own file.

    Raises:
        ValueError: Names the class that is not among them.
    """
    name = type(index).__name__
    if not _FAISS_CLASSES.fullmatch(name):
        raise ValueError(
            f"{what} is a FAISS {name}, which is not supported: use the families Flat, SQ, PQ, IVF or HNSW."
        )
    if isinstance(index, faiss.IndexPreTransform):
        check_family(faiss.downcast_index(index.index), what)
    elif isinstance(index, faiss.IndexRefine):
        check_family(faiss.downcast_index(index.base_index), what)
        check_family(faiss.downcast_index(index.refine_index), what)
    elif isinstance(index, faiss.IndexIVF):
        check_family(faiss.downcast_index(index.quantizer), what)
        lists = faiss.downcast_InvertedLists(index.invlists)  # type: ignore[arg-type]  # None when just made
        # On-disk lists map, writable, whatever path the file names.
        if isinstance(lists, faiss.OnDiskInvertedLists):
            raise ValueError(f"{what} keeps its lists in another file, which is refused: rebuild it with build_index.")


def faiss_reason(error: RuntimeError) -> str:
    """The last part of FAISS's message, without the C++ signature before it."""
    return str(error).rsplit("Error:", 1)[-1].strip().rstrip(".")


def write_index(index: faiss.Index, write: Callable[[bytes], Any]) -> None:
    """
    Serialise an index through `write`, called with pieces of at most 1 MiB; an exception of `write` comes through.

    FAISS's own file writer was rejected: an error while it closes the file (a full disk) is printed and lost.
    """

    def take(piece: bytes) -> int:
        write(piece)
        return len(piece)

    faiss.write_index(index, faiss.PyCallbackIOWriter(take))  # type: ignore[attr-defined]  # not in its stub


def flat_index_head(rows: int, dimension: int) -> bytes:
    """
    The bytes of a "Flat" inner-product index file before its numbers, which follow as float32, row by row.

    FAISS writes them for an empty index; the two places that count rows and numbers are filled in.
    """
    pieces: list[bytes] = []
    write_index(faiss.IndexFlatIP(dimension), pieces.append)
    head = bytearray(b"".join(pieces))
    head[8:16] = rows.to_bytes(8, "little")
    head[-8:] = (rows * dimension).to_bytes(8, "little")
    return bytes(head)


def index_file_bytes(index: Saveable) -> int:
    """The exact size of the index's file, counted by writing it to nowhere (about 8 GB/s)."""
    total = 0

    def count(piece: bytes) -> None:
        nonlocal total
        total += len(piece)

    index.write(count)
    return total


def save_index(index: faiss.Index, path: str | Path) -> None:
    """
    Write an index file; a file that is mapped at that path stays intact for those who mapped it.

    Args:
        index (`faiss.Index`): The index.
        path (`str` or `Path`): The file; it is replaced in one rename.
    """
    with replacement(Path(path)) as temporary, temporary.open("wb") as file:
        write_index(index, file.write)


def open_index(
    path: str | Path, *, mmap: bool = True, rows: int | None = None, dimension: int | None = None
) -> faiss.Index:
    """
    Open an index file, memory-mapped and shared by all processes of the machine.

    A mapped index is read-only (`add`, `reset` abort the process) and outlives rename and removal of its file, but not
    its truncation: check the file's size against a manifest before, as [`GenerationStore`] does.

    Args:
        path (`str` or `Path`): The file.
        mmap (`bool`, *optional*, defaults to `True`): Map it; else read it into memory.
        rows (`int`, *optional*): Refuse an index that has another number of rows.
        dimension (`int`, *optional*): Refuse an index of another dimension.

    Returns:
        `faiss.Index`

    Raises:
        FileNotFoundError: If there is no such file.
        IndexFileError: If it is damaged, untrained, not inner product, its parts do not fit one another, or it does
            not fit `rows` and `dimension`.
    """
    path = Path(path)
    size = path.stat().st_size
    try:
        index = read_guarded(path, faiss.IO_FLAG_MMAP_IFC if mmap else 0)
    except ForeignListsError as error:
        raise IndexFileError(f"{path} is refused: {error}. Rebuild it with build_index.") from error
    except RuntimeError as error:
        raise IndexFileError(f"{path} ({size} bytes) is not a whole FAISS index: {faiss_reason(error)}.") from error
    try:
        check_family(index, str(path))
    except ValueError as error:
        raise IndexFileError(str(error)) from error
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise IndexFileError(
            f"{path} uses FAISS metric {index.metric_type}, not inner product (0): rebuild it with build_index."
        )
    if not index.is_trained:
        raise IndexFileError(f"{path} holds an untrained index: rebuild it with build_index.")
    try:
        check_structure(index)
    except StructureError as error:
        raise IndexFileError(f"{path} does not fit together: {error}. Rebuild it with build_index.") from error
    if rows is not None and index.ntotal != rows:
        raise IndexFileError(
            f"{path} holds {index.ntotal} rows, but {rows} were expected: it belongs to another corpus."
        )
    if dimension is not None and index.d != dimension:
        raise IndexFileError(
            f"{path} has dimension {index.d}, but {dimension} was expected: another embedder made it."
        )
    return index
