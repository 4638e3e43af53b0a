"""lmms-eval's file of samples, ``..._samples_<task>.jsonl`` (``--log_samples``), read and written.

    {"doc_id": 0, "target": "B", "filtered_resps": "B. red", "token_counts": [null], "doc_hash": ..., "input": ...}

It holds neither the options nor the question's name, and its ``doc_hash`` is the same in every row, so that rows are
joined with the table of questions by ``doc_id``, which counts the table's rows from 0. Tables of another length, or
whose right answers are others, are refused. Of multiple choice ``filtered_resps`` has a [loss, whether greedy] for each
option, as texts, and the smallest loss is the answer.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hvlm.errors import UserError, first_few
from hvlm.evaluation.answers import MISSING, read_answer
from hvlm.evaluation.predictions import lines_of
from hvlm.evaluation.scores import Prediction, choose
from hvlm.interop.documents import Document
from hvlm.io.json_lines import write_lines
from hvlm.prompts import LETTERS

FIELDS = ("doc_id", "target", "filtered_resps")
NO_DOCUMENT = "74234e98afe7498fb5daf1f36ac2d78acc339464f950703b8c019892f982b90b"  # SHA-256 of ``null``, as there
log = logging.getLogger(__name__)


def read_samples(path: Path, documents: Sequence[Document], variant: str) -> list[Prediction]:
    """The file's answers, in the order of the documents.

    Args:
        path: of the file.
        documents: the table of questions that the task asked, whole.
        variant: stands in the predictions.

    Raises:
        UserError: names what does not fit.
    """
    rows: dict[int, tuple[int, dict[str, Any]]] = {}
    for number, line in lines_of(path):
        row, where = _value(line, path, number), f"predictions={path}, line {number}"
        index = row["doc_id"]
        if isinstance(index, bool) or not isinstance(index, int) or index < 0:
            raise UserError(f"{where}: doc_id is {index!r}, expected 0, 1, 2, ...")
        if index in rows:
            raise UserError(f"{where}: doc_id {index} stands in line {rows[index][0]}, too")
        rows[index] = number, row
    if sorted(rows) != list(range(len(documents))):
        raise UserError(
            f"predictions={path}: its {len(rows)} doc_id go to {max(rows)}, and annotations= has {len(documents)} "
            "questions; name the table that this task asked, and run the task without --limit"
        )
    other = [
        f"doc_id {i} has target {rows[i][1]['target']!r:.60} where annotations= says {_right(one)!r:.60}"
        for i, one in enumerate(documents)
        if not one.says(str(rows[i][1]["target"]))
    ]
    if other:
        raise UserError(
            f"predictions={path}: {first_few(other, 'rows')}; name the table that this task asked, in its order"
        )
    asked = [(str(rows[i][1].get("input") or ""), one.question) for i, one in enumerate(documents)]
    strange = sum(bool(shown) and " ".join(words.split()) not in " ".join(shown.split()) for shown, words in asked)
    if strange:
        log.warning(f"predictions={path}: {strange} of {len(asked)} inputs do not hold the question of annotations=")
    return [
        _answered(one, rows[i][1]["filtered_resps"], variant, f"predictions={path}, line {rows[i][0]}")
        for i, one in enumerate(documents)
    ]


def is_samples(row: Any) -> bool:
    """Whether a row is one of lmms-eval's."""
    return isinstance(row, dict) and "doc_id" in row and "filtered_resps" in row


def write_samples(path: Path, predictions: Sequence[Prediction]) -> None:
    """The predictions, whose places are their ``doc_id``, as lmms-eval writes them."""
    write_lines(path, [_row(i, p) for i, p in enumerate(predictions)])


def _row(index: int, p: Prediction) -> dict[str, Any]:
    by_loss = p.scores is not None and p.text is None
    if by_loss:
        said: Any = [[str(-score), "False"] for score in p.scores or ()]
    elif p.text is not None:
        said = p.text
    else:
        said = "" if p.pred is None else LETTERS[p.pred]
    target = p.answers[0] if p.gold is None else str(p.gold) if by_loss else LETTERS[p.gold]
    row = {"doc_id": index, "target": target, "filtered_resps": said}
    row |= {"token_counts": [None] * (len(p.options) if by_loss else 1), "doc_hash": NO_DOCUMENT}
    row |= {} if p.gold is None else {"acc" if by_loss else "exact_match": float(p.right)}
    return {**row, "input": p.question}


def _answered(one: Document, said: Any, variant: str, where: str) -> Prediction:
    if isinstance(said, list) and len(said) == 1 and isinstance(said[0], str):
        said = said[0]
    if isinstance(said, str):
        if not one.options:
            return one.answered(variant, None, said, "" if said.strip() else MISSING)
        reading = read_answer(said, one.options)
        return one.answered(variant, reading.index, said, reading.problem)
    losses = said if isinstance(said, list) else []
    try:
        scores = tuple(-float(loss) for loss, _ in losses)
    except (TypeError, ValueError):
        scores = ()
    if not one.options or len(scores) != len(one.options):
        raise UserError(
            f"{where}: filtered_resps is {said!r:.80}, expected one text"
            + (f" or a [loss, greedy] for each of {len(one.options)} options" if one.options else "")
        )
    pred = choose(scores)
    return one.answered(variant, pred, None, MISSING if pred is None else "", scores)


def _right(one: Document) -> str:
    return " / ".join(one.answers) if one.gold is None else f"{LETTERS[one.gold]}. {one.options[one.gold]}"


def _value(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"predictions={path}, line {number}: not valid JSON ({error})") from error
    lacks = [name for name in FIELDS if not isinstance(value, dict) or name not in value]
    if lacks:
        raise UserError(f"predictions={path}, line {number}: lacks {', '.join(lacks)} of lmms-eval's samples")
    return value
