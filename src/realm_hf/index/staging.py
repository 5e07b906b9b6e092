"""Directories that appear complete or never, and the locks that tell who still works on or reads from one.

Everything is written into a temporary directory on the same file system; each file and the directory are fsynced, one
rename publishes it, and the parent is fsynced. Locks are `flock`: the kernel drops them when their process dies, so
neither a killed writer nor a killed reader leaves one behind. Process ids in file names were rejected: they are
reused, and mean nothing on another host that shares the directory.

All writing goes through `os.write`, `os.fsync` and `os.rename`, hashed on the way: a map written to on a full disk
kills the process, and FAISS's own file writer loses the error of the last block.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import uuid
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

__all__ = ["FileLock", "HashingFile", "StagedDirectory", "fsync_directory", "remove_stale_staging", "retire_directory"]

STAGING_PREFIX = ".tmp-"
_LOCK_SUFFIX = ".lock"
_BYTES_A_WRITE = 4 << 20
_BYTES_GATHERED = 64 << 10

_REMEDIES = {
    errno.ENOSPC: "the file system is full: free space there or choose another directory",
    errno.EDQUOT: "the disk quota is used up: free space there or choose another directory",
    errno.EFBIG: "the file is larger than this file system or the process's limit allows: choose another directory",
    errno.EROFS: "the file system is read-only: choose a directory on a writable one",
    errno.EACCES: "permission is denied: choose a directory that this user may write to",
    errno.EPERM: "the operation is not permitted: choose a directory that this user may write to",
    errno.ENOTDIR: "a part of the path is a file: check the path",
    errno.ENOLCK: "the file system gives no locks (flock): put the directory on one that does",
    errno.EOPNOTSUPP: "the file system gives no locks (flock): put the directory on one that does",
}


@contextmanager
def explained(action: str, path: Path) -> Iterator[None]:
    """Re-raise an `OSError` of the block with the same number and class, but in words."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        remedy = _REMEDIES.get(error.errno, "check the path and the file system")
        raise OSError(error.errno, f"could not {action} ({os.strerror(error.errno)}); {remedy}", str(path)) from error


def fsync_directory(path: Path) -> None:
    """Flush a directory's entries to the device."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class FileLock:
    """
    A lock on an open file, held until [`release`], garbage collection or the end of the process.

    Args:
        path (`Path`): The file; it must exist.
        exclusive (`bool`): Alone, or shared with other readers.
        wait (`bool`): Wait for the holders.

    Raises:
        BlockingIOError: If it is held by another and `wait` is `False`.
        FileNotFoundError: If the file is gone, also when it went while waiting.
    """

    def __init__(self, path: Path, *, exclusive: bool, wait: bool):
        # Some network file systems demand a writable descriptor for an exclusive lock.
        descriptor = os.open(path, (os.O_RDWR if exclusive else os.O_RDONLY) | os.O_CLOEXEC)
        self.release = weakref.finalize(self, os.close, descriptor)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | (0 if wait else fcntl.LOCK_NB))
            if os.stat(path).st_ino != os.fstat(descriptor).st_ino:  # noqa: PTH116 - beside fstat
                raise FileNotFoundError(errno.ENOENT, "replaced while its lock was waited for", str(path))
        except OSError:
            self.release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class HashingFile:
    """A new file written from front to back, counted and hashed on the way."""

    def __init__(self, path: Path):
        self.path = path
        self.bytes = 0
        self._sha256 = hashlib.sha256()
        self._pending = bytearray()  # FAISS hands over some pieces of 4 bytes
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)

    @property
    def sha256(self) -> str:
        """Of all that was written so far, as hexadecimal digits."""
        return self._sha256.hexdigest()

    def write(self, content: bytes | memoryview) -> None:
        """Append; small pieces are gathered into large writes."""
        view = memoryview(content).cast("B")
        self._sha256.update(view)
        self.bytes += len(view)
        if len(view) < _BYTES_GATHERED:
            self._pending += view
        if len(view) >= _BYTES_GATHERED or len(self._pending) >= _BYTES_GATHERED:
            self._flush()
        if len(view) >= _BYTES_GATHERED:
            self._write_out(view)

    def _flush(self) -> None:
        self._write_out(memoryview(bytes(self._pending)))
        self._pending.clear()

    def _write_out(self, view: memoryview) -> None:
        while len(view):
            view = view[os.write(self._descriptor, view[:_BYTES_A_WRITE]) :]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._flush()
                os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)


class StagedDirectory:
    """
    Write a directory that readers see complete or not at all.

        with StagedDirectory(final) as staged:
            with staged.file("a.bin") as file:
                file.write(content)

    Leaving the block well publishes it; an error removes what was written, so that a full disk is not left full.

    Args:
        final (`Path`): Where the directory appears. Must not exist: nothing is ever overwritten.
    """

    def __init__(self, final: Path):
        self.final = final
        self.path = final.with_name(f"{STAGING_PREFIX}{final.name}-{uuid.uuid4().hex[:8]}")
        self._lock_path = self.path.with_name(self.path.name + _LOCK_SUFFIX)

    def file(self, name: str) -> HashingFile:
        """A new file of the directory, to be used in a `with` block, at whose end it is fsynced."""
        return HashingFile(self.path / name)

    def __enter__(self) -> Self:
        self.final.parent.mkdir(parents=True, exist_ok=True)
        self._lock = self._take_lock()
        try:
            self.path.mkdir()
        except BaseException:
            self._clean_up()
            raise
        return self

    def _take_lock(self) -> FileLock:
        """Locked before the directory exists: a collector that finds a directory without its lock may remove it."""
        while True:
            os.close(os.open(self._lock_path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
            try:
                return FileLock(self._lock_path, exclusive=True, wait=True)
            except FileNotFoundError:  # a collector was between the two lines and removed it; it holds nothing now
                continue

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                fsync_directory(self.path)
                if self.final.exists():  # renaming onto an empty directory would succeed
                    raise FileExistsError(errno.EEXIST, "nothing is ever overwritten", str(self.final))
                self.path.rename(self.final)
                fsync_directory(self.final.parent)
        finally:
            self._clean_up()

    def _clean_up(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock_path.unlink(missing_ok=True)
        self._lock.release()


def retire_directory(path: Path) -> None:
    """Remove a published directory: one rename takes its name away, then its files go. Maps of them stay valid."""
    doomed = path.with_name(f"{STAGING_PREFIX}gone-{path.name}-{uuid.uuid4().hex[:8]}")
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def remove_stale_staging(root: Path) -> list[str]:
    """
    Remove temporary directories under `root` whose writer is gone.

    Args:
        root (`Path`): The directory in which [`StagedDirectory`] works.

    Returns:
        `list[str]`: The names of the directories that were removed.
    """
    removed = []
    names = {path.name.removesuffix(_LOCK_SUFFIX) for path in root.glob(f"{STAGING_PREFIX}*")}
    for name in sorted(names):
        directory, lock_path = root / name, root / (name + _LOCK_SUFFIX)
        try:
            lock = FileLock(lock_path, exclusive=True, wait=False)
        except BlockingIOError:
            continue
        except FileNotFoundError:
            lock = None
        if directory.is_dir():
            shutil.rmtree(directory, ignore_errors=True)
            removed.append(name)
        if lock is not None:
            lock_path.unlink(missing_ok=True)
            lock.release()
    return removed
