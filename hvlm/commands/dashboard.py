"""Make a W&B workspace with panels over all runs of a project: ``hvlm dashboard entity=TEAM project=hvlm``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hvlm.commands._words import command, once, pairs
from hvlm.console import harmless
from hvlm.errors import UserError

USAGE = """usage: hvlm dashboard [setting=value ...]

A workspace over all runs of a project in Weights & Biases: losses, score with its error, the same without the video,
Pareto plots of accuracy against cost, speed, gradient norm, entropy of the gaze, pictures of gaze and merging, clips.
Needs pip install 'hvlm[dashboard]'. Every call makes a new workspace; the old ones stay.

  entity=    team or user; the one that is logged in
  project=   hvlm
  name=      of the workspace; hvlm
  offline=   a file: what would be sent is written there as JSON, and nothing is sent
"""


@dataclass(frozen=True)
class Settings:
    """The settings of one command; USAGE says what they are."""

    entity: str | None = None
    project: str = "hvlm"
    name: str = "hvlm"
    offline: str | None = None


def main(argv: Sequence[str]) -> None:
    command(argv, USAGE, work)


def work(words: Sequence[str]) -> None:
    from hvlm.config.schema import arguments

    given: dict[str, Any] = dict(once(pairs(words, _refuse)))
    settings = Settings(**arguments(given, Settings, ""))
    for key in ("project", "name"):
        if not getattr(settings, key):
            raise UserError(f"{key}= is empty: expected a name, e.g. {key}=hvlm")
    for key in ("entity", "project", "name"):
        if (text := getattr(settings, key) or "") != text.encode(errors="replace").decode():
            raise UserError(harmless(f"hvlm dashboard: {key}={text} is not UTF-8; use letters"))
    dashboard(settings)


def _refuse(word: str) -> tuple[str, str]:
    raise UserError(f"hvlm dashboard {word}: expected setting=value, e.g. entity=TEAM project=hvlm")


def dashboard(settings: Settings) -> None:
    """Make it, or write it down. Raises UserError."""
    from hvlm.viz.dashboard import workspace, write

    if settings.offline is not None:
        path = Path(settings.offline)
        if not settings.offline or path.is_dir():
            raise UserError(f"offline={settings.offline}: expected a file, e.g. offline=dashboard.json")
        write(workspace(settings.entity or "", settings.project, settings.name), path)
        print(harmless(f"written to {path}; nothing was sent"))
        return
    workspace("", settings.project, settings.name)  # the package is there, before anybody has to log in
    print(harmless(f"dashboard: {_save(settings)}"))


def _save(settings: Settings) -> str:
    import wandb

    from hvlm.viz.dashboard import workspace

    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        entity = settings.entity or wandb.Api().default_entity
        made = workspace(entity or "", settings.project, settings.name)
        made.save()
    except (wandb.Error, OSError, ValueError, TypeError, KeyError) as error:
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"hvlm dashboard: W&B did not take it ({why}); log in with `wandb login` (or set WANDB_API_KEY), check "
            "entity= and project=, or write it down with offline=dashboard.json"
        ) from error
    return str(made.url)
