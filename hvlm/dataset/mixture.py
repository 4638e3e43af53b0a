"""Several folders of shards in one training: each with a weight, and text-only chats between them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Literal

from hvlm.config.ranges import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt
from hvlm.contracts import Dataset
from hvlm.data.budget import Budget
from hvlm.data.joined import Joined, joined
from hvlm.data.shard_folder import TEXT, index_folder, manifest_of
from hvlm.data.shares import shares_of
from hvlm.dataset._texts import answers_of, texts_of
from hvlm.errors import UserError

log = logging.getLogger(__name__)


class Mixture(Dataset):
    """Folders as ``hvlm prepare`` makes them (or any other ``*.tar``), one a source; the source is its samples' domain.

    root: the folder that the sources lie in. weights: {source: its weight}; null: the number of its clips, 0: it is
        left out, and its folder need not be there. A clip of the training split is one of a source with probability
        weight ** (1 / temperature), divided by the sum of all; which one, by going round the source.
    paths: {source: its folder}, for those that are not called as they are, or lie elsewhere.
    temperature: 1: as the weights say; above: more even; below: the large ones even more.
    texts: sources whose text-only chats are mixed in. text_ratio: share of the training batches that are made of them
        (in place of ``stage.interleave``); null: as ``stage.interleave`` says.
    num_frames, max_tokens, too_long, decoder, decode_timeout, batch: as of ``dataset=shards``.
    """

    access = "index"

    def __init__(
        self,
        root: str,
        weights: dict[str, NonNegativeFloat | None],
        paths: dict[str, str] | None = None,
        temperature: PositiveFloat = 1.0,
        texts: list[str] | None = None,
        text_ratio: Fraction | None = None,
        num_frames: PositiveInt = 16,
        max_tokens: PositiveInt = 2048,
        too_long: Literal["refuse", "cut"] = "refuse",
        decoder: Literal["pyav", "decord"] = "pyav",
        decode_timeout: PositiveFloat = 60.0,
        batch: dict[str, PositiveInt] | None = None,
    ) -> None:
        self.root, self.weights, self.folders = Path(root).expanduser(), dict(weights), dict(paths or {})
        self.temperature, self.text_ratio, self.text_sources = temperature, text_ratio, list(texts or [])
        self.num_frames, self.max_tokens, self.too_long = num_frames, max_tokens, too_long
        self.batch = Budget.of(batch)
        self.decoder, self.decode_timeout, self.domain = decoder, decode_timeout, "general"
        self.taken = [name for name, weight in self.weights.items() if weight != 0]
        if not self.taken:
            raise UserError(f"dataset.weights={self.weights}: expected a source with a weight above 0")
        known = {*self.weights, *self.text_sources}
        if other := [name for name in self.folders if name not in known]:
            raise UserError(f"dataset.paths.{other[0]}: no such source; weights and texts name {', '.join(known)}")
        if text_ratio and not self.text_sources:
            raise UserError(f"dataset.text_ratio={text_ratio:g}: dataset.texts names no source of text-only chats")

    def prepare(self) -> None:
        """Index what has no manifest yet. UserError if a source's folder is not there, or has no clips to train on."""
        for name in self._sources():
            index_folder(self._folder(name), name, self._setting(name))
        self.shares()
        if self.text_ratio and TEXT not in self.manifest().splits:
            raise UserError(
                f"dataset.text_ratio={self.text_ratio:g}: no text-only chats in {', '.join(self.text_sources)}; set "
                "dataset.text_ratio=0"
            )

    def manifest(self) -> Joined:
        return self._joined

    @cached_property
    def _joined(self) -> Joined:
        found = {name: manifest_of(self._folder(name)) for name in self._sources()}
        return joined(self.root, found, self.taken, self.text_sources)

    def shares(self) -> dict[str, float]:
        """{source: probability of a clip of the training split}."""
        counts = dict.fromkeys(self.taken, 0)
        for name, shard in self.manifest().shards.items():
            if shard["split"] == "train":
                counts[name.partition("/")[0]] += shard["count"]
        weights = {name: counts[name] if self.weights[name] is None else self.weights[name] for name in counts}
        if empty := [name for name, count in counts.items() if not count]:
            raise UserError(
                f"{self._setting(empty[0])}={self._folder(empty[0])}: no clips of the training split there; leave it "
                f"out with dataset.weights.{empty[0]}=0"
            )
        return shares_of({name: float(weight or 0) for name, weight in weights.items()}, self.temperature)

    def texts(self) -> Iterator[str]:
        """As of ``dataset=shards``: prompts, answers and options for a vocabulary."""
        yield from texts_of(self.manifest(), self.domain, f"dataset.root={self.root}")

    def names(self, of: str) -> list[str]:
        return answers_of(self.manifest(), self.domain, str(self.root)) if of == "answers" else super().names(of)

    def _sources(self) -> list[str]:
        """Names of all folders that are read."""
        return list(dict.fromkeys([*self.taken, *(self.text_sources if self.text_ratio != 0 else ())]))

    def _setting(self, name: str) -> str:
        return f"dataset.paths.{name}" if name in self.folders else f"dataset.weights.{name}"

    def _folder(self, name: str) -> Path:
        folder = self.root / Path(self.folders.get(name, name)).expanduser()
        if not folder.is_dir():
            way = f"dataset.weights.{name}=0" if name in self.taken else "dataset.text_ratio=0"
            raise UserError(
                f"dataset.paths.{name}={folder}: no such folder; make it with hvlm prepare CORPUS src=FOLDER "
                f"out={folder}, say where it is, or leave it out with {way}"
            )
        return folder
