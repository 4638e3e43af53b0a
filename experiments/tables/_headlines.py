"""One row an experiment: what was asked, what came out."""

from __future__ import annotations

from experiments.tables._accuracy import (
    ALL,
    ATTENTION,
    CONNECTORS,
    FOVEATION,
    LEARNED,
    SMOLLM2,
    merged,
    percent,
)
from experiments.tables._domains import DOMAINS as OWN
from experiments.tables._domains import FILE as DOMAINS
from experiments.tables._duo import RESULTS as DUO
from experiments.tables._heads import FILE as HEADS
from experiments.tables._records import mean, one, table
from experiments.tables._speed import BENCH, FORWARD, attention_goals, cell


def headlines() -> list[str]:
    every = (connectors, foveation, attention, attention_speed, merging, heads, specialists, moments, smollm2, speed)
    rows = [row() for row in every]
    return table(("question", "what came out", "command"), rows)


def link(page: str, words: str) -> str:
    return f"[{words}](docs/results/{page}.md)"


def connectors() -> list[str]:
    def of(variant: str) -> str:
        where = {"set": "hard", "budget": "steps", "variant": variant}
        return mean(one(CONNECTORS, metric=f"accuracy/{task}", **where) for task in LEARNED)

    found = (
        f"hard questions, equal steps: coarse→fine {of('coarse_fine')} %, dense {of('dense')}, mean-pooled {of('mean')}"
    )
    return [link("connectors", "Which connector?"), found, "`python -m experiments.connectors`"]


def foveation() -> list[str]:
    def of(variant: str) -> str:
        return percent(one(FOVEATION, metric="accuracy/bind_colour", set="hard", variant=variant))

    found = (
        f"colour of a named shape: question first {of('deep')} %, video first {of('video_first')}, "
        f"static query {of('static')}"
    )
    return [link("foveation", "Must the gaze know the question?"), found, "`python -m experiments.foveation`"]


def attention() -> list[str]:
    def of(variant: str) -> str:
        return percent(one(ATTENTION, metric="accuracy/flash_colour", budget="time", variant=variant))

    full = percent(one(ATTENTION, metric="accuracy/flash_colour", budget="steps", variant="full"))
    found = (
        f"a flash among 2,048 tokens, equal time: full {full} %, cross-memory {of('cross_memory')}, "
        f"Mamba-2 {of('mamba2')}"
    )
    return [link("attention", "Which mixing carries evidence?"), found, "`python -m experiments.attention`"]


def attention_speed() -> list[str]:
    reached = attention_goals()[0].split(" reach")[0]
    window = cell("window", 16384, "fp32", FORWARD)["ratio"]
    ssd = cell("mamba2", 16384, "fp32", FORWARD)["ratio"]
    found = f"{reached} reach their goal; 16,384 tokens: window {window:.1f} times its peer's speed, SSD {ssd:.1f}"
    return [link("attention", "How fast is the mixing on a CPU?"), found, "`make bench-attention`"]


def merging() -> list[str]:
    def of(name: str) -> str:
        return " / ".join(f"{100 * merged(name, 0.125, kind, True, False)['value']:.1f}" for kind in ("easy", "hard"))

    found = (
        f"an eighth of the tokens, easy / hard: adaptive {of('adaptive')} %, ToMe {of('tome')}, unmerged {of('none')}"
    )
    return [link("merging", "Which tokens may go?"), found, "`python -m experiments.merging`"]


def heads() -> list[str]:
    def of(variant: str) -> str:
        return percent(one(DUO, question="duo", metric="accuracy", share=0.125, variant=variant))

    full = percent(one(DUO, question="duo", metric="accuracy", variant="full"))
    found = (
        f"needles among 2,048 tokens, an eighth of the KV cache: heads by gates {of('gates')} %, random heads "
        f"{of('random')}, SnapKV {of('snapkv')}, InfiniPot-V {of('infinipot')}, merged tokens {of('adaptive')}; all "
        f"of it {full}"
    )
    return ["[Which heads need the whole video?](docs/duo.md)", found, "`python -m experiments.duo`"]


def specialists() -> list[str]:
    def of(variant: str, domain: str) -> str:
        return mean([one(DOMAINS, table="cross", metric=ALL, variant=variant, domain=domain)])

    found = (
        "its own questions, base and with its LoRA adapter: "
        + ", ".join(f"{domain} {of('base', domain)} → {of('known', domain)} %" for domain in OWN)
        + f"; a router picks the adapter: {of('router', 'mean')} % over all, {of('known', 'mean')} when told"
    )
    return [link("domains", "What is a specialist worth?"), found, "`python -m experiments.domains`"]


def moments() -> list[str]:
    def of(variant: str, metric: str) -> str:
        return percent(one(HEADS, variant=variant, metric=metric))

    found = (
        f"mAP of events in time {of('detect', 'map/mean')} %, blind {of('detect_blind', 'map/mean')}; R@1 among 1,000 "
        f"pairs {of('retrieve', 'text_to_video/r@1')} %, blind {of('retrieve_blind', 'text_to_video/r@1')}"
    )
    return [link("heads", "When is it, which video is meant?"), found, "`python -m experiments.heads`"]


def smollm2() -> list[str]:
    accuracy, blind = (percent(one(SMOLLM2, metric=ALL, chain="smollm2", variant=v)) for v in ("coarse_fine", "blind"))
    found = f"12 minutes of training are too few: {accuracy} %, blind {blind}"
    return [link("smollm2", "What does the chain do with SmolLM2-135M?"), found, "`python -m experiments.smollm2`"]


def speed() -> list[str]:
    forward, step = (one(BENCH, case=case, dtype="bf16-mixed")["ratio_to_fp32"]
                     for case in ("dinov2_small_forward", "sft_step"))  # fmt: skip
    found = (
        f"bfloat16: DINOv2-small forward {forward:.1f} times as fast as float32, the demo's SFT step {step:.1f} times"
    )
    return [link("speed", "How fast?"), found, "`make bench`"]
