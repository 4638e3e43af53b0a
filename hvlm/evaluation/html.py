"""Pages that need no other file, no script and no network: what reports and comparisons share.

What comes from data (questions, answers, names, command lines) is escaped, pictures are inside the page, and the page
itself forbids a browser to load or to run anything. It is read on light and on dark screens, and on narrow ones, where
tables and plots scroll by themselves.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from hvlm.io.foreign import bytes_of
from hvlm.viz.plots import COLOURS

LARGEST_PICTURE = 64 << 20  # bytes
MOST_OF_PICTURES = 4_500_000  # bytes of a page, as they stand in it; the smallest ones are kept
LIGHT_ENOUGH = 60_000  # bytes of a picture that stays as it is
MOST_PIXELS = 20_000_000  # of a picture that is made lighter
WIDEST = 1600  # pixels
CONTENTS = "<!-- contents -->"  # where the list of the headings goes
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
DARK = ("#6ea8f0", "#f08a5a", "#6cc27d", "#c98bd6", "#c9a45a", "#7fb6c8", "#ee82b4", "#b0b0b0")  # COLOURS on black
STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #222; --soft: #5c5c5c; --line: #ccc; --grid: #ddd;
  --even: #f5f5f5; --card: #f5f7fa; --link: #1f5fae; --bad: #b3261e; --good: #2c7a3c }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1160px; margin: 2em auto; padding: 0 1em;
  background: var(--page); color: var(--text) }
h1 { margin: 0 0 .2em; overflow-wrap: anywhere } h2 { margin: 1.8em 0 .5em; padding-top: .4em;
  border-top: 1px solid var(--line) } h3 { margin: 1.4em 0 .4em } p { overflow-wrap: anywhere } a { color: var(--link) }
nav { font-size: 14px; margin: 1em 0 } nav a { margin-right: 1.2em; display: inline-block }
.lead { font-size: 17px; margin: .4em 0 .8em } .small, figcaption { color: var(--soft); font-size: 13px }
.cards { display: flex; flex-wrap: wrap; gap: .8em; margin: 1em 0 }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .5em .9em; min-width: 9em;
  max-width: 100%; box-sizing: border-box }
.card b { display: block; font-size: 20px; overflow-wrap: anywhere } .card span { color: var(--soft); font-size: 13px;
  display: block; overflow-wrap: anywhere }
table { border-collapse: collapse; font-size: 13px; margin: .6em 0 } td, th { padding: 2px 9px; text-align: left;
  vertical-align: top } th { border-bottom: 1px solid var(--soft) }
td.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums } th.n { text-align: right }
tr:nth-child(even) { background: var(--even) }
.wide { overflow-x: auto; max-width: 100% } .plots { display: flex; flex-wrap: wrap; gap: 0 1em }
svg { display: block; margin: .8em 0; flex: none } svg .title { font-weight: bold }
svg .grid { stroke: var(--grid) } svg text:not([fill]) { fill: var(--text) }
svg [stroke="#000"] { stroke: var(--text) } svg [stroke="#777"] { stroke: var(--soft) }
svg [fill="#fff"] { fill: var(--page) }
figure { margin: .6em 0 1.2em } img { max-width: 100%; image-rendering: pixelated; border: 1px solid var(--line);
  box-sizing: border-box }
img.way { width: 260px }
.wrong { border-left: 4px solid var(--bad); padding-left: 1em } .right { border-left: 4px solid var(--good);
  padding-left: 1em }
.bad { border-left: 4px solid var(--bad); padding-left: 1em }
code { font-size: 13px; overflow-wrap: anywhere } details { margin: .5em 0 }
summary { cursor: pointer; overflow-wrap: anywhere }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 12px; background: var(--card); padding: .6em .8em;
  border: 1px solid var(--line); border-radius: 6px } pre.command { user-select: all }
@media (prefers-color-scheme: dark) { :root { --page: #161719; --text: #e6e6e6; --soft: #a8a8a8; --line: #444;
  --grid: #333; --even: #1f2124; --card: #22252a; --link: #8ab8f2; --bad: #f28b82; --good: #6cc27d } DARK }
@media (max-width: 700px) { td { min-width: 6em } td.n { min-width: 0 } }
@media print { nav { display: none } details > *, figure, tr { break-inside: avoid } }
"""
_PICTURE = re.compile(r'<img alt="([^"]*)"[^>]* src="data:image/png;base64,[^"]*">')


class Card(NamedTuple):
    """A figure of a summary. value: large; title: above it; more: below it."""

    title: str
    value: str
    more: str = ""


