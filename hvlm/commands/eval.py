"""Evaluate a checkpoint, ask it, look into it, or export it.

``hvlm eval checkpoint=runs/demo benchmark=needles``, in a clone ``python eval.py checkpoint=runs/demo ...``.
The model is rebuilt from the checkpoint (a file or a run folder) alone; what the command line says comes on top, e.g.
``dataset.set=hard``. ``task=score predictions=FILE`` scores a file of predictions, whoever made them, and so does
``predictions=FILE`` without a checkpoint; ``task=generate`` lets the model write its own answers; ``task=ask
ask.video=FILE ask.question=...`` watches a video frame by frame; ``task=look`` draws where it looks and what its merger
did; ``task=export`` writes a Hugging Face folder, ``task=gguf`` its language model for llama.cpp, ``task=release``
fVLM's own layout.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from hvlm.cli import main as command
from hvlm.config.check import check_files
from hvlm.config.compose import compose
from hvlm.config.overlay import of_the_command, overlay
from hvlm.config.words import key_of
from hvlm.errors import UserError
from hvlm.io.files import folder_for
from hvlm.io.lock import locked

log = logging.getLogger(__name__)

JOURNALS = ("benchmark", "generate", "domains")  # tasks that keep one in their folder, which is one process's


def configuration(overrides: list[str]) -> dict[str, Any]:
    """What the checkpoint was trained with, and what the command line says in its place."""
    given = of_the_command(overrides)
    if given["task"] == "score":
        return compose(overrides)
    if (
        given["checkpoint"] is None
        and given["predictions"] is not None
        and not any(key_of(o) == "task" for o in overrides)
    ):
        return compose([*overrides, "task=score"])  # without a model there is nothing else to do with predictions
    if given["adapters"] is not None:
        return _of_specialists(given, overrides)
    if given["task"] == "gather":
        raise UserError("task=gather needs adapters=[...]: runs of train.py domain=... adapter=... init_from=BASE")
    if given["checkpoint"] is None:
        raise UserError("checkpoint= is missing: name a checkpoint file or a run folder, e.g. checkpoint=runs/demo")
    check_files(given)
    from hvlm.rebuild import stored_config  # seconds of imports, which a missing file does without

    cfg = overlay(stored_config(given["checkpoint"]), overrides, given["checkpoint"])
    if cfg["task"] in ("benchmark", "generate", "look", "cost", "speed"):
        check_files(cfg)  # of the benchmark, which may be the checkpoint's
    return cfg


def _of_specialists(given: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """What several specialists of one base make together; ``checkpoint`` is the base."""
    if not given["adapters"]:
        raise UserError("adapters=[] is empty: name runs of train.py domain=... adapter=... init_from=BASE")
    from hvlm.evaluation import specialists

    runs = specialists.read_runs(given["adapters"])
    base = specialists.base_of(runs, given["checkpoint"])
    cfg = overlay(specialists.configuration(runs), overrides, str(runs[0].run))
    return {**cfg, "checkpoint": str(base)}


@command(configure=configuration, folder="out")
def evaluate(cfg: dict[str, Any], overrides: list[str]) -> Any:
    """Returns the records or lines that it wrote (task=export, gguf, release, gather: the path)."""
    if cfg["task"] == "score":
        return score(cfg)
    return ask(cfg, by_domain=cfg["domain"]["name"] == "all" and any(key_of(o) == "domain" for o in overrides))


def score(cfg: dict[str, Any]) -> list[dict[str, Any]]:
    """Scores a file of predictions; no model and no videos are needed."""
    from hvlm import assembly
    from hvlm.evaluation.evaluate import RESULTS, score_predictions
    from hvlm.evaluation.heads import LINES, score_lines
    from hvlm.evaluation.report import table
    from hvlm.evaluation.results import Label

    if cfg["predictions"] is None:
        raise UserError("task=score needs predictions=FILE, a JSONL that an evaluation or somebody else wrote")
    source = Path(cfg["predictions"])
    out = Path(cfg["out"]) if cfg["out"] else source.parent / "score"
    is_file = out.suffix == ".json"
    benchmark = assembly.room(cfg["benchmark"])
    label = Label(out.stem if is_file else out.name, "predictions", cfg["seed"])
    with folder_for(out.parent if is_file else out, "out"):
        if benchmark.asks and source.name == LINES:
            raise UserError(
                f"predictions={source}: lines of a head that writes no text; name it and its labels, "
                "head=detect head.labels=[a,b]"
            )
        if benchmark.asks:
            records = score_predictions(source, label, out, benchmark)
        else:
            records = score_lines(source, assembly.head_alone(cfg), label, out)
    log.info("\n".join(table(records)))
    log.info(f"results: {out if is_file else out / RESULTS}")
    return records


def ask(cfg: dict[str, Any], by_domain: bool = False) -> Any:
    """Rebuilds the model and lets it do the task: choose, write, watch, or be exported. by_domain: the benchmark is
    asked of every specialist."""
    from hvlm import tasks
    from hvlm.io.checkpoint import find_checkpoint
    from hvlm.training.ranks import refuse_left_over_rank

    refuse_left_over_rank({"devices": 1, "num_nodes": 1})  # an evaluation is one process
    path, task = Path(cfg["checkpoint"]), cfg["task"]
    folder = "eval" if task in ("benchmark", "generate", "ask") else task
    if by_domain and task == "benchmark":
        folder = task = "domains"
    out = Path(cfg["out"]) if cfg["out"] else (path if path.is_dir() else path.parent) / folder
    work = {
        "benchmark": tasks.run_benchmark,
        "cost": tasks.run_cost,
        "speed": tasks.run_speed,
        "generate": tasks.write_answers,
        "ask": tasks.watch,
        "look": tasks.look,
        "export": tasks.export,
        "gguf": tasks.gguf,
        "release": tasks.release,
        "gather": tasks.gather,
        "domains": tasks.run_domains,
    }
    file = find_checkpoint(path)
    if file != path:
        log.info(f"checkpoint={path}: {file}")
    with folder_for(out.parent if task in ("gguf", "release") and out.suffix else out, "out"):
        with locked(out, f"out={out}") if task in JOURNALS else nullcontext():
            return work[task](file, cfg, out)


main = evaluate.main
