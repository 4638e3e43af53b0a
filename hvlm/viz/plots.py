"""Plots as SVG text: curves over steps, and shares as bars with their errors.

Written by hand, because that is all a report needs: a plotting library would double what an installation brings and add
half a second to every program that ends with a report. Everything that comes from data is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

Series = Sequence[tuple[float, float]]  # (x, y), ascending in x
Band = Sequence[tuple[float, float, float]]  # (x, lowest, highest), ascending in x
COLOURS = ("#2266bb", "#b84a17", "#2c7a3c", "#884499", "#80601c", "#3f6f80", "#b02f70", "#555555")
WIDTH, HEIGHT = 560, 240
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 28, 34  # margins
MOST_POINTS = 300  # of a curve; more are means of neighbours
ROW = 26  # height of a bar with its gap
BARS = 760  # width of bars with their names and numbers
NAMES = 280  # of their names


class Bar(NamedTuple):
    """value, error (one standard error, or None), chance and control (or None): shares, 0 to 1."""

    name: str
    value: float
    error: float | None = None
    chance: float | None = None
    control: float | None = None


def curves(
    title: str,
    series: Mapping[str, Series],
    mark: tuple[float, float, str] | None = None,
    bands: Mapping[str, Band] | None = None,
    legend: bool = True,
) -> str:
    """Curves over optimiser steps in one picture.

    Args:
        title: above the picture.
        series: {name: points}; a single point is a dot.
        mark: a point to be pointed out, and what to say there.
        bands: {name: how far a curve may be off}, drawn below the curves.
        legend: whether the names stand beside the title, in the curves' colours.
    """
    bands = bands or {}
    points = [point for of in series.values() for point in of]
    points += [(x, y) for of in bands.values() for x, *ends in of for y in ends]
    if not points:
        return ""
    low, high = min(y for _, y in points), max(y for _, y in points)
    pad = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    ticks_y = ticks(low - pad, high + pad)
    low, high = min(low - pad, ticks_y[0]), max(high + pad, ticks_y[-1])
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    last = last if last > first else first + 1

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - first) / (last - first) * (WIDTH - LEFT - RIGHT)
        return across, TOP + (high - y) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<text x="{LEFT}" y="16" class="title">{escape(title)}</text>']
    for y in ticks_y:
        at = place(first, y)[1]
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{y:.4g}</text>')
    for x in ticks(first, last):
        at = place(x, low)[0]
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - 14}" text-anchor="middle">{x:.6g}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 2}" text-anchor="end">step</text>')
    for name, of in bands.items():
        edge = [place(x, low) for x, low, _ in of] + [place(x, high) for x, _, high in reversed(of)]
        way_round = " ".join(f"{x:.1f},{y:.1f}" for x, y in edge)
        colour = dict(zip(series, _colours(len(series)), strict=True))[name]
        parts.append(f'<polygon points="{way_round}" fill="{colour}" fill-opacity="0.18" class="band"/>')
    at = WIDTH - RIGHT
    for (name, of), colour in reversed(list(zip(series.items(), _colours(len(series)), strict=True))):
        way = [place(x, y) for x, y in thinned(of)]
        text = " ".join(f"{x:.1f},{y:.1f}" for x, y in way)
        if len(way) > 1:
            parts.append(f'<polyline points="{text}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        if len(way) <= 12:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in way]
        if legend:
            parts.append(f'<text x="{at}" y="16" text-anchor="end" fill="{colour}">{escape(name)}</text>')
            at -= 7 * len(name) + 14
    if mark is not None:
        x, y = place(mark[0], mark[1])
        side = "end" if x > WIDTH / 2 else "start"
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="none" stroke="#000"/>')
        parts.append(f'<text x="{x:.1f}" y="{y - 9:.1f}" text-anchor="{side}">{escape(mark[2])}</text>')
    return svg(WIDTH, HEIGHT, parts)


def bars(rows: Sequence[Bar], control: str = "without video") -> str:
    """Shares as horizontal bars from 0 to 100 %: ± one standard error, a dashed line at chance, a hollow mark where the
    control is. The legend names what there is of these."""
    if not rows:
        return ""
    height = TOP + ROW * len(rows) + BOTTOM
    span = BARS - NAMES - 90

    def across(share: float) -> float:
        return NAMES + min(max(share, 0.0), 1.0) * span

    parts = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = across(share)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{height - BOTTOM}" class="grid"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - 18}" text-anchor="middle">{100 * share:.0f} %</text>')
    for i, row in enumerate(rows):
        y = TOP + i * ROW
        middle = y + ROW / 2 - 2
        name = row.name if len(row.name) <= 44 else row.name[:43] + "…"
        parts.append(f'<text x="{NAMES - 8}" y="{middle + 4:.1f}" text-anchor="end">{escape(name)}</text>')
        parts.append(
            f'<rect x="{NAMES}" y="{y + 3}" width="{across(row.value) - NAMES:.1f}" height="{ROW - 10}" '
            f'fill="{COLOURS[0]}"/>'
        )
        said = f"{100 * row.value:.1f}"
        if row.error is not None:
            low, high = across(row.value - row.error), across(row.value + row.error)
            parts.append(f'<path d="M{low:.1f} {middle:.1f}H{high:.1f}" stroke="#000" class="error"/>')
            parts += [f'<path d="M{x:.1f} {middle - 4:.1f}v8" stroke="#000"/>' for x in (low, high)]
            said += f" ± {100 * row.error:.1f}"
        if row.chance is not None:
            x = across(row.chance)
            parts.append(
                f'<path d="M{x:.1f} {y}v{ROW - 4}" stroke="{COLOURS[1]}" stroke-dasharray="3 2" class="chance"/>'
            )
        if row.control is not None:
            x = across(row.control)
            parts.append(
                f'<circle cx="{x:.1f}" cy="{middle:.1f}" r="4" fill="#fff" stroke="{COLOURS[2]}" class="control"/>'
            )
        parts.append(f'<text x="{NAMES + span + 8}" y="{middle + 4:.1f}">{said} %</text>')
    legend = [("bar: ± one standard error", COLOURS[0])] if any(r.error is not None for r in rows) else []
    legend += [("dashed: chance", COLOURS[1])] if any(r.chance is not None for r in rows) else []
    legend += [(f"circle: {control}", COLOURS[2])] if any(r.control is not None for r in rows) else []
    at = NAMES
    for text, colour in legend:
        parts.append(f'<text x="{at}" y="16" fill="{colour}">{escape(text)}</text>')
        at += 6 * len(text) + 18
    return svg(BARS, height, parts)


def thinned(series: Series, most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most so many points: the means of neighbours, the first and the last as they are."""
    points = list(series)
    if len(points) <= most:
        return points
    inner = points[1:-1]
    size = math.ceil(len(inner) / (most - 2))
    parts = [inner[i : i + size] for i in range(0, len(inner), size)]
    means = [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]
    return [points[0], *means, points[-1]]


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers within [low, high], some ``about`` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _colours(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def svg(width: int, height: int, parts: Sequence[str]) -> str:
    """A picture of so many pixels, of its parts."""
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-size="11">{"".join(parts)}</svg>'
