"""The demo's generated clips, some of them spoilt: shards whose sums are right and whose videos are not."""

from __future__ import annotations

from pathlib import Path

from experiments.soak.hanging import MARK
from hvlm.data.shard_index import Manifest, load_manifest, write_manifest, write_shard
from hvlm.dataset.needles import Needles

DAMAGED = b"\0\0\0\x18ftypisom and nothing that a decoder knows"


def make(folder: Path, clips: int, size: int, seed: int, haystack: str | None = None, hangs: bool = True) -> Path:
    """``folder/shards``: ``clips`` training clips of the demo's kind, of which two are damaged and one hangs the
    decoder, and a few for validation. haystack: see ``dataset.haystack``. hangs: whether there is one that does."""
    needles = Needles(
        str(folder / "made"), haystack, train_clips=clips, val_clips=8, test_clips=0, text_chats=max(8, clips // 8),
        size=size, shard_clips=max(4, clips // 4), generate_workers=1, seed=seed,
    )  # fmt: skip
    needles.prepare()
    found = needles.manifest()
    out = folder / "shards"
    out.mkdir()
    keys = [sample["key"] for _, shard in _of(found, "train") for sample in shard["samples"]]
    spoilt = {keys[len(keys) // 3]: DAMAGED, keys[-1]: DAMAGED} | ({keys[len(keys) // 2]: MARK} if hangs else {})
    shards = {}
    for name, shard in sorted(found.shards.items()):
        domains = [sample["domain"] for sample in shard["samples"]]
        shards[name] = write_shard(out / name, _rows(found.path_of(name), shard, spoilt), shard["split"], domains)
    write_manifest(out, {}, shards, [])
    load_manifest(out).verify(full=True)
    return out


def _of(manifest: Manifest, split: str) -> list[tuple[str, dict]]:
    return [(name, shard) for name, shard in sorted(manifest.shards.items()) if shard["split"] == split]


def _rows(path: Path, shard: dict, spoilt: dict[str, bytes]) -> list[tuple[str, dict[str, bytes]]]:
    data, rows = path.read_bytes(), []
    for sample in shard["samples"]:
        members = {field: data[at : at + size] for field, (at, size) in sample["members"].items()}
        if "mp4" in members and sample["key"] in spoilt:
            start = spoilt[sample["key"]]
            members["mp4"] = start + members["mp4"] if start == MARK else start
        rows.append((sample["key"], members))
    return rows
