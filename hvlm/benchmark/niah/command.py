"""From the command line to a finished folder: annotations, manifest and videos."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, as_completed
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from hvlm.benchmark.niah.make import make, probe
from hvlm.benchmark.niah.pictures import Pictures
from hvlm.benchmark.niah.plan import FOLDER, Planned, Source, plan_all, rows_of, templates
from hvlm.benchmark.niah.settings import Settings, read
from hvlm.console import error_line, setup_logging
from hvlm.dataset._haystack import Video, find_videos, part_of
from hvlm.dataset._pool import pool_of
from hvlm.errors import UserError
from hvlm.io.files import check_writable, clean_parts, file_sha256, write_atomically
from hvlm.io.lock import locked

log = logging.getLogger(__name__)

ANNOTATIONS, MANIFEST, BEGUN = "VNBench-main-4try.json", "manifest.json", ".begun.json"
FORMAT = 1
USAGE = """hvlm niah haystack=DIR out=DIR [setting=value ...]

Puts needles into the videos of a folder and asks about them as VNBench does: nine tasks, a grid of depth and length,
four tries of each question. benchmark=vnbench benchmark.annotations=DIR/VNBench-main-4try.json asks a model.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command with these words (by default those of the command line)."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or set(words) & {"-h", "--help"}:
        print(USAGE)
        print(Settings.__doc__)
        return
    with error_line():
        setup_logging()
        write(read(words))


def write(settings: Settings) -> Path:
    """Make a benchmark, or what is missing of it. The same settings and haystack give the same bytes.

    Returns:
        The annotation file.

    Raises:
        UserError: about the settings, the haystack, or a folder that holds another benchmark.
    """
    videos = part_of(find_videos(settings.haystack, "haystack"), settings.sources, "sources")
    videos = _without(videos, _used(settings.avoid or ()))
    pictures = Pictures(None if settings.pictures is None else Path(settings.pictures))
    out = Path(settings.out).expanduser()
    check_writable(out, "out")
    with locked(out, f"out={out}", children_write=True):
        return _write(settings, videos, pictures, out)


def _write(settings: Settings, videos: list[Video], pictures: Pictures, out: Path) -> Path:
    listed = [{"name": video.name, "bytes": video.bytes} for video in videos]
    _begin(settings, listed, out)
    done = _finished(out)
    if done is not None and all((out / FOLDER / name).is_file() for name in done):
        log.info("%s: finished already, %d videos", out, len(done))
        return out / ANNOTATIONS
    (out / FOLDER).mkdir(exist_ok=True)
    clean_parts(out / FOLDER)
    with pool_of(settings.workers) as pool:
        looked = [pool.submit(probe, str(video.path), settings.decode_timeout) for video in videos]
        sources, bad = _sort_out(settings, videos, [future.result() for future in looked])
        planned = plan_all(settings, sources, pictures)
        todo = [one for one in planned if not (out / FOLDER / one.name).is_file()]
        log.info("making %d of %d videos in %s", len(todo), len(planned), out / FOLDER)
        jobs = {pool.submit(make, one, settings, out / FOLDER): one for one in todo}
        failed = _wait(jobs)
    made = [one for one in planned if one.name not in failed]
    if not made or len(failed) > settings.max_bad * len(planned):
        name, reason = next(iter(failed.items()))
        raise UserError(
            f"haystack: {len(failed)} of {len(planned)} videos cannot be made (more than max_bad={settings.max_bad:g} "
            f"allows, or all), the first one {name}: {reason}"
        )
    for name, reason in failed.items():
        log.warning("%s cannot be made and is left out: %s", name, reason)
    bad |= failed
    _put(out / ANNOTATIONS, [row for one in made for row in rows_of(one, settings.fps)])
    _put(out / MANIFEST, _manifest(settings, listed, made, bad, pictures, out))
    log.info(
        "%s: %d videos, %d rows; next: python eval.py checkpoint=RUN benchmark=vnbench benchmark.annotations=%s",
        out, len(made), 4 * len(made), out / ANNOTATIONS,
    )  # fmt: skip
    return out / ANNOTATIONS


def _begin(settings: Settings, sources: list[dict[str, Any]], out: Path) -> None:
    """Notes what is being made here. UserError where something else is."""
    state = json.loads(json.dumps({"format": FORMAT, "settings": settings.said(), "sources": sources}))
    path = out / BEGUN
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        if before == state:
            return
        old, new = before.get("settings", {}), state["settings"]
        differ = [f"{key}={old.get(key)!r}" for key in new if old.get(key) != new[key]] or [
            "other files in the haystack"
        ]
        raise UserError(f"out={out}: holds a benchmark made with {', '.join(differ)}; name another folder")
    if any((out / name).exists() for name in (ANNOTATIONS, MANIFEST, FOLDER)):
        raise UserError(f"out={out}: holds {FOLDER} files that this command did not begin; name another folder")
    _put(path, state)


