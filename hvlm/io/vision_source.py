"""What a published vision encoder's folder says: its configuration, its normalisation, and the weights of its vision
part, whatever else (a text tower) lies beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hvlm.errors import UserError
from hvlm.io.checkpoint import refuse_unsafe_loading
from hvlm.io.pretrained import Package, fetch, json_of, one_line

KEY = "vision.source"
DESCRIPTIONS = ("config.json", "preprocessor_config.json")
# What lies beside the vision part in folders of pairs of towers, and of classifiers.
BESIDE = ("text_model.", "text_projection.", "visual_projection.", "logit_", "classifier.")
# How a ``model_type`` begins -> the word of the room that can use it.
WORDS = {"dinov2": "dinov2", "dinov3_vit": "dinov3", "clip": "clip", "siglip": "siglip"}
NORMALISATION = ("image_mean", "image_std")


def described(source: str, revision: str | None, packages: Mapping[str, Package]) -> Path:
    """The folder with the source's ``config.json``; of a hub id nothing more is loaded."""
    return fetch(source, key=KEY, files=DESCRIPTIONS, packages=packages, revision=revision)


def vision_config(folder: Path, known: tuple[str, ...]) -> dict[str, Any]:
    """The vision part of ``config.json``, with ``model_type``, and ``image_mean`` and ``image_std`` where
    ``preprocessor_config.json`` says them.

    Args:
        folder: a Hugging Face model folder.
        known: the ``model_type`` that the room can use; a ``vision_config`` inside another is taken out of it.

    Raises:
        UserError: no ``config.json``, or of another kind of model.
    """
    path = folder / "config.json"
    config = json_of(path, KEY)
    found = config.get("model_type")
    if found not in known and isinstance(config.get("vision_config"), dict):
        # Older CLIP files hold the values a second time, and those count.
        older = config.get("vision_config_dict")
        config = {**config["vision_config"], **(older if isinstance(older, dict) else {})}
        config.setdefault("model_type", f"{found}_vision_model")
    if config.get("model_type") not in known:
        word = next((word for start, word in WORDS.items() if str(found).startswith(start)), None)
        hint = f"; use vision={word}" if word else ""
        raise UserError(f"{KEY}: {path} says model_type={found!r}, expected {' or '.join(known)}{hint}")
    preprocessor = json_of(folder / DESCRIPTIONS[1], KEY) if (folder / DESCRIPTIONS[1]).is_file() else {}
    return config | {key: colours(key, preprocessor[key]) for key in NORMALISATION if preprocessor.get(key)}


def colours(name: str, value: Any) -> list[float]:
    """A mean or deviation of three colours; one number stands for all. UserError where it is neither."""
    found = list(value) if isinstance(value, list | tuple) else [value] * 3
    numbers = len(found) == 3 and all(isinstance(v, int | float) and math.isfinite(v) for v in found)
    if not numbers or (name == NORMALISATION[1] and min(found) <= 0):
        above = " above 0" if name == NORMALISATION[1] else ""
        raise UserError(f"{KEY}: {name}={value!r} of its preprocessor_config.json: expected three numbers{above}")
    return found


def weights_folder(source: str, revision: str | None, packages: Mapping[str, Package]) -> Path:
    """The folder with ``config.json`` and the weights as safetensors, in one file or several; where there are none,
    those of ``torch.save``."""
    files = (*DESCRIPTIONS, "model*.safetensors", "model.safetensors.index.json")
    folder = fetch(source, key=KEY, files=files, packages=packages, revision=revision)
    if not any(folder.glob("model*.safetensors")):
        refuse_unsafe_loading()
        files = (*DESCRIPTIONS, "pytorch_model*.bin", "pytorch_model.bin.index.json")
        folder = fetch(source, key=KEY, files=files, packages=packages, revision=revision)
        if not any(folder.glob("pytorch_model*.bin")):
            raise UserError(f"{KEY}={source}: {folder} has no model.safetensors; expected a Hugging Face model folder")
    return folder


def load(cls: Any, config: Any, folder: Path, optional: tuple[str, ...] = ()) -> Any:
    """The vision model in float32, every tensor of it, whichever names and files transformers wrote them under.

    Args:
        cls: one of transformers' vision models.
        config: its configuration.
        folder: as ``weights_folder`` gives it.
        optional: tensors that start at zero where the folder has none (what pre-training alone uses).

    Raises:
        UserError: tensors that are missing, unknown, or of another shape.
    """
    try:
        model, info = cls.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except Exception as error:  # of torch, safetensors and transformers: damaged files, files that are not there, sizes
        raise UserError(f"{KEY}: the model in {folder} cannot be loaded: {one_line(error)}") from error
    other = {name: f"{name} is {tuple(found)}, expected {tuple(own)}" for name, found, own in info["mismatched_keys"]}
    wrong = [f"{name} is missing" for name in sorted(info["missing_keys"]) if name not in (*other, *optional)]
    wrong += [f"{name} is unknown" for name in sorted(info["unexpected_keys"]) if not name.startswith(BESIDE)]
    wrong += sorted(other.values())
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise UserError(f"{KEY}: the weights in {folder} do not fit: {'; '.join(wrong[:3])}{more}")
    return model.train()  # as a model that was built is; from_pretrained leaves it in evaluation mode
