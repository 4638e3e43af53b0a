"""Anybody's WebDataset shards: a folder that is indexed once and then read by offset, or a list that is streamed."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from braceexpand import braceexpand

from hvlm.config.ranges import PositiveFloat, PositiveInt
from hvlm.contracts import Dataset
from hvlm.data import samples
from hvlm.data.quarantine import SampleError
from hvlm.data.shard_index import MANIFEST, Manifest, index_shard, load_manifest, write_manifest
from hvlm.data.stream import check_url
from hvlm.data.tar import TEXT_FIELDS
from hvlm.dataset._needles_labels import patch_labels
from hvlm.errors import UserError
from hvlm.io.pretrained import cache_folder
from hvlm.prompts import lettered_prompt

log = logging.getLogger(__name__)

# What the words of a shard's name say of its split. "text" only counts in front: it is part of many a data set's name.
SPLITS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
TEXT = "text"
TEXTS_FOR_VOCABULARY = 20_000  # samples of each split read to train a word-level tokenizer, if one is wanted


class Shards(Dataset):
    """External shards; docs/data.md lists the members and the JSON that are understood.

    path: with ``access="index"`` one folder of ``*.tar``. Without a ``manifest.json`` in it, it is indexed once and the
        manifest is written beside the shards, or, where the folder is read-only, into the user's cache folder
        (``$HVLM_CACHE``). The words of a file's name say the split (``split_of``). With ``access="stream"``: a folder
        (its training shards), or a list of paths and http(s) URLs, in which ``{000..009}`` is expanded; all of these
        are train.
    num_frames: frames sampled per clip, fewer if it has fewer.
    domain: name of the domain of samples that carry none.
    max_tokens: of one text with its prompt; a sample with a longer one is a bad sample: named, counted, left out.
    decoder: of videos; "decord" decodes what it is known to read rightly, and PyAV the rest.
    decode_timeout: seconds; a clip that is not decoded by then is a bad sample, and the decoder is killed.
    """

    def __init__(
        self,
        path: str | list[str],
        access: Literal["index", "stream"] = "index",
        num_frames: PositiveInt = 16,
        domain: str = "general",
        max_tokens: PositiveInt = 2048,
        decoder: Literal["pyav", "decord"] = "pyav",
        decode_timeout: PositiveFloat = 60.0,
    ) -> None:
        if access not in ("index", "stream"):
            raise UserError(f"dataset.access={access!r}: expected index or stream")
        self.paths = [path] if isinstance(path, str) else list(path)
        self.access, self.num_frames, self.domain, self.max_tokens = access, num_frames, domain, max_tokens
        self.decoder, self.decode_timeout = decoder, decode_timeout

    def prepare(self) -> None:
        """Index the folder if it has no manifest yet. UserError if there is nothing to read, or more than is listed."""
        if self.access == "stream":
            self.urls()
            return
        folder = self._folder()
        tars = tars_of(folder)
        path = self._manifest_path(tars)
        if not path.exists():
            if not tars:
                raise UserError(f"dataset.path={folder}: no *.tar in this folder")
            log.info("%s: indexing %d shards, once", folder, len(tars))
            shards = {tar.name: index_shard(tar, split_of(tar.name), self.domain) for tar in tars}
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_manifest(folder, {"indexed": True}, shards, [], path)
            except OSError as error:
                raise UserError(
                    f"dataset.path={folder}: no place for the manifest: {path} cannot be written ({error.strerror}); "
                    "let $HVLM_CACHE name a folder that you may write"
                ) from error
            found = Counter(shard["split"] for shard in shards.values())
            log.info("%s: shards by split: %s", path, ", ".join(f"{k} {v}" for k, v in sorted(found.items())))
        listed = load_manifest(folder, path).shards
        if extra := [tar.name for tar in tars if tar.name not in listed]:
            raise UserError(
                f"dataset.path={folder}: {len(extra)} shards are not in {path.name} ({extra[0]}, …); delete {path} and "
                "they will be indexed"
            )

    def manifest(self) -> Manifest:
        if self.access == "stream":
            raise UserError("dataset.access=stream has no manifest to read by position; use dataset.access=index")
        folder = self._folder()
        return load_manifest(folder, self._manifest_path(tars_of(folder)))

    def urls(self) -> list[str]:
        """The shards of a stream."""
        found: list[str] = []
        for path in self.paths:
            if "://" not in path and Path(path).is_dir():
                tars = tars_of(Path(path))
                found += [str(tar) for tar in tars if split_of(tar.name) == "train"]
                if len(found) < len(tars):
                    log.info("%s: a stream reads the training shards, not those of other splits", path)
            else:
                found += braceexpand(path)
        if not found:
            raise UserError(f"dataset.path={', '.join(self.paths)}: no *.tar of the training split there")
        return [check_url(url) for url in found]

    def texts(self) -> Iterator[str]:
        """Prompts, answers and options, for a vocabulary: of the first samples of every split, without their videos."""
        manifest = self.manifest()
        for name in manifest.splits:
            split = manifest.split(name)
            for index in range(min(len(split), TEXTS_FOR_VOCABULARY)):
                try:
                    sample = samples.parse(split.read(index, TEXT_FIELDS), split.keys[index], self.domain)
                except SampleError:
                    continue  # it is named and counted when it is drawn for training
                for caption in sample["captions"]:
                    yield from (caption["prompt"], caption["text"])
                for q in sample["questions"]:
                    yield from (q[field] for field in ("question", "answer", "rejected") if field in q)
                    for attempt in q.get("tries", ()):
                        yield from attempt["options"]
                        if q["lettered"]:
                            yield lettered_prompt(q["question"], attempt["options"])

    patch_labels = staticmethod(patch_labels)

    def label_counts(self) -> dict[str, int]:
        raise UserError(
            "dataset=shards has no per-patch labels; stage=vision needs dataset=needles, or take pretrained vision"
        )

    def _folder(self) -> Path:
        if len(self.paths) != 1 or not Path(self.paths[0]).is_dir():
            raise UserError(
                f"dataset.path={', '.join(self.paths)}: expected one existing folder of *.tar; lists and URLs need "
                "dataset.access=stream"
            )
        return Path(self.paths[0])

    def _manifest_path(self, tars: Sequence[Path]) -> Path:
        """Beside the shards; for a folder that has none and cannot be written, in the cache folder, under a name that
        stands for the folder's path and its shards with their sizes and times."""
        folder = self._folder()
        beside = folder / MANIFEST
        if beside.exists() or os.access(folder, os.W_OK):
            return beside
        found = [(tar.name, tar.stat()) for tar in tars]
        state = [str(folder.resolve()), *((name, stat.st_size, stat.st_mtime_ns) for name, stat in found)]
        digest = hashlib.sha256(json.dumps(state).encode()).hexdigest()[:16]
        return cache_folder() / "manifests" / f"{digest}.json"


def tars_of(folder: Path) -> list[Path]:
    """The shards of a folder, by name. Hidden files (macOS puts a ``._name`` beside every file) are none."""
    return sorted(tar for tar in folder.glob("*.tar") if not tar.name.startswith("."))


def split_of(name: str) -> str:
    """The split that the words of a shard's name say: train or training; val, valid, validation or dev; test or
    testing; text (text-only chats) in front. A name that says none is train. Raises UserError where a name says two."""
    first, *rest = re.split(r"[^a-z0-9]+", name.removesuffix(".tar").lower())
    words = [re.sub(r"\d+$", "", word) for word in (first, *rest)]
    said = {SPLITS[word] for word in words if word in SPLITS}
    if words[0] == TEXT and rest:
        said.add(TEXT)
    if len(said) > 1:
        raise UserError(
            f"{name}: its name says {' and '.join(sorted(said))}; rename the shard so that it says one split"
        )
    return said.pop() if said else "train"
