"""Encoders of the library from folders in their published layout: the features, attention and summaries are its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from _tiny import CONF, target
from torch import Tensor
from transformers import (
    AutoModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from hvlm import FoveatedVLM, assembly
from hvlm.errors import UserError
from hvlm.feature_cache import FrozenFeatures
from hvlm.gaze import CachedKV, RecomputedKV
from hvlm.image import IMAGENET_MEAN, IMAGENET_STD
from hvlm.merging import Assignment
from hvlm.types import Batch, Encoded, Wants
from hvlm.vision._transformer import TransformerVision
from hvlm.vision.clip import MEAN, STD, Clip
from hvlm.vision.dinov2 import Dinov2
from hvlm.vision.siglip import Siglip

WIDE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
TOWER = {**WIDE, "intermediate_size": 48, "image_size": 32, "patch_size": 8}
TEXT = {**WIDE, "intermediate_size": 48, "vocab_size": 20, "max_position_embeddings": 8}
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLOSE = {"rtol": 0.0, "atol": 1e-5}
EVERYTHING = Wants(kv=True, saliency="attention", summaries=2)


class Published(NamedTuple):
    """A source: the word, the library's model, the side of other frames, what the normalisation is."""

    word: str
    make: Callable[[], Any]
    other: int
    normalisation: tuple


def dinov2(**more: Any) -> Dinov2Model:
    return Dinov2Model(Dinov2Config(**WIDE, image_size=70, patch_size=14, **more))


IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
SOURCES = {
    "dinov2": Published("dinov2", dinov2, 42, IMAGENET),
    "dinov2-swiglu": Published("dinov2", lambda: dinov2(use_swiglu_ffn=True, qkv_bias=False), 84, IMAGENET),
    "dinov2-registers": Published(
        "dinov2",
        lambda: Dinov2WithRegistersModel(
            Dinov2WithRegistersConfig(**WIDE, image_size=70, patch_size=14, num_register_tokens=3)
        ),
        42, IMAGENET,
    ),
    "dinov3": Published(
        "dinov3", lambda: DINOv3ViTModel(DINOv3ViTConfig(**TOWER, num_register_tokens=2, layerscale_value=0.5)), 48,
        IMAGENET,
    ),
    "dinov3-gated": Published(
        "dinov3", lambda: DINOv3ViTModel(DINOv3ViTConfig(**TOWER, use_gated_mlp=True, hidden_act="silu")), 16, IMAGENET
    ),
    "clip": Published("clip", lambda: CLIPVisionModel(CLIPVisionConfig(**TOWER)), 48, (MEAN, STD)),
    "clip-pair": Published(
        "clip", lambda: CLIPModel(CLIPConfig(vision_config=TOWER, text_config=TEXT, projection_dim=16)), 24, (MEAN, STD)
    ),
    "siglip": Published("siglip", lambda: SiglipVisionModel(SiglipVisionConfig(**TOWER)), 48, HALF),
    "siglip-37": Published(  # what fills no patch is left out
        "siglip", lambda: SiglipVisionModel(SiglipVisionConfig(**TOWER | {"image_size": 37})), 24, HALF
    ),
    "siglip-pair": Published(
        "siglip2", lambda: SiglipModel(SiglipConfig(vision_config=TOWER, text_config=TEXT)), 24, HALF
    ),
    "siglip-headless": Published(
        "siglip", lambda: SiglipVisionModel(SiglipVisionConfig(**TOWER, vision_use_head=False)), 48, HALF
    ),
    "siglip2-naflex": Published(
        "siglip2",
        lambda: Siglip2VisionModel(
            Siglip2VisionConfig(**{k: v for k, v in TOWER.items() if k != "image_size"}, num_patches=16)
        ),
        48, HALF,
    ),
}  # fmt: skip


