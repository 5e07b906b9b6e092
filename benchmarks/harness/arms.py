"""Arms side by side: those that have no line yet are run, and a table of means over seeds is made from the lines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .machine import measured_on
from .results import Line, append_line, by_setting, command, read_lines
from .retrieval import Sums, gain_table, means, recall_table

Row = tuple[dict[str, Any], Callable[[], Line]]
"""What names a row, such as arm and seed, and what measures it. `by_article` of the line comes last in the file."""


def measure_missing(results: Path, rows: Iterable[Row], on: dict[str, Any], *code: str) -> None:
    """Measure the rows that have no line for these settings, and write a line for each.

    Args:
        results: The file of lines.
        rows: Measured one after the other; the names of a row become the first entries of its line.
        on: What a line was measured on; another line is measured again.
        code: Files or folders beside `src` that decide the figures.
    """
    for names, measured in rows:
        if any(line["on"] == on and names.items() <= line.items() for line in read_lines(results)):
            continue
        line = {**names, **measured()}
        sums = line.pop("by_article")
        machine = measured_on(torch.get_num_threads(), *code)
        append_line(results, {**line, "on": on, **machine, "command": command(), "by_article": sums})
        print(*(f"{name}: {value}" for name, value in line.items()), sep="  ", flush=True)


def sections(lines: Sequence[Line], section: Callable[[list[Line]], str]) -> str:
    """Markdown: a section for each setting, in the order in which they were first measured."""
    return "\n\n".join(map(section, by_setting(lines)))


def arm_tables(
    lines: Sequence[Line], order: Sequence[str], compared: Sequence[tuple[str, str]], seconds: str
) -> list[str]:
    """Lines of Markdown: recall of each arm, gains of some over others, and recall@5 of each seed.

    A gain is taken over the seeds that both arms have.

    Args:
        lines: Each with `arm`, `seed`, `by_article` and the seconds.
        order: The arms, in the order of the table.
        compared: Pairs of arms: the first over the second, where there are lines of both.
        seconds: Name of the entry that holds the seconds.
    """
    sums: dict[str, dict[int, Sums]] = {}
    spent: dict[str, list[float]] = {}
    for line in sorted(lines, key=lambda line: (order.index(line["arm"]), line["seed"])):
        sums.setdefault(line["arm"], {})[line["seed"]] = line["by_article"]
        spent.setdefault(line["arm"], []).append(line[seconds])
    rows = [(arm, list(of.values()), f"{np.mean(spent[arm]):,.0f}") for arm, of in sums.items()]
    parts = recall_table("arm", rows, "seconds")
    gains = []
    for arm, other in compared:
        both = sorted(sums.get(arm, {}).keys() & sums.get(other, {}).keys())
        if both:
            pair = [sums[arm][seed] for seed in both], [sums[other][seed] for seed in both]
            gains.append((f"{arm}, over {other}", *pair))
    if gains:
        parts += ["", *gain_table(gains)]
    by_seed = {arm: ", ".join(f"{means(each)['recall@5']:.1f}" for each in of.values()) for arm, of in sums.items()}
    return [*parts, "", f"Recall@5 by seed: {'; '.join(f'{arm} {values}' for arm, values in by_seed.items())}."]


def measured_with(line: Line) -> str:
    """Where a line comes from, for below a table."""
    return f"{line['cpu']}; {line['versions']}; commit {line['commit']}."
