"""Tables of accuracies: connectors, foveation, attention, merging, SmolLM2, and the demo."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from experiments.tables._records import Record, mean, one, percent, read, some, table

CONNECTORS, FOVEATION = "connectors/results.json", "foveation/results.json"
ATTENTION, MERGING, SMOLLM2 = "attention/results.json", "merging/results.json", "smollm2/results.json"
DEMO = "demo/results.json"
EASY = ("domain", "shape", "colour", "flash_colour", "flash_order")
HARD = ("bind_colour", "bind_shape", "flash_colour", "flash_order", "count", "where", "direction")
LEARNED = ("flash_colour", "flash_order", "bind_colour", "bind_shape", "count", "domain")  # by all at this size
ALL = "accuracy_mean"


def tasks(file: str, names: tuple[str, ...], **where: object) -> list[str]:
    return [percent(one(file, metric=f"accuracy/{name}", **where)) for name in names]


# ------------------------------------------------------------------------------------------------------------- demo


def demo() -> list[str]:
    names = {"coarse_fine": "coarse→fine", "blind": "blind control"}
    return table(("", *EASY), ((label, *tasks(DEMO, EASY, variant=name)) for name, label in names.items()))


def demo_dpo() -> list[str]:
    names = {"coarse_fine": "after DPO", "before_dpo": "before"}
    metrics = ("reward_accuracy", ALL)
    head = ("", "chosen answer has the greater reward, held-out pairs", "mean accuracy")
    return table(
        head, ((label, *(percent(one(DEMO, metric=m, variant=v)) for m in metrics)) for v, label in names.items())
    )


# ------------------------------------------------------------------------------------------------------- connectors

CONNECTOR_NAMES = {"coarse_fine": "coarse→fine", "dense": "dense", "mean": "mean-pooled", "static": "static query"}


def connectors() -> Iterator[tuple[str, str, str]]:
    """(budget, variant, label); coarse→fine is what equal time is measured by, so its two runs are one."""
    for budget in ("steps", "time"):
        for name, label in CONNECTOR_NAMES.items():
            if (budget, name) != ("time", "coarse_fine"):
                yield budget, name, f"{label}, equal {budget}"


def connectors_hard() -> list[str]:
    def row(budget: str, name: str, label: str) -> list[str]:
        where = {"set": "hard", "budget": budget, "variant": name}
        learned = mean(one(CONNECTORS, metric=f"accuracy/{task}", **where) for task in LEARNED)
        return [label, learned, *tasks(CONNECTORS, HARD, **where)]

    return table(("hard questions", "mean of six", *HARD), (row(*which) for which in connectors()))


def connectors_easy() -> list[str]:
    def row(budget: str, name: str, label: str) -> list[str]:
        where = {"set": "easy", "budget": budget}
        blind = percent(one(CONNECTORS, metric=ALL, variant=f"{name}_blind", **where))
        found = percent(one(CONNECTORS, metric=ALL, variant=name, **where))
        return [label, found, *tasks(CONNECTORS, EASY, variant=name, **where), blind]

    return table(("easy questions", "mean", *EASY, "blind, mean"), (row(*which) for which in connectors()))


# -------------------------------------------------------------------------------------------------------- foveation

FOVEATION_NAMES = {
    "deep": "deep query, question first", "shallow": "shallow query, question first",
    "video_first": "deep query, video first, equal time", "dense": "dense patches, equal time",
    "static": "static query", "deep_fed_coarse": "deep model fed its coarse tokens",
}  # fmt: skip


def foveation_hard() -> list[str]:
    shown = ("bind_colour", "bind_shape", "where", "direction")

    def row(name: str, label: str) -> list[str]:
        where = {"set": "hard", "variant": name}
        return [label, percent(one(FOVEATION, metric=ALL, **where)), *tasks(FOVEATION, shown, **where)]

    head = ("hard questions", "mean over all but direction", *shown)
    return table(head, (row(*item) for item in FOVEATION_NAMES.items()))


def foveation_full() -> list[str]:
    names = {"full_size": "full size", "full_size_blind": "blind control"}
    rows = ((label, *tasks(FOVEATION, EASY, variant=name, set="easy")) for name, label in names.items())
    return table(("", *EASY), rows)


# -------------------------------------------------------------------------------------------------------- attention

ATTENTION_NAMES = {
    "none": "none", "alone": "alone", "full": "full", "local_global": "local_global", "cross_memory": "cross_memory",
    "strided_4": "strided (4)", "strided": "strided (16)", "performer": "performer", "mamba": "mamba",
    "mamba2": "mamba2",
}  # fmt: skip
FLASHES = ("flash_colour", "flash_order")


def attention() -> list[str]:
    def row(name: str, label: str) -> list[str]:
        steps = {"variant": name, "budget": "steps"}
        time = steps if name == "full" else {"variant": name, "budget": "time"}
        seconds = sum(r["value"] for r in read(ATTENTION) if is_of(r, steps) and r["metric"].startswith("cpu_seconds/"))
        count = one(ATTENTION, metric="parameters", **steps)["value"]
        return [label, *tasks(ATTENTION, FLASHES, **steps), *tasks(ATTENTION, FLASHES, **time),
                *tasks(ATTENTION, ("shape",), **steps), f"{seconds:.0f}", f"{count / 1e6:.2f}"]  # fmt: skip

    head = ("", "flash_colour, equal steps", "flash_order", "flash_colour, equal time", "flash_order",
            "shape, equal steps", "CPU seconds of a run, equal steps", "million parameters")  # fmt: skip
    return table(head, (row(*item) for item in ATTENTION_NAMES.items()))


def is_of(record: Record, where: dict[str, str]) -> bool:
    return all(record.get(key) == value for key, value in where.items())


# ---------------------------------------------------------------------------------------------------------- merging

MERGERS = ("adaptive", "motion", "saliency", "tome", "fastvid", "dycoke", "random", "stride")
KEEPS = (0.5, 0.25, 0.125, 0.0625)
KINDS = (("easy", True), ("hard", True), ("easy", False), ("hard", False))
PARTS = {
    "adaptive_not_proportional": "without proportional attention",
    "adaptive_packed": "positions counted through instead of the patches'",
    "adaptive_no_likeness": "like patches count as much as others",
    "adaptive_centroids": "tokens at the centroids of their patches",
    "adaptive_flow": "optical flow instead of the features' change",
}
BEHIND = "accuracy_behind_adaptive"


def merged(variant: str, keep: float, label: str, outline: bool, trained: bool, metric: str = ALL) -> Record:
    keep = 1.0 if variant == "none" else keep
    where = {"variant": variant, "keep": keep, "set": label, "outline": outline, "trained": trained}
    return one(MERGING, metric=metric, **where)


def label_of(kind: str, outline: bool) -> str:
    return kind if outline else f"{kind}, no outlines"


def merging_eighth() -> list[str]:
    single = ("flash_colour", "flash_order", "domain")

    def row(name: str) -> list[str]:
        means = [percent(merged(name, 0.125, kind, outline, False)) for kind, outline in KINDS]
        return [name, *means, *(percent(merged(name, 0.125, "easy", True, False, f"accuracy/{t}")) for t in single)]

    head = ("12.5 % of the tokens", *(label_of(*kind) for kind in KINDS), *(f"easy: {task}" for task in single))
    return table(head, map(row, ("none", "adaptive", "adaptive_flow", *MERGERS[1:])))


def merging_budgets() -> list[str]:
    def pair(name: str, keep: float, trained: bool) -> str:
        return " / ".join(f"{100 * merged(name, keep, kind, True, trained)['value']:.1f}" for kind in ("easy", "hard"))

    head = [*(f"{100 * keep:g} %" for keep in KEEPS), *(f"trained, {100 * keep:g} %" for keep in KEEPS)]
    both = [(keep, trained) for trained in (False, True) for keep in KEEPS]
    rows = ([name, *(pair(name, keep, trained) for keep, trained in both)] for name in ("none", *MERGERS))
    return table(("mean, easy / hard", *head), rows)


def merging_kept() -> list[str]:
    def share(keep: float, kind: str, outline: bool, trained: bool) -> str:
        whole, left = (merged(name, keep, kind, outline, trained)["value"] for name in ("none", "adaptive"))
        return f"{100 * left / whole:.1f}"

    rows = (
        [f"{100 * keep:g} %, {'100 more steps' if trained else 'training-free'}",
         *(share(keep, *kind, trained) for kind in KINDS)]
        for trained in (False, True) for keep in KEEPS
    )  # fmt: skip
    return table(("adaptive, of the unmerged mean", *(label_of(*kind) for kind in KINDS)), rows)


def merging_behind() -> list[str]:
    def row(name: str) -> list[str]:
        cells = [(kind, trained) for trained in (False, True) for kind in KINDS]
        return [name, *(percent(merged(name, 0.125, *kind, trained, BEHIND)) for kind, trained in cells)]

    head = [*(label_of(*kind) for kind in KINDS), *(f"trained: {label_of(*kind)}" for kind in KINDS)]
    return table(("points behind adaptive, 12.5 %", *head), map(row, MERGERS[1:]))


def merging_parts() -> list[str]:
    rows = ([label, *(percent(merged(name, 0.125, *kind, False, BEHIND)) for kind in KINDS)]
            for name, label in PARTS.items())  # fmt: skip
    return table(("points lost, 12.5 %", *(label_of(*kind) for kind in KINDS)), rows)


def merging_proportional() -> list[str]:
    """What proportional attention is worth to the others: the mean with it less the mean without."""

    def gain(name: str, kind: str, outline: bool) -> str:
        with_it, without = (merged(v, 0.125, kind, outline, False)["value"] for v in (name, f"{name}_not_proportional"))
        return f"{100 * (with_it - without):+.1f}"

    others = ("motion", "saliency", "tome", "fastvid")
    rows = ([name, *(gain(name, *kind) for kind in KINDS)] for name in others)
    return table(("points by proportional attention, 12.5 %", *(label_of(*kind) for kind in KINDS)), rows)


# ---------------------------------------------------------------------------------------------------------- smollm2


def smollm2() -> list[str]:
    head = ("chain", "stage", "clips/s", "first losses", "last losses", "loss on held-out clips")

    def cell(chain: str, stage: str, metric: str, digits: str) -> str:
        found = some(SMOLLM2, chain=chain, stage=stage, metric=metric)
        return format(found[0]["value"], digits) if found else ""

    kinds = (("samples_per_s", ".3g"), ("loss_first", ".2f"), ("loss_last", ".2f"), ("loss_val", ".2f"))
    places = dict.fromkeys((r["chain"], r["stage"]) for r in read(SMOLLM2) if "stage" in r)
    return table(head, ([*place, *(cell(*place, *kind) for kind in kinds)] for place in sorted(places, key=order)))


def order(place: tuple[str, str]) -> tuple[bool, int]:
    return place[0] == "demo", ("vision", "align", "sft", "dpo").index(place[1])


def smollm2_accuracy() -> list[str]:
    def row(chain: str, variant: str) -> list[str]:
        where = {"chain": chain, "variant": variant}
        return [f"{chain}, {variant}", percent(one(SMOLLM2, metric=ALL, **where)), *tasks(SMOLLM2, EASY, **where)]

    shown = [(chain, variant) for chain in ("smollm2", "demo") for variant in ("coarse_fine", "blind")]
    return table(("chain", "mean", *EASY), (row(*which) for which in shown))


TABLES: dict[str, Callable[[], list[str]]] = {
    "demo": demo,
    "demo/dpo": demo_dpo,
    "connectors/hard": connectors_hard,
    "connectors/easy": connectors_easy,
    "foveation/hard": foveation_hard,
    "foveation/full": foveation_full,
    "attention/flashes": attention,
    "merging/eighth": merging_eighth,
    "merging/budgets": merging_budgets,
    "merging/kept": merging_kept,
    "merging/behind": merging_behind,
    "merging/parts": merging_parts,
    "merging/proportional": merging_proportional,
    "smollm2/stages": smollm2,
    "smollm2/accuracy": smollm2_accuracy,
}
