"""Several folders of shards, read as one: every sample keeps its place, and its domain is the folder's name."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hvlm.data.shard_folder import TEXT
from hvlm.data.shard_index import Manifest, ShardSplit


@dataclass
class Joined(Manifest):
    """``places``: {shard: its file}, since the folders may lie anywhere. Shards are called ``name/shard.tar``."""

    places: dict[str, Path] = field(default_factory=dict)

    def path_of(self, shard: str) -> Path:
        return self.places[shard]

    def split(self, name: str) -> ShardSplit:
        """All samples of a split. Of the validation split the sources take turns, so that its beginning shows all."""
        found = super().split(name)
        if name != "val":
            return found
        of: dict[str, list[int]] = {}
        for i, domain in enumerate(found.domains):
            of.setdefault(domain, []).append(i)
        turns = itertools.zip_longest(*of.values())
        return found.reordered([i for turn in turns for i in turn if i is not None])


def joined(folder: Path, manifests: Mapping[str, Manifest], clips: Collection[str], chats: Collection[str]) -> Joined:
    """Several manifests, by name, as one.

    Args:
        folder: for messages.
        clips: names of those whose clips are taken.
        chats: names of those whose text-only chats are.
    """
    shards: dict[str, Any] = {}
    places: dict[str, Path] = {}
    bad: list[dict[str, str]] = []
    for name, manifest in sorted(manifests.items()):
        bad += manifest.quarantined
        for shard, entry in manifest.shards.items():
            is_text = entry["split"] == TEXT
            if name not in (chats if is_text else clips):
                continue
            domain = TEXT if is_text else name
            samples = [{**sample, "domain": domain} for sample in entry["samples"]]
            shards[f"{name}/{shard}"] = {**entry, "samples": samples}
            places[f"{name}/{shard}"] = manifest.path_of(shard)
    return Joined(folder, {"joined": sorted(manifests)}, shards, bad, places)
