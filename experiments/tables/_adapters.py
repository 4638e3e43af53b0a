"""Tables of what adapters cost."""

from __future__ import annotations

from experiments.tables._records import one, some, table

SPEED = "adapters/speed.json"
KINDS = ("lora", "dora", "prefix", "bottleneck")


def _ratio(variant: str, metric: str) -> str:
    found = some(SPEED, variant=variant, metric=metric)
    return f"{found[0]['ratio']:.2f}" if found else ""


def speed() -> list[str]:
    """A row a kind: the share that trains, and ratios of times."""
    rows = []
    for kind in KINDS:
        step = one(SPEED, variant=kind, metric="step_ms")
        times = [_ratio(kind, "step_ms"), _ratio(kind, "forward_ms"), _ratio(f"{kind}_merged", "forward_ms")]
        rows.append([f"`{kind}`", f"{step['trained_percent']:.2f} %", *times, _ratio(f"{kind}_mixed", "forward_ms")])
    full = one(SPEED, variant="full", metric="step_ms")
    rows.append(["everything trains", f"{full['trained_percent']:.1f} %", f"{full['ratio']:.2f}", "", "", ""])
    header = ["", "trained", "a step", "an answer, beside", "an answer, merged", "three sets in a batch"]
    return table(header, rows)


def lines() -> list[str]:
    """What is not a ratio of times."""

    def largest(metric: str) -> str:
        return f"{max(one(SPEED, variant=f'{kind}_merged', metric=metric)['value'] for kind in ('lora', 'dora')):.1e}"

    memory = one(SPEED, variant="dpo_adapter_off", metric="weights_mb")
    mixed = _ratio("lora_mixed", "step_ms")
    return [
        f"Merged logits differ by at most {largest('logits_apart')} in float32, whose rounding alone moves them by "
        f"{largest('logits_rounding')}, and by {largest('logits_apart_float64')} in float64. A training step over "
        f"three sets of LoRA takes {mixed} times that over one. DPO with `stage.reference=adapter_off` holds "
        f"{memory['value']:.0f} MB of weights, "
        f"{memory['ratio']:.2f} of what it holds with a copy."
    ]


TABLES = {"adapter_speed": speed, "adapter_figures": lines}
FILES = dict.fromkeys([*TABLES, SPEED], SPEED)
