"""runs/<run>/<stage>/: a folder that belongs to one configuration, so that the same command finds its work again."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from hvlm.errors import UserError
from hvlm.io.files import LAST, clean_parts, verify, write_atomically

log = logging.getLogger(__name__)

# Keys that cannot change the weights of a stage: they may differ between two calls for the same run folder.
IGNORED = (
    "logger",
    "callback",
    "run",
    "resume",
    "checkpoint",
    "evaluate",
    "benchmark",
    "task",
    "ask",
    "predictions",
    "out",
    "chain",
    "trainer.num_workers",
    "trainer.cache_mb",
    "trainer.log_every",
    "trainer.val_every",
    "trainer.checkpoint_every",
    "trainer.max_time",
)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}; lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """The dotted keys and values that can change a result."""
    return {k: v for k, v in flatten(config).items() if not any(k == i or k.startswith(f"{i}.") for i in IGNORED)}


def config_id(*configs: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that stand for everything in these configurations that can change a result."""
    text = json.dumps([identity(c) for c in configs], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def default_run(stages: Mapping[str, Mapping[str, Any]], overrides: Sequence[str]) -> str:
    """``<experiment or stage>-<id>`` for the stages (label: configuration) of a command that gives no ``run=``."""
    experiments = [o.split("=", 1)[1] for o in overrides if o.split("=", 1)[0].lstrip("+") == "experiment"]
    name = experiments[-1].replace("/", "-") if experiments else "-".join(stages)
    return f"{name}-{config_id(*stages.values())}"


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """``key: old -> new`` for every key that can change a result and differs."""
    before, after = identity(old), identity(new)
    keys = [k for k in {**before, **after} if before.get(k, "absent") != after.get(k, "absent")]
    return [f"{k}: {before.get(k, 'absent')} -> {after.get(k, 'absent')}" for k in keys]


class RunDir:
    """The folder of one stage of one run.

    run: name, may hold ``/`` (a job of a sweep). label: the stage's name in its chain. root: where runs stand.
    """

    def __init__(self, run: str, label: str, root: str | Path = "runs") -> None:
        for name in (run, label):
            parts = PurePosixPath(name).parts
            if not parts or name.startswith("/") or ".." in parts or "\0" in name:
                raise UserError(f"run={name}: expected a folder name below {root}/, without '..' or a leading '/'")
        self.run_path = Path(root) / run
        self.path = self.run_path / label
        self.checkpoints = self.path / "checkpoints"
        self.last = self.checkpoints / LAST
        self.config_file = self.path / "config.yaml"
        self.finished_file = self.path / "finished.json"

    def prepare(self, config: Mapping[str, Any]) -> None:
        """Creates the folder and writes config.yaml. Raises ``UserError`` when the folder belongs to another
        configuration, with the keys that differ."""
        if self.config_file.exists():
            old = yaml.safe_load(self.config_file.read_text())
            changed = differences(old, json.loads(json.dumps(config)))
            if changed:
                more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
                raise UserError(
                    f"{self.path} was made with other settings ({'; '.join(changed[:5])}{more}); "
                    "give this run another name with run=..., or the old settings"
                )
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        clean_parts(self.checkpoints)
        text = yaml.safe_dump(json.loads(json.dumps(config)), sort_keys=False, allow_unicode=True)
        write_atomically(self.config_file, lambda f: f.write(text.encode()))

    def is_finished(self) -> bool:
        """Whether the stage ran to its end and its weights are still there."""
        return self.finished_file.exists() and self.last.exists()

    def finished(self) -> dict[str, Any]:
        """What ``finish`` wrote."""
        return json.loads(self.finished_file.read_text())

    def finish(self, weights_sha256: str, steps: int, took: Mapping[str, float]) -> None:
        """Marks the stage as done; the next call of the same command skips it.

        took: steps_here (of this process: fewer than ``steps`` after a resume), and their seconds and cpu_seconds (of
        the training process, all threads).
        """
        record = {"weights_sha256": weights_sha256, "steps": steps, **took, "finished_at": time.time()}
        write_atomically(self.finished_file, lambda f: f.write((json.dumps(record, indent=1) + "\n").encode()))

    def latest_checkpoint(self) -> Path | None:
        """The newest checkpoint that is what was written; damaged ones are named and passed over."""
        files = sorted(self.checkpoints.glob("*.ckpt"), key=lambda p: p.stat().st_mtime_ns, reverse=True)
        for path in files:
            problem = verify(path)
            if problem is None:
                return path
            log.warning(f"{path} skipped: {problem}")
        return None

    def resume_from(self, resume: str) -> Path | None:
        """The checkpoint to continue from under ``resume=auto|must|never``, with one line that says so."""
        if resume == "never":  # what was done before must not be taken for this run's, should it be stopped
            self.finished_file.unlink(missing_ok=True)
            for path in self.checkpoints.glob("*.ckpt*"):
                path.unlink()
            return None
        path = self.latest_checkpoint()
        if path is None and resume == "must":
            raise UserError(f"resume=must: no usable checkpoint in {self.checkpoints}; use resume=auto to start anew")
        log.info(f"{self.path}: starts anew" if path is None else f"{self.path}: continues from {path.name}")
        return path
