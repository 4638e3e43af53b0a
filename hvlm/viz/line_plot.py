"""Curves as a picture, several panels beside each other, drawn with Pillow as ``hvlm.viz.heat_map`` is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from hvlm.viz.plots import COLOURS, ticks

WIDTH, HEIGHT = 380, 280  # of a panel, in pixels
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 34, 46  # margins
LINE = 18  # of the legend


class Panel(NamedTuple):
    """title: above. x: what lies across. series: {name: (x, y), ascending in x}; equal names have one colour in all
    panels. log: both axes are logarithmic; everything must be above 0 then."""

    title: str
    x: str
    series: Mapping[str, Sequence[tuple[float, float]]]
    log: bool = False


def line_plot(panels: Sequence[Panel], path: Path, title: str = "") -> Path:
    """One PNG, whose folder is made; returns its path.

    Raises:
        ValueError: a panel without points, or with one that its axes do not have.
    """
    names = list(dict.fromkeys(name for panel in panels for name in panel.series))
    font, head = ImageFont.load_default(12), LINE * (1 + (len(names) + 2) // 3) + 14
    picture = Image.new("RGB", (WIDTH * len(panels), head + HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((12, 8), title, fill="black", font=ImageFont.load_default(13))
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    for i, name in enumerate(names):
        x, y = 12 + (i % 3) * (picture.width - 12) // 3, 12 + LINE * (1 + i // 3)
        draw.line([x, y + 8, x + 20, y + 8], fill=colours[name], width=3)
        draw.text((x + 26, y), name, fill="black", font=font)
    for i, panel in enumerate(panels):
        _panel(draw, panel, i * WIDTH, head, colours, font)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.quantize(64).save(path, format="PNG", optimize=True)
    return path


def _panel(draw: ImageDraw.ImageDraw, panel: Panel, left: int, top: int, colours: Mapping[str, str], font: object):
    points = [point for of in panel.series.values() for point in of]
    if not points or not all(math.isfinite(v) and (v > 0 or not panel.log) for point in points for v in point):
        raise ValueError(f"{panel.title}: no points, or some that its axes do not have")

    def scaled(value: float) -> float:
        return math.log10(value) if panel.log else value

    low_x, high_x = (scaled(f(x for x, _ in points)) for f in (min, max))
    high_x = high_x if high_x > low_x else low_x + 1
    low_y = scaled(min(y for _, y in points)) if panel.log else min(0.0, *(y for _, y in points))
    high_y = scaled(max(y for _, y in points))
    high_y = high_y + 0.06 * (high_y - low_y) if high_y > low_y else low_y + 1

    def place(x: float, y: float) -> tuple[float, float]:
        across = left + LEFT + (scaled(x) - low_x) / (high_x - low_x) * (WIDTH - LEFT - RIGHT)
        return across, top + TOP + (high_y - scaled(y)) / (high_y - low_y) * (HEIGHT - TOP - BOTTOM)

    draw.text((left + LEFT, top + 10), panel.title, fill="black", font=font)
    shown_y = _powers(low_y, high_y) if panel.log else ticks(low_y, high_y)
    shown_x = sorted({x for x, _ in points}) if panel.log else ticks(low_x, high_x)
    for y in shown_y:
        at = place(10**low_x if panel.log else low_x, y)[1]
        draw.line([left + LEFT, at, left + WIDTH - RIGHT, at], fill=(221, 221, 221))
        draw.text((left + LEFT - 6, at), f"{y:.4g}", fill="black", font=font, anchor="rm")
    bottom = top + HEIGHT - BOTTOM
    for x in shown_x:
        at = place(x, shown_y[0] if shown_y else 1.0)[0]
        draw.line([at, bottom, at, bottom + 4], fill="black")
        draw.text((at, bottom + 6), f"{x:,.6g}", fill="black", font=font, anchor="ma")
    draw.text((left + WIDTH - RIGHT, bottom + 24), panel.x, fill=(90, 90, 90), font=font, anchor="ra")
    for name, of in panel.series.items():
        way = [place(x, y) for x, y in of]
        if len(way) > 1:
            draw.line(way, fill=colours[name], width=2)
        if len(way) <= 12:
            for x, y in way:
                draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colours[name])


def _powers(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten within 10^low to 10^high."""
    exponents = range(math.floor(low), math.ceil(high) + 1)
    return [m * 10.0**e for e in exponents for m in (1, 2, 5) if low - 1e-9 <= math.log10(m) + e <= high + 1e-9]
