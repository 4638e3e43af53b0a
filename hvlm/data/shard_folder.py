"""A folder of shards: indexed once, with a manifest beside them or in the cache, and then read by offset."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from hvlm.data.shard_index import MANIFEST, Manifest, index_shard, load_manifest, write_manifest
from hvlm.data.tar import STILL_FIELDS, VIDEO_FIELDS
from hvlm.errors import UserError
from hvlm.io.pretrained import cache_folder

log = logging.getLogger(__name__)

# What the words of a shard's name say of its split. "text" only counts in front: it is part of many a data set's name.
SPLITS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
TEXT = "text"
RAW = ("csv", "tsv", "jsonl", "ndjson", "json", "parquet", "arrow")  # tables that `hvlm prepare` reads


def index_folder(folder: Path, domain: str, setting: str) -> None:
    """Index the folder if it has no manifest yet.

    Args:
        folder: of ``*.tar``.
        domain: of samples that name none.
        setting: whose value the folder is, for messages: ``dataset.path``.

    Raises:
        UserError: there is nothing to read, or more than is listed.
    """
    tars = tars_of(folder)
    path = _manifest_path(folder, tars)
    if not path.exists():
        if not tars:
            raise UserError(f"{setting}={folder}: no *.tar in this folder{way_to_shards(folder)}")
        log.info("%s: indexing %d shards, once", folder, len(tars))
        shards = {tar.name: index_shard(tar, split_of(tar.name), domain) for tar in tars}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_manifest(folder, {"indexed": True}, shards, [], path)
        except OSError as error:
            raise UserError(
                f"{setting}={folder}: no place for the manifest: {path} cannot be written ({error.strerror}); "
                "let $HVLM_CACHE name a folder that you may write"
            ) from error
        found = Counter(shard["split"] for shard in shards.values())
        log.info("%s: shards by split: %s", path, ", ".join(f"{k} {v}" for k, v in sorted(found.items())))
    listed = load_manifest(folder, path).shards
    if extra := [tar.name for tar in tars if tar.name not in listed]:
        raise UserError(
            f"{setting}={folder}: {len(extra)} shards are not in {path.name} ({extra[0]}, …); delete {path} and "
            "they will be indexed"
        )


def manifest_of(folder: Path) -> Manifest:
    """Of an indexed folder."""
    return load_manifest(folder, _manifest_path(folder, tars_of(folder)))


def tars_of(folder: Path) -> list[Path]:
    """The shards of a folder, by name. Hidden files (macOS puts a ``._name`` beside every file) are none."""
    return sorted(tar for tar in folder.glob("*.tar") if not tar.name.startswith("."))


def way_to_shards(path: Path) -> str:
    """For a message: the command that makes shards of what lies there; nothing where that holds no table, video or
    picture."""
    entries = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else [path.name] if path.is_file() else []
    endings = {name.rpartition(".")[2].lower() for name in entries}
    if path.is_dir() and not endings & {*RAW, *VIDEO_FIELDS, *STILL_FIELDS}:
        inside = [p for p in sorted(path.iterdir()) if p.is_dir()][:20]
        endings |= {p.name.rpartition(".")[2].lower() for folder in inside for p in folder.iterdir()}
    if not endings & {*RAW, *VIDEO_FIELDS, *STILL_FIELDS}:
        return ""
    out = path.parent / f"{path.stem}-shards"
    said = f"hvlm prepare {shlex.quote(str(path))} out={shlex.quote(str(out))}"
    return f"; make shards of what is there: {said}"


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


def _manifest_path(folder: Path, tars: Sequence[Path]) -> Path:
    """Beside the shards; for a folder that has none and cannot be written, in the cache folder, under a name that
    stands for the folder's path and its shards with their sizes and times."""
    beside = folder / MANIFEST
    if beside.exists() or os.access(folder, os.W_OK):
        return beside
    found = [(tar.name, tar.stat()) for tar in tars]
    state = [str(folder.resolve()), *((name, stat.st_size, stat.st_mtime_ns) for name, stat in found)]
    digest = hashlib.sha256(json.dumps(state).encode()).hexdigest()[:16]
    return cache_folder() / "manifests" / f"{digest}.json"
