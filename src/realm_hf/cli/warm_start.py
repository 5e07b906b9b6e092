"""`realm-hf warm-start TASK`: a training before pre-training, each in a run directory of its own.

`realm-hf pretrain` can do the same in folders of its run (`--inverse_cloze_steps` and others); here the result is a
model that several runs can start from.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from realm_hf.cli.programs import run_program
from realm_hf.training.command_errors import one_process_speaks, unknown

__all__ = ["TASKS", "main"]

_EXIT_NOT_UNDERSTOOD = 2

TASKS = {
    "inverse-cloze": ("a sentence must find its passage", "realm_hf.cli.warm_start_towers"),
    "recurring-spans": (
        "the words around a span must find another passage with it",
        "realm_hf.cli.warm_start_towers",
    ),
    "masked-lm": ("the encoder learns to fill in words of the passages", "realm_hf.cli.warm_start_encoder"),
}


def main(words: Sequence[str]) -> int:
    """Run the task that is named first with the other arguments; returns its exit code."""
    if words and words[0] in TASKS:
        return run_program(f"warm-start {words[0]}", TASKS[words[0]][1], words[1:])
    if words and not words[0].startswith("-"):
        line = f"realm-hf warm-start: {unknown('task', words[0], TASKS)}"
        one_process_speaks(line)
        sys.stderr.write(f"{line}\n")
        raise SystemExit(_EXIT_NOT_UNDERSTOOD)
    parser = argparse.ArgumentParser(
        prog="realm-hf warm-start",
        description="Train towers or encoder before pre-training; RUN/model is what to start from.",
        epilog="Each task takes --help, its own options, or a YAML file of them.",
    )
    tasks = parser.add_subparsers(title="tasks", required=True, metavar="TASK")
    for task, (text, _) in TASKS.items():
        tasks.add_parser(task, help=text, add_help=False)
    parser.parse_args(words)
    raise AssertionError("unreachable: a parser that was given no task ends the program")
