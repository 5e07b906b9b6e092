"""What the commands that are programs share: arguments of dataclasses, errors in one line, a log in words."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from realm_hf.runs.errors import RunDirectoryError
from realm_hf.training.command_line import parse_arguments

__all__ = ["AboveTheBars", "arguments_of", "one_line_errors", "set_up_logging"]

_EXIT_NOT_UNDERSTOOD = 2
# Rank 0 speaks, and its launcher then ends the others; a rank that is still there after so many seconds failed alone.
_LAUNCHER_SECONDS = 10.0


def arguments_of(name: str, words: Sequence[str], kinds: Sequence[Any]) -> tuple[Any, ...]:
    """
    The arguments of a command, from the command line or a YAML file; see [`parse_arguments`].

    Args:
        name (`str`): Of the command.
        words (`Sequence[str]`): What follows it.
        kinds (`Sequence`): Dataclasses whose field names are distinct.

    Raises:
        SystemExit: They are not understood. Of several processes the first says why, in one line.
    """
    try:
        return parse_arguments(kinds, words, prog=f"realm-hf {name}")
    except (FileNotFoundError, ValueError) as error:
        _wait_for_rank_0()
        sys.stderr.write(f"realm-hf {name}: {error}\n")
        raise SystemExit(_EXIT_NOT_UNDERSTOOD) from None


@contextmanager
def one_line_errors(name: str) -> Iterator[None]:
    """
    For the part of a command that reads what it was given: corpora, checkpoints, questions, directories.

    Args:
        name (`str`): Of the command.

    Raises:
        SystemExit: Something of it cannot be used; the message is one line, of one process. Other errors, and all
            that training itself raises, keep their traceback.
    """
    try:
        yield
    except (OSError, RunDirectoryError, ValueError) as error:
        _wait_for_rank_0()
        raise SystemExit(f"realm-hf {name}: {error}") from None
    except SystemExit:  # already in words
        _wait_for_rank_0()
        raise


def _wait_for_rank_0() -> None:
    if os.environ.get("RANK", "0") != "0":
        time.sleep(_LAUNCHER_SECONDS)


def set_up_logging(accelerator: Accelerator) -> None:
    """Progress of the main process in words, above its bars; warnings of all. Weights get no bar."""
    level = logging.INFO if accelerator.is_main_process else logging.WARNING
    log_format = "%(asctime)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.WARNING, format=log_format, datefmt="%H:%M:%S", handlers=[AboveTheBars()])
    logging.getLogger("realm_hf").setLevel(level)
    transformers_logging.disable_progress_bar()


class AboveTheBars(logging.Handler):
    """Writes to standard error, and draws the progress bars again below: a line is not glued to a bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:  # noqa: BLE001 - as every handler: a message that cannot be written ends no training
            self.handleError(record)