def document(title: str, parts: Sequence[str]) -> str:
    """The whole page. title: a text; parts: HTML, in which every text is escaped already."""
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_style()}</style>"
    )
    body = _with_contents(_light("\n".join(parts)))
    return "<!doctype html>\n" + f'<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], numbers_from: int | None = None) -> str:
    """Columns that are empty in every row are left out. numbers_from: the first column that is aligned right."""
    kept = [i for i in range(len(head)) if any(row[i] not in ("", None) for row in rows)]
    first = len(head) if numbers_from is None else numbers_from
    lines = ["".join(f"<th{' class=n' * (i >= first)}>{escape(head[i])}</th>" for i in kept)]
    for row in rows:
        cells = [(escape("" if row[i] is None else str(row[i])), i >= first) for i in kept]
        lines.append("".join(f'<td class="n">{c}</td>' if n else f"<td>{c}</td>" for c, n in cells))
    return '<div class="wide"><table>' + "".join(f"<tr>{line}</tr>" for line in lines) + "</table></div>"


def cards(of: Sequence[Card]) -> str:
    """The figures of a summary beside each other."""
    each = [
        f'<div class="card"><span>{escape(card.title)}</span><b>{escape(card.value)}</b>'
        + (f"<span>{escape(card.more)}</span>" if card.more else "")
        + "</div>"
        for card in of
    ]
    return f'<div class="cards">{"".join(each)}</div>' if each else ""


def plots(pictures: Sequence[str]) -> str:
    """SVGs beside each other; each scrolls by itself where the window is narrower."""
    drawn = "".join(f'<div class="wide">{picture}</div>' for picture in pictures if picture)
    return f'<div class="plots">{drawn}</div>' if drawn else ""


def command(text: str) -> str:
    """Command lines; one click marks them all."""
    return f'<pre class="command">{escape(text)}</pre>'


def image(folder: Path, name: str, kind: str = "") -> str:
    """The picture inside the page; only plain names of PNG files in the folder, no links to elsewhere.

    Args:
        folder: where it is.
        name: of the file.
        kind: of the style; ``way`` is small.
    """
    path = folder / name
    data = ""
    if Path(name).name == name and "\0" not in name and path.is_file() and not path.is_symlink():
        with suppress(OSError):
            held = bytes_of(path, LARGEST_PICTURE)
            data = base64.b64encode(_lighter(held)).decode() if held.startswith(b"\x89PNG") else ""
    if not data:
        return f'<p class="small">(no picture {escape(str(name))})</p>'
    styled = f' class="{kind}"' if kind else ""
    return f'<img alt="{escape(name)}"{styled} src="data:image/png;base64,{data}">'


# -------------------------------------------------------------------------------------------------------------- parts


def _style() -> str:
    on_dark = "".join(
        f'[fill="{light}"] {{ fill: {dark} }} [stroke="{light}"] {{ stroke: {dark} }} .c{i} {{ color: {dark} }} '
        for i, (light, dark) in enumerate(zip(COLOURS, DARK, strict=True))
    )
    on_light = "".join(f".c{i} {{ color: {light} }} " for i, light in enumerate(COLOURS))
    return STYLE.replace("@media (pref", f"{on_light}\n@media (pref", 1).replace("DARK", on_dark)


def _lighter(held: bytes) -> bytes:
    """A large picture with 256 colours, and no wider than a screen shows; as it is where that is no gain."""
    if len(held) <= LIGHT_ENOUGH:
        return held
    try:
        with Image.open(io.BytesIO(held), formats=["PNG"]) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                return held
            made = picture.convert("RGB")
    except Exception:  # Pillow raises what it likes about damaged files; a browser says of them what it thinks
        return held
    if made.width > WIDEST:
        made = made.resize((WIDEST, max(1, made.height * WIDEST // made.width)), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    made.quantize(256, dither=Image.Dither.NONE).save(out, format="PNG", optimize=True)
    return min(held, out.getvalue(), key=len)


def _light(body: str) -> str:
    """Without the largest pictures of a page that would be too large to send."""
    sizes = sorted((found.end() - found.start(), found.start()) for found in _PICTURE.finditer(body))
    kept, total = set(), 0
    for size, start in sizes:
        total += size
        if total <= MOST_OF_PICTURES:
            kept.add(start)
    said = '<p class="small">({} is left out to keep the page small; it is in the folder of the run)</p>'
    return _PICTURE.sub(lambda m: m[0] if m.start() in kept else said.format(m[1]), body)


def _with_contents(body: str) -> str:
    """Headings get a place, and the list of them leads there."""
    titles: list[str] = []

    def placed(found: re.Match[str]) -> str:
        titles.append(found[1])
        return f'<div id="s{len(titles)}"></div>{found[0]}'

    body = re.sub(r"<h2>(.*?)</h2>", placed, body)
    links = "".join(f'<a href="#s{i}">{title}</a>' for i, title in enumerate(titles, 1))
    return body.replace(CONTENTS, f"<nav>{links}</nav>" if len(titles) > 2 else "", 1)
