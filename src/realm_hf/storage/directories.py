"""Directories that appear complete or never, and the locks that tell who still works on or reads from one.

Everything is written into a temporary directory on the same file system; each file and the directory are fsynced, one
rename publishes it, and the parent is fsynced. Locks are `flock`: the kernel drops them when their process dies, so
neither a killed writer nor a killed reader leaves one behind. Process ids in file names were rejected: they are
reused, and mean nothing on another host that shares the directory.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import uuid
import weakref
from collections.abc import Collection
from pathlib import Path
from typing import Self

from realm_hf.storage.files import TEMPORARY_PREFIX, HashingFile, fsync_path

__all__ = [
    "TWINS",
    "FileLock",
    "StagedDirectory",
    "fsync_tree",
    "move_into",
    "remove_stale_staging",
    "require_vacant",
    "retire_directory",
]

TWINS = ".terms"
"""Where the twins of a writer's place are, in a directory that is on another file system."""
_LOCK_SUFFIX = ".lock"


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


class StagedDirectory:
    """
    Write a directory that readers see complete or not at all.

        with StagedDirectory(final) as staged:
            with staged.file("a.bin") as file:
                file.write(content)
            model.save_pretrained(staged.path / "model")

    Leaving the block well publishes it; an error removes what was written, so that a full disk is not left full. A
    killed process leaves its temporary directory, which [`remove_stale_staging`] or the next writer of the same
    directory removes.

    Args:
        final (`str` or `Path`): Where the directory appears; its parent is made if need be. Without `replace` nothing
            is ever overwritten, but an empty directory may be there.
        replace (`bool`, *optional*, defaults to `False`): Take the place of an earlier directory, which stays whole
            until the new one is. Between two renames there is none.
        place (`Path`, *optional*): A directory of the writer's own, through which everything goes: once somebody has
            taken it away, nothing is published or removed any more. It is not made if it is missing. See
            [`move_into`] for one on another file system.

    Raises:
        FileExistsError: If `final` already holds something, at the beginning or at the end of the block.
        FileNotFoundError: If `place` was taken away.
    """

    def __init__(self, final: str | Path, *, replace: bool = False, place: Path | None = None):
        self.final = Path(final).absolute()
        self.replace = replace
        self.place = place
        self.path = self.final.with_name(f"{TEMPORARY_PREFIX}{self.final.name}-{uuid.uuid4().hex[:8]}")
        self._lock_path = self.path.with_name(self.path.name + _LOCK_SUFFIX)
        self._files: list[HashingFile] = []

    def file(self, name: str) -> HashingFile:
        """A new file of the directory, to be used in a `with` block, at whose end it is fsynced."""
        file = HashingFile(self.path / name)
        self._files.append(file)
        return file

    def __enter__(self) -> Self:
        if not (self.replace and self.final.is_dir()):
            require_vacant(self.final)
        self.final.parent.mkdir(parents=True, exist_ok=True)
        remove_stale_staging(self.final.parent, self.final.name)
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
                self._publish()
        finally:
            self._clean_up()

    def _publish(self) -> None:
        fsync_tree(self.path, {file.path for file in self._files if file.is_synced})
        if self.place is not None:
            # Libraries write into the directory, and make missing parents: had they written below `place`, they would
            # have made one anew that was taken away.
            self.path = move_into(self.place, self.path, self.path.name)
        if self.replace and self.final.exists():
            retire_directory(self.final, self.place)
        try:
            self.path.rename(self.final)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):  # somebody was faster
                raise _occupied(self.final) from error
            raise
        fsync_path(self.final.parent)

    def _clean_up(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock_path.unlink(missing_ok=True)
        self._lock.release()


def require_vacant(final: Path) -> None:
    """
    Refuse a place that holds something already; an empty directory may be there.

    Raises:
        FileExistsError: It does.
    """
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise _occupied(final)


def _occupied(final: Path) -> FileExistsError:
    return FileExistsError(f"{final} already exists and is not empty: nothing is overwritten; load it or name another")


def fsync_tree(path: Path, synced: Collection[Path] = ()) -> None:
    """Fsync all files and directories below `path`, and itself; not the files in `synced`, which are already."""
    for folder, _, names in os.walk(path):
        for file in (Path(folder) / name for name in names):
            if file not in synced:
                fsync_path(file)
        fsync_path(Path(folder))


def retire_directory(path: Path, place: Path | None = None) -> None:
    """Remove a published directory: one rename takes its name away, then its files go. Maps of them stay valid.

    Args:
        path (`Path`): The directory.
        place (`Path`, *optional*): See [`StagedDirectory`]; by default it is renamed beside itself.
    """
    name = f"{TEMPORARY_PREFIX}gone-{path.name}-{uuid.uuid4().hex[:8]}"
    retired = path.rename(path.with_name(name)) if place is None else move_into(place, path, name)
    shutil.rmtree(retired, ignore_errors=True)


def move_into(place: Path, path: Path, name: str) -> Path:
    """
    Rename a file or directory into a writer's own place, or, where that is on another file system, into its twin of
    the same name below [`TWINS`] in a directory above `path` (RUN/index may be a link to a larger disk).

    Raises:
        FileNotFoundError: There is no such file, or the place was taken away.
    """
    try:
        return path.rename(place / name)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    twins = next((folder / TWINS for folder in path.parents if (folder / TWINS).is_dir()), path.parent / TWINS)
    return path.rename(twins / place.name / name)


def remove_stale_staging(root: Path, name: str | None = None) -> list[str]:
    """
    Remove temporary directories under `root` whose writer is gone.

    Args:
        root (`Path`): The directory in which [`StagedDirectory`] works.
        name (`str`, *optional*): Only those of the directory of this name: where `root` is not this package's alone.

    Returns:
        `list[str]`: The names of the directories that were removed.
    """
    removed = []
    wanted = re.compile(re.escape(TEMPORARY_PREFIX) + (".*" if name is None else re.escape(name) + "-[0-9a-f]{8}"))
    found = {path.name.removesuffix(_LOCK_SUFFIX) for path in root.glob(f"{TEMPORARY_PREFIX}*")}
    for stale in sorted(filter(wanted.fullmatch, found)):
        directory, lock_path = root / stale, root / (stale + _LOCK_SUFFIX)
        try:
            lock = FileLock(lock_path, exclusive=True, wait=False)
        except (BlockingIOError, PermissionError):  # held, or another user's
            continue
        except FileNotFoundError:
            lock = None
        if directory.is_dir():
            shutil.rmtree(directory, ignore_errors=True)
            removed.append(stale)
        if lock is not None:
            lock_path.unlink(missing_ok=True)
            lock.release()
    return removed
