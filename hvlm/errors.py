"""The one exception that is meant for the person at the command line."""

from __future__ import annotations

from collections.abc import Sequence


class UserError(Exception):
    """A mistake in a configuration or a file. The message is one clear line: the key or file, what was found, what
    was expected, and the way out. Entry scripts print it without a traceback and exit with status 1."""


def first_few(problems: Sequence[str], of: str = "", most: int = 3) -> str:
    """The first ``most`` of them in one line, and how many more (``of`` what) there are: "a; b; c; and 4 rows more"."""
    more = [] if len(problems) <= most else [" ".join(filter(None, ["and", str(len(problems) - most), of, "more"]))]
    return "; ".join([*problems[:most], *more])
