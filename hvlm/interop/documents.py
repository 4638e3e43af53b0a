"""The questions that another evaluator's answers are about, in the order of their file.

A table with a row a question (.jsonl, .json, .csv, .tsv, .parquet), whoever published it, or a file of predictions of
this program, where only the questions count. Columns have one of the names below.
"""

from __future__ import annotations

import ast
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hvlm.data.options import gold_of
from hvlm.data.question_file import listed, made_of, of_columns, values_of
from hvlm.errors import UserError
from hvlm.evaluation.predictions import CHOICE, OPEN, read_predictions
from hvlm.evaluation.scores import Prediction
from hvlm.prompts import LETTERS, bare_options

ID = ("question_id", "id", "index")
VIDEO = ("video", "videoID", "video_path", "video_id", "key")
TASK = ("task_type", "task", "category")
OPTIONS = ("options", "candidates", "choices")
TABLES = (".csv", ".tsv")
BLIND = "blind"


class Document(NamedTuple):
    """A question. key: of its video. options: () of an open question, which has ``answers`` in place of ``gold``. row:
    as it stands in the file."""

    question_id: str
    key: str
    task: str
    attempt: int
    question: str
    options: tuple[str, ...]
    gold: int | None
    answers: tuple[str, ...]
    row: Mapping[str, Any]

    def says(self, target: str) -> bool:
        """Whether a text is this question's right answer in one of its forms: text, letter, place from 0."""
        forms = {*self.answers, str(list(self.answers))} | {
            str(self.row.get(name)) for name in ("answer", "gold") if name in self.row
        }
        if self.gold is not None:
            letter, text = LETTERS[self.gold], self.options[self.gold]
            forms |= {letter, f"({letter})", str(self.gold), text, f"{letter}. {text}", f"({letter}) {text}"}
        return _folded(target) in {_folded(form) for form in forms}

    def answered(
        self, variant: str, pred: int | None, text: str | None, problem: str, scores: tuple[float, ...] | None = None
    ) -> Prediction:
        """What was answered to it."""
        return Prediction(
            self.question_id, self.key, self.task, self.attempt, self.options, self.gold, pred, scores, variant, text,
            self.answers, problem, self.question,
        )  # fmt: skip


def read_documents(path: Path, setting: str) -> list[Document]:
    """All rows of the file, in its order.

    Args:
        path: of the file.
        setting: whose value it is, for messages.

    Raises:
        UserError: the file cannot be read, or has rows that are no question with its right answer.
    """
    rows = list(values(path, setting))
    if rows and path.suffix == ".jsonl" and is_own(rows[0][1]):
        return [_of_prediction(p) for p in one_variant(read_predictions(path), None, f"{setting}={path}")]
    table = path.suffix.lower() in TABLES
    none = "holds no question; a row needs question, answer, and options if it has any"
    out = made_of(rows, lambda number, row: document(number, row, table), f"{setting}={path}", none)
    names = Counter((one.question_id, one.attempt) for one in out)
    if twice := [name for (name, _), count in names.items() if count > 1]:
        raise UserError(f"{setting}={path}: two rows have the id {twice[0]!r}; give every question its own")
    return out


def values(path: Path, setting: str) -> Iterable[tuple[int, Any]]:
    """(number, row) of a table. UserError where it cannot be read."""
    if path.suffix == ".xlsx":
        raise UserError(
            f"{setting}={path}: Excel files are not read; run VLMEvalKit with PRED_FORMAT=tsv, or save it so"
        )
    if path.suffix != ".parquet":
        return values_of(path, f"{setting}={path}", "questions")
    try:
        from pyarrow import parquet

        return enumerate(parquet.read_table(path).to_pylist(), start=1)
    except ImportError:
        raise UserError(f"{setting}={path}: Parquet is read by pyarrow: pip install 'hvlm[data]'") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{setting}={path}: cannot be read as Parquet ({error})") from error


def is_own(row: Any) -> bool:
    """Whether a row is one of this program's files of predictions."""
    return isinstance(row, dict) and (set(CHOICE) <= set(row) or set(OPEN) <= set(row))


