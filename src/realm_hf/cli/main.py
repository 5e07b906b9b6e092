"""`realm-hf`: train, fine-tune, evaluate, search and ask; look after runs; convert old checkpoints.

`python -m realm_hf` is the same, so that `accelerate launch -m realm_hf pretrain ...` starts it on several processes.
Only the command that is called is imported: `--help` waits for torch, but for neither FAISS nor datasets.

Exit codes: 0 all is well; 1 something is wrong, and was said; 2 the command was not understood; 3 `build-index`: there
was nothing to build; 4 the folder is not a run directory, or cannot be used. A training that was interrupted ends with
the code of the signal.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

from realm_hf import __version__
from realm_hf.training.command_errors import in_one_line, one_process_speaks, unknown

__all__ = ["EXIT_UNUSABLE", "main"]

_EXIT_NOT_UNDERSTOOD = 2
EXIT_UNUSABLE = 4


class Command(NamedTuple):
    """A command: what it does in one line, the module it is in, and the function that adds its parser."""

    help: str
    module: str
    parser: str = "add_parser"


COMMANDS = {
    "search": Command("find the passages for a question", "realm_hf.cli.search"),
    "ask": Command("answer questions from a corpus, with the passages that the answers rest on", "realm_hf.cli.ask"),
    "build-index": Command(
        "build the index of a run's newest snapshot", "realm_hf.cli.run_directory", "add_build_index"
    ),
    "inspect": Command("say what a run directory holds", "realm_hf.cli.run_directory", "add_inspect"),
    "verify": Command(
        "check a run's files and recompute rows of its indexes", "realm_hf.cli.run_directory", "add_verify"
    ),
    "report": Command("write the run's HTML report", "realm_hf.cli.run_directory", "add_report"),
    "estimate": Command("what a run will take: memory, refresh time, staleness, total time", "realm_hf.cli.estimate"),
    "convert": Command("convert a checkpoint of transformers 4 (google/realm-*)", "realm_hf.cli.convert"),
}
"""Read by one `argparse` parser."""
PROGRAMS = {
    "prepare": Command(
        "prepare the corpora of `pretrain` ahead, with others that do the same", "realm_hf.cli.prepare"
    ),
    "pretrain": Command("pre-train on your text: model, index and report", "realm_hf.cli.pretrain"),
    "warm-start": Command("train the towers or the encoder before that", "realm_hf.cli.warm_start"),
    "finetune": Command("fine-tune on questions and answers", "realm_hf.cli.finetune"),
    "evaluate": Command("judge answers on a benchmark or on your own questions", "realm_hf.cli.evaluate"),
}
"""Each reads its own arguments, from the command line or a YAML file, and may run on several processes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in PROGRAMS:
        return _run(words[0], words[1:])
    if words and not words[0].startswith("-") and words[0] not in COMMANDS:
        line = f"realm-hf: {unknown('command', words[0], PROGRAMS | COMMANDS)}"
        one_process_speaks(line)
        sys.stderr.write(f"{line}\n")
        raise SystemExit(_EXIT_NOT_UNDERSTOOD)
    options = _parser(words).parse_args(words)
    try:
        code: int = options.command(options)
    except (OSError, RuntimeError, ValueError) as error:
        line = in_one_line("realm-hf", error)
        one_process_speaks(line)
        sys.stderr.write(f"{line}\n")
        return EXIT_UNUSABLE
    return code


def _run(name: str, words: Sequence[str]) -> int:
    """A program. What it shares with others comes with it: other commands do not wait for that."""
    module = PROGRAMS[name].module
    if name == "warm-start":  # has programs of its own
        code: int = import_module(module).main(words)
    else:
        code = import_module("realm_hf.cli.programs").run_program(name, module, words)
    return code


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """With the options of the command that is called; of the others, their names."""
    parser = argparse.ArgumentParser(
        prog="realm-hf",
        description="Train, fine-tune, evaluate, search and ask; look after runs; convert old checkpoints.",
        epilog="Each command takes --help. RUN is the output_dir of a training run.",
    )
    parser.add_argument("--version", action="version", version=f"realm-hf {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    called = next((word for word in words if not word.startswith("-")), None)
    for name, command in (PROGRAMS | COMMANDS).items():
        if name == called and name in COMMANDS:
            getattr(import_module(command.module), command.parser)(commands)
        else:
            commands.add_parser(name, help=command.help)
    return parser


if __name__ == "__main__":
    sys.exit(main())
