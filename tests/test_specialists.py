"""From one base to several specialists, their cross table, one model of them all, and what is refused on the way."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from _small import once

from hvlm.commands.eval import evaluate
from hvlm.config.compose import compose
from hvlm.errors import UserError
from hvlm.evaluation.cross_table import table
from hvlm.evaluation.predictions import read_predictions
from hvlm.evaluation.specialists import read_runs
from hvlm.io.checkpoint import load_weights
from hvlm.rebuild import metadata_of, stored_config
from hvlm.text.chat import Chat
from hvlm.training.chain import run

BASE = "runs/tiny/dpo"
SET = ["dataset.set=domains", "dataset.train_clips=32", "dataset.val_clips=8", "dataset.test_clips=16"]
TRAINED = {"sports": [], "news": [], "cooking": ["domain.adapter=chef"]}
COOKING = "name: cooking\nadapter: cooking\nmixture: {tutorials: 1.0}\n"


def words(needles: list[str], name: str, *more: str) -> list[str]:
    """What trains one specialist."""
    settings = [o for o in needles if o.split("=")[0] not in {s.split("=")[0] for s in SET}]
    own = [f"run=spec/{name}", f"domain={name}", "adapter=lora", "adapter.rank=2", f"init_from={BASE}", "stage=sft"]
    return [*own, *settings, *SET, "stage.steps=2", "stage.batch_size=4", "evaluate=false", "stage.interleave=0", *more]


@pytest.fixture(scope="module")
def specialists(shared, trained, needles) -> Path:
    """A folder in which runs/spec/{sports,news,cooking} stand beside their base; cooking is a domain of one YAML."""

    def train(folder: Path) -> None:
        shutil.copytree(trained[0] / "runs", folder / "runs")
        (folder / "conf" / "domain").mkdir(parents=True)
        (folder / "conf" / "domain" / "cooking.yaml").write_text(COOKING)
        with contextlib.chdir(folder):
            for name, more in TRAINED.items():
                run([*words(needles, name, *more), f"config_dir={folder / 'conf'}"])
            for file in folder.glob("runs/spec/*/*/checkpoints/*.ckpt"):  # two steps teach nothing that shows
                _make_loud(file)

    return once(shared / "specialists", train)


def _make_loud(file: Path) -> None:
    """Adapter weights, in the folder that others load them from, that change what the model says."""
    from safetensors.torch import load_file, save_file

    noise = torch.Generator().manual_seed(len(file.parts[-4]))
    for weights in file.parent.parent.glob("adapters/**/*.safetensors"):
        tensors = load_file(weights)
        save_file({n: t + torch.randn(t.shape, generator=noise) for n, t in tensors.items()}, weights)


def _tampered(start: Any = None, domain: Mapping[str, Any] | None = None) -> None:
    """``runs/tampered``: a specialist whose checkpoint says something else of itself."""
    shutil.copytree("runs/spec/sports", "runs/tampered", dirs_exist_ok=True)
    file = Path("runs/tampered/sft/checkpoints/last.ckpt")
    content = torch.load(file, weights_only=True)
    said = content["hvlm"]
    said["start"], said["config"]["domain"] = start or said["start"], {**said["config"]["domain"], **(domain or {})}
    torch.save(content, file)
    file.with_name(f"{file.name}.sha256").write_text(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n")


@pytest.fixture
def inside(specialists, monkeypatch) -> Path:
    monkeypatch.chdir(specialists)
    return specialists


RUNS = "adapters=[runs/spec/sports,runs/spec/news,runs/spec/cooking]"


def test_a_domain_is_one_yaml_and_its_run_says_what_it_learned_from(inside) -> None:
    stored = stored_config("runs/spec/cooking")
    assert stored["domain"] == {"name": "cooking", "adapter": "chef", "mixture": {"tutorials": 1.0}}
    assert (inside / "runs/spec/cooking/sft/adapters/chef").is_dir()
    base = load_weights(BASE)
    for name, value in load_weights("runs/spec/cooking").items():
        assert name.startswith("adapter.chef.") or torch.equal(value, base[name]), name


def test_the_cross_table_asks_every_specialist_and_the_base_about_every_domain(inside, caplog) -> None:
    caplog.set_level("INFO")
    records = evaluate(["domain=all", RUNS, "out=table"])
    heads = {(r["variant"], r["domain"]): r for r in records if r["metric"] == "accuracy_mean"}
    variants = ["base", "sports", "news", "chef", "known", "router"]
    domains = ["general", "mean", "news", "sports", "tutorials"]
    assert {(v, d) for v in variants for d in domains} <= set(heads)
    assert {v for v, _ in heads} == {*variants, *(f"{v}_blind" for v in variants[:4])}
    assert heads["base", "sports"]["n"] == 16 and heads["base", "sports"]["chance"] == pytest.approx(0.25)
    mean = sum(heads["base", d]["value"] for d in domains if d != "mean") / 4
    assert heads["base", "mean"]["value"] == pytest.approx(mean)
    # known: of each domain its own specialist's answers; the base's where there is none
    own = {"sports": "sports", "news": "news", "tutorials": "chef", "general": "base"}
    for domain, variant in own.items():
        assert heads["known", domain]["value"] == heads[variant, domain]["value"]
    assert len({heads[v, "mean"]["value"] for v in variants[:4]}) > 1, "loud specialists differ"
    of_router = {(r["metric"], r["domain"]): r["value"] for r in records if r["variant"] == "router"}
    assert 0 <= of_router["router_accuracy", "mean"] <= 1 and 0 < of_router["router_confidence", "mean"] <= 1
    lines = (inside / "table" / "domains.md").read_text().splitlines()
    assert lines[0].split("|")[1].strip() == "adapter" and [x.split("|")[1].strip() for x in lines[2:8]] == variants
    assert "\n".join(lines[:8]) in caplog.text
    routes = [json.loads(line) for line in (inside / "table" / "routes.jsonl").read_text().splitlines()]
    assert len(routes) == 16 and {r["adapter"] for r in routes} <= {"sports", "news", "chef", "base"}


def test_the_base_row_is_the_base_bit_for_bit(inside) -> None:
    if not Path("table/predictions.jsonl").exists():
        evaluate(["domain=all", RUNS, "out=table"])
    evaluate(
        [f"checkpoint={BASE}", *SET, "dataset.root=" + stored_config("runs/spec/news")["dataset"]["root"], "out=b"]
    )
    of_table = {p[:4]: p.scores for p in read_predictions(Path("table/predictions.jsonl"), "x") if p.variant == "base"}
    alone = {p[:4]: p.scores for p in read_predictions(Path("b/predictions.jsonl"), "x") if p.variant != "blind"}
    assert of_table == alone and len(alone) > 200


def test_gathered_they_are_one_checkpoint_that_routes(inside, caplog) -> None:
    caplog.set_level("INFO")
    file = evaluate(["task=gather", RUNS, "out=all"])
    assert file == Path("all/specialists.ckpt") and "the base with sports, news, chef and their router" in caplog.text
    assert metadata_of(file)["router"]["adapters"] == {"sports": "sports", "news": "news", "tutorials": "chef"}
    records = evaluate([f"checkpoint={file}", "out=routed"])
    assert "router: 16 clips" in caplog.text
    asked = {p[:4]: p.scores for p in read_predictions(Path("routed/predictions.jsonl"), "x") if p.variant != "blind"}
    cross = evaluate([f"checkpoint={file}", "domain=all", "out=cross"])
    joined = {p[:4]: p for p in read_predictions(Path("cross/predictions.jsonl"), "x") if p.variant == "router"}
    assert set(joined) == set(asked)
    for key, scores in asked.items():
        assert scores == pytest.approx(joined[key].scores, abs=1e-4)
    assert any(r["metric"] == "accuracy_mean" for r in records) and cross
    # One that is named: nothing is routed.
    caplog.clear()
    evaluate([f"checkpoint={file}", "domain=news", "out=named"])
    assert "router" not in caplog.text and not Path("named/routes.jsonl").exists()
    named = {p[:4]: p.scores for p in read_predictions(Path("named/predictions.jsonl"), "x") if p.variant != "blind"}
    news = {p[:4]: p.scores for p in read_predictions(Path("cross/predictions.jsonl"), "x") if p.variant == "news"}
    assert all(named[key] == pytest.approx(scores, abs=1e-4) for key, scores in news.items())


def test_asked_about_a_video_it_says_who_answers_and_how_sure_it_is(inside, caplog) -> None:
    caplog.set_level("INFO")
    file = Path("all/specialists.ckpt")
    if not file.exists():
        evaluate(["task=gather", RUNS, "out=all"])
    cfg = stored_config(file)
    video = next(Path(cfg["dataset"]["haystack"]).glob("*.mp4"))
    asked = [f"checkpoint={file}", "task=ask", f"ask.video={video}", "ask.question=which player runs first ?"]
    (line,) = evaluate([*asked, "out=asked"])
    (written,) = [json.loads(text) for text in Path("asked/asked.jsonl").read_text().splitlines()]
    assert written["domain"] in ("general", "news", "sports", "tutorials") and 0 < written["confidence"] <= 1
    assert f"domain {written['domain']} (confidence {written['confidence']:.2f}" in caplog.text and line["answer"]
    evaluate([*asked, "domain=sports", "out=asked"])
    assert "confidence" not in Path("asked/asked.jsonl").read_text()


def test_a_domain_may_begin_its_conversations(inside, needles) -> None:
    """With a prompt of its own, which its checkpoint and the gathered model keep; other specialists ask as before."""
    run([*words(needles, "sports"), "run=spec/worded", "domain.adapter=worded", "domain.prompt=which player"])
    chat = Chat.from_json(metadata_of("runs/spec/worded")["chat"])
    plain = chat.asking(None)
    assert chat.prompt == "which player" and plain.prompt is None
    assert chat.encode("runs ?", "red").ids == plain.encode("which player runs ?", "red").ids
    own = plain.encode("runs ?", "red", system="when").ids  # a conversation's own goes before
    assert chat.encode("runs ?", "red", system="when").ids == own
    file = evaluate(["task=gather", "adapters=[runs/spec/worded,runs/spec/news]", "out=worded"])
    assert metadata_of(file)["router"]["prompts"] == {"sports": "which player"}
    assert Chat.from_json(metadata_of(file)["chat"]).prompt is None
    evaluate([f"checkpoint={file}", "out=worded/routed"])
    evaluate([f"checkpoint={file}", "domain=all", "out=worded/cross"])
    asked = {
        p[:4]: p.scores for p in read_predictions(Path("worded/routed/predictions.jsonl"), "x") if p.variant != "blind"
    }
    cross = [p for p in read_predictions(Path("worded/cross/predictions.jsonl"), "x") if p.variant == "router"]
    assert all(asked[p[:4]] == pytest.approx(p.scores, abs=1e-4) for p in cross) and len(cross) == len(asked)
    of = {
        p.variant: p.scores
        for p in read_predictions(Path("worded/cross/predictions.jsonl"), "x")
        if p.task == "run_first"
    }
    assert of["worded"] != of["base"]


def test_the_folder_of_a_sweep_stands_for_its_jobs(inside) -> None:
    sweep = Path("runs/sweep")
    for name in ("sports", "news"):
        shutil.copytree(f"runs/spec/{name}", sweep / name, dirs_exist_ok=True)
        (sweep / name / "status.json").write_text("{}")
    assert [one.name for one in read_runs(["runs/sweep", "runs/spec/cooking"])] == ["news", "sports", "chef"]


def test_what_does_not_belong_together_is_one_line(inside, needles) -> None:
    def refused(match: str, *overrides: str) -> None:
        with pytest.raises(UserError, match=match) as caught:
            evaluate(list(overrides))
        assert "\n" not in str(caught.value)

    refused("an export holds no router", "task=export", f"checkpoint={evaluate(['task=gather', RUNS, 'out=all'])}")
    refused("domain=sprots: no such option; did you mean 'sports'", "domain=sprots", f"checkpoint={BASE}")
    refused(r"adapters=runs/nothing: no such run", "adapters=[runs/nothing]")
    refused(r"adapters=\[\] is empty", "adapters=[]")
    refused("task=gather needs adapters", "task=gather", f"checkpoint={BASE}")
    refused("runs/tiny holds no adapter weights", "adapters=[runs/tiny]")
    refused("both call their adapter 'sports'", "adapters=[runs/spec/sports,runs/spec/sports]")
    refused("was trained from other weights than those of checkpoint=runs/tiny/sft", RUNS, "checkpoint=runs/tiny/sft")
    refused(r"domain=auto: .* holds no router", f"checkpoint={BASE}", "domain=auto")
    file = "runs/spec/sports/sft/adapters/sports"
    refused(
        r"domain.adapter=all: neither .* nor adapter.load holds weights .*, domain.adapter=x \(there are x\), or off",
        f"checkpoint={BASE}", "adapter=lora", f"adapter.load={{x:{file}}}",
    )  # fmt: skip
    changes: list[dict] = [
        {"start": 5},
        {"start": {"path": 5}},
        {"domain": {"adapter": "/tmp"}},
        {"domain": {"name": 5}},
    ]
    for change in changes:
        _tampered(**change)
        refused("adapters: runs/tampered does not say what it learned", "adapters=[runs/tampered]")
    refused(r"'tutorials'|tutorials", "adapters=[runs/spec/sports,runs/spec/news]", "domain=tutorials")
    with pytest.raises(UserError, match="domain=auto picks among specialists"):
        run([*words(needles, "sports"), "domain=auto"])
    run([*words(needles, "sports"), "run=spec/other", "adapter.rank=4"])
    refused("has adapter.rank=4, and runs/spec/sports 2", "adapters=[runs/spec/sports,runs/spec/other]")
    run([*words(needles, "news"), "run=spec/elsewhere", "init_from=runs/tiny/sft"])
    refused("specialists of one model have one base", "adapters=[runs/spec/sports,runs/spec/elsewhere]")


def test_a_table_has_a_row_for_each_set_and_a_column_for_each_domain() -> None:

    records = [
        {"variant": v, "domain": d, "metric": "accuracy_mean", "value": 0.5, "stderr": e}
        for v, e in (("base", 0.01), ("sports", None))
        for d in ("news", "sports")
    ]
    assert table(records) == [
        "| adapter | news       | sports     |",
        "|---------|------------|------------|",
        "| base    | 50.0 ± 1.0 | 50.0 ± 1.0 |",
        "| sports  | 50.0       | 50.0       |",
    ]
    assert compose(["domain=all"])["adapters"] is None
