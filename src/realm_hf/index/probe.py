"""Is an untrusted `.faiss` file safe to open? A child process with little memory reads and searches it first.

A damaged graph or header may crash the process that reads or searches it; an index of another corpus returns rows
that are not there; a part of another dimension reads past the queries.
"""

from __future__ import annotations

from pathlib import Path

from realm_hf.untrusted.limited import run_limited

__all__ = ["probe_index"]

_PROBE_SECONDS = 600
_FREE_MEMORY = 1 << 29
"""Beside twice the file: the queries, what they find, and FAISS's buffers."""


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
    run_limited(
        Path(__file__).with_name("probe_child.py"),
        [path, rows, dimension],
        libraries=["numpy", "faiss"],
        memory=2 * size + _FREE_MEMORY,
        seconds=_PROBE_SECONDS,
        what=f"The index file {path} ({size} bytes)",
    )
