"""dataset=passkeys: texts in which something must be found again."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from hvlm import assembly
from hvlm.config.compose import compose
from hvlm.dataset._passkeys_text import KEY_WORDS, NEEDLE, ORDINALS, QUESTION
from hvlm.dataset.passkeys import Passkeys
from hvlm.errors import UserError
from hvlm.training.chain import start_stage

SMALL = {"train_samples": 6, "val_samples": 2, "test_samples": 2, "min_words": 60, "max_words": 120, "lengths": 3,
         "passkeys": 4, "key_words": 2, "questions": 6, "shard_samples": 4}  # fmt: skip


def made(root: Path, **changes) -> Passkeys:
    data = Passkeys(root=str(root), **{**SMALL, **changes})
    data.prepare()
    return data


def samples(data: Passkeys, split: str) -> list[dict]:
    rows = data.manifest().split(split)
    return [json.loads(rows.read(i)["json"]) for i in range(len(rows))]


def test_every_answer_stands_in_the_text_under_its_ordinal(tmp_path: Path) -> None:
    for info in samples(made(tmp_path), "train"):
        (question,) = info["questions"]
        first, *rest = question["messages"]
        book, _, asked = first["content"].rpartition("\n\n")
        turns = [{"content": asked}, *rest]
        assert len(turns) == 12
        for ask, answer in zip(turns[::2], turns[1::2], strict=True):
            ordinal = next(o for o in ORDINALS if ask["content"] == QUESTION.format(ordinal=o))
            assert NEEDLE.format(ordinal=ordinal, words=answer["content"]) in book
            assert all(word in KEY_WORDS for word in answer["content"].split())
        assert info["depths"] == sorted(info["depths"]) and 0.05 <= info["depths"][0] <= info["depths"][-1] <= 0.95
        needles = 4 * (len(NEEDLE.split()) + 1)
        extra = len(book.split()) - info["words"] - needles
        assert 0 < extra < 15, "the text has the length that it says, beside its frame"


def test_lengths_take_turns_and_questions_repeat(tmp_path: Path) -> None:
    infos = samples(made(tmp_path, train_samples=60, questions=12), "train")
    assert Counter(i["words"] for i in infos) == {60: 20, 90: 20, 120: 20}
    asked = [[m["content"][-60:] for m in i["questions"][0]["messages"][::2]] for i in infos]
    assert all(len(set(texts)) <= 4 + 1 for texts in asked) and any(
        a == b for texts in asked for a, b in pairwise(texts)
    )


def test_a_set_is_made_once_and_anew_where_a_shard_is_gone(tmp_path: Path) -> None:
    first = made(tmp_path)
    sums = {name: shard["sha256"] for name, shard in first.manifest().shards.items()}
    next(first.folder.glob("val-*.tar")).unlink()
    again = made(tmp_path)
    assert {name: shard["sha256"] for name, shard in again.manifest().shards.items()} == sums
    assert made(tmp_path, seed=1).folder != first.folder


def test_texts_of_ones_own_are_divided_among_the_splits(tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "a.txt").write_text(" ".join(f"w{i}" for i in range(1000)))
    data = made(tmp_path, haystack=str(tmp_path / "books"))
    seen = {
        split: {int(w[1:]) for s in samples(data, split) for w in s["questions"][0]["messages"][0]["content"].split()
                if w[0] == "w" and w[1:].isdigit()}
        for split in ("train", "val", "test")
    }  # fmt: skip
    assert max(seen["train"]) < 600 and 650 <= min(seen["val"]) <= max(seen["val"]) < 780 and min(seen["test"]) >= 830
    assert data.manifest().spec["sources"] == [{"name": "a.txt", "words": 1000}]
    for wrong, words in ((tmp_path / "none", "no such text file"), (tmp_path / "short.txt", "too few words")):
        (tmp_path / "short.txt").write_text("one two")
        with pytest.raises(UserError, match=words):
            made(tmp_path / "other", haystack=str(wrong))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"min_words": 200}, "dataset.min_words=200: more than dataset.max_words=120"),
        ({"min_depth": 0.9, "max_depth": 0.1}, "dataset.min_depth=0.9"),
        ({"min_words": 3}, "dataset.passkeys=4"),
    ],
)
def test_mistakes_are_refused(tmp_path: Path, changes: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        made(tmp_path, **changes)


def test_a_stage_learns_from_texts_alone(tmp_path: Path, needles: list[str]) -> None:
    """The reader looks for no video; every answer of the conversation is a target."""
    settings = [f"dataset.{key}={value}" for key, value in SMALL.items()]
    model = [o for o in needles if not o.startswith("dataset.")]
    cfg = compose(["stage=sft", "stage.interleave=0", "dataset=passkeys", f"dataset.root={tmp_path}", *settings, *model,
                   "stage.batch_size=2"])  # fmt: skip
    data = assembly.dataset(cfg)
    data.prepare(progress=False)
    stage, chat = start_stage(cfg, data, None)
    reading = assembly.datamodule(cfg, stage, data, chat, None)
    reading.prepare_data()
    batch = next(iter(reading.train_dataloader()))
    assert not batch.frame_mask_BT.any() and len(batch.input_ids_KS) == 2
    assert int(batch.loss_mask_KS.sum()) == 2 * 6 * (2 + 1), "six answers of two words, and their ends"
    terms = stage.losses(batch).terms
    assert stage.units(batch) == {name: float(mean.count) for name, mean in terms.items()}
    sum(mean.total / mean.count for mean in terms.values()).backward()
    assert stage.model.language.model.lm_head.weight.grad.abs().max() > 0
    assert chat.unk_id not in batch.input_ids_KS
