"""LoRA, DoRA, prefix and bottlenecks: nothing changes at first, several at once, off, merged, and what trains."""

from __future__ import annotations

import copy
import math
import shutil

import pytest
import torch
from _tiny import ASKED, Case, Variant, batch_of, chat, clip, model, per_row, side, two_clips, variants
from test_causal import FAMILIES, TINY

import hvlm
from hvlm import assembly
from hvlm.adapter import BottleneckAdapter, LoRAAdapter, PrefixAdapter
from hvlm.adapter.dora import DoRA
from hvlm.adapter.lora import LoRA
from hvlm.commands.eval import evaluate
from hvlm.errors import UserError
from hvlm.evaluation.generate import generate
from hvlm.io.checkpoint import load_weights
from hvlm.model import VLM
from hvlm.stage.dpo import DPO
from hvlm.training.chain import run
from hvlm.types import Batch

KINDS = ["lora", "dora", "prefix", "bottleneck"]
MERGE = ["lora", "dora"]
NAMES = ["sports", "news", "tutorials"]
EVERYWHERE = ["language", "vision", "attention", "connector"]
FULL = (("attention", "full"), ("connector", "mean"), ("vision", "dinov2_tiny"))


def family(name: str) -> Variant:
    values = {"model_type": name, **TINY, **FAMILIES[name]}
    del values["vocab_size"]
    return Variant("language", "causal", (("config", values),))


def plain(*rooms: Variant, order: str = "question_first", seed: int = 0) -> VLM:
    return model(Case(order, rooms), seed)


def adapted(kind: str, *rooms: Variant, order: str = "question_first", loud: bool = True, **settings) -> VLM:
    """The same model with an adapter; the first of ``names`` is used."""
    vlm = plain(*rooms, order=order)
    names = settings.get("names") or ["all"]
    vlm.adapter = assembly.room(Variant("adapter", kind).written | settings, name=names[0])
    vlm.adapter.attach(vlm)
    vlm.adapter.fill()
    return louder(vlm) if loud else vlm.eval()


def louder(vlm: VLM, seed: int = 6, std: float = 0.2) -> VLM:
    torch.manual_seed(seed)
    for parameter in vlm.adapter.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return vlm.eval()


def words(**named: str) -> tuple[Variant, ...]:
    return tuple(Variant(group, name) for group, name in named.items())


def ask(vlm: VLM, **changes) -> list[torch.Tensor]:
    return per_row(vlm, batch_of(*two_clips(vlm), size=side(vlm))._replace(**changes))


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def far(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


def where_of(kind: str) -> list[str]:
    return ["language"] if kind == "prefix" else EVERYWHERE


# -------------------------------------------------------------------------------------------- nothing changes at first


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "opt", "gemma2", "qwen3"])
def test_a_fresh_one_is_the_base_bit_for_bit_in_every_family(kind: str, name: str) -> None:
    base = ask(plain(family(name)))
    vlm = adapted(kind, family(name), loud=False)
    assert equal(ask(vlm), base)
    assert far(ask(louder(vlm)), base) > 1e-3, "it must reach something, or this test sees nothing"
    with vlm.adapter.off():
        assert equal(ask(vlm), base)
    if name == "gpt2" and kind in MERGE:
        assert any(n.endswith("attn.c_attn.lora_A.weight") for n in vlm.state_dict())
    if name == "phi3" and kind in MERGE:
        assert any(n.endswith("self_attn.qkv_proj.lora_A.weight") for n in vlm.state_dict())


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "room"),
    [("lora", v.name) for v in variants("attention") if v.name != "none"]
    + [("dora", "local_global"), ("dora", "cross_memory"), ("bottleneck", "performer"), ("bottleneck", "cross_memory")],
)
def test_in_every_room_it_is_the_base_until_it_learns(kind: str, room: str) -> None:
    rooms = words(attention=room, connector="mean", vision="dinov2_tiny")
    base, vlm = ask(plain(*rooms)), adapted(kind, *rooms, loud=False, where=where_of(kind))
    assert equal(ask(vlm), base)
    assert far(ask(louder(vlm)), base) > 1e-3
    for part in where_of(kind):
        own = [n for n in vlm.state_dict() if n.startswith(f"adapter.all.{part}.")]
        assert own, f"nothing stands in {part}"
        kept = {n: p.clone() for n, p in vlm.adapter.named_parameters()}
        before = ask(vlm)
        for n, p in vlm.adapter.named_parameters():
            if n.startswith(f"all.{part}."):
                p.mul_(-0.5)
        assert far(ask(vlm), before) > 1e-5, f"what stands in {part} is not used"
        for n, p in vlm.adapter.named_parameters():
            p.copy_(kept[n])


