"""What ``head=retrieve`` is shown: clips, each with a text that says what is in it, and texts that do so wrongly."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvlm.data.delimiter import delimiter
from hvlm.data.sample_fields import FieldError, as_object, as_text
from hvlm.data.sample_targets import as_pair
from hvlm.data.views import Row, View
from hvlm.errors import UserError

NAMED = 3  # rows at fault that a message names
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
        pairs = sample.get("pairs") or [{"text": one["text"], "negatives": []} for one in sample["captions"]]
        if n is not None:
            pairs = [pairs[i] for i in rng.permutation(len(pairs))[:n]]
        about = {name: sample[name] for name in ("key", "uid", "domain") if name in sample}
        rows = []
        for pair in pairs:
            wrong = pair["negatives"]
            if self.negatives is not None:
                wrong = [wrong[i] for i in rng.permutation(len(wrong))[: self.negatives]]
            rows.append(Row(self.prompt, None, about | {"task": "retrieve", "texts": [pair["text"], *wrong]}))
        return rows

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
        said = torch.tensor([_number(row["texts"][0]) if row.get("texts") else 0 for row in rows], dtype=torch.int64)
        return {"text_ids": ids, "text_mask": mask, "there": there, "said": said}

    def scoring(self) -> View:
        return replace(self, negatives=None)


def _number(text: str) -> int:
    """The same in every process, and another one for another text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)


def read_pairs(path: Path, setting: str) -> list[tuple[str, dict[str, Any]]]:
    """A list of pairs: JSON Lines or JSON objects {"video", "text" (or "caption"), "negatives"}, or CSV with the
    columns video and text.

    Raises:
        UserError: one line that names the rows at fault.
    """
    where = f"{setting}={path}"
    found: dict[str, list[dict[str, Any]]] = {}
    wrong: list[str] = []
    for number, value in _rows(path, where):
        try:
            value = as_object(value, "it")
            video = as_text(value.get("video"), "video")
            name = next((name for name in TEXTS if name in value), "text")
            text = as_text(value.get(name), name)
            found.setdefault(video, []).append(as_pair({"text": text, "negatives": value.get("negatives")}, ""))
        except FieldError as error:
            wrong.append(f"row {number}: {error}")
    if wrong:
        more = f"; and {len(wrong) - NAMED} rows more" if len(wrong) > NAMED else ""
        raise UserError(f"{where}: {'; '.join(wrong[:NAMED])}{more}")
    if not found:
        raise UserError(f"{where}: holds no pair; a row needs video and text")
    return [(video, {"pairs": pairs}) for video, pairs in found.items()]


def _rows(path: Path, where: str) -> list[tuple[int, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() in (".csv", ".tsv"):
            mark = "\t" if path.suffix.lower() == ".tsv" else delimiter(text.partition("\n")[0], text.splitlines(True))
            reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
            return [(reader.line_num, {str(k): v for k, v in row.items()}) for row in reader]
        if path.suffix.lower() == ".json":
            value = json.loads(text)
            if not isinstance(value, list):
                raise UserError(f"{where}: expected a list of pairs")
            return list(enumerate(value, start=1))
        return [(n, json.loads(line)) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror})") from error
    except (ValueError, csv.Error, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{where}: not valid JSON Lines, JSON or CSV ({error})") from error
