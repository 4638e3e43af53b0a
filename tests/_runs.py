"""Run folders as training and evaluation leave them, with answers that somebody made up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hvlm.evaluation import results
from hvlm.evaluation.predictions import write_predictions
from hvlm.evaluation.scores import Prediction, score_choices

COSTS = {
    "visual_tokens": 8.0, "frames": 8.0, "latency_ms": 20.0, "decode_tokens_per_s": 100.0, "kv_bytes": 1000.0,
    "parameters": 1e6, "prefill_flops": 1e9,
}  # fmt: skip


def answers(right: Sequence[bool], variant: str = "model", blind: bool = True) -> list[Prediction]:
    """Two questions about each video, the first of task ``shape``, the second of task ``way``."""
    lines = []
    for i, is_right in enumerate(right):
        task, words = ("shape", "what is it ?") if i % 2 == 0 else ("way", "where to ?")
        asked = (f"q{i}", f"clip{i // 2}", task, 0, ("a", "b"), 0)
        lines.append(Prediction(*asked, 0 if is_right else 1, None, variant, question=words))
        if blind:
            lines.append(Prediction(*asked, i // 2 % 2, None, "blind", question=words))
    return lines


def write_run(
    folder: Path,
    right: Sequence[bool],
    *,
    seed: int = 1,
    connector: str = "mean",
    costs: dict[str, float] | None = None,
    variant: str = "model",
    made: list[Prediction] | None = None,
    **settings: Any,
) -> Path:
    """A finished run of one stage. costs: over ``COSTS``. made: other answers than ``right`` says. settings: of its
    identity, with __ for dots."""
    stage = folder / "sft"
    stage.mkdir(parents=True)
    named = {key.replace("__", "."): value for key, value in settings.items()}
    identity = {"seed": seed, "connector._target_": f"hvlm.connector.{connector}.X", "stage.steps": 20, **named}
    (stage / "identity.json").write_text(json.dumps({**identity, "start.weights_sha256": f"of {seed}"}))
    config = {"seed": seed, "connector": {"_target_": identity["connector._target_"]}, "run": folder.name}
    (stage / "config.yaml").write_text(json.dumps(config | {"benchmark": {"tries": 1}}))
    done = {"steps": 20, "seconds": 75.2, "weights_sha256": f"{folder}", "start": {"weights_sha256": None}}
    (stage / "finished.json").write_text(json.dumps({**done, "metrics": {}, "finished_at": 1.0}))
    lines = [{"step": s, "train/loss": 5 - s / 10} for s in range(20)] + [{"step": 19, "val/loss": 4.0 + seed}]
    (stage / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    predictions = answers(right, variant) if made is None else made
    write_predictions(folder / "predictions.jsonl", predictions)
    about = {"seeds": [seed], "seconds": 1.0, "command": f"python train.py connector={connector} seed={seed}"}
    records = [
        results.make(
            folder.name, row["variant"], row["metric"], row["value"],
            **{k: row[k] for k in ("stderr", "n", "chance")}, **about,
        )
        for row in score_choices(predictions)
    ]  # fmt: skip
    for metric, value in {**COSTS, **(costs or {})}.items():
        records.append(results.make(folder.name, variant, metric, value, stderr=None, n=1, chance=None, **about))
    results.write(folder / "results.json", records)
    return folder
