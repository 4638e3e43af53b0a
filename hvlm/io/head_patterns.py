"""DuoAttention's head patterns: one gate for each KV head of each layer, as files that its own loader reads and ours.

A pattern is a folder with ``full_attention_heads.tsv``, numpy's plain text dump of the gates (``%.18e``, tabs, one line
for a layer, one column for a KV head, no header), and ``config.json``, of which ``sink_size`` and ``recent_size`` are
read: the window that the gates were learnt with. Other keys belong to whoever wrote it.

Published gates are parameters as training left them: some lie just outside [0, 1] and are clipped, and dozens are
exactly 1, so which heads keep everything is a matter of ties. ``choose_heads`` says how they are settled.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hvlm.errors import UserError
from hvlm.io.files import write_atomically
from hvlm.io.pretrained import json_of, one_line

GATES = "full_attention_heads.tsv"
CONFIG = "config.json"
CELL = 64  # characters of a gate at most: numpy writes 24
LONGEST_WINDOW = 2**31 - 1  # places


class HeadPattern(NamedTuple):
    """gates: float32 [layers, KV heads] in [0, 1]. sink, recent: the window that they were learnt with, None where the
    pattern does not say."""

    gates: Tensor
    sink: int | None
    recent: int | None


class Chosen(NamedTuple):
    """heads: bool [layers, KV heads], True for those that keep everything. ties: heads that stream although their gate
    equals that of one that does not."""

    heads: Tensor
    ties: int


def choose_heads(gates: Tensor, share: float) -> Chosen:
    """Which heads keep everything: ``share`` of all of them, those with the highest gates.

    Exactly round(share * heads) of them, a half rounded up. Of equal gates the earlier layer goes first, and within a
    layer the earlier head.
    """
    values = gates.detach().float().cpu().flatten()
    kept = math.floor(share * len(values) + 0.5 + 1e-9)
    order = torch.sort(values, descending=True, stable=True).indices
    heads = torch.zeros(len(values), dtype=torch.bool)
    heads[order[:kept]] = True
    ties = int((values[order[kept:]] == values[order[kept - 1]]).sum()) if kept else 0
    return Chosen(heads.view(gates.shape), ties)


def read_pattern(path: str | Path, layers: int, heads: int, name: str = "kvcache.pattern") -> HeadPattern:
    """The pattern of a folder, or of a TSV file and the config.json beside it.

    Args:
        path: the folder or the file.
        layers, heads: how many the language model has, KV heads in each layer.
        name: the setting that names the path, for what is said of it.

    Raises:
        UserError: nothing there, a cell that is no number, another number of layers or heads, a window that is none.
    """
    try:
        file = Path(path).expanduser()
        file = file / GATES if file.is_dir() else file
        there = file.is_file()
    except (OSError, RuntimeError) as error:  # a name that is too long, a home of nobody
        raise UserError(f"{name}={str(path)[:200]}: no such pattern ({one_line(error)})") from error
    if not there:
        raise UserError(
            f"{name}={path}: no such pattern; expected a folder with {GATES}, such a file, or {name}=checkpoint for "
            "the gates that a checkpoint holds"
        )
    most = layers * (heads * (CELL + 1) + 2) + CELL  # what is larger is told from a pattern without being read
    try:
        if file.stat().st_size > most:
            raise UserError(
                f"{name}={path}: {file} has {file.stat().st_size} bytes, but the gates of {layers} layers x {heads} KV "
                f"heads take {most} at most; use the pattern that was learnt for this model"
            )
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{name}={path}: {file} cannot be read: {error}") from error
    while lines and not lines[-1].strip():
        lines.pop()
    rows = [_numbers(line, f"{file} line {number}") for number, line in enumerate(lines, 1)]
    widths = sorted({len(row) for row in rows})
    if (len(rows), widths) != (layers, [heads]):
        found = f"{len(rows)} layers x {' or '.join(map(str, widths)) or 'no'} KV heads"
        raise UserError(
            f"{name}={path}: a pattern of {found}, but the language model has {layers} layers x {heads} KV heads; use "
            "the one that was learnt for this model"
        )
    sink, recent = _window(file.with_name(CONFIG), name)
    return HeadPattern(torch.tensor(rows, dtype=torch.float32).clamp(0, 1), sink, recent)


def write_pattern(
    folder: str | Path, gates: Tensor, sink: int, recent: int, more: Mapping[str, Any] | None = None
) -> None:
    """Write a pattern's folder as DuoAttention's loader reads it.

    Args:
        folder: made where it is not there.
        gates: [layers, KV heads].
        sink, recent: the window that the gates were learnt with.
        more: what else config.json is to say, plain values.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    np.savetxt(text, gates.detach().double().cpu().numpy(), delimiter="\t")
    config = {"sink_size": sink, "recent_size": recent, **(more or {})}
    write_atomically(folder / CONFIG, lambda f: f.write((json.dumps(config, indent=2) + "\n").encode()))
    write_atomically(folder / GATES, lambda f: f.write(text.getvalue().encode()))


def _numbers(line: str, where: str) -> list[float]:
    try:
        row = [float(cell) for cell in line.split("\t")]
    except ValueError as error:
        raise UserError(f"{where}: {error}; expected gates with tabs between them") from error
    if not all(map(math.isfinite, row)):
        raise UserError(f"{where}: a gate that is not finite; expected numbers from 0 to 1")
    return row


def _window(file: Path, name: str) -> tuple[int | None, int | None]:
    """(sink, recent) of a pattern's config.json, None for what it does not say."""
    if not file.is_file():
        return None, None
    config = json_of(file, name)
    found = []
    for key, least in (("sink_size", 0), ("recent_size", 1)):
        value = config.get(key)
        if value is not None and (type(value) is not int or not least <= value <= LONGEST_WINDOW):
            raise UserError(f"{file}: {key}={value!r:.40}; expected a whole number of {least} or more")
        found.append(value)
    return found[0], found[1]
