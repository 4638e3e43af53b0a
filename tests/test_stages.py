"""Each stage on a handful of generated clips: what it trains, how fast, and that its loss falls."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

from hvlm import assembly
from hvlm.config.compose import compose
from hvlm.data.datamodule import DataModule
from hvlm.data.loader import counted
from hvlm.data.order import Order, SampleRef
from hvlm.data.quarantine import Quarantine
from hvlm.data.reader import Reader
from hvlm.errors import UserError
from hvlm.model import VLM
from hvlm.stage._base import Stage
from hvlm.training.chain import every_pair
from hvlm.training.start import start_stage
from hvlm.types import Batch

ANSWERS = (
    "red",
    "blue",
    "green",
    "yellow",
    "cyan",
    "magenta",
    "orange",
    "white",
    "circle",
    "square",
    "triangle",
    "ring",
)
LOUD = "stage.trainable={vision:3.0e-3,connector:3.0e-3,language:3.0e-3}"


def start(overrides: list[str], *more: str) -> tuple[Stage, DataModule]:
    """A stage around a fresh model, and its reader."""
    cfg = compose([*overrides, *more])
    torch.manual_seed(0)
    data = assembly.dataset(cfg)
    data.prepare(progress=False)
    stage, chat = start_stage(cfg, data, None)
    stage.configure_model()
    return stage, assembly.datamodule(cfg, stage, data, chat, None)


class Again:
    """A loader that gives one batch over and over."""

    def __init__(self, batch: Batch, times: int) -> None:
        self.batch, self.times = batch, times

    def __len__(self) -> int:
        return self.times

    def __iter__(self) -> Iterator[Batch]:
        return repeat(self.batch, self.times)


def fit(stage: Stage, data: DataModule | Again, folder: Path, steps: int) -> None:
    """Train on a reader's batches, or on one batch again and again."""
    how = {"datamodule": data} if isinstance(data, DataModule) else {"train_dataloaders": data}
    lightning.Trainer(
        accelerator="cpu", max_steps=steps, max_epochs=-1, limit_val_batches=0, logger=False, gradient_clip_val=1.0,
        enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False, log_every_n_steps=1,
        use_distributed_sampler=False, default_root_dir=folder,
    ).fit(stage, **how)  # fmt: skip


def loss_of(stage: Stage, batch: Batch) -> float:
    modes = {m: m.training for m in stage.modules()}
    stage.eval()
    with torch.no_grad():
        terms, _ = stage.losses(batch)
    for module, mode in modes.items():
        module.training = mode
    return float(sum(term.total / term.count for term in terms.values()))


def clips(reading: DataModule, n: int = 8) -> Batch:
    return next(iter(reading.loader("train", reading.view, None, n)))


# ---------------------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize(
    "settings, share",
    [
        (["stage=vision"], 0.9),
        (["stage=align", "stage.converge_to=1.0e-3", LOUD], 0.8),
        (["stage=sft", LOUD], 0.8),
        (["stage=sft", LOUD, "connector=mean", "order=video_first"], 0.8),
        (["stage=sft", LOUD, "connector=patches", "vision=dinov2_tiny", "vision.image_size=28"], 0.8),
        (["stage=dpo", LOUD, "stage.beta=0.5"], 0.8),
    ],
    ids=lambda value: "-".join(w for w in value if "." not in w) if isinstance(value, list) else "",
)  # fmt: skip
def test_the_loss_falls(needles: list[str], tmp_path: Path, settings: list[str], share: float) -> None:
    common = [o for o in needles if "dinov2_tiny" not in "".join(settings) or not o.startswith("vision.")]
    steps = 30
    stage, reading = start(common, *settings, f"stage.steps={steps}")
    shown = clips(reading, 4)
    before = loss_of(stage, shown)
    fit(stage, Again(shown, steps), tmp_path, steps)
    after = loss_of(stage, shown)
    assert after < share * before, f"{before} -> {after}"