def _finished(out: Path) -> list[str] | None:
    """The videos of a finished benchmark, those that are not as they were written removed; None: it is unfinished."""
    if not (out / MANIFEST).is_file() or not (out / ANNOTATIONS).is_file():
        return None
    videos = json.loads((out / MANIFEST).read_text(encoding="utf-8"))["videos"]
    for name, entry in videos.items():
        path = out / FOLDER / name
        if path.is_file() and path.stat().st_size != entry["bytes"]:
            path.unlink()
    return list(videos)


def _sort_out(
    settings: Settings, videos: Sequence[Video], found: Sequence[tuple[float, int, int] | str]
) -> tuple[list[Source], dict[str, str]]:
    """The sources that can be read, and those that cannot with the reason; UserError when these are too many."""
    sources, bad = [], {}
    for video, facts in zip(videos, found, strict=True):
        if isinstance(facts, str):
            log.warning("haystack: %s cannot be used and is skipped: %s", video.path, facts)
            bad[video.name] = facts
        else:
            sources.append(Source(str(video.path), video.name, video.source, video.bytes, facts[0]))
    if not sources or len(bad) > settings.max_bad * len(videos):
        name, reason = next(iter(bad.items()))
        raise UserError(
            f"haystack: {len(bad)} of {len(videos)} videos cannot be read (more than max_bad={settings.max_bad:g} "
            f"allows, or all), the first one {name}: {reason}; remove or replace these files"
        )
    return sources, bad


def _wait(jobs: dict[Future, Planned]) -> dict[str, str]:
    """{video that cannot be made: why}, in the order of their numbers."""
    failed: dict[str, tuple[int, str]] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("videos"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("niah", total=len(jobs))
        for job in as_completed(jobs):
            if (reason := job.result()) is not None:
                failed[jobs[job].name] = (jobs[job].number, reason)
            bar.advance(task)
    return {name: reason for name, (_, reason) in sorted(failed.items(), key=lambda item: item[1][0])}


def _manifest(
    settings: Settings, sources: list[dict[str, Any]], made: Sequence[Planned], bad: dict[str, str],
    pictures: Pictures, out: Path,
) -> dict[str, Any]:  # fmt: skip
    """What was made of what: for whoever must keep training and benchmark apart, and for the grid's cells."""
    used = {segment.name for one in made for segment in one.segments}
    videos = {
        one.name: {
            "bytes": (path := out / FOLDER / one.name).stat().st_size, "sha256": file_sha256(path), "task": one.task,
            "depth": one.depth, "length": one.length,
            "sources": [{"name": s.name, "start": s.start, "frames": s.frames} for s in one.segments],
            "needles": [needle._asdict() for needle in one.needles],
        }
        for one in made
    }  # fmt: skip
    said = settings.said()
    return {
        "format": FORMAT, "settings": said, "templates": templates(pictures),
        "sources": [source for source in sources if source["name"] in used], "quarantined": bad, "videos": videos,
        "settings_sha256": hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest(),
    }  # fmt: skip


def _used(manifests: Sequence[str]) -> list[dict[str, Any]]:
    """The sources of other sets: of benchmarks made here, and of dataset=needles."""
    found: list[dict[str, Any]] = []
    for given in manifests:
        path = Path(given) / MANIFEST if Path(given).is_dir() else Path(given)
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            found += value["sources"] if "sources" in value else value["spec"]["sources"]
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise UserError(
                f"avoid={given}: no manifest that names its sources ({type(error).__name__}: {error}); name the "
                "manifest.json of a benchmark made here or of dataset=needles"
            ) from error
    return found


def _without(videos: list[Video], used: Sequence[dict[str, Any]]) -> list[Video]:
    """The videos that no other set used: neither that file nor another one of the same source, name or size."""
    names, sizes = {Path(one["name"]).name for one in used}, {one["bytes"] for one in used}
    taken = {video.source for video in videos if Path(video.name).name in names or video.bytes in sizes}
    left = [video for video in videos if video.source not in taken]
    if not left:
        raise UserError(
            f"avoid: all {len(videos)} videos of the haystack were used by these sets; name another haystack"
        )
    if taken:
        log.info(
            "%d of %d videos of the haystack were used by other sets and are left out",
            len(videos) - len(left),
            len(videos),
        )
    return left


def _put(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    write: Callable[[Any], Any] = lambda file: file.write(text.encode())  # noqa: E731
    write_atomically(path, write)
