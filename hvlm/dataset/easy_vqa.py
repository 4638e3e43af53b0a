"""easy-VQA (Victor Zhou 2019, MIT): a public set that installs, ``pip install easy-vqa``.

4,000 pictures to train with 38,575 questions and 1,000 to test with 9,673, of 64 by 64 pixels, each of one shape in one
colour, with 13 answers. The test split is the published one; the last pictures of the published training split are held
out for validation. Pictures are clips of one frame. With one shape in a picture it says nothing of which colour belongs
to which shape.
"""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from hvlm.config.ranges import NonNegativeInt, PositiveFloat, PositiveInt
from hvlm.data.shard_index import write_manifest, write_shard
from hvlm.dataset._easy_vqa_labels import LABELS, labels_of, patch_labels
from hvlm.dataset._generated import GeneratedSet, Wanted
from hvlm.errors import UserError

log = logging.getLogger(__name__)

VERSION = 2  # of what is made of the package
PACKAGE, DATA = "easy_vqa", "easy_vqa/data"
GET = "install it: pip install easy-vqa, or name its folder or wheel with dataset.source="
# As the package lists them: known without it, so that a head can be planned where it is not installed.
ANSWERS = ("circle", "green", "red", "gray", "yes", "teal", "black", "rectangle", "yellow", "triangle", "brown")
ANSWERS += ("blue", "no")
ANYTHING = "what is to be said?"  # in place of every question, where the picture alone is shown
SHOWN = ("both", "question", "picture")
Asked = list[tuple[str, str]]  # (question, answer)s of a picture
TASKS = ("shape", "colour", "yes_no")


class EasyVQA(GeneratedSet):
    """The package's data as shards.

    source: the folder of the package or its wheel (.whl); None: the installed package.
    root: folder that receives ``easy_vqa-<hash of the settings>/``; None: ``HVLM_DATA`` of the environment, or ``data``
        in the working directory.
    show: ``both``; ``question`` alone (the pictures are black) and ``picture`` alone (every question is the same one)
        are controls, to train and to test.
    tasks: kinds of questions that are trained on, some of ``shape``, ``colour``, ``yes_no``; pictures about which none
        is asked are left out. None: all. The test split is always whole.
    val_pictures: of the published training split, that are not trained on. shard_pictures: samples per shard.
    num_frames: shown of a picture, all the same. max_tokens, too_long, decoder, decode_timeout: as of other sets.
    """

    access = "index"
    domain = "general"
    kind = "easy_vqa"

    def __init__(
        self,
        source: str | None = None,
        root: str | None = None,
        show: Literal["both", "question", "picture"] = "both",
        tasks: list[Literal["shape", "colour", "yes_no"]] | None = None,
        val_pictures: NonNegativeInt = 200,
        shard_pictures: PositiveInt = 500,
        num_frames: PositiveInt = 1,
        max_tokens: PositiveInt = 64,
        too_long: Literal["refuse", "cut"] = "refuse",
        decoder: Literal["pyav", "decord"] = "pyav",
        decode_timeout: PositiveFloat = 60.0,
    ) -> None:
        if show not in SHOWN:
            raise UserError(f"dataset.show={show}: expected one of {', '.join(SHOWN)}")
        if tasks is not None and (not tasks or set(tasks) - set(TASKS)):
            raise UserError(f"dataset.tasks={list(tasks)}: expected some of {', '.join(TASKS)}, or null for all")
        self.tasks = None if tasks is None else sorted(set(tasks))
        self.source, self.show, self.per_shard, self.held_out = source, show, shard_pictures, val_pictures
        self.root = Path(root or os.environ.get("HVLM_DATA") or "data")
        self.num_frames, self.max_tokens, self.too_long = num_frames, max_tokens, too_long
        self.decoder, self.decode_timeout = decoder, decode_timeout
        self._read: dict[str, dict[int, Asked]] | None = None
        self._asked: set[str] = set()

    @property
    def counts(self) -> dict[str, int]:  # type: ignore[override]
        """Pictures of each split."""
        return {split: len(of) for split, of in self._package().items()}

    @property
    def spec(self) -> dict[str, Any]:
        """Everything that decides the bytes of the shards, apart from the package's pictures."""
        spec = {"generator": VERSION, "show": self.show, "counts": self.counts, "shard_pictures": self.per_shard}
        return spec | ({} if self.tasks is None else {"tasks": self.tasks})

    def texts(self) -> Iterator[str]:
        """All questions and answers, for a vocabulary: the same whatever is shown."""
        yield ANYTHING
        yield from ANSWERS
        self._package()
        yield from sorted(self._asked)

    patch_labels = staticmethod(patch_labels)

    def label_counts(self) -> dict[str, int]:
        """Of what its training questions say of a picture; see ``_easy_vqa_labels``."""
        return {name: len(classes) for name, classes in LABELS.items()}

    def names(self, of: str) -> list[str]:
        """The package's 13 answers."""
        return list(ANSWERS) if of == "answers" else super().names(of)

    def split(self, name: str) -> dict[int, Asked]:
        """{picture: its (question, answer)s} of a split, whatever is shown."""
        return self._package()[name]

    def make(self, wanted: Wanted, progress: bool) -> None:
        """Make all shards, without a bar: it takes seconds. UserError about the package."""
        log.info("making %d shards in %s", len(wanted), self.folder)
        shards = {name: self._shard(name, split, numbers) for name, (split, numbers) in wanted.items()}
        write_manifest(self.folder, self.spec | {"sources": [{"name": "easy-vqa"}]}, shards, [])

    def _shard(self, name: str, split: str, numbers: range) -> dict[str, Any]:
        where, splits = _found(self.source), self._package()
        folder = where / ("test" if split == "test" else "train") / "images"
        pictures, files = list(splits[split]), []
        for picture in (pictures[number] for number in numbers):
            path = f"{folder}/{picture}.png"
            try:
                data = (folder / f"{picture}.png").read_bytes()
            except (OSError, KeyError) as error:
                raise UserError(f"{path}: a picture that questions are about is not there") from error
            questions = [
                {"id": f"q{i}", "task": _task(asked), "question": asked if self.show != "picture" else ANYTHING}
                | {"answer": answer}
                for i, (asked, answer) in enumerate(splits[split][picture])
            ]
            key = f"easy_vqa-{split}-{picture:06d}"
            info = {"key": key, "split": split, "questions": questions}
            if (
                split != "test"
                and self.show != "question"
                and (seen := labels_of(splits[split][picture], _pixels(data, path)))
            ):
                info["seen"] = seen
            files.append((key, {"png": _black(data, path) if self.show == "question" else data, "json": _json(info)}))
        return write_shard(self.folder / name, files, split, [self.domain] * len(files))

    def _package(self) -> dict[str, dict[int, Asked]]:
        """{split: {picture: its (question, answer)s}}. UserError for what is not the package."""
        if self._read is None:
            where = _found(self.source)
            train, test = (_questions(where / split / "questions.json") for split in ("train", "test"))
            if self.held_out >= len(train):
                raise UserError(f"dataset.val_pictures={self.held_out}: expected less than all {len(train)} of train")
            cut = len(train) - self.held_out
            parts = list(train.items())
            self._asked = {question for of in (train, test) for asked in of.values() for question, _ in asked}
            self._read = {"train": self._of_tasks(parts[:cut]), "val": self._of_tasks(parts[cut:]), "test": test}
            if not self._read["train"]:
                raise UserError(f"dataset.tasks={self.tasks}: no picture of the training split is asked about so")
        return self._read

    def _of_tasks(self, pictures: list[tuple[int, Asked]]) -> dict[int, Asked]:
        """The questions of ``tasks``, of pictures that have some."""
        if self.tasks is None:
            return dict(pictures)
        kept = {picture: [q for q in asked if _task(q[0]) in self.tasks] for picture, asked in pictures}
        return {picture: asked for picture, asked in kept.items() if asked}


