"""Folders of runs that somebody else made: hvlm compare and hvlm report name what is wrong in one line, wait for
nothing, and show nothing that steers a browser or a terminal."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from _runs import write_run

from hvlm.commands import compare, convert, report
from hvlm.io import foreign

EVIL = "<i>\x1b]0;x\x07\u202e`|&</title><script>a()</script>\n# x"
DEEP = "[" * 1_200
FILES = (
    "results.json", "predictions.jsonl", "clips/clips.jsonl", "sft/config.yaml", "sft/identity.json",
    "sft/finished.json", "sft/metrics.jsonl", "sft/clips/clips.jsonl",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_run(tmp_path / "a", [True, False, True, True])
    write_run(tmp_path / "b", [True, False, False, True], connector="x")
    return tmp_path


def ended(capsys: pytest.CaptureFixture[str], command: Any, *words: str) -> str:
    """The line that a command ended with, "" where it did what it was told."""
    try:
        command.main(list(words))
    except SystemExit as exit:
        assert exit.code == 1
    out, err = capsys.readouterr()
    assert "Traceback" not in err and err.count("\n") <= 1
    assert not any(ord(c) < 32 and c != "\n" for c in out + err), "nothing steers a terminal"
    return err


def both(capsys: pytest.CaptureFixture[str], folder: Path) -> list[str]:
    return [
        ended(capsys, compare, f"runs={folder}", f"out={folder / 'out'}"),
        ended(capsys, report, f"runs={folder}"),
        ended(capsys, report, f"runs={folder / 'a'}"),
    ]


def put(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_a_run_that_holds_something_else_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    file = folder / "a" / name
    for content in (DEEP, '{"a":' * 70 + "1" + "}" * 70, "{\x00", b'{"a": "\xff"}', "[1]", "1", '"x"', "null"):
        put(file, content)
        both(capsys, folder)
    wrong = {"step": {}, "steps": "x", "chain": 1, "sheet": "../b.png", "val/loss": [1], "question": EVIL, "answer": ""}
    put(file, json.dumps(wrong) + "\n")
    both(capsys, folder)
    file.unlink()
    os.mkfifo(file)
    both(capsys, folder)
    file.unlink()
    file.symlink_to("/dev/zero")
    both(capsys, folder)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("value", ["x", None, [1], {}, True, float("nan"), float("inf"), 10**400]),
        ("stderr", ["x", float("nan"), 10**400]),
        ("chance", ["x", {}]),
        ("n", ["x", None, 1.5]),
        ("seeds", [None, 1, ["x"], [[1]], [10**30]]),
        ("seconds", [None, "x"]),
        ("peak_rss_mb", [None, "x"]),
        ("variant", [None, 1, ["x"]]),
        ("metric", [None, 1]),
        ("command", [1]),
        ("dirty", ["x"]),
        ("further", [[1], {}]),
    ],
)
def test_a_record_of_another_type_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], field: str, values: list[Any]
) -> None:
    file = folder / "a" / "results.json"
    records = json.loads(file.read_text())
    for value in values:
        put(file, json.dumps([{**record, field: value} for record in records]))
        for line in both(capsys, folder):
            assert f"{file}: record 0: {field} is " in line


def test_configurations_that_unfold_or_hold_themselves_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = "abcdefghi"
    bomb = f"{names[0]}: &a [{','.join('x' * 9)}]\n" + "".join(
        f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip(names, names[1:], strict=False)
    )
    command = '!!python/object/apply:os.mkdir ["canary"]'
    for text in (bomb, "a: &a {b: *a}", "a: 2001-99-99", f"a: {command}", "? [1]\n: 2", "a: [", DEEP):
        put(folder / "a" / "sft" / "config.yaml", text)
        (folder / "a" / "sft" / "identity.json").unlink(missing_ok=True)
        for line in both(capsys, folder):
            assert "config.yaml: not readable YAML (" in line
    put(folder / "a" / "sft" / "config.yaml", "{benchmark: {1: 2, a: 3}, connector: {_target_: 5}, seed: 2001-01-01}")
    assert both(capsys, folder) == ["", "", ""]


def test_what_a_run_says_of_itself_stays_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In pages, in Markdown and on a terminal."""
    for run in ("a", "b"):
        place = folder / run
        records = json.loads((place / "results.json").read_text())
        texts = dict.fromkeys(("command", "commit", "cpu", "torch", "question", f"x{EVIL}"), EVIL)
        put(place / "results.json", json.dumps([{**r, **texts, "variant": r["variant"] + EVIL} for r in records]))
        config = {"seed": EVIL, "order": EVIL, "connector": {"_target_": f"a.{EVIL}.b"}, "benchmark": {EVIL: run}}
        put(place / "sft" / "config.yaml", json.dumps(config))
        finished = json.loads((place / "sft" / "finished.json").read_text())
        put(place / "sft" / "finished.json", json.dumps({**finished, "weights_sha256": EVIL}))
        line = {"sheet": "0.png", "key": EVIL, "task": EVIL, "question": EVIL, "answer": EVIL, "prediction": EVIL}
        put(place / "clips" / "clips.jsonl", json.dumps(line))
    assert both(capsys, folder) == ["", "", ""]
    pages = [*folder.rglob("*.html"), *folder.rglob("*.md")]
    assert len(pages) == 6
    for page in pages:
        text = page.read_text()
        assert not any(c < " " and c != "\n" for c in text) or page.suffix == ".html"
        for part in text.replace("\\`", "").split("`")[::2] if page.suffix == ".md" else [text]:
            assert "<script" not in part and "<i>" not in part


