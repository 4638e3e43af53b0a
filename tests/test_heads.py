"""What heads are promised: their own output, loss and view; the visual tokens and their places."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _rooms import Classify, LowRank, with_adapter
from _tables import still
from _tiny import ASKED, ROOT, Case, Variant, batch_of, clip, model, side, target, two_clips

from hvlm import assembly, rebuild
from hvlm.checks.heads import clip_of, read, samples
from hvlm.checks.models import shared_model
from hvlm.config.compose import compose
from hvlm.data.batches import one_row
from hvlm.data.views import Questions
from hvlm.dataset._needles_scene import SHAPES
from hvlm.errors import UserError
from hvlm.evaluation.cost import cost_of
from hvlm.io.checkpoint import load_into
from hvlm.model import VLM, named_parts
from hvlm.rebuild import Loaded
from hvlm.stage._base import Losses, Stage
from hvlm.tasks import check_writes
from hvlm.training.start import new_rooms
from hvlm.types import Batch


class OfTheHead(Stage):
    """A stage that leaves view and loss to the head."""

    def losses(self, batch: Batch) -> Losses:
        return Losses.of("head", *self.model.head.loss(self.model.output(batch), batch))


def with_head(order: str, connector: str = "mean", classes: int = 2) -> VLM:
    vlm = model(Case(order, (Variant("connector", connector),)))
    torch.manual_seed(0)
    vlm.head = Classify(classes, text_dim=vlm.language.dim)
    return vlm.eval()


@pytest.mark.parametrize("connector", ["mean", "patches", "longvlm", "foveated"])
@pytest.mark.parametrize("order", ["question_first", "video_first"])
@torch.no_grad()
def test_a_head_reads_the_states_at_the_places_of_the_video(order: str, connector: str) -> None:
    vlm = with_head(order, connector)
    batch = batch_of(*two_clips(vlm), size=side(vlm))
    sequence = vlm.sequence(batch)
    h = vlm.hidden(sequence)
    rows = torch.arange(3).unsqueeze(1)
    assert torch.equal(sequence.x_KLD[rows, sequence.visual_place_KV], sequence.tokens.x_BSD)
    assert torch.equal(sequence.mask_KL[rows, sequence.visual_place_KV], sequence.tokens.mask_BS)
    text = vlm.language.embed(batch.input_ids_KS)
    assert torch.equal(sequence.x_KLD[rows, sequence.text_place_KS], text)
    whole, frames = vlm.head(h, sequence)
    assert whole.shape == (3, 2) and frames.shape == (3, int(sequence.tokens.frame_BS.max()) + 1, 2)
    for row in range(3):
        of_video = h[row, sequence.visual_place_KV[row]]
        for t in sequence.tokens.frame_BS[row][sequence.tokens.mask_BS[row]].unique().tolist():
            seen = sequence.tokens.mask_BS[row] & (sequence.tokens.frame_BS[row] == t)
            torch.testing.assert_close(frames[row, t], vlm.head.scores(of_video[seen].mean(0)), rtol=0, atol=1e-5)


def test_a_stage_that_leaves_it_to_the_head_learns_its_loss() -> None:
    vlm = with_head("question_first").train()
    items = [clip(seed, 2, ASKED[:1], vlm.order, side(vlm)) for seed in range(6)]
    batch = batch_of(*items, size=side(vlm))
    batch = batch._replace(rows=[{"label": seed % 2} for seed in range(6)])
    stage = OfTheHead(model=vlm, steps=30, batch_size=6, trainable={"head": 3e-2, "language": 3e-3})
    stage.freeze()
    assert {name for name, _ in named_parts(vlm)["head"]} == {"head.scores.weight", "head.scores.bias"}
    optimizer = stage.configure_optimizers()["optimizer"]
    for _ in range(30):
        terms, measures = stage.losses(batch)
        total, count = terms["head"]
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
    assert measures["accuracy"].total == count == 6


def test_a_head_may_be_set_on_a_trained_model_and_is_not_replaced_by_another_unsaid() -> None:
    weights, fresh = model(Case("question_first", ())).state_dict(), with_head("question_first", "foveated")
    new = new_rooms(fresh, weights)
    assert new and {name.split(".")[0] for name in new} == {"head"}
    load_into(fresh, weights | new, "a start")
    other = with_head("question_first", "foveated", classes=3)
    with pytest.raises(UserError, match="head.scores.weight is .* there and"):
        load_into(other, fresh.state_dict() | new_rooms(other, fresh.state_dict()), "a start")


def test_what_needs_words_is_refused_of_a_head_that_writes_none_and_what_it_costs_is_measured() -> None:
    vlm = with_head("question_first")
    loaded = Loaded(vlm, None, None, None, "32-true", {})
    for task in ("ask", "generate"):
        with pytest.raises(UserError, match=f"task={task}: the model answers in words, and head=.* writes none"):
            check_writes(loaded, task)
    check_writes(loaded._replace(model=model(Case("question_first", ()))), "ask")
    cost = cost_of(vlm, one_row(batch_of(*two_clips(vlm), size=side(vlm)), 0), repeats=1)
    assert cost.prefill_flops > 0 and cost.decode_tokens_per_s is None


@pytest.mark.parametrize("override", ["dim=100000", "levels=1000000", "stem=1000", "bins=100000"])
def test_sizes_that_no_memory_holds_are_refused_before_they_are_built(override: str) -> None:
    with pytest.raises(UserError, match=f"head.{override}: expected int of . or more and at most"):
        compose(["stage=task", "head=detect", "dataset.set=events", f"head.{override}"])


def test_the_view_is_the_stages_or_the_heads() -> None:
    vlm = with_head("question_first")
    vlm.head.view = view = Questions()
    assert assembly.view_of(OfTheHead, vlm) is view
    sft = assembly.room_class("stage", Variant("stage", "sft").settings)
    assert assembly.view_of(sft, vlm) is sft.view and isinstance(sft.view, Questions)


def test_a_head_that_writes_no_text_says_so() -> None:
    vlm = with_head("question_first")
    batch = batch_of(*two_clips(vlm), size=side(vlm))
    with pytest.raises(ValueError, match="Classify gives no logits of tokens; use head=text"):
        vlm.token_logprobs(batch)
    with pytest.raises(ValueError, match="Classify gives no logits of tokens; use head=text"):
        vlm.head.logits(torch.zeros(1, vlm.language.dim))


def test_what_a_head_leaves_out_is_said_in_a_line_by_whoever_needs_it() -> None:
    vlm = with_head("question_first")
    batch = batch_of(*two_clips(vlm), size=side(vlm))
    with pytest.raises(UserError, match=r"trainer\.accumulate: head=\w+ does not count.*trainer\.accumulate=1"):
        vlm.head.units_of_terms(batch)
    with pytest.raises(UserError, match=r"head=\w+: has no answers of its own; use a benchmark that asks"):
        vlm.head.predict(None, batch)


# ---------------------------------------------------------------------------------------------------- closed answers


def closed(*questions: dict) -> dict:
    return {"questions": [{"id": f"q{i}", "question": "what shape ?", **q} for i, q in enumerate(questions)]}


def test_soft_targets_are_how_right_each_label_is() -> None:
    vlm = shared_model(Case("question_first", (Variant("head", "classify"),)))
    sample = closed(
        {"answers": {"two": 1.0, "three": 0.3, "nine": 0.5}}, {"answer": "red"}, {"answers": ["ring", "star"]}
    )
    batch = read(vlm, clip_of(1, 3, side(vlm), sample))
    assert vlm.head.labels.names == ["red", "blue", "two", "three", "ring", "circle", "star"]
    expected = [[0, 0, 1, 0.3, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0, 1]]
    torch.testing.assert_close(batch.targets["answers"], torch.tensor(expected))
    assert not batch.loss_mask_KS.any(), "the answer stands nowhere in the row"


def test_a_question_without_an_answer_among_the_labels_is_not_learned_but_scored() -> None:
    vlm = shared_model(Case("question_first", (Variant("head", "classify"),)))
    clip = clip_of(1, 3, side(vlm), closed({"answer": "purple"}, {"answer": "red"}))
    assert len(read(vlm, clip).rows) == 1
    times, rng = clip.times, np.random.default_rng(0)
    rows = vlm.head.view.scoring().rows(clip.sample, times, rng, None)
    lines = [row.meta | {"answer": "red"} for row in rows]
    assert all(line["people"] == [] for line in lines)
    found = {row["metric"]: row["value"] for row in vlm.head.score(lines)}
    assert found == {"accuracy": 0.5, "answerable": 0.5}
    assert [row["stderr"] for row in vlm.head.score(lines)] == [None, None], "one clip says nothing of others"
    two = [line | {"cluster": uid} for uid, line in zip("ab", lines, strict=True)]
    assert [row["stderr"] for row in vlm.head.score(two)] == [pytest.approx(0.5), pytest.approx(0.5)]


@pytest.mark.parametrize(
    "labels, said",
    [([], "head.labels is empty"), (["a", "a"], "head.labels: 'a' stands there twice"), (["a", " "], "is blank")],
)
def test_labels_are_names_each_once(labels: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        assembly.room(Variant("head", "classify").settings | {"labels": labels}, text_dim=8)


# ---------------------------------------------------------------------------------------------------- stage=task


def task(vlm: VLM, **settings: Any) -> Stage:
    return assembly.stage({"stage": Variant("stage", "task").settings | settings}, vlm, None).train()


@pytest.mark.parametrize(
    "backbone, learns", [("frozen", {"head"}), ("trained", {"vision", "connector", "language", "head"})]
)
def test_the_backbone_is_frozen_or_trained(backbone: str, learns: set[str]) -> None:
    vlm = model(Case("question_first", (Variant("head", "classify"), Variant("connector", "mean"))))
    stage = task(vlm, backbone=backbone)
    terms = stage.losses(read(vlm, *samples(vlm))).terms
    sum(mean.total / mean.count for mean in terms.values()).backward()
    reached = {part for part, named in stage.parts().items() if any(p.grad is not None for _, p in named)}
    assert reached == set(stage.trainable) == learns


def test_an_adapted_backbone_needs_an_adapter_and_weights_are_of_terms() -> None:
    vlm = model(Case("question_first", (Variant("head", "classify"),)))
    with pytest.raises(UserError, match="stage.backbone=adapted: there is no adapter"):
        task(vlm, backbone="adapted")
    with pytest.raises(UserError, match="stage.weights names detekt; the heads are classify"):
        task(vlm, weights={"detekt": 1.0})
    with pytest.raises(UserError, match="stage.weights: all are 0, so nothing is learned; give one of classify more"):
        task(vlm, weights={"classify": 0.0})
    with pytest.raises(UserError, match="stage.interleave=0.5: text-only chats hold nothing for head=classify"):
        task(vlm, interleave=0.5)
    with_adapter(vlm, LowRank(name="a"))
    stage = task(vlm, backbone="adapted")
    assert set(stage.trainable) == {"adapter", "head"}


def test_a_weight_multiplies_its_term() -> None:
    vlm = model(Case("question_first", (Variant("head", "classify"),)))
    batch = read(vlm, *samples(vlm))
    whole = task(vlm).losses(batch).terms["classify"]
    half = task(vlm, weights={"classify": 0.5}).losses(batch).terms["classify"]
    torch.testing.assert_close(half.total, whole.total / 2)
    assert half.count == whole.count


def test_nobody_who_names_no_benchmark_is_asked_in_text() -> None:
    word = {"benchmark": "hvlm.benchmark.head.HeadBenchmark", "needles": "hvlm.benchmark.needles.Needles"}
    assert compose(["head=classify"])["benchmark"]["_target_"] == word["benchmark"]
    assert compose(["head=classify", "benchmark=needles"])["benchmark"]["_target_"] == word["needles"]
    assert compose([])["benchmark"]["_target_"] == word["needles"]
    own = compose(["head=classify", "benchmark.annotations=x.json"])["benchmark"]
    assert own["_target_"] == word["benchmark"] and own["annotations"] == "x.json"
    head = assembly.head_alone(compose(["head=classify", "head.labels=[a,b]"]))
    with pytest.raises(UserError, match="benchmark=needles asks questions, and head=classify writes no text"):
        assembly.room(compose([])["benchmark"]).of(head)


# ---------------------------------------------------------------------------------------------------- several heads


def several(**heads: Any) -> VLM:
    settings = Variant("head", "several").settings
    return model(Case("question_first", (Variant("head", "several", (("heads", heads or settings["heads"]),)),)))


def test_each_head_has_rows_of_its_own_and_learns_as_alone() -> None:
    vlm = several()
    batch = read(vlm, *samples(vlm))
    assert sorted({row["head"] for row in batch.rows}) == ["classify", "detect", "retrieve"]
    terms = vlm.head.terms(vlm.output(batch), batch)
    assert tuple(terms) == vlm.head.tasks == ("detect", "retrieve", "classify")
    whole = vlm.head
    for name in whole.tasks:
        vlm.head = whole.heads[name]
        own = read(vlm, *samples(vlm))
        torch.testing.assert_close(vlm.head.loss(vlm.output(own), own)[0], terms[name].total, rtol=1e-4, atol=1e-4)
    vlm.head = whole
    stage = task(vlm, weights={"detect": 2.0}).eval()
    torch.testing.assert_close(stage.losses(batch).terms["detect"].total, 2 * terms["detect"].total)


def test_text_may_be_one_of_several_and_is_scored_by_itself() -> None:
    """It has no weights of its own, so a checkpoint of several with ``head=text`` writes."""
    vlm = several(text=None, detect={"labels": ["circle", "star", "ring"], "dim": 8, "levels": 2})
    batch = read(vlm, *samples(vlm))
    terms = vlm.head.terms(vlm.output(batch), batch)
    assert terms["text"].count > 0 and terms["detect"].count > 0
    assert {name for name, _ in named_parts(vlm)["head"]} == {f"head.{n}" for n, _ in vlm.head.named_parameters()}
    with torch.no_grad():
        lines = vlm.head.predict(vlm.output(batch), batch)
    assert {row["metric"].partition("/")[0] for row in vlm.head.score(lines)} == {"detect"}


def test_one_of_several_heads_is_asked_as_if_it_were_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = compose(
        ["head=several", "head.heads={text:null,detect:{labels:[star]}}", "head.only=text", "benchmark=needles"]
    )
    vlm = several(text=None, detect={"labels": ["star"], "dim": 8, "levels": 2})
    with pytest.raises(UserError, match="several heads have no file in common; name the one .* head.only=text"):
        vlm.head.read(tmp_path / "a.json", "benchmark.annotations")
    vlm.head.only = "text"
    with pytest.raises(UserError, match="head.only: all of head.heads are trained; name one where a model is scored"):
        task(vlm)
    monkeypatch.setattr(rebuild, "rebuild", lambda path, cfg: (vlm, None))
    loaded = rebuild.load(tmp_path, cfg)
    assert loaded.model.head.writes and loaded.benchmark().asks
    assert assembly.head_alone(cfg).writes
    with pytest.raises(UserError, match="head.only=detekt: is none of head.heads, text, detect"):
        assembly.head_alone({**cfg, "head": {**cfg["head"], "only": "detekt"}})


@pytest.mark.parametrize("stage", ["sft", "align", "dpo"])
def test_a_head_that_does_not_write_cannot_be_taught_to(stage: str) -> None:
    vlm = model(Case("question_first", (Variant("head", "detect"),)))
    with pytest.raises(UserError, match=f"stage={stage}: it teaches to write, and head=detect writes no text; use st"):
        assembly.stage({"stage": Variant("stage", stage).settings}, vlm, None)


def test_a_head_of_several_that_has_nothing_to_score_is_said(caplog: pytest.LogCaptureFixture) -> None:
    vlm = several()
    batch = read(vlm, *samples(vlm))
    with torch.no_grad():
        lines = vlm.head.predict(vlm.output(batch), batch)
    rows = vlm.head.score([line for line in lines if line["head"] != "classify"])
    assert {row["metric"].partition("/")[0] for row in rows} == {"detect", "retrieve"}
    assert "there is nothing for classify here" in caplog.text


def test_a_head_without_rows_in_a_batch_adds_nothing() -> None:
    vlm = several()
    sample = {"events": [{"start": 0.1, "end": 0.6, "label": "ring"}], "pairs": [], "captions": [], "questions": []}
    batch = read(vlm, clip_of(1, 4, side(vlm), sample))
    terms = vlm.head.terms(vlm.output(batch), batch)
    assert terms["classify"].count == terms["retrieve"].count == 0 and terms["detect"].count > 0
    every = vlm.head.terms(vlm.output(whole := read(vlm, *samples(vlm))), whole)
    for name, term in every.items():  # all processes sum the same figures
        assert tuple(terms[name].further) == tuple(term.further) == vlm.head.heads[name].measures
    assert vlm.head.units_of_terms(batch)["classify"] == 0


@pytest.mark.parametrize(
    "heads, said",
    [
        ("null", "head.heads is empty: name the heads"),
        ("{detekt:null}", "head.heads.detekt: no such head; did you mean 'detect'"),
        ("{mine:{_target_:os.system}}", "head.heads.mine._target_=os.system: expected a class in hvlm.head"),
        (
            "{detect:{labels:[a],levls:3}}",
            "unknown key 'head.heads.detect.levls'; did you mean 'head.heads.detect.levels'",
        ),
        ("{detect:{labels:[a,a]}}", "'a' stands there twice"),
        ("{several:{}}", "cannot stand in several heads"),
    ],
)
def test_wrong_heads_are_one_line(heads: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        assembly.head_alone(compose(["head=several", f"head.heads={heads}"]))


def test_the_labels_of_all_heads_come_from_the_dataset() -> None:
    cfg = compose(["head=several", "head.heads={detect:null,classify:{hidden:8}}", "dataset.set=events"])
    heads = assembly.settled(cfg)["head"]["heads"]
    assert heads["detect"]["labels"] == list(SHAPES) and "6" in heads["classify"]["labels"]
    with pytest.raises(UserError, match=r"head.labels: dataset.set=easy has no closed list of events"):
        assembly.settled(compose(["head=detect"]))
    with pytest.raises(UserError, match=r"head.labels: Shards does not know the events"):
        assembly.settled(compose(["head=detect", "dataset=shards", "dataset.path=x"]))


def test_yamls_say_what_constructors_have_by_default() -> None:
    """``head=several`` takes the constructor's."""
    for name in ("classify", "retrieve", "match", "detect"):
        written = Variant("head", name).written
        defaults = {k: p.default for k, p in inspect.signature(target(written)).parameters.items()}
        assert {k: v for k, v in written.items() if k != "_target_"} == {
            k: defaults[k] for k in written if k != "_target_"
        }


