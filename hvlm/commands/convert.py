"""Read and write predictions of lmms-eval and VLMEvalKit: ``hvlm convert FILE to=vlmevalkit``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hvlm.commands._words import command, once, pairs
from hvlm.console import harmless, setup_logging
from hvlm.errors import UserError

USAGE = """usage: hvlm convert FILE [setting=value ...]

Predictions from one format into another. FILE may be predictions.jsonl or answers.jsonl of an evaluation, lmms-eval's
samples (--log_samples), or VLMEvalKit's table (PRED_FORMAT=tsv or json); which it is, is seen. What comes out as hvlm's
is scored by hvlm eval task=score predictions=OUT.

  predictions=  FILE, in another way
  to=           hvlm (default), lmms_eval or vlmevalkit
  annotations=  the table of questions that were asked, in its order (.jsonl, .json, .csv, .tsv, .parquet, or an
                evaluation's predictions.jsonl): lmms-eval's samples need it, for they say no more than a row's number
  out=          the file to write; beside FILE
  variant=      a name for another program's answers; of an evaluation's file, which of its variants
"""


@dataclass(frozen=True)
class Settings:
    """The settings of one command; USAGE says what they are."""

    predictions: str
    to: Literal["hvlm", "lmms_eval", "vlmevalkit"] = "hvlm"
    annotations: str | None = None
    out: str | None = None
    variant: str | None = None


def main(argv: Sequence[str]) -> None:
    command(argv, USAGE, lambda words: work(read(words)))


def work(settings: Settings) -> None:
    setup_logging()
    from hvlm.interop.convert import convert

    files = [Path(name) if name else None for name in (settings.annotations, settings.out)]
    out, count = convert(Path(settings.predictions), settings.to, *files, settings.variant)
    print(harmless(f"{out}: {count} predictions"))


def read(words: Sequence[str]) -> Settings:
    """The settings of a command line. UserError for what is none."""
    from hvlm.config.schema import arguments

    given = once(pairs(words, lambda word: ("predictions", word)))
    if "predictions" not in given:
        raise UserError("predictions= is missing: hvlm convert FILE to=lmms_eval names a file of predictions")
    return Settings(**arguments(given, Settings, ""))
