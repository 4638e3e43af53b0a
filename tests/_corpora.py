"""Corpora as they are published, made small, and what comes out of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from _tables import contents, distinct, left_out, together

from hvlm.prepare import command

Texts = dict[str, Any]  # {key: the texts of a sample}


def corpus(name: str, src: Path, *words: str) -> Path:
    """Prepared in this process."""
    out = src.parent / f"{src.name}-shards"
    command.prepare([name, f"src={src}", f"out={out}", "workers=1", *words])
    return out


def said(out: Path) -> Texts:
    """What each sample says: its captions, questions as (question, answer, rejected), and turns."""
    found = {}
    for key, sample in together(contents(out)).items():
        asked = [tuple(q[n] for n in ("question", "answer", "rejected") if n in q) for q in sample.get("questions", ())]
        talks = sample.get("conversations", [sample["messages"]] if "messages" in sample else [])
        talks = [talk["messages"] if isinstance(talk, dict) else talk for talk in talks]
        turns = [[turn["content"] for turn in talk] for talk in talks]
        found[key] = {"captions": [c["text"] for c in sample.get("captions", ())], "questions": asked, "turns": turns}
    return found


def bad(out: Path) -> list[tuple[int, str]]:
    return [(row["row"], row["kind"]) for row in left_out(out)]


def video(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(distinct(number))


def table(path: Path, rows: list[dict[str, Any]]) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows), path)


def captioned(text: str, prompt: str) -> dict[str, Any]:
    return {"captions": [text], "questions": [(prompt, text)], "turns": []}
