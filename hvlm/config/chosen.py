"""Which word of each group a configuration was made of: ``connector=mean`` for a node of ``hvlm.connector.mean``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from hvlm.config.rooms import ROOMS
from hvlm.config.search_path import CONF


def words(config: Mapping[str, Any], folders: Iterable[Path] = (CONF,)) -> dict[str, str]:
    """{group: its word} of a resolved configuration; a room that is left out (``none``) has its word, too.

    Several words may share a class (``smollm2_135m`` and ``smollm2_tiny``): of those the one counts with which most
    settings agree.

    Args:
        config: the configuration.
        folders: that hold <group>/<word>.yaml. A room of none of them is called as its class's file.
    """
    found = {}
    for group in ROOMS:
        node = config.get(group)
        if isinstance(node, Mapping) and "_target_" in node:
            found[group] = _word(group, node, folders)
    return found


def _word(group: str, node: Mapping[str, Any], folders: Iterable[Path]) -> str:
    file = str(node["_target_"]).split(".")[-2:][0]
    fits: dict[str, tuple[int, bool]] = {}
    for path in sorted(path for folder in folders for path in (folder / group).glob("*.yaml")):
        settings = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        if settings.get("_target_") == node["_target_"]:
            same = sum(key in node and node[key] == value for key, value in settings.items())
            fits[path.stem] = (same, path.stem == file)
    return max(fits, key=lambda word: fits[word]) if fits else file
