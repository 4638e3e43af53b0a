"""Tables of the specialists."""

from __future__ import annotations

from experiments.tables._records import one, percent, read, table

FILE = "domains/results.json"
ALL = "accuracy_mean"
DOMAINS = ("sports", "tutorials", "news")
COLUMNS = ("general", *DOMAINS, "mean")
ROWS = {
    "base": "base (adapter off)",
    **{domain: f"adapter {domain}" for domain in DOMAINS},
    "known": "domain given",
    "router": "router",
}
METHODS = ("lora", "dora", "prefix", "bottleneck", "full", "one_for_all")
BUDGETS = {"steps": "equal steps", "time": "equal time", "all_steps": "three times the steps"}


def cross() -> list[str]:
    def cells(variant: str) -> list[str]:
        return [percent(one(FILE, table="cross", metric=ALL, variant=variant, domain=d)) for d in COLUMNS]

    rows = [(label, *cells(name)) for name, label in ROWS.items()]
    rows += [(f"{ROWS[name]}, blind", *cells(f"{name}_blind")) for name in ("base", *DOMAINS)]
    return table(("", *COLUMNS), rows)


def tasks() -> list[str]:
    def cell(variant: str, metric: str, domain: str) -> str:
        return percent(one(FILE, table="cross", metric=metric, variant=variant, domain=domain))

    found = dict.fromkeys(
        (r["domain"], r["metric"])
        for r in read(FILE)
        if r["table"] == "cross" and r["variant"] == "known" and r["metric"].startswith("accuracy/")
    )
    order = sorted(found, key=lambda which: COLUMNS.index(which[0]))
    return table(
        ("question", "domain", "base", "its adapter"),
        (
            (metric.removeprefix("accuracy/"), d, cell("base", metric, d), cell("known", metric, d))
            for d, metric in order
        ),
    )


def methods() -> list[str]:
    rows = []
    for budget, words in BUDGETS.items():
        for method in METHODS:
            where = {"table": "methods", "variant": method, "budget": budget}
            if not any(all(r.get(k) == v for k, v in where.items()) for r in read(FILE)):
                continue
            scores = [percent(one(FILE, metric=ALL, domain=d, **where)) for d in DOMAINS]
            share = one(FILE, metric="trained_share", domain=DOMAINS[0], **where)["value"]
            cost = one(FILE, metric="cpu_seconds_a_step", domain=DOMAINS[0], **where)["value"]
            seeds = len(one(FILE, metric=ALL, domain=DOMAINS[0], **where)["seeds"])
            rows.append((method, words, str(seeds), *scores, f"{100 * share:.1f} %", f"{1000 * cost:.0f} ms"))
    return table(("", "", "seeds", *DOMAINS, "weights trained", "processor time of a step"), rows)


def figures() -> list[str]:
    """What is no cell of a table."""

    def of(metric: str, domain: str = "mean", variant: str = "router", digits: int = 1) -> str:
        return percent(one(FILE, table="cross", metric=metric, domain=domain, variant=variant), digits)

    gains = ", ".join(f"{domain} {of('gain', domain, domain)}" for domain in DOMAINS)
    same = one(FILE, table="cross", metric="bit_equal")["value"] == 1
    share = one(FILE, table="methods", metric="trained_share", variant="lora", budget="steps", domain=DOMAINS[0])
    return [
        f"A specialist's gain over the base on its own domain, question by question, in points: {gains}. It trains "
        f"{100 * share['value']:.1f} % as many weights as the base has; with the adapter off the model "
        f"{'is the base, bit for bit' if same else 'is NOT the base'}. The router is right about "
        f"{of('router_accuracy')} % of the clips, and loses {of('behind_known')} points against the known domain; its "
        f"mean confidence is {of('router_confidence')} %."
    ]


TABLES = {"domains/figures": figures, "domains/cross": cross, "domains/tasks": tasks, "domains/methods": methods}
FILES = {name: FILE for name in (*TABLES, FILE)}  # written down by nobody as long as there are no records
