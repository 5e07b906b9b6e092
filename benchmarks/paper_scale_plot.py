"""Table and plot of paper_scale.py: Markdown, and an SVG written by hand, so that nothing need be installed for it."""

import math
import os
from html import escape
from pathlib import Path
from typing import Any

from harness.machine import cpu_name
from harness.results import BEGIN, END, write_between

Cell = dict[str, Any]

COLOURS = ("#1b6ca8", "#d1495b", "#2e933c", "#8f5db7", "#e08e0b", "#4a4a4a", "#0fa3b1", "#a44a3f", "#7a8b00")
_PAGE = f"""# Indexes by size

What each kind of index costs, from 10,000 passages to the 13,353,718 of the paper, at 128 dimensions. The
embeddings are synthetic but have neighbourhoods as passages have (topics, documents of eight passages; seed 0), stored
as float16; real ones of a run stand beside them where there are any. Recall is the share of the exact best 5, over 256
queries; every kind of lists searches as many of them as it takes to find 97 %, or all. Peak memory is that of the
process that builds, the mapped embeddings included. `auto` is what `index_factory="auto"` chooses at that size.
Measured again by `python benchmarks/paper_scale.py`, which goes on where it was stopped.

{BEGIN}
{END}
"""
PANELS = (
    ("build_seconds", "build, s"),
    ("peak_gigabytes", "peak memory, GB"),
    ("file_bytes", "file, bytes"),
    ("milliseconds", "one query, ms"),
)
_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 360, 250, 60, 30, 50


def table(cells: list[Cell]) -> str:
    """One row a cell, by size and factory."""
    lines = [
        "| embeddings | index | build s | peak GB | file | open ms | queries/s: 256 at once, one by one | recall@5 |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for cell in sorted(cells, key=lambda cell: (cell["rows"], cell["kind"])):
        who = f"{cell['rows']:,} {cell['kind']}"
        if "left_out" in cell:
            lines.append(f"| {who} | {cell['factory']} | {cell['left_out']} | | | | | |")
            continue
        searched = f", nprobe {cell['nprobe']}" if cell["nprobe"] else ""
        chosen = " (auto)" if cell["name"] == "auto" else ""
        rates = f"{cell['queries_a_second']:,.0f}, {cell['queries_a_second_one_by_one']:,.0f}"
        lines.append(
            f"| {who} | {cell['factory']}{searched}{chosen} | {cell['build_seconds']:,.1f} | "
            f"{cell['peak_gigabytes']:.2f} | {cell['file_bytes'] / 2**20:,.0f} MB | "
            f"{1e3 * cell['open_seconds']:.1f} | {rates} | {cell['recall']:.3f} |"
        )
    return "\n".join(lines)


def write_page(cells: list[Cell], page: Path, plot: Path) -> None:
    """Put table and plot between the markers of a page; made with a few words where there is none."""
    if not page.exists():
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(_PAGE, encoding="utf-8")
    picture = os.path.relpath(plot, page.parent)
    shown = f"![Cost of an index against the size of the corpus]({picture})\n\n" if plot.exists() else ""
    threads = sorted({str(cell["threads"]) for cell in cells if "threads" in cell})
    facts = f"{cpu_name()}, {' and '.join(threads)} threads."
    write_between(page, f"{facts}\n\n{shown}{table(cells)}")


def draw(cells: list[Cell], file: Path) -> None:
    """Four panels of cost against size, both logarithmic; nothing is drawn without two sizes."""
    measured = [
        {**cell, "milliseconds": 1e3 / cell["queries_a_second_one_by_one"]}
        for cell in cells
        if "left_out" not in cell and cell["kind"] == "synthetic"
    ]
    if len({cell["rows"] for cell in measured}) < 2:
        return
    names = list(dict.fromkeys(cell["name"] for cell in measured))
    colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(names)}
    width, height = 2 * (_WIDTH + _LEFT) + _GAP, 2 * (_HEIGHT + _TOP + _GAP) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="11"><title>Cost of an index against the size of the corpus</title>',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for place, (field, label) in enumerate(PANELS):
        left = _LEFT + (place % 2) * (_WIDTH + _LEFT + 10)
        top = _TOP + (place // 2) * (_HEIGHT + _TOP + _GAP)
        parts += _panel(measured, field, label, colours, left, top)
    for place, name in enumerate(names):
        x, y = _LEFT + (place % 5) * 150, height - 30 + 18 * (place // 5)
        parts.append(f'<rect x="{x}" y="{y - 8}" width="10" height="10" fill="{colours[name]}"/>')
        largest = max((cell for cell in measured if cell["name"] == name), key=lambda cell: cell["rows"])
        parts.append(f'<text x="{x + 14}" y="{y}">{escape(name)} ({largest["recall"]:.2f})</text>')
    parts.append(f'<text x="{_LEFT + 600}" y="{height - 12}">in brackets: recall@5 at its largest size</text>')
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")


def _panel(cells: list[Cell], field: str, label: str, colours: dict[str, str], left: int, top: int) -> list[str]:
    across = _decades([cell["rows"] for cell in cells])
    up = _decades([max(cell[field], 1e-6) for cell in cells])

    def x_of(value: float) -> float:
        return left + _WIDTH * (math.log10(value) - across[0]) / (across[1] - across[0])

    def y_of(value: float) -> float:
        return top + _HEIGHT * (1 - (math.log10(max(value, 1e-6)) - up[0]) / (up[1] - up[0]))

    parts = [
        f'<rect x="{left}" y="{top}" width="{_WIDTH}" height="{_HEIGHT}" fill="none" stroke="#888"/>',
        f'<text x="{left}" y="{top - 8}" font-weight="bold">{escape(label)}</text>',
    ]
    for power in range(across[0], across[1] + 1):
        x = x_of(10.0**power)
        parts.append(f'<line x1="{x}" x2="{x}" y1="{top}" y2="{top + _HEIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{x}" y="{top + _HEIGHT + 15}" text-anchor="middle">{10**power:,}</text>')
    for power in range(up[0], up[1] + 1):
        y = y_of(10.0**power)
        parts.append(f'<line x1="{left}" x2="{left + _WIDTH}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 4}" y="{y + 4}" text-anchor="end">{10.0**power:g}</text>')
    for name, colour in colours.items():
        line = sorted((cell["rows"], cell[field]) for cell in cells if cell["name"] == name)
        points = [(x_of(rows), y_of(value)) for rows, value in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in points]
    return parts


def _decades(values: list[float]) -> tuple[int, int]:
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)
