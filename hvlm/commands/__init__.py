"""What ``hvlm <command>`` runs: a file for each command, with a function ``main(argv)``; the first line of the file's
docstring is its line of ``hvlm --help``. A new command is a new file.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from hvlm.console import error_line
from hvlm.errors import UserError

USAGE = """hvlm: which vision encoder, token merger, connector, attention, fusion, adapter and KV cache make the best
long-video model for its cost? One command trains and measures.

usage: hvlm <command> ...

{commands}

hvlm <command> --help says more; hvlm train --help lists all groups and words. In Python: hvlm.load, hvlm.build.
"""


def names() -> dict[str, str]:
    """{command: what it does, in a line}, without importing any of them."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        line = text.split("\n", 1)[0]
        line = line.split("``: ", 1)[-1] if line.startswith("``") else line.split(": ``", 1)[0]
        found[path.stem] = line.rstrip(".:")
    return found


def run(argv: Sequence[str] | None = None) -> None:
    """The command line of ``hvlm``: ``argv`` (``sys.argv[1:]``) begins with the command's name."""
    argv = list(sys.argv[1:] if argv is None else argv)
    with error_line():
        if len(argv) > 1 and argv[0] == "help":
            argv = [argv[1], "--help"]
        if not argv or argv[0] in ("-h", "--help", "help"):
            known = names()
            width = max(map(len, known))
            print(USAGE.format(commands="\n".join(f"  {name:{width}}  {line}" for name, line in known.items())), end="")
            return
        if argv[0] in ("-V", "--version"):
            print(f"hvlm {version()}")
            return
        if argv[0] not in (known := names()):
            from hvlm.config.schema import did_you_mean

            raise UserError(f"hvlm {argv[0]}: no such command;{did_you_mean(argv[0], list(known))}")
        importlib.import_module(f"{__name__}.{argv[0]}").main(argv[1:])


def version() -> str:
    """Of the installed package; ``unknown`` for one that is not installed."""
    from importlib import metadata

    try:
        return metadata.version("hvlm")
    except metadata.PackageNotFoundError:
        return "unknown (not installed)"
