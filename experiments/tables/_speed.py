"""Tables of speeds, memory and errors: attention, merging, foveation, precisions and the reader."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from experiments.tables._records import Record, one, read, some, table

SPEED, FEATURES, ATTENTION = "attention/speed.json", "attention/features.json", "attention/results.json"
MERGING, FOVEATION, BENCH = "merging/speed.json", "foveation/results.json", "speed/results.json"
FORWARD, BOTH = "forward", "forward_backward"
SETTINGS = {"fp32": "float32", "fp32_fast": 'float32, matmul "medium"', "bf16": "bfloat16"}
JUDGED = (4096, 16384)  # tokens at which goals are set
OTHERS = (512, 1024, 2048, 8192, 32768)
MECHANISMS = {  # {mechanism: (its name here, the peer that it is compared with)}
    "window": ("window ±64", "local-attention"),
    "favor": ("FAVOR+ of equal error", "performer-pytorch"),
    "favor_256": ("FAVOR+, 256 features", "performer-pytorch"),
    "linear": ("linear (elu)", "linear-attention-transformer"),
    "mamba": ("S6", "mambapy"),
    "mamba2": ("SSD", "transformers' Mamba2"),
    "strided_64": ("strided 64", "SDPA"),
    "strided_4": ("strided 4", "SDPA"),
}


# ------------------------------------------------------------------------------------------------- speed of attention


def cell(mechanism: str, length: int, setting: str, which: str) -> Record:
    return one(SPEED, mechanism=mechanism, length=length, dtype=setting, **{"pass": which})


def ratio(mechanism: str, length: int, setting: str, which: str) -> str:
    """How many times the peer's time is ours; ``>`` where the peer went over its limit."""
    ours = cell(mechanism, length, setting, which)
    bound = cell(ours["peer"], length, setting, which)["status"] != "ok"
    return f"{'> ' if bound else ''}{ours['ratio']:.2f}"


def ratios(mechanism: str, length: int, setting: str) -> str:
    return " / ".join(ratio(mechanism, length, setting, which) for which in (FORWARD, BOTH))


def goals() -> dict[str, dict[int, tuple[float, float]]]:
    """{mechanism: {length: what was aimed at, forward and with backward}}."""
    from experiments.attention._mechanisms import FAMILIES

    return {family.ours: family.goals for family in FAMILIES.values()}


def attention_speed() -> list[str]:
    aimed = goals()

    def row(name: str, length: int) -> list[str]:
        label, peer = MECHANISMS[name]
        memory = min(cell(name, length, s, which)["memory_ratio"] for s in SETTINGS for which in (FORWARD, BOTH))
        goal = " / ".join(f"{g:g}" for g in aimed[name][length]) if name in aimed else ""
        return [f"{label}, {peer}", f"{length:,}", *(ratios(name, length, s) for s in SETTINGS), goal, f"{memory:.2f}"]

    head = ("ours, against", "tokens", *SETTINGS.values(), "aimed at", "memory")
    return table(head, (row(name, length) for name in MECHANISMS for length in JUDGED))


def attention_goals() -> list[str]:
    """One sentence: how many comparisons reach what was aimed at, and which do not."""
    places = [
        (name, length, setting, which, goal)
        for name, lengths in goals().items() for length, pair in lengths.items()
        for setting in SETTINGS for which, goal in zip((FORWARD, BOTH), pair, strict=True)
    ]  # fmt: skip
    below = [p for p in places if cell(*p[:4])["ratio"] < p[4]]
    words = [
        f"{MECHANISMS[name][0]} at {length:,} tokens in {SETTINGS[setting]}, "
        f"{'with backward' if which == BOTH else which} "
        f"({cell(name, length, setting, which)['ratio']:.3f} for {goal:g})"
        for name, length, setting, which, goal in below
    ]  # fmt: skip
    return [f"{len(places) - len(below)} of the {len(places)} comparisons reach what was aimed at. The others: "
            f"{'; '.join(words)}."]  # fmt: skip


def attention_lengths(setting: str) -> list[str]:
    rows = ([label, *(ratios(name, n, setting) for n in OTHERS)] for name, (label, _) in MECHANISMS.items())
    return table((f"{SETTINGS[setting]}, tokens", *(f"{n:,}" for n in OTHERS)), rows)


def attention_floor() -> list[str]:
    """The distance to what a mechanism's operations alone would take."""

    def span(name: str, setting: str) -> str:
        found = [cell(name, n, setting, which)["floor_ratio"] for n in JUDGED for which in (FORWARD, BOTH)]
        return f"{min(found):.2f} to {max(found):.2f}"

    names = goals()
    rows = ([MECHANISMS[name][0], *(span(name, setting) for setting in SETTINGS)] for name in names)
    return table(("times the floor, 4,096 and 16,384 tokens", *SETTINGS.values()), rows)


