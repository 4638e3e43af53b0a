"""What each video of the benchmark holds: a function of (settings, sources, number) and of nothing else.

Everything is drawn uniformly, and wrong options do not depend on the answer beyond being others: neither the question
nor the options say which is right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hvlm.benchmark._vnbench_annotations import PART, TASKS, TRIES
from hvlm.benchmark.niah.pictures import Pictures
from hvlm.benchmark.niah.settings import CLIP_S, Settings

FOLDER = "VNBench"  # of the videos, as in the published file's paths
ORDERED, MOST, MOST_OBJECTS = 4, 6, 4  # needles of an order; of a count; objects of a section
STRETCH = 0.3  # share of the video in which several needles lie, where they need no more
QUESTIONS = {
    "ret_edit1": "What is the secret word?",
    "ret_insert1": "What is the name of the landmark in the picture?",
    "ret_insert2": "What kind of fruit appears in this video?",
    "ord_edit1": "What is the order of the secret words that appeared in the video?",
    "ord_insert1": "What is the order of fruits appearing in the video?",
    "ord_insert2": "What is the order of images appearing in the video?",
    "cnt_edit1": "How many secret words appeared in the video?",
    "cnt_insert1": "How many {plural} appeared in the video?",
    "cnt_edit2": (
        "Some {plural} were inserted into 4 small sections of the video. "
        "How many {plural} appeared in the video in total?"
    ),
}
SUBTITLE = "The secret word is {word}"
NAMES = (
    "Alice", "Bob", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Iris", "Jack", "Kate", "Leo", "Mary", "Nick",
    "Olivia", "Peter", "Quinn", "Rose", "Sam", "Tina", "Uma", "Victor", "Wendy", "Xavier", "Yara", "Zoe",
)  # fmt: skip
KIND = {  # what the pictures of a task are
    "ret_insert1": "landmarks", "ret_insert2": "fruits", "ord_insert1": "fruits", "ord_insert2": "objects",
    "cnt_insert1": "objects", "cnt_edit2": "objects",
}  # fmt: skip


class Source(NamedTuple):
    """A video of the haystack. name: below its folder. source: what it shows. seconds: its duration."""

    path: str
    name: str
    source: str
    bytes: int
    seconds: float


class Segment(NamedTuple):
    """A piece of haystack: so many frames of a video, from a second on. source: what the video shows."""

    path: str
    name: str
    start: float
    frames: int
    source: str


class Needle(NamedTuple):
    """What is put into frames first..last. how: subtitle, page (a full picture) or sticker (things pasted over the
    video). places: of the stickers, (share across, share down)."""

    how: str
    first: int
    last: int
    text: str
    kind: str = ""
    places: tuple[tuple[float, float], ...] = ()


class Planned(NamedTuple):
    """One video. tries: (options, place of the right one). depth, length: the cell of the grid it was made for."""

    number: int
    name: str
    task: str
    depth: float
    length: float
    frames: int
    segments: tuple[Segment, ...]
    needles: tuple[Needle, ...]
    question: str
    tries: tuple[tuple[tuple[str | int, ...], int], ...]


def plan_all(settings: Settings, sources: Sequence[Source], pictures: Pictures) -> list[Planned]:
    """All videos of the grid: tasks × lengths × depths, ``per_cell`` of each.

    Args:
        settings: of the benchmark.
        sources: the haystack.
        pictures: what is put in.
    """
    cells = product(settings.wanted_tasks, settings.wanted_lengths, settings.depths, range(settings.per_cell))
    return [plan(settings, sources, pictures, i, *cell[:3]) for i, cell in enumerate(cells)]


def plan(
    settings: Settings, sources: Sequence[Source], pictures: Pictures, number: int, task: str, length: float,
    depth: float,
) -> Planned:  # fmt: skip
    """Draw one video.

    Args:
        settings, sources, pictures: as for ``plan_all``.
        number: of the video; it draws, together with the seed and the task.
        task: one of VNBench's nine.
        length: seconds.
        depth: share of the video before the needles, 0 to 1.
    """
    rng = np.random.default_rng([settings.seed, TASKS.index(task), number])
    frames = max(1, round(length * settings.fps))
    segments = _segments(rng, settings, sources, frames)
    stem = Path(segments[0].source).stem.replace(PART, "_")
    needles, question, answer, wrong = _content(rng, settings, pictures, task, length)
    placed = _placed(rng, settings, needles, frames, depth)
    tries = _tries(rng, answer, wrong)
    name = f"{stem}{PART}{number:04d}_{task}.mp4"
    return Planned(number, name, task, depth, frames / settings.fps, frames, segments, placed, question, tries)


def rows_of(planned: Planned, fps: float) -> list[dict[str, Any]]:
    """The four rows of a video in VNBench's nine fields."""
    times = [round(n.first / fps, 3) for n in planned.needles for _ in (n.places or (None,))]
    return [
        {
            "video": f"./{FOLDER}/{planned.name}", "question": planned.question, "options": list(options),
            "gt": options[gold], "gt_option": "ABCD"[gold], "needle_time": times, "length": round(planned.length, 3),
            "type": planned.task, "try": attempt,
        }
        for attempt, (options, gold) in enumerate(planned.tries)
    ]  # fmt: skip


def templates(pictures: Pictures) -> dict[str, list[str]]:
    """Everything that questions and needles are made of, for whoever must know what a benchmark has shown."""
    kinds: Mapping[str, list[str]] = {kind: pictures.names(kind) for kind in sorted(set(KIND.values()))}
    return {"questions": list(QUESTIONS.values()), "subtitle": [SUBTITLE], "words": list(NAMES), **kinds}


