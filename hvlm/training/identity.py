"""What can change a stage's weights, out of all that a configuration says: the name and the owner of a run's folder.

No torch here: a sweep's own process names its jobs without it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Keys that do not decide what a stage's weights become (beyond the rounding of sums): they may differ between two calls
# for the same run folder.
IGNORED = (
    "logger",
    "callback",
    "run",
    "resume",
    "checkpoint",
    "evaluate",
    "processes",
    "benchmark",
    "task",
    "ask",
    "predictions",
    "adapters",
    "out",
    "packages",  # what a run takes from a package, its rooms' _target_ say, and config_dir's files are in the settings
    "config_dir",
    "chain",
    "dataset.generate_workers",
    "dataset.decode_timeout",
    "dataset.allow_inexact_resume",
    "language.gradient_checkpointing",
    "language.pack",
    "attention.gradient_checkpointing",
    "vision.gradient_checkpointing",
    "vision.frames_at_once",
    "vision.cache_gb",
    "head.logits_mb",
    "trainer.accelerator",
    "trainer.accumulate",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.checkpoint",
    "trainer.threads",
    "trainer.deterministic",
    "trainer.num_workers",
    "trainer.cache_mb",
    "trainer.log_every",
    "trainer.val_every",
    "trainer.limit_val_batches",
    "trainer.detect_anomaly",
    "trainer.max_skipped",
    "trainer.checkpoint_every",
    "trainer.max_time",
    "trainer.max_steps",
    "trainer.compile",
    "trainer.checkpoint_activations",
    "trainer.profile",
)
# Keys that came later, with the value that stands for how it was before: a folder of then is still its owner's.
LATER = {
    "trainer.gradient_clip_algorithm": "norm",
    "trainer.overfit_batches": None,
    "trainer.spike": 100.0,
    "dataset.keys": 4,
    "dataset.turns": 6,
    "dataset.wording": "both",
    "domain.prompt": None,
    "dataset.min_seconds": 30.0,
    "dataset.max_seconds": 120.0,
    "dataset.batch": None,
}
# What null is where it came later: as this value was before, which the usual configuration said in so many words.
NULL_IS = {
    "domain.mixture": {"general": 1.0, "sports": 1.0, "tutorials": 1.0, "news": 1.0},
    "stage.interleave": 0.14,
}
# Where things lie. What lies there counts instead, as ``start`` and ``data`` of ``RunDir.prepare``.
PLACES = ("init_from", "dataset.path", "dataset.root", "dataset.haystack", "dataset.paths")


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
    """The dotted keys and values that can change a result, places (``PLACES``) left out."""
    flat = _counted(config)
    if flat.get("dataset.access") == "stream":  # nobody knows what is in there but by its name
        return {k: v for k, v in flat.items() if not is_place(k) or k == "dataset.path"}
    return {k: v for k, v in flat.items() if not is_place(k)}


def is_place(key: str) -> bool:
    """Whether a dotted key says where something lies."""
    return key in PLACES or key.startswith("dataset.paths.")


def _counted(config: Mapping[str, Any]) -> dict[str, Any]:
    flat = flatten({k: NULL_IS[k] if v is None and k in NULL_IS else v for k, v in flatten(config).items()})
    flat = {k: v for k, v in flat.items() if k not in LATER or v != LATER[k]}
    return {k: v for k, v in flat.items() if counts(k)}


def counts(key: str) -> bool:
    """Whether a dotted key can change a result."""
    return not any(key == ignored or key.startswith(f"{ignored}.") for ignored in IGNORED)


def config_id(*configs: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that stand for everything in these configurations that can change a result."""

    def named(config: Mapping[str, Any]) -> dict[str, Any]:
        flat = _counted(config)
        if "dataset.root" in flat and flat["dataset.root"] is None:
            flat["dataset.root"] = "data"  # what it was called before: a run's name does not depend on the machine
        # A run may go on in other parts, but what is not named begins anew, as it always did.
        parts = {k: v for k, v in flatten(config).items() if k == "trainer.accumulate"}
        return (
            flat
            | parts
            | {k: str(Path(flat[k])) for k in PLACES if isinstance(flat.get(k), str) and "://" not in flat[k]}
        )

    text = json.dumps([named(c) for c in configs], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def default_run(stages: Mapping[str, Mapping[str, Any]], overrides: Sequence[str]) -> str:
    """``<experiment or stage>-<id>`` for the stages (label: configuration) of a command that gives no ``run=``."""
    experiments = [o.split("=", 1)[1] for o in overrides if o.split("=", 1)[0].lstrip("+") == "experiment"]
    name = experiments[-1].replace("/", "-") if experiments else "-".join(stages)
    return f"{name}-{config_id(*stages.values())}"


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """``key: old -> new`` for every key of two identities that differs."""
    keys = [k for k in {**before, **after} if before.get(k, "absent") != after.get(k, "absent")]
    return [f"{k}: {_short(before.get(k, 'absent'))} -> {_short(after.get(k, 'absent'))}" for k in keys]


def _short(value: Any) -> Any:
    return value[:12] if isinstance(value, str) and len(value) == 64 else value
