"""Checkpoints that a kill cannot damage and that cannot run code.

A file is written beside its destination, synced, and moved over it in one step. Beside every ``x.ckpt`` stands
``x.ckpt.sha256`` in the format of ``sha256sum``. The sidecar of a new file is written *before* the move and then also
lists the old file's sum, so that at every instant the file that is there matches a line of the sidecar that is there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from torch import Tensor, nn

from hvlm.errors import UserError

log = logging.getLogger(__name__)

PART = ".part"
SIDECAR = ".sha256"
LAST = "last.ckpt"
UNSAFE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


# ---------------------------------------------------------------------------------------------------- files


def write_atomically(path: Path, write: Callable[[Any], None]) -> None:
    """``write(file)`` into a temporary file in the same folder, then move it over ``path``: all of it or nothing."""
    part = path.with_name(f"{path.name}.{os.getpid()}{PART}")
    try:
        with open(part, "wb") as f:  # a plain open: the mode follows the umask
            write(f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes a rename durable; without it a power cut may bring the old name back."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def clean_parts(folder: Path) -> None:
    """Removes what a killed process left: half-written files, and sums whose checkpoint is gone."""
    for part in folder.glob(f"*{PART}"):
        pid = part.name.removesuffix(PART).rpartition(".")[2]
        if not pid.isdigit() or int(pid) == os.getpid() or not _is_alive(int(pid)):
            part.unlink(missing_ok=True)
    for sidecar in folder.glob(f"*{SIDECAR}"):
        if not sidecar.with_name(sidecar.name.removesuffix(SIDECAR)).exists():
            sidecar.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # alive, of another user
        return True
    return True


def file_sha256(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def known_sums(path: Path) -> list[str]:
    """The sums that the sidecar of ``path`` accepts; empty without a sidecar."""
    sidecar = path.with_name(path.name + SIDECAR)
    if not sidecar.exists():
        return []
    return [line.split()[0] for line in sidecar.read_text().splitlines() if line.strip()]


def verify(path: Path) -> str | None:
    """None when the file is what was written, else what is wrong with it, in a few words."""
    sums = known_sums(path)
    if not sums:
        return f"no checksum {path.name}{SIDECAR} beside it"
    if file_sha256(path) not in sums:
        return "its content differs from its checksum (cut short or altered)"
    return None


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's door to the functions of this file. Never uses $TMPDIR: a move from there is a copy on clusters."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None) -> None:
        """Writes ``checkpoint`` (plain values and tensors only) so that the old file stays until the new one is whole.

        Raises TypeError for values that ``weights_only=True`` could not read back, UserError when the disk is full.
        """
        if storage_options is not None:
            raise TypeError("AtomicCheckpointIO takes no storage_options")
        assert_plain(checkpoint)
        path = _local(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        clean_parts(path.parent)
        part = path.with_name(f"{path.name}.{os.getpid()}{PART}")
        try:
            with open(part, "wb") as f:
                torch.save(checkpoint, f)
                f.flush()
                os.fsync(f.fileno())
            digest = file_sha256(part)
            self._write_sums(path, [digest, *known_sums(path)])
            os.replace(part, path)
            sync_folder(path.parent)
            self._write_sums(path, [digest])
        except (OSError, RuntimeError) as e:  # torch.save reports a full disk as a RuntimeError
            part.unlink(missing_ok=True)
            free = shutil.disk_usage(path.parent).free >> 20
            raise UserError(f"{path} not written ({e}); {free} MB are free there; the previous file is whole") from e
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def _write_sums(self, path: Path, sums: list[str]) -> None:
        text = "".join(f"{s}  {path.name}\n" for s in dict.fromkeys(sums))
        write_atomically(path.with_name(path.name + SIDECAR), lambda f: f.write(text.encode()))

    def load_checkpoint(
        self, path: str | os.PathLike, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """The verified checkpoint. ``weights_only`` other than True or None is refused: pickles run code."""
        if weights_only is False:
            raise UserError(f"{path}: checkpoints are only read with weights_only=True")
        return load_checkpoint(path, map_location)

    def remove_checkpoint(self, path: str | os.PathLike) -> None:
        path = _local(path)
        path.unlink(missing_ok=True)
        path.with_name(path.name + SIDECAR).unlink(missing_ok=True)


def _local(path: str | os.PathLike) -> Path:
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
    if not known_sums(path):
        log.warning(f"{path}: no {path.name}{SIDECAR} beside it, so damage would go unnoticed")
    elif problem := verify(path):
        raise UserError(f"{path}: {problem}; use another checkpoint of that run")
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except Exception as e:  # unpickling raises whatever the bytes lead to
        reason = (str(e).strip() or type(e).__name__).splitlines()[0]
        raise UserError(f"{path} is not a readable checkpoint of tensors and plain values: {reason}") from e


def find_checkpoint(path: str | os.PathLike) -> Path:
    """A file as it is; of a stage's folder its last checkpoint; of a run's folder that of the stage finished last."""
    path = _local(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"{path}: no such checkpoint file or run folder")
    if (path / "checkpoints" / LAST).is_file():
        return path / "checkpoints" / LAST
    finished = [f.parent for f in path.glob("*/finished.json") if (f.parent / "checkpoints" / LAST).is_file()]
    if not finished:
        found = ", ".join(sorted(p.name for p in path.iterdir())) or "nothing"
        raise UserError(f"{path}: no stage of this run is finished (found {found}); name a .ckpt file to use it anyway")
    when = {folder: json.loads((folder / "finished.json").read_text())["finished_at"] for folder in finished}
    return max(finished, key=when.__getitem__) / "checkpoints" / LAST


def load_weights(path: str | os.PathLike, prefix: str = "model.") -> dict[str, Tensor]:
    """The backbone's weights from a file or run folder. Stages hold it as ``self.model``, hence the prefix."""
    state = load_checkpoint(path).get("state_dict")
    if not isinstance(state, Mapping):
        raise UserError(f"{path}: no 'state_dict' inside; expected a checkpoint that train.py wrote")
    weights = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if not weights:
        raise UserError(f"{path}: holds no weights named {prefix}*; expected a checkpoint that train.py wrote")
    return weights


def load_into(
    module: nn.Module, state: Mapping[str, Tensor], source: str | os.PathLike, strict: bool = True
) -> list[str]:
    """Copies ``state`` into ``module`` and returns the names that the module has and ``state`` lacks.

    ``strict=False`` lets names be absent on either side (a later stage may add an adapter); shapes must always agree.
    Raises ``UserError`` that says which parts differ, and the first shapes that do. ``source`` is for the message.
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
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        way_out = " ".join(f"{p}=" for p in parts)
        raise UserError(
            f"{source} was made with another architecture: {', '.join(parts)} differ "
            f"({'; '.join(problems[:3])}{more}); choose the {way_out} that it was trained with"
        )
    module.load_state_dict(state, strict=False)
    return absent


# ---------------------------------------------------------------------------------------------------- content


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes, in the order of the names: equal if and only if the weights are."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
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
