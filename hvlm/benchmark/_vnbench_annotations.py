"""VNBench's annotation file: a JSON list with one object for each video and try.

    {"video": "./VNBench/video0_ret_edit1.mp4", "question": "What is the secret word?", "options": ["Al", "Bo", ...],
     "gt": "Bo", "gt_option": "B", "needle_time": [12.0], "length": 37.5, "type": "ret_edit1", "try": 0}

The tries of a video belong together by the video's path alone: in the published file the types ret_insert1 and
ret_insert2 are swapped against the ends of the files' names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hvlm.errors import UserError, first_few
from hvlm.prompts import LETTERS

TASKS = (
    "ret_edit1", "ret_insert1", "ret_insert2", "ord_edit1", "ord_insert1", "ord_insert2", "cnt_edit1", "cnt_edit2",
    "cnt_insert1",
)  # fmt: skip
FIELDS = ("video", "question", "options", "gt", "gt_option", "needle_time", "length", "type", "try")
TRIES = 4
PART = "+"  # in the name of a made video: between the haystack's name and the number of the video made from it
_NEEDED = ("video", "question", "options", "type", "try")


class Video(NamedTuple):
    """All tries of one video.

    path: as the file says it. task: the ``type`` of its rows. tries: {number: (options, place of the right one)}.
    needle_time: seconds at which each needle starts. length: of the video in seconds, None where it is not said.
    """

    path: str
    task: str
    question: str
    tries: Mapping[int, tuple[tuple[str, ...], int]]
    needle_time: tuple[float, ...]
    length: float | None

    @property
    def depth(self) -> float | None:
        """Where the needles are, 0 (beginning) to 1 (end), their mean; None where that is not said."""
        if not self.length or not self.needle_time:
            return None
        return min(1.0, max(0.0, sum(self.needle_time) / len(self.needle_time) / self.length))

    @property
    def stem(self) -> str:
        return stem_of(self.path)


def stem_of(path: str) -> str:
    """The name of a video file without folders and ending."""
    name = path.replace("\\", "/").rpartition("/")[2]
    return re.sub(r"\.(?:mp4|webm|mkv|mov|avi|m4v)$", "", name, flags=re.IGNORECASE)


def source_of(stem: str) -> str:
    """The haystack that a video was made of: in its file's ``stem`` what stands before the task. Errors are clustered
    by it."""
    while ended := re.fullmatch(r"(.+)_(?:ret|ord|cnt)_(?:edit|insert)\d?", stem):
        stem = ended[1]
    return stem.split(PART)[0]


def read_annotations(path: Path, setting: str = "benchmark.annotations") -> list[Video]:
    """The videos of an annotation file, in its order.

    Args:
        path: of the file.
        setting: whose value the path is, for messages.

    Raises:
        UserError: no JSON list (a cut file, say), or malformed rows, of which the first are named by their number.
    """
    where = f"{setting}={path}"
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror}); name VNBench-main-4try.json") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 ({error}); copy the file again") from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{where}: not valid JSON ({error}), cut short or damaged; expected one list of objects; copy it again"
        ) from error
    if not isinstance(rows, list) or not rows:
        found = "an empty list" if rows == [] else f"{type(rows).__name__} ({rows!r:.40})"
        raise UserError(f"{where}: holds {found}; expected a list of objects with {', '.join(FIELDS)}")
    videos: dict[str, Video] = {}
    wrong: list[str] = []
    for number, value in enumerate(rows, start=1):
        try:
            _add(videos, value)
        except ValueError as error:
            wrong.append(f"row {number} {error}")
    if wrong:
        raise UserError(f"{where}: {first_few(wrong, 'rows')}")
    return list(videos.values())


def _add(videos: dict[str, Video], value: Any) -> None:
    """Raises ValueError, which goes on after the row's number."""
    if not isinstance(value, dict):
        raise ValueError(f"is {value!r:.40}; expected an object with {', '.join(FIELDS)}")
    if missing := [name for name in _NEEDED if value.get(name) is None]:
        found = ", ".join(map(str, list(value)[:12])) or "nothing"
        raise ValueError(f"lacks {', '.join(missing)}; it has {found}, expected {', '.join(FIELDS)}")
    path, task, question = (_text(value, name) for name in ("video", "type", "question"))
    number = value["try"]
    number = int(number) if isinstance(number, str) and number.isdecimal() else number
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < TRIES:
        raise ValueError(f"has try {number!r:.40}, expected 0 to {TRIES - 1}")
    options = _options(value["options"])
    one = options, _gold(value, options)
    times, length = _times(value.get("needle_time")), value.get("length")
    if length is not None and not (_is_second(length) and length > 0):
        raise ValueError(f"has length {length!r:.40}, expected the video's seconds, or null")
    known = videos.get(path)
    if known is None:
        videos[path] = Video(path, task, question, {number: one}, times, None if length is None else float(length))
        return
    if number in known.tries:
        raise ValueError(f"is try {number} of {path}, which stands there already")
    if known.task != task:
        raise ValueError(f"has type {task!r} for {path}, whose earlier tries have {known.task!r}")
    videos[path] = known._replace(tries={**known.tries, number: one})


def _text(value: Mapping[str, Any], name: str) -> str:
    field = value[name]
    if not isinstance(field, str) or not field.strip():
        raise ValueError(f"has {name} {field!r:.40}, expected text")
    return field


def _options(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(o, str | int) and not isinstance(o, bool) for o in value):
        raise ValueError(f"has options {value!r:.40}, expected a list of texts or whole numbers")
    options = tuple(str(option) for option in value)
    if not 2 <= len(options) <= len(LETTERS):
        raise ValueError(f"has options {value!r:.60}, expected 2 to {len(LETTERS)}")
    return options


def _gold(value: Mapping[str, Any], options: Sequence[str]) -> int:
    """The place that ``gt_option`` and ``gt`` say; one of them is enough, and both must say the same."""
    letter, text = value.get("gt_option"), value.get("gt")
    if letter is None and text is None:
        raise ValueError("lacks gt and gt_option; one of them says the right option")
    if letter is not None and letter not in tuple(LETTERS[: len(options)]):  # "AB" is in the string, and is no letter
        raise ValueError(f"has gt_option {letter!r:.40}, expected a letter up to {LETTERS[len(options) - 1]}")
    if text is not None and str(text) not in options:
        raise ValueError(f"has gt {text!r:.40}, which is none of its options {list(options)!r:.80}")
    if letter is None and options.count(str(text)) > 1:
        raise ValueError(f"has gt {text!r:.40}, which is two of its options, and no gt_option")
    place = options.index(str(text)) if letter is None else LETTERS.index(letter)
    if text is not None and options[place] != str(text):
        raise ValueError(f"has gt_option {letter}, which is {options[place]!r}, and gt {text!r:.40}")
    return place


def _times(value: Any) -> tuple[float, ...]:
    value = [] if value is None else value if isinstance(value, list) else [value]
    value = [second for one in value for second in (one if isinstance(one, list) else [one])]  # by section, perhaps
    if not all(_is_second(second) for second in value):
        raise ValueError(f"has needle_time {value!r:.40}, expected a list of seconds")
    return tuple(float(second) for second in value)


def _is_second(value: Any) -> bool:
    """Whether it is a number that can be a moment of a video: not infinite, nor too large to be computed with."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9
