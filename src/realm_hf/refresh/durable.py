"""Small JSON files that a reader sees whole or not at all.

Directories are committed by [`~realm_hf.index.staging.StagedDirectory`] and never change; these may be replaced.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from realm_hf.index.staging import explained, fsync_directory


class RunDirectoryError(RuntimeError):
    """The run directory cannot be used as asked; the message says why and what to do."""


def write_json(path: Path, content: Mapping[str, Any], *, durable: bool = True) -> None:
    """Replace `path` by `content` in one rename.

    Args:
        path: The file to write; an earlier one is replaced as a whole.
        content: What `json.dumps` accepts.
        durable: Whether to fsync the file before and its directory after the rename. Heartbeats, which are worth
            nothing after a crash, go without.

    Raises:
        OSError: The file system is full or read-only; the message says so, and the earlier file is untouched.
    """
    temporary = path.with_name(f".tmp-{path.name}-{uuid.uuid4().hex[:8]}")
    with explained("write", path):
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
            fsync_directory(path.parent)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        OSError: The file cannot be read.
        RunDirectoryError: It is damaged.
    """
    with explained("read", path):
        text = path.read_text(encoding="utf-8")
    try:
        content = json.loads(text)
    except ValueError as error:
        raise RunDirectoryError(f"{path} is not valid JSON ({error}): restore it from a copy or remove it.") from error
    if not isinstance(content, dict):
        raise RunDirectoryError(f"{path} holds a {type(content).__name__} where a JSON object was expected.")
    return content
