"""stage=duo: gates between full and sink-and-recent attention, held to what DuoAttention's formula says."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import torch
from _tiny import Case, Variant, batch_of, chat, clip, model, side
from test_stages import Again, clips, fit, rates, start
from torch import Tensor

from hvlm import assembly
from hvlm.caching import PastKV
from hvlm.errors import UserError
from hvlm.model import VLM
from hvlm.stage._mix import GatedMix, Recorder, sink_and_recent
from hvlm.stage.duo import PATTERN, Duo, histogram
from hvlm.types import Batch, Sequence

SINK, RECENT = 2, 3
DENSE = (Variant("connector", "patches"), Variant("kvcache", "duo"))
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def duo(order: str = "video_first", **settings: object) -> Duo:
    """The stage around a model with four tokens a frame and two query heads to a KV head."""
    small = {"sink": SINK, "recent": RECENT, "l1_weight": 0.0, **settings}
    vlm = model(Case(order, DENSE))
    assert vlm.language.num_heads == 2 * vlm.language.num_kv_heads
    made = assembly.stage({"stage": Variant("stage", "duo").settings | small}, vlm, None)
    assert isinstance(made, Duo)
    return made.train()


def batch_for(vlm: VLM) -> Batch:
    """Clips of different lengths with texts of different lengths: padding inside the rows and behind them."""
    long = clip(1, 4, [("what color is the ring ?", "red"), ("how many ?", "two three")], vlm.order, side(vlm))
    short = clip(2, 2, [("what shape ?", "blue circle star")], vlm.order, side(vlm))
    return batch_of(long, short, size=side(vlm))


def distill(stage: Duo, batch: Batch) -> Tensor:
    total, count = stage.losses(batch).terms["distill"]
    return total / count


def read(vlm: VLM, sequence: Sequence, cache: PastKV) -> Tensor:
    return vlm.language.hidden(sequence.x_KLD, sequence.mask_KL, sequence.position_KL, cache, sequence.log_size_KL)


def gates_of(stage: Duo, value: float | Tensor) -> None:
    with torch.no_grad():
        stage.model.kvcache.gates.copy_(torch.as_tensor(value).expand_as(stage.model.kvcache.gates))


def by_hand(mask_KS: Tensor, sink: int, recent: int) -> Tensor:
    """What a streaming head sees, place by place."""
    rows, length = mask_KS.shape
    seen = torch.zeros(rows, 1, length, length, dtype=torch.bool)
    for k in range(rows):
        valid = [s for s in range(length) if mask_KS[k, s]]
        for i in range(length):
            if not mask_KS[k, i]:
                seen[k, 0, i, i] = True
                continue
            before = [s for s in valid if s <= i]
            for s in [*before[:sink], *before[-recent:]]:
                seen[k, 0, i, s] = True
    return seen


# ---------------------------------------------------------------------------------------------------- the two passes


@pytest.mark.parametrize("sink, recent", [(0, 1), (2, 3), (1, 20)])
def test_a_streaming_head_sees_its_sink_and_what_is_recent(sink: int, recent: int) -> None:
    mask = torch.tensor([list(map(int, row)) for row in ("1101110011", "0011111111", "1111111000")]).bool()
    found = sink_and_recent(mask, sink, recent)
    assert torch.equal(found.transpose(1, 2)[mask], by_hand(mask, sink, recent).transpose(1, 2)[mask])
    assert found.any(-1).all(), "no row of the softmax is empty"
    full = torch.ones(3, 10, dtype=torch.bool)
    assert torch.equal(sink_and_recent(full, sink, recent).expand(3, -1, -1, -1), by_hand(full, sink, recent))


@torch.no_grad()
def test_a_gate_of_one_is_full_attention_and_the_loss_is_zero() -> None:
    stage = duo()
    vlm, batch = stage.model, batch_for(stage.model)
    gates_of(stage, 1.0)
    assert float(distill(stage, batch)) == 0
    sequence, record = vlm.sequence(batch), Recorder()
    plain = vlm.hidden(sequence)
    real = sequence.mask_KL
    torch.testing.assert_close(read(vlm, sequence, record)[real], plain[real], **CLOSE)
    mixed = read(vlm, sequence, GatedMix(vlm.kvcache.gates, record.outputs, SINK, RECENT))
    torch.testing.assert_close(mixed[real], plain[real], **CLOSE)
    gates_of(stage, 0.7)
    assert float(distill(stage, batch)) > 1e-6


@torch.no_grad()
def test_a_gate_of_zero_is_masked_streaming_attention() -> None:
    """Against the library's own model, given the mask place by place."""
    stage = duo()
    vlm = stage.model
    sequence, record = vlm.sequence(batch_for(vlm)), Recorder()
    read(vlm, sequence, record)
    zeros = torch.zeros_like(vlm.kvcache.gates)
    found = read(vlm, sequence, GatedMix(zeros, record.outputs, SINK, RECENT))
    mask = sequence.mask_KL
    assert not mask.all(), "rows with padding, or this shows less"
    position = (mask.cumsum(1) - 1).clamp(min=0)
    seen = by_hand(mask, SINK, RECENT)
    wanted = vlm.language.model.base_model(
        inputs_embeds=sequence.x_KLD, attention_mask=seen, position_ids=position
    ).last_hidden_state
    torch.testing.assert_close(found[mask], wanted[mask], **CLOSE)
    assert (found - vlm.hidden(sequence))[mask].abs().max() > 1e-2, "the mask must matter, or this sees nothing"


