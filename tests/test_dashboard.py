"""hvlm dashboard: the panels' names are names that runs log, and what would be sent is what the list says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import _wandb_server
import pytest
from _tiny import ROOT

from hvlm import commands
from hvlm.viz import dashboard


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")


def logged() -> list[str]:
    """The names in the tables of docs/metrics.md; <part> stands for anything."""
    text = (ROOT / "docs/metrics.md").read_text(encoding="utf-8").split("## What a run logs")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    shown = re.findall(r"`([^`]+)`", " ".join(cells)) + re.findall(r"`(cost/\w+|val/\w+)`", text)
    return shown


def test_every_panel_shows_what_runs_log() -> None:
    known = logged()
    assert len(known) > 20
    exact = {name for name in known if "<" not in name}
    for name, is_pattern in dashboard.names():
        if is_pattern:
            assert any(re.fullmatch(name, other) for other in known), name
        else:
            assert name in exact, f"{name}: docs/metrics.md knows no such name"
    asked = {
        "train/loss",
        "eval/score",
        "eval/score/stderr",
        "samples_per_s",
        "grad_norm",
        "gaze/entropy_fine",
        "merged",
    }
    assert asked <= {name for name, _ in dashboard.names()}
    assert len(set(dashboard.titles())) == len(dashboard.titles())


def test_it_is_written_down_without_a_network(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("wandb_workspaces")
    commands.run(["dashboard", "entity=team", "project=longvideo", "offline=made/dashboard.json"])
    assert capsys.readouterr().out == "written to made/dashboard.json; nothing was sent\n"
    text = (tmp_path / "made/dashboard.json").read_text(encoding="utf-8")
    view = json.loads(text)
    assert (view["entity"], view["project"]) == ("team", "longvideo")
    sections = view["spec"]["section"]["panelBankConfig"]["sections"]
    assert [s["name"] for s in sections] == list(dashboard.SECTIONS)
    for name, _ in dashboard.names():
        assert json.dumps(name)[1:-1] in text, name
    pareto = next(s for s in sections if "Pareto" in s["name"])["panels"]
    assert {p["config"]["xAxis"] for p in pareto} >= {"summary:cost/prefill_flops", "summary:cost/kv_bytes"}
    assert all(p["config"]["yAxis"] == "summary:eval/score" for p in pareto)


def test_it_is_sent_in_one_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("wandb_workspaces")
    with _wandb_server.running() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        commands.run(["dashboard", "entity=team", "project=hvlm"])
        (view,) = server.saved
        assert (view["entityName"], view["projectName"]) == ("team", "hvlm") and "eval/score" in view["spec"]
        assert server.url in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["entity=team"], r"hvlm dashboard: W&B did not take it .*wandb login.*offline=dashboard\.json"),
        (["team"], "hvlm dashboard team: expected setting=value"),
        (["projekt=x"], "unknown key 'projekt'; did you mean 'project'"),
        (["offline=."], r"offline=\.: expected a file"),
        (["project="], "project= is empty"),
        (["name=<b>", "offline=x.json"], r"name=<b>: .* are not allowed"),
        (["name=\udcff", "offline=x.json"], "name=.* is not UTF-8"),
        (["project=\udcff", "offline=x.json"], "project=.* is not UTF-8"),
        (["entity=\udcff", "offline=x.json"], "entity=.* is not UTF-8"),
    ],
)
def test_mistakes_are_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture) -> None:
    if words[0] == "entity=team" or len(words) > 1:
        pytest.importorskip("wandb_workspaces")
    with pytest.raises(SystemExit):
        commands.run(["dashboard", *words])
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and re.search(said, error[0]), error


def test_without_the_package_it_says_which(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb_workspaces.workspaces", None)
    monkeypatch.setitem(__import__("sys").modules, "wandb_workspaces.reports.v2", None)
    with pytest.raises(SystemExit):
        commands.run(["dashboard", "offline=x.json"])
    assert "pip install 'hvlm[dashboard]'" in capsys.readouterr().err