@torch.no_grad()
@pytest.mark.parametrize("vision", ["convvit", "clip_tiny", "siglip_tiny", "dinov3_tiny"])
@pytest.mark.parametrize("kind", ["lora", "dora", "bottleneck"])
def test_every_encoder_and_the_gaze_are_adapted(kind: str, vision: str) -> None:
    rooms = words(vision=vision, connector="foveated")
    base, vlm = ask(plain(*rooms)), adapted(kind, *rooms, loud=False, where=["vision", "connector"])
    assert equal(ask(vlm), base) and far(ask(louder(vlm)), base) > 1e-3
    assert all(not n.startswith("adapter.all.vision.query") for n in vlm.state_dict()) or kind != "bottleneck"


def test_the_layers_work_alone() -> None:
    x = torch.randn(2, 5, 768)
    layer = LoRAAdapter(dim=768, rank=8)
    assert torch.equal(layer(x), x) and sum(p.numel() for p in layer.parameters()) == 2 * 8 * 768
    torch.nn.init.normal_(layer.lora_B.weight)
    expected = x + 2.0 * x @ layer.lora_A.weight.T @ layer.lora_B.weight.T
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer(x, 0 * x), expected - x, rtol=1e-4, atol=1e-3)
    bottleneck = BottleneckAdapter(dim=768, size=4)
    assert torch.equal(bottleneck(x), x)
    query = torch.randn(2, 4, 5, 16)
    prefix = PrefixAdapter(3, num_heads=4, num_kv_heads=2, head_dim=16)
    assert torch.equal(prefix(query), torch.zeros(2, 5, 4, 16))
    torch.nn.init.normal_(prefix.gate)
    keys, values = (p.repeat_interleave(2, 1) for p in (prefix.keys, prefix.values))
    weights = (torch.einsum("khsd,phd->khsp", query, keys) / 4).softmax(-1)
    found = torch.einsum("khsp,phd,h->kshd", weights, values, prefix.gate)
    torch.testing.assert_close(prefix(query), found, rtol=1e-5, atol=1e-5)
    for wrong in (lambda: LoRAAdapter(rank=0), lambda: BottleneckAdapter(activation="step")):
        with pytest.raises(ValueError, match="rank=0|activation='step'"):
            wrong()


# ------------------------------------------------------------------------------------------------------------ merging


@torch.no_grad()
@pytest.mark.parametrize("kind", MERGE)
@pytest.mark.parametrize("rooms", [(family("gpt2"),), words(attention="full", connector="mean", vision="dinov2_tiny")])
def test_merged_is_unmerged_and_unmerging_restores_the_base(kind: str, rooms: tuple[Variant, ...]) -> None:
    where = ["language"] if len(rooms) == 1 else EVERYWHERE
    vlm = adapted(kind, *rooms, where=where, names=NAMES[:2], loud=False)
    vlm.adapter.use("news")
    louder(vlm, std=0.02)
    before, expected = {n: p.clone() for n, p in vlm.state_dict().items()}, ask(vlm)
    vlm.adapter.merge()
    assert vlm.adapter.merged == "news" and far(ask(vlm), expected) <= 1e-5
    with pytest.raises(ValueError, match="merged"):
        ask(vlm, adapter_K=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="merged already"):
        vlm.adapter.merge()
    changed = [n for n, p in vlm.state_dict().items() if not torch.equal(p, before[n])]
    assert changed and not any(n.startswith("adapter.") for n in changed)
    vlm.adapter.unmerge()
    assert all(torch.equal(p, before[n]) for n, p in vlm.state_dict().items()) and equal(ask(vlm), expected)
    with pytest.raises(ValueError, match="none is merged"):
        vlm.adapter.unmerge()


@torch.no_grad()
@pytest.mark.parametrize("kind", MERGE)
def test_merged_logits_are_those_of_the_two(kind: str) -> None:
    torch.manual_seed(0)
    vlm = assembly.model(Case("question_first", (family("llama"), Variant("adapter", kind))).config, chat())
    louder(vlm, std=0.02)
    batch = batch_of(*two_clips(vlm), size=side(vlm))
    expected = vlm.targets(batch).logits_MV
    vlm.adapter.merge()
    # Of the largest logit, for float32 rounds in parts of a number: absolutely 1e-6 did not hold on every processor.
    assert float((vlm.targets(batch).logits_MV - expected).abs().max()) <= 1e-6 * float(expected.abs().max())


