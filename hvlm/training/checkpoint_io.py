"""How Lightning writes and reads checkpoints: so that a kill cannot damage them, and they cannot run code."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO

from hvlm.errors import UserError
from hvlm.io.checkpoint import assert_plain, load_checkpoint, local
from hvlm.io.files import PART, SIDECAR, clean_parts, file_sha256, known_sums, sync_folder, write_atomically
from hvlm.io.shards import KEY, drop_others


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's door to ``hvlm.io.checkpoint``. Never uses $TMPDIR: a move from there is a copy on clusters."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None) -> None:
        """Writes ``checkpoint`` (plain values and tensors only) so that the old file stays until the new one is whole.

        Raises TypeError for values that ``weights_only=True`` could not read back, UserError when the disk is full.
        """
        if storage_options is not None:
            raise TypeError("AtomicCheckpointIO takes no storage_options")
        assert_plain(checkpoint)
        path = local(path)
        part = path.with_name(f"{path.name}.{os.getpid()}{PART}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            clean_parts(path.parent)
            with open(part, "wb") as f:
                torch.save(checkpoint, f)
                f.flush()
                os.fsync(f.fileno())
            digest = file_sha256(part)
            self._write_sums(path, [digest, *known_sums(path)])
            os.replace(part, path)
            sync_folder(path.parent)
            self._write_sums(path, [digest])
            drop_others(path, {entry["name"] for entry in checkpoint.get(KEY, [])})  # of what stood here before
        except (OSError, RuntimeError) as e:  # torch.save reports a full disk as a RuntimeError
            with suppress(OSError):  # a file, or a link to a disk that is gone, stands where the folder was
                part.unlink(missing_ok=True)
            place = next(folder for folder in path.absolute().parents if folder.is_dir())
            free = shutil.disk_usage(place).free >> 20
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
        path = local(path)
        path.unlink(missing_ok=True)
        path.with_name(path.name + SIDECAR).unlink(missing_ok=True)
        drop_others(path, set())