def test_align_scores_every_token_and_sft_the_answer(needles: list[str]) -> None:
    for name, everything in (("align", True), ("sft", False)):
        stage, reading = start(needles, f"stage={name}")
        batch = clips(reading)
        terms, measures = stage.losses(batch)
        total, count = terms["text"]
        scored = int((batch.loss_mask_KS & batch.attention_mask_KS).sum())
        # The token that directly follows the video has no valid place before it in every clip, and is left out.
        assert int(count) == scored - everything * len(batch.input_ids_KS)
        logp = stage.model.token_logprobs(batch)
        assert total.item() == pytest.approx(-logp.sum().item(), rel=1e-5)
        assert 0 <= float(measures["token_accuracy"].total) <= int(count)
        tokens = int(batch.attention_mask_KS.sum())
        assert (scored == tokens - len(batch.input_ids_KS)) == everything, "all but each row's first, or the answer"


def test_the_coarse_loss_is_added(needles: list[str]) -> None:
    batch = clips(start(needles, "stage=sft")[1], 4)
    plain, both = (start(needles, "stage=sft", f"stage.coarse_weight={w}")[0].eval() for w in (0.0, 0.5))
    coarse = start(needles, "stage=sft", "connector.mode=coarse")[0].eval()
    both.model.load_state_dict(plain.model.state_dict())
    coarse.model.load_state_dict(plain.model.state_dict(), strict=False)
    expected = loss_of(plain, batch) + 0.5 * loss_of(coarse, batch)
    assert loss_of(both, batch) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(UserError, match="stage.coarse_weight=0.5: only connector=foveated"):
        start(needles, "stage=sft", "stage.coarse_weight=0.5", "connector=mean")


def test_text_only_batches_are_interleaved(needles: list[str]) -> None:
    _, reading = start(needles, "stage=sft", "stage.steps=200")
    order = reading.train_dataloader().order
    share = sum(order.at(step)[0].text for step in range(200)) / 200
    assert 0.07 < share < 0.21
    text = next(step for step in range(200) if order.at(step)[0].text)
    batch = reading.train_dataloader().reader.__getitems__(order.at(text))
    assert not batch.frame_mask_BT.any() and batch.loss_mask_KS.any()


# ---------------------------------------------------------------------------------------------------- what trains


def snapshot(stage: Stage) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in stage.named_parameters()}


def test_frozen_parts_do_not_move(needles: list[str], tmp_path: Path) -> None:
    """Not named, or a rate of 0: frozen. The query's projections live in the encoder and train with the connector."""
    stage, reading = start(
        needles, "stage=sft", "stage.steps=3", "stage.interleave=0", "stage.trainable.vision=0",
        "~stage.trainable.language", "stage.trainable.connector=1.0e-2",
    )  # fmt: skip
    before = snapshot(stage)
    fit(stage, reading, tmp_path, 3)
    moved = {name for name, p in stage.named_parameters() if not torch.equal(p, before[name])}
    connector = {"model." + name for name, _ in stage.parts()["connector"]}
    assert {name for name, p in stage.named_parameters() if p.requires_grad} == connector, "no gradient is computed"
    assert moved == connector - {"model.connector.q_init"}  # question_first: the first query comes from the text
    assert {name for name in moved if name.startswith("model.vision")} == {
        f"model.vision.query.{name}" for name in ("query_in.weight", "query_out.weight", "query_out.bias")
    }


