"""What ``head=retrieve`` is shown: clips, each with a text that says what is in it, and texts that do so wrongly."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvlm.data import published
from hvlm.data.question_file import Row as FileRow
from hvlm.data.question_file import listed, rows_of, seconds_of, section_of, text_of
from hvlm.data.sample_targets import as_pair
from hvlm.data.views import Row, View
from hvlm.errors import UserError, first_few

TEXTS = ("text", "caption")


@dataclass(frozen=True)
class PairsOfTexts(View):
    """One row for each text about a clip: of its ``pairs``, or where it has none of its captions. The row holds the
    prompt and the video alone. negatives: so many wrong texts are drawn beside the right one; None: all, in order.
    """

    prompt: str
    negatives: int | None
    name = "pairs of video and text"

    def rows(self, sample: dict[str, Any], times: np.ndarray, rng: np.random.Generator, n: int | None) -> list[Row]:
        about = about_of(sample) | {"task": "retrieve"}
        drawn = drawn_texts(sample, rng, n, self.negatives)
        return [Row(self.prompt, None, about | {"texts": texts}) for texts in drawn]

    def targets(self, rows: Sequence[Mapping[str, Any]], chat: Any) -> dict[str, Tensor]:
        """``text_ids`` int64 and ``text_mask`` bool [K, N, S]: the right text of each row, then its wrong ones;
        ``there`` bool [K, N]: whether there is one; ``said``: int64 [K], equal for equal right texts."""
        each = [[chat.encode_prompt(text)[0] for text in row.get("texts", ())] for row in rows]
        n = max([1, *(len(texts) for texts in each)])
        s = max([1, *(len(ids) for texts in each for ids in texts)])
        ids = torch.full((len(rows), n, s), chat.pad_id)
        mask = torch.zeros(len(rows), n, s, dtype=torch.bool)
        there = torch.zeros(len(rows), n, dtype=torch.bool)
        for k, texts in enumerate(each):
            for i, text in enumerate(texts):
                ids[k, i, : len(text)] = torch.tensor(text)
                mask[k, i, : len(text)] = there[k, i] = True
        mask[..., 0] |= ~there  # what nobody reads has a token, too, so that there is something to attend to
        said = torch.tensor([number_of(row["texts"][0]) if row.get("texts") else 0 for row in rows], dtype=torch.int64)
        return {"text_ids": ids, "text_mask": mask, "there": there, "said": said}

    def alone(self, meta: Mapping[str, Any]) -> Sequence[str]:
        return meta.get("texts", ())

    def scoring(self) -> View:
        return replace(self, negatives=None)


def drawn_texts(
    sample: Mapping[str, Any], rng: np.random.Generator, n: int | None, negatives: int | None
) -> list[list[str]]:
    """Of each pair of a clip its text, then wrong ones: of ``n`` pairs, with ``negatives`` of them, both drawn; None:
    all, in order."""
    pairs = pairs_of(sample)
    if n is not None:
        pairs = [pairs[i] for i in rng.permutation(len(pairs))[:n]]
    drawn = []
    for pair in pairs:
        wrong = pair["negatives"]
        if negatives is not None:
            wrong = [wrong[i] for i in rng.permutation(len(wrong))[:negatives]]
        drawn.append([pair["text"], *wrong])
    return drawn


def about_of(sample: Mapping[str, Any]) -> dict[str, Any]:
    """What a row says of its clip."""
    return {name: sample[name] for name in ("key", "uid", "domain") if name in sample}


def pairs_of(sample: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The ``pairs`` of a sample, or where it has none its captions."""
    return sample.get("pairs") or [{"text": one["text"], "negatives": []} for one in sample["captions"]]


def number_of(text: str) -> int:
    """The same in every process, and another one for another text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)


def read_pairs(path: Path, setting: str) -> list[FileRow]:
    """A list of pairs in JSON Lines, JSON or CSV: objects {"video", "text" (or "caption"), "negatives"}, or columns of
    these names, in which negatives are a JSON list or have ``|`` between them. ``start`` and ``end`` (seconds: the part
    of the video that is meant) and ``fps`` (of a folder of stills) may be there. One row for each video, or part of
    one, with all its pairs. Or a published file of Flickr30K, of which the test split alone where it says splits.

    Raises:
        UserError: one line that names the rows at fault.
    """
    if published.set_of(path) == "flickr30k":
        return _captions(path, setting)
    found: dict[tuple[Any, ...], FileRow] = {}
    for row in rows_of(path, setting, _row, "pair", ("video", "text")):
        first = found.setdefault((row.video, row.section), row)
        if first is not row:
            first.about["pairs"].extend(row.about["pairs"])
    return list(found.values())


def _row(number: int, value: Any) -> FileRow:
    """Raises ValueError, which goes on after the row's number."""
    if not isinstance(value, dict):
        raise ValueError("is no object; expected one with video, text")
    value = {name: field for name, field in value.items() if field is not None}
    name = next((name for name in TEXTS if name in value), None)
    if missing := [needed for needed, there in (("video", "video" in value), ("text", name)) if not there]:
        has = ", ".join(map(str, list(value)[:12])) or "nothing"
        raise ValueError(f"lacks {', '.join(missing)}; it has {has}, expected video, and text or caption")
    assert name is not None
    wrong = value.get("negatives", [])
    wrong = listed(wrong) if isinstance(wrong, str) else wrong
    pair = as_pair({"text": text_of(value, name), "negatives": wrong}, "its pair")
    return FileRow(
        number, None, text_of(value, "video"), section_of(value), seconds_of(value, "fps"), {"pairs": [pair]}
    )


def _captions(path: Path, setting: str) -> list[FileRow]:
    rows, wrong = [], []
    for number, entry in published.read(path, "flickr30k"):
        if isinstance(entry, str):
            wrong.append(f"row {number}: {entry}")
        elif entry.split in ("", "test"):
            pairs = [as_pair(text, "its caption") for text in entry.captions]
            rows.append(FileRow(number, None, entry.picture, None, None, {"pairs": pairs}))
    if wrong:
        raise UserError(f"{setting}={path}: {first_few(wrong, 'rows')}")
    if not rows:
        raise UserError(f"{setting}={path}: holds no picture of the test split")
    return rows