# ---------------------------------------------------------------------------------------------------- a fifth head


FIFTH = '''"""How many events a clip has."""

import json
from dataclasses import dataclass

import torch
from torch import nn
from torchmetrics import MeanMetric

from hvlm.contracts import Head
from hvlm.data.question_file import Row as VideoRow
from hvlm.data.views import Row, View


@dataclass(frozen=True)
class Counted(View):
    """One row for each clip."""

    name = "events to count"

    def rows(self, sample, times, rng, n):
        return [Row("how many ?", None, {"key": sample["key"], "count": len(sample["events"])})]

    def targets(self, rows, chat):
        return {"count": torch.tensor([float(row["count"]) for row in rows])}


class Count(Head):
    """A number."""

    view = Counted()

    def __init__(self, *, text_dim: int):
        super().__init__()
        self.out = nn.Linear(text_dim, 1)

    def forward(self, hidden_KLD, sequence):
        return self.out(hidden_KLD.mean(1)).squeeze(1).float()

    def units(self, batch):
        return len(batch.input_ids_KS)

    def loss(self, output, batch):
        total = (output - batch.targets["count"]).square().sum()
        return total, total.new_tensor(len(output)), {}

    def predict(self, output, batch):
        return [{"count": row["count"], "answer": round(x, 6)} for row, x in zip(batch.rows, output.tolist())]

    def metrics(self):
        return {"error": MeanMetric()}

    def update(self, metrics, lines):
        for line in lines:
            metrics["error"].update(abs(line["answer"] - line["count"]))

    def read(self, path, setting):
        event = {"start": 0, "end": 1, "label": "something"}
        (name, n), = json.loads(path.read_text()).items()
        return [VideoRow(1, None, name, None, None, {"events": [event] * n})]
'''


