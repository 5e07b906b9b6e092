"""What may be believed of names and sizes that a stranger gives, and the error for what may not."""

from __future__ import annotations

import shutil
from pathlib import Path

__all__ = ["HubArtefactError", "check_name", "check_room", "human_bytes"]

_LONGEST_NAME = 255


class HubArtefactError(ValueError):
    """Something that was published (or is said to be) cannot be used; the message says what is wrong with it."""


def check_name(name: object) -> str:
    """
    A file name from a description, if it is one that stays inside the repository.

    Args:
        name (`object`): What the description says.

    Returns:
        `str`: The name, with `/` between its parts.

    Raises:
        HubArtefactError: If it is absolute, climbs with `..`, is hidden, or no file name at all.
    """
    if isinstance(name, str) and 0 < len(name) <= _LONGEST_NAME and name.isprintable() and "\\" not in name:
        parts = name.split("/")
        if all(part and not part.startswith(".") and ":" not in part for part in parts):
            return name
    raise HubArtefactError(
        f"The description names a file {str(name)[:80]!r}, which may lie outside the repository: it is refused. Only "
        "relative names without '..', '\\', ':' and hidden parts are read."
    )


def human_bytes(size: float) -> str:
    """A number of bytes in words: `"3.4 GB"`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError


def check_room(folder: Path, wanted: int, what: str) -> None:
    """
    Refuse to begin what the disk has no room for.

    Raises:
        OSError: Says how much is needed and how much is free.
    """
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if wanted > free:
        raise OSError(
            f"{what} needs {human_bytes(wanted)} in {folder}, where {human_bytes(free)} are free: free space, or set "
            "`cache_dir` (or HF_HOME) to a larger disk."
        )
