"""Predictions from one format into another: this program's, lmms-eval's, VLMEvalKit's."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from hvlm.errors import UserError
from hvlm.evaluation.predictions import lines_of, read_predictions, write_predictions
from hvlm.evaluation.scores import Prediction
from hvlm.interop.documents import Document, is_own, one_variant, read_documents, values
from hvlm.interop.lmms_samples import is_samples, read_samples, write_samples
from hvlm.interop.vlmeval_table import COLUMN, read_table, write_table

Format = Literal["hvlm", "lmms_eval", "vlmevalkit"]
NAMES: dict[Format, str] = {"hvlm": "{}.predictions.jsonl", "lmms_eval": "{}_samples.jsonl", "vlmevalkit": "{}.tsv"}


def format_of(path: Path) -> Format:
    """Whose format a file of predictions is in, by its first row. UserError where it is nobody's."""
    if path.suffix == ".jsonl":
        try:
            first = json.loads(lines_of(path)[0][1])
        except (ValueError, RecursionError) as error:
            raise UserError(f"predictions={path}, line 1: not valid JSON ({error})") from error
    else:
        first = next((row for _, row in itertools.islice(values(path, "predictions"), 1)), None)
    if is_samples(first):
        return "lmms_eval"
    if isinstance(first, dict) and COLUMN in first:
        return "vlmevalkit"
    if is_own(first):
        return "hvlm"
    found = ", ".join(map(str, list(first)[:12])) if isinstance(first, dict) else "no row"
    raise UserError(
        f"predictions={path}: has {found}; expected rows of an evaluation (question_id, ...), of lmms-eval "
        "(doc_id, filtered_resps, ...) or of VLMEvalKit (..., prediction)"
    )


def convert(
    path: Path, to: Format | None = None, annotations: Path | None = None, out: Path | None = None,
    variant: str | None = None,
) -> tuple[Path, int]:  # fmt: skip
    """Read a file of predictions and write it in another format.

    Args:
        path: of the file.
        to: the other format; None: this program's.
        annotations: the table of questions in its order, which lmms-eval's files need; written files then have its
            order (and VLMEvalKit's its columns).
        out: the file to write; None: beside the one that is read.
        variant: names what another program's file says; of this program's file, which of its variants is meant.

    Returns:
        The file, and how many predictions are in it.

    Raises:
        UserError: nothing is written then.
    """
    given = format_of(path)
    to = to or "hvlm"
    if given == to:
        raise UserError(f"predictions={path}: is in the format to={to} already; to= takes {', '.join(NAMES)}")
    documents = None if annotations is None else read_documents(annotations, "annotations")
    if given == "lmms_eval":
        if documents is None:
            raise UserError(
                f"predictions={path}: lmms-eval's samples do not say what was asked; name the task's table of "
                "questions with annotations=FILE"
            )
        predictions = read_samples(path, documents, variant or "lmms_eval")
    elif given == "vlmevalkit":
        predictions = read_table(path, variant or "vlmevalkit")
    else:
        predictions = one_variant(read_predictions(path), variant, f"predictions={path}")
    if documents is not None and given != "lmms_eval":
        predictions = _in_order(predictions, documents, path)
    out = out or path.with_name(NAMES[to].format(path.stem))
    if out.resolve() in {path.resolve(), annotations and annotations.resolve()}:
        raise UserError(f"out={out}: is what is read; name another file")
    if to == "vlmevalkit":
        write_table(out, predictions, documents)
    elif to == "lmms_eval":
        write_samples(out, predictions)
    else:
        write_predictions(out, predictions)
    return out, len(predictions)


def _in_order(predictions: Sequence[Prediction], documents: Sequence[Document], path: Path) -> list[Prediction]:
    """The predictions in the order of the documents: found by their whole names, else by what follows the last slash,
    which is the table's id in the names that an evaluation gives."""
    by_name = {(p.question_id, p.attempt): p for p in predictions}
    by_end: dict[tuple[str, int], list[Prediction]] = {}
    for p in predictions:
        by_end.setdefault((p.question_id.rpartition("/")[2], p.attempt), []).append(p)
    out = []
    for one in documents:
        name = (one.question_id, one.attempt)
        ends = by_end.get((one.question_id.rpartition("/")[2], one.attempt), [])
        found = by_name.get(name) or (ends[0] if len(ends) == 1 else None)
        if found is None or len(found.options) != len(one.options) or found.gold != one.gold:
            what = "no prediction" if found is None else "a prediction with other options or another right answer"
            raise UserError(
                f"predictions={path}: {what} for question {one.question_id!r} of annotations=; name the table that was "
                "asked, whole"
            )
        out.append(found)
    if len(out) != len(predictions):
        raise UserError(
            f"predictions={path}: {len(predictions)} predictions, but annotations= has {len(out)} questions; name the "
            "table that was asked"
        )
    return out
