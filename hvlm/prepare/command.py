"""``hvlm prepare SRC out=DIR``: from the command line to a finished folder of shards."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hvlm.console import size_in_words
from hvlm.data.shard_folder import tars_of
from hvlm.data.shard_index import MANIFEST, load_manifest
from hvlm.errors import UserError
from hvlm.io.files import check_writable, write_atomically
from hvlm.io.lock import locked
from hvlm.prepare import plan as planning
from hvlm.prepare import show, source, work
from hvlm.prepare.plan import Plan
from hvlm.prepare.settings import SPLITS, Settings, read

FORMAT = 1


def prepare(words: Sequence[str]) -> Path | None:
    """Make shards. Returns their folder; None after a dry run. Raises UserError."""
    settings = read(words)
    out = None if settings.out is None else Path(settings.out).expanduser()
    if out is not None and not settings.dry_run:
        check_writable(out, "out", make=False)
    to = show.console()
    plan = planning.make(source.find(settings))
    settings = plan.source.settings
    show.columns(plan, to)
    if not plan.samples:
        raise (
            work.too_many(plan.bad, plan.rows, settings, Path(work.QUARANTINE))
            if plan.bad
            else UserError(f"{settings.src}: no rows in it")
        )
    sizes = Counter({split: 0 for split in SPLITS})
    for sample in plan.samples:
        sizes[sample.split] += sample.size
    show.counts(plan.samples, Counter(shard.split for shard in plan.shards), sizes, to)
    if settings.dry_run or out is None:
        show.left_out(plan.bad, to)
        to.print("dry run: nothing was decoded and nothing written")
        return None
    if out.resolve() == plan.source.root.resolve():
        raise UserError(f"out={out}: that is the folder of the videos; name another one for the shards")
    with locked(out, f"out={out}", children_write=True):
        return _make(plan, settings, out, to)


def _make(plan: Plan, settings: Settings, out: Path, to: Any) -> Path:
    if _is_finished(plan, settings, out):
        to.print(f"{out}: finished already")
        return out
    _room_for(plan, out)
    with show.progress(plan, to) as told:
        shards, bad = work.made(plan, settings, out, told)
    counted = Counter({shard["split"]: 0 for shard in shards.values()})
    for shard in shards.values():
        counted[shard["split"]] += shard["count"]
    show.left_out(bad, to)
    listed = f"; {len(bad):,} rows are left out, see {out / work.QUARANTINE}" if bad else ""
    clips = ", ".join(f"{split} {number:,}" for split, number in counted.items())
    to.print(f"{out}: {clips} samples in {len(shards):,} shards{listed}")
    kinds = set(plan.taken.columns) | {split for split, number in counted.items() if number}
    to.print(f"next: {show.next_step(settings, kinds)}")
    return out


def _is_finished(plan: Plan, settings: Settings, out: Path) -> bool:
    """Whether an earlier start finished this very work; begins or continues it otherwise. Raises UserError."""
    path = out / work.STATE
    state = {"format": FORMAT, "settings": json.loads(json.dumps(settings.said())), "source": plan.digest()}
    if not path.exists():
        if tars_of(out) or (out / MANIFEST).exists():
            raise UserError(f"out={out}: it holds shards that hvlm prepare did not make; name another folder")
        write_atomically(path, lambda file: file.write(json.dumps(state, indent=1).encode()))
        return False
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        old = before["settings"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not readable ({error}); name another folder, or delete {out}") from error
    now: dict[str, Any] = state["settings"]
    if different := [key for key in {**old, **now} if old.get(key) != now.get(key)]:
        shown = ", ".join(f"{key}={old.get(key)} (now {now.get(key)})" for key in different)
        raise UserError(f"out={out} was begun with {shown}; give the same settings, or another folder")
    if before["source"] != state["source"]:
        raise UserError(
            f"out={out}: {settings.src} or its files are no longer what they were when this folder was begun; name "
            "another folder"
        )
    if not (out / MANIFEST).exists():
        return False
    load_manifest(out).verify(full=False)
    return True


def _room_for(plan: Plan, out: Path) -> None:
    """Raises UserError where the disk has less room than is needed."""
    there = sum(tar.stat().st_size for tar in tars_of(out))
    free, needed = shutil.disk_usage(out).free, plan.size - there
    if needed * (1 + work.FULL) > free:
        raise UserError(
            f"out={out}: {size_in_words(needed)} are to be written, and {size_in_words(free)} are free on this disk; "
            "name a folder on another one"
        )
