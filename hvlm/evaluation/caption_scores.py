"""What written captions are worth against references, with errors clustered by video where a figure is a mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hvlm.evaluation.answers import plain
from hvlm.evaluation.scores import Prediction, Tries, means_and_tasks, problems, variants_of
from hvlm.metrics.captions import ORDERS, BleuCounts, Item, bleu, bleu_counts, cider_d, rouge_l
from hvlm.metrics.meteor import meteor, meteor_counts
from hvlm.metrics.words import all_words


def score_captions(predictions: Iterable[Prediction], apart: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Rows for each variant.

    cider_d (0 to 10), meteor_exact_stem and rouge_l (0 to 1): ``<metric>_macro`` (mean over tasks), ``<metric>_micro``
    (mean over captions) and ``<metric>/<task>``. In all of CIDEr-D's figures words weigh what they weigh in the
    references of all captions, and its standard error takes these weights as given.
    bleu_1 to bleu_4: ``<metric>_corpus`` and ``<metric>/<task>``; of a corpus, so that there is no standard error.
    No words at all are worth 0.
    """
    out = []
    for variant, questions in variants_of(predictions).items():
        items = _items(questions)
        worth = {
            "cider_d": dict(zip(items, cider_d(list(items.values())), strict=True)),
            "meteor_exact_stem": {name: meteor(meteor_counts(item)) for name, item in items.items()},
            "rouge_l": {name: rouge_l(item) for name, item in items.items()},
        }
        rows: list[dict[str, Any]] = []
        for metric, values in worth.items():
            rows += means_and_tasks(metric, questions, lambda tries, of=values: of[tries[0].question_id], apart)
        rows += _bleu_rows(questions, items, apart)
        out += [{"variant": variant, **row} for row in rows + problems(questions)]
    return out


def _items(questions: Sequence[Tries]) -> dict[str, Item]:
    """{question: its words and those of its references}."""
    names = [tries[0].question_id for tries in questions]
    said = [plain(tries[0].text or "") for tries in questions]
    return dict(zip(names, all_words(said, [tries[0].answers for tries in questions]), strict=True))


def _bleu_rows(questions: Sequence[Tries], items: Mapping[str, Item], apart: Sequence[str]) -> list[dict[str, Any]]:
    tasks = sorted({tries[0].task for tries in questions})
    left_out = [task for task in tasks if task in apart]
    without = f"_without_{','.join(left_out)}" if left_out else ""
    parts = {f"_corpus{without}": [q for q in questions if q[0].task not in apart]}
    parts |= {f"/{task}": [q for q in questions if q[0].task == task] for task in tasks}
    found = {}
    for part, of in parts.items():
        if of:
            counts = [bleu_counts(items[q[0].question_id]) for q in of]
            shared = {"stderr": None, "n": len(of), "videos": len({q[0].key for q in of}), "chance": None}
            found[part] = (bleu(_sum(counts)), shared)
    return [
        {"metric": f"bleu_{n + 1}{part}", "value": scores[n], **shared}
        for n in range(ORDERS)
        for part, (scores, shared) in found.items()
    ]


def _sum(counts: Sequence[BleuCounts]) -> BleuCounts:
    def of_orders(rows: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
        return tuple(map(sum, zip(*rows, strict=True)))

    return BleuCounts(
        of_orders(one.matched for one in counts), of_orders(one.possible for one in counts),
        sum(one.candidate for one in counts), sum(one.reference for one in counts),
    )  # fmt: skip
