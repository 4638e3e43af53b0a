"""python -m experiments.domains: cells compose, they ask what the set asks, gains are counted question by question."""

from __future__ import annotations

import pytest
from test_stories import told

from experiments.domains import __main__ as domains
from experiments.domains import _runs as runs
from hvlm.config.compose import compose, plan
from hvlm.evaluation.predictions import write_predictions
from hvlm.evaluation.scores import Prediction


def test_each_cell_composes_and_the_base_sees_other_questions() -> None:
    for words in runs.METHODS.values():
        cfg = compose(["experiment=specialists", *runs.COMMON, *words, *runs.of(runs.DOMAINS[0]), "stage.steps=3"])
        assert cfg["dataset"]["set"] == "domains" and cfg["domain"]["mixture"] == {"sports": 1.0}
    assert compose(["experiment=specialists", *runs.of("all")])["domain"]["mixture"] == dict.fromkeys(runs.DOMAINS, 1.0)
    assert {cfg["dataset"]["set"] for cfg in plan(["experiment=domains"]).values()} == {"easy"}


def test_the_tasks_are_those_that_the_set_asks() -> None:
    asked: dict[str, set[str]] = {}
    for story in told("domains", 80):
        asked.setdefault(story.domain, set()).update(q["task"] for q in story.fields["questions"])
    assert {domain: set(tasks) for domain, tasks in runs.TASKS.items()} == {d: asked[d] for d in runs.DOMAINS}


def test_gains_are_counted_question_by_question(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(runs, "ROOT", tmp_path)

    def answers(variant: str, right: dict[str, int]) -> list[Prediction]:
        return [
            Prediction(f"test/t/{i}/{task}", f"{i}", task, 0, ("a", "b"), 0, 0 if i < right[task] else 1, None, variant)
            for task in runs.TASKS["sports"]
            for i in range(10)
        ]

    base = answers("base", {"run_first": 5, "run_last": 5, "run_when": 5, "run_way": 5})
    own = answers("sports", {"run_first": 10, "run_last": 9, "run_when": 5, "run_way": 4})
    rest = [p._replace(variant=name) for name in ("tutorials", "news") for p in base]
    folder = tmp_path / "seed1" / "table"
    folder.mkdir(parents=True)
    others = [
        Prediction(f"test/t/{task}/q0", task, task, 0, ("a", "b"), 0, 0, None, v)
        for name in ("tutorials", "news")
        for task in runs.TASKS[name]
        for v in ("base", name)
    ]
    write_predictions(folder / "predictions.jsonl", [*base, *own, *rest, *others])
    found = {r["variant"]: r for r in domains.gains(1, folder)}
    assert found["sports"]["value"] == pytest.approx((5 + 4 + 0 - 1) / 40) and found["sports"]["n"] == 40
    assert found["news"]["value"] == 0.0
    merged = domains.collect([1, 2])
    assert {r["metric"] for r in merged} == {"gain"} and all(r["seeds"] == [1] for r in merged)
