"""A run becomes a Hugging Face folder that transformers loads, and a file in fVLM's layout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from _tiny import ROOT
from transformers import AutoTokenizer

import eval as evaluation
from hvlm.chat import Chat
from hvlm.errors import UserError
from hvlm.interop.fvlm_weights import read_release
from hvlm.io.checkpoint import load_weights
from hvlm.rebuild import metadata_of
from hvlm.training.chain import run

SCRIPT = """
import hvlm.interop.hf_export, torch, sys
from transformers import AutoModel, AutoTokenizer
model = AutoModel.from_pretrained(sys.argv[1])
torch.manual_seed(0)
frames = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
print(model.answer(frames, "what color is the object ?", 5))
torch.save(model.vlm.state_dict(), sys.argv[2])
"""


def test_ten_lines_load_the_folder(trained: tuple[Path, list[str]], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(trained[0])
    out = evaluation.evaluate(["task=export", "checkpoint=runs/tiny", f"out={tmp_path / 'hf'}"])
    names = {p.name for p in out.iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json", "README.md"}
    assert "accuracy_mean" in (out / "README.md").read_text(), "the card has the run's own figures"
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(out), str(tmp_path / "state.pt")], capture_output=True,
                          text=True, cwd=ROOT)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    state, trained_state = torch.load(tmp_path / "state.pt"), load_weights("runs/tiny")
    assert state.keys() == trained_state.keys() and all(torch.equal(state[n], trained_state[n]) for n in state)

    tokenizer, chat = AutoTokenizer.from_pretrained(out), Chat.from_json(metadata_of("runs/tiny")["chat"])
    turns = [{"role": "user", "content": "what color is the ring ?"}]
    text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == chat.encode_prompt(turns[0]["content"])[0]


def test_only_fvlms_rooms_fit_fvlms_layout(trained: tuple[Path, list[str]], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(trained[0])
    with pytest.raises(UserError, match="fVLM's layout has no place for vision.position"):
        evaluation.evaluate(["task=release", "checkpoint=runs/tiny", f"out={tmp_path}"])
    monkeypatch.chdir(tmp_path)
    needles = [o for o in trained[1][4:] if not o.startswith("vision.")]
    run(["stage=sft", "vision=dinov2_tiny", "connector.projector=linear", "connector.standardise=false",
         "order=video_first", "run=dino", "stage.steps=1", "stage.batch_size=2", "evaluate=false",
         *needles])  # fmt: skip
    path = evaluation.evaluate(["task=release", "checkpoint=runs/dino"])
    assert path == Path("runs/dino/release/fvlm.safetensors") and "q_init" in read_release(path)
