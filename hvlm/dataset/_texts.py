"""What the texts of a set of shards hold: for a vocabulary, and for the labels of a head."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from hvlm.data import samples
from hvlm.data.quarantine import SampleError
from hvlm.data.shard_index import Manifest
from hvlm.data.tar import TEXT_FIELDS
from hvlm.errors import UserError
from hvlm.prompts import lettered_prompt

_TEXTS = ("prompt", "text", "question", "answer", "rejected", "system")
MOST_ANSWERS = 3129  # that a head chooses from, as is usual for VQAv2
TEXTS_FOR_VOCABULARY = 20_000  # samples of each split read to train a word-level tokenizer, if one is wanted


def texts_of(manifest: Manifest, domain: str, where: str) -> Iterator[str]:
    """Prompts, answers and options, for a vocabulary: of the first samples of every split, without their videos.

    Args:
        domain: of samples that name none.
        where: for messages, ``dataset.path=…``.

    Raises:
        UserError: none of them has a text.
    """
    looked_at, good, bad = 0, 0, None
    for name in manifest.splits:
        split = manifest.split(name)
        for index in range(min(len(split), TEXTS_FOR_VOCABULARY)):
            looked_at += 1
            try:
                sample = samples.parse(split.read(index, TEXT_FIELDS), split.keys[index], domain)
            except SampleError as error:
                bad = bad or error  # it is named and counted when it is drawn for training
                continue
            good += 1
            yield from _texts_of(sample)
    if not good and bad is not None:
        raise UserError(f"{where}: none of {looked_at:,} samples can be read; the first: {bad}")


def answers_of(manifest: Manifest, domain: str, where: str) -> list[str]:
    """Those of the training split that are right most often, ``MOST_ANSWERS`` at most.

    Args:
        domain: of samples that name none.
        where: for messages, the folder.

    Raises:
        UserError: there are none.
    """
    split, counts = manifest.split("train"), Counter[str]()
    for index in range(len(split)):
        try:
            sample = samples.parse(split.read(index, TEXT_FIELDS), split.keys[index], domain)
        except SampleError:
            continue  # it is named and counted when it is drawn for training
        for q in sample["questions"]:
            counts.update(q.get("weights") or dict.fromkeys(q.get("answers", [q["answer"]]), 1.0))
    if not counts:
        raise UserError(f"head.labels: no question with an answer in the training split of {where}")
    return sorted(counts, key=lambda answer: (-counts[answer], answer))[:MOST_ANSWERS]


def _texts_of(sample: Mapping[str, Any]) -> Iterator[str]:
    """Every text that a sample may be asked with."""
    for text in [*sample["captions"], *sample["questions"]]:
        yield from (text[name] for name in _TEXTS if name in text)
        for exchange in text.get("turns", ()):
            yield from exchange
        for attempt in text.get("tries", ()):
            yield from attempt["options"]
            if text["lettered"]:
                yield lettered_prompt(text["question"], attempt["options"])
