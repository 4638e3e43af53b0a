"""dataset=passkeys: texts in which something must be found again."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from test_duo import sight

from hvlm import assembly
from hvlm.benchmark.open import Open
from hvlm.config.compose import compose
from hvlm.data.batches import one_row
from hvlm.data.views import Questions
from hvlm.dataset._passkeys_text import KEY_WORDS, NEEDLE, ORDINALS, QUESTION
from hvlm.dataset.passkeys import Passkeys
from hvlm.errors import UserError
from hvlm.evaluation.asking import clips_of, queries
from hvlm.evaluation.generate import InWords, generate_ids
from hvlm.evaluation.likelihood import answer_likelihoods
from hvlm.evaluation.scores import Try
from hvlm.kvcache.snapkv import SnapKV
from hvlm.kvcache.streaming import Streaming
from hvlm.prompts import context
from hvlm.rebuild import Loaded
from hvlm.training.start import start_stage

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
        book, turns = question["context"], question["messages"]
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
        split: {int(w[1:]) for s in samples(data, split) for w in s["questions"][0]["context"].split()
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


def started(tmp_path: Path, needles: list[str]):
    """(configuration, data, stage, chat) of a tiny model on passkeys."""
    settings = [f"dataset.{key}={value}" for key, value in SMALL.items()]
    model = [o for o in needles if not o.startswith("dataset.")]
    cfg = compose(["stage=sft", "stage.interleave=0", "dataset=passkeys", f"dataset.root={tmp_path}", *settings, *model,
                   "stage.batch_size=2"])  # fmt: skip
    data = assembly.dataset(cfg)
    data.prepare(progress=False)
    torch.manual_seed(0)
    return cfg, data, *start_stage(cfg, data, None)


def test_a_stage_learns_from_texts_alone(tmp_path: Path, needles: list[str]) -> None:
    """The reader looks for no video; every answer of the conversation is a target."""
    cfg, data, stage, chat = started(tmp_path, needles)
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


def upto_end(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids


@torch.inference_mode()
def masked(vlm, batch, written: int) -> tuple[list[float], list[int]]:
    """One row by the library's own attention with its mask spelt out, whole sequences at a time: (log p of each target,
    ids of what is written greedily). The context is one piece, what follows it comes token by token."""
    length, context = int(batch.attention_mask_KS.sum()), int(batch.context_K)

    def logp(ids: torch.Tensor) -> torch.Tensor:
        pieces = (context, *(1,) * (ids.shape[1] - context))
        seen = sight(torch.ones_like(ids, dtype=torch.bool), 1, 6, pieces)
        states = vlm.language.model.base_model(
            inputs_embeds=vlm.language.embed(ids), attention_mask=seen, position_ids=torch.arange(ids.shape[1])[None]
        ).last_hidden_state
        return vlm.head.logits(states[0]).float().log_softmax(-1)

    ids, target = batch.input_ids_KS[:, :length], batch.loss_mask_KS[0, :length].nonzero().flatten()
    of_targets = logp(ids)[target - 1].gather(1, ids[0, target, None]).flatten().tolist()
    prompt = ids[:, : int(target[0])]
    for _ in range(written):
        prompt = torch.cat([prompt, logp(prompt)[-1].argmax().view(1, 1)], 1)
    return of_targets, prompt[0, -written:].tolist()


@torch.no_grad()
def test_questions_are_read_after_the_text_through_a_cache_that_forgets(tmp_path: Path, needles: list[str]) -> None:
    """In its likelihoods and in what it writes; the text's end is where the sample says, in rows of any length."""
    cfg, data, stage, chat = started(tmp_path, needles)
    vlm, inputs = stage.model.eval(), assembly.input_spec(cfg, stage.model)
    for parameter in vlm.language.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    loaded = Loaded(vlm, chat, data, inputs, "32-true", cfg)
    (batch,) = loaded.reader().loader("test", Questions(), None, 2, 2)
    batch = batch._replace(loss_mask_KS=batch.loss_mask_KS & (batch.loss_mask_KS.cumsum(1) <= 2))  # the first answer
    assert len(set(batch.context_K.tolist())) == 2, "texts of different lengths, or this shows less"
    for row, end in enumerate(batch.context_K.tolist()):
        assert chat.decode(batch.input_ids_KS[row, :end]).split()[-4:] == ["from", "the", "book", "."]
    wanted = [masked(vlm, one_row(batch, row), 5) for row in range(2)]

    vlm.kvcache = Streaming(sink=1, recent=6, prefill="chunk", **vlm.language.cache_sizes)
    found = vlm.token_logprobs(batch, vlm.kvcache.new())[batch.loss_mask_KS].view(2, -1)
    torch.testing.assert_close(found, torch.tensor([logp for logp, _ in wanted]), rtol=1e-4, atol=1e-4)
    words = [upto_end(ids, chat.end_id) for _, ids in wanted]
    assert [upto_end(ids, chat.end_id) for ids in generate_ids(vlm, chat, batch, 5).tolist()] == words
    whole = vlm.token_logprobs(batch._replace(context_K=None), vlm.kvcache.new())[batch.loss_mask_KS].view(2, -1)
    assert (whole - found).abs().max() > 1e-2, "in one piece with the text the question is read as if all was kept"
    unsplit = generate_ids(vlm, chat, batch._replace(context_K=None), 5).tolist()
    assert [upto_end(ids, chat.end_id) for ids in unsplit] != words

    # What a benchmark asks travels in other ways to the same places, and by which of them decides nothing.
    clips = [clip for part in clips_of(loaded, Open(), batch_size=2) for clip in queries(part)]
    questions = [clip.questions[0] for clip in clips]
    prompts = [question.tries[0].prompt for question in questions]
    vlm.kvcache = Streaming(sink=1, recent=6, prefill="chunk", **vlm.language.cache_sizes)
    rows = [chat.encode(prompt, "", "last", inputs.order, **context(prompt)) for prompt in prompts]
    assert [row.context for row in rows] == batch.context_K.tolist()
    read, asked = [], SnapKV.new

    class Watched(SnapKV):
        def new(self):
            cache = asked(self)
            before = cache.question
            cache.question = lambda: (read.append(cache.length), before())[1]
            return cache

    vlm.kvcache = Watched(budget=16, window=4, **vlm.language.cache_sizes)
    InWords(2)(loaded, Open(), clips, "x")
    tries = [(Try(prompt, ("a", "b"), ("alpha", "bravo"), 0),) for prompt in prompts]
    lettered = [clip._replace(questions=[q._replace(tries=two)])
                for clip, q, two in zip(clips, questions, tries, strict=True)]  # fmt: skip
    answer_likelihoods(vlm, chat, lettered, inputs, "32-true")
    assert read == [int(batch.context_K.max())] * 2, "what is asked is not known when a rival chooses"
