"""Checkpoints of earlier versions load and compute what they computed, or are refused in one line.

``data/old_*.ckpt`` were written by ``train.py`` (two steps of stage=sft, the optimiser's state left out) before models
had adapters and caches as rooms; ``expected`` is what they gave then.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hvlm.data.collate import Item, collate
from hvlm.errors import UserError
from hvlm.io.checkpoint import load_weights
from hvlm.model import VLM
from hvlm.rebuild import metadata_of, rebuild
from hvlm.text.chat import Chat

DATA = Path(__file__).parent / "data"
OLD = sorted(DATA.glob("old_*.ckpt"))


def answers(model: VLM, chat: Chat, order: str) -> Tensor:
    asked = (("what color is the ring ?", "red"), ("where ?", "top left"))
    rows = [(*chat.encode(question, answer, "answer", order), {}) for question, answer in asked]
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
    item = Item(pixels, (np.arange(4, dtype=np.float32) + 0.5) / 4, rows)
    with torch.no_grad():
        return model.eval().token_logprobs(collate([item], pad_id=chat.pad_id, size=(32, 32)))


@pytest.mark.parametrize("path", OLD, ids=lambda path: path.stem)
def test_an_old_checkpoint_computes_what_it_computed(path: Path) -> None:
    config = metadata_of(path)["config"]
    model, chat = rebuild(path, config)
    expected = torch.load(path, weights_only=True)["expected"]
    torch.testing.assert_close(answers(model, chat, config["order"]), expected, rtol=0, atol=1e-5)
    assert set(load_weights(path)) == set(model.state_dict()), "every weight under the name that it had"


def write(path: Path, **changes: Any) -> Path:
    """An old checkpoint with other settings in the room that a key names."""
    stored = torch.load(OLD[0], weights_only=True)
    for room, settings in changes.items():
        stored["hvlm"]["config"][room] |= settings
    torch.save(stored, path)
    return path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"connector": {"_target_": "hvlm.connector.gone.Gone"}}, r"connector\._target_=hvlm\.connector\.gone\.Gone"),
        ({"connector": {"glance": 3}}, "no setting glance: the configuration was written by another version"),
        ({"language": {"num_layers": 2}}, "was made with another architecture: language differ"),
    ],
)
def test_one_that_cannot_be_used_is_refused_in_one_line(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    path = write(tmp_path / "old.ckpt", **changes)
    with pytest.raises(UserError, match=said) as refused:
        rebuild(path, metadata_of(path)["config"])
    assert "\n" not in str(refused.value)


def test_weights_that_are_lost_are_refused_where_they_are_read(tmp_path: Path) -> None:
    stored = torch.load(OLD[0], weights_only=True)
    name = next(name for name, value in stored["state_dict"].items() if value.dim() == 2)
    stored["state_dict"][name][0, 0] = torch.nan
    torch.save(stored, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=rf"x\.ckpt: {name.removeprefix('model.')} holds NaN, so every answer would"):
        rebuild(tmp_path / "x.ckpt", stored["hvlm"]["config"])
