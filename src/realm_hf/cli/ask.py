"""`realm-hf ask`: answers on the command line, one question, many, or a conversation.

Standard output holds the answers and nothing else, so that it can be piped; what is said beside them goes to standard
error.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from realm_hf.cli.source_option import add_source_option, use_source

if TYPE_CHECKING:
    from realm_hf.qa.answerer import QuestionAnswerer
    from realm_hf.qa.answers import Answer, Evidence

__all__ = ["add_parser", "ask", "load_answerer"]

_AROUND = 100  # characters of a passage that are shown on either side of a span
_PROMPT = "question> "


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `ask` to the commands of an `argparse` parser; `options.command(options)` runs it."""
    parser = commands.add_parser(
        "ask",
        description="Answer each QUESTION. Without any, read one a line from standard input: a conversation on a "
        "terminal, a batch from a pipe or file.",
        epilog="exit codes: 0 every question was dealt with, 4 MODEL or RETRIEVER cannot be used",
    )
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help="a question; quote it")
    parser.add_argument(
        "--model", required=True, metavar="NAME", help="run directory, directory or Hub name of a RealmForOpenQA"
    )
    parser.add_argument(
        "--retriever", metavar="NAME", help="directory or Hub name of a RealmRetriever (default: MODEL)"
    )
    add_source_option(parser)
    parser.add_argument("--top_k", type=int, metavar="K", help="passages to read (default: the model's own, mostly 5)")
    parser.add_argument("--evidence", type=int, default=3, metavar="N", help="passages to show (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line, with all evidence")
    parser.add_argument("--batch_size", type=int, default=32, help="questions at a time (default: %(default)s)")
    parser.add_argument("--device", help="where to compute, such as cuda (default: the CPU)")
    parser.set_defaults(command=ask)


def ask(options: argparse.Namespace) -> int:
    """
    Answer what was asked.

    Args:
        options (`argparse.Namespace`): As [`add_parser`] describes them.

    Returns:
        `int`: The exit code, 0.

    Raises:
        OSError, ValueError: If model or retriever cannot be loaded.
    """
    answerer = load_answerer(options)
    talking = not options.questions and sys.stdin.isatty()
    if talking:
        _say(f"{len(answerer.retriever):,} passages. An empty line or Ctrl-D ends.", sys.stderr)
    questions = iter(options.questions) if options.questions else _typed() if talking else _lines(sys.stdin)
    size = 1 if talking else options.batch_size
    named = not talking and len(options.questions) != 1
    try:
        while batch := list(islice(questions, size)):
            for answer in answerer(batch, top_k=options.top_k, batch_size=size):
                as_json = json.dumps(answer.to_dict(), ensure_ascii=False) if options.json else ""
                _say(as_json or _words(answer, options.evidence, named))
    except KeyboardInterrupt:
        _say("", sys.stderr)
    return 0


def load_answerer(options: argparse.Namespace) -> QuestionAnswerer:
    """The answerer that `--model`, `--retriever`, `--source`, `--batch_size` and `--device` name."""
    if options.batch_size < 1 or (options.top_k is not None and options.top_k < 1):
        raise ValueError(f"--batch_size is {options.batch_size}, --top_k {options.top_k}: at least 1 is needed.")
    if options.model.count("/") != 1 and not Path(options.model).is_dir():  # cannot be `owner/name` on the Hub
        raise FileNotFoundError(f"There is no directory {options.model}: name that of a saved RealmForOpenQA.")
    from transformers import AutoTokenizer
    from transformers.utils import logging

    from realm_hf.models.configuration_realm import RealmConfig
    from realm_hf.models.modeling_realm_qa import RealmForOpenQA
    from realm_hf.models.places import ANSWERING, find_model
    from realm_hf.qa.answerer import QuestionAnswerer
    from realm_hf.retriever.retriever import RealmRetriever

    architectures = RealmConfig.from_pretrained(find_model(options.model, ANSWERING)).architectures or []
    if ANSWERING not in architectures:
        raise ValueError(
            f"{options.model} holds {', '.join(architectures) or 'no model'}, which cannot answer: name a "
            "RealmForOpenQA, which comes out of fine-tuning."
        )
    logging.disable_progress_bar()
    retriever = RealmRetriever.from_pretrained(options.retriever or options.model)
    if retriever.tokenizer is None:
        retriever.tokenizer = AutoTokenizer.from_pretrained(options.model)
    use_source(retriever, options.source)
    return QuestionAnswerer(RealmForOpenQA.from_pretrained(options.model), retriever, device=options.device)


def _typed() -> Iterator[str]:
    """Questions from the terminal."""
    with suppress(ImportError):  # Windows has none
        import readline  # noqa: F401  # editing and history for `input`
    while True:
        try:
            question = input(_PROMPT)
        except EOFError:
            _say("", sys.stderr)
            return
        if not question.strip():
            return
        yield question


def _lines(stream: Iterable[str]) -> Iterator[str]:
    """Questions from a pipe, one a line; an empty line is a question without an answer, so that lines stay aligned."""
    return (line.rstrip("\r\n") for line in stream)


def _words(answer: Answer, passages: int, named: bool) -> str:
    """An answer for a reader: probability, passages by their share, the span of each in brackets."""
    lines = [answer.question] if named else []
    if answer.row is None:
        return "\n".join([*lines, "no answer", ""])
    lines.append(f"{answer.shown}  ({answer.probability:.1%}; {answer.string_probability:.1%} with equal strings)")
    for passage in answer.evidence[:passages]:
        lines.append(f"  {passage.share:6.1%}  {passage.title or '(no title)'}, passage {passage.row}")
        lines.append(f"          {_excerpt(passage)}")
    if answer.null_probability is not None:
        lines.append(f"  The retriever gives {answer.null_probability:.1%} to no passage at all.")
    return "\n".join([*lines, ""])


def _excerpt(passage: Evidence) -> str:
    start, end = passage.shown_span
    before, after = passage.text[max(0, start - _AROUND) : start], passage.text[end : end + _AROUND]
    shown = f"{before}[{passage.text[start:end]}]{after}"
    return (
        ("..." if start > _AROUND else "")
        + " ".join(shown.split())
        + ("..." if end + _AROUND < len(passage.text) else "")
    )


def _say(text: str, stream: TextIO | None = None) -> None:
    print(text, file=stream or sys.stdout, flush=True)
