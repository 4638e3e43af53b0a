"""What the cells of ``experiments.duo.smollm2`` come to: records of results.json, and a table of them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from experiments.duo import _smollm2_models as models
from hvlm.evaluation import results
from hvlm.evaluation.stats import clustered_mean
from hvlm.io.head_patterns import choose_heads

QUESTION, COMMAND = "duo_smollm2", "python -m experiments.duo.smollm2"
FULL = "full"
SHARES, HEADS = (0.5, 0.25, 0.125), "heads"
PASSKEYS, NEEDLES, FEW, WRITTEN = "passkeys", "needles", "needles_few", "needles_written"
CHANCE = {PASSKEYS: 1 / 26, NEEDLES: 1 / 6, FEW: 1 / 6, WRITTEN: 1 / 6}


def collect() -> Iterator[results.Record]:
    """Draws of random heads count as more questions about the same samples."""
    found: dict[tuple[str, int, str, float], list[dict[str, Any]]] = {}
    for path in sorted((models.ROOT / "cells").glob("*/*.json")):
        value = json.loads(path.read_text(encoding="utf-8"))
        key = value["task"], value["length"], value["cell"]["variant"], value["cell"]["share"]
        found.setdefault(key, []).append(value)
    for (task, length, variant, share), draws in sorted(found.items(), key=str):
        full = found.get((task, length, FULL, 1.0), [None])[0]
        columns = {"task": task, "length": length, "share": share, "sink": models.SINK, "recent": models.RECENT}
        label = results.Label(QUESTION, variant, 1, COMMAND, columns)
        yield from _records(label, task, draws, full)
    yield from _shared()


def _shared() -> Iterator[results.Record]:
    """How many of the heads that text's gates choose video's gates choose, too. chance: of as many at random."""
    files = [next((models.ROOT / source).glob("*/head_pattern/*.tsv"), None) for source in (models.TEXT, models.VIDEO)]
    if None in files:
        return
    text, video = (
        torch.tensor([[float(x) for x in line.split()] for line in f.read_text().splitlines()]) for f in files
    )
    for share in SHARES:
        one, other = (choose_heads(gates, share).heads for gates in (text, video))
        columns = {"task": HEADS, "length": 0, "share": share, "sink": models.SINK, "recent": models.RECENT}
        label = results.Label(QUESTION, "gates_text", 1, COMMAND, columns)
        value, n = float((one & other).sum() / one.sum().clamp(min=1)), int(one.sum())
        yield label.record("shared_with_video", value, n=n, seconds=0.0, chance=n / one.numel())


def _records(
    label: results.Label, task: str, draws: Sequence[Mapping[str, Any]], full: Mapping[str, Any] | None
) -> Iterator[results.Record]:
    seconds, samples = sum(draw["seconds"] for draw in draws), len(draws[0]["found"])
    chance = CHANCE[task]
    scores = {"accuracy": (answers_right, chance)}
    if task == PASSKEYS:
        words = models.KEY_WORDS
        scores |= {"first": (_first, chance), "whole": (_whole, chance**words)}
    for metric, (score, guess) in scores.items():
        each = [(i, float(r)) for draw in draws for i, answers in enumerate(draw["found"]) for r in score(answers)]
        value, stderr = clustered_mean([r for _, r in each], [i for i, _ in each])
        yield label.record(metric, value, n=len(each), seconds=seconds, stderr=stderr, chance=guess)
    if full is not None and label.variant != FULL:
        pairs = [pair for draw in draws for pair in zip(draw["found"], full["found"], strict=True)]
        for metric, compare in (("agreement", _agreement), ("kl", _kl)):
            each = [(i % samples, v) for i, (a, b) in enumerate(pairs) for v in compare(a, b)]
            value, stderr = clustered_mean([v for _, v in each], [i for i, _ in each])
            yield label.record(metric, value, n=len(each), seconds=seconds, stderr=stderr)
    for name in ("kv_bytes", "tokens"):
        value = sum(answers[name] for answers in draws[0]["found"]) / samples
        yield label.record(name, value, n=samples, seconds=seconds)
    if len(draws) > 1:
        means = [[r for answers in draw["found"] for r in answers_right(answers)] for draw in draws]
        for name, worst in (("accuracy_min", min), ("accuracy_max", max)):
            value = worst(sum(right) / len(right) for right in means)
            yield label.record(name, value, n=len(draws), seconds=seconds, chance=chance)


def _chosen(answers: Mapping[str, Any]) -> list[list[int]]:
    return [[row.index(max(row)) for row in words] for words in answers["logprobs"]]


def _hits(answers: Mapping[str, Any]) -> list[list[bool]]:
    pairs = zip(_chosen(answers), answers["right"], strict=True)
    return [[a == b for a, b in zip(said, right, strict=True)] for said, right in pairs]


def answers_right(answers: Mapping[str, Any]) -> list[bool]:
    return [hit for hits in _hits(answers) for hit in hits]


def _first(answers: Mapping[str, Any]) -> list[bool]:
    return [hits[0] for hits in _hits(answers)]


def _whole(answers: Mapping[str, Any]) -> list[bool]:
    return [all(hits) for hits in _hits(answers)]


def _agreement(answers: Mapping[str, Any], full: Mapping[str, Any]) -> list[float]:
    pairs = zip(_chosen(answers), _chosen(full), strict=True)
    return [float(a == b) for said, wanted in pairs for a, b in zip(said, wanted, strict=True)]


def _kl(answers: Mapping[str, Any], full: Mapping[str, Any]) -> list[float]:
    """Of each word, from the full cache's distribution over the choices, in nats."""
    pairs = zip(answers["logprobs"], full["logprobs"], strict=True)
    rows = [row for said, wanted in pairs for row in zip(said, wanted, strict=True)]
    return [sum(math.exp(w) * (w - s) for s, w in zip(said, wanted, strict=True)) for said, wanted in rows]


