"""A page as a browser takes it apart."""

from __future__ import annotations

import re
from html.parser import HTMLParser


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def leads_away(attributes: dict[str, str | None]) -> bool:
    """Whether a link goes to another place than one of the page's own headings."""
    return re.fullmatch(r"#s\d+", attributes.get("href", "#s1") or "") is None
