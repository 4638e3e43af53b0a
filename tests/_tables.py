"""Small distinct videos and pictures, and the command that prepares them, for the tests of tables."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _clips import FakeChat
from _videos import picture, video
from PIL import Image

from hvlm.data.order import SampleRef
from hvlm.data.quarantine import Quarantine
from hvlm.data.reader import Reader, SampleSpec
from hvlm.data.shard_index import load_manifest
from hvlm.dataset.shards import Shards
from hvlm.prepare.command import prepare
from hvlm.types import InputSpec

TINY = video(4, size=(32, 32))


def distinct(number: int, base: bytes = TINY) -> bytes:
    """The video, with a box that no reader looks at: other bytes, the same frames."""
    return base + struct.pack(">I4sQ", 16, b"free", number)


def still(number: int, ending: str = "JPEG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture(number, 32, 48)).save(out, ending)
    return out.getvalue()


def videos(folder: Path, count: int, start: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(start, start + count):
        (folder / f"v{i}.mp4").write_bytes(distinct(i))
    return folder


def write_json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    import csv

    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def made(src: Path, out: Path, *words: str) -> dict[str, dict[str, dict[str, Any]]]:
    """{split: {key: JSON}} of what ``hvlm prepare`` makes, in this process."""
    prepare([str(src), f"out={out}", "workers=1", *words])
    return contents(out)


def contents(out: Path) -> dict[str, dict[str, dict[str, Any]]]:
    manifest = load_manifest(out)
    manifest.verify(full=True)
    found = {}
    for name in manifest.splits:
        split = manifest.split(name)
        found[name] = {split.keys[i]: json.loads(split.read(i)["json"]) for i in range(len(split))}
    return found


def together(splits: dict[str, dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """{key: JSON} of all splits."""
    return {key: value for split in splits.values() for key, value in split.items()}


def left_out(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]


def dataset(out: Path) -> Shards:
    data = Shards(str(out))
    data.prepare()
    return data


def read_all(out: Path, view: Any) -> list[Any]:
    """Every sample of every split through the reader of training, without one bad sample."""
    data, items = dataset(out), []
    for split in data.manifest().splits:
        if split == "text":
            continue
        spec = SampleSpec(FakeChat(), view, None, "answer", InputSpec("question_first", 4, 32), None, 1)
        clips = data.manifest().split(split)
        reading = Reader(clips, None, spec, quarantine := Quarantine(1.0), replace=False)
        items += [reading._item(SampleRef(0, i)) for i in range(len(clips))]
        assert quarantine.bad == 0
    return items
