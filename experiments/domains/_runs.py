"""The cells of one seed: the base, the specialists of every kind of adapter, one for all domains, their examinations.

A cell whose result is there is not run again. All of a seed happens in one process: clips are decoded once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from hvlm.commands.eval import evaluate as eval_py
from hvlm.evaluation import results
from hvlm.evaluation.ask import ask
from hvlm.evaluation.cross_table import MACRO
from hvlm.evaluation.evaluate import RESULTS
from hvlm.evaluation.specialists import base_of, read_runs
from hvlm.io.checkpoint import load_weights
from hvlm.rebuild import Loaded, load, stored_config
from hvlm.training import chain

log = logging.getLogger(__name__)

ROOT = Path("runs/domains")
QUESTION = "domains"
COMMAND = "python -m experiments.domains"
DOMAINS = ("sports", "tutorials", "news")
TASKS = {
    "sports": ["run_first", "run_last", "run_when", "run_way"],
    "tutorials": ["step_first", "step_last", "step_next", "step_number"],
    "news": ["headline_first", "headline_last", "headline_which"],
}
STEPS = 600
ALIKE = 0.1  # of the cost of a step: equal steps are then equal time, too
LORA = ["adapter=lora", "adapter.rank=8", "adapter.rate=3.0e-3"]
METHODS: dict[str, list[str]] = {  # how the base becomes a specialist
    "lora": LORA,
    "dora": ["adapter=dora", "adapter.rank=8", "adapter.rate=3.0e-3"],
    "prefix": ["adapter=prefix", "adapter.length=16"],
    "bottleneck": ["adapter=bottleneck", "adapter.size=24", "adapter.rate=3.0e-3"],
    "full": ["adapter=none", "stage.trainable={vision:1.0e-4,connector:5.0e-4,language:1.0e-3}", "vision.cache_gb=0"],
}
REFERENCE = "lora"
ALL = "one_for_all"
BUDGETS = ("steps", "time")
COMMON = ["trainer.threads=1", "callback.media=0", "evaluate=false", "trainer.cache_mb=1500", "vision.cache_gb=2"]


def base(seed: int) -> Path:
    return ROOT / f"seed{seed}" / "base"


def folder(seed: int, method: str, domain: str, budget: str = "steps") -> Path:
    return ROOT / f"seed{seed}" / f"{method}-{budget}" / domain


def train_base(seed: int) -> None:
    words = ["experiment=domains", f"run=domains/seed{seed}/base", f"seed={seed}", *COMMON, "vision.cache_gb=0"]
    if not (base(seed) / "sft" / "finished.json").exists():
        chain.run(words)


def train(seed: int, method: str, domain: str, budget: str = "steps", steps: int = STEPS) -> Path:
    """A specialist, from the seed's base. Returns its run folder."""
    run = folder(seed, method, domain, budget)
    if not (run / "sft" / "finished.json").exists():
        own = METHODS[REFERENCE] if method == ALL else METHODS[method]
        chain.run([
            "experiment=specialists", f"run={run.relative_to('runs')}", f"init_from={base(seed)}", f"seed={seed}",
            *COMMON, *own, *of(domain), f"stage.steps={steps}",
        ])  # fmt: skip
    return run


def of(domain: str) -> list[str]:
    if domain != "all":
        return [f"domain={domain}"]
    return ["domain=all", f"domain.mixture={{{','.join(f'{name}:1.0' for name in DOMAINS)}}}"]


def seconds_a_step(run: Path) -> float:
    """Processor time, reading included."""
    done = chain.RunDir(str(run.relative_to("runs")), "sft", writes=False).finished()
    return done["cpu_seconds"] / done["steps_here"]


def examine(seed: int, method: str, budget: str) -> Path:
    """What each specialist of a method answers about its own domain: results.json beside them."""
    out = ROOT / f"seed{seed}" / f"{method}-{budget}" / "own"
    if (out / RESULTS).exists():
        return out
    records = []
    for domain in DOMAINS:
        run = folder(seed, method, "all" if method == ALL else domain, budget)
        loaded = load(run / "sft", stored_config(run / "sft"))
        records += of_domain(loaded, domain, out, method, seed, {"budget": budget})
        model = loaded.model
        if domain == DOMAINS[0] or method != ALL:
            trained = sum(p.numel() for n, p in model.named_parameters() if n.startswith("adapter."))
            total = sum(p.numel() for p in model.parameters())
            share = trained / (total - trained) if trained else 1.0
            label = results.Label(QUESTION, method, seed, COMMAND, {"domain": domain, "budget": budget})
            records.append(label.record("trained_share", share, n=total, seconds=0))
            records.append(label.record("cpu_seconds_a_step", seconds_a_step(run), n=STEPS, seconds=0))
    results.write(out / RESULTS, records)
    return out


