"""One base, many specialists: what is an adapter for a domain worth, and does a router find it?

    python -m experiments.domains [--seeds 1 2 3] [--collect]

The base (conf/experiment/domains.yaml) learns easy needles of every domain. Each specialist
(conf/experiment/specialists.yaml) learns one domain's own questions, which the base has never seen, in an adapter
beside the frozen base. Records, all with clustered standard errors over the test clips, joined over the seeds:

cross table: ``variant`` (base, a specialist, known, router) by ``domain``; ``router_accuracy``, ``behind_known``
(accuracy that the router loses against the known domain), ``bit_equal`` (the base with the adapter off).
methods: ``variant`` lora, dora, prefix, bottleneck, full (all weights) with ``budget`` steps (equal steps) or time (as
many as fit into lora's processor time), and ``one_for_all`` (one adapter for all domains, with the steps of one
specialist, or of all of them together). ``gain``: over the base, question by question.

One seed after the other in one process on one thread. Everything resumes. Adds to results.json beside this file.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from experiments.domains import _runs as runs
from hvlm.console import setup_logging
from hvlm.evaluation import results
from hvlm.evaluation.cross_table import table, uid_of
from hvlm.evaluation.evaluate import PREDICTIONS, RESULTS
from hvlm.evaluation.predictions import read_predictions
from hvlm.evaluation.scores import Prediction
from hvlm.evaluation.stats import clustered_mean

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--collect", action="store_true", help="train nothing: write down what is finished")
    options = parser.parse_args()
    setup_logging()
    if not options.collect:
        for seed in options.seeds:
            runs.all_of(seed, lambda what, seed=seed: print(f"--- seed {seed}: {what}", flush=True))
    records = collect(options.seeds)
    results.update(HERE / "results.json", records)
    show(records)


def collect(seeds: Sequence[int]) -> list[results.Record]:
    """All records of the finished cells, joined over the seeds."""
    of_seeds = [list(of_seed(seed)) for seed in seeds]
    return results.merge_seeds([records for records in of_seeds if records])


def of_seed(seed: int) -> Iterator[results.Record]:
    cross = runs.ROOT / f"seed{seed}" / "table"
    shared = {"question": runs.QUESTION, "command": runs.COMMAND}
    for file in (cross / RESULTS, cross / "base.json"):
        if file.exists():
            yield from (r | shared | {"budget": "steps", "table": "cross"} for r in results.read(file))
    if (cross / PREDICTIONS).exists():
        yield from gains(seed, cross)
    for own in sorted((runs.ROOT / f"seed{seed}").glob("*/own")):
        if (own / RESULTS).exists():
            yield from (r | shared | {"table": "methods"} for r in results.read(own / RESULTS))


def gains(seed: int, cross: Path) -> Iterator[results.Record]:
    """Each specialist's accuracy on its own domain minus the base's, question by question."""
    found: dict[str, dict[tuple, Prediction]] = {}
    for p in read_predictions(cross / PREDICTIONS, "model"):
        found.setdefault(p.variant, {})[p[:4]] = p
    for domain in runs.DOMAINS:
        pairs = [
            (float(p.right) - float(found["base"][key].right), uid_of(p), p.task)
            for key, p in found[domain].items()
            if p.task in runs.TASKS[domain]
        ]
        value, stderr = clustered_mean(*map(list, zip(*pairs, strict=True)))
        yield results.make(
            runs.QUESTION, domain, "gain", value, stderr=stderr, n=len(pairs), chance=None, seeds=[seed], seconds=0,
            command=runs.COMMAND, columns={"domain": domain, "budget": "steps", "table": "cross"},
        )  # fmt: skip


def show(records: Sequence[results.Record]) -> None:
    cross = [r for r in records if r["table"] == "cross" and r["metric"] == "accuracy_mean"]
    print("\n".join(table(cross)))
    for metric in ("router_accuracy", "router_confidence", "behind_known", "gain", "bit_equal"):
        for r in (r for r in records if r["metric"] == metric and r["table"] == "cross"):
            error = "" if r["stderr"] is None else f" ± {r['stderr']:.4f}"
            print(f"{metric} {r['variant']} {r['domain']}: {r['value']:.4f}{error}")
    methods = [r for r in records if r["table"] == "methods" and r["metric"] == "accuracy_mean"]
    print("\n".join(table([r | {"variant": f"{r['variant']} ({r['budget']})"} for r in methods])))
    for r in (r for r in records if r["metric"] in ("trained_share", "cpu_seconds_a_step")):
        print(f"{r['metric']} {r['variant']} {r['budget']} {r['domain']}: {r['value']:.4f}")


if __name__ == "__main__":
    main()
