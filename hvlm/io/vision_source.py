"""What a published vision encoder's folder says: its configuration, its normalisation, and the weights of its vision
part, whatever else (a text tower) lies beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hvlm.errors import UserError
from hvlm.io.pretrained import Package, fetch

KEY = "vision.source"
DESCRIPTIONS = ("config.json", "preprocessor_config.json")
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
    config = _read(path)
    found = config.get("model_type")
    if found not in known and isinstance(config.get("vision_config"), dict):
        # Older CLIP files hold the values a second time, and those count.
        config = {**config["vision_config"], **(config.get("vision_config_dict") or {})}
        config.setdefault("model_type", f"{found}_vision_model")
    if config.get("model_type") not in known:
        raise UserError(f"{KEY}: {path} says model_type={found!r}, expected {' or '.join(known)}")
    preprocessor = _read(folder / DESCRIPTIONS[1]) if (folder / DESCRIPTIONS[1]).is_file() else {}
    return config | {key: preprocessor[key] for key in NORMALISATION if preprocessor.get(key)}


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{KEY}: {path} is no JSON: {error}") from error


def weights_folder(source: str, revision: str | None, packages: Mapping[str, Package]) -> Path:
    """The folder with ``config.json`` and the weights as safetensors, in one file or several, or, where there are none,
    in ``pytorch_model.bin``."""
    files = (*DESCRIPTIONS, "model*.safetensors", "model.safetensors.index.json")
    folder = fetch(source, key=KEY, files=files, packages=packages, revision=revision)
    if not any(folder.glob("model*.safetensors")):
        files = (*DESCRIPTIONS, "pytorch_model.bin")
        folder = fetch(source, key=KEY, files=files, packages=packages, revision=revision)
    return folder


def load_into(
    model: torch.nn.Module,
    folder: Path,
    prefixes: tuple[str, ...] = (),
    renamed: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict,
    optional: tuple[str, ...] = (),
) -> None:
    """Every tensor of a vision model from its folder.

    Args:
        model: whose names are transformers' own.
        folder: as ``weights_folder`` gives it.
        prefixes: where one of them stands before names, the tensors below it alone belong to the model (the vision part
            of a pair of towers).
        renamed: gives the tensors the names that they have now.
        optional: tensors that stay as they are where the file has none (what pre-training alone uses).

    Raises:
        UserError: tensors that are missing, unknown, or of another shape.
    """
    state = renamed(_tensors(folder, prefixes))
    own = model.state_dict()
    state |= {name: own[name] for name in optional if name in own and name not in state}
    state = {name: tensor for name, tensor in state.items() if not name.endswith("position_ids")}
    wrong = [f"{name} is missing" for name in own if name not in state]
    wrong += [f"{name} is unknown" for name in state if name not in own]
    wrong += [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise UserError(f"{KEY}: the weights in {folder} do not fit: {'; '.join(wrong[:3])}{more}")
    model.load_state_dict(state, strict=True)


def _tensors(folder: Path, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    """The model's own tensors by name. Of safetensors no others are read."""
    from safetensors import safe_open

    found: dict[str, Tensor] = {}
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        path = folder / "pytorch_model.bin"
        if not path.is_file():
            raise UserError(f"{KEY}: {folder} has no model.safetensors; expected a Hugging Face model folder")
        everything = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
        prefix = _prefix(everything, prefixes)
        return {n.removeprefix(prefix): t for n, t in everything.items() if n.startswith(prefix)}
    names = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            names[path] = list(file.keys())
    prefix = _prefix([name for of in names.values() for name in of], prefixes)
    for path, of in names.items():
        with safe_open(path, framework="pt") as file:
            found |= {n.removeprefix(prefix): file.get_tensor(n) for n in of if n.startswith(prefix)}
    return found


def _prefix(names: Any, prefixes: tuple[str, ...]) -> str:
    return next((prefix for prefix in prefixes if any(name.startswith(prefix) for name in names)), "")
