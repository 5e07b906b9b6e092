"""Curves of several runs in panels, as an SVG written by hand, so that nothing need be installed for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from realm_hf.report.charts import nice_ticks, short_number

Points = Sequence[tuple[float, float]]

COLOURS = ("#1b6ca8", "#d1495b", "#2e933c", "#8f5db7", "#c77d0a", "#4a4a4a")
_COLUMNS = 3
_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 340, 220, 55, 32, 45


def draw_panels(title: str, across: str, panels: Mapping[str, Mapping[str, Points]], file: Path) -> None:
    """Draw panels, three side by side, each with a line and dots for each run.

    Args:
        title: The accessible name.
        across: What the horizontal axis is.
        panels: Heading to (run to its points); a run has its colour in all of them.
        file: The SVG.
    """
    runs = list(dict.fromkeys(run for lines in panels.values() for run in lines))
    columns, line_height = min(_COLUMNS, len(panels)), _TOP + _HEIGHT + _GAP
    width, height = columns * (_WIDTH + _LEFT) + 15, -(-len(panels) // columns) * line_height + 18
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="11"><title>{escape(title)}</title>',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for place, (heading, lines) in enumerate(panels.items()):
        row, column = divmod(place, columns)
        drawn = _panel(heading, across, lines, runs, _LEFT + column * (_WIDTH + _LEFT))
        parts += [f'<g transform="translate(0,{row * line_height})">', *drawn, "</g>"]
    for place, run in enumerate(runs):
        x, colour = round(_LEFT + min(220, (width - _LEFT) / len(runs)) * place, 1), COLOURS[place % len(COLOURS)]
        parts.append(f'<rect x="{x}" y="{height - 18}" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{x + 14}" y="{height - 9}">{escape(run)}</text>')
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")


def _panel(heading: str, across: str, lines: Mapping[str, Points], runs: list[str], left: int) -> list[str]:
    points = [point for each in lines.values() for point in each]
    x_ticks, y_ticks = (nice_ticks(min(values), max(values)) for values in zip(*points, strict=True))

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            round(left + _WIDTH * (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]), 1),
            round(_TOP + _HEIGHT * (1 - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])), 1),
        )

    bottom = _TOP + _HEIGHT
    parts = [
        f'<text x="{left}" y="{_TOP - 10}" font-weight="bold">{escape(heading)}</text>',
        f'<rect x="{left}" y="{_TOP}" width="{_WIDTH}" height="{_HEIGHT}" fill="none" stroke="#888"/>',
        f'<text x="{left + _WIDTH / 2}" y="{bottom + 30}" text-anchor="middle">{escape(across)}</text>',
    ]
    for tick in x_ticks:
        x = place(tick, y_ticks[0])[0]
        parts.append(f'<line x1="{x}" x2="{x}" y1="{_TOP}" y2="{bottom}" stroke="#ddd"/>')
        parts.append(f'<text x="{x}" y="{bottom + 15}" text-anchor="middle">{short_number(tick)}</text>')
    for tick in y_ticks:
        y = place(x_ticks[0], tick)[1]
        parts.append(f'<line x1="{left}" x2="{left + _WIDTH}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 4}" y="{y + 4}" text-anchor="end">{short_number(tick)}</text>')
    for run, each in lines.items():
        colour = COLOURS[runs.index(run) % len(COLOURS)]
        drawn = [place(*point) for point in each]
        path = " ".join(f"{x},{y}" for x, y in drawn)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="2.5" fill="{colour}"/>' for x, y in drawn]
    return parts
