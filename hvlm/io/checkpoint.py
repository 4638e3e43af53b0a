"""Checkpoints that a kill cannot damage and that cannot run code.

How files are written is in ``hvlm.io.files``. The sidecar of a new checkpoint is written *before* the move and then
also lists the old file's sum, so that at every instant the file that is there matches a line of the sidecar.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hvlm.errors import UserError, first_few
from hvlm.io.files import (
    FINISHED,
    LAST,
    SIDECAR,
    file_state,
    known_sums,
    verify,
)
from hvlm.io.foreign import yaml_of
from hvlm.io.shards import is_index, load_archive, problem_of, without_pieces

log = logging.getLogger(__name__)

UNSAFE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


def local(path: str | os.PathLike) -> Path:
    if "://" in str(path):
        raise UserError(f"{path}: checkpoints are files on this machine; download it and check its sha256 first")
    return Path(path)


# ---------------------------------------------------------------------------------------------------- reading


def refuse_unsafe_loading() -> None:
    """``UserError`` when the environment switches torch's safe loading off."""
    if os.environ.get(UNSAFE, "").lower() in ("1", "true", "yes", "y"):
        raise UserError(f"{UNSAFE} is set: it would let a checkpoint run code; unset it")


def load_checkpoint(path: str | os.PathLike, map_location: Any = "cpu") -> dict[str, Any]:
    """The whole checkpoint at ``path`` (a file, or a run folder: see ``find_checkpoint``), verified by its sidecar.

    A file that somebody copied without its sidecar is read with a warning. Raises ``UserError`` for a URL, a missing
    file, another checksum, and content that is not plain tensors and values.
    """
    refuse_unsafe_loading()
    path = find_checkpoint(path)
    _check_sum(path)
    return without_pieces(load_archive(path, map_location), path)


def _check_sum(path: Path) -> None:
    if not known_sums(path):
        log.warning(f"{path}: no {path.name}{SIDECAR} beside it, so damage would go unnoticed")
    elif problem := verify(path):  # of pieces the sums are looked at when they are opened
        raise UserError(f"{path}: {problem}; use another checkpoint of that run")


_READ: dict[Path, tuple[tuple[int, int, int], dict[str, Any]]] = {}  # the file read last: ((its state), its content)


def read_checkpoint(path: str | os.PathLike) -> Mapping[str, Any]:
    """As ``load_checkpoint``, to look at and not to change: the tensors stay on the disk until they are copied.

    The file read last is remembered while it stays what it is, so one command reads, and hashes, a checkpoint once.
    """
    refuse_unsafe_loading()
    path = find_checkpoint(path).absolute()
    state = file_state(path)
    if path not in _READ or _READ[path][0] != state:
        _check_sum(path)
        _READ.clear()
        content = load_archive(path, mmap=True)
        if not isinstance(content, dict):
            raise UserError(f"{path}: holds no mapping; expected a checkpoint that training wrote")
        content = without_pieces(content, path, ("state_dict",))
        _READ[path] = (state, content)
    return _READ[path][1]


def stored_step(path: Path) -> int:
    """The optimiser step that a checkpoint holds, not verified; -1 where it cannot be read."""
    refuse_unsafe_loading()
    try:
        step = load_archive(path, mmap=True).get("global_step", -1)
    except UserError:
        return -1
    return step if isinstance(step, int) else -1


def furthest_checkpoint(folder: Path) -> Path | None:
    """Of the checkpoints in ``folder`` the one of the highest stored step that is what was written; None: none is.

    The step is the one that the file holds: neither names nor times of files say how far a run has come. Damaged files
    are named in a warning and passed over.
    """
    steps = {path: stored_step(path) for path in folder.glob("*.ckpt")}
    for path in (path for path, step in steps.items() if step < 0):
        log.warning(f"{path} skipped: {verify(path) or 'it holds no step'}")
    # Of equal steps the one that stands at a stage's end, for its name is the one that people know.
    for path in sorted(steps, key=lambda p: (steps[p], p.name == LAST, p.name), reverse=True):
        if steps[path] < 0:
            continue
        if (problem := verify(path) or _wrong_pieces(path)) is None:
            return path
        log.warning(f"{path} skipped: {problem}")
    return None


def _wrong_pieces(path: Path) -> str | None:
    content = load_archive(path, mmap=True)
    return problem_of(path, content) if is_index(content) else None


def find_checkpoint(path: str | os.PathLike) -> Path:
    """A file as it is; of a stage's folder the checkpoint that came furthest; of a run's folder that of its last stage.

    The last stage of a run is the finished one from whose weights no other finished one started; where that leaves
    several, the chain's order decides. No clock is asked.
    """
    path = local(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"{path}: no such checkpoint file or run folder")
    refuse_exported(path)
    folder = path if (path / "checkpoints").is_dir() else _last_stage(path)
    if not (folder / FINISHED).is_file():
        files = ", ".join(sorted(p.name for p in (folder / "checkpoints").glob("*.ckpt"))) or "no checkpoint yet"
        raise UserError(f"{folder}: this stage is not finished ({files}); name a .ckpt file to use it anyway")
    found = furthest_checkpoint(folder / "checkpoints")
    if found is None:
        raise UserError(f"{folder}: no usable checkpoint in it; name another stage's folder or a .ckpt file")
    steps = json.loads((folder / FINISHED).read_text(encoding="utf-8"))["steps"]
    if (step := stored_step(found)) < steps:
        log.warning(f"{folder}: of {steps} steps {found.name} holds {step}; the same training command makes the rest")
    return found


