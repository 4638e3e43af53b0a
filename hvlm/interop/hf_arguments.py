"""What a folder's config.json and the arguments of ``from_pretrained`` may say, checked before a model is built."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch

from hvlm.config.rooms import OF_A_MODEL
from hvlm.errors import UserError
from hvlm.interop.hf_config import HvlmConfig
from hvlm.text.chat import ORDERS

MOST_FRAMES = 1 << 16  # of a clip


def check_config(config: HvlmConfig) -> None:
    """UserError for a config.json of which a field is none that an export writes."""
    frames, adapter = config.num_frames, config.adapter
    wrong = {
        "order": None if config.order in ORDERS else f"one of {', '.join(ORDERS)}",
        "num_frames": None if type(frames) is int and 1 <= frames <= MOST_FRAMES else f"1 to {MOST_FRAMES}",
        "adapter": None if isinstance(adapter, str) and adapter else "the name of a set of adapter weights",
        "chat": None if isinstance(config.chat, str) else "a tokenizer as text",
        "rooms": None if isinstance(config.rooms, Mapping) else "rooms with their settings",
        "source_configs": None if isinstance(config.source_configs, Mapping) else "what rooms' sources said",
    }
    for field, expected in wrong.items():
        if expected is not None:
            raise UserError(f"config.json: {field} is {getattr(config, field)!r:.60}, expected {expected}")
    if missing := [room for room in OF_A_MODEL if not isinstance(config.rooms.get(room), Mapping)]:
        raise UserError(f"config.json: rooms holds no {missing[0]}; export the model again")


def dtype_of(given: torch.dtype | str | None) -> torch.dtype | None:
    """Of the weights; None: as stored. ValueError for one that no model computes in."""
    found = getattr(torch, given.removeprefix("torch."), None) if isinstance(given, str) else given
    if given in (None, "auto"):
        return None
    if found not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"dtype={given}: expected float32, bfloat16, float16 or auto")
    return found


def device_of(given: str | torch.device | dict[str, str | torch.device] | None) -> torch.device:
    """The one that ``device_map`` means. ValueError where it means several, or none."""
    if isinstance(given, dict):
        if set(given) != {""}:
            raise ValueError(f"device_map={given}: this model is not split; give one device, or {{'': device}}")
        given = given[""]
    if given == "auto":
        given = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device("cpu" if given is None else given)
    except RuntimeError as error:
        raise ValueError(f"device_map={given}: expected one device, {{'': device}} or auto") from error
    if device.type == "meta":
        raise ValueError("device_map=meta: a model without weights cannot answer; use HvlmModel(config)")
    return device


def with_attention(config: HvlmConfig, asked: str | None) -> HvlmConfig:
    """The configuration whose language model attends as asked; None: as it is configured. ValueError for a way that the
    language models lack."""
    if asked is None:
        return config
    if asked not in ("auto", "sdpa"):
        raise ValueError(f"attn_implementation={asked}: expected auto or sdpa")
    config = copy.deepcopy(config)
    config.rooms["language"]["attention"] = asked
    return config
