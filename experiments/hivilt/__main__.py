"""What do the pieces of HiViLT's fusion add, at equal cost, to a language model that sees video and question itself?

    python -m experiments.hivilt [--seeds 1 2 3] [--cells hivilt none ...] [--collect]

On the built-in set "binding": ``local`` are questions about one thing among others (``bind``: which colour has the
star) and about neighbours (``beside``: which shape is left of the red one), ``whole`` about all of them (which colour
is there twice, how many). ``hivilt`` stands beside itself without local and without global fusion, other fusions, and
``none``, whose language model has as many more layers instead (_cells.py). Then: keys that are kept of the 64 tokens of
four frames (``frames_*``), levels of a pyramid, kinds of pooling. ``rerank`` learns embeddings and matching on the set
"pairs" together, and ranks the ten nearest anew; ``rerank_mined`` learns on with wrong texts mined from the whole
training split, ``rerank_mined_more`` further on with twice as many.

``accuracy_blind`` is the same model on black frames. ``question_counted`` answers what was said most often to that
question in training, ``picture_ceiling`` is the most that someone could have right who sees every picture and not which
question.

``gain`` is the difference to ``none``, ``behind`` that to ``hivilt`` (of ``frames_*``: to ``frames_hivilt``), question
by question. Errors are clustered by
clip. One cell after the other, in one process on one thread; what is finished is not done again. Adds to results.json
beside this file.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.hivilt import _cells as cells
from hvlm import assembly
from hvlm.config.compose import compose
from hvlm.console import setup_logging
from hvlm.data import samples
from hvlm.data.tar import TEXT_FIELDS
from hvlm.dataset._needles_binding import LOCAL, WHOLE
from hvlm.evaluation import results
from hvlm.evaluation.evaluate import BLIND, RESULTS
from hvlm.evaluation.report import table
from hvlm.evaluation.stats import clustered_mean
from hvlm.io.json_lines import read_lines

HERE = Path(__file__).parent
QUESTION, COMMAND = "hivilt", "python -m experiments.hivilt"
GROUPS = {"bind": LOCAL[:2], "beside": LOCAL[2:], "local": LOCAL, "whole": WHOLE, "all": (*LOCAL, *WHOLE)}
COSTS = ("parameters", "prefill_flops", "fusion_parameters", "fusion_flops")  # what load does not change
CELLS = [*cells.CELLS, *cells.TWO_STEPS]
COMPARED = {"others": {"gain": "none", "behind": "hivilt"}, "keys": {"behind": "frames_hivilt"}}  # same clips only
Lines = Sequence[dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=CELLS)
    parser.add_argument("--collect", action="store_true", help="train nothing: write down what is finished")
    options = parser.parse_args()
    setup_logging()
    if not options.collect:
        for group in (cells.MAIN, cells.TWO_STEPS, cells.KEYS, cells.FURTHER):  # the most telling of every seed first
            for seed in options.seeds:
                for cell in [cell for cell in options.cells if cell in group]:
                    print(f"--- seed {seed}: {cell}", flush=True)
                    cells.two_steps(seed, cell) if cell in cells.TWO_STEPS else cells.train(seed, cell)
    records = results.merge_seeds([found for seed in range(1, 10) if (found := list(of_seed(seed)))])
    records += list(counted())
    results.update(HERE / RESULTS, records)
    print("\n".join(table([r for r in records if r.get("group") == "all" or r["metric"] in COSTS])))


def lines_of(seed: int, cell: str) -> dict[bool, Lines]:
    """{on black frames: answers} of a finished cell; empty where it is not finished."""
    run = cells.folder(seed, cell) / "eval"
    if not (run / RESULTS).exists():
        return {}
    every = list(read_lines(run / "head.jsonl"))
    return {blind: [line for line in every if (line["variant"] == BLIND) == blind] for blind in (False, True)}


def right(line: dict[str, Any]) -> float:
    return line["weights"].get(line["answer"], 0.0)


def of_seed(seed: int) -> Iterator[results.Record]:
    """The records of a seed's finished cells."""
    known = {cell: found for cell in cells.CELLS if (found := lines_of(seed, cell))}
    for cell, found in known.items():
        label = results.Label(QUESTION, cell, seed, COMMAND)
        for group, tasks in GROUPS.items():
            for metric, of in (("accuracy", found[False]), ("accuracy_blind", found[True])):
                yield mean(label, metric, group, [(line, right(line)) for line in of if line["task"] in tasks])
            for metric, other in COMPARED["keys" if cell in cells.KEYS else "others"].items():
                if other in known and other != cell:
                    theirs = {line["question_id"]: right(line) for line in known[other][False]}
                    pairs = [
                        (line, right(line) - theirs[line["question_id"]])
                        for line in found[False]
                        if line["task"] in tasks
                    ]
                    sign = 1 if metric == "gain" else -1
                    yield mean(label, metric, group, [(line, sign * value) for line, value in pairs])
        for record in results.read(cells.folder(seed, cell) / "eval" / RESULTS):
            if record["metric"] in COSTS and record["variant"] != BLIND:
                yield record | {"question": QUESTION, "command": COMMAND, "variant": cell, "seeds": [seed]}
    for cell in cells.TWO_STEPS:
        at = cells.folder(seed, cell) / "eval" / RESULTS
        for record in results.read(at) if at.exists() else ():
            yield record | {"question": QUESTION, "command": COMMAND, "variant": cell, "seeds": [seed]}


def mean(
    label: results.Label, metric: str, group: str, found: Sequence[tuple[dict[str, Any], float]]
) -> results.Record:
    """The mean over tasks, each weighing the same, with its standard error clustered by clip."""
    value, stderr = clustered_mean(
        [v for _, v in found], [line["cluster"] for line, _ in found], [line["task"] for line, _ in found]
    )
    return label._replace(columns={"group": group}).record(metric, value, stderr=stderr, n=len(found), seconds=0)


# ------------------------------------------------------------------------------------------------------------ controls


def counted() -> Iterator[results.Record]:
    """What is right without the picture, and at most without the question, by counting."""
    data = assembly.dataset(compose([*cells.TASK, *cells.DATA]))
    train, test = (list(_exchanges(data.manifest().split(split))) for split in ("train", "test"))
    said: dict[str, Counter[str]] = defaultdict(Counter)
    for line in train:
        said[line["question"]][line["answer"]] += 1
    every = sum(said.values(), Counter())
    of_clip: dict[str, Counter[str]] = defaultdict(Counter)
    for line in test:
        of_clip[line["cluster"]][line["answer"]] += 1
    answers = {
        "question_counted": lambda line: said.get(line["question"], every).most_common(1)[0][0],
        "picture_ceiling": lambda line: of_clip[line["cluster"]].most_common(1)[0][0],
    }
    for variant, answer in answers.items():
        label = results.Label(QUESTION, variant, 0, COMMAND)
        for group, tasks in GROUPS.items():
            found = [(line, float(answer(line) == line["answer"])) for line in test if line["task"] in tasks]
            yield mean(label, "accuracy", group, found)


def _exchanges(split: Any) -> Iterator[dict[str, Any]]:
    for i in range(len(split)):
        sample = samples.parse(split.read(i, TEXT_FIELDS), split.keys[i], split.domains[i])
        for q in sample["questions"]:
            about = {name: q[name] for name in ("task", "question", "answer")}
            yield about | {"cluster": sample["uid"]}


if __name__ == "__main__":
    main()
