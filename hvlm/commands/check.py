"""Check the rooms of a package of yours, or hvlm's own: ``hvlm check mypackage``.

Runs the contract tests (``hvlm/checks``) and needs no pytest.
"""

from __future__ import annotations

import argparse
import warnings
from collections import Counter
from collections.abc import Sequence

from hvlm.config.packages import OURS
from hvlm.config.search_path import named_by
from hvlm.console import error_line, setup_logging
from hvlm.errors import UserError


def main(argv: Sequence[str]) -> None:
    """Print a line for each room and check; SystemExit(1) if one failed."""
    parser = argparse.ArgumentParser(prog="hvlm check", description="Runs the contract tests over a package's rooms.")
    parser.add_argument("package", nargs="*", help="names of packages; without one, hvlm's own rooms (minutes)")
    parser.add_argument("-q", "--quiet", action="store_true", help="only what failed or was skipped, and the sum")
    asked = parser.parse_args(list(argv))
    with error_line():
        setup_logging()
        if check(asked.package or [OURS], asked.quiet):
            raise SystemExit(1)


def check(packages: Sequence[str], quiet: bool = False) -> int:
    """Run the checks, printing as they come; returns how many failed.

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
        for package in packages:
            for outcome in outcomes(package):
                counts[outcome.result] += 1
                if not (quiet and outcome.result == "ok"):
                    print(outcome, flush=True)
    print(", ".join(f"{counts[result]} {result}" for result in ("ok", "failed", "skipped") if counts[result]))
    return counts["failed"]
