"""SmolTalk (Ben Allal et al. 2025), on the hub as HuggingFaceTB/smoltalk: text-only chats.

    data/all/train-00000-of-00009.parquet      messages: [{content, role}], source
    data/{smol-magpie-ultra, …}/train-….parquet      the parts of which ``all`` is made

``all`` is read where it is there, else the parts; test files are not, since text-only chats are for training alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hvlm.data.sample_fields import FieldError
from hvlm.prepare.corpora import At

TITLE = "SmolTalk"
FILES = (("train-*.parquet", "train.parquet"), ("*.parquet",))
COLUMNS = ("messages",)
ROLES = ("conversations", "task")
PROMPT = None
OPTIONS = ()


def chosen(paths: Sequence[Path]) -> list[Path]:
    """Those of ``all`` where there are some: the others hold them once more."""
    return [path for path in paths if path.parent.name == "all"] or list(paths)


def rows(row: Mapping[str, Any], at: At) -> Iterator[dict[str, Any]]:
    if not row["messages"]:
        raise FieldError("messages is empty")
    yield {"conversations": row["messages"], "task": str(row.get("source") or at.file.parent.name)}
