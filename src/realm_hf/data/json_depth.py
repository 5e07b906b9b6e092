"""Looks at a JSON file before Arrow reads it: its parser calls itself for each level, and a deep one ends the process.

A line of JSON lines with few brackets is passed over at the speed of `bytes.count`, so that the look costs about a
second for a gigabyte of documents. What else there is, such as one array over many lines, is looked at closely.
"""

import re
from pathlib import Path

__all__ = ["DEEPEST", "check_json"]

DEEPEST = 64
"""Levels of brackets in a document's row; Arrow's parser ended the process at some tens of thousands."""

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+"|[\[{]|[\]}]', re.DOTALL)


def check_json(path: Path) -> None:
    """
    Refuse a file of JSON, or of JSON lines, that is nested without end or empty.

    Args:
        path (`Path`): The file.

    Raises:
        ValueError: Names the file and the line.
    """
    depth = 0
    written = False
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            row = line.strip()
            written = written or bool(row)
            # Two such lines can follow one another only if each is whole: there is no comma between them.
            if row.startswith(b"{") and row.endswith(b"}") and row.count(b"[") + row.count(b"{") <= DEEPEST:
                continue
            depth, deepest = _depths(line, depth)
            if deepest > DEEPEST:
                raise ValueError(
                    f"{path}, line {number} is nested more than {DEEPEST} levels deep: no document is; check the file"
                )
    if not written:
        raise ValueError(f"{path} is empty: it holds no documents")


def _depths(line: bytes, depth: int) -> tuple[int, int]:
    """Levels that are open after a line, and the most within it; brackets in strings are passed over."""
    deepest = depth
    for token in _TOKEN.finditer(line):
        first = token[0][:1]
        if first in b"[{":
            depth += 1
            deepest = max(deepest, depth)
            if depth > DEEPEST:
                break
        elif first in b"]}":
            depth = max(0, depth - 1)
    return depth, deepest