@torch.no_grad()
def test_sizes_of_merged_tokens_count_in_both_passes() -> None:
    stage = duo()
    lm = stage.model.language
    x = torch.randn(2, 12, lm.dim, generator=torch.Generator().manual_seed(0))
    size = torch.arange(24).view(2, 12).remainder(5).add(1).log()
    for mask in (None, torch.arange(12) < torch.tensor([[12], [9]])):
        record = Recorder()
        lm.hidden(x, mask, None, record, size)
        wanted = lm.hidden(x, mask, None, None, size)
        real = torch.ones(2, 12, dtype=torch.bool) if mask is None else mask
        for gate in (1.0, 0.0):
            gates = torch.full_like(stage.model.kvcache.gates, gate)
            wide = GatedMix(gates, record.outputs, SINK, 12)  # sees all, so it is full attention whatever the gate
            torch.testing.assert_close(lm.hidden(x, mask, None, wide, size)[real], wanted[real], **CLOSE)


def test_the_gradient_of_the_gates_is_that_of_the_loss() -> None:
    """Finite differences; nothing else gets a gradient, and none goes through what was recorded."""
    stage = duo()
    batch = batch_for(stage.model)
    gates = stage.model.kvcache.gates
    start_at = torch.linspace(0.2, 0.9, gates.numel()).view_as(gates)
    gates_of(stage, start_at)
    distill(stage, batch).backward()
    assert {name for name, p in stage.named_parameters() if p.grad is not None} == {"model.kvcache.gates"}
    found = gates.grad.clone()
    assert (found != 0).all()
    with torch.no_grad():
        for layer in range(gates.shape[0]):
            for head in range(gates.shape[1]):
                ends = []
                for step in (1e-2, -1e-2):
                    gates_of(stage, start_at)
                    gates[layer, head] += step
                    ends.append(float(distill(stage, batch)))
                assert float(found[layer, head]) == pytest.approx((ends[0] - ends[1]) / 2e-2, rel=0.02, abs=1e-6)


def test_the_price_has_the_gradient_of_its_formula() -> None:
    """Where a streaming head sees everything there is nothing to distil, and the price alone pulls."""
    stage = duo(l1_weight=0.3, recent=1000)
    gates = stage.model.kvcache.gates
    gates_of(stage, torch.linspace(-0.1, 0.9, gates.numel()).view_as(gates))
    terms = stage.losses(batch_for(stage.model)).terms
    (terms["gates"].total / terms["gates"].count).backward()
    torch.testing.assert_close(gates.grad, 0.3 * gates.detach().sign() / gates.numel(), rtol=1e-6, atol=0)
    assert terms["gates"].total.item() == pytest.approx(0.3 * float(gates.detach().abs().mean()))
    assert terms["distill"].total.item() < 1e-6