@pytest.mark.parametrize("kind", ["prefix", "bottleneck"])
def test_what_is_no_change_of_a_weight_cannot_be_merged(kind: str) -> None:
    vlm = adapted(kind)
    before = {n: p.clone() for n, p in vlm.state_dict().items()}
    with pytest.raises(UserError, match="cannot be merged"):
        vlm.adapter.merge()
    assert all(torch.equal(p, before[n]) for n, p in vlm.state_dict().items())


# --------------------------------------------------------------------------------------------------- several at once


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ["question_first", "video_first"])
def test_a_mixed_batch_gives_every_row_what_it_gets_alone(kind: str, order: str) -> None:
    rooms = words(attention="full", connector="foveated", vision="dinov2_tiny")
    vlm = adapted(kind, *rooms, order=order, where=where_of(kind), names=NAMES)
    size = side(vlm)
    items = [clip(seed, 2 + seed % 3, [ASKED[seed % 3]], order, size) for seed in range(4)]
    chosen = torch.tensor([2, 0, -1, 1])
    together = per_row(vlm, batch_of(*items, size=size)._replace(adapter_K=chosen))
    for row, (item, which) in enumerate(zip(items, chosen.tolist(), strict=True)):
        alone = [per_row(vlm, batch_of(item, size=size)._replace(adapter_K=torch.tensor([n])))[0] for n in (which, 0)]
        torch.testing.assert_close(together[row], alone[0], rtol=0, atol=1e-5)
        assert which == 0 or float((alone[0] - alone[1]).abs().max()) > 1e-4
    base = plain(*rooms, order=order)
    torch.testing.assert_close(together[2], per_row(base, batch_of(items[2], size=size))[0], rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_one_clip_may_differ_between_encoder_and_language_model(kind: str) -> None:
    rooms = words(attention="full", connector="patches", vision="dinov2_tiny")
    where = ["language"] if kind == "prefix" else ["language", "attention", "connector"]
    vlm = adapted(kind, *rooms, where=where, names=NAMES)
    size = side(vlm)
    chosen = torch.tensor([1, 0, 2])
    together = per_row(vlm, batch_of(clip(1, 3, ASKED, vlm.order, size), size=size)._replace(adapter_K=chosen))
    for row in range(3):
        one = batch_of(clip(1, 3, [ASKED[row]], vlm.order, size), size=size)
        (alone,) = per_row(vlm, one._replace(adapter_K=chosen[row : row + 1]))
        torch.testing.assert_close(together[row], alone, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "kvcache"),
    [*((kind, "full") for kind in KINDS)]
    + [("prefix", room) for room in ("streaming", "duo", "snapkv", "expected", "infinipot")],
)
def test_writing_with_any_cache_reads_the_adapter(kind: str, kvcache: str) -> None:
    vlm = louder(adapted(kind, Variant("kvcache", kvcache), names=NAMES), std=3.0 if kind == "prefix" else 0.2)
    for parameter in vlm.language.parameters():
        parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    items = [clip(seed, 3, [ASKED[seed]], vlm.order, side(vlm)) for seed in range(3)]

    def written(which: list[int], *of: int) -> list[str]:
        batch = batch_of(*(items[n] for n in of), size=side(vlm))
        return generate(vlm, chat(), batch._replace(adapter_K=torch.tensor(which)), 6)

    together = written([1, 0, 2], 0, 1, 2)
    assert together == [written([n], row)[0] for row, n in enumerate((1, 0, 2))]
    assert together != written([-1, -1, -1], 0, 1, 2)


@torch.no_grad()
def test_the_one_in_use_can_be_changed_and_copied() -> None:
    vlm = adapted("lora", names=NAMES)
    twin = copy.deepcopy(vlm)
    seen = {}
    for name in [*NAMES, None]:
        vlm.adapter.use(name)
        assert vlm.adapter.used == name
        seen[name] = ask(vlm)
    assert equal(seen[None], ask(plain())) and far(seen["sports"], seen["news"]) > 1e-3
    twin.adapter.use("news")
    vlm.adapter.use("sports")
    assert equal(ask(twin), seen["news"])
    with pytest.raises(ValueError, match="'weather': the model has sports"):
        vlm.adapter.use("weather")