@pytest.mark.slow
def test_a_fifth_head_is_one_file_and_one_yaml(tmp_path: Path) -> None:
    """Trained, scored from its checkpoint, and scored again from its lines, all on the command line."""
    (tmp_path / "fifth" / "head").mkdir(parents=True)
    (tmp_path / "fifth" / "__init__.py").touch()
    (tmp_path / "fifth" / "head" / "__init__.py").touch()
    (tmp_path / "fifth" / "head" / "count.py").write_text(FIFTH)
    (tmp_path / "fifth" / "conf" / "head").mkdir(parents=True)
    (tmp_path / "fifth" / "conf" / "head" / "count.yaml").write_text("_target_: fifth.head.count.Count\n")
    clips = "dataset.train_clips=4 dataset.val_clips=2 dataset.test_clips=2 dataset.text_chats=0 dataset.num_frames=4"
    data = f"dataset.set=events dataset.min_seconds=10 dataset.max_seconds=12 dataset.fps=2 {clips}"
    how = f"stage=task head=count packages=[fifth] connector=mean stage.steps=2 stage.batch_size=2 {data}"
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "OMP_NUM_THREADS": "1"}
    (tmp_path / "mine.jpg").write_bytes(still(1))
    (tmp_path / "mine.json").write_text('{"mine.jpg": 3}')
    for line in (
        f"{ROOT}/train.py {how} run=r trainer.num_workers=0",
        f"{ROOT}/eval.py checkpoint=runs/r packages=[fifth] benchmark.annotations=mine.json out=mine",
        f"{ROOT}/eval.py checkpoint=runs/r packages=[fifth] out=runs/r",
        f"{ROOT}/eval.py predictions=runs/r/head.jsonl head=count packages=[fifth]",
    ):
        done = subprocess.run([sys.executable, *line.split()], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "error" in done.stdout


# ---------------------------------------------------------------------------------------------------- files of answers


def test_vqas_annotations_and_files_of_questions_are_read(tmp_path: Path) -> None:
    head = shared_model(Case("question_first", (Variant("head", "classify"),))).head
    ten = [{"answer": "red"}] * 2 + [{"answer": "blue"}] * 7 + [{"answer": "ring"}]
    (tmp_path / "v_annotations.json").write_text(
        json.dumps({"annotations": [{"question_id": 7, "image_id": "a.mp4", "answers": ten, "question_type": "what"}]})
    )
    (tmp_path / "v_questions.json").write_text(json.dumps({"questions": [{"question_id": 7, "question": "which ?"}]}))
    (row,) = head.read(tmp_path / "v_annotations.json", "benchmark.annotations")
    assert row.video == "a.mp4"
    question = row.question
    assert question["question"] == "which ?" and question["task"] == "what"
    assert question["answers"] == pytest.approx({"blue": 1.0, "red": 2 / 3, "ring": 1 / 3})
    line = {"answer": "red", "weights": question["answers"], "people": question["people"]}
    found = {row["metric"]: row["value"] for row in head.score([line])}
    assert found["vqa_official"] == found["vqa_always_normalised"] == pytest.approx(0.6), "two of ten people said so"
    assert found["accuracy"] == pytest.approx(2 / 3)
    one = {"question": "q ?", "video": "b.mp4", "answers": ["red", "ring"], "start": 1, "end": 2}
    (tmp_path / "rows.jsonl").write_text(json.dumps(one))
    (row,) = head.read(tmp_path / "rows.jsonl", "benchmark.annotations")
    assert row.video == "b.mp4" and row.question["answers"] == ["red", "ring"] and row.section == (1.0, 2.0)
    # What one or two people say has no accuracy of ten: all they say is right.
    (tmp_path / "v_annotations.json").write_text(
        json.dumps({"annotations": [{"question": "q ?", "image_id": "a", "answers": ["red"]}]})
    )
    (row,) = head.read(tmp_path / "v_annotations.json", "benchmark.annotations")
    assert row.question["answers"] == ["red"] and "people" not in row.question


def test_questions_beside_annotations_that_cannot_be_read_are_said(tmp_path: Path) -> None:
    head = shared_model(Case("question_first", (Variant("head", "classify"),))).head
    file = tmp_path / "v_annotations.json"
    items = [{"question_id": 3, "image_id": "a", "answers": ["x"]}] * 2
    file.write_text(json.dumps({"annotations": items}))
    for text, said in (("{", "v_questions.json: not valid JSON"), ('{"a": 1}', "v_questions.json beside it is not of")):
        (tmp_path / "v_questions.json").write_text(text)
        with pytest.raises(UserError, match=said):
            head.read(file, "benchmark.annotations")
    (tmp_path / "v_questions.json").write_text('{"questions": [{"question_id": 3, "question": "q ?"}]}')
    with pytest.raises(UserError, match=r"annotations\[1\].question_id 3 stands there twice"):
        head.read(file, "benchmark.annotations")


@pytest.mark.parametrize(
    "item, said",
    [
        ({"question": "q", "image_id": "a", "answers": []}, r"annotations\[0\].answers is a list of 0"),
        ({"question": "q", "image_id": "a", "answers": [{"answer": ""}]}, r"annotations\[0\].answers\[0\] is ''"),
        (
            {"question_id": 3, "image_id": "a", "answers": ["x"]},
            "question is missing, and no file of questions beside it",
        ),
        ({"question": "q", "answers": ["x"]}, r"annotations\[0\].video is null"),
    ],
)
def test_bad_answers_are_one_line(tmp_path: Path, item: dict, said: str) -> None:
    head = shared_model(Case("question_first", (Variant("head", "classify"),))).head
    (tmp_path / "a.json").write_text(json.dumps({"annotations": [item]}))
    with pytest.raises(UserError, match=said) as error:
        head.read(tmp_path / "a.json", "benchmark.annotations")
    assert "\n" not in str(error.value)
