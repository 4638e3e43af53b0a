"""VLMEvalKit's table of predictions (``PRED_FORMAT=tsv``, or json), read and written.

It is the data set's own table with one column more, ``prediction``; a question that has none holds -1 there, one whose
request failed the words "Failed to obtain answer via API.".
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hvlm.data.question_file import made_of
from hvlm.evaluation.answers import AMBIGUOUS, MISSING, read_answer
from hvlm.evaluation.scores import Prediction
from hvlm.interop.documents import TABLES, Document, document, values
from hvlm.io.files import write_text
from hvlm.prompts import LETTERS

COLUMN = "prediction"
NONE, FAILED = "-1", "Failed to obtain answer"


def read_table(path: Path, variant: str) -> list[Prediction]:
    """The file's answers, in its order.

    Args:
        path: of the file.
        variant: stands in the predictions.

    Raises:
        UserError: names the file and the rows that cannot be read.
    """
    found: set[tuple[str, int]] = set()

    def answered(number: int, row: Any) -> Prediction:
        if not isinstance(row, Mapping) or COLUMN not in row:
            raise ValueError(f"lacks {COLUMN}; VLMEvalKit's files of predictions have it")
        p = _answered(document(number, row, path.suffix.lower() in TABLES), row[COLUMN], variant)
        if (p.question_id, p.attempt) in found:
            raise ValueError(f"is the question {p.question_id!r}, which stands there already")
        found.add((p.question_id, p.attempt))
        return p

    return made_of(values(path, "predictions"), answered, f"predictions={path}", "the file holds no predictions")


def write_table(path: Path, predictions: Sequence[Prediction], documents: Sequence[Document] | None) -> None:
    """The predictions as a tab-separated table: the documents' columns, where these are given, and ``prediction``."""
    if documents is not None and all(one.row for one in documents):
        rows = [dict(one.row) for one in documents]
    else:
        rows = [_row(i, p) for i, p in enumerate(predictions)]
    for row, p in zip(rows, predictions, strict=True):
        row[COLUMN] = _said(p)
    names = list(dict.fromkeys(name for row in rows for name in row if name is not None))
    out = io.StringIO(newline="")
    # Every text in quotes: a line feed or a carriage return inside one ends no row.
    writer = csv.DictWriter(out, names, delimiter="\t", quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writeheader()
    writer.writerows([{name: row.get(name, "") for name in names} for row in rows])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, out.getvalue())


def _row(index: int, p: Prediction) -> dict[str, Any]:
    row: dict[str, Any] = {"index": index, "question_id": p.question_id, "video": p.key, "task_type": p.task}
    row |= {"try": p.attempt} if p.attempt else {}
    row["question"] = p.question
    if p.gold is None:
        return row | ({"answer": p.answers[0]} if len(p.answers) == 1 else {"answers": "|".join(p.answers)})
    # As the table of Video-MME: a letter before each, so that one that is itself a letter is not taken for the answer.
    shown = [f"{LETTERS[i]}. {option}" for i, option in enumerate(p.options)]
    return row | {"candidates": repr(shown), "answer": LETTERS[p.gold]}


def _said(p: Prediction) -> str:
    if p.text is not None and p.text.strip():
        return p.text
    return NONE if p.pred is None else LETTERS[p.pred]


def _answered(one: Document, said: Any, variant: str) -> Prediction:
    text = "" if said is None or said != said else str(said)  # NaN of an empty cell
    if text.strip() in (NONE, f"{NONE}.0"):
        # A number that is an option, too, says neither.
        return one.answered(variant, None, text, AMBIGUOUS if NONE in one.options else MISSING)
    if not text.strip() or FAILED in text:
        return one.answered(variant, None, text or None, MISSING)
    if not one.options:
        return one.answered(variant, None, text, "")
    reading = read_answer(text, one.options)
    return one.answered(variant, reading.index, text, reading.problem)