@torch.no_grad()
def test_rows_of_a_batch_are_as_each_alone() -> None:
    stage = duo(order="question_first")
    gates_of(stage, 0.4)
    vlm = stage.model
    long = clip(1, 4, [("what color is the ring ?", "red")], vlm.order, side(vlm))
    short = clip(2, 2, [("what shape ?", "blue circle star")], vlm.order, side(vlm))
    both = stage.losses(batch_of(long, short, size=side(vlm))).terms["distill"]
    alone = [stage.losses(batch_of(item, size=side(vlm))).terms["distill"] for item in (long, short)]
    assert float(both.total) == pytest.approx(sum(float(a.total) for a in alone), rel=1e-4)
    assert int(both.count) == sum(int(a.count) for a in alone) == 2 + 4, "the answers' tokens and their ends"
    assert float(both.total) > 1e-5


@torch.no_grad()
def test_only_states_at_answers_count() -> None:
    stage = duo()
    gates_of(stage, 0.4)
    batch = batch_for(stage.model)
    before = distill(stage, batch)
    last = batch.loss_mask_KS & (batch.loss_mask_KS.flip(1).cumsum(1).flip(1) == 1)
    fewer = distill(stage, batch._replace(loss_mask_KS=last))
    assert stage.units(batch) == {"distill": float(batch.loss_mask_KS.sum()), "gates": 1.0}
    assert float(fewer) != float(before)
    ids = batch.input_ids_KS.clone()
    ids[last] = chat().pad_id - 1  # a row's last token predicts nothing that counts
    assert float(distill(stage, batch._replace(input_ids_KS=ids))) == pytest.approx(float(before), rel=1e-6)


# ---------------------------------------------------------------------------------------------------- training


def test_the_schedule_is_the_published_one(needles: list[str]) -> None:
    stage, _ = start(needles, "stage=duo", "kvcache=duo", "stage.steps=50")
    n = 50
    wanted = [0.02 * min(1, max((s + 1) / (n / 5), 0.1), max((n - s) / (n / 5), 0.1)) for s in range(n + 1)]
    assert rates(stage, n)["kvcache"] == pytest.approx(wanted)


def test_gates_learn_and_nothing_else_moves(needles: list[str], tmp_path: Path) -> None:
    """A batch again and again: gates that are worth nothing fall, all stay in [0, 1], and the files are theirs."""
    more = ("stage.steps=12", "stage.sink=1", "stage.recent=2", "stage.trainable.kvcache=0.1", "connector=patches")
    stage, reading = start(needles, "stage=duo", "kvcache=duo", "order=video_first", "stage.l1_weight=1.0", *more)
    batch = clips(reading, 2)
    before = {name: p.detach().clone() for name, p in stage.named_parameters()}
    fit(stage, Again(batch, 12), tmp_path, 12)
    moved = {name for name, p in stage.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"model.kvcache.gates"}
    gates = stage.gates()
    assert 0 <= gates.min() and gates.mean() < 0.95
    rows = (tmp_path / PATTERN / "full_attention_heads.tsv").read_text().splitlines()
    written = torch.tensor([[float(v) for v in row.split("\t")] for row in rows])
    assert torch.equal(written, gates)
    config = json.loads((tmp_path / PATTERN / "config.json").read_text())
    assert (config["sink_size"], config["recent_size"]) == (1, 2)


def test_a_step_in_parts_has_the_gradient_of_the_whole(needles: list[str], tmp_path: Path) -> None:
    found = []
    for parts in (1, 2):
        settings = ("order=video_first", "connector=patches", "stage.steps=2", "stage.batch_size=4", "stage.sink=1",
                    "stage.recent=2", f"trainer.accumulate={parts}")  # fmt: skip
        stage, reading = start(needles, "stage=duo", "kvcache=duo", *settings)
        with torch.no_grad():
            stage.model.kvcache.gates.fill_(0.5)
        seen: list[Tensor] = []
        stage.on_before_optimizer_step = lambda optimizer, seen=seen, stage=stage: seen.append(
            stage.model.kvcache.gates.grad.clone()
        )
        import lightning

        lightning.Trainer(
            accelerator="cpu", max_steps=2, max_epochs=-1, limit_val_batches=0, logger=False,
            accumulate_grad_batches=parts, enable_progress_bar=False, enable_checkpointing=False,
            enable_model_summary=False, use_distributed_sampler=False, default_root_dir=tmp_path,
        ).fit(stage, datamodule=reading)  # fmt: skip
        found.append(seen)
    for whole, cut in zip(*found, strict=True):
        torch.testing.assert_close(whole, cut, rtol=1e-4, atol=1e-7)
        assert whole.abs().min() > 0


