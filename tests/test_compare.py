"""hvlm compare: which runs are one line, what they are worth and cost, and who is ahead on the same questions."""

from __future__ import annotations

import json
import re
import shutil
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from _runs import answers, write_run

from hvlm import commands
from hvlm.errors import UserError
from hvlm.evaluation import comparison, paired, results
from hvlm.evaluation.comparison import compare, write
from hvlm.evaluation.leaderboard import COSTS, lines_of
from hvlm.evaluation.predictions import write_predictions
from hvlm.evaluation.runs import find
from hvlm.evaluation.scores import Prediction, score
from hvlm.viz.scatter import Point, front, scatter, short

T, F = True, False
GOOD, MIDDLE, BAD = [T, T, T, T, T, T, T, F], [T, F, T, T, T, F, T, F], [F, F, T, F, F, F, T, F]
EVIL = "</td><script>alert('x')</script>"


def of(*folders: Path) -> list:
    return find(list(folders))[0]


# ------------------------------------------------------------------------------------------------------------- fronts


def test_the_front_is_what_no_other_beats() -> None:
    points = [(1.0, 0.5), (2.0, 0.9), (3.0, 0.9), (3.0, 0.95), (0.5, 0.2), (1.0, 0.4)]
    assert front(points) == [True, True, False, True, True, False]
    assert front(points, less=False) == [False, False, False, True, False, False], "tokens a second: more is better"
    assert front([(1.0, 0.5), (1.0, 0.5)]) == [True, True] and front([]) == []


def test_a_plot_of_points_names_them_and_steps_along_the_front() -> None:
    points = [Point("a", 10.0, 0.5, 0.05), Point("b", 2000.0, 0.9, 0.01), Point(EVIL, 3000.0, 0.6)]
    text = scatter("accuracy", "KV bytes", points, percent=True)
    root = ET.fromstring(text)
    circles = [e for e in root.iter() if e.tag.endswith("circle")]
    assert [c.get("fill") != "#fff" for c in circles] == [True, True, False]
    assert float(circles[1].get("cy")) < float(circles[2].get("cy")) < float(circles[0].get("cy"))
    (line,) = [e for e in root.iter() if e.get("class") == "front"]
    assert line.get("d") == f"M{circles[0].get('cx')} {circles[0].get('cy')}H{circles[1].get('cx')}V" + circles[1].get(
        "cy"
    ), "what is bought with ten bytes can be had up to two thousand"
    assert len([e for e in root.iter() if e.get("class") == "error"]) == 2
    assert "script" not in {e.tag for e in root.iter()} and {"1k", "100"} <= {e.text for e in root.iter()}
    alone = ET.fromstring(scatter("x", "y", [Point("one", 0.0, 0.0)]))
    assert scatter("x", "y", []) == "" and len([e for e in alone.iter() if e.tag.endswith("circle")]) == 1
    assert [short(x) for x in (999.9, 12_345, 4.1e8, 0.5, 0)] == ["1k", "12.3k", "410M", "0.5", "0"]


# -------------------------------------------------------------------------------------------------------------- lines


def test_runs_that_differ_in_their_seed_alone_are_one_line(tmp_path: Path) -> None:
    write_run(tmp_path / "a-seed1", GOOD, seed=1)
    write_run(tmp_path / "a-seed2", MIDDLE, seed=2, costs={"latency_ms": 40.0})
    write_run(tmp_path / "other", BAD, seed=1, connector="patches", stage__steps=30)
    runs, notes = find([tmp_path])
    first, second = lines_of(runs)
    assert (first.name, list(first.runs), first.score["seeds"]) == ("a", [1, 2], [1, 2]) and not notes
    assert first.score["value"] == pytest.approx((7 / 8 + 5 / 8) / 2) and first.costs["latency_ms"] == 30
    assert first.blind["value"] == 0.5 and first.costs["tokens_per_frame"] == 1
    assert first.settings == ("connector=mean", "stage.steps=20")
    assert second.settings == ("connector=patches", "stage.steps=30") and second.name == "other"


