"""What stands between the cells of a CSV: spreadsheets write ``;`` where a comma belongs to numbers."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from itertools import islice

FIRST_ROWS = 20  # that tell
MOST_LINES = 1_000  # that these take, for a cell may hold line ends


def delimiter(head: str, lines: Iterable[str]) -> str:
    """What most often stands in the first line, ``head``, of those by which the first rows have as many cells as it.

    Raises csv.Error where the lines are no table by any of them.
    """
    marks = sorted((mark for mark in ",;\t" if mark in head), key=head.count, reverse=True)
    lines = list(islice(lines, MOST_LINES))
    for mark in marks:
        cells = {len(row) for row in islice(csv.reader(lines, delimiter=mark), FIRST_ROWS) if row}
        if len(cells) == 1:
            return mark
    return marks[0] if marks else ","
