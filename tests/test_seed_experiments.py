"""LongVLM-7B and a VILA: they compose, are exactly as large as published, and train a step at a tiny size."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from hvlm import assembly
from hvlm.config.compose import plan
from hvlm.io.checkpoint import find_checkpoint
from hvlm.model import VLM
from hvlm.rebuild import load, stored_config
from hvlm.text.chat import Chat
from hvlm.text.tokenizer import train_word_tokenizer
from hvlm.training.chain import run

SHARDS = "dataset.path=somewhere"


def on_meta(*overrides: str) -> VLM:
    (cfg, *_) = plan([*overrides, "language.template=tiny"]).values()  # their tokenizers are at their sources
    chat = Chat(train_word_tokenizer(["a"]), "tiny")
    with torch.device("meta"):
        return assembly.model(cfg, chat, weights=False)


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def linear(width: int, out: int) -> int:
    return width * out + out


def test_longvlm_7b_is_as_large_as_published() -> None:
    """CLIP ViT-L/14, one linear layer, Vicuna-7B; and the way in and out that every encoder has for queries."""
    vlm = on_meta("experiment=longvlm_7b", SHARDS)
    clip, projector, vicuna = 303_179_776, linear(1024, 4096), 6_738_415_616
    assert count(vlm) - count(vlm.vision.query) == clip + projector + vicuna == 7_045_793_792
    assert (count(vlm.vision.model), count(vlm.connector), count(vlm.language)) == (clip, projector, vicuna)
    with torch.device("meta"):
        tower = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14
            )
        )
        llama = LlamaForCausalLM(LlamaConfig())  # its defaults are the first Llama-7B
    assert (count(tower), count(llama)) == (clip, vicuna)
    assert vlm.vision.grid(224, 224) == (16, 16) and vlm.vision.features_from == 23
    connector = vlm.connector
    assert connector.segments * connector.tokens + connector.wants_summaries == 305


@pytest.mark.parametrize("language", ["qwen2_5_0_5b", "llama3_2_1b"])
def test_a_vila_is_siglip_a_fold_and_a_language_model(language: str) -> None:
    vlm = on_meta("experiment=vila_like", SHARDS, f"language={language}")
    width = vlm.language.dim
    size = {"qwen2_5_0_5b": 494_032_768, "llama3_2_1b": 1_235_814_400}[language]
    expected = 428_225_600 + linear(4 * 1152, width) + linear(width, width) + size
    assert count(vlm) - count(vlm.vision.query) == expected
    assert vlm.vision.grid(vlm.vision.image_size, vlm.vision.image_size) == (28, 28)


def test_qwen_and_siglip2_base_are_as_large_as_the_librarys() -> None:
    vlm = on_meta("vision=siglip2_base", "language=qwen2_5_0_5b", "connector=mean", "connector.projector=linear")
    with torch.device("meta"):
        tower = SiglipVisionModel(SiglipVisionConfig())  # its defaults are the base size at 224 pixels
        qwen = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(
                "qwen2", vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
                num_attention_heads=14, num_key_value_heads=2, tie_word_embeddings=True,
            )
        )  # fmt: skip
    assert (count(tower), count(qwen)) == (92_884_224, 494_032_768)
    assert count(vlm) - count(vlm.vision.query) == count(tower) + linear(768, 896) + count(qwen)


TINY = [
    "vision.source=scratch", "vision.config.hidden_size=32", "vision.config.intermediate_size=48",
    "vision.config.num_hidden_layers=3", "vision.config.num_attention_heads=2", "vision.config.image_size=56",
    "language.source=scratch", "language.config.hidden_size=32", "language.config.intermediate_size=48",
    "language.config.num_hidden_layers=1", "language.config.num_attention_heads=2", "language.config.vocab_size=null",
    "dataset=needles", "dataset.num_frames=8", "trainer=cpu",
    "trainer.precision=32-true", "trainer.num_workers=0", "trainer.accumulate=1", "stage.batch_size=2",
    "debug=fast_dev_run",
]  # fmt: skip


@pytest.mark.parametrize(
    ("experiment", "more"),
    [
        (
            "longvlm_7b",
            [
                "vision.image_size=56",
                "language.config.num_key_value_heads=2",
                "language.dtype=float32",
                "language.template=tiny",
            ],
        ),
        ("vila_like", ["vision.image_size=56", "language.config.num_key_value_heads=1", "language.template=tiny"]),
    ],
)
def test_they_train_a_step_at_a_tiny_size(
    experiment: str, more: list[str], needles: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = [o for o in needles if o.startswith("dataset.") and "num_frames" not in o]
    done = run([f"experiment={experiment}", *TINY, *more, *data, "run=tiny"])
    assert done.stages and all(stage["steps"] > 0 for stage in done.stages.values())


def test_a_checkpoint_needs_no_source_any_more(
    needles: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the folder's config.json said travels with the weights."""
    monkeypatch.chdir(tmp_path)
    config = SiglipVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16
    )
    SiglipVisionModel(config).save_pretrained(tmp_path / "siglip")
    done = run(["stage=sft", "vision=siglip2", f"vision.source={tmp_path / 'siglip'}", "vision.image_size=null",
                "connector=longvlm", "debug=fast_dev_run", "run=gone", "evaluate=false",
                *(o for o in needles if not o.startswith("vision."))])  # fmt: skip
    shutil.rmtree(tmp_path / "siglip")
    checkpoint = find_checkpoint(done.run)
    vision = load(checkpoint, stored_config(checkpoint)).model.vision
    assert (vision.dim, vision.num_layers, vision.image_size) == (32, 2, 32)
