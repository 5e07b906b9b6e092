"""What the commands that are programs share: arguments of dataclasses, errors in one line, a log in words."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from realm_hf.cli.arguments import ARGUMENTS
from realm_hf.refresh.base import RefreshError
from realm_hf.runs.errors import RunDirectoryError
from realm_hf.training.command_errors import in_one_line, one_process_speaks
from realm_hf.training.command_line import parse_arguments

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["AboveTheBars", "one_line_errors", "run_program", "set_up_logging"]

_EXIT_NOT_UNDERSTOOD = 2


def run_program(name: str, module: str, words: Sequence[str]) -> int:
    """
    Read the arguments of a program, and only then import it: a typo and `--help` need no datasets and no models.

    Args:
        name (`str`): Of the command; its arguments are in [`ARGUMENTS`].
        module (`str`): Its `main` takes them, one of each kind.
        words (`Sequence[str]`): What follows the command: options, or a YAML file and options.

    Returns:
        `int`: Its exit code.

    Raises:
        SystemExit: They are not understood. Of several processes the first says why, in one line.
    """
    arguments = _arguments(name, words)
    code: int = import_module(module).main(*arguments)
    return code


def _arguments(name: str, words: Sequence[str]) -> tuple[Any, ...]:
    try:
        return parse_arguments(ARGUMENTS[name], words, prog=f"realm-hf {name}")
    except (FileNotFoundError, ValueError) as error:
        line = in_one_line(f"realm-hf {name}", error)
        one_process_speaks(line)
        sys.stderr.write(f"{line}\n")
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
    except (OSError, RefreshError, RunDirectoryError, ValueError) as error:
        line = in_one_line(f"realm-hf {name}", error)
        one_process_speaks(line)
        raise SystemExit(line) from None
    except SystemExit as end:
        if not isinstance(end.code, str):
            raise
        line = f"realm-hf {name}: {end.code}"
        one_process_speaks(line)
        raise SystemExit(line) from None


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
