"""``hvlm check [package ...]``: the contract tests over the rooms of packages, of hvlm's own without a name."""

from __future__ import annotations

import argparse
import logging
import warnings
from collections import Counter
from collections.abc import Sequence

from hvlm.cli import error_line
from hvlm.config.packages import OURS
from hvlm.config.search_path import named_by
from hvlm.errors import UserError


def main(argv: Sequence[str]) -> int:
    """Print a line for each room and check; 1 if any failed, else 0."""
    parser = argparse.ArgumentParser(prog="hvlm check", description="Run the contract tests over a package's rooms.")
    parser.add_argument("package", nargs="*", help="names of packages; without one, hvlm's own rooms (minutes)")
    parser.add_argument("-q", "--quiet", action="store_true", help="only what failed or was skipped, and the sum")
    asked = parser.parse_args(list(argv))
    with error_line():
        return check(asked.package or [OURS], asked.quiet)


def check(packages: Sequence[str], quiet: bool = False) -> int:
    """``main`` without the command line.

    Raises:
        UserError: a package that is not there or has no room.
    """
    if not __debug__:
        raise UserError("hvlm check: python -O (or PYTHONOPTIMIZE) takes the checks out; start Python without it")
    others = [name for name in packages if name != OURS]
    counts: Counter[str] = Counter()
    with named_by([f"packages=[{','.join(others)}]"] if others else []), warnings.catch_warnings():
        from hvlm.checks.run import outcomes  # seconds of imports, which --help and a misspelt name do without

        warnings.simplefilter("ignore")  # of libraries, about models of a few thousand weights
        logging.getLogger("transformers").setLevel(logging.ERROR)
        for package in packages:
            for outcome in outcomes(package):
                counts[outcome.result] += 1
                if not (quiet and outcome.result == "ok"):
                    print(outcome, flush=True)
    print(", ".join(f"{counts[result]} {result}" for result in ("ok", "failed", "skipped") if counts[result]))
    return 1 if counts["failed"] else 0