@pytest.mark.parametrize("other", [{"data__sha256": "other data"}, {"dataset__set": "hard"}])
def test_runs_with_other_settings_or_data_are_lines_of_their_own(tmp_path: Path, other: dict[str, str]) -> None:
    runs = of(write_run(tmp_path / "a", GOOD, seed=1), write_run(tmp_path / "b", GOOD, seed=2, **other))
    assert {line.name for line in lines_of(runs)} == {"a", "b"}
    config = tmp_path / "b" / "sft" / "config.yaml"
    (tmp_path / "b" / "sft" / "identity.json").write_text((tmp_path / "a" / "sft" / "identity.json").read_text())
    assert len(lines_of(of(tmp_path / "a", tmp_path / "b"))) == 1
    config.write_text(config.read_text().replace('"tries": 1', '"tries": 4'))
    assert len(lines_of(of(tmp_path / "a", tmp_path / "b"))) == 2, "another benchmark is another score"


def test_what_task_cost_measured_counts_more_and_what_lacks_is_said(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", GOOD)
    kept = [r for r in results.read(run / "results.json") if r["metric"] not in ("frames", "decode_tokens_per_s")]
    results.write(run / "results.json", kept)
    other = write_run(tmp_path / "b", BAD, connector="patches")
    found = compare(of(run, other))
    assert "tokens_per_frame" not in found.lines[0].costs
    (note,) = found.notes
    lacks = "a: no tokens per frame, decode tokens/s; hvlm eval task=cost "
    assert note == f"{lacks}checkpoint={run} measures them, measure=true of all"
    about = {"stderr": None, "n": 1, "chance": None, "seeds": [1], "seconds": 1.0, "command": "c"}
    values = {"frames": 4, "visual_tokens": 8, "decode_tokens_per_s": 7, "latency_ms": 5}
    (run / "cost").mkdir()
    results.write(
        run / "cost" / "results.json", [results.make("cost", "model", k, v, **about) for k, v in values.items()]
    )
    costs = compare(of(run, other)).lines[0].costs
    assert (costs["tokens_per_frame"], costs["decode_tokens_per_s"], costs["latency_ms"]) == (2, 7, 5)
    assert costs["kv_bytes"] == 1000


def test_fronts_are_of_each_cost(tmp_path: Path) -> None:
    runs = of(
        write_run(tmp_path / "good", GOOD, costs={"kv_bytes": 9000.0, "decode_tokens_per_s": 200.0}),
        write_run(tmp_path / "middle", MIDDLE, connector="patches", costs={"kv_bytes": 500.0}),
        write_run(tmp_path / "bad", BAD, connector="longvlm", costs={"kv_bytes": 700.0}),
    )
    on = {line.name: line.on_front for line in lines_of(runs)}
    assert on["good"] == {
        "tokens_per_frame", "latency_ms", "decode_tokens_per_s", "kv_bytes", "parameters", "prefill_flops"
    }  # fmt: skip
    assert on["middle"] == {"kv_bytes"} and on["bad"] == set()


def test_a_results_file_is_a_line_for_each_variant(tmp_path: Path) -> None:
    about = {"stderr": 0.01, "n": 9, "chance": 0.25, "seeds": [1, 2], "seconds": 1.0, "command": "c"}
    records = [
        results.make("q", variant, "accuracy_mean", value, columns={"keep": keep}, **about)
        for variant, keep, value in (("tome", 0.5, 0.8), ("tome", 0.25, 0.7), ("blind", 0.5, 0.2))
    ]
    results.write(tmp_path / "merging.json", records)
    lines = lines_of(of(tmp_path / "merging.json"))
    assert [line.name for line in lines] == ["merging tome keep=0.5", "merging tome keep=0.25"]
    assert lines[0].blind["value"] == 0.2 and lines[1].blind is None


# -------------------------------------------------------------------------------------------------------- differences


def test_a_difference_is_that_of_the_questions_both_were_asked(tmp_path: Path) -> None:
    """By hand: ahead in q1, q3 and q5, behind in none, 8 questions of 4 videos, two tasks that weigh the same."""
    good = write_run(tmp_path / "good", [T, T, T, T, T, T, T, F])
    bad = write_run(tmp_path / "bad", [T, F, T, F, T, F, T, F], connector="patches")
    found = compare(of(good, bad), baseline="bad")
    (d,) = found.differences
    assert (d.first, d.second, d.n, d.other, d.seeds) == ("good", "bad", 8, 0, [(1, 1)])
    assert d.value == pytest.approx((0 + 3 / 4) / 2)
    # Residuals of task way: 1/4 three times, -3/4 once, each times 1/8: 4/3 * (3 * (1/32)^2 + (3/32)^2).
    assert d.stderr == pytest.approx((4 / 3 * 12 / 32**2) ** 0.5)
    assert d.interval == pytest.approx((0.375 - 1.96 * 0.125, 0.375 + 1.96 * 0.125))
    (back,) = compare(of(good, bad)).differences
    assert back.value == -d.value and back.stderr == d.stderr
    same = compare(of(good, write_run(tmp_path / "same", [T, T, T, T, T, T, T, F], connector="longvlm")))
    assert (same.differences[0].value, same.differences[0].stderr) == (0, 0), "alike in every question"


def test_seeds_stand_beside_their_like(tmp_path: Path) -> None:
    for seed, ahead in ((1, [T] * 4), (2, [T, T, T, F])):
        write_run(tmp_path / f"good-seed{seed}", [x for y in ahead for x in (T, y)], seed=seed)
        write_run(tmp_path / f"bad-seed{seed}", [T, F] * 4, seed=seed, connector="patches")
    (d,) = compare(find([tmp_path])[0], baseline="bad").differences
    assert d.seeds == [(1, 1), (2, 2)] and d.value == pytest.approx((0.5 + 0.375) / 2)
    within = (0 + 0.125**2) / 2
    between = 2 * 0.0625**2 / 2
    assert d.stderr == pytest.approx((within + between) ** 0.5)


def test_questions_of_one_name_that_ask_something_else_are_not_compared(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", GOOD)
    changed = [p._replace(question="another ?") if p.question_id == "q0" else p for p in answers(BAD)]
    changed = [p._replace(options=("a", "c")) if p.question_id == "q2" else p for p in changed]
    second = write_run(tmp_path / "b", BAD, connector="patches", made=changed[:14])
    (d,) = compare(of(first, second)).differences
    assert (d.n, d.other) == (5, 3), "q0 and q2 are other questions, q7 was not asked of b"
    nothing = write_run(tmp_path / "c", BAD, connector="longvlm", made=[p._replace(question="?") for p in answers(BAD)])
    found = compare(of(first, nothing))
    assert not found.differences and "c and a were asked no question in common, or about other clips" in found.notes


def test_questions_that_are_alike_by_chance_about_clips_of_the_same_name_are_not_compared(tmp_path: Path) -> None:
    """As of two data sets that number their clips alike: half of two options are the right ones in both."""
    first = write_run(tmp_path / "a", GOOD)
    flipped = [p._replace(gold=1 - p.gold) if p.question_id in ("q1", "q4", "q6") else p for p in answers(BAD)]
    second = write_run(tmp_path / "b", BAD, connector="patches", made=flipped)
    found = compare(of(first, second))
    assert not found.differences and "b and a were asked no question in common, or about other clips" in found.notes


def test_processors_of_seeds_that_were_put_together_are_named_once(tmp_path: Path) -> None:
    runs = of(write_run(tmp_path / "a", GOOD), write_run(tmp_path / "b", BAD, connector="patches"))
    for run, cpu in zip(runs, ("EPYC", "EPYC ; Xeon"), strict=True):
        for record in run.records:
            record["cpu"] = cpu
    (note,) = [note for note in compare(runs).notes if "processors" in note]
    assert "(EPYC; Xeon)" in note


def test_answers_that_do_not_make_the_score_are_left_out_and_named(tmp_path: Path) -> None:
    first, second = write_run(tmp_path / "a", GOOD), write_run(tmp_path / "b", BAD, connector="patches")
    write_predictions(second / "predictions.jsonl", answers(MIDDLE))
    found = compare(of(first, second))
    (note,) = found.notes
    assert not found.differences and note.startswith(
        "b, seed 1: its predictions.jsonl gives 0.625 and its results.json"
    )
    (second / "predictions.jsonl").unlink()
    (note,) = compare(of(first, second)).notes
    assert note == "b: no predictions.jsonl with the answers, so no paired differences"


def test_every_mean_of_answers_is_made_again() -> None:
    tasks, options = ("way", "direction"), ("a", "b")
    tries = [
        Prediction(f"q{i // 4}", f"v{i // 8}", tasks[i // 4 % 2], i % 4, options, 0, int(i % 5 == 0), None, "m")
        for i in range(32)
    ]
    asked: dict = {}
    for p in tries:
        asked.setdefault((p.task, p.question_id), []).append(p)
    for row in score(tries, apart=("direction",)):
        assert paired.gives_again(asked, paired.way_of(row), row["value"]), row["metric"]
        assert not paired.gives_again(asked, paired.way_of(row), row["value"] + 0.01)
    for name in ("cider_d_macro", "recall@1", "bleu_4_corpus", "latency_ms"):
        assert paired.way_of({"metric": name}) is None
    assert paired.way_of({"metric": "f1_micro_without_x,y"})[1:3] == (False, ("x", "y"))


def test_a_score_of_another_kind_is_compared_by_right_answers(tmp_path: Path) -> None:
    for name, right in (("a", GOOD), ("b", BAD)):
        run = write_run(tmp_path / name, right, connector=name)
        records = [r for r in results.read(run / "results.json") if not r["metric"].startswith("accuracy")]
        about = {"stderr": 0.1, "n": 2, "chance": 0.1, "seeds": [1], "seconds": 1.0, "command": "c"}
        results.write(run / "results.json", [results.make(name, "model", "grouped", 0.3, **about), *records])
    found = compare(of(tmp_path / "a", tmp_path / "b"))
    assert found.metric == "grouped" and found.differences[0].value == pytest.approx(2 / 8 - 7 / 8)
    assert found.differences[0].metric == "share of right answers" and "no mean over questions" in found.notes[0]


# ------------------------------------------------------------------------------------------------------------ refusals


def test_what_cannot_be_compared_is_one_line(tmp_path: Path) -> None:
    first = write_run(tmp_path / "demo", GOOD)
    with pytest.raises(UserError, match=r"runs=.*/demp: no such folder or file; did you mean .*/demo\?"):
        find([tmp_path / "demp"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="runs=.*/empty: neither a run with results.json, nor a sweep"):
        find([tmp_path / "empty"])
    bare = write_run(tmp_path / "bare", GOOD)
    (bare / "results.json").unlink()
    with pytest.raises(UserError, match="runs=.*/bare: a run without results; hvlm eval checkpoint=.*/bare makes them"):
        find([bare])
    with pytest.raises(UserError, match="baseline=demp: none of the runs; did you mean 'demo'?"):
        compare(of(first), baseline="demp")
    with pytest.raises(UserError, match="demo has no cider, only accuracy_macro, accuracy_micro, accuracy/shape"):
        compare(of(first), metric="cider")
    copy = write_run(tmp_path / "copy", BAD)
    with pytest.raises(UserError, match="demo and .*/copy are one run, and of one seed; name one of them"):
        compare(of(first, copy))
    about = {"stderr": 0.1, "n": 2, "chance": 0.1, "seeds": [1], "seconds": 1.0, "command": "c"}
    results.write(tmp_path / "heads.json", [results.make("h", "m", "map", 0.3, **about)])
    with pytest.raises(
        UserError, match="demo was scored by accuracy_macro.*, heads by map: all runs have no figure in"
    ):
        compare(of(first, tmp_path / "heads.json"))


def test_jobs_of_a_sweep_that_did_not_finish_are_named(tmp_path: Path) -> None:
    write_run(tmp_path / "one", GOOD)
    jobs = [{"name": "one", "status": "done", "error": ""}, {"name": "two", "status": "failed", "error": "no memory"}]
    (tmp_path / "sweep.json").write_text(json.dumps(jobs))
    runs, notes = find([tmp_path])
    assert [run.name for run in runs] == ["one"]
    assert notes == [f"{tmp_path / 'two'} is left out: failed: no memory"]
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(UserError, match="runs=.*: neither a run"):
        find([tmp_path])
    (tmp_path / "sweep.json").write_text("[1]")
    with pytest.raises(UserError, match="sweep.json: not the table of a sweep"):
        find([tmp_path])


# ------------------------------------------------------------------------------------------------------------ the files


def test_the_command_writes_a_page_that_needs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs" / "a", GOOD, costs={"kv_bytes": 50.0})
    write_run(tmp_path / "runs" / "b | <b>", BAD, connector="patches", made=answers(BAD))
    monkeypatch.setattr(sys, "argv", ["hvlm", "compare", "runs=runs/a,runs/b | <b>"])
    commands.run()
    shown = capsys.readouterr().out
    assert "| 1 | a " in shown and "written to runs/compare.html" in shown
    page = (tmp_path / "runs" / "compare.html").read_text()
    text = (tmp_path / "runs" / "compare.md").read_text()
    kept = json.loads((tmp_path / "runs" / "compare.json").read_text())
    assert r"b \| &lt;b>" in text and "b | &lt;b&gt;" in page and "<b>" not in page
    assert "default-src 'none'" in page
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|<script|<link|<iframe| on\w+=", page)
    assert [run["name"] for run in kept["runs"]] == ["a", "b | <b>"] and kept["baseline"] == "a"
    assert kept["differences"][0]["value"] == pytest.approx(-0.625) and "-62.5 ± " in text
    pictures = re.findall(r"!\[.*\]\((.*)\)", text)
    assert pictures == ["compare-kv_bytes.svg"], "in the other costs there is nothing to choose"
    ET.parse(tmp_path / "runs" / pictures[0])
    monkeypatch.setattr(sys, "argv", ["hvlm", "compare", "runs/a", "out=elsewhere"])
    commands.run()
    assert sorted(p.name for p in (tmp_path / "elsewhere").iterdir()) == ["compare.html", "compare.json", "compare.md"]


def test_plots_of_an_earlier_comparison_do_not_stay(tmp_path: Path) -> None:
    costs = {"kv_bytes": 5.0, "prefill_flops": 1.0001e9}  # FLOPs: the same to three digits, which is no choice
    runs = of(write_run(tmp_path / "a", GOOD), write_run(tmp_path / "b", BAD, connector="x", costs=costs))
    write(compare(runs), tmp_path, "c")
    assert [path.name for path in tmp_path.glob("*.svg")] == ["compare-kv_bytes.svg"]
    write(compare(runs[:1]), tmp_path, "c")
    assert not list(tmp_path.glob("*.svg"))


def test_words_of_the_command(capsys: pytest.CaptureFixture) -> None:
    from hvlm.commands._words import about_runs
    from hvlm.commands.compare import Settings

    assert about_runs(["runs=[a,b]", "c", "measure=true"], Settings, "compare") == Settings(
        ["a", "b", "c"], measure=True
    )
    assert about_runs(["12e4567", "baseline=true"], Settings, "compare") == Settings(["12e4567"], baseline="true")
    for words, said in {
        (): "runs= is missing: hvlm compare runs=runs/a,runs/b",
        ("runz=runs/a",): "unknown key 'runz'; did you mean 'runs'?",
        ("a", "basline=b"): "unknown key 'basline'; did you mean 'baseline'?",
        ("a", "measure=maybe"): "measure",
        ("a", "out=b", "out=c"): "out is given twice: b and c",
    }.items():
        with pytest.raises(UserError, match=re.escape(said)):
            about_runs(words, Settings, "compare")
    commands.run(["compare", "--help"])
    assert capsys.readouterr().out.startswith("usage: hvlm compare runs=A,B")
    assert comparison.NAME == "compare"


def test_costs_are_measured_anew_and_answers_of_a_real_run_make_its_score(
    trained: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(trained[0] / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["hvlm", "compare", "runs/tiny", "runs/tiny/before_dpo", "measure=true"])
    commands.run()
    kept = json.loads(Path("runs/compare.json").read_text())
    (note,) = kept["notes"]
    assert note.startswith("before_dpo: no tokens per frame") and "hvlm eval" not in note, (
        "the answers give both scores"
    )
    costs = {run["name"]: run["costs"] for run in kept["runs"]}
    measured = {r["metric"]: r["value"] for r in results.read(Path("runs/tiny/cost/results.json"))}
    assert costs["tiny"]["latency_ms"] == measured["latency_ms"] and costs["tiny"]["tokens_per_frame"] == 1
    assert set(costs["tiny"]) == {cost.metric for cost in COSTS}
    (d,) = kept["differences"]
    assert d["n"] == next(run["score"]["n"] for run in kept["runs"] if run["name"] == "tiny")
