"""One way to write a directory: beside its final place, made durable, then renamed.

Readers see all of it or nothing.
"""

import hashlib
import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_directory(final: str | Path) -> Iterator[Path]:
    """
    Give a fresh directory to write into, and rename it to `final` when the block ends without an error.

    A killed process leaves only a hidden `.<name>.<host>.<pid>.*` directory behind, which the next build on that host
    removes once that process is gone. An existing non-empty `final` is never overwritten.

    Args:
        final (`str` or `Path`): Where the directory shall appear; its parent is made if need be.

    Raises:
        FileExistsError: If `final` already holds something.
    """
    final = Path(final).absolute()
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise FileExistsError(
            f"{final} already exists and is not empty: nothing is overwritten; load it or name another"
        )
    final.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(final)
    work = final.parent / f".{final.name}.{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
    work.mkdir()
    try:
        yield work
        for folder, _, files in os.walk(work):
            for name in files:
                _fsync(Path(folder) / name)
            _fsync(Path(folder))
        work.rename(final)
        _fsync(final.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def describe_files(folder: Path, root: Path) -> dict[str, dict[str, Any]]:
    """`{path relative to root: {"bytes", "sha256"}}` of all files below `folder`."""
    return {
        str(file.relative_to(root)): {"bytes": file.stat().st_size, "sha256": _sha256(file)}
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def check_files(root: Path, files: dict[str, dict[str, Any]], verify: bool) -> None:
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
        if verify and _sha256(file) != expected["sha256"]:
            raise ValueError(f"{file} does not have its recorded sha256: it was changed; build the store again")


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a dictionary as indented JSON in UTF-8."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _remove_abandoned(final: Path) -> None:
    for left in final.parent.glob(f".{final.name}.{socket.gethostname()}.*"):
        pid = left.name.split(".")[-2]
        if pid.isdigit() and not _is_alive(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