def one_variant(predictions: Sequence[Prediction], variant: str | None, where: str) -> list[Prediction]:
    """Those of one variant: the named one, else the only one that is not the blind control. UserError if there is none
    or a choice."""
    known = list(dict.fromkeys(p.variant for p in predictions))
    seeing = [name for name in known if name != BLIND and not name.endswith(f"_{BLIND}")]
    wanted = variant or (seeing[0] if len(seeing) == 1 else None)
    if wanted not in known:
        found = ", ".join(known)
        raise UserError(f"{where}: holds the variants {found}; say with variant= which of them is meant")
    return [p for p in predictions if p.variant == wanted]


def document(number: int, row: Any, table: bool) -> Document:
    """A row of a table. Raises ValueError, which goes on after the row's number."""
    if not isinstance(row, Mapping):
        raise ValueError("is no object")
    value = of_columns(row) if table else {k: v for k, v in row.items() if v is not None and v != ""}
    asked = value.get("question")
    if asked is None or not str(asked).strip():
        raise ValueError(f"lacks question; it has {', '.join(map(str, list(value)[:12]))}")
    given = next((value[name] for name in OPTIONS if name in value), ())
    if table:  # the cell itself: Python's writing of a list counts, too
        given = next((row[name] for name in OPTIONS if (row.get(name) or "").strip()), given)
    raw = _texts(given)
    options = bare_options(raw)
    if len(set(options)) < len(options):
        raise ValueError("has two equal options; each must be another answer")
    if options and not 2 <= len(options) <= len(LETTERS):
        raise ValueError(f"has {len(options)} options, expected 2 to {len(LETTERS)}")
    gold: int | None = None
    answers: tuple[str, ...] = ()
    if options:
        gold = _gold(value, raw, options)
    else:
        said = value.get("answers", value.get("answer"))
        answers = tuple(str(one) for one in (said if isinstance(said, list | tuple) else [said]) if one is not None)
        if not answers:
            raise ValueError("lacks answer; without the right answers there is nothing to compare with")
    attempt = str(value.get("try", 0))
    if not attempt.isdecimal():
        raise ValueError(f"has try {attempt!r:.60}, expected 0, 1, 2, ...")
    return Document(
        str(_first(value, ID, f"row{number}")), str(_first(value, VIDEO, f"row{number}")),
        str(_first(value, TASK, "question")), int(attempt), str(asked), options, gold, answers, dict(row),
    )  # fmt: skip


def _of_prediction(p: Prediction) -> Document:
    return Document(p.question_id, p.key, p.task, p.attempt, p.question, p.options, p.gold, p.answers, {})


def _gold(value: Mapping[str, Any], raw: Sequence[str], options: Sequence[str]) -> int:
    place = value.get("gold")
    if place is not None:
        if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < len(options):
            raise ValueError(f"has gold {place!r}, expected a place from 0 to {len(options) - 1}")
        return place
    if "answer" not in value:
        raise ValueError("lacks answer; without the right answers there is nothing to compare with")
    said = str(value["answer"]).strip()
    for texts in (raw, options):
        try:
            place = gold_of(value["answer"], texts)
        except ValueError as error:
            why = error
            continue
        if len(said) == 1 and said in LETTERS[: len(options)] and place != LETTERS.index(said):
            raise ValueError(f"has answer {said!r}, a letter and another option's text; give its place from 0 as gold")
        return place
    raise ValueError(f"has answer {value['answer']!r:.60}, expected {why}")


def _texts(given: Any) -> list[str]:
    """The options of a row: a list, an object whose keys are the letters, or a text for all."""
    if isinstance(given, str):
        given = _listed(given.strip())
    if isinstance(given, Mapping) and [str(name).strip() for name in given] == list(LETTERS[: len(given)]):
        given = list(given.values())
    if not isinstance(given, list | tuple) or not all(isinstance(one, str | int | float) for one in given):
        raise ValueError(f"has options {given!r:.60}, expected a list of texts")
    return [str(one).strip() for one in given]


def _listed(text: str) -> list[Any]:
    """Options in one cell: a list in the writing of Python or JSON, or texts with ``|`` between them."""
    if text.startswith("["):
        for read in (json.loads, ast.literal_eval):
            try:
                found = read(text)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
            if isinstance(found, list):
                return found
    return text.split("\n") if "\n" in text else listed(text)


def _first(value: Mapping[str, Any], names: Sequence[str], otherwise: str) -> Any:
    return next((value[name] for name in names if value.get(name) not in (None, "")), otherwise)


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()
