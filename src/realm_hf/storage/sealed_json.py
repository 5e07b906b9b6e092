"""JSON objects that carry the hash of their own content, so that a flipped bit is told from what was written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from realm_hf.storage.files import json_sha256, read_json, write_json

__all__ = ["SEAL", "read_sealed_json", "write_sealed_json"]

SEAL = "sha256_of_the_rest"


def write_sealed_json(path: Path, content: Mapping[str, Any], *, durable: bool = True) -> None:
    """[`write_json`], with the seal as a further entry."""
    as_read = json.loads(json.dumps(content))  # a key that is a number becomes a string
    write_json(path, {**as_read, SEAL: json_sha256(as_read)}, durable=durable)


def read_sealed_json(path: Path, error: Callable[[str], Exception] = ValueError) -> dict[str, Any]:
    """
    [`read_json`], without the seal; an object that has none, of an earlier version, is taken as it is.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is damaged, or was changed by hand; or what `error` makes.
    """
    content = read_json(path, error)
    if SEAL in content and content.pop(SEAL) != _seal_of(content):
        raise error(f"{path} does not have its recorded sha256: it is damaged or was changed by hand.")
    return content


def _seal_of(content: Mapping[str, Any]) -> str | None:
    try:
        return json_sha256(content)
    except RecursionError:
        return None  # nested just less deeply than the reader bears
