"""Is a stranger's `.faiss` file safe to open? A child process with little memory reads and searches it first.

A damaged graph or header may crash the process that reads or searches it; an index of another corpus returns rows
that are not there.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ..hub_files import HubArtefactError

__all__ = ["probe_index"]

_PROBE_SECONDS = 600

_CHILD = """
import resource, sys
path, module, rows, dimension, size = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
import importlib.util, pathlib, numpy, faiss
spec = importlib.util.spec_from_file_location("guarded_read", module)
guard = importlib.util.module_from_spec(spec)
spec.loader.exec_module(guard)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2 * size + (1 << 29),) * 2)
faiss.omp_set_num_threads(1)
try:
    index = guard.read_guarded(pathlib.Path(path), faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_READ_ONLY)
except guard.ForeignListsError as error:
    raise SystemExit(str(error))
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
    size = path.stat().st_size
    module = Path(__file__).with_name("guarded_read.py")
    arguments = [str(path), str(module), str(rows), str(dimension), str(size)]
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
