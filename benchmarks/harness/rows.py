"""A row of the table of speeds: what was measured, beside what, and whether the goal is reached.

A row holds two figures in one unit. What the ratio means is said by its kind, so that a time, a share of a limit and a
resident size fit the same table and the same file.
"""

import json
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from .alternation import Alternation, half_interquartile_range

Kind = Literal["speedup", "at_most", "at_least"]


@dataclass(frozen=True)
class Settings:
    """What every group of rows is measured with.

    Args:
        corpus: A Parquet file with the columns title and text; None for the packaged Factbook.
        rounds: How often both sides are timed, at least.
        quick: Sizes that only show that everything runs. Their figures mean nothing.
        threads: CPU threads of each side.
    """

    corpus: Path | None = None
    rounds: int = 5
    quick: bool = False
    threads: int = 2

    @property
    def most_rounds(self) -> int:
        """How often where the ratio is still uncertain."""
        return self.rounds if self.quick else 3 * self.rounds

    @property
    def inputs(self) -> str:
        """The corpus in a few words."""
        return "CIA World Factbook" if self.corpus is None else self.corpus.name


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        name: What was done; unique in the table.
        ours: Median of this package's figure.
        peer: Median of the other side's figure, or the limit, in the same unit.
        unit: For example "ms/step", "s" or "MB".
        goal: The ratio to reach.
        kind: "speedup": the ratio is peer / ours and should be `goal` or more. "at_most" and "at_least": it is
            ours / peer and should be `goal` or less, or `goal` or more.
        beside: What the peer is.
        ours_spread: Half the interquartile range of our figure over the rounds; 0.0 where it was taken once.
        peer_spread: The same of the peer's; 0.0 for a fixed limit.
        note: What a reader of the ratio has to know.
        rounds: Our figure and the peer's of each round, taken one right after the other; empty where there are none.
    """

    name: str
    ours: float
    peer: float
    unit: str
    goal: float
    kind: Kind
    beside: str
    ours_spread: float
    peer_spread: float
    note: str = ""
    rounds: tuple[tuple[float, float], ...] = ()

    @property
    def ratio(self) -> float:
        """The peer's figure over ours for a speedup, ours over the peer's for a share of a limit.

        With rounds it is the median of their own ratios: where the machine drifts from round to round, both sides of
        a round met the same machine, and the medians of the sides may come from different ones.
        """
        return statistics.median(self._ratios)

    @property
    def ratio_spread(self) -> float:
        """Half the interquartile range of the rounds' ratios; 0.0 without rounds."""
        return half_interquartile_range(self._ratios)

    @property
    def _ratios(self) -> list[float]:
        pairs = self.rounds or ((self.ours, self.peer),)
        return [peer / ours if self.kind == "speedup" else ours / peer for ours, peer in pairs]

    @property
    def reached(self) -> bool:
        """Whether the ratio is on the right side of the goal."""
        return self.ratio <= self.goal if self.kind == "at_most" else self.ratio >= self.goal

    def as_dict(self) -> dict[str, Any]:
        """The row as it stands in results.json."""
        return {**asdict(self), "ratio": self.ratio, "ratio_spread": self.ratio_spread, "reached": self.reached}


def row_from_dict(fields: dict[str, Any]) -> Row:
    """The row that `Row.as_dict` wrote.

    >>> row = Row("search", 2.0, 3.0, "s", 1.5, "speedup", "faiss", 0.0, 0.0)
    >>> row_from_dict(row.as_dict()) == row
    True
    """
    own = {name: value for name, value in fields.items() if name not in ("ratio", "ratio_spread", "reached")}
    return Row(**{**own, "rounds": tuple((ours, peer) for ours, peer in own["rounds"])})


def timed_row(
    found: Alternation, scale: float, *, name: str, beside: str, unit: str, goal: float, kind: Kind, note: str = ""
) -> Row:
    """The row of an alternation.

    Args:
        found: Seconds of both sides.
        scale: What makes the unit of a second: 1000 / queries for "ms/query".
        name: As in `Row`, like the rest.
        beside: As in `Row`.
        unit: As in `Row`.
        goal: As in `Row`.
        kind: As in `Row`.
        note: As in `Row`.
    """
    return Row(
        name=name,
        ours=found.ours * scale,
        peer=found.peer * scale,
        unit=unit,
        goal=goal,
        kind=kind,
        beside=beside,
        ours_spread=found.ours_spread * scale,
        peer_spread=found.peer_spread * scale,
        note=note,
        rounds=tuple(
            (ours * scale, peer * scale) for ours, peer in zip(found.ours_rounds, found.peer_rounds, strict=True)
        ),
    )


def table(rows: Iterable[Row]) -> str:
    """The rows as a Markdown table, in their order."""
    lines = [
        "| work | beside | ours | peer | unit | ratio | goal | reached |",
        "|---|---|---:|---:|---|---:|---:|---|",
    ]
    for row in rows:
        sign = "at most " if row.kind == "at_most" else "at least "
        cells = (
            row.name,
            row.beside,
            _figure(row.ours, row.ours_spread),
            _figure(row.peer, row.peer_spread),
            row.unit,
            _figure(row.ratio, row.ratio_spread),
            f"{sign}{row.goal:g}",
            "yes" if row.reached else "**no**",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def notes(rows: Iterable[Row]) -> str:
    """What the rows say beside their figures, as a Markdown list."""
    return "\n".join(f"- {row.name} beside {row.beside}: {row.note}" for row in rows if row.note)


def write_results(rows: Iterable[Row], file: Path, machine: dict[str, str]) -> None:
    """Write a JSON list with one row a line; each row carries the machine it was measured on."""
    lines = [json.dumps({**row.as_dict(), "machine": machine}, ensure_ascii=False) for row in rows]
    file.write_text("[\n" + ",\n".join(lines) + "\n]\n")


def read_results(file: Path, machine: dict[str, str]) -> list[Row]:
    """The rows of an earlier run; those of another machine, commit or set of versions are left out."""
    if not file.exists():
        return []
    found = json.loads(file.read_text())
    return [
        row_from_dict({name: value for name, value in fields.items() if name != "machine"})
        for fields in found
        if fields["machine"] == machine
    ]


def _figure(value: float, spread: float) -> str:
    digits = 4 if value >= 100 else 3
    shown = f"{value:.{digits}g}"
    return f"{shown} ± {spread:.2g}" if spread else shown
