"""Questions and answers of many people, as ``head=classify`` is scored on them: published files, or rows."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hvlm.data import published
from hvlm.data.people import weighed
from hvlm.data.published import Entry, vqav2
from hvlm.data.question_file import Row, read_questions
from hvlm.errors import UserError, first_few


def read_answers(path: Path, setting: str) -> list[Row]:
    """What people answered: a published file of VQAv2, GQA, VizWiz or TextVQA (``hvlm.data.published``), annotations of
    one's own in VQA's form, or a file of questions in any form of ``benchmark.questions``, in which ``answers`` may be
    a list of what many people said.

        {"annotations": [{"question_id": 1, "question": "how many ?", "video": "a.mp4", "answers": [{"answer": "2"}]}]}

    ``image_id`` may stand for ``video``.

    Questions that stand in a file of their own, as VQA publishes them, are looked for beside it: the same name with
    ``annotations`` replaced by ``questions``, or ``questions.json``.

    Raises:
        UserError: one line that names what is at fault.
    """
    where = f"{setting}={path}"
    try:
        name = published.set_of(path)
        value = published.loaded(path) if name is None and path.suffix.lower() == ".json" else None
        if name is not None:
            return _rows(published.read(path, name), where)
        if isinstance(value, dict) and vqav2.KEY in value:
            return _rows(vqav2.rows_of(value, path), where)
    except UserError as error:
        text = str(error)
        raise error if text.startswith(where) else UserError(f"{setting}={text}") from error
    return [row._replace(question=weighed(row.question or {})) for row in read_questions(path, setting, False)]


def _rows(entries: Iterable[tuple[int, Entry | str]], where: str) -> list[Row]:
    """UserError, one line, for rows that are malformed or are no questions."""
    rows: list[Row] = []
    wrong: list[str] = []
    for number, entry in entries:
        if isinstance(entry, str):
            wrong.append(entry)
        elif entry.question is None:
            wrong.append(f"row {number} is a caption; head=classify is scored on questions")
        else:
            rows.append(Row(number, dict(entry.question), entry.picture, None, None))
    if wrong:
        raise UserError(f"{where}: {first_few(wrong)}")
    if not rows:
        raise UserError(f"{where}: its annotations are empty")
    return rows
