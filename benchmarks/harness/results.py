"""Results that come one by one, over several runs of a program: a line of JSON each, and a table on a page.

A program that is stopped and started again measures what has no line yet. A line that a kill has cut is left out.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from realm_hf.storage.files import replacement

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"

Line = dict[str, Any]


def read_lines(file: Path) -> list[Line]:
    """The finished lines of a file; none where there is no file."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def by_setting(lines: Sequence[Line]) -> list[list[Line]]:
    """The lines of each setting, `on`, in the order in which they were first measured."""
    settings: list[dict[str, Any]] = []
    settings += [line["on"] for place, line in enumerate(lines) if line["on"] not in [o["on"] for o in lines[:place]]]
    return [[line for line in lines if line["on"] == on] for on in settings]


def append_line(file: Path, line: Line) -> None:
    """Write a line behind the finished ones."""
    write_lines(file, [*read_lines(file), line])


def write_lines(file: Path, lines: Sequence[Line]) -> None:
    """Make these the lines of a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacement(file) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def command() -> str:
    """What this program was called with, without the folders before files' names."""
    named = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *named])


def write_between(page: Path, content: str, *, begin: str = BEGIN, end: str = END) -> None:
    """Put `content` between the markers of a page.

    Raises:
        SystemExit: The page has no such markers.
    """
    text = page.read_text(encoding="utf-8")
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"{page} has no line {begin} followed by one with {end}: put them where the table belongs.")
    page.write_text(f"{before}{begin}\n{content}\n{end}{after}", encoding="utf-8")


def add_result_arguments(parser: argparse.ArgumentParser, results: Path) -> None:
    """The options that every program about learning has."""
    parser.add_argument("--tables", type=Path, metavar="PAGE", help="measure nothing, write the table into a page")
    parser.add_argument(
        "--results", type=Path, default=results, help="a JSON line for each row (default: %(default)s)"
    )


def measure_or_write_tables(
    table: Callable[[list[Line]], str],
    results: Path,
    parser: Callable[[], argparse.ArgumentParser],
    measure: Callable[[argparse.Namespace], None],
) -> None:
    """What such a program does: measure what has no line yet and print the table, or write it into a page."""
    if not write_tables(table, results):
        args = parser().parse_args()
        measure(args)
        print(table(read_lines(args.results)))


def write_tables(table: Callable[[list[Line]], str], results: Path) -> bool:
    """Do what `--tables PAGE` asks for; whether it was asked.

    Raises:
        SystemExit: There is no line yet, or the page has no place for a table.
    """
    if "--tables" not in sys.argv:
        return False
    parser = argparse.ArgumentParser()
    add_result_arguments(parser, results)
    args = parser.parse_args()
    lines = read_lines(args.results)
    if not lines:
        raise SystemExit(f"{args.results} has no line yet: measure first.")
    write_between(args.tables, table(lines))
    print(table(lines))
    return True
