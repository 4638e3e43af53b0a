"""hvlm report: several runs, or a sweep, on one page that needs nothing else."""

from __future__ import annotations

import io
import json
import re
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from _browser import faults, needs_browser
from _page import Page, leads_away
from _runs import answers, write_run
from PIL import Image

from experiments.report.browser import Browser
from hvlm import commands
from hvlm.evaluation import html, report_runs
from hvlm.evaluation.report import write_report
from hvlm.evaluation.report_runs import over_seeds, write
from hvlm.evaluation.runs import find
from hvlm.io.json_lines import write_lines
from hvlm.sweep.launcher import Job, ProcessLauncher
from hvlm.viz.media import contact_sheet

T, F = True, False
EVIL = "<script>alert(1)</script>"
GOOD, BAD = [T, T, T, T, T, T, T, F], [F, F, T, F, F, F, T, F]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two seeds of one model, which gazes, and one of another; what is asked holds what a page must not run."""
    place = tmp_path / "runs" / f"many {EVIL.replace('/', '')}"
    costs = {"kv_bytes": 100.0, "latency_ms": 9.0}
    for name, seed, connector, right in (
        ("a-seed1", 1, "mean", GOOD),
        ("a-seed2", 2, "mean", GOOD),
        ("b", 1, "x", BAD),
    ):
        made = [p._replace(question=EVIL) if p.question_id == "q0" else p for p in answers(right)]
        write_run(place / name, right, seed=seed, connector=connector, made=made, costs=costs if name == "b" else None)
    frames = np.full((2, 3, 8, 8), 99, np.uint8)
    clips = place / "a-seed1" / "clips"
    contact_sheet(frames, clips / "0.png")
    asked = {"sheet": "0.png", "key": "clip0", "options": ["a", "b"], "answer": "a", "prediction": "a", "right": True}
    write_lines(clips / "clips.jsonl", [
        {**asked, "task": "shape", "question": EVIL}, {**asked, "task": "way", "question": "where to ?"}
    ])  # fmt: skip
    drawn = place / "a-seed1" / "sft" / "clips"
    line = {"step": 9, "split": "val", "question": "looked ?", "answer": "a", "prediction": "b"}
    for kind in ("gaze", "merged"):
        contact_sheet(frames, drawn / f"{kind}.png")
    write_lines(drawn / "clips.jsonl", [{**line, "gaze": "gaze.png", "merged": "merged.png"}])
    return place


@pytest.mark.fault(115)
def test_several_runs_are_one_page_that_needs_nothing_else(folder: Path) -> None:
    page_file = write(find([folder])[0], folder, "hvlm report runs=many", ["c is left out: failed"])
    text = page_file.read_text()
    page = Page(text)
    tags = [tag for tag, _ in page.tags]
    assert not {"script", "link", "iframe", "form"} & set(tags), "nothing is loaded, and nothing of the data runs"
    assert not [
        a for _, a in page.tags if any(name.startswith("on") or name == "srcset" for name in a) or leads_away(a)
    ]
    assert all(a["src"].startswith("data:image/png;base64,") for tag, a in page.tags if tag == "img")
    assert tags.count("img") == 3, "a contact sheet, a gaze and a map of what was merged"
    heads = re.findall(r"<h2>(.*?)</h2>", text)
    assert heads == [
        "accuracy_macro", "Worth and cost", "Against a, question by question", "Not in the tables", "How they learned",
        "What they looked at", "Clips", "How it was made",
    ]  # fmt: skip
    pictures = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    for picture in pictures:
        ET.fromstring(picture)
    assert len(pictures) == 1 + 2 + 2, "bars, two costs, and two curves of the one stage"
    bands = [picture for picture in pictures if 'class="band"' in picture]
    assert len(bands) == 2 and "Shaded: one standard error of the mean over seeds." in page.text
    assert "c is left out: failed" in page.text and EVIL in page.text
    seeds = re.search(r"Seeds and intervals</h3>.*?<td>a</td>(.*?)</tr>", text, re.DOTALL)
    assert seeds is not None and "1: 87.5 %, 2: 87.5 %" in seeds[1] and " to 100.0 %" in seeds[1]
    tasks = text[text.index("Task by task") :]
    assert "<td>shape</td>" in tasks and "<td>way</td>" in tasks
    for words in (
        "python train.py connector=mean seed=1",
        "python train.py connector=mean seed=2",
        "hvlm report runs=many",
    ):
        assert words in page.text, "the commands that make it again"
    assert "| 1 | a" in page_file.with_suffix(".md").read_text()


def test_clips_have_the_answers_of_all_and_those_without_the_video(folder: Path) -> None:
    text = write(find([folder])[0], folder, "c").read_text()
    clips = text[text.index("<h2>Clips") :]
    assert "<th>right answer</th><th>a</th><th>b</th><th>without video</th>" in clips
    assert "<td>where to ?</td><td>a</td><td>a ✓</td><td>b ✗</td><td>a ✓</td>" in clips


def test_curves_over_seeds_are_their_mean_with_its_error() -> None:
    mean, band = over_seeds([[(1, 2.0), (2, 4.0), (3, 9.0)], [(1, 4.0), (2, 4.0)]])
    assert mean == [(1.0, 3.0), (2.0, 4.0)] and band == [(1.0, 2.0, 4.0), (2.0, 4.0, 4.0)]
    assert over_seeds([[(1, 2.0)]]) == ([(1.0, 2.0)], []) and over_seeds([]) == ([], [])


def test_runs_without_results_show_how_they_learn(folder: Path) -> None:
    for name in ("a-seed1", "a-seed2", "b"):
        (folder / name / "results.json").unlink()
    text = write(find([folder], scored=False)[0], folder, "c").read_text()
    assert "b has no results yet" in text and "How they learned" in text and "<h2>Clips" not in text


def test_a_sweep_ends_with_a_report_of_its_jobs(folder: Path, capsys: pytest.CaptureFixture) -> None:
    jobs = [Job(name, [], "", status="done") for name in ("a-seed1", "a-seed2", "b")] + [Job("c", [], "", "failed")]
    (folder / "sweep.json").write_text(json.dumps([job.record() for job in jobs]))
    launcher = ProcessLauncher()
    launcher.folder, launcher.finished = folder, jobs
    launcher._report()
    assert f"report: {folder}/report.html" in capsys.readouterr().out
    assert "is left out: failed" in (folder / "report.html").read_text()
    (folder / "b" / "results.json").write_text("[{}]")
    launcher._report()
    assert "no report: " in (said := capsys.readouterr().out) and "lacks question" in said
    launcher.finished = jobs[3:]
    launcher._report()
    assert capsys.readouterr().out == "", "nothing is done, so there is nothing to report"


def test_the_command_reports_one_run_in_its_folder_and_several_above(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for words, place in (
        ([f"runs={folder / 'b'}"], folder / "b"),
        ([str(folder)], folder),
        ([str(folder / "b"), f"out={folder / 'x'}"], folder / "x"),
    ):
        monkeypatch.setattr(sys, "argv", ["hvlm", "report", *words])
        commands.run()
        assert (place / "report.html").is_file() and (place / "report.md").is_file()
        assert f"written to {place / 'report.html'}" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["hvlm", "report", f"runs={folder / 'nothing'}"])
    with pytest.raises(SystemExit):
        commands.run()
    assert re.match("error: runs=.*nothing: no such folder or file", capsys.readouterr().err)
    commands.run(["report", "--help"])
    assert capsys.readouterr().out.startswith("usage: hvlm report runs=A,B")
    assert report_runs.NAME == "report"


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    with Browser() as opened:
        yield opened


@needs_browser
def test_a_browser_opens_the_pages_without_complaint(folder: Path, window: Browser) -> None:
    """Of several runs, and of one: nothing is asked for, all pictures are seen, nothing is cut off or hard to read."""
    several = write(find([folder])[0], folder, "hvlm report", ["c is left out: failed"])
    one = write_report(folder / "a-seed1").with_suffix(".html")
    for page, words in ((several, "Against a, question by question"), (one, "Where it looked")):
        window.open(page)
        assert words in window.value("document.body.innerText")
        assert faults(window) == []
        assert len(window.pictures()) > 3 and window.requests[0].startswith("file:")
    shades = Image.open(io.BytesIO(window.picture())).convert("L").getextrema()
    assert shades[0] < 100 and shades[1] > 200, "there is something on it"


@needs_browser
def test_a_browser_opens_the_page_that_a_chain_ends_with(trained: tuple[Path, list[str]], window: Browser) -> None:
    page = trained[0] / "runs" / "tiny" / "report.html"
    window.open(page)
    assert faults(window) == [] and page.stat().st_size < 5_000_000
    text = window.value("document.body.innerText")
    for words in ("without the video", "thanks to the video", "vision → align → sft → dpo", "Where it looked"):
        assert words in text, "the figure beside its controls, what was trained, and what it saw"


@needs_browser
def test_a_browser_would_find_what_is_wrong_with_a_page(window: Browser, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    hard = [
        "<script>document.title = 'ran'</script><img src='http://localhost/x.png'>",
        '<p style="width: 900px">wide</p><p style="color: #999">pale</p><p style="font-size: 8px">small</p>',
    ]
    page.write_text(html.document("x", hard))
    window.open(page)
    found = faults(window)
    assert window.value("document.title") == "x", "the page's own policy forbids it"
    for words in ("complained: ", "does not fit 400 ", "pale", "small", "no picture"):
        assert [line for line in found if words in line], words
    page.write_text(html.document("x", hard).replace("default-src 'none'; img-src data:", "img-src *"))
    window.open(page)
    assert "asked for http://localhost/x.png" in faults(window), "without it the picture would be fetched"


def test_a_page_is_small_enough_to_send(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (8, 3, 64, 64), dtype=np.uint8)
    names = [f"{i}.png" for i in range(5)]
    for name in names:
        contact_sheet(noise, tmp_path / name, scale=1)
    contact_sheet(noise[:1], tmp_path / "small.png", scale=1)
    before = (tmp_path / "0.png").stat().st_size
    assert before > html.LIGHT_ENOUGH and len(html.image(tmp_path, "0.png")) < 0.7 * before, "256 colours"
    monkeypatch.setattr(html, "MOST_OF_PICTURES", 4 * len(html.image(tmp_path, "0.png")))
    page = html.document("x", [html.image(tmp_path, name) for name in [*names, "small.png"]])
    assert 'alt="small.png"' in page and 'alt="0.png"' in page, "the smallest stay, and the first"
    assert page.count("is left out to keep the page small") == 2 and len(page) < 5 * len(html.image(tmp_path, "0.png"))
    (tmp_path / "0.png").write_bytes((tmp_path / "0.png").read_bytes()[:70_000])
    assert 'alt="0.png"' in html.image(tmp_path, "0.png"), "a damaged one stays as it is"
