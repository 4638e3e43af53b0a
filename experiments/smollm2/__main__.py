"""How far does the demo's chain get with the real SmolLM2-135M-Instruct in less than 20 minutes on two cores?

    make weights && python -m experiments.smollm2

Trains conf/experiment/smollm2.yaml into runs/smollm2 (the same command continues an interrupted run) and writes
results.json beside this file: the benchmark, and for each stage its speed, its first and its last losses.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from hvlm import results
from hvlm.config import plan
from hvlm.metrics import read_lines

HERE = Path(__file__).parent
RUN = Path("runs/smollm2")
COMMAND = "python -m experiments.smollm2"
ENDS = 3  # logged losses at either end of a stage that are averaged


def main() -> None:
    subprocess.run([sys.executable, "train.py", "experiment=smollm2", f"run={RUN.name}"], check=True)
    records = [r | {"question": "smollm2", "command": COMMAND} for r in results.read(RUN / "results.json")]
    for label in plan(["experiment=smollm2"]):
        records += of_stage(label)
    results.write(HERE / "results.json", records)
    for r in records:
        if r["metric"] in ("samples_per_s", "loss_first", "loss_last", "loss_val") or r["metric"].startswith(
            "accuracy"
        ):
            print(f"{r.get('stage', r['variant']):12s} {r['metric']:28s} {r['value']:.4g}")


def of_stage(label: str) -> Iterator[results.Record]:
    lines = read_lines(RUN / label)
    done = json.loads((RUN / label / "finished.json").read_text())
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    clips = done["steps_here"] * plan(["experiment=smollm2"])[label]["stage"]["batch_size"]
    figures = {"samples_per_s": (clips / done["seconds"], done["steps_here"])}
    if losses:  # a stage shorter than trainer.log_every has none
        figures["loss_first"] = statistics.fmean(losses[:ENDS]), min(ENDS, len(losses))
        figures["loss_last"] = statistics.fmean(losses[-ENDS:]), min(ENDS, len(losses))
    figures["loss_val"] = [line["val/loss"] for line in lines if "val/loss" in line][-1], done["steps_here"]
    for metric, (value, n) in figures.items():
        yield results.make("smollm2", "coarse_fine", metric, value, stderr=None, n=n, chance=None, seeds=[1],
                           seconds=done["seconds"], command=COMMAND, columns={"stage": label})  # fmt: skip


if __name__ == "__main__":
    main()