def loud(model: torch.nn.Module) -> torch.nn.Module:
    """So that biases, layer scales and tokens that start at 0 or 1 take part."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    at = tmp_path_factory.mktemp("sources")
    for name, source in SOURCES.items():
        loud(source.make()).save_pretrained(at / name)
    return {name: at / name for name in SOURCES}


def room(folder: Path, word: str, **changes: Any) -> TransformerVision:
    settings = yaml.safe_load((CONF / "vision" / f"{word}.yaml").read_text())
    made = assembly.room(settings | {"source": str(folder), "image_size": None} | changes).eval()
    for parameter in made.query.parameters():  # the query comes in and goes out as it is
        torch.nn.init.eye_(parameter) if parameter.ndim == 2 else torch.nn.init.zeros_(parameter)
    return made


def library(folder: Path) -> torch.nn.Module:
    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    return getattr(model, "vision_model", model)


def frames_of(side: int, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (1, count, 3, side, side), dtype=torch.uint8, generator=generator)


def encode(made: TransformerVision, frames: Tensor, wants: Wants = EVERYTHING) -> Encoded:
    time = torch.arange(frames.shape[1], dtype=torch.float32)[None]
    return made.encode(frames, time, torch.ones_like(time, dtype=torch.bool), wants)


def theirs(name: str, folder: Path, frames: Tensor) -> Any:
    """The library's own forward pass over the same frames, normalised as the family's processor does."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in SOURCES[name].normalisation)
    pixels, model = (frames[0].float() / 255 - mean) / std, library(folder)
    said: dict[str, Any] = {"output_hidden_states": True, "output_attentions": True}
    if "naflex" in name:  # patches as the library's processor cuts them
        side = pixels.shape[-1] // 8
        cut = pixels.permute(0, 2, 3, 1).reshape(-1, side, 8, side, 8, 3).transpose(2, 3).reshape(-1, side**2, 192)
        mask, shape = torch.ones(cut.shape[:2], dtype=torch.int), torch.tensor([[side, side]]).expand(len(cut), 2)
        return model(cut, pixel_attention_mask=mask, spatial_shapes=shape, **said)
    if "dino" not in name:
        said["interpolate_pos_encoding"] = True
    return model(pixels, **said)


