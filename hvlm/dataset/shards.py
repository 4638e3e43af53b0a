"""Anybody's WebDataset shards: a folder that is indexed once and then read by offset, or a list that is streamed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from braceexpand import braceexpand

from hvlm.config.ranges import PositiveInt
from hvlm.data import samples
from hvlm.data.quarantine import SampleError
from hvlm.data.shard_index import MANIFEST, Manifest, index_shard, load_manifest, write_manifest
from hvlm.data.stream import check_url
from hvlm.dataset._needles_labels import patch_labels
from hvlm.errors import UserError

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test", "text")
TEXTS_FOR_VOCABULARY = 20_000  # samples read to train a word-level tokenizer, if the language model wants one


class Shards:
    """External shards; see ``samples.py`` for the members and JSON that are understood.

    path: with ``access="index"`` one folder of ``*.tar``. Without a ``manifest.json`` in it, it is indexed once and the
        manifest is written beside the shards. A file called ``train-…``, ``val-…``, ``test-…`` or ``text-…`` (text-only
        chats) belongs to that split, any other to train. With ``access="stream"``: a folder, or a list of paths and
        http(s) URLs, in which ``{000..009}`` is expanded; everything is train.
    num_frames: frames sampled per clip, fewer if it has fewer.
    domain: name of the domain of samples that carry none.
    """

    def __init__(
        self,
        path: str | list[str],
        access: Literal["index", "stream"] = "index",
        num_frames: PositiveInt = 16,
        domain: str = "general",
    ) -> None:
        if access not in ("index", "stream"):
            raise UserError(f"dataset.access={access!r}: expected index or stream")
        self.paths = [path] if isinstance(path, str) else list(path)
        self.access, self.num_frames, self.domain = access, num_frames, domain

    def prepare(self) -> None:
        """Index the folder if it has no manifest yet. UserError if there is nothing to read, or more than is listed."""
        if self.access == "stream":
            self.urls()
            return
        folder = self._folder()
        tars = sorted(folder.glob("*.tar"))
        if not (folder / MANIFEST).exists():
            if not tars:
                raise UserError(f"dataset.path={folder}: no *.tar in this folder")
            log.info("%s: indexing %d shards, once", folder, len(tars))
            shards = {tar.name: index_shard(tar, _split(tar.name), self.domain) for tar in tars}
            write_manifest(folder, {"indexed": True}, shards, [])
        listed = load_manifest(folder).shards
        if extra := [tar.name for tar in tars if tar.name not in listed]:
            raise UserError(
                f"dataset.path={folder}: {len(extra)} shards are not in {MANIFEST} ({extra[0]}, …); delete it and they "
                "will be indexed"
            )

    def manifest(self) -> Manifest:
        if self.access == "stream":
            raise UserError("dataset.access=stream has no manifest to read by position; use dataset.access=index")
        return load_manifest(self._folder())

    def urls(self) -> list[str]:
        """The shards of a stream."""
        found: list[str] = []
        for path in self.paths:
            local = "://" not in path and Path(path).is_dir()
            found += sorted(map(str, Path(path).glob("*.tar"))) if local else braceexpand(path)
        if not found:
            raise UserError(f"dataset.path={', '.join(self.paths)}: no *.tar there")
        return [check_url(url) for url in found]

    def texts(self) -> Iterator[str]:
        """Prompts and answers, for a vocabulary. Read from the first samples of the training split."""
        split = self.manifest().split("train")
        for index in range(min(len(split), TEXTS_FOR_VOCABULARY)):
            try:
                sample = samples.parse(split.read(index), split.keys[index], self.domain)
            except SampleError:
                continue  # it is named and counted when it is drawn for training
            for caption in sample.get("captions", []):
                yield from (caption["prompt"], caption["text"])
            for question in sample.get("questions", []):
                yield from (question[name] for name in ("question", "answer", "rejected") if name in question)

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


def _split(name: str) -> str:
    prefix = name.split("-", 1)[0]
    return prefix if prefix in SPLITS and "-" in name else "train"