def table(records: Iterable[results.Record]) -> str:
    """Markdown: for each task and length the variants, and what was measured of them."""
    rows: dict[tuple[str, int], dict[tuple[str, float], dict[str, results.Record]]] = {}
    lines: list[str] = []
    for r in records:
        if r["task"] == HEADS:
            chance = f"{r['value']:.0%} of the {r['n']} heads that text's gates choose (chance {r['chance']:.0%})"
            lines.append(f"At a share of {r['share']:g} video's gates choose {chance}.")
            continue
        rows.setdefault((r["task"], r["length"]), {}).setdefault((r["variant"], r["share"]), {})[r["metric"]] = r
    lines += [""] if lines else []
    for task, length in sorted(rows):
        some = rows[task, length]
        first = next(iter(some.values()))
        about = f"**{task}**, {first['tokens']['value']:.0f} tokens, {first['tokens']['n']} samples, chance "
        lines += [f"{about}{CHANCE[task]:.3f}", ""]
        metrics = ["accuracy", *(("first", "whole") if task == PASSKEYS else ()), "agreement", "kl"]
        lines += [
            "| heads | share | MB | n | " + " | ".join(metrics) + " |",
            "|---|---|---|---" + "|---" * len(metrics) + "|",
        ]
        order = sorted(some, key=lambda key: (-key[1], key[0]))
        for variant, share in order:
            row = some[variant, share]
            cut = "" if "accuracy_min" not in row else (
                f" ({row['accuracy_min']['value']:.2f} to {row['accuracy_max']['value']:.2f})"
            )  # fmt: skip
            numbers = [_shown(row.get(metric)) + (cut if metric == "accuracy" else "") for metric in metrics]
            bytes_, n = row["kv_bytes"]["value"] / 1e6, row["accuracy"]["n"]
            lines.append(f"| {variant} | {share:g} | {bytes_:.1f} | {n} | " + " | ".join(numbers) + " |")
        lines.append("")
    return "\n".join(lines)


def _shown(record: results.Record | None) -> str:
    if record is None:
        return ""
    error = record["stderr"]
    return f"{record['value']:.2f}" + ("" if error is None else f" ± {error:.2f}")
