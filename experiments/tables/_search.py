"""The table of what searches find beside chance, from experiments/search."""

from __future__ import annotations

from experiments.tables._records import read, table

FILE = "search/results.json"


def fronts() -> list[str]:
    """Searches and what their fronts dominate."""
    seeds: dict[tuple[str, int], dict[str, float]] = {}
    rows = []
    for r in read(FILE):
        if r["metric"] != "hypervolume_mean":
            seeds.setdefault((r["variant"], r["seeds"][0]), {})[r["metric"]] = r["value"]
    for (sampler, seed), v in sorted(seeds.items()):
        rows.append([
            sampler, str(seed), f"{v['hypervolume']:.3f}", f"{v['front']:.0f}", f"{v['complete']:.0f}",
            f"{v['pruned']:.0f}", f"{v['fail']:.0f}", f"{100 * v['best_accuracy']:.1f}" if "best_accuracy" in v else "",
        ])  # fmt: skip
    for r in read(FILE):
        if r["metric"] == "hypervolume_mean":
            rows.append([r["variant"], "mean", f"{r['value']:.3f} ± {r['stderr']:.3f}", "", "", "", "", ""])
    head = ["sampler", "seed", "hypervolume", "on the front", "complete", "pruned", "failed", "best accuracy, %"]
    return table(head, rows)


TABLES = {"search/fronts": fronts}
FILES = dict.fromkeys(TABLES, FILE)