# ------------------------------------------------------------------------------------------------------------- parts


def _segments(
    rng: np.random.Generator, settings: Settings, sources: Sequence[Source], frames: int
) -> tuple[Segment, ...]:
    """A drawn part of a source; where that is too short, parts of the others follow."""
    order = rng.permutation(len(sources)).tolist()
    segments: list[Segment] = []
    left = frames
    while left:
        source = sources[order[len(segments) % len(order)]]
        count = min(left, max(1, int(source.seconds * settings.fps)))
        start = float(rng.uniform(0, max(0.0, source.seconds - count / settings.fps)))
        segments.append(Segment(source.path, source.name, round(start, 3), count, source.source))
        left -= count
    return tuple(segments)


def _content(
    rng: np.random.Generator, settings: Settings, pictures: Pictures, task: str, length: float
) -> tuple[list[Needle], str, str | int, list[str | int]]:
    """(needles without their places in time, question, answer, what is wrong)."""
    group = task.split("_")[0]
    kind = KIND.get(task)
    names = list(NAMES) if kind is None else pictures.names(kind)
    how = "subtitle" if kind is None else "page"

    def needle(name: str) -> Needle:
        return Needle(how, 0, 0, SUBTITLE.format(word=name) if kind is None else name, kind or "")

    if group == "ret":
        options = _some(rng, names, TRIES)
        return [needle(options[0])], QUESTIONS[task], options[0], list(options[1:])
    if group == "ord":
        shown = _some(rng, names, ORDERED)
        orders = [", ".join(order) for order in permutations(shown)]
        return [needle(name) for name in shown], QUESTIONS[task], orders[0], list(_some(rng, orders[1:], TRIES - 1))
    if task == "cnt_edit2":
        return _sections(rng, pictures)
    most = MOST
    while settings.needs(most) > length:
        most -= 1
    count = int(rng.integers(1, most + 1))
    name = str(rng.choice(names))
    shown = [name] * count if kind else _some(rng, names, count)
    wrong = _some(rng, [n for n in range(1, most + 1) if n != count], TRIES - 1)
    plural = pictures.plural(name) if kind else ""
    return [needle(one) for one in shown], QUESTIONS[task].format(plural=plural), count, list(wrong)


def _sections(rng: np.random.Generator, pictures: Pictures) -> tuple[list[Needle], str, str | int, list[str | int]]:
    """Four sections with one to four things each. The sum is uniform, and so are the numbers beside it."""
    name = str(rng.choice(pictures.names("objects")))
    ways = list(product(range(1, MOST_OBJECTS + 1), repeat=ORDERED))
    total = int(rng.integers(ORDERED, ORDERED * MOST_OBJECTS + 1))
    counts = [way for way in ways if sum(way) == total]
    chosen = counts[int(rng.integers(len(counts)))]
    needles = []
    for count in chosen:
        quarters = rng.permutation(MOST_OBJECTS)[:count]  # one thing in a quarter of the picture at most
        places = [(0.25 + 0.5 * (q % 2), 0.25 + 0.5 * (q // 2)) for q in quarters.tolist()]
        moved = [(x + rng.uniform(-0.08, 0.08), y + rng.uniform(-0.08, 0.08)) for x, y in places]
        needles.append(Needle("sticker", 0, 0, name, "objects", tuple((round(x, 3), round(y, 3)) for x, y in moved)))
    others = [n for n in range(ORDERED, ORDERED * MOST_OBJECTS + 1) if n != total]
    question = QUESTIONS["cnt_edit2"].format(plural=pictures.plural(name))
    return needles, question, total, list(_some(rng, others, TRIES - 1))


def _placed(
    rng: np.random.Generator, settings: Settings, needles: Sequence[Needle], frames: int, depth: float
) -> tuple[Needle, ...]:
    """The needles in time, one after the other with gaps: one at its depth, several in a stretch that lies there."""
    seconds = [settings.needle_s if settings.needle == "still" else float(rng.uniform(*CLIP_S)) for _ in needles]
    lasts = [max(1, round(s * settings.fps)) for s in seconds]
    gap = max(1, round(settings.gap * settings.fps))
    least = min(frames, sum(lasts) + gap * (len(needles) - 1))
    stretch = least if len(needles) == 1 else min(frames, max(round(STRETCH * frames), round(1.5 * least)))
    begin = round(depth * (frames - stretch))
    free = np.sort(rng.integers(0, stretch - least + 1, len(needles)))
    placed, used = [], 0
    for needle, last, shift in zip(needles, lasts, free.tolist(), strict=True):
        first = begin + used + shift
        placed.append(needle._replace(first=first, last=min(frames, first + last) - 1))
        used += last + gap
    return tuple(placed)


def _tries(rng: np.random.Generator, answer: str | int, wrong: Sequence[str | int]) -> tuple[tuple[tuple, int], ...]:
    """The same options in four orders. The right one stands in each place once: who always says one letter is right
    once in four tries, and never in all."""
    tries = []
    for gold in rng.permutation(TRIES).tolist():
        options = [wrong[i] for i in rng.permutation(len(wrong)).tolist()]
        options.insert(gold, answer)
        tries.append((tuple(options), gold))
    return tuple(tries)


def _some(rng: np.random.Generator, items: Sequence[Any], count: int) -> list[Any]:
    """So many different ones, in a random order."""
    return [items[i] for i in rng.permutation(len(items)).tolist()[:count]]