@pytest.mark.parametrize("name", SOURCES)
def test_a_folder_gives_the_librarys_features_attention_and_summaries(name: str, folders: dict[str, Path]) -> None:
    """At its own size and at another; a patch's (or CLS's) embedding as a query attends and comes out as that token."""
    source, folder = SOURCES[name], folders[name]
    made = room(folder, source.word)
    for side in (made.image_size, source.other):
        frames = frames_of(side)
        with torch.no_grad():
            found, expected = encode(made, frames), theirs(name, folder, frames)
        hidden, first, last = expected.last_hidden_state, made.first_patch, expected.attentions[-1].mean(1)
        n = hidden.shape[1] - first
        assert made.grid(side, side)[0] ** 2 == n
        torch.testing.assert_close(found.tokens.x_BSD[0].unflatten(0, (2, n)), hidden[:, first:], **CLOSE)

        received = last[:, 0, first:] if first else last.mean(1)
        torch.testing.assert_close(
            found.tokens.saliency_BS.view(2, n), received / received.mean(1, keepdim=True), rtol=0, atol=1e-4
        )
        states = expected.hidden_states[-2:] if first or "headless" in name else [expected.pooler_output]
        if "headless" in name:
            states = [made.model.post_layernorm(h).mean(1) for h in states]
        elif first:
            states = [h[:, 0] for h in states]
        summary = found.summary_BTLD[0].unbind(1)[-len(states) :]
        if "dino" not in name or first:  # hidden_states[-1] comes before the last normalisation
            torch.testing.assert_close(torch.stack(summary), torch.stack(list(states)), **CLOSE)

        mean, std = made.mean, made.std
        at = torch.tensor([0, first + n // 2] if "dinov3" not in name else [0])  # a place turns DINOv3's patches
        with torch.no_grad():
            query = made.embed((frames[0] - mean) / std)[0][:, at]
            made.query.record = []
            z, entropy = made.gaze(query, found.kv, return_entropy=True)
        out = made.query_norm(expected.hidden_states[-1]) if "clip" in name else hidden
        torch.testing.assert_close(z, out[:, at], **CLOSE)
        attended = torch.stack([a.mean(1)[:, at] for a in expected.attentions])
        torch.testing.assert_close(made.query.record[0], attended, **CLOSE)
        assert 0 < entropy


@pytest.mark.parametrize("name", ["dinov2-registers", "dinov3", "clip", "siglip"])
def test_every_way_to_read_frames_is_the_same(name: str, folders: dict[str, Path]) -> None:
    """Kept keys and values or frames encoded anew, in parts, frozen and kept, with layers computed again."""
    made = room(folders[name], SOURCES[name].word, frames_at_once=2)
    frames, wants = frames_of(made.image_size, 3), Wants(kv=True, saliency="sharpness", summaries=1)
    found = encode(made, frames, wants)
    query = torch.randn(3, 2, made.dim, requires_grad=True)
    z, _ = CachedKV(made, found.kv)(query)
    (z.square().sum() + found.tokens.x_BSD.square().sum()).backward()
    assert query.grad.abs().min() > 0
    gradients = {n: p.grad.clone() for n, p in made.named_parameters() if p.grad is not None}
    with torch.no_grad():
        torch.testing.assert_close(RecomputedKV(made, frames[0], 2)(query)[0], z, **CLOSE)

        n = made.grid(made.image_size, made.image_size)[0] ** 2
        alone = Assignment.of_roots(torch.arange(n).expand(3, -1), torch.ones(3, n, dtype=torch.bool), torch.ones(3, n))
        torch.testing.assert_close(CachedKV(made, found.kv).merged(alone)(query)[0], z, **CLOSE)
        to = Assignment.of_roots(torch.arange(n).expand(3, -1) // 2 * 2, alone.mask_BM, torch.ones(3, n))
        merged = CachedKV(made, found.kv).merged(to)
        assert merged.kv[0][0].shape[2] == made.first_patch + (n + 1) // 2  # CLS and registers stay
        torch.testing.assert_close(
            RecomputedKV(made, frames[0], 2).merged(to)(query)[0], merged(query)[0], rtol=1e-4, atol=1e-4
        )

    made.zero_grad()
    made.gradient_checkpointing = True
    again = encode(made, frames, wants)
    (CachedKV(made, again.kv)(query)[0].square().sum() + again.tokens.x_BSD.square().sum()).backward()
    for parameter, gradient in gradients.items():
        torch.testing.assert_close(made.get_parameter(parameter).grad, gradient, rtol=1e-4, atol=1e-4)

    time, mask, none = torch.arange(3.0)[None], torch.ones(1, 3, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.long)
    batch = Batch(frames, time, mask, none, none.bool(), none.bool(), none[0], none[0], uids=["clip"])
    kept = FrozenFeatures(made, wants, True)
    for _ in range(2):  # encoded, then remembered
        for ours, direct in zip(kept.encode(batch).tokens, found.tokens, strict=True):
            if ours is not None:
                torch.testing.assert_close(ours, direct.detach(), rtol=0.02, atol=0.02, check_dtype=False)
    torch.testing.assert_close(kept.encode(batch).summary_BTLD, found.summary_BTLD, rtol=0.02, atol=0.02)
    for ours, direct in zip(kept.encode(batch).kv, found.kv, strict=True):
        torch.testing.assert_close(ours[0], direct[0], rtol=0.02, atol=0.02)

    made.train()
    with torch.no_grad():
        torch.testing.assert_close(encode(made, frames, wants).tokens.x_BSD, found.tokens.x_BSD, **CLOSE)
    spectral = encode(made, frames, Wants(saliency="spectral")).tokens.saliency_BS
    assert spectral.min() >= 0 and spectral.mean() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_layer_is_counted_as_the_library_counts_hidden_states(name: str, folders: dict[str, Path]) -> None:
    """Nothing above it is computed, unless somebody wants summaries: those are the last layers'."""
    frames = frames_of(32)
    expected = theirs(name, folders[name], frames)
    for layer in (-2, -1, 1, 2):
        made = room(folders[name], name, layer=layer)
        whole = encode(made, frames, Wants(summaries=1)).summary_BTLD[0, :, 0]
        pooled = expected.hidden_states[-1][:, 0] if name == "clip" else expected.pooler_output
        torch.testing.assert_close(whole, pooled, **CLOSE)
        unused = [module for module in made.layers()[made.features_from :]]
        for module in unused:
            module.layer_norm1.register_forward_hook(lambda *_: pytest.fail("a layer above the features is computed"))
        found = encode(made, frames, Wants(kv=True, saliency="attention"))
        first = made.first_patch
        state = expected.hidden_states[layer]
        torch.testing.assert_close(found.tokens.x_BSD[0].unflatten(0, (2, -1)), state[:, first:], **CLOSE)
        assert len(found.kv) == layer % 4 == made.num_layers - len(unused)
        z, _ = made.gaze(expected.hidden_states[0][:, :1], found.kv)
        torch.testing.assert_close(z, state[:, :1], **CLOSE)
        assert sum(p.numel() for p in made.model.parameters()) == library(folders[name]).num_parameters()
    with pytest.raises(UserError, match=r"vision.layer=4: the encoder has 3 layers; expected 1 to 3, or -3 to -1"):
        room(folders[name], name, layer=4)


def test_weights_may_lie_in_several_files_or_in_an_old_one(folders: dict[str, Path], tmp_path: Path) -> None:
    whole = library(folders["clip-pair"])
    pair = CLIPModel.from_pretrained(folders["clip-pair"])
    pair.save_pretrained(tmp_path / "parts", max_shard_size="60KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    (tmp_path / "old").mkdir()
    torch.save(pair.state_dict(), tmp_path / "old" / "pytorch_model.bin")
    (tmp_path / "old" / "config.json").write_text((folders["clip-pair"] / "config.json").read_text())
    for name in ("parts", "old"):
        state = Clip(str(tmp_path / name)).model.state_dict()
        assert all(torch.equal(tensor, state[key]) for key, tensor in whole.state_dict().items())
    (tmp_path / "old" / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match=r"vision.source=.*old: .* has no model.safetensors"):
        Clip(str(tmp_path / "old"))


def test_the_sources_own_normalisation_counts(folders: dict[str, Path], tmp_path: Path) -> None:
    library(folders["siglip"]).save_pretrained(tmp_path)
    said = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    made = Siglip(str(tmp_path))
    torch.testing.assert_close(made.mean.flatten(), 255 * torch.tensor(said["image_mean"]))
    torch.testing.assert_close(made.std.flatten(), 255 * torch.tensor(said["image_std"]))
    with pytest.raises(UserError, match=r"its image_mean is \[0.1, 0.2, 0.3\].*vision.config=null"):
        Siglip(str(tmp_path), config=TOWER)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", [], "config.json holds no mapping"),
        ("config.json", {"num_attention_heads": 0}, "integer modulo by zero"),
        ("config.json", {"patch_size": 0}, "patch_size=0: expected 1 or more"),
        ("config.json", {"num_channels": 4}, "num_channels=4: frames have 3"),
        ("config.json", {"hidden_act": "of_tomorrow"}, "cannot be loaded: KeyError 'of_tomorrow'"),
        ("config.json", {"hidden_size": 2**40}, "cannot be loaded"),
        ("preprocessor_config.json", [], "preprocessor_config.json holds no mapping"),
        ("preprocessor_config.json", {"image_mean": [1, 2]}, r"image_mean=\[1, 2\] .*: expected three numbers"),
        ("preprocessor_config.json", {"image_std": [0, 0, 0]}, "image_std=.*: expected three numbers above 0"),
        ("model.safetensors", None, "cannot be loaded: Error while deserializing header"),
    ],
)
def test_a_damaged_folder_is_named_in_one_line(
    file: str, content: Any, said: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders["clip"], tmp_path / "clip"))
    before = json.loads((folder / file).read_text()) if file == "config.json" and content else {}
    (folder / file).write_text("" if content is None else json.dumps(before | content if content else content))
    with pytest.raises(UserError, match=said) as error:
        Clip(str(folder))
    assert "\n" not in str(error.value)


def test_one_number_is_the_mean_of_all_colours(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["clip"], tmp_path / "clip"))
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": 0.5, "image_std": 0.25}))
    made = Clip(str(folder))
    assert made.mean.flatten().tolist() == [127.5] * 3 and made.std.flatten().tolist() == [63.75] * 3


