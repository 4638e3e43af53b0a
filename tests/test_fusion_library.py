"""Fusion without the corridor: the public names, images and video, text encoders of the transformers library."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import BertConfig, BertModel, T5Config, T5EncoderModel

from hvlm.errors import UserError
from hvlm.fusion import (
    FusionModule,
    HierarchicalViLTransformer,
    LocalFusionModule,
    ProgressiveFusion,
    SparseLocalFusion,
)

VISION = {"image_size": 32, "patch_size": 16, "hidden_dim": 16, "num_heads": 2, "num_layers": 1}
TEXT = {"vocab_size": 40, "hidden_dim": 24, "num_heads": 2, "num_layers": 1}


def transformer(**changes) -> HierarchicalViLTransformer:
    torch.manual_seed(0)
    config = {"hidden_dim": 32, "num_heads": 4, "num_classes": 5, "vision_config": VISION, "text_config": TEXT}
    return HierarchicalViLTransformer(config | changes).eval()


KINDS = [
    {}, {"fusion": "sparse", "top_k": 2}, {"fusion": "progressive", "num_stages": 2}, {"global_fusion": False},
    {"local_fusion": False, "pooling": "adaptive"},
]  # fmt: skip


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_images_and_video_with_padding_on_both_sides(changes) -> None:
    model = transformer(**changes)
    video, text = torch.randn(2, 3, 3, 32, 32), torch.randint(1, 40, (2, 6))
    frames = torch.tensor([[1, 1, 1], [1, 1, 0]])
    words = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    out = model(video, text, words, frames)
    shapes = {name: tuple(value.shape) for name, value in out.items()}
    assert shapes == {
        "output": (2, 5), "vision_features": (2, 12, 32), "text_features": (2, 6, 32), "local_fusion": (2, 18, 32),
        "global_fusion": (2, 32), "vision_embedding": (2, 256), "text_embedding": (2, 256),
    }  # fmt: skip
    short = model(video[1:, :2], text[1:, :4])
    for name in ("output", "global_fusion", "vision_embedding", "text_embedding"):
        torch.testing.assert_close(out[name][1:], short[name], rtol=1e-4, atol=1e-5)
    image = model(video[:, 0], text)
    assert image["local_fusion"].shape == (2, 10, 32)
    other = model(torch.randn(2, 3, 32, 32), text)
    assert torch.equal(image["text_embedding"], other["text_embedding"]), "a text's embedding knows no image"
    assert not torch.allclose(image["output"], other["output"])
    elsewhere = model(video[:, 0], text.flip(0))
    assert torch.equal(image["vision_embedding"], elsewhere["vision_embedding"]), "an image's embedding knows no text"


def test_gradients_reach_every_parameter() -> None:
    for changes in KINDS:
        model = transformer(**changes).train()
        out = model(torch.randn(2, 2, 3, 32, 32), torch.randint(1, 40, (2, 6)))
        sum(out[name].square().sum() for name in ("output", "local_fusion")).backward(retain_graph=True)
        weights = torch.randn(2, 256)
        ((out["vision_embedding"] + out["text_embedding"]) * weights).sum().backward()
        without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        without = [n for n in without if "mask_token" not in n]
        assert without == [], changes


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_text_encoders_come_from_a_folder(kind, tmp_path) -> None:
    torch.manual_seed(0)
    if kind == "bert":
        made = BertModel(BertConfig(
            vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        ))  # fmt: skip
    else:
        made = T5EncoderModel(T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    made.eval().save_pretrained(tmp_path)
    model = transformer(text_config={"source": str(tmp_path)})
    text, mask = torch.randint(1, 40, (2, 5)), torch.ones(2, 5, dtype=torch.bool)
    found = model.text_encoder(text, mask)
    torch.testing.assert_close(found, made(input_ids=text, attention_mask=mask.long()).last_hidden_state)
    assert model(torch.randn(2, 3, 32, 32), text)["output"].shape == (2, 5)


def test_what_cannot_be_is_said_by_name(tmp_path) -> None:
    for changes, said in (
        ({"hidden": 3}, "config has no key hidden"),
        ({"fusion": "flat"}, "fusion='flat': expected one of hivilt"),
        ({"text_config": {"vocab": 3}}, "text_config has no key vocab"),
        ({"local_fusion": False, "global_fusion": False}, "nothing is left"),
    ):
        with pytest.raises(ValueError, match=said):
            transformer(**changes)
    with pytest.raises(UserError, match=r"text_config.source=.*has no config.json"):
        transformer(text_config={"source": str(tmp_path)})
    with pytest.raises(ValueError, match=r"images \(2, 32, 32\): expected"):
        transformer()(torch.zeros(2, 32, 32), torch.zeros(2, 3, dtype=torch.int64))


def test_no_code_of_a_folder_runs_and_nobody_is_asked_to_run_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run the folder's code"))
    mark = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\nclass Evil: pass\n")
    auto = {"AutoConfig": "evil.Evil", "AutoModelForTextEncoding": "evil.Evil", "AutoModel": "evil.Evil"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "of_tomorrow", "auto_map": auto}))
    (tmp_path / "model.safetensors").touch()
    for name in ("text_config", "vision_config"):
        with pytest.raises(UserError, match=rf"{name}.source: the model in .* cannot be loaded"):
            transformer(**{name: {"source": str(tmp_path)}})
    assert not mark.exists()


def test_layers_alone() -> None:
    torch.manual_seed(0)
    v, t = torch.randn(2, 9, 16), torch.randn(2, 5, 16)
    local = LocalFusionModule(16, num_heads=2).eval()
    assert local(v, t).shape == (2, 14, 16)
    sparse = SparseLocalFusion(16, top_k=64, num_heads=2).eval()
    sparse.load_state_dict(local.state_dict())
    torch.testing.assert_close(sparse(v, t), local(v, t), rtol=1e-5, atol=1e-5)
    few = SparseLocalFusion(16, top_k=1, num_heads=2, compute_from=1).eval()
    assert (few(v, t)[:, :9] != v).any(-1).sum() <= 10, "tokens that no word has chosen stay"
    module = FusionModule({"hidden_dim": 16, "num_heads": 2}).eval()
    assert module({"vision": v, "text": t})["fused_features"].shape == module(v, t).shape == (2, 14, 16)
    steps = ProgressiveFusion(16, num_stages=2, num_heads=2).eval()
    assert steps([v[:, :3], v], t).shape == t.shape
    with pytest.raises(ValueError, match="num_stages=2: expected as many levels, found 1"):
        steps([v], t)