@pytest.mark.parametrize(
    "settings, words",
    [
        (["stage=sft", "stage.trainable={visions:1.0e-3}"], ["trainable.visions'", "mean 'stage.trainable.vision'"]),
        (["stage=sft", "+stage.trainable.visions=1.0e-3"], ["visions", "vision, connector, language"]),
        (["stage=sft", "+stage.trainable.heads=1.0e-3"], ["heads", "vision, connector, language"]),
        (["stage=vision", "+stage.trainable.head=1.0e-3"], ["head", "connector, heads"]),
        (["stage=sft", "stage.trainable={vision:0,connector:0,language:0}"], ["freezes everything"]),
        (["stage=sft", "stage.converge_to=1.0e-4"], ["converge_to", "converging"]),
        (["stage=align", "stage.converge_to=null"], ["converge_to", "converging"]),
        (["stage=vision", "stage.interleave=0.1"], ["stage.interleave=0.1", "no text"]),
        (["stage=sft", "stage.schedule=cosin"], ["stage.schedule=cosin", "cosine"]),
    ],
)
def test_mistakes_are_refused_by_name(needles: list[str], settings: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        start(needles, *settings)
    for word in words:
        assert word in str(refused.value)


# ---------------------------------------------------------------------------------------------------- optimiser


def rates(stage: Stage, steps: int) -> dict[str, list[float]]:
    """{part: learning rate at every step}, from the optimiser and scheduler themselves."""
    made = stage.configure_optimizers()
    optimizer, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    found: dict[str, list[float]] = {}
    for _ in range(steps + 1):
        for part, rate in {g["name"]: g["lr"] for g in optimizer.param_groups}.items():
            found.setdefault(part, []).append(rate)
        optimizer.step()
        scheduler.step()
    return found


def test_converging_rates_meet_at_the_target(needles: list[str]) -> None:
    """fVLM: after the warm-up every part moves monotonously from its own rate to the common one."""
    peaks = {"vision": 1e-5, "connector": 1e-3, "language": 1e-4}
    named = ",".join(f"{part}:{rate}" for part, rate in peaks.items())
    stage, _ = start(
        needles, "stage=align", f"stage.trainable={{{named}}}", "stage.converge_to=1.0e-4", "stage.steps=100",
        "stage.warmup=0.1",
    )  # fmt: skip
    found = rates(stage, 100)
    for part, peak in peaks.items():
        warm, rest = found[part][:10], found[part][10:]
        assert warm == sorted(warm) and 0 < warm[0] < warm[-1] < peak and rest[0] == pytest.approx(peak)
        assert rest == sorted(rest, reverse=peak > 1e-4), "monotone"
        assert rest[-1] == pytest.approx(1e-4, rel=1e-6)
        assert rest[45] == pytest.approx((peak + 1e-4) / 2), "half-way on the cosine"


def test_cosine_and_constant_rates(needles: list[str]) -> None:
    stage, _ = start(needles, "stage=sft", "stage.steps=40", "stage.floor=0.1", "stage.warmup=0")
    found = rates(stage, 40)["language"]
    assert found == sorted(found, reverse=True) and found[0] == 3e-5 and found[-1] == pytest.approx(3e-6)
    stage, _ = start(needles, "stage=sft", "stage.steps=10", "stage.schedule=constant", "stage.warmup=0")
    assert set(rates(stage, 10)["vision"]) == {3e-5}


def test_vectors_are_not_decayed(needles: list[str]) -> None:
    stage, _ = start(needles, "stage=sft", "stage.weight_decay=0.5")
    groups = stage.configure_optimizers()["optimizer"].param_groups
    decayed = {id(p) for g in groups if g["weight_decay"] == 0.5 for p in g["params"]}
    spared = {id(p) for g in groups if g["weight_decay"] == 0.0 for p in g["params"]}
    names = {id(p): n for n, p in stage.named_parameters()}
    assert not decayed & spared and decayed | spared == set(names), "every parameter in exactly one group"
    for key, name in names.items():
        is_vector = name.endswith(("bias", "norm.weight", "norm1.weight", "norm2.weight", "layernorm.weight")) or (
            ".q_static" in name or ".q_init" in name or ".stem." in name and stage.get_parameter(name).ndim == 1
        )
        assert (key in spared) == is_vector, name


# ---------------------------------------------------------------------------------------------------- DPO


def swapped(batch: Batch) -> Batch:
    """Chosen and rejected rows change places."""
    index = torch.arange(len(batch.clip_K)).view(-1, 2).flip(1).flatten()
    return batch._replace(
        input_ids_KS=batch.input_ids_KS[index], attention_mask_KS=batch.attention_mask_KS[index],
        loss_mask_KS=batch.loss_mask_KS[index], clip_K=batch.clip_K[index], visual_at_K=batch.visual_at_K[index],
        rows=[batch.rows[i] for i in index.tolist()],
    )  # fmt: skip


def perturb(model: VLM) -> None:
    torch.manual_seed(5)
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))


