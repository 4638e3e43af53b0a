"""Tables of the heads that write no text."""

from __future__ import annotations

from experiments.tables._records import Record, one, percent, some, table

FILE = "heads/results.json"
AT = ("map/0.30", "map/0.50", "map/0.70", "map/mean")
DETECTORS = {
    "detect": "ActionFormer's head, one token a frame, no attention",
    "trident": "ends as TriDet finds them",
    "causal": "causal, 6 frames of look-ahead",
    "longvlm": "connector longvlm",
    "foveated": "connector foveated (coarse)",
    "local_global": "attention local_global",
    "full": "attention full",
    "mamba2": "attention mamba2",
}
CONTROLS = {
    "detect_blind": "the head on black frames",
    "class_prior": "where events of each class mostly are",
    "uniform": "segments of every length everywhere",
}
WAYS = {"video_to_text": "text of a video", "text_to_video": "video of a text"}
CAPTIONS = {"cider_d_micro": "CIDEr-D", "bleu_4_corpus": "BLEU-4", "meteor_exact_stem_micro": "METEOR (exact + stem)",
            "rouge_l_micro": "ROUGE-L"}  # fmt: skip


def _seeds(record: Record) -> str:
    return str(len(record["seeds"]))


def detect() -> list[str]:
    rows = []
    for variant, label in DETECTORS.items():
        if not some(FILE, variant=variant, metric="map/mean"):
            continue
        scores = [one(FILE, variant=variant, metric=metric) for metric in AT]
        flops = one(FILE, variant=variant, metric="prefill_flops")["value"]
        tokens = one(FILE, variant=variant, metric="visual_tokens")["value"]
        step = one(FILE, variant=variant, metric="cpu_seconds_a_step")["value"]
        cost = (f"{tokens:.0f}", f"{flops / 1e9:.1f}", f"{1000 * step:.0f} ms")
        rows.append((label, _seeds(scores[0]), *map(percent, scores), *cost))
    for variant, label in CONTROLS.items():
        if some(FILE, variant=variant, metric="map/mean"):
            scores = [one(FILE, variant=variant, metric=metric) for metric in AT]
            rows.append((label, _seeds(scores[0]), *map(percent, scores), "", "", ""))
    head = ("", "seeds", "tIoU 0.3", "0.5", "0.7", "mean of 0.3 to 0.7")
    return table((*head, "visual tokens", "GFLOPs a clip", "processor time of a step"), rows)


def retrieve() -> list[str]:
    rows = []
    for variant, label in (("retrieve", "retrieve"), ("retrieve_blind", "on black frames")):
        for way, words in WAYS.items():
            hits = [one(FILE, variant=variant, metric=f"{way}/r@{k}") for k in (1, 5, 10)]
            rank = one(FILE, variant=variant, metric=f"{way}/median_rank")["value"]
            hard = percent(one(FILE, variant=variant, metric="hard_negatives")) if way == "video_to_text" else ""
            rows.append((label, words, _seeds(hits[0]), *map(percent, hits), f"{rank:.0f}", hard))
    return table(("", "", "seeds", "R@1", "R@5", "R@10", "median rank", "hard negatives"), rows)


def captions() -> list[str]:
    rows = []
    for variant, label in (("captions", "captions"), ("captions_blind", "on black frames")):
        found = [some(FILE, variant=variant, metric=metric) for metric in CAPTIONS]
        if all(found):
            rows.append((label, _seeds(found[0][0]), *(f"{one_of[0]['value']:.2f}" for one_of in found)))
    return table(("", "seeds", *CAPTIONS.values()), rows)


TABLES = {"heads/detect": detect, "heads/retrieve": retrieve, "heads/captions": captions}
FILES = {name: FILE for name in (*TABLES, FILE)}  # written down by nobody as long as there are no records
