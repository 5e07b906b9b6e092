"""Lines of a file of JSON lines; what is none is named by file and line."""

import json
from pathlib import Path
from typing import Any

__all__ = ["check_lines", "parse_line"]


def check_lines(path: Path) -> None:
    """
    Refuse the first line of a file of JSON lines that is none; a file that is one JSON value as a whole is let pass.

    Args:
        path (`Path`): The file.

    Raises:
        ValueError: Names the file and the line.
    """
    # Line by line: a corpus may be larger than the memory.
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if number == 1 and line.strip() in (b"[", b"{"):  # spread over lines: one value
                return
            if line.strip():
                parse_line(line, path, number)


def parse_line(line: bytes, path: Path, number: int) -> dict[str, Any]:
    """
    The object in one line of a file of JSON lines.

    Args:
        line (`bytes`): The line.
        path (`Path`): The file, for messages.
        number (`int`): Of the line, from 1, for messages.

    Raises:
        ValueError: It is not UTF-8, no JSON, or no object.
    """
    try:
        row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}, line {number} is not UTF-8 text ({error}): save the file as UTF-8.") from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {number} is no JSON ({error.msg}, column {error.colno}): write one object a line."
        ) from error
    if not isinstance(row, dict):
        raise ValueError(f"{path}, line {number} holds a {type(row).__name__}: write one object a line.")
    return row
