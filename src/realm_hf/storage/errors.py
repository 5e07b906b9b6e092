"""Errors of the file system, in words."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["explain_os_errors", "make_output_directory"]

_REMEDIES = {
    errno.ENOSPC: "the file system is full: free space there or choose another directory",
    errno.EDQUOT: "the disk quota is used up: free space there or choose another directory",
    errno.EFBIG: "the file is larger than this file system or the process's limit allows: choose another directory",
    errno.EROFS: "the file system is read-only: choose a directory on a writable one",
    errno.EACCES: "permission is denied: choose a directory that this user may write to",
    errno.EPERM: "the operation is not permitted: choose a directory that this user may write to",
    errno.ENOENT: "a folder of the path is not there and cannot be made: check the path",
    errno.EEXIST: "a file of that name is there already: choose another path",
    errno.ENOTDIR: "a part of the path is a file: check the path",
    errno.ENOLCK: "the file system gives no locks (flock): put the directory on one that does",
    errno.EOPNOTSUPP: "the file system gives no locks (flock): put the directory on one that does",
}


@contextmanager
def explain_os_errors(action: str, path: Path) -> Iterator[None]:
    """Re-raise an `OSError` of the block with the same number and class, but in words."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        remedy = _REMEDIES.get(error.errno, "check the path and the file system")
        raise OSError(error.errno, f"could not {action} ({os.strerror(error.errno)}); {remedy}", str(path)) from error


def make_output_directory(folder: Path) -> None:
    """
    Make the directory that a command will write to, and try to write: to be called before its work, not after.

    Raises:
        OSError: It cannot be made or written to; in words.
    """
    with explain_os_errors("use the output directory", folder):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
