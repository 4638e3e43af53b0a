"""Texts longer than ``dataset.max_tokens``: refused, or cut in a way that depends on the text alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hvlm.data.views import Row
from hvlm.prompts import Prompt


class TooLong(ValueError):
    """tokens: of the text."""

    def __init__(self, tokens: int) -> None:
        super().__init__(f"{tokens:,} tokens")
        self.tokens = tokens


def shortened(row: Row, turns: int) -> Row:
    """The row without the oldest ``turns`` exchanges of its conversation."""
    if not turns or not turns_of(row):
        return row
    prompt = row.prompt  # its context, if it has one, goes with the first question
    return row._replace(prompt=Prompt(prompt, prompt.before[turns:], prompt.system))


def turns_of(row: Row) -> int:
    """How many earlier exchanges the row's conversation has."""
    return len(getattr(row.prompt, "before", ()))


def drop_turns(rows: Sequence[Row], length: Callable[[Row], int], max_tokens: int) -> list[Row]:
    """Rows that ask the same without as many of the oldest exchanges as it takes for all of them to fit, or, where that
    is not enough, without any."""
    for turns in range(turns_of(rows[0]) + 1):
        shorter = [shortened(row, turns) for row in rows]
        if all(length(row) <= max_tokens for row in shorter):
            break
    return shorter


def cut_end(encoded: Any, start: int, max_tokens: int) -> Any:
    """The row without the end of its answer, which begins at token ``start``. Raises TooLong where nothing of the
    answer would be left."""
    if start >= max_tokens:
        raise TooLong(len(encoded.ids))
    return encoded._replace(ids=encoded.ids[:max_tokens], loss_mask=encoded.loss_mask[:max_tokens])
