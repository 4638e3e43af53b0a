"""The official scoring of published sets of questions, by the lines that ``head=classify`` writes.

A line says in ``published`` whose question it is (``set``) and what that set's rules need.

vqav2: VQA's accuracy (``official``), of all questions and of each answer type. textvqa: the same, always normalised.
vizwiz: the same as VizWiz' own program has it, of all questions and of each answer type; and how well questions that
cannot be answered are told, average precision and F1 of the score of the label ``unanswerable``. gqa: whether the
answer is the right one, letter by letter, of balanced questions, of binary and open ones of them; consistency: of each
balanced question that was answered rightly the share of right answers among those that it entails, as far as they were
asked. (GQA's validity, plausibility and distribution need files beside the questions, and grounding needs attention
maps.)
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torchmetrics.functional.classification import binary_average_precision, binary_f1_score

from hvlm.metrics.vqa import Variant, vqa_accuracy

Each = dict[str, list[tuple[float, Hashable]]]
VARIANT: dict[str, Variant] = {"vqav2": "official", "textvqa": "always_normalised", "vizwiz": "vizwiz"}
SETS = (*VARIANT, "gqa")
UNANSWERABLE = "unanswerable"
NOBODYS = "\0"  # an answer that nobody gives


def means(lines: Sequence[Mapping[str, Any]]) -> Each:
    """{metric: [(value of a question, its video)]} of lines that belong to a published set."""
    found: Each = {}
    gqa = {_id(line): line for line in lines if _set(line) == "gqa"}
    for line in lines:
        of = line.get("published") or {}
        name, video = of.get("set"), line.get("cluster") or line.get("question_id")
        kinds = ["accuracy"]
        if name in VARIANT and line.get("people"):
            value = vqa_accuracy(line["answer"] or NOBODYS, line["people"], VARIANT[name])
            kinds += [str(of["kind"]).replace("/", "_").replace(" ", "_")] if "kind" in of else []
        elif name == "gqa" and of.get("balanced", True):
            value = float(_right(line))
            kinds += [of["kind"]] if "kind" in of else []
            others = [gqa[other] for other in of.get("entailed", ()) if other in gqa]
            if value and others:
                share = sum(map(_right, others)) / len(others)
                found.setdefault("gqa/consistency", []).append((share, video))
        else:
            continue
        for kind in kinds:
            found.setdefault(f"{name}/{kind}", []).append((value, video))
    return found


def of_all(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """{metric: value} of what is no mean over questions."""
    told = [line for line in lines if _set(line) == "vizwiz" and UNANSWERABLE in line]
    scores = torch.tensor([line[UNANSWERABLE] for line in told])
    truth = torch.tensor([not line["published"].get("answerable", True) for line in told], dtype=torch.int64)
    if not len(truth) or not bool(truth.any()):
        return {}
    ap, f1 = binary_average_precision(scores, truth), binary_f1_score(scores, truth)
    return {"vizwiz/unanswerable_ap": float(ap), "vizwiz/unanswerable_f1": float(f1)}


def _set(line: Mapping[str, Any]) -> str | None:
    return (line.get("published") or {}).get("set")


def _id(line: Mapping[str, Any]) -> str:
    return str(line["question_id"]).rpartition("/")[2]


def _right(line: Mapping[str, Any]) -> bool:
    return line["answer"] in line["weights"]
