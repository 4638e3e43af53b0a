"""``hvlm.load``: a trained model from a run folder, a checkpoint, an export, or a hub id of one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hvlm.api.model import Model
from hvlm.assembly import input_spec, motion_grid
from hvlm.config.overlay import OF_THE_COMMAND, overlay
from hvlm.config.search_path import named_by
from hvlm.config.words import key_of
from hvlm.errors import UserError
from hvlm.io.checkpoint import find_checkpoint, refuse_unsafe_loading
from hvlm.rebuild import rebuild, stored_config
from hvlm.types import InputSpec

# What a command is told and a model is not.
OF_A_COMMAND = tuple(key for key in OF_THE_COMMAND if key not in ("packages", "config_dir"))


def load(
    path: str | Path,
    *overrides: str,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    revision: str | None = None,
    packages: Sequence[str] = (),
) -> Model:
    """A trained model that answers.

    Args:
        path: a run folder, a checkpoint file, a folder that ``task=export`` or ``Model.save`` wrote, or the hub id of
            one.
        overrides: of a run or checkpoint, settings in place of the stored ones, as on the command line:
            ``"merger=tome"``, ``"vision.frames_at_once=16"``.
        device: where it goes; None: the GPU if there is one.
        dtype: of the weights; None: as stored.
        revision: of a hub id: branch, tag or commit.
        packages: outside packages whose rooms the checkpoint may use.

    Raises:
        UserError: nothing that can be loaded is there, or it does not fit.
    """
    if not isinstance(path, str | Path) or not str(path):
        raise UserError(f"{path!r}: expected a run folder, a checkpoint, an export, or a hub id")
    if isinstance(packages, str):
        packages = [packages]
    for override in overrides:
        if key_of(override) in OF_A_COMMAND or key_of(override).startswith(("ask.", "callback.")):
            raise UserError(f"{override}: belongs to a command, and changes no model")
    where = Path(path).expanduser()
    if where.is_dir() and not is_export(where) and (where / "config.json").is_file():
        raise UserError(
            f"{path}: no model that hvlm trained, but a source of one: hvlm.build(language={{'name': 'causal', "
            f"'source': '{path}'}}) or hvlm.build(vision={{'name': ..., 'source': '{path}'}})"
        )
    with named_by([f"packages=[{','.join(packages)}]"] if packages else []):
        if is_export(where) or not where.exists():
            if overrides:
                raise UserError(
                    f"{overrides[0]}: {path} is an export, whose rooms stand; name the run it was made from"
                )
            model = _of_export(path, where, revision)
        elif revision is not None:
            raise UserError(f"revision={revision}: only of a hub id; {path} is here")
        else:
            model = _of_checkpoint(where, overrides)
    where_to = torch.device("cuda" if torch.cuda.is_available() else "cpu") if device is None else device
    return model.to(where_to, dtype)


def is_export(folder: Path) -> bool:
    """Whether a folder is one that ``task=export`` wrote."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and "rooms" in config


def _of_checkpoint(path: Path, overrides: Sequence[str]) -> Model:
    refuse_unsafe_loading()
    file = find_checkpoint(path)
    cfg = overlay(stored_config(file), list(overrides), str(path))
    vlm, chat = rebuild(file, cfg)
    return Model(vlm.eval(), chat, input_spec(cfg, vlm), cfg, cfg["trainer"]["precision"])


def _of_export(path: str | Path, where: Path, revision: str | None) -> Model:
    from hvlm.interop.hf_export import HvlmModel

    if not where.exists() and (str(path).count("/") != 1 or str(path).startswith(("/", ".", "~"))):
        raise UserError(f"{path}: no such file or folder; expected a run folder, a checkpoint, an export, or a hub id")
    try:
        found = HvlmModel.from_pretrained(path if not where.exists() else where, revision=revision)
    except UserError:
        raise
    except Exception as error:  # of transformers, the hub's client and safetensors
        first = (str(error) or type(error).__name__).splitlines()[0]
        if where.exists():
            raise UserError(f"{path}: this export cannot be read ({type(error).__name__}: {first})") from error
        raise UserError(f"{path}: no such file or folder here, and no export of hvlm on the hub ({first})") from error
    config, vlm = found.config, found.vlm
    inputs = InputSpec(config.order, config.num_frames, vlm.vision.image_size, motion_grid(vlm))
    plain: dict[str, Any] = {**config.rooms, "order": config.order, "domain": {"adapter": config.adapter}}
    return Model(vlm, found.chat, inputs, plain, "32-true")