def refuse_exported(path: Path) -> None:
    """``UserError`` for a folder that task=export wrote: it is for transformers, and not for training and eval.py."""
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return
    if isinstance(config, dict) and "rooms" in config:
        raise UserError(
            f"{path}: a folder of task=export, for transformers alone; name the run or checkpoint that it was made from"
        )


def _last_stage(run: Path) -> Path:
    """The folder of a run's last finished stage, or ``UserError``."""
    finished = {
        file.parent.name: json.loads(file.read_text(encoding="utf-8"))
        for file in sorted(run.glob(f"*/{FINISHED}"))
        if any((file.parent / "checkpoints").glob("*.ckpt"))
    }
    if not finished:
        found = ", ".join(sorted(p.name for p in run.iterdir())) or "nothing"
        raise UserError(f"{run}: no stage of this run is finished (found {found}); name a .ckpt file to use it anyway")
    ends = [
        label
        for label, record in finished.items()
        if not any(
            other != label and later.get("start", {}).get("weights_sha256") == record["weights_sha256"]
            for other, later in finished.items()
        )
    ]
    if len(ends) != 1:
        order = [label for label in _chain_of(run, finished) if label in (ends or finished)]
        if not order or set(ends) - set(order):
            raise UserError(
                f"{run}: {', '.join(ends or finished)} are finished and none comes last; name one of these folders"
            )
        ends = order[-1:]
    return run / ends[0]


def _chain_of(run: Path, labels: Iterable[str]) -> list[str]:
    """The labels of the chain that these stages belong to, in order; [] where they were trained one by one."""
    for label in labels:
        file = run / label / "config.yaml"
        config = yaml_of(file) if file.exists() else None
        chain = config.get("chain") if isinstance(config, Mapping) else None
        if chain:
            return list(map(str, chain)) if isinstance(chain, list | dict) else []
    return []


def load_weights(path: str | os.PathLike, prefix: str = "model.") -> dict[str, Tensor]:
    """The backbone's weights from a file or run folder. Stages hold it as ``self.model``, hence the prefix."""
    state = read_checkpoint(path).get("state_dict")
    if not isinstance(state, Mapping):
        raise UserError(f"{path}: no 'state_dict' inside; expected a checkpoint that training wrote")
    weights = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if not weights:
        raise UserError(f"{path}: holds no weights named {prefix}*; expected a checkpoint that training wrote")
    if odd := next((name for name, value in weights.items() if not isinstance(value, Tensor)), None):
        raise UserError(f"{path}: {odd} is no tensor; expected a checkpoint that training wrote")
    return weights


def load_into(
    module: nn.Module, state: Mapping[str, Tensor], source: str | os.PathLike, strict: bool = True
) -> list[str]:
    """Copies ``state`` into ``module`` and returns the names that the module has and ``state`` lacks.

    ``strict=False`` lets names be absent on either side (a later stage may add an adapter); shapes must always agree.
    Raises ``UserError`` that says which parts differ, and the first shapes that do, or what a part has against its
    values. ``source`` is for the message.
    """
    own = module.state_dict()
    shapes = [n for n in own if n in state and own[n].shape != state[n].shape]
    absent = [n for n in own if n not in state]
    extra = [n for n in state if n not in own]
    problems = [f"{n} is {tuple(state[n].shape)} there and {tuple(own[n].shape)} here" for n in shapes]
    if strict:
        problems += [f"{n} {tuple(own[n].shape)} is missing there" for n in absent]
        problems += [f"{n} {tuple(state[n].shape)} is unknown here" for n in extra]
    if problems:
        names = shapes + (absent + extra if strict else [])
        parts = list(dict.fromkeys(n.split(".")[0] for n in names))
        way_out = " ".join(f"{p}=" for p in parts)
        raise UserError(
            f"{source} was made with another architecture: {', '.join(parts)} differ "
            f"({first_few(problems)}); choose the {way_out} that it was trained with"
        )
    try:
        module.load_state_dict(state, strict=False)
    except RuntimeError as error:  # torch puts what each part says on a line of its own
        said = " ".join(line.strip() for line in str(error).splitlines()[1:])
        raise UserError(f"{source}: {said}") from error
    return absent


# ---------------------------------------------------------------------------------------------------- content


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes, in the order of the names: equal if and only if the weights are.

    Tensors that are divided among processes are put together one by one, so that all processes have to call it.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        held: Any = state[name].detach()
        value = (held.full_tensor() if hasattr(held, "full_tensor") else held).cpu().contiguous()  # a DTensor has it
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


_PLAIN = (type(None), bool, int, float, str, bytes, torch.Size, torch.dtype, torch.device)


def assert_plain(value: Any, where: str = "checkpoint") -> None:
    """TypeError that names the place of the first value that ``weights_only=True`` could not read back."""
    if type(value) in _PLAIN or isinstance(value, Tensor):
        return
    if isinstance(value, dict) and type(value).__module__ in ("builtins", "collections"):
        for key, item in value.items():
            assert_plain(key, f"{where} key {key!r}")
            assert_plain(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple, set):
        for i, item in enumerate(value):
            assert_plain(item, f"{where}[{i}]")
    else:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise TypeError(f"{where} is a {kind}; checkpoints hold plain values and tensors only")