# ---------------------------------------------------------------------------------------------------------- what trains


def stage_of(vlm: VLM, word: str = "sft", **changes):
    settings = Variant("stage", word).settings | {"steps": 6, "batch_size": 2} | changes
    stage = assembly.stage({"stage": settings}, vlm, None)
    stage.configure_model()
    return stage


@pytest.mark.parametrize("kind", KINDS)
def test_with_the_stage_as_it_is_the_adapter_trains_alone(kind: str) -> None:
    vlm = adapted(kind, loud=False)
    stage = stage_of(vlm)
    assert stage.trainable == {"adapter": Variant("adapter", kind).written["rate"]}
    before = {name: value.clone() for name, value in vlm.state_dict().items()}
    optimizer = stage.configure_optimizers()["optimizer"]
    for group in optimizer.param_groups:
        group["lr"] = 0.05
    batch, losses = batch_of(*two_clips(vlm), size=side(vlm)), []
    vlm.eval()
    for _ in range(10):
        total = stage.losses(batch).terms["text"].total
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(float(total.detach()))
    assert losses[-1] < 0.9 * losses[0]
    moved = {name for name, value in vlm.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and all(name.startswith("adapter.all.") for name in moved)
    with vlm.adapter.off():
        assert equal(ask(vlm), ask(plain().requires_grad_(False)))  # convolutions that train use other kernels


def test_other_rooms_train_beside_it_where_that_is_said() -> None:
    trainable = {"connector": 1e-4, "language": 0.0, "vision": 0.0, "adapter": 3e-3}
    assert stage_of(adapted("lora", alone=False), trainable=trainable).trainable == {"connector": 1e-4, "adapter": 3e-3}
    assert stage_of(adapted("lora"), trainable=trainable).trainable == {"adapter": 3e-3}


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("lora", {"where": ["head"]}, "adapter.where: head; expected some of language, vision"),
        ("lora", {"where": ["attention"]}, "adapter.where names attention, and this model's attention has no"),
        ("bottleneck", {"where": ["attention"]}, "adapter.where names attention"),
        (
            "lora",
            {"targets": ["w_q"]},
            "adapter.targets: w_q names no linear layer of language; there are down_proj",
        ),
        ("lora", {"targets": ["lm_head"]}, "adapter.targets: lm_head names no linear layer"),
        ("lora", {"rank": 0}, "adapter.rank=0"),
        ("dora", {"rank": 10**9}, "adapter.rank=1000000000: expected int of 1 or more and at most 65536"),
        ("bottleneck", {"size": 10**9}, "adapter.size=1000000000: expected"),
        ("prefix", {"length": 10**9}, "adapter.length=1000000000: expected"),
        ("lora", {"names": ["a.b", "all"]}, "'a.b' names weights"),
        ("prefix", {"where": ["vision"]}, "adapter.where"),
        ("bottleneck", {"style": "series"}, "adapter.style"),
        ("lora", {"load": {"all": "/nowhere"}}, "adapter.load.all=/nowhere: no such folder"),
        ("prefix", {"load": {"all": ""}}, "adapter.load.all: names no folder; expected one that holds adapter_config"),
        ("lora", {"load": {"all": " "}}, "adapter.load.all: names no folder"),
    ],
)
def test_bad_settings_are_one_line(kind: str, settings: dict, said: str) -> None:
    with pytest.raises(UserError) as raised:
        adapted(kind, **settings)
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_dora_needs_weights_that_are_not_packed() -> None:
    packed = torch.nn.Linear(4, 4)
    packed.weight = torch.nn.Parameter(torch.zeros(8, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(UserError, match="adapter=dora: quantised weights.*use adapter=lora"):
        DoRA(where=["language"], name="all").make(packed)
    assert isinstance(LoRA(where=["language"], name="all").make(packed), LoRAAdapter)


def test_a_prefix_needs_our_attention() -> None:
    with pytest.raises(UserError, match="adapter=prefix.*language.attention=auto"):
        adapted("prefix", Variant("language", "smollm2_tiny", (("attention", "sdpa"),)))


# ----------------------------------------------------------------------------------------------------- as a reference


def pairs(vlm: VLM) -> Batch:
    """Chosen and rejected answers about two clips."""
    rows = [
        [("what color is the ring ?", answer) for answer in ("red", "green")],
        [ASKED[1], ("how many ?", "one two")],
    ]
    return batch_of(*(clip(seed, 3, two, vlm.order, side(vlm)) for seed, two in enumerate(rows)), size=side(vlm))


def held(stage: DPO) -> int:
    """Bytes of all weights that a stage keeps."""
    modules = [stage.model, *stage._reference]
    return sum(p.untyped_storage().nbytes() for module in modules for p in module.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_without_its_adapter_is_the_reference(kind: str) -> None:
    vlm, batch = adapted(kind, loud=False), None
    stage, copied = (stage_of(copy.deepcopy(vlm), "dpo", reference=word) for word in ("adapter_off", "copy"))
    batch = pairs(vlm)
    assert float(stage.losses(batch).terms["pairs"].total.detach() / 2) == pytest.approx(math.log(2), abs=1e-6)
    assert held(stage) <= 0.6 * held(copied)
    expected = plain().requires_grad_(False).token_logprobs(batch).sum(1)
    louder(stage.model), louder(copied.model)
    for made in (stage, copied):  # a copy was made when nothing was learned
        torch.testing.assert_close(made._reference_sums(batch, expected), expected, rtol=0, atol=1e-5)
    for a, b in zip(stage.losses(batch).terms["pairs"], copied.losses(batch).terms["pairs"], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    stage.losses(batch).terms["pairs"].total.backward()
    assert all((p.grad is not None) == n.startswith("adapter.") for n, p in stage.model.named_parameters())
    assert set(stage.state_dict()) == {f"model.{name}" for name in vlm.state_dict()}


def test_a_reference_that_would_move_is_refused() -> None:
    with pytest.raises(UserError, match="adapter_off: there is no adapter to switch off"):
        stage_of(plain(), "dpo", reference="adapter_off")
    with pytest.raises(UserError, match=r"adapter_off: connector, language, vision trains as well.*adapter.alone=true"):
        stage_of(adapted("lora", alone=False), "dpo", reference="adapter_off")


# ----------------------------------------------------------------------------------------------- from the command line


def test_from_the_command_line_to_an_export_and_back(trained, needles, tmp_path, monkeypatch) -> None:
    """An adapter learns beside a base, and then from preferences; it is loaded alone and exported."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained[0] / "runs", tmp_path / "runs")
    settings = ["stage.steps=2", "stage.batch_size=4", "evaluate=false", *needles]
    lora = ["adapter=lora", "adapter.rank=2", "domain=general", "domain.mixture=null"]
    base = "runs/tiny/sft"
    run(["run=lora", "stage=sft", f"init_from={base}", "adapter.rate=0.05", *lora, *settings])
    run(["run=pref", "stage=dpo", "stage.reference=adapter_off", "init_from=runs/lora", *lora, *settings])
    learned = load_weights("runs/pref")
    assert all(torch.equal(value, learned[name]) for name, value in load_weights(base).items())

    video = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    options = ["red", "green", "blue"]

    def scores(made: hvlm.Model) -> torch.Tensor:
        return torch.tensor(made.choose(video, "what color is the ring ?", options).scores)

    plainly = scores(hvlm.load(base))
    whole = hvlm.load("runs/pref")
    expected = scores(whole)
    assert whole.adapters == ("general",) and float((expected - plainly).abs().max()) > 1e-4
    assert torch.equal(scores(whole.use_adapter(None)), plainly)
    alone = hvlm.load(
        base, "adapter=lora", "adapter.load={news: runs/pref/dpo/adapters/general}", "domain.adapter=news"
    )
    torch.testing.assert_close(scores(alone), expected, rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="'sports': the model's sets of adapter weights are news"):
        alone.use_adapter("sports")
    with pytest.raises(UserError, match="domain.adapter=sports: the sets of adapter weights are general"):
        hvlm.load("runs/pref", "domain.adapter=sports")

    evaluate(["checkpoint=runs/pref", "task=export", "out=beside"])
    evaluate(["checkpoint=runs/pref", "task=export", "out=within", "adapter.merge=true"])
    saved = alone.merge_adapter().save("saved")
    for folder, names in (("beside", ("general",)), ("within", ()), (saved, ())):
        again = hvlm.load(folder)
        assert again.adapters == names
        torch.testing.assert_close(scores(again), expected, rtol=0, atol=1e-5)
    alone.unmerge_adapter()
    assert torch.equal(scores(alone.use_adapter(None)), plainly)
    alone.use_adapter("news").save_adapter("mine")
    assert (tmp_path / "mine" / "adapter_config.json").is_file()
