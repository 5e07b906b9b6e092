"""One line chart as an SVG element. Colours come from the page's CSS classes, sizes from the viewBox."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

Points = Sequence[tuple[float, float]]

# A phone shows one chart at nearly its own size, so that 12 units of text stay readable there.
WIDTH, HEIGHT = 400, 220
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 12, 28
SMOOTHED_SHARE = 10
"""A smoothed line is the mean over one part in so many of the curve."""


@dataclass(frozen=True)
class Chart:
    """
    What one chart shows.

    Args:
        title (`str`): Heading; also the accessible name.
        note (`str`): One line below the heading: unit and how to read it.
        points (`Sequence[tuple[float, float]]`): `(step, value)` of training, drawn as a line through
            bucket means with the range of each bucket behind.
        held_out (`Sequence[tuple[float, float]]`): `(step, value)` of evaluations, drawn as dots.
        shaded (`Sequence[tuple[float, float]]`): Intervals of steps with a tinted background: index builds.
        marks (`Sequence[float]`): Steps with a vertical line: swaps.
        from_zero (`bool`): The value axis includes zero.
        smooth (`bool`, *optional*, defaults to `False`): Draw a running mean over a tenth of the curve, and the curve
            itself pale behind it.
    """

    title: str
    note: str
    points: Points
    held_out: Points = ()
    shaded: Sequence[tuple[float, float]] = ()
    marks: Sequence[float] = ()
    from_zero: bool = False
    smooth: bool = False


@dataclass(frozen=True)
class _Axes:
    """Maps data to the drawing."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    y_ticks: list[float] = field(default_factory=list)

    def x(self, value: float) -> float:
        low, high = self.x_range
        share = (value - low) / (high - low) if high > low else 0.5
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return round(HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) that enclose `[low, high]`."""
    if high <= low:
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def buckets(points: Points, most: int = 80) -> list[tuple[float, float, float, float]]:
    """Neighbouring points joined: `(mean step, mean, least, greatest)`; four or more to a bucket once there are 96."""
    count = len(points) if len(points) < 96 else min(most, len(points) // 4)
    result = []
    for index in range(count):
        part = points[index * len(points) // count : (index + 1) * len(points) // count]
        values = [value for _, value in part]
        result.append((sum(x for x, _ in part) / len(part), sum(values) / len(part), min(values), max(values)))
    return result


def smoothed(points: Points, span: int) -> list[tuple[float, float]]:
    """The mean of each point and its neighbours, about `span` of them; fewer at the ends, as many each side."""
    sums = [0.0]
    for _, value in points:
        sums.append(sums[-1] + value)
    result = []
    for place, (x, _) in enumerate(points):
        reach = min(span // 2, place, len(points) - 1 - place)
        result.append((x, (sums[place + reach + 1] - sums[place - reach]) / (2 * reach + 1)))
    return result


def short_number(value: float) -> str:
    """At most four significant characters, with k and M: 0.05, 12.5, 1500 -> 1.5k."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:.3g}M"
    if abs(value) >= 1e3:
        return f"{value / 1e3:.3g}k"
    return f"{value:.3g}"


def draw(chart: Chart) -> str:
    """The chart as an `<svg>` element; `chart` has at least one point."""
    line = buckets(chart.points)
    steps = [x for x, _ in (*chart.points, *chart.held_out)]
    values = [value for _, _, least, greatest in line for value in (least, greatest)]
    values += [value for _, value in chart.held_out] + ([0.0] if chart.from_zero else [])
    ticks = nice_ticks(min(values), max(values))
    axes = _Axes((min(steps), max(steps)), (ticks[0], ticks[-1]), ticks)
    parts = [*_background(chart, axes), *_frame(axes), *_data(chart, line, axes)]
    label = escape(f"{chart.title}: {chart.note}", quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _background(chart: Chart, axes: _Axes) -> list[str]:
    low, high = axes.x_range
    height = HEIGHT - TOP - BOTTOM
    parts = []
    for start, end in chart.shaded:
        left, right = axes.x(max(start, low)), axes.x(min(end, high))
        parts.append(
            f'<rect class="build" x="{left}" y="{TOP}" width="{max(right - left, 1):.1f}" height="{height}">'
            f"<title>index build, steps {start:g} to {end:g}</title></rect>"
        )
    for step in chart.marks:
        x = axes.x(step)
        where = f'x1="{x}" x2="{x}" y1="{TOP}" y2="{TOP + height}"'
        parts.append(f'<line class="swap" {where}><title>swap at step {step:g}</title></line>')
    return parts


def _frame(axes: _Axes) -> list[str]:
    parts = []
    for tick in axes.y_ticks:
        y = axes.y(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{short_number(tick)}</text>')
    low, high = axes.x_range
    inside = [tick for tick in nice_ticks(low, high, count=6) if low <= tick <= high]
    for tick in inside:
        # A label at the right border would be cut off were it centred.
        anchor = "end" if axes.x(tick) > WIDTH - RIGHT - 12 else "middle"
        parts.append(f'<text x="{axes.x(tick)}" y="{HEIGHT - 8}" text-anchor="{anchor}">{short_number(tick)}</text>')
    return parts


def _data(chart: Chart, line: list[tuple[float, float, float, float]], axes: _Axes) -> list[str]:
    parts = []
    if any(greatest > least for _, _, least, greatest in line):
        upper = [f"{axes.x(x)},{axes.y(greatest)}" for x, _, _, greatest in line]
        lower = [f"{axes.x(x)},{axes.y(least)}" for x, _, least, _ in reversed(line)]
        parts.append(f'<polygon class="range" points="{" ".join(upper + lower)}"/>')
    if len(line) > 1:
        means = [(x, mean) for x, mean, _, _ in line]
        span = len(means) // SMOOTHED_SHARE if chart.smooth else 0
        if span > 1:
            parts += [_polyline("raw", means, axes), _polyline("line", smoothed(means, span), axes)]
        else:
            parts.append(_polyline("line", means, axes))
    elif line:
        parts.append(f'<circle class="dot" cx="{axes.x(line[0][0])}" cy="{axes.y(line[0][1])}" r="3"/>')
    for x, value in chart.held_out:
        parts.append(
            f'<circle class="held-out" cx="{axes.x(x)}" cy="{axes.y(value)}" r="4">'
            f"<title>held out, step {x:g}: {short_number(value)}</title></circle>"
        )
    return parts


def _polyline(kind: str, points: Points, axes: _Axes) -> str:
    path = " ".join(f"{axes.x(x)},{axes.y(y)}" for x, y in points)
    return f'<polyline class="{kind}" points="{path}"/>'
