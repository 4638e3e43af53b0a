"""The jobs of the worker processes. A sample is a function of (recipe, split, number)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from hvlm.data import decode_process
from hvlm.data.shard_index import write_shard
from hvlm.data.video import VideoDecodeError
from hvlm.dataset import _needles_text as text
from hvlm.dataset._haystack import Haystack, Stretch, Video, decode_source
from hvlm.dataset._needles_draw import encode, render
from hvlm.dataset._needles_scene import SETS, Recipe, plan
from hvlm.dataset._needles_sets import STORIES
from hvlm.dataset._needles_story import render as render_story

SPLITS = ("train", "val", "test", "text")  # "text": chats without a video, for training only


def decode(video: Video, out: Path, size: int, timeout: float) -> dict[str, Stretch] | str:
    """The decoded stretches by split, or in one line why there are none; after ``timeout`` seconds there are none."""
    try:
        return decode_process.result(decode_source, video, out, size, timeout=timeout)
    except VideoDecodeError as error:
        return error.reason


def make_shard(recipe: Recipe, path: Path, split: str, numbers: Iterable[int], stretches: list[Stretch]) -> dict:
    haystack = None if split == "text" else Haystack(stretches, recipe.size)
    samples = [make_sample(recipe, haystack, split, number) for number in numbers]
    files = [(info["key"], ({"mp4": video} if video else {}) | {"json": _to_json(info)}) for info, video in samples]
    return write_shard(path, files, split, [info.get("domain", "text") for info, _ in samples])


def _to_json(info: dict[str, Any]) -> bytes:
    return json.dumps(info, sort_keys=True, separators=(",", ":")).encode()


def make_sample(recipe: Recipe, haystack: Haystack | None, split: str, number: int) -> tuple[dict, bytes | None]:
    """One sample: (its JSON, its video). ``haystack`` None: a chat without a video."""
    rng = np.random.default_rng([recipe.seed, SETS.index(recipe.set), SPLITS.index(split), number])
    key = f"{recipe.set}-{split}-{number:06d}"
    if haystack is None:
        return {"key": key, "messages": text.chat(rng)}, None
    if recipe.set in STORIES:
        return _make_story(rng, recipe, haystack, split, number, key)
    scene = plan(rng, recipe, number)
    background, where = haystack.clip(rng, recipe.frames, recipe.fps)
    scenes = [needle for needle in scene.needles if needle.kind == "scene"]
    pictures = [haystack.clip(rng, 1, recipe.fps)[0][0] for _ in scenes]
    video = encode(render(scene, background, pictures, rng, recipe), recipe)
    info = where | {"key": key, "split": split, "domain": scene.domain, "duration": recipe.duration}
    info |= {name: getattr(recipe, name) for name in ("set", "outline", "size", "fps", "frames")}
    info["objects"] = [
        {"shape": thing.shape, "colour": thing.colour, "direction": thing.direction}
        | {"track": [[x, y, thing.r] for x, y in thing.track.tolist()]}
        for thing in scene.objects
    ]
    info["flashes"] = [vars(flash) for flash in scene.flashes]
    info["captions"] = text.captions(rng, scene, recipe)
    if recipe.set == "keys":
        info["questions"] = text.key_questions(rng, scene, recipe, conversation=split == "train")
    else:
        info["questions"] = text.questions(rng, scene, recipe)
    if scene.needles:
        info["needles"] = [vars(needle) for needle in scene.needles]
        info["needle_time"] = [recipe.window(needle.first)[0] for needle in scene.needles]
    return info, video


def _make_story(
    rng: np.random.Generator, recipe: Recipe, haystack: Haystack, split: str, number: int, key: str
) -> tuple[dict, bytes]:
    story = STORIES[recipe.set].tell(rng, recipe, split, number)
    recipe = story.recipe
    background, where = haystack.clip(rng, recipe.frames, recipe.fps)
    video = encode(render_story(story, background, rng), recipe)
    info = where | {"key": key, "split": split, "domain": story.domain, "duration": recipe.duration}
    info |= {name: getattr(recipe, name) for name in ("set", "outline", "size", "fps", "frames")}
    return info | {"objects": story.objects(), "flashes": []} | story.fields, video
