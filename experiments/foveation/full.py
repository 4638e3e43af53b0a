"""How far does the published size get in an hour on two cores? ViT-S/14 + SmolLM2-135M on needles at 224 pixels.

    make weights && python -m experiments.foveation.full

Trains conf/experiment/full_size.yaml into runs/full_size (the same command continues an interrupted run) and adds to
results.json beside this file, as the variant ``full_size``: the benchmark, and each stage's seconds and last losses.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from hvlm.config.compose import plan
from hvlm.evaluation import results
from hvlm.io.files import read_metrics

HERE = Path(__file__).parent
RUN = Path("runs/full_size")
COMMAND = "python -m experiments.foveation.full"
VARIANT = "full_size"


def main() -> None:
    subprocess.run([sys.executable, "train.py", "experiment=full_size", f"run={RUN.name}"], check=True)
    names = {"coarse_fine": VARIANT, "blind": f"{VARIANT}_blind"}
    records = [
        r | {"question": "foveation", "variant": names[r["variant"]], "command": COMMAND, "set": "easy"}
        for r in results.read(RUN / "results.json")
    ]
    for label in plan(["experiment=full_size"]):
        records += of_stage(label)
    results.update(HERE / "results.json", records)
    for r in records:
        if not r["metric"].startswith("accuracy_4of4"):
            print(f"{r.get('stage', r['variant']):16s} {r['metric']:24s} {r['value']:.4g}")


def of_stage(label: str) -> Iterator[results.Record]:
    done = json.loads((RUN / label / "finished.json").read_text())
    last = [line for line in read_metrics(RUN / label) if "val/loss" in line][-1]
    figures = {"train_seconds": done["seconds"]} | {k: v for k, v in last.items() if k.startswith("val/")}
    for metric, value in figures.items():
        yield results.make("foveation", VARIANT, metric, value, stderr=None, n=done["steps_here"], chance=None,
                           seeds=[1], seconds=done["seconds"], command=COMMAND, columns={"stage": label})  # fmt: skip


if __name__ == "__main__":
    main()
