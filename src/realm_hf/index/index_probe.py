"""Is a stranger's `.faiss` file safe to open? Asked before FAISS maps it for good.

Two things go first. [`foreign_lists`]: an IVF index may keep its lists in another file ("OnDiskInvertedLists"), and
FAISS maps whatever path the index names, writable, while it reads. [`probe_index`]: a damaged graph or header may
crash the process that reads or searches it, so a child with little memory does both first.
"""

from __future__ import annotations

import mmap
import re
import struct
import subprocess
import sys
from pathlib import Path

import faiss

from ..hub_files import HubArtefactError

__all__ = ["foreign_lists", "probe_index"]

_ON_DISK = b"ilod"
_LEAF_QUANTIZERS = (b"IxFI", b"IxF2", b"IxFl")
_IVF_AT_ROOT = re.compile(rb"Iw(Fl|Sq|SQ|PQ|Pf|QR|LS)")
_METRIC_AT = 33  # after the mark, dimension, rows, two dummies and is_trained
_QUANTIZER_AT = 53  # after the metric, the number of lists and nprobe
_PROBE_SECONDS = 600

_CHILD = """
import resource, sys
path, rows, dimension, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
import numpy, faiss
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2 * size + (1 << 29),) * 2)
faiss.omp_set_num_threads(1)
faiss.set_deserialization_vector_byte_limit(max(1 << 20, 2 * size))
index = faiss.read_index(path, faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_READ_ONLY)
if index.d != dimension or index.ntotal != rows:
    raise SystemExit(f"it holds {index.ntotal} rows of dimension {index.d}, not {rows} of {dimension}")
ivf = faiss.try_extract_index_ivf(index)
if ivf is not None:
    listed = 0
    for number in range(ivf.nlist):
        size = ivf.invlists.list_size(number)
        ids = faiss.rev_swig_ptr(ivf.invlists.get_ids(number), size) if size else numpy.zeros(0)
        listed += size
        if size and (ids.min() < 0 or ids.max() >= rows):
            raise SystemExit(f"its lists name row {ids.max()} of {rows}")
    if listed != rows:
        raise SystemExit(f"its lists hold {listed} rows, not {rows}")
queries = numpy.random.default_rng(0).standard_normal((64, dimension)).astype("float32")
_, found = index.search(queries, min(rows, 100))
if found.max(initial=-1) >= rows or found.min(initial=0) < -1:
    raise SystemExit(f"it returns row {found.max()} of {rows}")
"""


def foreign_lists(path: Path) -> bool:
    """
    Whether an index file may name another file to map.

    FAISS is asked first in the way that maps nothing. Array lists end that reading with an error, so where lists may
    be nested (an IVF or a graph as the quantizer, a refinement) the bytes are searched for the mark of lists on disk.

    Args:
        path (`Path`): The file.
    """
    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_SKIP_IVF_DATA | faiss.IO_FLAG_READ_ONLY)
    except RuntimeError as error:
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


def probe_index(path: Path, *, rows: int, dimension: int) -> None:
    """
    Read and search an index in a child process with bounded memory, before this process does.

    Args:
        path (`Path`): The file.
        rows (`int`): What it must hold.
        dimension (`int`): What it must have.

    Raises:
        HubArtefactError: If the child fails, whatever the reason.
    """
    if foreign_lists(path):
        raise HubArtefactError(
            f"{path} names another file to map as its lists (OnDiskInvertedLists), which is refused."
        )
    size = path.stat().st_size
    arguments = [str(path), str(rows), str(dimension), str(size)]
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _CHILD, *arguments],
            capture_output=True,
            text=True,
            timeout=_PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise HubArtefactError(f"{path} could not be searched within {_PROBE_SECONDS} s: it is refused.") from error
    if done.returncode:
        said = done.stderr.strip().splitlines()
        reason = said[-1][-300:] if said else f"the process that read it died of signal {-done.returncode}"
        raise HubArtefactError(f"The index file {path} ({size} bytes) is refused: {reason}")