def attention_features() -> list[str]:
    ways = (("equal", 128), ("equal", 256), ("gaussian", 256), ("performer_pytorch", 256), ("mean", None))
    names = {"equal": "ours, rows of equal length", "gaussian": "ours, Gaussian rows",
             "performer_pytorch": "performer-pytorch", "mean": "the values' mean"}  # fmt: skip
    kinds = {"normal": "independent", "grouped": "in groups that are alike", "trained": "of a trained full attention"}

    def row(kind: str, scale: float | None) -> list[str]:
        found = [some(FEATURES, inputs=kind, scale=scale, variant=way, features=n) for way, n in ways]
        trained = kind == "trained"  # its heads are narrower: features in the same proportion
        if trained:
            found = [some(FEATURES, inputs=kind, variant=way, features=n and n // 2) for way, n in ways]
        cells = [f"{r[0]['value']:.3f} ± {r[0]['stderr']:.3f}" if r else "" for r in found]
        return [kinds[kind], "" if scale is None else f"{scale:g}", *cells]

    places = dict.fromkeys((r["inputs"], r["scale"]) for r in read(FEATURES))
    head = [f"{names[way]}{f', {n}' if n else ''}" for way, n in ways]
    return table(("queries and keys", "size", *head), (row(*place) for place in places))


def two_hours() -> list[str]:
    def row(frames: int) -> list[str]:
        cells = [one(ATTENTION, variant=f"cross_memory_{mode}", metric="peak_mb", frames=frames)["value"]
                 for mode in ("merge", "fifo", "write")]  # fmt: skip
        memory = {r["value"] for r in some(ATTENTION, metric="memory_bytes", frames=frames)}
        return [f"{frames:,}", *(f"{mb:.0f}" for mb in cells), " / ".join(f"{b:,.0f}" for b in sorted(memory))]

    frames = sorted({r["frames"] for r in some(ATTENTION, metric="peak_mb")})
    return table(("frames", "merge, MB", "fifo, MB", "write, MB", "bytes of the memory itself"), map(row, frames))


# ------------------------------------------------------------------------------------------------------------ merging


STRAIGHT = "straightforward"


def merging_matching() -> list[str]:
    def row(shape: str, precision: str) -> list[str]:
        where = {"shape": shape, "matmul_precision": precision}
        own, theirs = (one(MERGING, variant=v, metric="latency_ms", **where)["value"] for v in ("tome", STRAIGHT))
        return [shape, precision, f"{own:.1f}", f"{theirs:.1f}", f"{own / theirs:.2f}"]

    places = dict.fromkeys((r["shape"], r["matmul_precision"]) for r in read(MERGING) if r.get("shape"))
    return table(("matching and merging", "matmul precision", "ours, ms", "straightforward, ms", "ratio"),
                 (row(*place) for place in sorted(places)))  # fmt: skip


def merging_saves() -> list[str]:
    def row(name: str, frames: int) -> list[str]:
        where = {"variant": name, "frames": frames, "keep": 0.25}
        found = {m: one(MERGING, metric=f"{m}_ms", **where)["value"] / 1e3 for m in ("score", "merge", "read", "saves")}
        return [f"{frames}", name, *(f"{seconds:.2f}" for seconds in found.values())]

    variants = [r["variant"] for r in some(MERGING, metric="saves_ms", frames=64)]
    rows = (row(name, frames) for frames in (64, 128) for name in variants)
    return table(
        ("frames", "a quarter of 256 patches each", "scoring, s", "merging, s", "reading, s", "saves, s"), rows
    )


def merging_training() -> list[str]:
    found = {name: one(MERGING, variant=name, metric="samples_per_s")["value"] for name in ("none", "adaptive")}
    rows = ([name, f"{speed:.3g}", f"{speed / found['none']:.1f}"] for name, speed in found.items())
    return table(("64 frames of 256 patches, dense", "clips/s in training", "times none"), rows)


# ---------------------------------------------------------------------------------------------------------- foveation


def foveation_cost() -> list[str]:
    names = {"coarse_fine": "coarse→fine", "static": "static query", "mean": "mean-pooled", "dense": "dense patches"}
    metrics: dict[str, Callable[[float], str]] = {
        "prefill_flops": lambda v: f"{v / 1e12:.3g}", "latency_ms": lambda v: f"{v / 1e3:.3g}",
        "kv_bytes": lambda v: f"{v / 1e6:.3g}", "visual_tokens": lambda v: f"{v:,.0f}",
    }  # fmt: skip

    def row(frames: int, name: str) -> list[str]:
        where = {"variant": name, "frames": frames, "size": "135m"}
        return [
            f"{frames}",
            names[name],
            *(show(one(FOVEATION, metric=m, **where)["value"]) for m, show in metrics.items()),
        ]

    head = ("frames", "", "TFLOP", "seconds", "MB of keys and values", "visual tokens")
    return table(head, (row(frames, name) for frames in (8, 32) for name in names))


def foveation_long() -> list[str]:
    def row(frames: int) -> list[str]:
        where = {"variant": "long_coarse_fine", "frames": frames}
        seconds, peak = (one(FOVEATION, metric=m, **where)["value"] for m in ("latency_ms", "peak_mb"))
        return [f"{frames:,}", f"{seconds / 1e3:.0f}", f"{peak:.0f}"]

    frames = sorted({r["frames"] for r in some(FOVEATION, variant="long_coarse_fine")})
    return table(("frames", "seconds", "MB beyond weights and frames"), map(row, frames))


# -------------------------------------------------------------------------------------------------------------- speed


def precisions() -> list[str]:
    names = {"sft_step": "SFT step of the demo", "vision_step": "vision step of the demo",
             "dinov2_small_forward": "DINOv2-small forward, frames"}  # fmt: skip

    def row(case: str) -> list[str]:
        single, half = (one(BENCH, case=case, dtype=dtype) for dtype in ("32-true", "bf16-mixed"))
        return [names[case], f"{single['value']:.3g}", f"{half['value']:.3g}", f"{half['ratio_to_fp32']:.2f}"]

    return table(("samples a second", "float32", "bfloat16", "ratio"), map(row, names))


def reader() -> list[str]:
    return table(("", "clips/s"), ([r["variant"], f"{r['value']:.0f}"] for r in some(BENCH, case="reading")))


def prepare() -> list[str]:
    names = {
        "decode": "decoding alone",
        "floor": "decoding and writing alone",
        "prepare": "hvlm prepare, with all checks",
    }

    def row(r: Record) -> list[str]:
        shares = [plus_minus(r[f"{clock}_of_decode"], r[f"{clock}_of_decode_stderr"]) for clock in ("wall", "cpu")]
        return [names[r["variant"]], f"{r['value']:.0f}", shares[0], f"{r['cpu_s']:.1f}", shares[1]]

    def plus_minus(share: float, error: float) -> str:
        return f"{share:.3f} ± {error:.3f}" if error else f"{share:.2f}"

    head = ("", "rows a second", "of the first", "CPU seconds", "of the first")
    return table(head, map(row, read("prepare/results.json")))


def decoders() -> list[str]:
    names = {"ten_minutes": "ten minutes of H.264, 640x360"}

    def row(decoded: Record) -> list[str]:
        where = {"case": decoded["case"], "num_frames": decoded["num_frames"]}
        decord = one(BENCH, variant="decord", metric="frames_per_cpu_s", **where)["value"]
        equal = one(BENCH, metric="frames_equal_to_decord", **where)["value"]
        return [names.get(decoded["case"], decoded["case"]), str(decoded["num_frames"]), f"{decoded['value']:.0f}",
                f"{decord:.0f}", f"{decoded['value'] / decord:.2f}", f"{100 * equal:g} %"]  # fmt: skip

    head = ("frames a CPU second, one thread", "frames sampled", "pyav", "decord", "ratio", "frames with equal pixels")
    return table(head, map(row, some(BENCH, variant="pyav", metric="frames_per_cpu_s")))


def decoders_in_short() -> list[str]:
    def ratio(decoded: Record) -> float:
        where = {"case": decoded["case"], "num_frames": decoded["num_frames"], "metric": "frames_per_cpu_s"}
        return decoded["value"] / one(BENCH, variant="decord", **where)["value"]

    ours = some(BENCH, variant="pyav", metric="frames_per_cpu_s")
    (long,) = (ratio(record) for record in ours if record["case"] == "ten_minutes")
    short = [ratio(record) for record in ours if record["case"] != "ten_minutes"]
    return [
        f"Frames a CPU second, pyav to decord: {long:.1f} on ten minutes of H.264, "
        f"{min(short):.1f} to {max(short):.1f} on clips of 4 to 10 seconds."
    ]


def rooms_for_language() -> list[str]:
    names = {"step": "a training step, one row of 128", "reading": "reading, 4 rows of 128",
             "writing": "writing 16 after 32"}  # fmt: skip

    def row(case: str) -> list[str]:
        own, any_ = (one(BENCH, case=f"smollm2_135m_{case}", variant=v) for v in ("smollm2", "causal"))
        return [names[case], f"{own['value']:.3g}", f"{any_['value']:.3g}", f"{any_['ratio_to_smollm2']:.3f}"]

    head = ("tokens a CPU second, one thread", "language=smollm2_135m", "language=causal", "ratio in turns")
    return table(head, map(row, names))


def by_setting() -> Iterator[tuple[str, Callable[[], list[str]]]]:
    for setting in SETTINGS:
        yield f"attention/speed/{setting}", lambda setting=setting: attention_lengths(setting)


TABLES: dict[str, Callable[[], list[str]]] = {
    "attention/speed": attention_speed,
    "attention/speed/goals": attention_goals,
    **dict(by_setting()),
    "attention/speed/floor": attention_floor,
    "attention/features": attention_features,
    "attention/two_hours": two_hours,
    "merging/speed": merging_matching,
    "merging/saves": merging_saves,
    "merging/training": merging_training,
    "foveation/cost": foveation_cost,
    "foveation/long": foveation_long,
    "speed/precision": precisions,
    "speed/reader": reader,
    "prepare": prepare,
    "speed/causal": rooms_for_language,
    "speed/decoders": decoders,
    "speed/decoders/short": decoders_in_short,
}