@pytest.mark.parametrize("name", SOURCES)
def test_what_was_read_of_a_source_stands_in_for_it(name: str, folders: dict[str, Path]) -> None:
    """Plain values, from which the same model is built without the source."""
    source = SOURCES[name]
    settings = yaml.safe_load((CONF / "vision" / f"{source.word}.yaml").read_text()) | {"source": str(folders[name])}
    read = target(settings).read_source_config(settings)
    gone = settings | {"source": "/nowhere"}
    there, elsewhere = room(folders[name], source.word), assembly.room(
        gone, weights=False, source_config=json.loads(json.dumps(read)))  # fmt: skip
    assert there.source_config == read == elsewhere.source_config
    shapes = {n: p.shape for n, p in there.named_parameters()}
    assert shapes == {n: p.shape for n, p in elsewhere.named_parameters()}
    elsewhere.model.load_state_dict(there.model.state_dict())
    assert there.own_size == elsewhere.own_size and torch.equal(there.std, elsewhere.std)
    frames = frames_of(there.own_size)
    ours, others = (encode(made.eval(), frames).tokens.x_BSD for made in (there, elsewhere))
    assert torch.equal(ours, others)


def test_a_configuration_must_be_the_sources(folders: dict[str, Path]) -> None:
    right = Clip(str(folders["clip"]), config=TOWER)
    assert right.source_config is None and Clip.read_source_config({"source": "x", "config": TOWER}) is None
    with pytest.raises(UserError, match=r"its hidden_size is 32, the configuration has 64; set vision.config.hidden_"):
        Clip(str(folders["clip"]), config=TOWER | {"hidden_size": 64})
    with pytest.raises(UserError, match=r"its hidden_act is quick_gelu, the configuration has gelu"):
        Clip(str(folders["clip"]), config=TOWER | {"hidden_act": "gelu"})
    with pytest.raises(UserError, match=r"vision.config.hiden_size' of clip_vision_model; did you mean 'hidden_size'"):
        Clip(config={"hiden_size": 64})
    with pytest.raises(
        UserError,
        match=r"says model_type='clip', expected siglip_vision.*; use vision=clip",
    ):
        Siglip(str(folders["clip-pair"]))
    with pytest.raises(UserError, match=r"vision.image_size=33: .* multiples of 8"):
        Clip(str(folders["clip"]), image_size=33)
    assert Clip(config={"hidden_size": 32, "num_attention_heads": 4}, image_size=64).grid(64, 64) == (2, 2)
    with pytest.raises(UserError, match=r"patch_size=\[8, 16\]: only square ones"):
        Dinov2("x", source_config={"patch_size": [8, 16]}, weights=False)


