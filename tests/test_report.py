"""report.html: one page with plots, wrong answers first, and nothing of the data that a browser would run."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _page import Page, leads_away

from hvlm.evaluation import results
from hvlm.evaluation.predictions import write_predictions
from hvlm.evaluation.report import write_report
from hvlm.evaluation.report_data import Row, is_share
from hvlm.evaluation.report_summary import figures
from hvlm.evaluation.scores import Prediction
from hvlm.viz.media import contact_sheet
from hvlm.viz.plots import Bar, bars, curves, thinned, ticks

EVIL = "</td><script>alert('x')</script><img src=http://x/y onerror=alert(1)>"


def svg(text: str) -> ET.Element:
    return ET.fromstring(text)


def named(root: ET.Element, name: str) -> list[ET.Element]:
    return [e for e in root.iter() if e.tag.endswith(name)]


# ------------------------------------------------------------------------------------------------------------- plots


def test_curves_keep_their_ends_and_one_point_is_a_dot() -> None:
    long = [(i, float(i % 7)) for i in range(5000)]
    root = svg(curves("loss", {"train/loss": long, "val/loss": [(100, 3.0)]}, (100, 3.0, "3 at step 100")))
    (line,) = named(root, "polyline")
    points = [tuple(map(float, p.split(","))) for p in line.get("points", "").split()]
    assert len(points) <= 300 and points[0][0] < points[-1][0]
    assert len(named(root, "circle")) == 2, "the only point, and the mark around it"
    texts = [t.text for t in named(root, "text")]
    assert {"train/loss", "val/loss", "3 at step 100", "loss"} <= set(texts)
    assert curves("loss", {}) == "" and curves("loss", {"a": []}) == ""
    assert thinned([(0, 1.0), (1, 2.0)]) == [(0, 1.0), (1, 2.0)]
    svg(curves("flat", {"a": [(3, 0.0)]}))


def test_higher_values_are_drawn_higher() -> None:
    (line,) = named(svg(curves("x", {"a": [(0, 1.0), (1, 9.0), (2, 4.0)]})), "polyline")
    heights = [float(p.split(",")[1]) for p in line.get("points", "").split()]
    assert heights[1] < heights[2] < heights[0]


def test_bars_have_errors_chance_and_control() -> None:
    root = svg(bars([Bar("a", 0.5, 0.1, 0.25, 0.3), Bar("b", 1.0)]))
    widths = [float(r.get("width", "")) for r in named(root, "rect")]
    assert widths[1] == pytest.approx(2 * widths[0])
    marks = [e.get("class") for e in root.iter() if e.get("class") in ("error", "chance", "control")]
    assert marks == ["error", "chance", "control"]
    texts = [t.text for t in named(root, "text")]
    assert "50.0 ± 10.0 %" in texts and "100.0 %" in texts and "dashed: chance" in texts
    assert "dashed: chance" not in bars([Bar("b", 1.0)]) and bars([]) == ""
    svg(bars([Bar(EVIL, 0.5)]))


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(0.13, 0.21) == pytest.approx([0.14, 0.16, 0.18, 0.2])
    assert ticks(2, 2) == [2]


def test_what_is_shown_in_percent() -> None:
    shares = [
        "accuracy_mean",
        "accuracy_4of4/x",
        "normalised_macro",
        "exact/f1",
        "f1_micro_without_x",
        "reward_accuracy",
    ]
    assert all(map(is_share, shares))
    assert not any(map(is_share, ["kv_bytes", "answers_missing", "latency_ms", "questions_without_video", "f10"]))


# --------------------------------------------------------------------------------------------------------- the page


def record(metric: str, value: float, variant: str = "mean", **changes: Any) -> dict[str, Any]:
    settings = {"stderr": 0.02, "n": 9, "chance": 0.25, "seeds": [0], "seconds": 1.0, "command": "python eval.py"}
    return results.make("demo", variant, metric, value, **settings | changes)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "demo"
    for stage, start in (("align", None), ("sft", "align")):
        (folder / stage / "clips").mkdir(parents=True)
        rooms = {"connector": {"_target_": "hvlm.connector.foveated.Foveated"}, "order": "question_first", "seed": 1}
        (folder / stage / "config.yaml").write_text(json.dumps(rooms))
        done = {"steps": 20, "seconds": 75.2, "weights_sha256": stage, "start": {"weights_sha256": start}}
        (folder / stage / "finished.json").write_text(json.dumps(done))
        lines = [{"step": s, "train/loss": 5 - s / 10} for s in range(20)]
        lines += [{"step": s, "val/loss": loss} for s, loss in ((5, 5.0), (10, 3.5), (19, 4.0))]
        (folder / stage / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    frames = np.full((2, 3, 8, 8), 99, np.uint8)
    for step in (10, 20):
        names = {kind: f"val-step{step}-{kind}.png" for kind in ("gaze", "gaze_path")}
        for name in names.values():
            contact_sheet(frames, folder / "sft/clips" / name)
        line = {"step": step, "split": "val", "question": f"where {step} ?", "answer": "a", "prediction": "b", **names}
        with open(folder / "sft/clips/clips.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
    results.write(folder / "results.json", [record("accuracy_mean", 0.6), record("accuracy_mean", 0.3, "blind")])
    (folder / "clips").mkdir()
    asked = {"task": "t", "options": ["red", "blue"], "answer": "red"}
    shown = [
        {"sheet": "0.png", "key": "fine", "question": "good ?", "prediction": "red", "right": True, **asked},
        {"sheet": "1.png", "key": "bad", "question": EVIL, "prediction": "blue", "right": False, **asked},
    ]
    for line in shown:
        contact_sheet(frames, folder / "clips" / line["sheet"])
    (folder / "clips/clips.jsonl").write_text("".join(json.dumps(line) + "\n" for line in shown))
    made = [
        Prediction("1", "v", "t", 0, ("red", "blue"), 0, 1, None, "mean", question="which colour ?"),
        Prediction("1", "v", "t", 1, ("red", "blue"), 0, 1, None, "mean", question="which colour ?"),
        Prediction("2", "v", "t", 0, ("red", "blue"), 0, 0, None, "mean", question="answered rightly ?"),
        Prediction("1", "v", "t", 0, ("red", "blue"), 0, 1, None, "blind", question="only the blind ?"),
        Prediction("5", "bad", "t", 0, ("red", "blue"), 0, 0, None, "blind", question=EVIL),
        Prediction("3", "v", "t", 0, (), None, None, None, "mean", "Two.", ("2",), question="how many ?"),
        Prediction("4", "v", "t", 0, (), None, None, None, "mean", EVIL, ("2", "two"), question=EVIL),
    ]
    write_predictions(folder / "predictions.jsonl", made)
    return folder


@pytest.mark.fault(105, 115)
def test_the_page_holds_plots_and_pictures_and_needs_nothing_else(run: Path) -> None:
    assert write_report(run) == run / "report.md" and (run / "report.md").exists()
    text = (run / "report.html").read_text()
    page = Page(text)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("svg") == 3, "the bars, and the loss of two stages"
    assert tags.count("img") == 4, "two sheets, and the gaze of the newest step with its path"
    assert all(a["src"].startswith("data:image/png;base64,") for tag, a in page.tags if tag == "img")
    assert "script" not in tags and "link" not in tags, "nothing is loaded"
    assert not [a for _, a in page.tags if any(name.startswith("on") for name in a) or leads_away(a)]
    assert page.text.count("<script>") == 3, "on the sheet, in the list and in its answer: to be read, not to be run"
    for part in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        svg(part)
    assert "Lowest val/loss: 3.5 at step 10, of 3 validations" in page.text
    assert "Lowest val/loss: 3.5 at step 10" in (run / "report.md").read_text()
    assert "connector=foveated" in page.text and "20 steps in 1:15 min" in page.text


@pytest.mark.fault(115)
def test_wrong_answers_come_first_with_what_was_asked_and_said(run: Path) -> None:
    write_report(run)
    text = (run / "report.html").read_text()
    assert text.index("Wrong answers") < text.index(">bad<") < text.index("which colour ?") < text.index(">fine<")
    assert "2 questions were answered wrongly" in text, "one line for all tries; 'Two.' is 2; not the blind control's"
    assert text.count("which colour ?") == 1
    for absent in ("answered rightly ?", "only the blind ?", "how many ?", "where 10 ?"):
        assert absent not in text
    order = ("<h3>align<", "<h3>sft<", "<h2>Where it looked", "where 20 ?")
    assert [text.index(part) for part in order] == sorted(text.index(part) for part in order)
    assert "| right | good ? | red | red |" in (run / "report.md").read_text()


def test_what_was_answered_without_the_video_stands_beside_it(run: Path) -> None:
    write_report(run)
    text = (run / "report.html").read_text()
    row = re.search(r"<td>WRONG</td>(.*?)</tr>", text)[1]
    assert row.endswith("<td>red</td><td>blue</td><td>red</td>"), "right, answered, and blind"
    listed = re.search(r"<td>which colour \?</td>(.*?)</tr>", text)[1]
    assert listed.endswith("<td>red</td><td>blue</td><td>blue</td>")


def test_costs_merging_settings_and_the_command_are_on_the_page(run: Path) -> None:
    records = results.read(run / "results.json")
    results.write(run / "results.json", [*records, record("kv_bytes", 29184.0, stderr=None, chance=None)])
    for kind in ("merged", "budget"):
        contact_sheet(np.zeros((1, 3, 8, 8), np.uint8), run / "sft/clips" / f"{kind}.png")
    line = {"step": 30, "split": "val", "question": "what ?", "answer": "a", "prediction": "b"}
    with open(run / "sft/clips/clips.jsonl", "a") as file:
        file.write(json.dumps({**line, "merged": "merged.png", "budget": "budget.png"}) + "\n")
    write_report(run)
    text = (run / "report.html").read_text()
    assert '<td>keys and values that are kept (KV cache)</td><td class="n">29.2 kB</td>' in text
    assert text.index("<h2>Where it looked") < text.index("<h2>What was merged") < text.index("<h2>How it was made")
    assert text.count('alt="merged.png"') == text.count('alt="budget.png"') == 1
    assert '<pre class="command">python eval.py</pre>' in text and text.count("all its settings") == 2
    assert "hvlm.connector.foveated.Foveated" in text


def test_texts_of_data_stay_texts_in_markdown(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "clips" / "clips.jsonl").read_text().splitlines()]
    for line in lines:
        line.update(key="a\n](x)", question="a | b\n# c ![d](http://x)", answer="<script>", prediction=r"\[e](f)")
    (run / "clips" / "clips.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "results.json").write_text(json.dumps([record("accuracy/a|b<c", 0.5)]))
    write_report(run)
    text = (run / "report.md").read_text()
    assert r"accuracy/a\|b&lt;c" in text and r"| a \| b / # c !\[d\](http://x) | &lt;script> |" in text
    assert r"\\\[e\](f)" in text, "what escapes is escaped, too"
    assert r"![a / \](x)](clips/" in text and "<script" not in text


def test_a_clips_file_names_no_picture_outside_of_its_folder(run: Path) -> None:
    line = {"sheet": "../../secret.png", "key": "k", "question": "q", "answer": "a", "prediction": "b"}
    (run / "clips/clips.jsonl").write_text(json.dumps(line) + "\n")
    contact_sheet(np.zeros((1, 3, 8, 8), np.uint8), run.parent / "secret.png")
    write_report(run)
    assert "(no picture ../../secret.png)" in (run / "report.html").read_text()


def test_means_that_leave_out_tasks_and_open_chance_are_said(run: Path) -> None:
    left_out = record("accuracy_mean", 0.5, columns={"left_out": "direction"})
    results.write(run / "results.json", [left_out, record("normalised_macro", 0.1)])
    write_report(run)
    text = (run / "report.html").read_text()
    assert "leave out direction" in text and "most common right answer" in text


def test_a_figure_without_an_error_claims_none_and_the_page_is_called_as_its_folder(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = Row({**record("accuracy", 0.5), "stderr": None, "n": 1}, None, None)
    (card, *_) = figures(bare, None)
    assert card.more == "1 question"
    assert figures(Row(record("accuracy", 0.5), None, None), None)[0].more.endswith("± one standard error")
    monkeypatch.chdir(run)
    write_report(Path("."))
    assert f"<title>{run.name}</title>" in (run / "report.html").read_text()