def values(stage: Stage, batch: Batch) -> dict[str, float]:
    stage.eval()
    with torch.no_grad():
        terms, measures = stage.losses(batch)
    return {name: float(mean.total / mean.count) for name, mean in {"loss": terms["pairs"], **measures}.items()}


def test_dpo_starts_at_ln_2_and_a_swap_flips_the_margin(needles: list[str]) -> None:
    stage, reading = start(needles, "stage=dpo", "stage.beta=0.5")
    batch = clips(reading)
    assert [row["role"] for row in batch.rows[:4]] == ["chosen", "rejected"] * 2
    first = values(stage, batch)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["reward_margin"] == pytest.approx(0, abs=1e-6)

    perturb(stage.model)
    one, other = values(stage, batch), values(stage, swapped(batch))
    assert abs(one["reward_margin"]) > 1e-3
    assert one["reward_margin"] == pytest.approx(-other["reward_margin"], rel=1e-5)
    assert one["reward_chosen"] == pytest.approx(other["reward_rejected"], rel=1e-5)
    assert one["reward_accuracy"] == pytest.approx(1 - other["reward_accuracy"])


def test_dpo_is_its_formula(needles: list[str]) -> None:
    stage, reading = start(needles, "stage=dpo", "stage.beta=0.3", "stage.nll_weight=0.7")
    batch = clips(reading)
    with torch.no_grad():
        before = stage.model.eval().token_logprobs(batch).sum(1)
        perturb(stage.model)
        after = stage.model.token_logprobs(batch).sum(1)
    reward = 0.3 * (after - before)
    tokens = batch.loss_mask_KS.sum(1)[0::2]
    by_hand = -torch.nn.functional.logsigmoid(reward[0::2] - reward[1::2]) + 0.7 * -after[0::2] / tokens
    assert values(stage, batch)["loss"] == pytest.approx(float(by_hand.mean()), rel=1e-5)


def test_dpo_reference_precomputed_equals_a_copy(needles: list[str], tmp_path: Path) -> None:
    """The same losses before and after training on them, and the table holds every pair that can be drawn."""
    results: list[Any] = []
    for reference in ("copy", "precomputed"):
        stage, reading = start(needles, "stage=dpo", f"stage.reference={reference}", LOUD, "stage.steps=4")
        batch = clips(reading)
        stage.eval()
        if reference == "precomputed":
            with pytest.raises(KeyError, match="no reference log-prob"):
                stage.losses(batch)
        stage.prepare(lambda reading=reading, stage=stage: every_pair(reading, stage))
        assert (len(stage.table) > 0) == (reference == "precomputed")
        fit(stage, reading, tmp_path, 4)
        results.append((values(stage, batch), {n: p.clone() for n, p in stage.named_parameters()}))
        names = stage.state_dict()
        assert all(name.startswith("model.") for name in names), "the reference is not part of a checkpoint"
    (one, weights), (other, same_weights) = results
    assert one == pytest.approx(other, rel=1e-4, abs=1e-6) and one["reward_margin"] != 0
    for name, value in weights.items():
        # Adam turns rounding into single steps of its rate.
        torch.testing.assert_close(value, same_weights[name], rtol=0, atol=2e-4)


# ---------------------------------------------------------------------------------------------------- vision


