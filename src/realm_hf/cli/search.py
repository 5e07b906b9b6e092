"""`realm-hf search`: the passages for a question, from a run, a saved retriever or a repository."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from realm_hf.cli.source_option import add_source_option, use_source

if TYPE_CHECKING:
    from realm_hf.retriever.text_search import FoundPassage

__all__ = ["add_parser", "search"]

_SHOWN = 200  # characters of a passage


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `search` to the commands of an `argparse` parser; `options.command(options)` runs it."""
    parser = commands.add_parser(
        "search",
        description="Find the passages for each QUERY, best first. Without any, read one a line from standard input.",
        epilog="exit codes: 0 every query was searched, 4 RETRIEVER cannot be used",
    )
    parser.add_argument("retriever", metavar="RETRIEVER", help="run directory, saved retriever or Hub name")
    parser.add_argument("queries", nargs="*", metavar="QUERY", help="a question or words; quote it")
    parser.add_argument("--k", type=int, default=5, metavar="K", help="passages of each (default: %(default)s)")
    add_source_option(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object a passage and line, with the whole text")
    parser.set_defaults(command=search)


def search(options: argparse.Namespace) -> int:
    """
    Search for what was asked.

    Args:
        options (`argparse.Namespace`): As [`add_parser`] describes them.

    Returns:
        `int`: The exit code, 0.

    Raises:
        OSError, ValueError: If the retriever cannot be loaded, or has no tower that embeds queries.
    """
    from transformers.utils import logging

    from realm_hf.retriever.retriever import RealmRetriever

    logging.disable_progress_bar()
    if options.k < 1:
        raise ValueError(f"--k is {options.k}: at least 1 is needed.")
    retriever = RealmRetriever.from_pretrained(options.retriever)
    use_source(retriever, options.source)
    lines = options.queries or [line.strip() for line in sys.stdin]
    queries = [line for line in lines if line]
    for query, found in zip(queries, retriever.search(queries, k=options.k) if queries else [], strict=True):
        if len(queries) > 1 and not options.json:
            sys.stdout.write(f"\n{query}\n")
        for result in found:
            sys.stdout.write(_as_json(query, result) if options.json else _in_words(result))
    return 0


def _as_json(query: str, result: FoundPassage) -> str:
    fields = {"row": int(result.row), "score": float(result.score), "title": result.title, "text": result.text}
    return json.dumps({"query": query, **fields}, ensure_ascii=False) + "\n"


def _in_words(result: FoundPassage) -> str:
    text = " ".join(result.text.split())
    cut = text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
    return f"{result.score:8.2f}  {result.title or '(no title)'}: {cut}\n"
