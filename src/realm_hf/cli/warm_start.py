"""`realm-hf warm-start TASK`: a training before pre-training, each in a run directory of its own.

`realm-hf pretrain` can do the same in folders of its run (`--inverse_cloze_steps` and others); here the result is a
model that several runs can start from.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module

__all__ = ["TASKS", "main"]

TASKS = {
    "inverse-cloze": ("a sentence must find its passage", "realm_hf.cli.warm_start_towers", "inverse_cloze"),
    "recurring-spans": (
        "the words around a span must find another passage with it",
        "realm_hf.cli.warm_start_towers",
        "recurring_spans",
    ),
    "masked-lm": ("the encoder learns to fill in words of the passages", "realm_hf.cli.warm_start_encoder", "main"),
}


def main(words: Sequence[str]) -> int:
    """Run the task that is named first with the other arguments; returns its exit code."""
    if words and words[0] in TASKS:
        _, module, name = TASKS[words[0]]
        code: int = getattr(import_module(module), name)(words[1:])
        return code
    parser = argparse.ArgumentParser(
        prog="realm-hf warm-start",
        description="Train towers or encoder before pre-training; RUN/model is what to start from.",
        epilog="Each task takes --help, its own options, or a YAML file of them.",
    )
    tasks = parser.add_subparsers(title="tasks", required=True, metavar="TASK")
    for task, (text, _, _) in TASKS.items():
        tasks.add_parser(task, help=text, add_help=False)
    parser.parse_args(words)
    raise AssertionError("unreachable: a parser that was given no task ends the program")
