"""Leases: shared `flock`s by which a reader keeps a published directory from being collected, taken with a deadline.

The kernel drops a lease with its process. A collector locks the same file exclusively, without waiting, for the moment
that a rename takes. Whoever else holds such a lock (a backup, a stopped process) is no reason to wait for ever: a
reader then goes on without a lease, and says so.
"""

from __future__ import annotations

import time
from pathlib import Path

from transformers.utils import logging

from realm_hf.storage.directories import FileLock

__all__ = ["LEASE_SECONDS", "lock_holders", "take_lease"]

logger = logging.get_logger(__name__)

LEASE_SECONDS = 30.0
"""A collector holds its lock for the milliseconds of a rename; this is long even for a busy network file system."""
_TOLD_AFTER_SECONDS = 1.0
_LOOK_SECONDS = 0.02


def take_lease(path: Path, seconds: float | None = None) -> FileLock | None:
    """
    A shared lock on `path`, waited for up to `seconds`; `None`, with a warning, if another holds it for longer.

    Args:
        path (`Path`): The file that stands for its directory.
        seconds (`float`, *optional*): [`LEASE_SECONDS`] by default.

    Raises:
        FileNotFoundError: If the file is gone, also when it went while waiting.
    """
    started = time.monotonic()
    deadline = started + (LEASE_SECONDS if seconds is None else seconds)
    told = False
    while True:
        try:
            return FileLock(path, exclusive=False, wait=False)
        except BlockingIOError:
            now = time.monotonic()
        if now >= deadline:
            logger.warning(
                "%s is still locked by %s after %.0f s: it is read without a lease, so that a collector may remove it "
                "meanwhile. End what locks it.",
                path,
                lock_holders(path),
                now - started,
            )
            return None
        if not told and now - started >= _TOLD_AFTER_SECONDS:
            told = True
            logger.warning("waiting up to %.0f s for %s to unlock %s", deadline - now, lock_holders(path), path)
        time.sleep(_LOOK_SECONDS)


def lock_holders(path: Path) -> str:
    """Who holds a lock on a file, in words, as far as this system tells: "process 123 (rsync)"."""
    try:
        inode = path.stat().st_ino
        table = Path("/proc/locks").read_text(encoding="ascii")
    except OSError:
        return "another process"  # gone meanwhile, or a system without such a table
    # 1: FLOCK  ADVISORY  WRITE 123 08:01:4711 0 EOF
    rows = [line.split() for line in table.splitlines()]
    pids = [row[4] for row in rows if len(row) == 8 and row[5].rpartition(":")[2] == str(inode) and int(row[4]) > 0]
    return ", ".join(f"process {pid} ({_program(pid)})" for pid in pids) or "a process that this system does not name"


def _program(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "name unknown"
