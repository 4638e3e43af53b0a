"""The Cauldron (Laurençon et al. 2024), on the hub as HuggingFaceM4/the_cauldron: questions about pictures, fifty sets.

    {set}/train-00000-of-00003-….parquet      images: [{bytes, path}], texts: [{user, assistant, source}]

A row's texts are turns of one conversation about its pictures. Sets whose pictures were taken out (clevr_math and okvqa
in some copies) have no images: such a row is a text-only chat.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hvlm.data.sample_fields import as_list, as_object
from hvlm.prepare.corpora import At, messages

TITLE = "The Cauldron"
FILES = (("*.parquet",),)
COLUMNS = ("images", "texts")
ROLES = ("video", "conversations", "domain", "task")
PROMPT = None
OPTIONS = ()


def rows(row: Mapping[str, Any], at: At) -> Iterator[dict[str, Any]]:
    texts = [as_object(text, f"texts[{i}]") for i, text in enumerate(as_list(row["texts"], "texts"))]
    said = messages([(text.get("user"), text.get("assistant")) for text in texts], "texts")
    shown = [image for image in row["images"] or [] if image is not None]
    task = str(texts[0].get("source") or at.file.parent.name)
    yield {"video": shown or None, "conversations": said, "domain": "cauldron", "task": task}