@pytest.mark.fault(103)
@pytest.mark.parametrize("name", ["dinov2", "dinov2-swiglu", "dinov2-registers"])
def test_any_dinov2_folder_is_foveatedvlms_encoder(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=61, hidden_size=24, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    vlm = FoveatedVLM(llm_name=str(tmp_path), dino_name=str(folders[name]), query_dim=16, image_size=42).eval()
    with torch.no_grad():
        found = encode(vlm.vision, frames_of(42)).tokens.x_BSD[0].unflatten(0, (2, 9))
        expected = theirs(name, folders[name], frames_of(42)).last_hidden_state[:, vlm.vision.first_patch :]
        torch.testing.assert_close(found, expected, **CLOSE)
        out = vlm(frames_of(42), torch.ones(1, 3, dtype=torch.long), torch.ones(1, 3))
    assert out["logits"].isfinite().all()


@pytest.mark.parametrize(
    ("word", "count", "grid"),
    [
        ("dinov2_large", 304_368_640, 16),
        ("dinov3_small", 21_596_544, 14),
        ("clip_large", 303_179_776, 16),
        ("clip_large_336", 303_507_456, 24),
        ("siglip_so400m", 428_225_600, 27),
        ("siglip2_base", 92_884_224, 14),
    ],
)
def test_presets_are_the_published_sizes_and_need_no_source(word: str, count: int, grid: int) -> None:
    with torch.device("meta"):
        made = assembly.room(yaml.safe_load((CONF / "vision" / f"{word}.yaml").read_text()), weights=False)
    assert sum(p.numel() for p in made.model.parameters()) == count
    assert made.grid(made.image_size, made.image_size) == (grid, grid)
