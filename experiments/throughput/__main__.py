"""How many samples does hvlm train in a processor second, and in how much memory, beside a plain loop?

    python -m experiments.throughput [--sizes small medium large] [--works question questions frozen captions]
        [--precisions float32 bfloat16] [--ways plain hvlm ...] [--repeats 3]

The plain loop (``plain.py``) is transformers' models, a ``DataLoader`` and AdamW, with the weights, rows, videos and
decoder of hvlm's run (``hvlm_run.py``: ``train.py`` with a meter). ``first_loss`` is how far its first loss is from
hvlm's, relative to it. Sizes, works and ways stand in ``cases.py``. Each way in a process of its own, in turns, one
thread, reading included; figures are medians over the repeats.

samples_per_cpu_s: answers or captions that are learned. ratio: of it, to the plain loop of the same round. peak_mb: of
the process, above what stood before a model was built; peak_ratio: of it. flops_per_sample: of forward and backward,
without what checkpoints compute again. mfu: operations a second by the fastest matrix product in that precision. data:
the share of a step that waits for a batch (``trainer.profile``). ``before`` is hvlm at the commit ``cases.BEFORE``, out
of git.

Adds to results.json beside this file.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import torch

from experiments.started import as_started
from experiments.throughput import cases
from experiments.throughput.hvlm_run import START
from hvlm.evaluation import results
from hvlm.training.profile import matmul_peak

HERE, ROOT = Path(__file__).parent, Path(__file__).parent.parent.parent
COMMAND = "python -m experiments.throughput"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=cases.SIZES, default=list(cases.SIZES))
    parser.add_argument("--works", nargs="+", choices=cases.WORKS, default=["question", "questions"])
    parser.add_argument("--precisions", nargs="+", choices=cases.PRECISIONS, default=["float32"])
    parser.add_argument("--ways", nargs="+", choices=cases.WAYS, default=["plain", "before", "hvlm", "hvlm_profile"])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if "plain" not in options.ways:
        parser.error("--ways: plain is what the others are compared with")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if "before" in options.ways:
            unpack(cases.BEFORE, folder / "before")
        if "captions" in options.works:
            (folder / "captions").mkdir()
            cases.make_captions(folder / "captions")
        for size, work, precision in itertools.product(options.sizes, options.works, options.precisions):
            records = compare(folder, size, work, precision, options.ways, options.repeats)
            results.update(HERE / "results.json", records)


def unpack(commit: str, folder: Path) -> None:
    """hvlm and its settings as they were."""
    archive = subprocess.run(["git", "archive", commit, "hvlm", "conf"], cwd=ROOT, check=True, capture_output=True)
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")


def compare(folder: Path, size: str, work: str, precision: str, ways: list[str], repeats: int) -> list[results.Record]:
    """All ways in turns, after a run that leaves the weights and rows for the plain loop."""
    start = folder / "start"
    run(folder, "hvlm", size, work, precision, start, {START: "1"})
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    peaks = []
    torch.set_num_threads(1)
    for i in range(repeats):
        peaks.append(matmul_peak(torch.device("cpu"), getattr(torch, precision)))
        for way in ways[:: 1 if i % 2 else -1]:
            found[way].append(run(folder, way, size, work, precision, folder / f"{way}"))
    records = []
    command = as_started(COMMAND)
    for way, runs in found.items():
        values = summary(runs, found["plain"], found.get("hvlm_profile", []), max(peaks), way)
        print(f"{size} {work} {precision} {way:28s}" + "  ".join(f"{k} {v:.4g}" for k, v in values.items()), flush=True)
        columns = {"size": size, "work": work, "dtype": precision}
        seconds = sum(r["wall_s"] for r in runs)
        records += [
            results.make("throughput", way, metric, value, stderr=None, n=runs[0]["samples"] * repeats, chance=None,
                         seeds=[1], seconds=seconds, command=command, columns=columns)
            for metric, value in values.items()
        ]  # fmt: skip
    return records


def run(
    folder: Path, way: str, size: str, work: str, precision: str, own: Path, more: dict[str, str] | None = None
) -> dict[str, Any]:
    """One way, in a process of its own and a folder that is new; what it measured."""
    whose, extra = cases.WAYS[way]
    shutil.rmtree(own / "runs", ignore_errors=True)
    (own / "measured.json").unlink(missing_ok=True)
    own.mkdir(exist_ok=True)
    if whose == "plain":
        data = folder / cases.data_of(work)
        shards = data if work == "captions" else next(data.glob("needles-easy-*"))
        command = ["plain", str(own), str(folder / "start" / "start.pt"), precision, str(shards), *extra]
    else:
        command = ["hvlm_run", str(own), *cases.words(size, work, precision, folder), *extra]
    tree = [str(folder / "before")] if whose == "before" else []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*tree, str(ROOT)]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", f"experiments.throughput.{command[0]}", *command[1:]],
        env=environment | (more or {}), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{way} ({size}, {work}, {precision}) ended with {done.returncode}:\n{done.stderr[-3000:]}")
    measured = json.loads((own / "measured.json").read_text(encoding="utf-8"))
    for profile in own.glob("runs/measured/*/profile.json"):
        told = json.loads(profile.read_text(encoding="utf-8"))
        measured["flops"] = told["flops_per_step"]
        measured["data"] = told["step"]["data"]["share"]
    return measured


def summary(
    runs: list[dict[str, Any]], plain: list[dict[str, Any]], profiled: list[dict[str, Any]], peak: float, way: str
) -> dict[str, float]:
    """The metrics of one way; see above."""

    def speed(run: dict[str, Any]) -> float:
        return run["samples"] / run["cpu_s"]

    median = statistics.median
    values = {
        "samples_per_cpu_s": median(map(speed, runs)),
        "ratio": median(speed(a) / speed(b) for a, b in zip(runs, plain, strict=True)),
        "peak_mb": median(run["peak_mb"] for run in runs),
        "peak_ratio": median(a["peak_mb"] / b["peak_mb"] for a, b in zip(runs, plain, strict=True)),
        "first_loss": max(abs(a["losses"][0] / b["losses"][0] - 1) for a, b in zip(runs, plain, strict=True)),
    }
    flops = runs[0]["flops"] or (profiled[0]["flops"] if profiled and way in ("hvlm", "before") else None)
    if flops:
        steps = len(runs[0]["losses"]) - cases.WARM
        each = runs[0]["samples"] / steps
        values |= {"flops_per_sample": flops / each, "mfu": flops / each * values["samples_per_cpu_s"] / peak}
    if "data" in runs[0]:
        values["data"] = median(run["data"] for run in runs)
    return values


if __name__ == "__main__":
    main()
