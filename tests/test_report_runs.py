"""hvlm report: several runs, or a sweep, on one page that needs nothing else."""

from __future__ import annotations

import json
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from _browser import look, needs_browser
from _page import Page
from _runs import answers, write_run

from hvlm import commands
from hvlm.evaluation import report_runs
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
    assert not {"script", "link", "iframe", "a", "form"} & set(tags), "nothing is loaded, and nothing of the data runs"
    assert not [a for _, a in page.tags if any(name.startswith("on") or name in ("href", "srcset") for name in a)]
    assert all(a["src"].startswith("data:image/png;base64,") for tag, a in page.tags if tag == "img")
    assert tags.count("img") == 3, "a contact sheet, a gaze and a map of what was merged"
    heads = re.findall(r"<h2>(.*?)</h2>", text)
    assert heads == [
        "accuracy_macro", "Worth and cost", "Against a, question by question", "How they learned",
        "What they looked at", "Clips", "How it was made",
    ]  # fmt: skip
    pictures = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    for picture in pictures:
        ET.fromstring(picture)
    assert len(pictures) == 1 + 2 + 2, "bars, two costs, and two curves of the one stage"
    bands = [picture for picture in pictures if 'class="band"' in picture]
    assert len(bands) == 2 and "Shaded: one standard error of the mean over seeds." in page.text
    assert "c is left out: failed" in page.text and EVIL in page.text
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


@needs_browser
def test_a_browser_opens_the_pages_without_complaint(folder: Path, tmp_path: Path) -> None:
    several = write(find([folder])[0], folder, "hvlm report")
    one = write_report(folder / "a-seed1").with_suffix(".html")
    for page, words in ((several, "Against a, question by question"), (one, "Where it looked")):
        dom, complaints = look(page, tmp_path / "browser")
        assert not complaints and words in dom and "<script" not in dom, complaints
    look(several, tmp_path / "browser", tmp_path / "page.png")
    from PIL import Image

    shades = Image.open(tmp_path / "page.png").convert("L").getextrema()
    assert shades[0] < 100 and shades[1] > 200, "there is something on it"


@needs_browser
def test_a_browser_would_complain_of_what_is_loaded_or_run(tmp_path: Path) -> None:
    from hvlm.evaluation.html import document

    page = tmp_path / "page.html"
    page.write_text(document("x", ["<script>document.title = 'ran'</script><img src='http://localhost/x.png'>"]))
    dom, complaints = look(page, tmp_path / "browser")
    assert len(complaints) >= 2 and "<title>x</title>" in dom, "the page's own policy forbids it"
