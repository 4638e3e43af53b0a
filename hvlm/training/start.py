"""What a stage begins with: new rooms, a checkpoint's or a release's weights, and the tokenizer that goes with them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hvlm import assembly
from hvlm.config.compose import stage_name
from hvlm.errors import UserError
from hvlm.interop.fvlm_weights import is_release, load_release, read_release
from hvlm.io.checkpoint import find_checkpoint, load_into, load_weights
from hvlm.model import VLM, Encoder
from hvlm.rebuild import metadata_of, with_own
from hvlm.stage._base import Stage
from hvlm.text.chat import Chat

log = logging.getLogger(__name__)

ADDED = ("merger", "attention", "fusion", "adapter", "kvcache", "head")  # what may be added to a trained model


def find_start(path: str) -> Path:
    """What ``init_from`` names, having looked inside: a checkpoint, a run folder, or weights in fVLM's layout."""
    if is_release(path):
        read_release(path)
        return Path(path)
    found = find_checkpoint(path)
    metadata_of(found)
    return found


def metadata_if_there(init_from: str | None) -> dict[str, Any] | None:
    """The metadata of the checkpoint that ``init_from`` names; None for none, and for what is yet to be written."""
    if init_from is None or not Path(init_from).exists() or is_release(init_from):
        return None
    return metadata_of(init_from)


def chat_of(cfg: Mapping[str, Any], init_from: Path | None, data: Any = None) -> Chat:
    """The tokenizer of a stage with text: that of the weights it starts from, if there is one, else the configured
    language model's own, which may have to be made from the data."""
    if init_from is not None and not is_release(init_from) and metadata_of(init_from)["stage"] != "vision":
        return Chat.from_json(metadata_of(init_from)["chat"])
    if data is None:
        data = assembly.dataset(cfg)
        data.prepare()
    return assembly.chat(cfg, data)


def start_stage(cfg: Mapping[str, Any], data: Any, init_from: Path | None) -> tuple[Stage, Chat | None]:
    """The stage around a backbone with its starting weights, and the tokenizer that belongs to them (None: no text).

    A checkpoint of stage 0 holds the encoder alone: everything else then starts as it would without ``init_from``.
    A release brings all weights but no tokenizer: that is the configured language model's own.
    """
    name = stage_name(cfg)
    if init_from is not None and is_release(init_from):
        return _start_from_release(cfg, data, init_from)
    metadata = None if init_from is None else metadata_of(init_from)
    if name == "vision":
        chat, model = None, assembly.encoder(cfg, metadata)
    else:
        chat = chat_of(cfg, init_from, data).asking(cfg["domain"].get("prompt"))
        begun = metadata is not None and metadata["stage"] != "vision"
        model = assembly.model(cfg, chat, weights=not begun, stored=metadata)
    if init_from is not None:
        weights = load_weights(init_from)
        if metadata["stage"] == "vision" or name == "vision":
            encoder = {k.removeprefix("vision."): v for k, v in weights.items() if k.startswith("vision.")}
            load_into(model.vision, encoder, init_from)
        else:
            weights = with_own(weights, model)
            load_into(model, weights | new_rooms(model, weights), init_from)
    if isinstance(model, VLM):
        model.adapter.fill()
    return _stage_around(model, chat, cfg, data), chat


def new_rooms(model: VLM, weights: Mapping[str, Any]) -> dict[str, Any]:
    """The weights of optional rooms that the start did not have, and of adapters under a name that it did not have:
    these begin as they were built."""
    held = {_room_of(name) for name in weights}
    own = {name: value for name, value in model.state_dict().items() if _room_of(name) not in held}
    own = {name: value for name, value in own.items() if name.split(".", 1)[0] in ADDED}
    if own:
        rooms = ", ".join(dict.fromkeys(map(_room_of, own)))
        log.info(f"{rooms}: not in the weights that this stage starts from, begins untrained")
    return own


def _room_of(name: str) -> str:
    """The room that a weight belongs to; each of an adapter's names counts as one."""
    first, second, *_ = name.split(".")
    return f"adapter.{second}" if first == "adapter" else first


def _start_from_release(cfg: Mapping[str, Any], data: Any, path: Path) -> tuple[Stage, Chat]:
    if stage_name(cfg) == "vision":
        raise UserError(
            f"init_from={path}: stage=vision trains an encoder from nothing; start with stage=align or later"
        )
    chat = assembly.chat(cfg, data).asking(cfg["domain"].get("prompt"))
    model = assembly.model(cfg, chat, weights=False)
    report = load_release(model, path)
    if report.missing:
        more = f" and {len(report.missing) - 3} more" if len(report.missing) > 3 else ""
        raise UserError(
            f"init_from={path}: has no {', '.join(report.missing[:3])}{more}; fVLM's layout belongs to "
            "vision=dinov2_* connector=foveated connector.projector=linear connector.standardise=false"
        )
    log.info(f"{path}: {len(report.matched)} tensors taken, {len(report.unexpected)} left: {report.unexpected[:3]}")
    model.adapter.fill()
    return _stage_around(model, chat, cfg, data), chat


def _stage_around(model: VLM | Encoder, chat: Chat | None, cfg: Mapping[str, Any], data: Any) -> Stage:
    stage = assembly.stage(cfg, model, data)
    text = None if chat is None else chat.to_json()
    stage.metadata = {
        "config": dict(cfg),
        "chat": text,
        "stage": stage_name(cfg),
        "source_configs": assembly.source_configs(model),
    }
    return stage
