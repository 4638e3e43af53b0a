"""Predictions about VNBench as its authors publish them, in either of their line formats.

    {"question_id": "video0_ret_edit1_0", "pred": "B", "gt": "B", "type": "ret_edit1", "try": 0, "prompt": "..."}
    {"video_path": "./VNBench/video0_ret_edit1.mp4", "task_type": "ret_edit1", "try": 0, "prompt", "pred", "gt"}

The tries of a video belong together by ``question_id`` without its last two characters, or by ``video_path``: never by
what the name ends with, which differs from the type for two of the tasks. ``pred`` null (or empty) is no answer, and
counts as wrong. What a language model judged (``gpt_judge``, ``judge_result``) is not looked at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hvlm.benchmark._vnbench_annotations import TRIES, Video, source_of, stem_of
from hvlm.errors import UserError
from hvlm.evaluation.answers import MISSING, UNREAD, Reading, read_answer
from hvlm.evaluation.predictions import lines_of
from hvlm.evaluation.scores import Prediction
from hvlm.prompts import LETTERS

BY_ID, BY_PATH = ("question_id", "pred", "gt", "type", "try"), ("video_path", "pred", "gt", "task_type", "try")
PARSERS = ("official", "first", "strict")
_FOUR = LETTERS[:TRIES]
# A letter with its sign, and the text of its option to the last character of the line that is no space; behind the
# sign there may be nothing but spaces, of which one is the text.
_OPTION = re.compile(r"^\(?([A-D])[.):]\s*(\S(?:.*\S)?|.)\s*$", re.MULTILINE)


def parse(written: str | None, options: tuple[str, ...], parser: str) -> Reading:
    """Which option an answer means.

    Args:
        written: the answer, None where there is none.
        options: what was offered.
        parser: ``official`` (of VideoNIAH's evaluation/eval.py): of the text before the first full stop the first of A,
            B, C, D, in this order, that stands anywhere in it, also inside a word, so that "Answer: B" is A. ``first``
            (of its llava_examples): the first character. ``strict``: ``hvlm.evaluation.answers.read_answer``.
    """
    if written is None or not written.strip():
        return Reading(None, MISSING)
    if parser == "strict":
        return read_answer(written, options)
    if parser == "first":
        found = written[0] if written[0] in LETTERS[: len(options)] else None
    else:
        head = written.split(".")[0]
        found = next((letter for letter in _FOUR[: len(options)] if letter in head), None)
    return Reading(None, UNREAD) if found is None else Reading(LETTERS.index(found))


def is_published(path: Path) -> bool:
    """Whether a file is in one of the two formats (and not in that of ``hvlm.evaluation.predictions``).

    Raises:
        UserError: the file cannot be read, or its first line is not a JSON object.
    """
    number, line = lines_of(path)[0]
    value = _value(line, path, number)
    return "options" not in value and ("video_path" in value or "question_id" in value) and "answer" not in value


def read_published(
    path: Path, variant: str, parser: str, annotated: Mapping[tuple[str, str], Video] | None = None
) -> list[Prediction]:
    """The lines of a file as predictions, in its order; tries that it lacks are not among them.

    Args:
        path: of the file.
        variant: stands in the predictions.
        parser: see ``parse``.
        annotated: {(name, type): video}, see ``by_name``, for depth and length and to compare the right letters.

    Raises:
        UserError: names the file and the line that is no JSON, lacks a field or holds what cannot be scored, or that
            stands there twice.
    """
    found: dict[tuple[str, int], Prediction] = {}
    tasks: dict[str, str] = {}
    for number, line in lines_of(path):
        where = f"{path}, line {number}"
        p = _prediction(_value(line, path, number), where, variant, parser, annotated)
        if tasks.setdefault(p.question_id, p.task) != p.task:
            raise UserError(f"{where}: {p.question_id} is of type {p.task!r}, and of {tasks[p.question_id]!r} above")
        if (p.question_id, p.attempt) in found:
            raise UserError(f"{where}: try {p.attempt} of {p.question_id} stands here twice; leave one of them out")
        found[p.question_id, p.attempt] = p
    return list(found.values())


def by_name(videos: Sequence[Video]) -> dict[tuple[str, str], Video]:
    """{(name, type): video} for every name that published lines may give it."""
    names: dict[tuple[str, str], Video] = {}
    for video in videos:
        own = (video.stem, f"{video.stem}_{video.task}", f"{source_of(video.stem)}_{video.task}")
        for name in own:
            names.setdefault((name, video.task), video)
    return names


def _value(line: str, path: Path, number: int) -> dict[str, Any]:
    where = f"{path}, line {number}"
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{where}: not valid JSON ({error}): {line.strip()[:60]!r}; expected one object a line, with double quotes"
        ) from error
    if not isinstance(value, dict):
        raise UserError(f"{where}: holds {value!r:.40}, expected an object with {', '.join(BY_ID)}")
    return value


def _prediction(
    value: Mapping[str, Any], where: str, variant: str, parser: str, annotated: Mapping[tuple[str, str], Video] | None
) -> Prediction:
    needed = BY_PATH if "video_path" in value else BY_ID
    if missing := [name for name in needed if name not in value]:
        raise UserError(f"{where}: {', '.join(missing)} missing; a line needs {', '.join(needed)}")
    attempt = value["try"]
    attempt = int(attempt) if isinstance(attempt, str) and re.fullmatch(r"\d{1,9}", attempt) else attempt
    if isinstance(attempt, bool) or not isinstance(attempt, int) or not 0 <= attempt < TRIES:
        raise UserError(f"{where}: try is {value['try']!r:.40}, expected 0 to {TRIES - 1}")
    task = str(value[needed[3]])
    if "video_path" in value:
        group = str(value["video_path"])
    else:
        group = str(value["question_id"])[:-2]
    name = stem_of(group)
    pred = value["pred"]
    if pred is not None and not isinstance(pred, str):
        raise UserError(f"{where}: pred is {pred!r:.40}, expected what the model wrote, or null")
    prompt = value.get("prompt")
    question, options = _offered(prompt if isinstance(prompt, str) else "")
    gold = _gold(value["gt"], options, where)
    video = (annotated or {}).get((name, task))
    if video is not None and attempt in video.tries:
        options, right = video.tries[attempt]
        question = video.question
        if right != gold:
            raise UserError(
                f"{where}: gt is {LETTERS[gold]}, and the annotations say {LETTERS[right]} for try {attempt} of "
                f"{video.path}; give the annotations that the predictions were made with, or none"
            )
    reading = parse(pred, options, parser)
    return Prediction(
        group, source_of(name), task, attempt, options, gold, reading.index, None, variant, pred,
        problem=reading.problem, question=question, depth=video and video.depth, length=video and video.length,
    )  # fmt: skip


def _offered(prompt: str) -> tuple[str, tuple[str, ...]]:
    """The question of a prompt, and its options; the letters themselves where the prompt does not list four."""
    found = dict(_OPTION.findall(prompt))
    lines = [line.strip() for line in prompt.strip().splitlines()]
    question = lines[0].removeprefix("<image>").strip() if lines else ""
    options = tuple(found[letter] for letter in _FOUR if letter in found)
    return question, options if len(options) == len(set(options)) == TRIES else tuple(_FOUR)


def _gold(value: Any, options: tuple[str, ...], where: str) -> int:
    """A letter, an index from 0, or an option's text."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(options):
        return value
    text = str(value).strip()
    if text in tuple(LETTERS[: len(options)]):
        return LETTERS.index(text)
    if isinstance(value, str) and options.count(text) == 1:
        return options.index(text)
    raise UserError(f"{where}: gt is {value!r:.40}, expected a letter, {_FOUR[0]} to {_FOUR[-1]}, or 0 to {TRIES - 1}")