def test_a_picture_that_is_a_link_or_no_picture_is_not_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret = b"\x89PNG of another folder"
    put(folder / "elsewhere.png", secret)
    clips = folder / "a" / "clips"
    line = {"key": "k", "question": "q", "answer": "a", "prediction": "p", "right": False}
    put(clips / "clips.jsonl", "".join(json.dumps({**line, "sheet": f"{i}.png"}) + "\n" for i in range(2)))
    (clips / "0.png").symlink_to(folder / "elsewhere.png")
    put(clips / "1.png", b"a text: " + secret)
    both(capsys, folder)
    for page in folder.rglob("*.html"):
        assert "data:image/png" not in page.read_text().replace("img-src data:", "")
        assert base64.b64encode(secret).decode() not in page.read_text()


@pytest.mark.parametrize("name", ["../a", "/etc", 1, "x/../../a", ".."])
def test_the_jobs_of_a_sweep_lie_in_its_folder(folder: Path, capsys: pytest.CaptureFixture[str], name: Any) -> None:
    put(folder / "sweep.json", json.dumps([{"name": name, "status": "done"}]))
    for line in both(capsys, folder)[:2]:
        assert "sweep.json: not the table of a sweep (name is " in line


def test_numbers_that_no_reckoning_takes_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In predictions; and values of command lines that are no YAML."""
    file = folder / "a" / "predictions.jsonl"
    first = file.read_text().split("\n")[0]
    for field, value in (("depth", 10**400), ("length", 10**400), ("depth", float("inf")), ("scores", [10**400, 1])):
        put(file, json.dumps({**json.loads(first), field: value}))
        assert f"line 1: {field} is " in ended(capsys, compare, f"runs={folder}", f"out={folder / 'out'}")
    for text in ("{", "[[[", "2001-99-99"):
        assert "measure" in ended(capsys, compare, f"runs={folder}", f"measure={text}")


def test_names_and_texts_that_are_no_text_are_written_as_escapes(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.rename(folder / "a", folder / "a\udcff")
    assert ended(capsys, report, f"runs={folder}") == ""
    file = folder / "b" / "predictions.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines() if "blind" not in line]
    put(file, "".join(json.dumps({**line, "question": "\ud800"}) + "\n" for line in lines))
    for to in ("vlmevalkit", "lmms_eval"):
        assert ended(capsys, convert, str(file), f"to={to}", f"out={folder / to}") == ""


@pytest.mark.parametrize("unfolds", [lambda: [1] * 11, lambda: {"a": [1] * 10}])
def test_how_much_a_file_of_settings_may_hold(unfolds: Callable[[], Any]) -> None:
    assert foreign.plain([1] * 9, 10) == [1] * 9
    with pytest.raises(ValueError, match="more than 10 values"):
        foreign.plain(unfolds(), 10)
