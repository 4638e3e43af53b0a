"""experiments.duo on a model of a few thousand weights: what is asked, of which cache, and what is written down."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from experiments.duo import __main__ as duo
from experiments.duo import _models as models
from experiments.duo import scores
from experiments.duo._ask import Asker
from hvlm import assembly
from hvlm.config.compose import compose
from hvlm.data.views import Questions
from hvlm.io.head_patterns import choose_heads, read_pattern, write_pattern
from hvlm.rebuild import Loaded
from hvlm.training.start import start_stage


@pytest.fixture(scope="module")
def asker(needles: list[str]) -> Asker:
    keys = ["dataset.set=keys", "dataset.keys=2", "connector=patches", "order=video_first", "language.num_layers=2"]
    cfg = compose(["stage=sft", *needles, *keys])
    data = assembly.dataset(cfg)
    data.prepare(progress=False)
    torch.manual_seed(0)
    stage, chat = start_stage(cfg, data, None)
    for parameter in stage.model.language.parameters():  # loud, so that what is forgotten changes a word
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    inputs = assembly.input_spec(cfg, stage.model)
    return Asker(Loaded(stage.model, chat, data, inputs, "32-true", cfg), 4)


@torch.no_grad()
def test_with_everything_kept_it_is_the_likeliest_word_of_the_whole_sequence(asker: Asker) -> None:
    loaded = asker.loaded
    found = asker(asker.room(["kvcache=full"]))
    wanted = []
    for batch in loaded.reader().loader("test", Questions(), None, 4, 4):
        wanted += loaded.model.next_token_logprobs(batch).argmax(-1).view(-1, 2).tolist()
    assert found.said == wanted and found.questions == 8 and len({word for words in wanted for word in words}) > 1
    assert found.kv_bytes == 2 * 2 * 2 * 16 * 16 * 4, "keys and values, layers, heads, places, width, bytes"


def test_every_cell_is_measured_once_and_written_down(asker: Asker, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(models, "ROOT", tmp_path)
    monkeypatch.setattr(models, "read", lambda seed: asker.loaded)
    monkeypatch.setattr(duo, "Asker", lambda loaded, clips: asker)
    monkeypatch.setattr(duo, "WINDOW", ["kvcache.sink=1", "kvcache.recent=2"])
    monkeypatch.setattr(duo, "RIVALS", {"snapkv": ["kvcache.window=4"], "expected": [], "infinipot": []})
    gates = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    write_pattern(models.pattern(1), gates, 1, 2)
    duo.ask(1, duo.VARIANTS, 4)
    files = sorted((tmp_path / "seed1" / "cells" / "4").glob("*.json"))
    assert len(files) == 2 + 3 * (len(duo.VARIANTS) - 2) + 3 * (duo.DRAWS - 1) - 1
    before = {path: path.stat().st_mtime_ns for path in files}
    duo.ask(1, duo.VARIANTS, 4)
    assert {path: path.stat().st_mtime_ns for path in files} == before, "what is there is not measured again"

    def cell(name: str) -> dict:
        return json.loads((tmp_path / "seed1" / "cells" / "4" / f"{name}.json").read_text())

    patterns = tmp_path / "seed1" / "patterns"
    for variant, score in duo.UNTRAINED.items():
        val = list(scores.clips(asker.loaded, "val", scores.SAMPLES))
        assert [context.shape[1] for _, context, _ in val] == [16] * len(val), "the video and nothing else"
        torch.testing.assert_close(read_pattern(patterns / variant, 2, 2).gates, scores.over(val, score)[0])
        assert json.loads((patterns / variant / "config.json").read_text())["score"] == score
        assert cell(f"{variant}-0.5")["kv_bytes"] == cell("gates-0.5")["kv_bytes"]
    heads = {name: choose_heads(read_pattern(patterns / name, 2, 2).gates, 0.5).heads for name in ("gates", "inverse")}
    assert torch.equal(heads["gates"], gates > 0.5) and torch.equal(heads["inverse"], gates < 0.5)
    full = cell("full-1")["kv_bytes"]
    assert cell("streaming-0")["kv_bytes"] < cell("gates-0.25")["kv_bytes"] < cell("gates-0.5")["kv_bytes"]
    assert cell("random-0.5-3")["kv_bytes"] == cell("inverse-0.5")["kv_bytes"] == cell("gates-0.5")["kv_bytes"]
    assert all(cell(f"{name}-0.5")["kv_bytes"] <= full for name in ("snapkv", "expected", "infinipot", "adaptive"))

    records = list(duo.collect())
    by_name = {(r["variant"], r["share"], r["metric"]): r for r in records}
    assert by_name["random", 0.5, "accuracy"]["n"] == 8 * duo.DRAWS and by_name["full", 1.0, "accuracy"]["n"] == 8
    values = [cell(f"random-0.5-{i}")["share"] for i in range(duo.DRAWS)]
    assert by_name["random", 0.5, "accuracy"]["value"] == pytest.approx(sum(values) / len(values))
    assert by_name["random", 0.5, "accuracy_min"]["value"] == min(values)
    for other, name in (("full-1", "minus_full"), ("gates-0.5", "minus_gates")):
        difference = by_name["random", 0.5, name]["value"]
        assert difference == pytest.approx(sum(values) / len(values) - cell(other)["share"])
    assert ("gates", 0.5, "minus_gates") not in by_name and ("full", 1.0, "minus_full") not in by_name
