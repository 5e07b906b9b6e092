"""How a command ends that was given what it cannot use: in one line, said by one of its processes.

Of several processes the first speaks, and its launcher ends the others. The launcher adds a report of its own, which
pushes that line off the screen, and ends it with what the process left in the file that `TORCHELASTIC_ERROR_FILE`
names: so the line is left there, too.
"""

from __future__ import annotations

import difflib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

__all__ = ["in_one_line", "one_process_speaks", "unknown"]

_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
_MOST_NAMED = 20
# A process that is still there after so many seconds failed alone.
_LAUNCHER_SECONDS = 60.0


def unknown(what: str, word: str, known: Iterable[str]) -> str:
    """
    What to say of a word that is none of those known: which one was meant, if one is alike.

    Args:
        what (`str`): What it should be, such as `"argument"`.
        word (`str`): The word.
        known (iterable of `str`): The right ones.
    """
    right = sorted(known)
    near = difflib.get_close_matches(word, right, n=1)
    hint = "See --help." if len(right) > _MOST_NAMED else f"Choose one of: {', '.join(right)}."
    if near:
        hint = f"Did you mean {near[0]!r}?"
    return f"There is no {what} {word!r}. {hint}"


def in_one_line(command: str, error: object) -> str:
    """What a command says of an error; messages of libraries may have several lines."""
    return f"{command}: {' '.join(str(error).split())}"


def one_process_speaks(message: str) -> None:
    """
    To be called before a process says `message` and ends: in all but the first of several it waits to be ended.

    Args:
        message (`str`): One line; the launcher repeats it at the end of its report.
    """
    if os.environ.get("RANK", "0") != "0":
        time.sleep(_LAUNCHER_SECONDS)
    file = os.environ.get(_ERROR_FILE)
    if file:
        # As `torch.distributed.elastic`'s own handler writes it, but for a traceback, which would be shown instead.
        content = {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}
        Path(file).write_text(json.dumps({"message": content}), encoding="utf-8")
