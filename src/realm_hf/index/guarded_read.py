"""Reading an index file that may be anyone's: damaged, or made to do harm.

A header can claim any size, and an IVF index may keep its lists in another file ("OnDiskInvertedLists"), which FAISS
would map, writable, while it reads. This module imports nothing of the package: a child process that looks at an
untrusted index loads it by its path.
"""

from __future__ import annotations

import mmap
import re
import struct
import threading
from pathlib import Path

import faiss

__all__ = ["ForeignListsError", "read_guarded"]

_TABLE_REFUSED = "precomputed_table allocation would exceed"
_SMALLEST_LIMIT = 1 << 20
_TABLE_LIMIT = 256

# Lists are passed over; what else is large (vectors of a flat index, codes) is mapped, or all of it would be read into
# memory for a look: 0.7 s and 488 MB for a flat index of 1M x 128.
_LOOK = faiss.IO_FLAG_SKIP_IVF_DATA | faiss.IO_FLAG_READ_ONLY | faiss.IO_FLAG_MMAP_IFC
_ON_DISK = b"ilod"
_LEAF_QUANTIZERS = (b"IxFI", b"IxF2", b"IxFl")
_IVF_AT_ROOT = re.compile(rb"Iw(Fl|Sq|SQ|PQ|Pf|QR|LS)")
_METRIC_AT = 33  # after the mark, dimension, rows, two dummies and is_trained
_QUANTIZER_AT = 53  # after the metric, the number of lists and nprobe

_usual_limit = faiss.get_deserialization_vector_byte_limit()
_lock = threading.Lock()  # that limit is the process's, and ranks open generations in background threads


class ForeignListsError(Exception):
    """An index file names another file to map as its lists."""


def read_guarded(path: Path, flags: int) -> faiss.Index:
    """
    `faiss.read_index`, without memory for what cannot be in the file, and without other files.

    Nothing in a file can be larger than the file, so no array may claim more than twice its size. But FAISS 1.15 also
    counts a table of lists x codes x 256 floats for an IVFPQ index, which it never makes for inner products: with a
    centroid of 4 d bytes for each list, and at most d codes, that is less than 256 times the file. Where that table is
    what was refused, the file is read again with so much leave.

    Args:
        path (`Path`): The file.
        flags (`int`): FAISS's, such as `faiss.IO_FLAG_MMAP_IFC`.

    Raises:
        ForeignListsError: If its lists may be in another file.
        RuntimeError: FAISS's own, if it is damaged.
    """
    size = path.stat().st_size
    with _lock:
        try:
            try:
                return _read(path, flags, max(_SMALLEST_LIMIT, 2 * size))
            except RuntimeError as error:
                if _TABLE_REFUSED not in str(error):
                    raise
                return _read(path, flags, max(_SMALLEST_LIMIT, _TABLE_LIMIT * size))
        finally:
            faiss.set_deserialization_vector_byte_limit(_usual_limit)


def _read(path: Path, flags: int, byte_limit: int) -> faiss.Index:
    faiss.set_deserialization_vector_byte_limit(byte_limit)
    if _foreign_lists(path):
        raise ForeignListsError("it names another file to map as its lists (OnDiskInvertedLists)")
    return faiss.read_index(str(path), flags)


def _foreign_lists(path: Path) -> bool:
    """
    Whether an index file may name another file to map.

    FAISS is asked first in the way that maps no other file. Array lists end that reading with an error, so where lists
    may be nested (an IVF or a graph as the quantizer, a refinement) the bytes are searched for the mark of lists on
    disk.
    """
    try:
        index = faiss.read_index(str(path), _LOOK)
    except RuntimeError as error:
        if _TABLE_REFUSED in str(error):
            raise  # nothing is known of its lists yet: it is read again with more leave
        if "could not load ArrayInvertedLists" not in str(error):
            return False  # damaged in another way, which the true reading says better
        return _mentions_lists_on_disk(path)
    return _has_lists_on_disk(index)


def _has_lists_on_disk(index: faiss.Index) -> bool:
    if isinstance(index, faiss.IndexIVF):
        lists = faiss.downcast_InvertedLists(index.invlists)  # type: ignore[arg-type]  # None when just made
        return isinstance(lists, faiss.OnDiskInvertedLists) or _has_lists_on_disk(_downcast(index.quantizer))
    parts = [getattr(index, name, None) for name in ("index", "base_index", "refine_index", "storage")]
    return any(_has_lists_on_disk(_downcast(part)) for part in parts if isinstance(part, faiss.Index))


def _downcast(index: faiss.Index) -> faiss.Index:
    return faiss.downcast_index(index)


def _mentions_lists_on_disk(path: Path) -> bool:
    size = path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        inner_product = content[_METRIC_AT : _METRIC_AT + 4] == bytes(4)  # another metric would move what follows
        quantizer = content[_QUANTIZER_AT : _QUANTIZER_AT + 4]
        if _IVF_AT_ROOT.match(content) and inner_product and quantizer in _LEAF_QUANTIZERS:
            return False  # the only lists are the root's own, and those are in the file
        position = content.find(_ON_DISK)
        while position >= 0:
            # The mark is followed by the number of lists, the size of a code, and one entry of 24 bytes for each list.
            if position + 28 <= size and 24 * struct.unpack_from("<Q", content, position + 20)[0] <= size - position:
                return True
            position = content.find(_ON_DISK, position + 1)
    return False