def of_domain(
    loaded: Loaded, domain: str, out: Path, variant: str, seed: int, columns: dict[str, Any]
) -> list[results.Record]:
    """Accuracy on a domain's own questions, of the model as it stands."""
    started = time.monotonic()
    benchmark = loaded.benchmark(tasks=TASKS[domain], blind=False)
    asked = ask(loaded, benchmark, variant, out)
    label = results.Label(QUESTION, variant, seed, COMMAND, {"domain": domain, **columns})
    seconds = time.monotonic() - started
    return [
        label.record(r["metric"], r["value"], stderr=r["stderr"], n=r["n"], chance=r["chance"], seconds=seconds)
        for r in benchmark.score(asked.predictions)
    ]


def cross(seed: int) -> Path:
    """The cross table of the reference's specialists, with the router; and whether the base is still the base."""
    out = ROOT / f"seed{seed}" / "table"
    runs = [folder(seed, REFERENCE, domain) for domain in DOMAINS]
    if not (out / RESULTS).exists():
        eval_py(["domain=all", f"adapters=[{','.join(map(str, runs))}]", f"out={out}", f"seed={seed}"])
    extra = out / "base.json"
    if not extra.exists():
        same = base_unchanged(runs)
        label = results.Label(QUESTION, "base", seed, COMMAND, {"domain": MACRO})
        results.write(extra, [label.record("bit_equal", float(same), n=1, seconds=0)])
    return out


@torch.inference_mode()
def base_unchanged(runs: Sequence[Path]) -> bool:
    """Whether the base's weights, and what it says of a clip with the adapter off, are the same bits in a model that
    holds its specialists."""
    from hvlm.commands.eval import configuration
    from hvlm.evaluation.asking import clips_of

    cfg = configuration([f"adapters=[{','.join(map(str, runs))}]"])
    file = base_of(read_runs(list(map(str, runs))), None)
    held = load(file, cfg)
    alone = load(file, {**cfg, "adapter": stored_config(file)["adapter"], "adapters": None, "domain": OFF_DOMAIN})
    weights = load_weights(file)
    if not all(torch.equal(held.model.state_dict()[n], w) for n, w in weights.items() if not n.startswith("adapter.")):
        return False
    batch = next(iter(clips_of(held, held.benchmark(), batch_size=16, limit=16))).to(held.device)
    held.model.eval(), alone.model.eval()
    with held.model.adapter.off():
        return torch.equal(held.model.token_logprobs(batch), alone.model.token_logprobs(batch))


OFF_DOMAIN = {"name": "all", "adapter": "all", "mixture": None}


def all_of(seed: int, note: Callable[[str], None] = lambda _: None) -> None:
    """Every cell of a seed, the most telling first."""
    torch.set_num_threads(1)
    note("base")
    train_base(seed)
    for domain in DOMAINS:
        train(seed, REFERENCE, domain)
    note("cross table")
    cross(seed)
    examine(seed, REFERENCE, "steps")
    reference = sum(seconds_a_step(folder(seed, REFERENCE, domain)) for domain in DOMAINS) / len(DOMAINS)
    note(ALL)
    for budget, steps in (("steps", STEPS), ("all_steps", len(DOMAINS) * STEPS)):
        train(seed, ALL, "all", budget, steps)
        examine(seed, ALL, budget)
    for method in [m for m in METHODS if m != REFERENCE]:
        note(method)
        for domain in DOMAINS:
            train(seed, method, domain)
        examine(seed, method, "steps")
        cost = sum(seconds_a_step(folder(seed, method, domain)) for domain in DOMAINS) / len(DOMAINS)
        if abs(cost / reference - 1) > ALIKE:
            for domain in DOMAINS:
                train(seed, method, domain, "time", max(1, round(STEPS * reference / cost)))
            examine(seed, method, "time")
