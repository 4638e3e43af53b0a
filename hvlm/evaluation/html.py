"""Pages that need no other file, no script and no network: what reports and comparisons share.

What comes from data (questions, answers, names, command lines) is escaped, pictures are inside the page, and the page
itself forbids a browser to load or to run anything.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import Any

from hvlm.io.foreign import bytes_of

LARGEST_PICTURE = 64 << 20  # bytes
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1160px; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; font-size: 13px; margin: .6em 0 } td, th { padding: 2px 9px; text-align: left }
th { border-bottom: 1px solid #999 } td.n { text-align: right; white-space: nowrap } th.n { text-align: right }
tr:nth-child(even) { background: #f4f4f4 }
svg { display: block; margin: .8em 0; max-width: 100% } svg .title { font-weight: bold }
svg .grid { stroke: #ddd } img { max-width: 100%; image-rendering: pixelated; border: 1px solid #ccc }
.wrong { border-left: 4px solid #c33; padding-left: 1em } .right { border-left: 4px solid #383; padding-left: 1em }
.plots { display: flex; flex-wrap: wrap; gap: 1em } .small { color: #666; font-size: 13px } code { font-size: 13px }
details { margin: .5em 0 } summary { cursor: pointer }
.wide { overflow-x: auto } pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 12px }
"""


def document(title: str, parts: Sequence[str]) -> str:
    """The whole page. title: a text; parts: HTML, in which every text is escaped already."""
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>"
    )
    return (
        "<!doctype html>\n" + f'<html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], numbers_from: int | None = None) -> str:
    """Columns that are empty in every row are left out. numbers_from: the first column that is aligned right."""
    kept = [i for i in range(len(head)) if any(row[i] not in ("", None) for row in rows)]
    first = len(head) if numbers_from is None else numbers_from
    lines = ["".join(f"<th{' class=n' * (i >= first)}>{escape(head[i])}</th>" for i in kept)]
    for row in rows:
        cells = [(escape("" if row[i] is None else str(row[i])), i >= first) for i in kept]
        lines.append("".join(f'<td class="n">{c}</td>' if n else f"<td>{c}</td>" for c, n in cells))
    return '<div class="wide"><table>' + "".join(f"<tr>{line}</tr>" for line in lines) + "</table></div>"


def image(folder: Path, name: str) -> str:
    """The picture inside the page; only plain names of PNG files in the folder, no links to elsewhere."""
    path = folder / name
    data = ""
    if Path(name).name == name and "\0" not in name and path.is_file() and not path.is_symlink():
        with suppress(OSError):
            held = bytes_of(path, LARGEST_PICTURE)
            data = base64.b64encode(held).decode() if held.startswith(b"\x89PNG") else ""
    if not data:
        return f'<p class="small">(no picture {escape(str(name))})</p>'
    return f'<img alt="{escape(name)}" src="data:image/png;base64,{data}">'