def _found(source: str | None) -> Any:
    """The package's folder of data, as a path in a folder or a wheel. UserError where it is not there."""
    if source is None:
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or spec.origin is None:
            raise UserError(f"dataset=easy_vqa: the package easy-vqa is not installed; {GET}")
        return Path(spec.origin).parent / "data"
    path = Path(source).expanduser()
    if path.is_file() and zipfile.is_zipfile(path):
        return zipfile.Path(path, f"{DATA}/")
    places = (path / "data", path / DATA, path)
    found = next((place for place in places if (place / "answers.txt").is_file()), None)
    if found is None:
        raise UserError(f"dataset.source={source}: no answers.txt of easy-vqa there; {GET}")
    return found


def _questions(path: Any) -> dict[int, Asked]:
    """{picture: its (question, answer)s} of [[question, answer, picture], ...], by the pictures' numbers."""
    try:
        items = json.loads(_text(path))
        found: dict[int, Asked] = {}
        for question, answer, picture in items:
            if answer not in ANSWERS:
                raise ValueError(f"the answer {answer!r:.40} is none of easy-vqa's")
            if not str(question).strip():
                raise ValueError("a question without a word")
            found.setdefault(int(picture), []).append((str(question), str(answer)))
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path}: expected a list of [question, answer, picture] ({error})") from error
    return dict(sorted(found.items()))


def _text(path: Any) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, KeyError) as error:
        raise UserError(f"{path}: cannot be read; {GET}") from error


def _task(question: str) -> str:
    """What a question is about, by its words: shape, colour, or whether there is something."""
    first = question.split()[0].rstrip("?")
    return "yes_no" if first not in ("what", "which") else "colour" if "color" in question else "shape"


def _pixels(data: bytes, path: str) -> np.ndarray:
    """uint8 [H, W, 3] of the picture at ``path``. UserError where it cannot be read."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return np.array(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: no picture that can be read ({' '.join(str(error).split())}); {GET}") from error


def _black(data: bytes, path: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.zeros_like(_pixels(data, path))).save(out, "PNG")
    return out.getvalue()


def _json(info: dict[str, Any]) -> bytes:
    return json.dumps(info, sort_keys=True, separators=(",", ":")).encode()
