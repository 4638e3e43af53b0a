"""A job of a sweep: what it is called, and what became of it."""

from __future__ import annotations

import hashlib
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from hvlm.config.words import key_of, text_of
from hvlm.errors import UserError
from hvlm.io.foreign import json_of, number, shown, wrong
from hvlm.sweep.engine import Handle, Needs


@dataclass
class Job:
    """One job of a sweep and what became of it; ``status.json`` in its folder holds the same fields."""

    name: str
    overrides: list[str]
    config: str  # config_id of its stages
    status: Literal["waiting", "running", "done", "failed", "killed", "pruned", "busy"] = "waiting"
    returncode: int | None = None
    signal: str | None = None
    seconds: float = 0.0
    log: str = ""
    error: str = ""  # the log's last line, when it failed
    accuracy: float | None = None
    stderr: float | None = None  # of the accuracy
    val_loss: float | None = None  # at the end of the last stage
    place: str = ""  # where it runs or ran
    values: dict[str, float] = field(default_factory=dict)  # of a search: its objectives
    stages: tuple[str, ...] = ()  # in order
    needs: Needs = field(default_factory=Needs)
    handle: Handle | None = field(default=None, repr=False)
    started: float = 0.0
    stopping: str = ""  # why it was asked to stop

    def record(self) -> dict[str, Any]:
        unsaid = ("stages", "needs", "handle", "started", "stopping")
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in unsaid}


# What a record must hold to be one: {field: (in words, whether a value is that)}.
_NUMBER: tuple[str, Any] = ("a number or null", lambda value: value is None or isinstance(value, int | float))
FIELDS: dict[str, tuple[str, Any]] = {
    "name": ("the job's name", lambda value: isinstance(value, str)),
    "overrides": ("a list of texts", lambda value: isinstance(value, list) and all(isinstance(o, str) for o in value)),
    "config": ("a text", lambda value: isinstance(value, str)),
    "status": ("what became of the job", lambda value: value in get_args(get_type_hints(Job)["status"])),
    "seconds": ("a number", number),
    "error": ("a text", lambda value: isinstance(value, str)),
    "accuracy": _NUMBER,
    "stderr": _NUMBER,
    "val_loss": _NUMBER,
    "place": ("a text", lambda value: value is None or isinstance(value, str)),
}


def read_status(path: Path) -> dict[str, Any]:
    """The record of a ``status.json``. UserError for a file that is none."""
    found = json_of(path)
    why = wrong(found, FIELDS) if isinstance(found, dict) else f"{shown(found)} is no object"
    if why:
        raise UserError(f"{path}: no record of a job ({why}); delete it, and the job is looked at anew")
    return found


def needs_of(stages: Mapping[str, Mapping[str, Any]]) -> Needs:
    """What a job's stages together ask of a machine."""
    trainers = [stage["trainer"] for stage in stages.values()]
    devices = [trainer["devices"] for trainer in trainers]
    return Needs(
        nodes=max(int(trainer["num_nodes"]) for trainer in trainers),
        devices=None if "auto" in devices else max(int(d) for d in devices),
        gpu=any(trainer["accelerator"] in ("gpu", "cuda") for trainer in trainers),
    )


def job_name(overrides: Sequence[str], common: Sequence[str]) -> str:
    """``connector-mean_seed-2``: a folder name from the overrides that the sweep varies (all but ``common``).

    When characters had to go, eight digits of a hash keep two jobs apart.
    """
    varied = [o for o in overrides if o not in common] or list(overrides)
    text = "_".join(f"{key_of(o)}-{text_of(o)}" if "=" in o else o for o in varied) or "only"
    name = re.sub(r"[^\w.+-]", "-", text)[:100].strip(".")
    if name != text:
        name += "-" + hashlib.sha256(text.encode()).hexdigest()[:8]
    return name


def last_line(path: Path) -> str:
    """Of a log: what a failed job said last, shortened at a word."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    lines = [line for line in text.splitlines() if line.strip()]
    return textwrap.shorten(lines[-1], 240, placeholder=" ...") if lines else "no output"
