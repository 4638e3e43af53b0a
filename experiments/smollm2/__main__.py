"""How far does the demo's chain get with the real SmolLM2-135M-Instruct in 20 minutes on two cores?

    make weights && python -m experiments.smollm2 [--literal] [--collect]

Without arguments: conf/experiment/smollm2.yaml, a chain cut to less than 20 minutes, with rates that suit the language
model (runs/smollm2). --literal: ``train.py experiment=demo language=smollm2_135m``, the chain that suits a small model
from nothing, stopped after 20 minutes wherever it is (runs/smollm2_literal). The same command continues an interrupted
run. Adds to results.json beside this file: the benchmark, and for each stage its speed, its first and its last losses.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from hvlm.config.compose import plan
from hvlm.evaluation import results
from hvlm.io.files import read_metrics

HERE = Path(__file__).parent
RUN, LITERAL = Path("runs/smollm2"), Path("runs/smollm2_literal")
CHAIN = {RUN: ["experiment=smollm2"], LITERAL: ["experiment=demo", "language=smollm2_135m"]}
COMMAND = "python -m experiments.smollm2"
SECONDS, CLIPS = 20 * 60, 50
ENDS = 3  # logged losses at either end of a stage that are averaged


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--literal", action="store_true", help="the demo's own chain, for 20 minutes")
    parser.add_argument("--collect", action="store_true", help="train nothing: write down what is there")
    options = parser.parse_args()
    run, command = (LITERAL, f"{COMMAND} --literal") if options.literal else (RUN, COMMAND)
    if not options.collect:
        train(run, SECONDS if options.literal else None)
    found = results.read(asked(run) if options.literal else run / "results.json")
    chain = {"chain": "demo" if options.literal else "smollm2"}
    records = [r | chain | {"question": "smollm2", "command": command} for r in found]
    for label in plan(CHAIN[run]):
        if (run / label / "metrics.jsonl").exists():
            records += of_stage(run, label, command, chain)
    results.update(HERE / "results.json", records)
    for r in records:
        if r["metric"] in ("samples_per_s", "loss_first", "loss_last", "loss_val") or r["metric"].startswith(
            "accuracy"
        ):
            print(f"{r.get('stage', r['variant']):12s} {r['metric']:28s} {r['value']:.4g}")


def train(run: Path, seconds: float | None) -> None:
    """The chain; after ``seconds`` it is asked to stop, which saves where it is."""
    process = subprocess.Popen([sys.executable, "train.py", *CHAIN[run], f"run={run.name}"])
    try:
        if process.wait(seconds):
            raise SystemExit(process.returncode)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait()


def asked(run: Path) -> Path:
    """Results of the newest checkpoint, whether its stage is finished or not."""
    newest = max(run.glob("*/checkpoints/*.ckpt"), key=lambda file: file.stat().st_mtime)
    out = newest.parents[1] / "eval"
    subprocess.run([sys.executable, "eval.py", f"checkpoint={newest}", f"out={out}", f"benchmark.limit={CLIPS}"],
                   check=True)  # fmt: skip
    return out / "results.json"


def of_stage(run: Path, label: str, command: str, chain: dict[str, str]) -> Iterator[results.Record]:
    lines = read_metrics(run / label)
    steps, seconds = max(line["step"] for line in lines), 0.0
    speeds = [line["samples_per_s"] for line in lines if "samples_per_s" in line]
    figures = {}
    if (run / label / "finished.json").exists():
        done = json.loads((run / label / "finished.json").read_text())
        steps, seconds = done["steps_here"], done["seconds"]
        speeds = [steps * plan(CHAIN[run])[label]["stage"]["batch_size"] / seconds]
    if speeds:
        figures["samples_per_s"] = statistics.median(speeds), steps
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    if losses:  # a stage shorter than trainer.log_every has none
        figures["loss_first"] = statistics.fmean(losses[:ENDS]), min(ENDS, len(losses))
        figures["loss_last"] = statistics.fmean(losses[-ENDS:]), min(ENDS, len(losses))
    held_out = [line["val/loss"] for line in lines if "val/loss" in line]
    if held_out:
        figures["loss_val"] = held_out[-1], steps
    for metric, (value, n) in figures.items():
        yield results.make("smollm2", "coarse_fine", metric, value, stderr=None, n=n, chance=None, seeds=[1],
                           seconds=seconds, command=command, columns={"stage": label, **chain})  # fmt: skip


if __name__ == "__main__":
    main()