def test_vision_heads_answer_for_every_cell(needles: list[str]) -> None:
    from hvlm.stage.vision import to_cells

    x = torch.arange(2 * 3 * (2 * 2) * (4 * 5)).view(2, 3 * 4, 20)
    cells = to_cells(x, (2, 3, 2, 2), 2)
    assert cells.shape == (2, 3, 4, 4, 5)
    # Token (row 1, column 0) of frame 2, its part (0, 1) -> cell (2, 1).
    assert torch.equal(cells[1, 2, 2, 1], x[1, 2 * 4 + 2].view(2, 2, 5)[0, 1])

    stage, reading = start(needles, "stage=vision")
    batch = clips(reading, 4)
    b, t = batch.frame_mask_BT.shape
    assert batch.labels["shape"].shape == (b, t, 4, 4) and (batch.labels["shape"] > 0).any()
    terms, measures = stage.losses(batch)
    things = int((batch.labels["shape"] > 0).sum())
    empty = b * t * 16 - things
    assert float(terms["cells"].count) == pytest.approx(things + 0.15 * empty, rel=1e-5)
    assert int(measures["object_accuracy"].count) == things and 0 <= float(measures["object_accuracy"].total) <= things
    sum(term.total / term.count for term in terms.values()).backward()
    used = {n.split(".")[1] for n, p in stage.named_parameters() if p.grad is not None and p.grad.any() and n[0] == "m"}
    assert used == {"vision"} and stage.patch_heads.weight.grad.any()

    # Padded frames: neither their pixels nor their labels count.
    mask = batch.frame_mask_BT.clone()
    mask[:, -1] = False
    labels = {name: value.clone() for name, value in batch.labels.items()}
    for value in labels.values():
        value[:, -1] = -100
    shorter = batch._replace(frame_mask_BT=mask, labels=labels)
    cut = batch._replace(
        frames_BTCHW=batch.frames_BTCHW[:, :-1], frame_time_BT=batch.frame_time_BT[:, :-1],
        frame_mask_BT=batch.frame_mask_BT[:, :-1], labels={n: v[:, :-1] for n, v in batch.labels.items()},
    )  # fmt: skip
    assert loss_of(stage, shorter) == pytest.approx(loss_of(stage, cut), rel=1e-5)


def test_a_things_place_is_its_middle_row_and_column() -> None:
    from hvlm.stage.vision import middle

    count = torch.tensor([[[0.0, 1.0], [2.0, 0.0], [2.0, 0.0], [0.0, 3.0]]])  # one frame, four rows, two things
    assert middle(count).tolist() == [[2, 2]]  # 1.5 rounds to the even 2; (0 + 9) / 4 = 2.25


def test_rooms_in_between_learn_as_the_connector_does(trained) -> None:
    from hvlm import assembly
    from hvlm.config.compose import compose

    cfg = compose([*[o for o in trained[1] if "=" in o and not o.startswith(("experiment", "run"))], "stage=sft",
                   "attention=full", "connector=mean"])  # fmt: skip
    data = assembly.dataset(cfg)
    chat = assembly.chat(cfg, data)
    vlm = assembly.model(cfg, chat)
    stage = assembly.stage(cfg, vlm, data)
    assert stage.trainable["attention"] == stage.trainable["connector"] == 3e-5
    assert all(p.requires_grad for p in vlm.attention.parameters())
    assert "merger" not in stage.trainable and "fusion" not in stage.trainable  # none has no weights
    groups = {g["name"] for g in stage.configure_optimizers()["optimizer"].param_groups}
    assert groups == {"vision", "connector", "attention", "language"}


# ---------------------------------------------------------------------------------------------------- frozen, decayed


@pytest.mark.fault(69)
@pytest.mark.parametrize("connector", ["foveated", "mean"])
def test_a_frozen_part_keeps_its_whole_state(needles: list[str], tmp_path: Path, connector: str) -> None:
    """Weights, running statistics and counters, and no dropout; what is trained moves."""
    frozen = "stage.trainable={vision:3.0e-3,connector:0,language:3.0e-3}"
    stage, reading = start(needles, "stage=sft", "stage.steps=5", frozen, f"connector={connector}")
    before = {name: value.clone() for name, value in stage.state_dict().items()}
    fit(stage, reading, tmp_path, 5)
    stage.train()
    assert not any(m.training for m in stage.model.connector.modules()) and stage.model.vision.training
    after = stage.state_dict()
    part = {name for name in after if name.startswith(("model.connector.", "model.vision.query."))}
    assert any("var" in name or "updates" in name for name in part)
    assert all(torch.equal(after[name], before[name]) for name in part)
    assert any(not torch.equal(after[name], before[name]) for name in set(after) - part)


