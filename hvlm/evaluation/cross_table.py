"""Adapter by domain: what each specialist answers about each kind of clip, beside the base, and what a router makes of
them.

Every set of adapter weights is asked everything, and so is the base (the adapter off). The rows ``known`` and
``router`` are put together from these answers: of each clip those of its own domain's set, or of the set that the
router picks. Nothing is asked twice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hvlm.contracts import Benchmark
from hvlm.errors import UserError
from hvlm.evaluation import results
from hvlm.evaluation.ask import BLIND, ask, ask_blind
from hvlm.evaluation.evaluate import PREDICTIONS, RESULTS, warn_of_problems, way_of
from hvlm.evaluation.predictions import write_predictions
from hvlm.evaluation.routing import ROUTES
from hvlm.evaluation.scores import Prediction
from hvlm.evaluation.specialists import features
from hvlm.evaluation.stats import clustered_mean
from hvlm.io.json_lines import write_lines
from hvlm.rebuild import Loaded
from hvlm.router import BASE, Route

log = logging.getLogger(__name__)

KNOWN, ROUTED = "known", "router"

TABLE = "domains.md"
MACRO = "mean"  # of the domains, each weighing the same, in the column domain


def cross_table(
    loaded: Loaded, benchmark: Benchmark, label: results.Label, out: Path, routes: Mapping[str, Route] | None = None
) -> list[results.Record]:
    """Ask everything of every set of adapter weights and write predictions, records and the table into ``out``.

    Args:
        loaded: the model. Its router, where it has one, only picks among what was answered.
        benchmark: whose clips have domains.
        label: its variant does not count: the records' variants are ``base``, the names of the sets, ``known`` and
            ``router``, those without frames ``<variant>_blind``. Their column ``domain`` is that of the clips.
        out: a folder.
        routes: {uid: route} of the clips; None: the router is asked.
    """
    model, router = loaded.model, loaded.model.router
    model.router, answer, out = None, way_of(benchmark), Path(out)
    domain_of, adapters = domains_of(loaded, benchmark), dict.fromkeys(model.adapter.names)
    own = router.adapters if router is not None else {name: name for name in adapters}
    prompts = {} if router is None else {own[domain]: prompt for domain, prompt in router.prompts.items()}
    found: dict[str, list[Prediction]] = {}
    seconds: dict[str, float] = {}
    before = model.adapter.used
    try:
        for variant in (BASE, *adapters):
            started = time.monotonic()
            model.adapter.use(None if variant == BASE else variant)
            one = loaded._replace(chat=loaded.chat.asking(prompts.get(variant, loaded.chat.prompt)))
            asked = ask(one, benchmark, variant, out, answer)
            found[variant] = asked.predictions
            if benchmark.blind:
                blind = ask_blind(one, benchmark, asked.questions, answer)
                found[f"{variant}_{BLIND}"] = [p._replace(variant=f"{variant}_{BLIND}") for p in blind]
            seconds[variant] = time.monotonic() - started
    finally:
        model.adapter.use(before)
        model.router = router
    picked: dict[str, dict[str, str]] = {}
    if adapters:
        picked[KNOWN] = {uid: own.get(domain, BASE) for uid, domain in domain_of.items()}
    if router is not None:
        routes = routes_of(loaded, benchmark) if routes is None else routes
        picked[ROUTED] = {uid: route.adapter for uid, route in routes.items()}
        write_lines(out / ROUTES, [
            {"uid": uid, "domain": domain_of[uid], "routed_to": r.domain, "adapter": r.adapter,
             "confidence": round(r.confidence, 4)} for uid, r in routes.items()
        ])  # fmt: skip
    for variant, choice in picked.items():
        found[variant] = _joined(found, choice, variant)
    found = dict(sorted(found.items(), key=lambda item: item[0].endswith(f"_{BLIND}")))  # the controls last
    records = []
    for variant, predictions in found.items():
        took = seconds.get(variant.removesuffix(f"_{BLIND}"), 0.0)
        records += by_domain(predictions, domain_of, benchmark, label._replace(variant=variant), took)
    if router is not None:
        records += _of_router(found, domain_of, routes or {}, label)
    every = [p for predictions in found.values() for p in predictions]
    warn_of_problems(p for p in every if p.variant not in (KNOWN, ROUTED))
    write_predictions(out / PREDICTIONS, every)
    results.write(out / RESULTS, records)
    (out / TABLE).write_text("\n".join(table(records)) + "\n", encoding="utf-8")
    return records


def domains_of(loaded: Loaded, benchmark: Benchmark) -> dict[str, str]:
    """{uid: domain} of the clips that a benchmark asks about."""
    clips = benchmark.source(loaded.data)
    return {clips.uid(i): clips.domains[i] for i in benchmark.select(len(clips))}


def routes_of(loaded: Loaded, benchmark: Benchmark) -> dict[str, Route]:
    """Where the router sends the clips that a benchmark asks about. UserError for clips that are none of the data's."""
    asked = domains_of(loaded, benchmark)
    split = benchmark.split
    x, _, uids = features(loaded._replace(inputs=benchmark.inputs(loaded.inputs)), split, None)
    if missing := set(asked) - set(uids):
        raise UserError(
            f"domain=all: the router reads clips of the dataset's split {split}, and {sorted(missing)[0]} is none"
        )
    return {uid: route for uid, route in zip(uids, loaded.model.router.routes(x), strict=True) if uid in asked}


