"""Questions with what was answered, what is right and what was answered without the video, as parts of a page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from hvlm.evaluation.html import image, table
from hvlm.evaluation.open_scores import is_right
from hvlm.evaluation.predictions import read_predictions
from hvlm.evaluation.report_data import BLIND, pictures
from hvlm.evaluation.scores import Prediction

OPEN = 3  # contact sheets of a kind that are seen at once
WRONG = 50  # wrong answers that are listed, beside those with pictures
PREDICTIONS = "predictions.jsonl"
Shown = dict[tuple[str, str], Prediction]  # of (clip, question)


def answers(run_dir: Path) -> list[str]:
    """Wrong answers first: those with a contact sheet, a list of more, then the sheets of right ones."""
    sheets = sheets_of(run_dir)
    wrong = {name: lines for name, lines in sheets.items() if any(line.get("right") is False for line in lines)}
    right = {name: lines for name, lines in sheets.items() if name not in wrong}
    predictions = read_predictions(run_dir / PREDICTIONS) if (run_dir / PREDICTIONS).exists() else []
    blind = [p for p in predictions if p.variant == BLIND]
    by_clip, by_try = shown(blind), {(p.question_id, p.attempt): p for p in blind}
    parts = []
    listed = _wrong_answers(predictions)
    if wrong or listed:
        parts.append("<h2>Wrong answers</h2>")
        parts += _folded(list(_sheets(run_dir / "clips", wrong, "wrong", by_clip)))
    if listed:
        head = ("task", "video", "question", "options", "right", "answered", "without video")
        first = f"the first {WRONG} of them" if len(listed) > WRONG else "all of them"
        parts.append(f'<p class="small">{len(listed)} questions were answered wrongly with the video; {first}.</p>')
        rows = [(*_told(p), _said(by_try.get((p.question_id, p.attempt)))) for p in listed[:WRONG]]
        parts.append(f"<details><summary>The questions</summary>{table(head, rows)}</details>")
    if right:
        seen = _folded(list(_sheets(run_dir / "clips", right, "right", by_clip)))
        parts += ["<h2>Some clips with right answers</h2>", *seen]
    return parts


def _folded(parts: Sequence[str]) -> list[str]:
    """All but the first few, folded."""
    more = "".join(parts[OPEN:])
    clips = f"{len(parts) - OPEN} more clip{'s' * (len(parts) - OPEN != 1)}"
    return [*parts[:OPEN], *([f"<details><summary>{clips}</summary>{more}</details>"] if more else [])]


def sheets_of(run_dir: Path) -> dict[str, list[dict[str, Any]]]:
    """{contact sheet: what was asked about it}, of an evaluation's clips."""
    sheets: dict[str, list[dict[str, Any]]] = {}
    for line in pictures(run_dir / "clips"):
        if line.get("sheet") is None:
            continue
        sheets.setdefault(line["sheet"], []).append(line)
    return sheets


def shown(predictions: Iterable[Prediction]) -> Shown:
    """Of each question about a clip the first wrong try, or the first: what ``clips.jsonl`` shows, too."""
    found: Shown = {}
    for p in predictions:
        place = (p.key, p.question)
        if place not in found or (is_right(found[place]) and not is_right(p)):
            found[place] = p
    return found


def side_by_side(
    run_dir: Path, answered: Mapping[str, Shown], blind: Shown, most: int, mark: Sequence[str] = (" ✓", " ✗")
) -> list[str]:
    """Some clips of an evaluation with what several models answered.

    Args:
        run_dir: whose contact sheets are shown.
        answered: {model: its answers}.
        blind: answers without the video.
        most: sheets.
        mark: behind a right and behind a wrong answer.
    """
    parts = []
    for name, lines in list(sheets_of(run_dir).items())[:most]:
        rows = []
        for line in lines:
            place = (line["key"], line["question"])
            each = []
            for of in (*answered.values(), blind):
                p = of.get(place)
                each.append("" if p is None else _said(p) + mark[not is_right(p)])
            rows.append((line.get("task", ""), line["question"], line["answer"], *each))
        head = ("task", "question", "right answer", *answered, "without video")
        parts += [f"<p>{escape(str(lines[0]['key']))}</p>", image(run_dir / "clips", name), table(head, rows)]
    return parts


def _wrong_answers(predictions: Iterable[Prediction]) -> list[Prediction]:
    """Of the model that saw the video: the first wrong try of each question."""
    found: dict[tuple[str, str], Prediction] = {}
    for p in predictions:
        if p.variant != BLIND and not is_right(p):
            found.setdefault((p.variant, p.question_id), p)
    return list(found.values())


def _told(p: Prediction) -> tuple[str, ...]:
    right = p.options[p.gold] if p.options and p.gold is not None else " / ".join(p.answers)
    return (p.task, p.key, p.question, " | ".join(p.options), right, _said(p))


def _said(p: Prediction | None) -> str:
    if p is None:
        return ""
    return p.options[p.pred] if p.pred is not None else p.text or "(nothing)"


def _sheets(folder: Path, sheets: Mapping[str, list[dict[str, Any]]], kind: str, blind: Shown) -> Iterable[str]:
    for name, lines in sheets.items():
        rows = []
        for line in sorted(lines, key=lambda line: line.get("right") is not False):
            mark = {True: "right", False: "WRONG"}.get(line.get("right"), "")
            options = " | ".join(map(str, line.get("options") or ()))
            without = _said(blind.get((line["key"], line["question"])))
            asked = (line.get("task", ""), line["question"], options, line["answer"])
            rows.append((mark, *asked, line["prediction"], without))
        head = ("", "task", "question", "options", "right answer", "answered", "without video")
        about = f"<p>{escape(str(lines[0]['key']))}</p>{image(folder, name)}"
        yield f'<div class="{kind}">{about}{table(head, rows)}</div>'
