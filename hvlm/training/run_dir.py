"""runs/<run>/<stage>/: a folder that belongs to one configuration, so that the same command finds its work again."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from hvlm.errors import UserError
from hvlm.io.checkpoint import furthest_checkpoint, stored_step
from hvlm.io.files import FINISHED, LAST, clean_parts, write_atomically
from hvlm.io.shards import clean_pieces
from hvlm.precision import choose_precision
from hvlm.training.identity import counts, differences, identity

log = logging.getLogger(__name__)

IDENTITY = "identity.json"


class RunDir:
    """The folder of one stage of one run.

    run: name, may hold ``/`` (a job of a sweep). label: the stage's name in its chain. root: where runs stand.
    writes: whether this process makes, changes and removes files here; of several processes one does.
    """

    def __init__(self, run: str, label: str, root: str | Path = "runs", writes: bool = True) -> None:
        for name in (run, label):
            parts = PurePosixPath(name).parts
            if not parts or name.startswith("/") or ".." in parts or "\0" in name:
                raise UserError(f"run={name}: expected a folder name below {root}/, without '..' or a leading '/'")
        self.run_path = Path(root) / run
        self.path = self.run_path / label
        self.checkpoints = self.path / "checkpoints"
        self.last = self.checkpoints / LAST
        self.config_file = self.path / "config.yaml"
        self.identity_file = self.path / IDENTITY
        self.finished_file = self.path / FINISHED
        self.writes = writes

    def prepare(
        self,
        config: Mapping[str, Any],
        start: str | None = None,
        data: str | None = None,
    ) -> None:
        """Make the folder and write config.yaml and identity.json into it.

        A folder belongs to what its first saved step was made with; before that it can be had for anything, and with
        ``resume=never``, which begins by removing all steps, for other weights and data to begin with.

        Args:
            config: the stage's resolved configuration.
            start: ``weights_hash`` of the weights that the stage starts from, None for none.
            data: stands for the content of the training data; None where it is not known, which is then not compared.

        Raises:
            UserError: the folder belongs to other settings, another start or other data; the message names them.
        """
        config = json.loads(json.dumps(config))
        new = identity(config) | {"start.weights_sha256": start}
        if "trainer.precision" in new:  # "auto" counts as the format that it stands for on this machine
            asked = config["trainer"]
            new["trainer.precision"], _ = choose_precision(asked["precision"], asked.get("accelerator", "cpu"))
        if data is not None:
            new["data.sha256"] = data
        if self._has_steps():
            self._compare(new, config.get("resume"))
            new = self._identity() | new
        if not self.writes:
            return
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        clean_parts(self.checkpoints)
        clean_pieces(self.checkpoints)
        self._write(self.identity_file, json.dumps(new, indent=1) + "\n")
        self._write(self.config_file, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))

    def _compare(self, new: Mapping[str, Any], resume: str | None) -> None:
        old = self._identity()
        anew = resume == "never"
        if not old:
            if anew:
                return
            raise UserError(
                f"{self.path} was made by an older version, which did not write down what it started from; give this "
                "run another name with run=..., or train it again with resume=never"
            )
        if anew or "data.sha256" not in new:
            old = {k: v for k, v in old.items() if k != "data.sha256" and not (anew and k.startswith("start."))}
        if anew:
            new = {k: v for k, v in new.items() if k != "data.sha256" and not k.startswith("start.")}
        old = {k: v for k, v in old.items() if counts(k)}  # written when more was thought to count
        changed = differences(old, new)
        if not changed:
            return
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        what = "settings, start or data" if any(c.startswith(("start.", "data.")) for c in changed) else "settings"
        again = ", or train it again with resume=never" if what != "settings" else ", or the old settings"
        raise UserError(
            f"{self.path} was made with other {what} ({'; '.join(changed[:5])}{more}); give this run another name with "
            f"run=...{again}"
        )

    def _has_steps(self) -> bool:
        return self.finished_file.exists() or any(self.checkpoints.glob("*.ckpt")) or any(self.path.glob("hpc_ckpt*"))

    def _identity(self) -> dict[str, Any]:
        return json.loads(self.identity_file.read_text(encoding="utf-8")) if self.identity_file.exists() else {}

    def _write(self, path: Path, text: str) -> None:
        write_atomically(path, lambda f: f.write(text.encode()))

    def is_finished(self, steps: int = 0, verified: bool = True) -> bool:
        """Whether the stage ran to its end, of at least ``steps``, and the weights of its end are still there.

        ``verified``: whole, too, which needs the file to be read; a stage that nothing starts from can do without.
        """
        if not self.finished_file.exists() or self.finished()["steps"] < steps:
            return False
        if not verified:
            return self.last.exists()
        path = furthest_checkpoint(self.checkpoints)
        return path is not None and stored_step(path) >= self.finished()["steps"]

    def finished(self) -> dict[str, Any]:
        """What ``finish`` wrote."""
        return json.loads(self.finished_file.read_text())

    def finish(
        self, weights_sha256: str, steps: int, took: Mapping[str, float], metrics: Mapping[str, float] | None = None
    ) -> None:
        """Marks the stage as done; the next call of the same command skips it.

        took: steps_here (of this process: fewer than ``steps`` after a resume), and their seconds and cpu_seconds (of
        the training process, all threads). metrics: of the validation at the end.
        """
        start = {"weights_sha256": self._identity().get("start.weights_sha256")}
        record = {"weights_sha256": weights_sha256, "start": start, "steps": steps, **took}
        record |= {"metrics": dict(metrics or {}), "finished_at": time.time()}
        self._write(self.finished_file, json.dumps(record, indent=1) + "\n")

    def latest_checkpoint(self) -> Path | None:
        """The checkpoint that came furthest and is what was written; damaged ones are named and passed over."""
        return furthest_checkpoint(self.checkpoints)

    def resume_from(self, resume: str) -> Path | None:
        """The checkpoint to continue from under ``resume=auto|must|never``, with one line that says so."""
        if self.writes:
            self._take_in_foreign()
        if resume == "never":  # what was done before must not be taken for this run's, should it be stopped
            if self.writes:
                self.finished_file.unlink(missing_ok=True)
                for path in self.checkpoints.glob("*.ckpt*"):
                    if path.is_dir():
                        shutil.rmtree(path)
                    else:
                        path.unlink(missing_ok=True)
            return None
        path = self.latest_checkpoint()
        if path is None and resume == "must":
            raise UserError(f"resume=must: no usable checkpoint in {self.checkpoints}; use resume=auto to start anew")
        log.info(f"{self.path}: starts anew" if path is None else f"{self.path}: continues from {path.name}")
        return path

    def _take_in_foreign(self) -> None:
        """Checkpoints that the trainer wrote by itself when SLURM warned an older version join the others.

        Left where they are, the trainer would prefer them to whatever it is given.
        """
        for path in self.path.glob("hpc_ckpt*"):
            path.replace(self.checkpoints / path.name)
