"""What something is worth against what it costs, as SVG text: points with their errors, and the line of those that no
other beats. Everything that comes from data is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

from hvlm.viz.plots import COLOURS, svg, ticks

WIDTH, HEIGHT = 520, 300
LEFT, RIGHT, TOP, BOTTOM = 60, 18, 30, 44  # margins
LOG_FROM = 10.0  # greatest through smallest cost from which on the axis is logarithmic
LETTER = 6.0  # width of a letter of a label, pixels
LONGEST = 24  # letters of a label


class Point(NamedTuple):
    """x: what it costs. y: what it is worth; error: one standard error, or None."""

    name: str
    x: float
    y: float
    error: float | None = None


def front(points: Sequence[tuple[float, float]], less: bool = True) -> list[bool]:
    """Of each (cost, worth) whether no other is at least as good in both and better in one.

    Args:
        points: costs and what they buy.
        less: whether a smaller first number is the better one.
    """
    sign = 1.0 if less else -1.0

    def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return sign * a[0] <= sign * b[0] and a[1] >= b[1] and a != b

    return [not any(beats(other, own) for other in points) for own in points]


def scatter(title: str, x_title: str, points: Sequence[Point], less: bool = True, percent: bool = False) -> str:
    """Points, higher is better, with a stepped line through the Pareto front; "" without points.

    Args:
        title: above the picture; the y axis.
        x_title: below the x axis.
        points: of which those on the front are filled.
        less: whether a smaller x is the better one.
        percent: whether y is a share, to be written in percent.
    """
    points = [p for p in points if math.isfinite(p.x) and math.isfinite(p.y)]
    if not points:
        return ""
    log = min(p.x for p in points) > 0 and max(p.x for p in points) / min(p.x for p in points) >= LOG_FROM
    scaled = [math.log10(p.x) if log else p.x for p in points]
    first, last = _padded(min(scaled), max(scaled))
    low, high = _padded(min(p.y - (p.error or 0) for p in points), max(p.y + (p.error or 0) for p in points))
    low, high = (max(low, 0.0), min(high, 1.0)) if percent else (low, high)
    low, high = (low, high) if high > low else (low - 0.05, high + 0.05)

    def across(x: float) -> float:
        return LEFT + ((math.log10(x) if log else x) - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def down(y: float) -> float:
        return TOP + (high - min(max(y, low), high)) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<text x="{LEFT}" y="16" class="title">{escape(title)}</text>']
    for y in ticks(low, high):
        said = f"{100 * y:.3g} %" if percent else f"{y:.4g}"
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down(y):.1f}" y2="{down(y):.1f}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{down(y) + 4:.1f}" text-anchor="end">{said}</text>')
    for x in _log_ticks(first, last) if log else ticks(first, last):
        parts.append(
            f'<line x1="{across(x):.1f}" x2="{across(x):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" class="grid"/>'
        )
        parts.append(f'<text x="{across(x):.1f}" y="{HEIGHT - 26}" text-anchor="middle">{short(x)}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 8}" text-anchor="end">{escape(x_title)}</text>')
    on_front = front([(p.x, p.y) for p in points], less)
    way = sorted({(across(p.x), down(p.y)) for p, on in zip(points, on_front, strict=True) if on}, reverse=not less)
    if len(way) > 1:
        # What is bought with a cost is bought with every worse one: first along the axis, then up.
        steps = f"M{way[0][0]:.1f} {way[0][1]:.1f}" + "".join(f"H{x:.1f}V{y:.1f}" for x, y in way[1:])
        parts.append(f'<path d="{steps}" fill="none" stroke="{COLOURS[1]}" stroke-dasharray="5 3" class="front"/>')
    for p, on in zip(points, on_front, strict=True):
        x, y = across(p.x), down(p.y)
        if p.error is not None:
            parts.append(
                f'<path d="M{x:.1f} {down(p.y - p.error):.1f}V{down(p.y + p.error):.1f}" stroke="#777" class="error"/>'
            )
        fill = COLOURS[1] if on else "#fff"
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{fill}" stroke="{COLOURS[1] if on else COLOURS[0]}">'
            f"<title>{escape(p.name)}</title></circle>"
        )
    parts += _labels([(across(p.x), down(p.y), p.name) for p in points])
    return svg(WIDTH, HEIGHT, parts)


def short(value: float) -> str:
    """12_300 -> ``12.3k``, 4.1e8 -> ``410M``, 0.5 -> ``0.5``; three significant digits."""
    for power, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * power:
            return f"{float(f'{value / power:.3g}'):g}{letter}"
    return f"{float(f'{value:.3g}'):g}"


def _padded(low: float, high: float) -> tuple[float, float]:
    pad = 0.08 * (high - low) or 0.08 * abs(high) or 1.0
    return low - pad, high + pad


def _log_ticks(first: float, last: float) -> Iterator[float]:
    """1, 2 and 5 times powers of ten; over more powers 1 and 3 times, over many the powers alone."""
    digits = (1, 2, 5) if last - first < 1.5 else (1, 3) if last - first < 4 else (1,)
    for power in range(math.floor(first), math.ceil(last) + 1):
        yield from (d * 10.0**power for d in digits if first <= math.log10(d * 10.0**power) <= last)


def _labels(points: Sequence[tuple[float, float, str]]) -> list[str]:
    """Names beside points, where one has room; elsewhere the point's title tells."""
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y, _ in points]
    parts = []
    for x, y, name in points:
        said = name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"
        wide = LETTER * len(said)
        for left, base in ((x + 8, y + 4), (x - 8 - wide, y + 4), (x - wide / 2, y - 9), (x - wide / 2, y + 17)):
            box = (left, base - 9, left + wide, base + 2)
            inside = box[0] >= LEFT and box[2] <= WIDTH - 2 and box[1] >= TOP - 12 and box[3] <= HEIGHT - BOTTOM
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                parts.append(f'<text x="{left:.1f}" y="{base:.1f}">{escape(said)}</text>')
                break
    return parts


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
