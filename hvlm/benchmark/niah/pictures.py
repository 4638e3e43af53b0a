"""What the inserted pictures show: drawn fruits, landmarks and things, or a folder of one's own pictures.

A drawing is a list of strokes on a square of 100 by 100: ("e", colour, x0, y0, x1, y1) an ellipse, ("r", ...) a
rectangle, ("p", colour, x, y, x, y, ...) a polygon, ("l", colour, width, x, y, x, y, ...) a line.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from hvlm.errors import UserError

KINDS = ("fruits", "landmarks", "objects")
ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
SUPERSAMPLE = 4
FEWEST = 4  # options are drawn from so many at least
_LEAF, _STEM = "#3a9a3a", "#6b4a2b"

DRAWN: dict[str, dict[str, list[tuple]]] = {
    "fruits": {
        "apple": [("e", "#d0202a", 18, 28, 82, 92), ("l", _STEM, 5, 50, 30, 54, 10), ("e", _LEAF, 54, 10, 80, 24)],
        "banana": [("p", "#f2d022", 12, 30, 30, 62, 60, 74, 90, 58, 94, 68, 62, 92, 24, 76, 6, 36)],
        "orange": [("e", "#f28a1c", 14, 18, 86, 90), ("e", _LEAF, 44, 8, 66, 24), ("e", "#d97512", 46, 30, 54, 36)],
        "lemon": [("e", "#f7e93a", 12, 26, 88, 78), ("p", "#f7e93a", 82, 44, 98, 52, 82, 62)],
        "grape": [
            *(("e", "#6a2f91", x, y, x + 24, y + 24) for x, y in ((20, 26), (40, 26), (60, 26), (30, 46), (50, 46))),
            ("e", "#6a2f91", 40, 66, 64, 90), ("l", _STEM, 5, 52, 28, 52, 8),
        ],
        "cherry": [
            ("l", _LEAF, 4, 32, 64, 56, 12), ("l", _LEAF, 4, 68, 66, 56, 12), ("e", "#b3001b", 14, 58, 46, 90),
            ("e", "#b3001b", 54, 60, 86, 92),
        ],
        "strawberry": [
            ("p", "#e3243b", 16, 32, 84, 32, 66, 76, 50, 94, 34, 76), ("p", _LEAF, 16, 32, 50, 10, 84, 32, 50, 42),
            *(("e", "#ffe9a0", x, y, x + 5, y + 6) for x, y in ((34, 48), (52, 50), (44, 62), (58, 64), (48, 76))),
        ],
        "watermelon": [
            ("p", "#2f8f3f", 4, 34, 96, 34, 84, 70, 50, 88, 16, 70),
            ("p", "#ee4455", 14, 34, 86, 34, 76, 62, 50, 76, 24, 62),
            *(("e", "#222222", x, y, x + 5, y + 8) for x, y in ((34, 42), (48, 52), (62, 42))),
        ],
        "pear": [("e", "#b8c832", 22, 42, 78, 94), ("e", "#b8c832", 34, 18, 66, 62), ("l", _STEM, 5, 50, 20, 56, 6)],
        "pineapple": [
            ("e", "#d9a520", 28, 36, 72, 94), ("p", _LEAF, 50, 40, 24, 14, 42, 20, 50, 2, 58, 20, 76, 14),
            ("l", "#8a6410", 3, 34, 50, 66, 84), ("l", "#8a6410", 3, 66, 50, 34, 84),
        ],
        "kiwi": [
            ("e", "#7a5a34", 10, 14, 90, 90), ("e", "#8fce3f", 17, 21, 83, 83), ("e", "#f0f5d5", 40, 42, 60, 62),
            *(("e", "#222222", x, y, x + 5, y + 5) for x, y in ((34, 36), (60, 36), (32, 60), (62, 62), (48, 72))),
        ],
        "blueberry": [("e", "#3c4fa0", 16, 18, 84, 86), ("p", "#27346e", 36, 34, 50, 24, 64, 34, 58, 48, 42, 48)],
    },
    "landmarks": {
        "Eiffel Tower": [
            ("p", "#7a5c3e", 50, 2, 54, 40, 64, 70, 80, 98, 66, 98, 50, 76, 34, 98, 20, 98, 36, 70, 46, 40),
            ("r", "#5c432b", 38, 62, 62, 67), ("r", "#5c432b", 43, 38, 57, 42),
        ],
        "Great Pyramid": [("p", "#d9b566", 4, 90, 50, 20, 96, 90), ("p", "#b08a3e", 50, 20, 96, 90, 62, 90)],
        "Big Ben": [
            ("r", "#c2a25a", 36, 26, 64, 98), ("p", "#54604e", 34, 26, 50, 2, 66, 26),
            ("e", "#f4f1e4", 39, 30, 61, 52),
            ("l", "#222222", 2, 50, 41, 50, 33), ("l", "#222222", 2, 50, 41, 56, 44),
        ],
        "Taj Mahal": [
            ("r", "#efece4", 26, 52, 74, 92), ("e", "#efece4", 34, 22, 66, 62),
            ("p", "#efece4", 44, 26, 50, 10, 56, 26),
            ("r", "#dcd6c8", 8, 36, 14, 92), ("r", "#dcd6c8", 86, 36, 92, 92),
            ("p", "#8b8370", 42, 92, 42, 68, 50, 58, 58, 68, 58, 92),
        ],
        "Golden Gate Bridge": [
            ("r", "#c0432b", 22, 12, 29, 88), ("r", "#c0432b", 71, 12, 78, 88), ("r", "#c0432b", 0, 64, 100, 70),
            ("l", "#c0432b", 3, 0, 40, 25, 14, 50, 58, 75, 14, 100, 40), ("r", "#3f7fae", 0, 88, 100, 98),
        ],
        "Stonehenge": [
            *(("r", "#8d8d86", x, 42, x + 12, 90) for x in (8, 32, 56, 80)), ("r", "#77776f", 4, 30, 48, 44),
            ("r", "#77776f", 52, 30, 96, 44), ("r", "#6aa84f", 0, 90, 100, 98),
        ],
        "Parthenon": [
            ("p", "#d8cfb4", 8, 36, 50, 14, 92, 36),
            *(("r", "#d8cfb4", x, 40, x + 8, 84) for x in (12, 28, 44, 60, 78)),
            ("r", "#bdb394", 6, 84, 94, 94),
        ],
        "Leaning Tower of Pisa": [
            ("p", "#e8e4da", 30, 96, 54, 96, 72, 8, 48, 4), ("l", "#9a9484", 3, 34, 78, 58, 82),
            ("l", "#9a9484", 3, 38, 58, 62, 62), ("l", "#9a9484", 3, 42, 38, 66, 42),
            ("l", "#9a9484", 3, 46, 20, 70, 24),
        ],
        "Mount Fuji": [
            ("p", "#5a6f96", 2, 90, 40, 24, 60, 24, 98, 90),
            ("p", "#ffffff", 40, 24, 60, 24, 70, 42, 58, 38, 50, 46, 42, 38, 30, 42),
        ],
        "Itsukushima Torii": [
            ("p", "#d2401f", 2, 12, 98, 12, 92, 24, 8, 24), ("r", "#d2401f", 14, 36, 86, 43),
            ("r", "#d2401f", 22, 24, 31, 94),
            ("r", "#d2401f", 69, 24, 78, 94),
        ],
    },
    "objects": {
        "boat": [("p", "#7b4a2a", 6, 66, 94, 66, 78, 90, 22, 90), ("p", "#f5f5f5", 50, 8, 50, 62, 86, 62),
            ("r", "#444444", 46, 6, 50, 66)],
        "bottle": [("r", "#2f7d4f", 34, 40, 66, 96), ("r", "#2f7d4f", 43, 12, 57, 42),
            ("r", "#d9c27a", 34, 56, 66, 78)],
        "bus": [
            ("r", "#e0a21b", 4, 26, 96, 78), *(("r", "#bfe3f2", x, 34, x + 14, 52) for x in (10, 30, 50, 70)),
            ("e", "#222222", 16, 66, 38, 90), ("e", "#222222", 62, 66, 84, 90),
        ],
        "car": [
            ("r", "#c3272b", 4, 48, 96, 74), ("p", "#c3272b", 22, 50, 36, 26, 68, 26, 82, 50),
            ("p", "#bfe3f2", 32, 48, 40, 32, 64, 32, 72, 48),
            ("e", "#222222", 14, 62, 36, 86), ("e", "#222222", 64, 62, 86, 86),
        ],
        "chair": [("r", "#8a5a2b", 24, 8, 34, 94), ("r", "#8a5a2b", 24, 52, 78, 60),
            ("r", "#8a5a2b", 68, 52, 78, 94)],
        "flower": [
            ("l", _LEAF, 6, 50, 54, 50, 98),
            *(("e", "#e85a9b", x, y, x + 28, y + 28) for x, y in ((36, 4), (12, 22), (60, 22), (22, 48), (50, 48))),
            ("e", "#f7d23e", 38, 30, 62, 54),
        ],
        "train": [
            ("r", "#3d5a80", 4, 40, 96, 74), ("r", "#3d5a80", 62, 18, 96, 44), ("r", "#222222", 14, 18, 26, 42),
            ("r", "#bfe3f2", 70, 24, 88, 38), *(("e", "#222222", x, 68, x + 20, 88) for x in (8, 40, 72)),
        ],
        "television": [("r", "#222222", 6, 16, 94, 76), ("r", "#78b7d9", 12, 22, 88, 70),
            ("p", "#222222", 40, 76, 60, 76, 70, 92, 30, 92)],
        "airplane": [
            ("p", "#9fb3c8", 2, 48, 84, 40, 98, 50, 84, 60, 2, 54), ("p", "#6f869e", 40, 44, 62, 4, 70, 4, 62, 44),
            ("p", "#6f869e", 40, 56, 62, 96, 70, 96, 62, 56), ("p", "#6f869e", 4, 48, 4, 30, 18, 46),
        ],
        "bicycle": [
            ("l", "#222222", 4, 24, 68, 44, 40, 72, 40, 78, 68, 46, 68, 44, 40), ("l", "#222222", 4, 70, 30, 80, 30),
            ("e", "#222222", 6, 50, 42, 86), ("e", "#f0f0f0", 11, 55, 37, 81), ("e", "#222222", 58, 50, 94, 86),
            ("e", "#f0f0f0", 63, 55, 89, 81),
        ],
        "bird": [
            ("e", "#2a78c2", 24, 38, 78, 78), ("e", "#2a78c2", 60, 20, 86, 48),
            ("p", "#f2a51c", 84, 30, 98, 36, 84, 42),
            ("p", "#1c5590", 30, 48, 62, 52, 36, 72), ("e", "#ffffff", 72, 28, 79, 35),
            ("p", "#1c5590", 26, 56, 4, 46, 8, 66),
        ],
        "sofa": [("r", "#7a3f8f", 8, 30, 92, 62), ("r", "#8f55a5", 14, 52, 86, 78), ("r", "#5f2f70", 2, 44, 16, 84),
            ("r", "#5f2f70", 84, 44, 98, 84)],
    },
}  # fmt: skip


class Pictures:
    """The pictures of each kind, by name. folder: of one's own, or None: the drawn ones."""

    def __init__(self, folder: Path | None) -> None:
        """Raises UserError for a folder that lacks a kind."""
        self.folder = folder
        self.files: dict[str, dict[str, Path]] = {}
        for kind in KINDS if folder is not None else ():
            place = Path(str(folder)) / kind
            found = sorted(p for p in place.glob("*") if p.suffix.lower() in ENDINGS) if place.is_dir() else []
            self.files[kind] = {p.stem.replace("_", " "): p for p in found}
            if len(self.files[kind]) < FEWEST:
                raise UserError(
                    f"pictures={folder}: {kind}/ has {len(self.files[kind])} pictures ({', '.join(ENDINGS)}), expected "
                    f"{FEWEST} or more, each named by what it shows"
                )

    def names(self, kind: str) -> list[str]:
        return sorted(DRAWN[kind] if self.folder is None else self.files[kind])

    def plural(self, name: str) -> str:
        """Of an object."""
        irregular = {"bus": "buses"}
        return irregular.get(name, f"{name}s")

    def sticker(self, kind: str, name: str, side: int) -> Image.Image:
        """RGBA, ``side`` pixels at its longer side, for pasting."""
        if self.folder is None:
            return _drawing(kind, name, side)
        with Image.open(self.files[kind][name]) as file:
            image = file.convert("RGBA")
        scale = side / max(image.size)
        width, height = (max(1, round(v * scale)) for v in image.size)
        return image.resize((width, height), Image.Resampling.LANCZOS)

    def page(self, kind: str, name: str, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
        """uint8 [height, width, 3]: the picture, upright and whole, on a page of a light colour."""
        page = Image.new("RGB", (width, height), tuple(rng.integers(190, 246, 3).tolist()))
        side = int(0.86 * min(height, width))
        sticker = self.sticker(kind, name, side)
        page.paste(sticker, ((width - sticker.width) // 2, (height - sticker.height) // 2), sticker)
        return np.asarray(page)


@lru_cache(maxsize=256)
def _drawing(kind: str, name: str, side: int) -> Image.Image:
    big = Image.new("RGBA", (side * SUPERSAMPLE,) * 2)
    draw = ImageDraw.Draw(big)
    unit = side * SUPERSAMPLE / 100
    for form, colour, *numbers in DRAWN[kind][name]:
        if form == "l":
            draw.line([v * unit for v in numbers[1:]], fill=colour, width=round(numbers[0] * unit), joint="curve")
            continue
        places = [v * unit for v in numbers]
        {"e": draw.ellipse, "r": draw.rectangle, "p": draw.polygon}[form](places, fill=colour)
    return big.resize((side, side), Image.Resampling.LANCZOS)
