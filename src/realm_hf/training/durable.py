"""Small files that a reader sees whole or not at all, and the file system's errors told in words.

A training run of days should not die with a bare `[Errno 28]`. Directories are committed by
[`~realm_hf.data.commit.atomic_directory`]; this is its counterpart for single JSON files, which may be replaced.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TEMPORARY_PREFIX = ".tmp-"

_IN_WORDS = {
    errno.ENOSPC: "the file system is full: free space or move the run directory",
    errno.EDQUOT: "the disk quota is used up: free space or move the run directory",
    errno.EROFS: "the file system is mounted read-only: choose a run directory on a writable one",
    errno.EACCES: "permission is denied: choose a run directory that this user may write to",
    errno.EPERM: "the operation is not permitted there: choose a run directory that this user may write to",
    errno.ENOENT: "a parent directory is missing and could not be made: check the path",
    errno.ENOTDIR: "a part of the path is a file and not a directory: check the path",
}


class RunDirectoryError(RuntimeError):
    """The run directory cannot be used as asked; the message says why and what to do."""


@contextmanager
def told_in_words(action: str, path: Path) -> Iterator[None]:
    """Turn an `OSError` inside the block into a [`RunDirectoryError`] that names `action`, `path` and a remedy."""
    try:
        yield
    except OSError as error:
        remedy = _IN_WORDS.get(error.errno or 0, "check the path and the file system")
        raise RunDirectoryError(f"Could not {action} {path}: {error.strerror or error}; {remedy}.") from error


def fsync_path(path: Path) -> None:
    """Flush a file's content, or a directory's entries, to the device."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Mapping[str, Any], *, durable: bool = True) -> None:
    """Replace `path` by `content` in one rename.

    Args:
        path: The file to write; an earlier one is replaced as a whole.
        content: What `json.dumps` accepts.
        durable: Whether to fsync the file before and its directory after the rename. Heartbeats, which are worth
            nothing after a crash, go without.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(content, file, indent=2, sort_keys=True)
            file.write("\n")
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        fsync_path(path.parent)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; a missing or damaged file is a [`RunDirectoryError`] that names it."""
    with told_in_words("read", path):
        text = path.read_text(encoding="utf-8")
    try:
        content = json.loads(text)
    except ValueError as error:
        raise RunDirectoryError(f"{path} is not valid JSON ({error}): restore it from a copy or remove it.") from error
    if not isinstance(content, dict):
        raise RunDirectoryError(f"{path} holds a {type(content).__name__} where a JSON object was expected.")
    return content


def remove_directory(path: Path) -> None:
    """Remove a published directory; the rename first takes its name away, so that no reader finds half of it."""
    doomed = path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        path.rename(doomed)
    except FileNotFoundError:
        return
    shutil.rmtree(doomed, ignore_errors=True)
