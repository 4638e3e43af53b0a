"""Tables of fusion: its pieces at equal cost, retrieval in two steps, what sparse fusion costs, easy-VQA."""

from __future__ import annotations

from experiments.tables._records import Record, one, percent, some, table

FILE, SPEED, EASY = "hivilt/results.json", "hivilt/speed.json", "easy_vqa/results.json"
GROUPS = ("bind", "beside", "whole", "all")
PIECES = {
    "hivilt": "hivilt: local and global fusion",
    "no_local": "without local fusion",
    "no_global": "without global fusion",
    "none": "no fusion, more layers of the language model",
    "single_stream": "self-attention over both",
    "late": "late interaction (FILIP)",
    "cross_encoder": "cross-encoder (ALBEF)",
    "latents": "latents (Perceiver)",
}
FURTHER = {
    **{f"progressive_{n}": f"progressive, {n} level{'s' * (n > 1)}" for n in range(1, 5)},
    **{f"pool_{kind}": f"hivilt, {kind} pooling" for kind in ("max", "attention", "adaptive")},
}
KEYS = {
    "frames_hivilt": "hivilt: all 64 keys",
    "frames_sparse_16": "sparse, 16 keys",
    "frames_sparse_4": "sparse, 4 keys",
}
TWO_STEPS = {
    "rerank": "of the clip, of the batch",
    "rerank_mined": "then four of the whole split",
    "rerank_mined_more": "then eight",
}
CONTROLS = {"question_counted": "the commonest answer to the question", "picture_ceiling": "pictures alone, at most"}
ROOMS = {"sparse_chosen": "sparse, `update=chosen`", "sparse_all": "sparse, `update=all`"}
EASY_ROWS = {
    "full": "picture and question",
    "question": "question alone, learned",
    "question_counted": "question alone, counted",
    "picture": "picture alone, learned",
    "most_common": "the commonest answer",
}


def _seeds(record: Record) -> str:
    return str(len(record["seeds"]))


def _of(variants: dict[str, str]) -> list[tuple[str, ...]]:
    rows = []
    for variant, label in variants.items():
        if not some(FILE, variant=variant, metric="accuracy", group="all"):
            continue
        scores = [one(FILE, variant=variant, metric="accuracy", group=group) for group in GROUPS]
        found = some(FILE, variant=variant, metric="gain", group="all")
        gain = percent(found[0]) if found else ""
        found = some(FILE, variant=variant, metric="behind", group="all")
        behind = percent(found[0]) if found else ""
        blind = some(FILE, variant=variant, metric="accuracy_blind", group="all")
        cost = [some(FILE, variant=variant, metric=metric) for metric in ("parameters", "prefill_flops")]
        costs = (f"{cost[0][0]['value'] / 1e6:.3f}", f"{cost[1][0]['value'] / 1e6:.1f}") if all(cost) else ("", "")
        seeds = _seeds(scores[0]) if blind else ""
        rows.append((label, seeds, *map(percent, scores), gain, behind, percent(blind[0]) if blind else "", *costs))
    return rows


HEAD = (
    "",
    "seeds",
    "bind",
    "beside",
    "whole",
    "all",
    "gain over no fusion",
    "behind hivilt",
    "black frames",
    "M weights",
    "M operations",
)


def pieces() -> list[str]:
    return table(HEAD, [*_of(PIECES), *_of(CONTROLS)])


def further() -> list[str]:
    return table(HEAD, _of({"hivilt": PIECES["hivilt"]} | FURTHER))


def keys() -> list[str]:
    gain = HEAD.index("gain over no fusion")  # of other clips: there is none
    rows = [(*row[:gain], *row[gain + 1 :]) for row in _of(KEYS)]
    head = [name.replace("behind hivilt", "behind all keys") for name in HEAD if name != HEAD[gain]]
    return table(tuple(head), rows)


def speed() -> list[str]:
    rows = []
    for tokens in sorted({r["tokens"] for r in some(SPEED)}):
        for variant, label in ROOMS.items():
            found = [one(SPEED, variant=variant, metric=f"{way}_{what}", tokens=tokens)["value"]
                     for way in ("forward", "backward") for what in ("factor", "memory_factor")]  # fmt: skip
            ms = [one(SPEED, variant=v, metric=f"{way}_ms", tokens=tokens)["value"]
                  for way in ("forward", "backward") for v in ("hivilt", variant)]  # fmt: skip
            times = (f"{ms[0]:.1f} / {ms[1]:.1f}", f"{ms[2]:.1f} / {ms[3]:.1f}")
            rows.append((f"{tokens:,}", label, times[0], *(f"{x:.2f} ×" for x in found[:2]),
                         times[1], *(f"{x:.2f} ×" for x in found[2:])))  # fmt: skip
    head = ("visual tokens", "", "forward, dense / sparse ms", "faster", "less memory")
    return table((*head, "with backward, dense / sparse ms", "faster", "less memory"), rows)


def rerank() -> list[str]:
    rows = []
    for variant, learned in TWO_STEPS.items():
        for way, words in (("video_to_text", "text of a video"), ("text_to_video", "video of a text")):
            found = [some(FILE, variant=variant, metric=f"rerank/{way}/r@1_{name}")
                     for name in ("before", "after", "gain", "sum", "sum_gain")]  # fmt: skip
            if all(found[:3]):
                cells = (percent(one_of[0]) if one_of else "" for one_of in found)
                rows.append((learned, words, _seeds(found[0][0]), *cells))
    return table(("wrong texts", "", "seeds", "R@1 by embeddings", "by matching", "gain", "by both", "gain"), rows)


def easy_vqa() -> list[str]:
    rows = []
    for variant, label in EASY_ROWS.items():
        for record in some(EASY, variant=variant, metric="accuracy"):
            took = [some(EASY, variant=variant, metric=name) for name in ("train_minutes", "train_cpu_minutes")]
            minutes = [f"{of[0]['value']:.1f}" if of else "" for of in took]
            rows.append((label, percent(record), *minutes))
    return table(("", "accuracy on the published test split", "minutes of training", "of a processor"), rows)


TABLES = {"hivilt/pieces": pieces, "hivilt/further": further, "hivilt/keys": keys, "hivilt/rerank": rerank,
          "hivilt/speed": speed, "easy_vqa": easy_vqa}  # fmt: skip
FILES = {name: FILE for name in ("hivilt/pieces", "hivilt/further", "hivilt/keys", "hivilt/rerank", FILE)}
FILES |= {"hivilt/speed": SPEED, SPEED: SPEED, "easy_vqa": EASY, EASY: EASY}
