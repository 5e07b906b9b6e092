"""Arguments from the command line or from one YAML file."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from realm_hf.training.command_errors import one_process_speaks, unknown


class _OneLineParser(HfArgumentParser):
    """Says what is wrong in one line: the usage of a hundred options would push it off the screen."""

    def error(self, message: str) -> NoReturn:
        line = f"{self.prog}: {message}. See --help."
        one_process_speaks(line)
        self.exit(2, f"{line}\n")


def parse_arguments(
    types: Sequence[Any], argv: Sequence[str] | None = None, prog: str | None = None
) -> tuple[Any, ...]:
    """Fill dataclasses from the command line; a YAML file given first sets what the command line does not.

    Args:
        types (`Sequence[Any]`): Dataclasses whose field names are distinct.
        argv (`Sequence[str]`, *optional*): Arguments; `sys.argv[1:]` by default. `["run.yaml", "--max_steps", "5"]`
            reads the file, then overrides.
        prog (`str`, *optional*): Name of the program in its help; that of the script by default.

    Returns:
        One instance for each type, in order.

    Raises:
        FileNotFoundError: the YAML file is not there.
        ValueError: the file is no YAML or no mapping, or names a field that no dataclass has.
        SystemExit: a value does not fit its argument, or one that is needed is missing; said in one line.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    known = {f.name for kind in types for f in dataclasses.fields(kind) if f.init}
    if arguments and arguments[0].endswith((".yaml", ".yml")):
        arguments = _yaml_as_arguments(Path(arguments[0]), known) + arguments[1:]
    parser = _OneLineParser(list(types), allow_abbrev=False, prog=prog)
    *parsed, left = parser.parse_args_into_dataclasses(args=arguments, return_remaining_strings=True)
    if left:
        raise ValueError(unknown("argument", left[0].split("=")[0].lstrip("-"), known))
    return tuple(parsed)


def _yaml_as_arguments(path: Path, known: set[str]) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no configuration file {path}. Give the path of a YAML file, or --options.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}): save it as UTF-8.") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{path}{line} is no YAML ({error.problem}): write one `name: value` a line.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}, but must be a mapping of argument names to values.")
    words: list[str] = []
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"{path}: {unknown('argument', str(name), known)}")
        if value is None:
            continue
        # `--name=value` keeps values that begin with a dash; a list needs separate words.
        text = json.dumps(value) if isinstance(value, dict) else value
        words += [f"--{name}", *map(str, value)] if isinstance(value, list) else [f"--{name}={text}"]
    return words