def test_gates_are_added_to_a_trained_model_and_stay_in_its_checkpoint(
    trained: tuple[Path, list[str]], needles: list[str]
) -> None:
    from hvlm.io.checkpoint import load_weights
    from hvlm.training.chain import run

    folder, _ = trained
    overrides = ["stage=duo", "kvcache=duo", "init_from=runs/tiny", "run=gates", "stage.steps=2", "evaluate=false"]
    with contextlib.chdir(folder):
        run([*overrides, *needles])
        weights = load_weights("runs/gates/duo")
        assert weights["kvcache.gates"].dtype == torch.float32
        assert (Path("runs/gates/duo") / PATTERN / "full_attention_heads.tsv").exists()
        base = load_weights("runs/tiny")
        assert all(torch.equal(weights[name], value) for name, value in base.items() if not name.startswith("kvcache"))
        lines = [json.loads(line) for line in Path("runs/gates/duo/metrics.jsonl").read_text().splitlines()]
    logged = {key for line in lines for key in line}
    assert {"train/distill", "train/gates_l1", "train/gates_kept", "lr/kvcache", "val/distill"} <= logged
    assert "gates/layer_00/0.75-1.00" in logged


def test_a_histogram_counts_every_gate_of_a_layer() -> None:
    found = histogram(torch.tensor([[0.0, 0.3, 1.0, 1.0], [0.25, 0.5, 0.75, 0.1]]))
    assert list(found.values()) == [1, 1, 0, 2, 1, 1, 1, 1]
    assert list(found)[3] == "gates/layer_00/0.75-1.00"


# ---------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "settings, words",
    [
        (["kvcache=full"], ["no gates", "kvcache=duo"]),
        (["kvcache=duo", "language.attention=sdpa"], ["language.attention=auto"]),
        (["kvcache=duo", "+stage.trainable.language=1.0e-3"], ["stage.trainable gives language", "kvcache:0.02"]),
        (["kvcache=duo", "stage.recent=0"], ["stage.recent=0"]),
    ],
)
def test_what_cannot_be_learned_is_refused(needles: list[str], settings: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        start(needles, "stage=duo", *settings)
    for word in words:
        assert word in str(refused.value)


def test_layers_with_windows_are_refused_by_name() -> None:
    vlm = model(Case("video_first", (Variant("language", "causal"), *DENSE)))  # Gemma 2's windows
    with pytest.raises(UserError, match="look back by 4 positions"):
        assembly.stage({"stage": Variant("stage", "duo").settings}, vlm, None)


def test_a_text_without_a_video_is_learned_from() -> None:
    stage = duo(l1_weight=0.1)
    gates_of(stage, 0.5)
    text = batch_of(clip(1, None, [("what color is the ring ? how many red blue", "two")], "video_first", 32), size=32)
    terms = stage.losses(text).terms
    assert terms["distill"].total.item() > 0


def test_a_stopped_stage_goes_on_bit_for_bit(tmp_path: Path, needles: list[str]) -> None:
    from hvlm.io.checkpoint import load_weights
    from hvlm.training.chain import run

    common = ["stage=duo", "kvcache=duo", "stage.steps=4", "stage.batch_size=2", "stage.sink=1", "stage.recent=2",
              "stage.trainable.kvcache=0.05", "stage.l1_weight=10",
              "evaluate=false", "trainer.checkpoint_every=1", *needles]  # fmt: skip
    with contextlib.chdir(tmp_path):
        run([*common, "run=whole"])
        run([*common, "run=parts", "trainer.max_steps=2"])
        assert not torch.equal(*(load_weights(f"runs/{name}/duo")["kvcache.gates"] for name in ("whole", "parts")))
        run([*common, "run=parts"])
        whole, parts = (load_weights(f"runs/{name}/duo")["kvcache.gates"] for name in ("whole", "parts"))
    assert torch.equal(whole, parts) and not (whole == 1).all()
