"""Tables in Markdown that read in a terminal, too."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from hvlm.console import harmless


def aligned(rows: Sequence[Sequence[str]], words: int) -> list[str]:
    """Lines of a table.

    Args:
        rows: of cells that are Markdown already (``plain``); the first is the head.
        words: how many columns are aligned left; the others are numbers.
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    pads = ["<" if i < words else ">" for i in range(len(widths))]
    text = [
        "| " + " | ".join(f"{cell:{pad}{w}}" for cell, pad, w in zip(row, pads, widths, strict=True)) + " |"
        for row in rows
    ]
    rule = "|".join("-" * (w + 2) if pad == "<" else "-" * (w + 1) + ":" for pad, w in zip(pads, widths, strict=True))
    return [text[0], f"|{rule}|", *text[1:]]


def plain(value: Any) -> str:
    """Text of data in a line of Markdown: no cell ends in it, it makes no link, picture or HTML, and steers no
    terminal."""
    return re.sub(r"([\\|\[\]`])", r"\\\1", harmless(" / ".join(str(value).splitlines()))).replace("<", "&lt;")


def code(text: str) -> str:
    """A command line as code, which it cannot end."""
    return f"`{harmless(' '.join(text.splitlines())).replace('`', chr(39))}`"
