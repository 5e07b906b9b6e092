"""Single files: written durably, hashed, and replaced in one rename.

Large ones go through `os.write` and `os.fsync`, hashed on the way: a map written to on a full disk kills the process,
and FAISS's own file writer loses the error of the last block.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from realm_hf.progress import progress_bar
from realm_hf.storage.errors import explain_os_errors

__all__ = [
    "TEMPORARY_PREFIX",
    "HashingFile",
    "check_files",
    "describe_files",
    "file_sha256",
    "fsync_path",
    "json_sha256",
    "link_or_copy",
    "read_description",
    "read_json",
    "replacement",
    "write_json",
]

TEMPORARY_PREFIX = ".tmp-"
_BYTES_A_WRITE = 4 << 20
_BYTES_GATHERED = 64 << 10
_BYTES_WITHOUT_BAR = 256 << 20


def fsync_path(path: Path) -> None:
    """Flush a file's content, or a directory's entries, to the device."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class HashingFile:
    """
    A new file written from front to back, counted and hashed on the way; [`close`] or the end of a `with` block fsyncs
    it.

    Args:
        path (`Path`): The file; it must not exist.
    """

    def __init__(self, path: Path):
        self.path = path
        self.bytes = 0
        self.is_synced = False
        self._sha256 = hashlib.sha256()
        self._pending = bytearray()  # FAISS hands over some pieces of 4 bytes
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._release = weakref.finalize(self, os.close, self._descriptor)

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

    def close(self) -> None:
        """Flush everything to the device and close the file."""
        try:
            self._flush()
            os.fsync(self._descriptor)
            self.is_synced = True
        finally:
            self._release()

    def _flush(self) -> None:
        self._write_out(memoryview(bytes(self._pending)))
        self._pending.clear()

    def _write_out(self, view: memoryview) -> None:
        while len(view):
            view = view[os.write(self._descriptor, view[:_BYTES_A_WRITE]) :]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._release()


@contextmanager
def replacement(path: Path, *, durable: bool = True, place: Path | None = None) -> Iterator[Path]:
    """
    Give a path beside `path` to write to, and let that file take the place of `path` when the block ends well.

    Whoever has mapped or opened the earlier file keeps it. An error leaves the earlier file untouched.

    Args:
        path (`Path`): The file to write; an earlier one is replaced as a whole.
        durable (`bool`, *optional*, defaults to `True`): Fsync the file before and its directory after the rename.
        place (`Path`, *optional*): A directory of the writer's own on the same file system to write in instead: once
            somebody has taken it away, nothing is replaced any more.
    """
    temporary = (place or path.parent) / f"{TEMPORARY_PREFIX}{path.name}-{uuid.uuid4().hex[:8]}"
    try:
        yield temporary
        if durable:
            fsync_path(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        fsync_path(path.parent)


def write_json(
    path: Path, content: Mapping[str, Any] | Sequence[Any], *, durable: bool = True, place: Path | None = None
) -> None:
    """
    Replace `path` by `content`, as indented JSON in UTF-8, in one rename.

    Args:
        path (`Path`): The file to write.
        content (`Mapping` or `Sequence`): What `json.dumps` accepts.
        durable (`bool`, *optional*, defaults to `True`): See [`replacement`]. Heartbeats, which are worth nothing
            after a crash, go without; so do files of a [`StagedDirectory`], which fsyncs them itself.
        place (`Path`, *optional*): See [`replacement`].

    Raises:
        OSError: The file system is full or read-only; the message says so, and the earlier file is untouched.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    with explain_os_errors("write", path), replacement(path, durable=durable, place=place) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path, error: Callable[[str], Exception] = ValueError) -> dict[str, Any]:
    """
    Read a JSON object.

    Args:
        path (`Path`): The file.
        error (`Callable`, *optional*, defaults to `ValueError`): Makes the exception that says that it is damaged.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is damaged; or what `error` makes.
    """
    with explain_os_errors("read", path):
        text = path.read_bytes()
    try:
        content = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as reason:  # no UTF-8, no JSON, or nested too deeply
        raise error(f"{path} is not valid JSON ({reason}): restore it from a copy or remove it.") from reason
    if not isinstance(content, dict):
        raise error(f"{path} holds a {type(content).__name__} where a JSON object was expected.")
    return content


def file_sha256(path: str | Path) -> str:
    """
    SHA-256 of a file's content, read in pieces (about 1.2 GB/s); of a large one a bar is shown.

    Args:
        path (`str` or `Path`): The file.

    Returns:
        `str`: 64 hexadecimal digits.
    """
    with Path(path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < _BYTES_WITHOUT_BAR:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256()
        with progress_bar(size, f"checking {Path(path).name}", "B") as bar:
            while piece := file.read(_BYTES_A_WRITE):
                digest.update(piece)
                bar.update(len(piece))
        return digest.hexdigest()


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """A second name for a file that is never changed, where the file system can; else a copy."""
    try:
        os.link(Path(source).resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def json_sha256(content: Mapping[str, Any]) -> str:
    """SHA-256 of a dictionary as JSON; the order of its keys does not matter."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def describe_files(folder: Path, root: Path) -> dict[str, dict[str, Any]]:
    """`{path relative to root: {"bytes", "sha256"}}` of all files below `folder`."""
    return {
        str(file.relative_to(root)): {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def check_files(root: Path, files: Mapping[str, Mapping[str, Any]], verify: bool) -> None:
    """
    Compare files with what [`describe_files`] said of them: sizes always, sha256 with `verify`.

    Raises:
        ValueError: Naming the first file that is missing, cut or changed.
    """
    for name, expected in files.items():
        file = root / name
        if not file.is_file():
            raise ValueError(f"{file} is missing: the store is incomplete; build it again")
        size = file.stat().st_size
        if size != expected["bytes"]:
            raise ValueError(f"{file} has {size} bytes instead of {expected['bytes']}: it is cut; build it again")
        if verify and file_sha256(file) != expected["sha256"]:
            raise ValueError(f"{file} does not have its recorded sha256: it was changed; build the store again")


def read_description(
    path: Path, format_version: int, what: str, how: str, *, oldest: int | None = None
) -> dict[str, Any]:
    """
    Read the description of a store of files, and compare the sizes of the files that it names.

    Args:
        path (`Path`): The description, in the store's directory.
        format_version (`int`): What this release reads.
        what (`str`): The store in words, e.g. `"sentences"`.
        how (`str`): How to get one, for messages.
        oldest (`int`, *optional*, defaults to `format_version`): The oldest version that this release reads, too.

    Raises:
        FileNotFoundError: If there is no store.
        ValueError: If the description is damaged or of another version, or a file is missing or cut.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} holds no {what} ({path.name} is missing): {how}")
    info = read_json(path)
    if info["format_version"] not in range(format_version if oldest is None else oldest, format_version + 1):
        raise ValueError(
            f"{path} has format_version {info['format_version']}, this release reads {format_version}: build it again"
        )
    check_files(path.parent, info["files"], verify=False)
    return info
