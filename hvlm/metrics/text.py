"""Captions and answers against references, as torchmetrics classes.

``update(candidates, references)`` takes one text an item and its references, one or more. All figures are between 0 and
1, CIDEr-D between 0 and 10. The formulas stand in ``captions``, ``meteor`` and ``vqa``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from hvlm.metrics.captions import ORDERS, BleuCounts, bleu, bleu_counts, cider_d, rouge_l
from hvlm.metrics.meteor import MeteorCounts, meteor, meteor_counts
from hvlm.metrics.states import Items, Sums, share
from hvlm.metrics.vqa import VARIANTS, Variant, vqa_accuracy
from hvlm.metrics.words import all_words

References = Sequence[Sequence[str]]


class CIDErD(Items):
    """CIDEr-D. Every item is held until the end, for how much a word weighs is known only then."""

    higher_is_better = True

    def update(self, candidates: Sequence[str], references: References) -> None:
        """Add items. ValueError for one without references."""
        self.hold([[candidate, list(of_one)] for candidate, of_one in all_words(candidates, references)])

    def items(self) -> list[float]:
        """The figure of every item of this process, with the weights that its items give."""
        return cider_d(self.held())

    def compute(self) -> Tensor:
        """Mean over the items of all processes, float32."""
        found = self.items()
        return torch.tensor(sum(found) / len(found) if found else float("nan"), device=self.device)


class BLEU(Sums):
    """BLEU-1 to 4 of the whole corpus, as COCO's evaluation has them.

    torchmetrics' BLEUScore takes the first of two references as near in length, where COCO takes the shorter one, and
    gives exactly 0 where an order has no match.
    """

    higher_is_better = True

    def __init__(self) -> None:
        super().__init__()
        self.add_sum("matched", int, ORDERS)
        self.add_sum("possible", int, ORDERS)
        self.add_sum("lengths", int, 2)

    def update(self, candidates: Sequence[str], references: References) -> None:
        """Add items. ValueError for one without references."""
        for item in all_words(candidates, references):
            counts = bleu_counts(item)
            self.matched += torch.tensor(counts.matched, device=self.device)
            self.possible += torch.tensor(counts.possible, device=self.device)
            self.lengths += torch.tensor([counts.candidate, counts.reference], device=self.device)

    def compute(self) -> dict[str, Tensor]:
        """{"bleu_1": ..., "bleu_4": ...}, float32."""
        counts = BleuCounts(tuple(self.matched.tolist()), tuple(self.possible.tolist()), *self.lengths.tolist())
        return {f"bleu_{n}": torch.tensor(x, device=self.device) for n, x in enumerate(bleu(counts), start=1)}


class ROUGEL(Sums):
    """ROUGE-L with COCO's beta, the mean over items. (torchmetrics' ROUGEScore has F1, beta 1.)"""

    higher_is_better = True

    def __init__(self) -> None:
        super().__init__()
        self.add_sum("total")
        self.add_sum("count", int)

    def update(self, candidates: Sequence[str], references: References) -> None:
        """Add items. ValueError for one without references."""
        for item in all_words(candidates, references):
            self.total += rouge_l(item)
            self.count += 1

    def compute(self) -> Tensor:
        """Float32."""
        return share(self.total, self.count)


class METEORExactStem(Sums):
    """METEOR 1.5 with its modules "exact" and "stem" alone: without synonyms and paraphrases it is lower than METEOR.

    average: ``items``: the mean of the items' scores; ``corpus``: the score of their summed counts, which is what
        METEOR's program prints.
    """

    higher_is_better = True

    def __init__(self, average: Literal["items", "corpus"] = "items") -> None:
        super().__init__()
        if average not in ("items", "corpus"):
            raise ValueError(f"average={average!r}: expected items or corpus")
        self.average = average
        self.add_sum("counts", float, len(MeteorCounts._fields))
        self.add_sum("total")
        self.add_sum("count", int)

    def update(self, candidates: Sequence[str], references: References) -> None:
        """Add items. ValueError for one without references."""
        for item in all_words(candidates, references):
            counts = meteor_counts(item)
            self.counts += torch.tensor(counts, dtype=torch.float64, device=self.device)
            self.total += meteor(counts)
            self.count += 1

    def compute(self) -> Tensor:
        """Float32."""
        if self.average == "corpus" and self.count:
            return torch.tensor(meteor(MeteorCounts(*self.counts.tolist())), device=self.device)
        return share(self.total, self.count)


class SoftVQAAccuracy(Sums):
    """VQA's accuracy, the mean over questions.

    variant: ``official`` (VQA's own program: normalised only where the people's answers differ) or
        ``always_normalised`` (as EvalAI and lmms-eval); figures of the two are not to be mixed.
    """

    higher_is_better = True

    def __init__(self, variant: Variant = "official") -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"variant={variant!r}: expected one of {', '.join(VARIANTS)}")
        self.variant = variant
        self.add_sum("total")
        self.add_sum("count", int)

    def update(self, answers: Sequence[str], people: References) -> None:
        """Add questions: what was said, and what each person answered."""
        for answer, of_one in zip(answers, people, strict=True):
            self.total += vqa_accuracy(answer, of_one, self.variant)
            self.count += 1

    def compute(self) -> Tensor:
        """Float32."""
        return share(self.total, self.count)
