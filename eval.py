"""Evaluate: ``python eval.py checkpoint=runs/demo benchmark=needles``.

The model is rebuilt from the checkpoint (a file or a run folder) alone; what the command line says comes on top, e.g.
``dataset.set=hard``. ``task=score predictions=FILE`` scores a file of predictions, whoever made them; ``task=generate``
lets the model write its own answers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from hvlm.config import main
from hvlm.errors import UserError

TASKS = ("benchmark", "score", "generate")


@main
def evaluate(cfg: DictConfig, overrides: list[str]) -> list[dict[str, Any]]:
    """Returns the records (task=generate: the lines) that it wrote."""
    given = OmegaConf.to_container(cfg, resolve=True)
    if cfg.task not in TASKS:
        raise UserError(f"task={cfg.task}: expected one of {', '.join(TASKS)}")
    if cfg.task == "score":
        from hvlm.evaluate import score_predictions

        if cfg.predictions is None:
            raise UserError("task=score needs predictions=FILE, a JSONL that eval.py or somebody else wrote")
        source = Path(cfg.predictions)
        out = Path(cfg.out) if cfg.out else source.parent
        return score_predictions(source, out, question=out.name, variant="predictions", seed=cfg.seed)

    from hvlm.rebuild import overlay, run_benchmark, stored_config, write_answers

    if cfg.checkpoint is None:
        raise UserError("checkpoint= is missing: name a checkpoint file or a run folder, e.g. checkpoint=runs/demo")
    path = Path(cfg.checkpoint)
    merged = overlay(stored_config(path), given, overrides)
    out = Path(cfg.out) if cfg.out else (path if path.is_dir() else path.parent) / "eval"
    work = run_benchmark if cfg.task == "benchmark" else write_answers
    return work(path, merged, out)


if __name__ == "__main__":
    evaluate()
