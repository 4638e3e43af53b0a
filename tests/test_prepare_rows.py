"""Ten thousand rows, one in a hundred broken in each way there is; and the same work, killed in the middle."""

from __future__ import annotations

import csv
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from _tables import TINY, contents, dataset, left_out, made, together, videos, write_csv
from _tiny import ROOT

from hvlm.prepare.command import prepare

ROWS, VIDEOS = 10_000, 100
OPTIONS = ["red", "green", "blue", "none of them"]
# {kind: what it does to a good row}; each hits one row in a hundred.
BROKEN: list[tuple[str, dict[str, Any]]] = [
    ("missing file", {"video": "not there.mp4"}),
    ("no file named", {"video": " "}),
    ("path leads out", {"video": "../secret.mp4"}),
    ("path leads out", {"video": "/etc/passwd"}),
    ("a URL", {"video": "https://example.org/a.mp4"}),
    ("unknown kind of file", {"video": "notes.xyz"}),
    ("empty file", {"video": "empty.mp4"}),
    ("cannot be decoded", {"video": "noise.mp4"}),
    ("cannot be decoded", {"video": "cut.mp4"}),
    ("cannot be decoded", {"video": "codec.mp4"}),
    ("cannot be decoded", {"video": "broken.jpg"}),
    ("empty text", {"question": "  "}),
    ("empty text", {"answer": ""}),
    ("wrong answer", {"answer": "Z"}),
    ("no options", {"options": "['red', 'red']"}),
    ("no options", {"options": "red"}),
    ("the id again", {"id": "row1"}),
    ("not a row", {}),
    ("bad text", {"question": "half \ud800 a character"}),
]


def kind_of(number: int) -> int | None:
    """Which way row ``number`` (from 1) is broken."""
    return number % 100 if 1 < number % 100 < len(BROKEN) + 2 else None


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = videos(tmp_path_factory.mktemp("rows") / "in", VIDEOS)
    (folder / "../secret.mp4").write_bytes(TINY)
    (folder / "notes.xyz").write_bytes(b"notes")
    (folder / "empty.mp4").touch()
    (folder / "noise.mp4").write_bytes(os.urandom(4000))
    (folder / "cut.mp4").write_bytes(TINY[: len(TINY) // 3])
    (folder / "codec.mp4").write_bytes(TINY.replace(b"avc1", b"zzzz"))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 not a picture")
    with open(folder / "table.csv", "w", newline="", encoding="utf-8", errors="surrogatepass") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "video", "question", "options", "answer"])
        for number in range(1, ROWS + 1):
            row = {"id": f"row{number}", "video": f"v{number % VIDEOS}.mp4", "question": f"what colour, {number}?"}
            row |= {"options": str(OPTIONS), "answer": "ABCD"[number % 4]}
            broken = kind_of(number)
            if broken is not None:
                row |= BROKEN[broken - 2][1]
            cells = list(row.values())
            writer.writerow(cells[:3] if broken is not None and BROKEN[broken - 2][0] == "not a row" else cells)
    return folder


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.name != ".lock"}


WORDS = ["max_bad=0.2", "shard_mb=0.08", "answer=answer"]


@pytest.fixture(scope="module")
def straight(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("straight") / "out"
    prepare([str(table), f"out={out}", "workers=1", *WORDS])
    return out


@pytest.mark.fault(108)
def test_of_ten_thousand_rows_exactly_the_good_ones_come_and_the_rest_is_named(straight: Path) -> None:
    broken = {number: BROKEN[kind - 2] for number in range(1, ROWS + 1) if (kind := kind_of(number)) is not None}
    found = {row["row"]: row for row in left_out(straight)}
    kinds = {number: row["kind"] for number, row in found.items()}
    # The surrogate is not UTF-8 in the file, so that the row is none.
    assert kinds == {n: "not a row" if kind == "bad text" else kind for n, (kind, _) in broken.items()}
    for number, (_, change) in broken.items():
        row = found[number]
        assert row["reason"] and row["table"] == "table.csv"
        if "video" in change and change["video"].strip():
            assert row["file"] == change["video"], "the file is named"
    asked = {q["id"]: q for split in contents(straight).values() for s in split.values() for q in s["questions"]}
    assert set(asked) == {f"row{n}" for n in range(1, ROWS + 1) if n not in broken}
    for name, q in asked.items():
        number = int(name[3:])
        assert (q["question"], q["answer"]) == (f"what colour, {number}?", OPTIONS[number % 4])
        assert q["options"] == OPTIONS and q["gold"] == number % 4
    manifest = dataset(straight).manifest()
    assert len(manifest.quarantined) == len(broken)
    assert sum(shard["count"] for shard in manifest.shards.values()) <= VIDEOS, "a video stands there once"


def test_killed_and_started_again_it_makes_the_same_bytes(table: Path, straight: Path, tmp_path: Path) -> None:
    out, drawn = tmp_path / "out", random.Random(3)
    command = [sys.executable, "-m", "hvlm.commands.prepare", str(table), f"out={out}", "workers=2", *WORDS]
    end = time.monotonic() + 600  # on a machine that others use, too
    kept: dict[str, int] = {}
    for _ in range(2):
        child = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)
        until = len(kept) + drawn.randint(2, 6)
        while time.monotonic() < end and len(list(out.glob("*.tar"))) < until:
            assert child.poll() is None, "it ended before it was killed"
            time.sleep(0.002)
        time.sleep(drawn.uniform(0, 0.05))
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert not (out / "manifest.json").exists(), "killed in the middle"
        while time.monotonic() < end and children_of_the_killed(out):
            time.sleep(0.02)
        now = {p.name: p.stat().st_mtime_ns for p in out.glob("*.tar")}
        assert_kept(kept, now)
        kept = now
    prepare([str(table), f"out={out}", "workers=2", *WORDS])
    assert digests(out) == digests(straight)
    assert_kept(kept, {p.name: p.stat().st_mtime_ns for p in out.glob("*.tar")})


def assert_kept(before: dict[str, int], now: dict[str, int]) -> None:
    """Of shards that were whole at a kill, those of which no record was written yet are made again: one a worker."""
    assert sum(now.get(name) == written for name, written in before.items()) >= len(before) - 2


def children_of_the_killed(out: Path) -> bool:
    """Whether a worker of the killed command still holds the folder's lock."""
    import fcntl

    with open(out / ".lock") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_a_caption_that_stands_in_every_row_of_a_clip_is_one_caption(tmp_path: Path, capsys) -> None:
    videos(tmp_path / "src", 2)
    table = [
        {"video": f"v{i}.mp4", "caption": said, "question": f"what {n}?", "answer": "this"}
        for i, said in ((0, "a dog"), (1, "a cat"))
        for n in range(3)
    ]
    table[-1]["caption"] = "another cat"
    write_csv(tmp_path / "src" / "t.csv", table)
    samples = together(made(tmp_path / "src", tmp_path / "out", "split=[1,0,0]"))
    captions = sorted([c["text"] for c in sample["captions"]] for sample in samples.values())
    assert captions == [["a cat", "another cat"], ["a dog"]]
    assert all(len(sample["questions"]) == 3 for sample in samples.values())
    line = next(line for line in "".join(capsys.readouterr()).splitlines() if "train" in line and "│" in line)
    assert line.split("│")[1:7][4].strip() == "3", "clips, sources, rows, captions"
