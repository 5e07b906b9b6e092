"""What the commands that are programs share: arguments of dataclasses, and a log of the main process in words."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from accelerate import Accelerator

from realm_hf.training.command_line import parse_arguments

__all__ = ["arguments_of", "set_up_logging"]

_EXIT_NOT_UNDERSTOOD = 2


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
        if os.environ.get("RANK", "0") == "0":
            sys.stderr.write(f"realm-hf {name}: {error}\n")
        raise SystemExit(_EXIT_NOT_UNDERSTOOD) from None


def set_up_logging(accelerator: Accelerator) -> None:
    """Progress of the main process in words; warnings of all."""
    level = logging.INFO if accelerator.is_main_process else logging.WARNING
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("realm_hf").setLevel(level)
