"""Ask about videos on a page in the browser: ``hvlm ui checkpoint=runs/demo``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hvlm.commands._words import command, once, pairs
from hvlm.console import setup_logging
from hvlm.errors import UserError
from hvlm.io.foreign import said

USAGE = """usage: hvlm ui checkpoint=RUN [setting=value ...]

A page in the browser: choose a video, ask, and see the answer as it is written, the frames with the gaze over them,
what was merged, tokens, milliseconds and bytes of the KV cache. Needs gradio: pip install 'hvlm[ui]', or make ui.

  checkpoint=      a run, a checkpoint file, or an export
  beside=          another one, which answers the same questions next to it
  videos=          a folder whose videos can be picked; without it they are uploaded
  port=            7860
  host=            127.0.0.1: this machine alone. 0.0.0.0 lets everybody who reaches it ask
  upload_mb=       how large an uploaded file may be, in MiB; 200
  max_new_tokens=  where an answer stops at the latest; 32

Uploaded files are removed when their visitor leaves, and all of them when the page ends.
"""


def main(argv: Sequence[str]) -> None:
    """Serve until Ctrl-C."""
    command(argv, USAGE, lambda words: serve(read(words)))


def serve(given: Mapping[str, Any]) -> None:
    setup_logging()
    from hvlm.config.schema import arguments
    from hvlm.ui.serve import Settings, run

    run(Settings(**arguments(given, Settings, "")))


def read(argv: Sequence[str]) -> dict[str, Any]:
    """The words as {key: value}: numbers where they are numbers of the command, else what was typed. UserError."""

    def bare(word: str) -> tuple[str, str]:
        raise UserError(f"hvlm ui {word}: expected key=value, as checkpoint=runs/demo; hvlm ui --help lists them")

    given: dict[str, Any] = dict(once(pairs(argv, bare)))
    given |= {key: said(given[key]) for key in ("port", "upload_mb", "max_new_tokens") if key in given}
    if not given.get("checkpoint"):
        raise UserError("checkpoint= is missing: hvlm ui checkpoint=runs/demo names what answers")
    return given
