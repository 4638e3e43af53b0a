"""The sizes, what a step reads, and the ways of training them that are compared."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from hvlm.data.shard_index import write_manifest, write_shard

FRAMES, SAMPLES = 8, 8  # of a clip, and of a step
VOCABULARY = 49_152
COMMON = [
    "seed=1", "order=video_first", "connector=mean", "connector.standardise=false", "language=causal",
    "language.template=tiny", f"dataset.num_frames={FRAMES}", "trainer.threads=1", "trainer.cache_mb=0",
    "trainer.checkpoint_every=1000000", "callback.media=0", "callback.progress=false", "evaluate=false",
    "stage.interleave=0", "stage.schedule=constant", "stage.warmup=0", "vision=dinov2_tiny",
]  # fmt: skip
LLAMA = "model_type: llama, tie_word_embeddings: true, rms_norm_eps: 1.0e-5, max_position_embeddings: 2048"
# {size: the rooms}. A ViT over 64 patches of a frame, and a Llama.
SIZES = {
    "small": [
        "vision.hidden_size=64", "vision.num_layers=2", "vision.num_heads=2", "vision.patch_size=8",
        "vision.image_size=64",
        f"language.config={{{LLAMA}, hidden_size: 128, intermediate_size: 384, num_hidden_layers: 4, "
        "num_attention_heads: 4, num_key_value_heads: 4}",
    ],
    "medium": [
        "vision.hidden_size=192", "vision.num_layers=12", "vision.num_heads=3", "vision.patch_size=8",
        "vision.image_size=64",
        f"language.config={{{LLAMA}, hidden_size: 320, intermediate_size: 864, num_hidden_layers: 8, "
        "num_attention_heads: 5, num_key_value_heads: 5}",
    ],
    "large": [
        "vision.hidden_size=384", "vision.num_layers=12", "vision.num_heads=6", "vision.patch_size=14",
        "vision.image_size=112",
        f"language.config={{{LLAMA}, vocab_size: {VOCABULARY}, hidden_size: 576, intermediate_size: 1536, "
        "num_hidden_layers: 30, num_attention_heads: 9, num_key_value_heads: 3}",
    ],
}  # fmt: skip
STEPS = {"small": 60, "medium": 8, "large": 3}  # that are timed
WARM = 2  # that are not, before them

# {work: what a step reads}: ``SAMPLES`` answers to questions about as many clips, or about a quarter of that; answers
# while the encoder is frozen, after the first epoch, which is the steps that are not timed; or two captions of 512
# tokens.
QUESTIONS = ["stage=sft", "dataset=needles", "dataset.set=easy", "dataset.text_chats=0"]
WORKS = {
    "question": [*QUESTIONS, f"stage.batch_size={SAMPLES}", "stage.rows_per_clip=1"],
    "questions": [*QUESTIONS, f"stage.batch_size={SAMPLES // 4}", "stage.rows_per_clip=4"],
    "frozen": [
        *QUESTIONS, f"stage.batch_size={SAMPLES}", "stage.rows_per_clip=1", "stage.trainable.vision=0",
        "vision.cache_gb=1", f"dataset.train_clips={WARM * SAMPLES}", f"dataset.shard_clips={WARM * SAMPLES}",
        "dataset.val_clips=8", "dataset.test_clips=8",
    ],
    "captions": [
        "stage=align",
        "stage.converge_to=null",
        "dataset=shards",
        "stage.batch_size=2",
        "stage.rows_per_clip=1",
    ],
}  # fmt: skip
CAPTION = 508  # words; with the prompt, the marks of the turns and the end that makes 512 tokens or few more

# {way: (whose, overrides)}: ``plain`` is the plain loop, ``before`` hvlm at ``BEFORE``.
BEFORE = "d4e7c6a"  # the commit before logits in parts, packing, batches by tokens, compiling and checkpoints of parts
CHECKPOINTS = "trainer.checkpoint_activations={vision:true,language:true}"
WAYS: dict[str, tuple[str, list[str]]] = {
    "plain": ("plain", []),
    "plain_checkpoints": ("plain", ["checkpoints"]),
    "before": ("before", []),
    "hvlm": ("hvlm", []),
    "hvlm_profile": ("hvlm", ["trainer.profile=true"]),
    "hvlm_worker": ("hvlm", ["trainer.profile=true", "trainer.num_workers=1"]),
    "hvlm_pack": ("hvlm", ["language.pack=true"]),
    "hvlm_compile": ("hvlm", ["trainer.compile={vision:true,language:true}"]),
    "hvlm_checkpoints": ("hvlm", [CHECKPOINTS]),
    "hvlm_logits_16": ("hvlm", ["head.logits_mb=16"]),
    "hvlm_logits_16_checkpoints": ("hvlm", ["head.logits_mb=16", CHECKPOINTS]),
}
PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed"}


def words(size: str, work: str, precision: str, folder: Path) -> list[str]:
    """What train.py is given."""
    key = "path" if work == "captions" else "root"
    where = [f"dataset.{key}={folder / data_of(work)}"]
    steps = [f"stage.steps={WARM + steps_of(size, work)}", f"trainer.precision={PRECISIONS[precision]}"]
    # trainer.log_every stays as it is: logging is part of what hvlm costs.
    return [*COMMON, *SIZES[size], *WORKS[work], *where, *steps]


def data_of(work: str) -> str:
    """The folder of what it reads: one data set."""
    return work if work in ("captions", "frozen") else "needles"


def steps_of(size: str, work: str) -> int:
    return max(3, STEPS[size] // (4 if work == "captions" else 1))


def make_captions(folder: Path, clips: int = 160) -> None:
    """A set of stills: clips of ``FRAMES`` frames of noise with a caption of ``CAPTION`` words."""
    rng = np.random.default_rng(0)
    known = [f"{a}{b}{c}" for a in "bdfgklmn" for b in "aeiou" for c in ("", "n", "s", "r")]
    rows = []
    for i in range(clips):
        text = " ".join(rng.choice(known, CAPTION))
        members = {"json": json.dumps({"captions": [{"prompt": "describe .", "text": text}]}).encode()}
        for k in range(FRAMES):
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(file, "JPEG")
            members[f"{k:03d}.jpg"] = file.getvalue()
        rows.append((f"clip{i:05d}", members))
    entry = write_shard(folder / "train-000000.tar", rows, "train", ["general"] * clips)
    write_manifest(folder, {}, {"train-000000.tar": entry}, [])