def uid_of(prediction: Prediction) -> str:
    """The clip that a prediction is about (errors are clustered by ``key``, which clips may share)."""
    return prediction.question_id.rpartition("/")[0]


def by_domain(
    predictions: Sequence[Prediction], domain_of: Mapping[str, str], benchmark: Benchmark, label: results.Label,
    seconds: float,
) -> list[results.Record]:  # fmt: skip
    """The benchmark's scores of each domain's clips, and of the headline's mean over the domains."""
    records, headline = [], {}
    for domain in sorted(set(domain_of.values())):
        part = [p for p in predictions if domain_of.get(uid_of(p)) == domain]
        if not part:
            continue
        columned = label._replace(columns={**label.columns, "domain": domain})
        rows = benchmark.score(part)
        records += [columned.of_row(row, seconds) for row in rows]
        headline[domain] = rows[0]
    if len(headline) > 1 and len({row["metric"] for row in headline.values()}) == 1:
        rows, columned = list(headline.values()), label._replace(columns={**label.columns, "domain": MACRO})
        errors = [row["stderr"] for row in rows]
        stderr = None if None in errors else float(np.sqrt(np.square(errors).sum()) / len(rows))
        chances = [row["chance"] for row in rows]
        records.append(
            columned.record(
                rows[0]["metric"],
                float(np.mean([row["value"] for row in rows])),
                stderr=stderr,
                n=sum(row["n"] for row in rows),
                seconds=seconds,
                chance=None if None in chances else float(np.mean(chances)),
            )  # fmt: skip
        )
    return records


def _joined(found: Mapping[str, list[Prediction]], choice: Mapping[str, str], variant: str) -> list[Prediction]:
    """Of each clip the answers of the set that is chosen for it."""
    of_clip: dict[tuple[str, str], list[Prediction]] = {}
    for name in {*choice.values()}:
        for p in found[name]:
            of_clip.setdefault((name, uid_of(p)), []).append(p)
    order = dict.fromkeys(uid_of(p) for p in found[BASE])
    return [p._replace(variant=variant) for uid in order for p in of_clip.get((choice.get(uid, BASE), uid), [])]


def _of_router(
    found: Mapping[str, list[Prediction]],
    domain_of: Mapping[str, str],
    routes: Mapping[str, Route],
    label: results.Label,
) -> list[results.Record]:
    """How often the router is right and how sure it is, by domain, and what it costs against the known domain."""
    label, records = label._replace(variant=ROUTED), []
    domains = sorted({domain_of[uid] for uid in routes})
    for name in (*domains, MACRO):
        uids = [uid for uid in routes if name in (MACRO, domain_of[uid])]
        groups = [domain_of[uid] for uid in uids]
        columned = label._replace(columns={**label.columns, "domain": name})
        for metric, values in (
            ("router_accuracy", [float(routes[uid].domain == domain_of[uid]) for uid in uids]),
            ("router_confidence", [routes[uid].confidence for uid in uids]),
        ):
            value, stderr = clustered_mean(values, uids, groups)
            chance = 1 / len(domains) if metric == "router_accuracy" else None
            records.append(columned.record(metric, value, stderr=stderr, n=len(uids), chance=chance, seconds=0.0))
    right = {p[:4]: p.right for p in found[KNOWN]}
    lost = [(float(right[p[:4]]) - float(p.right), p.key, domain_of[uid_of(p)]) for p in found[ROUTED]]
    value, stderr = clustered_mean(*map(list, zip(*lost, strict=True)))
    columned = label._replace(columns={**label.columns, "domain": MACRO})
    records.append(columned.record("behind_known", value, stderr=stderr, n=len(lost), seconds=0.0))
    return records


def table(records: Sequence[results.Record]) -> list[str]:
    """Markdown: a row for each set, a column for each domain: the headline accuracy in percent and its error."""
    heads = [r for r in records if r["metric"] == records[0]["metric"]] if records else []
    domains = list(dict.fromkeys(r["domain"] for r in heads))
    variants = list(dict.fromkeys(r["variant"] for r in heads))
    cells = {(r["variant"], r["domain"]): r for r in heads}
    rows = [["adapter", *domains]]
    for variant in variants:
        rows.append([variant, *(_cell(cells.get((variant, domain))) for domain in domains)])
    width = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, width, strict=True)) + " |" for row in rows]
    rule = "|" + "|".join("-" * (w + 2) for w in width) + "|"
    said = [
        f"{r['metric'].replace('_', ' ')} {_cell(r)}" for r in records
        if r["domain"] == MACRO and r["metric"] in ("router_accuracy", "router_confidence", "behind_known")
    ]  # fmt: skip
    return [lines[0], rule, *lines[1:], *(["", ", ".join(said)] if said else [])]


def _cell(record: Mapping[str, Any] | None) -> str:
    if record is None:
        return ""
    error = "" if record["stderr"] is None else f" ± {100 * record['stderr']:.1f}"
    return f"{100 * record['value']:.1f}{error}"