@pytest.mark.fault(86)
@pytest.mark.parametrize("attention", ["mamba", "mamba2"])
def test_what_says_that_it_is_not_decayed_is_not(needles: list[str], attention: str) -> None:
    stage, _ = start(needles, "stage=sft", "stage.weight_decay=0.5", f"attention={attention}", "connector=mean")
    groups = stage.configure_optimizers()["optimizer"].param_groups
    decayed = {id(p) for g in groups if g["weight_decay"] == 0.5 for p in g["params"]}
    names = {id(p): n for n, p in stage.named_parameters()}
    assert any("in_proj.weight" in names[key] for key in decayed)
    for key, name in names.items():
        if name.rpartition(".")[2] in ("A_log", "A_b_log", "D", "D_b"):
            assert key not in decayed, name


# ---------------------------------------------------------------------------------------------------- accumulation


class Parts:
    """A loader that gives the parts of one step, as the reader would."""

    def __init__(self, batches: list[Batch], stage: Stage) -> None:
        self.batches, self.stage = batches, stage

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return counted(iter(self.batches), len(self.batches), self.stage.units)


class Gradients(lightning.Callback):
    """The gradients of the first optimiser step."""

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        self.found = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


def gradients(stage: Stage, batches: list[Batch], folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Of one optimiser step over these parts, and what is logged of it."""
    seen = Gradients()
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=1, max_epochs=-1, limit_val_batches=0, logger=False, callbacks=[seen],
        accumulate_grad_batches=len(batches), enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False, log_every_n_steps=1, use_distributed_sampler=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(stage, Parts(batches, stage))
    logged = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("train/")}
    return seen.found, {"train/reward_accuracy": 0.5} | logged


def statistics(stage: Stage) -> dict[str, torch.Tensor]:
    """The running statistics of the connector's features."""
    return {name: value for name, value in stage.state_dict().items() if ".standardise." in name}


@pytest.mark.fault(70)
@pytest.mark.parametrize("name", ["vision", "align", "sft", "dpo", "task", "duo"])
def test_a_step_in_parts_is_the_step_at_once(needles: list[str], tmp_path: Path, name: str) -> None:
    """Ragged rows and frames, and a part of text-only chats among the others."""
    more = {
        "task": ["head=classify", f"head.labels=[{','.join(ANSWERS)}]"],
        "duo": ["kvcache=duo", "connector=patches", "stage.sink=1", "stage.recent=2"],
    }
    settings = [f"stage={name}", *more.get(name, []), "stage.batch_size=6"]
    stage, reading = start(needles, *settings)
    spec = reading._show(reading.view, 3)
    clips, texts = reading._manifest.split("train"), reading._manifest.split("text")
    read = Reader(clips, texts, spec, Quarantine(0.5, None, 0), replace=True)
    items = [read._item(SampleRef(0, index)) for index in range(6)]
    for i, frames in enumerate((4, 2, 3, 4, 1, 2)):  # of other lengths
        labels = items[i].labels and {label: value[:frames] for label, value in items[i].labels.items()}
        items[i] = items[i]._replace(frames=items[i].frames[:frames], times=items[i].times[:frames], labels=labels)
    groups = [items[:2], items[2:4], items[4:]]
    if name in ("align", "sft"):
        groups[1] = [read._item(SampleRef(0, index, text=True)) for index in range(2)]
    whole, one = gradients(stage, [spec.collate([item for group in groups for item in group])], tmp_path)
    at_once = statistics(stage)
    stage, _ = start(needles, *settings)
    parts, other = gradients(stage, [spec.collate(group) for group in groups], tmp_path)
    assert whole.keys() == parts.keys()
    scale = max(float(value.abs().max()) for value in whole.values())
    for parameter, value in whole.items():
        assert float((parts[parameter] - value).abs().max()) <= 1e-6 * max(1.0, scale), parameter
    del one["train/reward_accuracy"], other["train/reward_accuracy"]  # before the first step all pairs are ties
    assert other == pytest.approx(one, rel=1e-6, abs=1e-6) and "train/loss" in one
    moved = {name: value for name, value in statistics(stage).items() if name.endswith(".updates")}
    assert bool(moved) == (name != "vision") and all(value == (name not in ("dpo", "duo")) for value in moved.values())
    torch.testing.assert_close(statistics(stage), at_once, rtol=1e-5, atol=1e-6)


@pytest.mark.fault(70)
def test_the_parts_of_a_step_are_its_batch(needles: list[str]) -> None:
    """batch_size is the optimiser step's, however many processes and parts share it; both must fit into it."""

    def seen(world: int, accumulate: int) -> list[set[int]]:
        made = [
            Order(["a"] * 24, batch_size=8, steps=3, seed=1, rank=rank, world=world, accumulate=accumulate)
            for rank in range(world)
        ]
        assert all(len(order) == 3 * accumulate for order in made)
        batches = [list(order) for order in made]
        assert all(len(batch) == 8 // world // accumulate for order in batches for batch in order)
        steps = [slice(i * accumulate, (i + 1) * accumulate) for i in range(3)]
        return [{pick.index for order in batches for batch in order[step] for pick in batch} for step in steps]

    assert seen(1, 1) == seen(1, 4) == seen(2, 2)
    with pytest.raises(UserError, match=r"stage.batch_size=8 .* 2 processes, 3 parts each .*a multiple of 6"):
        seen(2, 3)


@pytest.mark.fault(81)
@pytest.mark.parametrize("reference", ["copy", "precomputed"])
def test_dpo_reads_policy_and_reference_from_the_same_kept_features(needles: list[str], reference: str) -> None:
    settings = ["stage=dpo", "stage.trainable={vision:0,connector:1.0e-3,language:1.0e-3}", "vision.cache_gb=1"]
    stage, reading = start(needles, *settings, f"stage.reference={reference}")
    cfg = compose([*needles, *settings])
    stage.model.features = assembly.frozen_features(cfg, stage, assembly.dataset(cfg))
    stage.prepare(lambda: every_pair(reading, stage))
    batch = clips(reading)
    encoded = []
    for module in {stage.model.vision, *(reference.vision for reference in stage._reference)}:
        module.register_forward_hook(lambda *_: encoded.append(1))
        original = module.encode
        module.encode = lambda *a, original=original, **k: (encoded.append(1), original(*a, **k))[1]
    first = values(stage, batch)
    number = len(encoded)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6) and abs(first["reward_margin"]) < 1e-6
    assert values(stage, batch) == first and len(encoded) == number, "nothing is encoded a second time"


def test_what_a_source_said_is_taken_from_the_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint builds its model without the source at hand; a room of another class asks its own source."""
    from hvlm.vision.convvit import ConvViT

    cfg, said = compose(["stage=sft"]), {"model_type": "new", "rope_parameters": {"rope_theta": 1.0}}
    monkeypatch.setattr(ConvViT, "read_source_config", classmethod(lambda cls, settings: said))
    assert assembly.source_config(cfg, "vision") == said
    stored = {"config": cfg, "source_configs": {"vision": {"model_type": "old"}}}
    assert assembly.source_config(cfg, "vision", stored) == {"model_type": "old"}
    other = {"config": {"vision": {"_target_": "hvlm.vision.dinov2.Dinov2"}}, "source_configs": {"vision": {}}}
    assert assembly.source_config(cfg, "vision", other) == said
    assert assembly.source_config(cfg, "vision", {"config": cfg}) == said, "a checkpoint of before kept nothing"
