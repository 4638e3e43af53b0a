"""Numbers in rows and columns as a picture: darker is more, and each cell says its number.

Drawn with Pillow, which is here already: a plotting library would double what an installation brings.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

HEIGHT, WIDTH = 30, 66  # of a cell with words, in pixels
SMALL = 14  # side of a cell without words
GAP = 12
LOW, HIGH = (247, 244, 232), (22, 78, 140)  # colours of the ends of the scale
NOTHING = (222, 222, 222)  # of a cell without a number


def heat_map(
    values_RC: np.ndarray,
    path: Path,
    *,
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    row_title: str = "",
    column_title: str = "",
    words: Sequence[Sequence[str]] | None = None,
    scale: tuple[float, float] = (0.0, 1.0),
) -> Path:
    """One PNG.

    Args:
        values_RC: float [rows, columns]; NaN: nothing is known, a grey cell.
        path: of the picture, whose folder is made.
        title: above the picture.
        rows: names, one for each row. columns: likewise.
        row_title: what the rows are. column_title: what the columns are.
        words: what stands in each cell; None: nothing, and the cells are small.
        scale: the values of the lightest and of the darkest colour.

    Returns:
        The path.

    Raises:
        ValueError: names and words do not fit the values.
    """
    values = np.asarray(values_RC, np.float64)
    if values.shape != (len(rows), len(columns)) or not values.size:
        raise ValueError(f"values {values.shape} for {len(rows)} rows and {len(columns)} columns")
    font = ImageFont.load_default(13)
    height, width = (SMALL, SMALL) if words is None else (HEIGHT, WIDTH)
    left = GAP + max(_width(font, name) for name in (*rows, row_title)) + 8
    top = GAP + 2 * 20 + 8
    foot = 18 + (20 if column_title else 0) + GAP
    right = max(left + width * len(columns), GAP + _width(font, title), left + _width(font, column_title)) + GAP
    picture = Image.new("RGB", (right, top + height * len(rows) + foot), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((GAP, GAP), title, fill="black", font=font)
    draw.text((GAP, GAP + 22), row_title, fill=(90, 90, 90), font=font)
    low, high = scale
    for i, name in enumerate(rows):
        y = top + i * height
        draw.text((left - 8, y + height / 2), name, fill="black", font=font, anchor="rm")
        for j in range(len(columns)):
            x, value = left + j * width, float(values[i, j])
            share = min(1.0, max(0.0, (value - low) / (high - low))) if np.isfinite(value) and high > low else 0.0
            colour = NOTHING if np.isnan(value) else _between(share)
            draw.rectangle([x, y, x + width - 2, y + height - 2], fill=colour)
            if words is not None:
                ink = "white" if np.isfinite(value) and share > 0.55 else "black"
                draw.text((x + width / 2 - 1, y + height / 2 - 1), words[i][j], fill=ink, font=font, anchor="mm")
    y = top + height * len(rows) + 4
    step = 1 if words is not None else max(1, -(-max(_width(font, name) + 6 for name in columns) // SMALL))
    for j in range(0, len(columns), step):
        draw.text((left + (j + 0.5) * width - 1, y), columns[j], fill="black", font=font, anchor="ma")
    draw.text((left, y + 20), column_title, fill=(90, 90, 90), font=font)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, format="PNG")
    return path


def _width(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, text: str) -> int:
    return int(np.ceil(font.getlength(text)))


def _between(share: float) -> tuple[int, ...]:
    return tuple(round(a + (b - a) * share) for a, b in zip(LOW, HIGH, strict=True))
