"""Matching: right and wrong pairs, hard ones of the same batch, and three heads together."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from _clips import VIDEO
from _tiny import Case, Variant, chat, model, side
from test_heads import task

from hvlm.checks.heads import SAMPLE, clip_of, read
from hvlm.checks.models import shared_model
from hvlm.data.datamodule import DataModule
from hvlm.data.near_texts import NearTexts
from hvlm.data.shard_index import write_manifest, write_shard
from hvlm.dataset.shards import Shards
from hvlm.errors import UserError
from hvlm.evaluation.rerank import compared, heads_of, rerank, second_ranks
from hvlm.head.match import Match, RightAndWrong
from hvlm.head.several import Together
from hvlm.model import VLM
from hvlm.types import Batch, InputSpec

TEXTS = ("red ring", "blue circle", "star", "red ring")  # of four clips; the last says what the first does


def tiny(**settings: Any) -> VLM:
    return shared_model(Case("question_first", (Variant("head", "match", tuple(settings.items())),)))


def several(**heads: dict[str, Any]) -> VLM:
    return model(Case("question_first", (Variant("head", "several", (("heads", heads),)),)))


def clips_with(vlm: VLM, *texts: str) -> Batch:
    pairs = [SAMPLE | {"pairs": [{"text": text, "negatives": [f"{text} two"]}]} for text in texts]
    return read(vlm, *(clip_of(i, 3, side(vlm), sample) for i, sample in enumerate(pairs, start=1)))


def about(batch: Batch) -> list[tuple[str, int, bool]]:
    """(text, clip, whether it is right) of each row."""
    assert batch.rows and batch.targets
    right = batch.targets["right"].tolist()
    return [(row["text"], clip, bool(r)) for row, clip, r in zip(batch.rows, batch.clip_K.tolist(), right, strict=True)]


def test_a_row_for_the_right_text_and_one_for_each_wrong_one() -> None:
    vlm = tiny()
    batch = clips_with(vlm, *TEXTS[:2])
    assert about(batch) == [
        ("red ring", 0, True), ("red ring two", 0, False), ("blue circle", 1, True), ("blue circle two", 1, False),
    ]  # fmt: skip
    assert not batch.targets["further"].any()


def test_the_hardest_clip_of_each_text_and_the_hardest_text_of_each_clip_become_wrong_pairs() -> None:
    vlm = tiny(candidates=3)
    batch, asked = clips_with(vlm, *TEXTS), []
    score = {("red ring", 1): 1, ("red ring", 2): 5, ("blue circle", 0): 4, ("blue circle", 2): 3}
    score |= {("blue circle", 3): 2, ("star", 0): 1, ("star", 1): 6, ("star", 3): 0}

    def answer(some: Batch) -> torch.Tensor:
        asked.extend((text, clip) for text, clip, _ in about(some))
        return torch.tensor([float(score[pair]) for pair in asked])

    found = vlm.head.further(batch, answer)
    assert set(asked) == set(score), "never where the same is said, nor with wrong texts"
    assert about(found)[: len(about(batch))] == about(batch)
    new = [(text, clip) for text, clip, right in about(found)[len(about(batch)) :] if not right]
    # red ring (of two clips) → clip 2; blue circle → 0; star → 1; clip 3's hardest text is blue circle.
    assert sorted(new) == [("blue circle", 0), ("blue circle", 3), ("red ring", 2), ("red ring", 2), ("star", 1)]
    assert found.targets["further"].sum() == 5 == len(found.clip_K) - len(batch.clip_K)
    assert torch.equal(found.input_ids_KS[: len(batch.clip_K)], batch.input_ids_KS)
    assert tiny(candidates=0).head.further(batch, answer) is batch
    alone = clips_with(vlm, "star")
    assert vlm.head.further(alone, answer) is alone


def test_clips_whose_texts_have_most_in_common_are_the_candidates() -> None:
    vlm, asked = tiny(candidates=1), []
    texts = (
        "red ring blue star",
        "blue circle two star",
        "red ring blue circle",
        "blue ring red star",
        "circle two star",
    )
    batch = clips_with(vlm, *texts)

    def answer(some: Batch) -> torch.Tensor:
        asked.extend((text, clip) for text, clip, _ in about(some))
        return torch.zeros(len(asked))

    vlm.head.further(batch, answer)
    # The first: three words and two pairs of the third's, all words and no pair of the fourth's.
    assert dict(asked) == {texts[0]: 2, texts[1]: 4, texts[2]: 0, texts[3]: 0, texts[4]: 1}


def test_the_loss_by_hand_and_its_units() -> None:
    head = Match(text_dim=4)
    right = torch.tensor([1.0, 0.0, 0.0, 0.0])
    further = torch.tensor([False, False, True, True])
    batch = type("Batch", (), {"targets": {"right": right, "further": further}})()
    total, count, measures = head.loss(torch.tensor([2.0, -1.0, 0.0, 1.0]), batch)

    def cross(x: float) -> float:
        return math.log1p(math.exp(-x))

    assert count == 2, "the rows that were read"
    assert total.item() == pytest.approx(2 * (cross(2.0) + (cross(1.0) + cross(0.0) + cross(-1.0)) / 3) / 2)
    assert measures["accuracy"].item() == pytest.approx(2 * 3 / 4)


def test_scores_by_hand() -> None:
    head = Match(text_dim=4)
    line = {"key": "a", "uid": "a", "text": "x", "of": "x", "right": True, "score": 0.9}
    lines = [
        line,
        line | {"text": "y", "right": False, "score": 0.8},
        line | {"text": "z", "right": False, "score": 0.1},
    ]
    lines += [line | {"uid": "b", "score": 0.4}, line | {"uid": "b", "text": "y", "right": False, "score": 0.5}]
    found = {row["metric"]: row for row in head.score(lines)}
    assert found["accuracy"]["value"] == pytest.approx(((1 + 0.5) / 2 + (0 + 1) / 2) / 2)
    assert found["hard_negatives"]["value"] == pytest.approx(0.5) and found["hard_negatives"]["stderr"] is not None


def test_hard_pairs_are_learned_and_the_other_heads_learn_as_without() -> None:
    vlm = several(classify={"labels": ["red", "blue", "two"]}, retrieve={}, match={})
    batch = clips_with(vlm, *TEXTS[:3])
    stage = task(vlm, weights={"classify": 1.0, "retrieve": 1.0, "match": 0.5}).eval()
    with torch.no_grad():
        without = vlm.head.terms(vlm.output(batch), batch)
        found = vlm.head.further(batch, vlm.output)
        terms = stage.losses(batch).terms
    new = found.rows[len(batch.rows) :]
    assert new and {row["head"] for row in new} == {"match"} and len(found.clip_K) == len(found.rows)
    assert tuple(terms) == ("classify", "retrieve", "match")
    for name in ("classify", "retrieve"):
        torch.testing.assert_close(terms[name].total, without[name].total, rtol=1e-4, atol=1e-4)
        assert terms[name].count == without[name].count
    assert (terms["match"].total - 0.5 * without["match"].total).abs() > 1e-4
    assert {name: float(term.count) for name, term in terms.items()} == vlm.head.units_of_terms(batch)


# ------------------------------------------------------------------------------------------------ several processes

# {what the clips of two processes say; "": such as a head without pairs has rows of alone}
SHARES = {
    "uneven": (TEXTS[:3], ("a much longer text about a red ring",)),
    "no rows of the head": (("red ring", "blue circle"), ("", "")),
    "no pair to try": (("red ring", "red star ring", "red ring blue"), ("circle two",)),
    "nothing at all": (("",), ("",)),
}


def learned(texts: tuple[str, ...]) -> dict[str, Any]:
    """What these clips' losses come to, with hard pairs, and what further rows there are."""
    vlm = several(classify={"labels": ["red", "blue", "two"]}, match={"candidates": 2}).eval()
    about = [
        {"questions": SAMPLE["questions"]} | ({"pairs": [{"text": t, "negatives": [f"{t} two"]}]} if t else {})
        for t in texts
    ]
    batch = read(vlm, *(clip_of(len(t), 3, side(vlm), sample) for t, sample in zip(texts, about, strict=True)))
    found = vlm.head.further(batch, vlm.output)
    terms = vlm.head.terms(vlm.output(found), found)
    sum(term.total for term in terms.values()).backward()
    there = zip(found.input_ids_KS, found.attention_mask_KS, found.clip_K.tolist(), strict=True)
    rows = sorted((len(texts[clip]), ids[mask].tolist()) for ids, mask, clip in there)
    with torch.no_grad():  # processes validate different numbers of batches: nobody waits for another
        alone = vlm.head.further(batch, vlm.output) if texts[0] == TEXTS[0] else None
    return {
        "terms": {name: (t.total.detach(), t.count, t.further) for name, t in terms.items()},
        "grads": {name: p.grad for name, p in vlm.named_parameters() if p.grad is not None},
        "rows": rows,
        "alone": alone is None or int(alone.clip_K.max()) < len(texts),
    }


def _process(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save({name: learned(texts[rank]) for name, texts in SHARES.items()}, f"{folder}/{rank}")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_learn_the_wrong_pairs_that_one_would_learn(tmp_path: Path) -> None:
    """Also where one has no rows of the head, beside another head, or nothing to try."""
    mp.spawn(_process, (str(tmp_path),), nprocs=2)
    both = [torch.load(tmp_path / str(rank)) for rank in (0, 1)]
    for name, texts in SHARES.items():
        one, shared = learned(texts[0] + texts[1]), [found[name] for found in both]
        assert sorted(shared[0]["rows"] + shared[1]["rows"]) == one["rows"], name
        assert shared[0]["alone"] and shared[1]["alone"]
        for term, expected in one["terms"].items():
            parts = [found["terms"][term] for found in shared]
            torch.testing.assert_close(parts[0][0] + parts[1][0], expected[0], rtol=1e-5, atol=1e-6)
            assert parts[0][1] + parts[1][1] == expected[1], (name, term)
            for measure, value in expected[2].items():
                torch.testing.assert_close(parts[0][2][measure] + parts[1][2][measure], value, rtol=1e-5, atol=1e-6)
        for weight, expected in one["grads"].items():
            grads = sum(found["grads"].get(weight, torch.zeros_like(expected)) for found in shared)
            torch.testing.assert_close(grads, expected, rtol=1e-4, atol=1e-5, msg=f"{name}: {weight}")
    rows = {name: len(both[1][name]["rows"]) for name in SHARES}
    assert rows["uneven"] > 4 == rows["no pair to try"], "texts of the other process beside its clip, or none"


# ------------------------------------------------------------------------------------------------------- mined texts

SAID = ("a red ring", "a red star", "a blue ring", "the blue circle", "a red ring")  # of five clips


def test_the_nearest_texts_are_those_with_most_words_and_pairs_of_words_in_common() -> None:
    texts = NearTexts([*SAID, "Ring! A red ...", "?"])
    assert len(texts) == 6, "each once"
    # In common with "a red ring" (3 words, 2 pairs), of all: all but the pair "red ring", 4 of 6; a, red, "a red",
    # 3 of 7; a, ring, 2 of 8; nothing.
    assert texts.near("a red ring", 9) == ["Ring! A red ...", "a red star", "a blue ring"]
    assert texts.near("a red ring", 2) == ["Ring! A red ...", "a red star"]
    assert texts.near("a red ring", 2, without={"Ring! A red ..."}) == ["a red star", "a blue ring"]
    assert texts.near("RED", 1) == ["a red ring"], "of equals the first"
    assert texts.near("nothing here", 3) == texts.near("?", 3) == []
    assert NearTexts(["ring", "a red star"]).near("a red ring", 2) == ["a red star", "ring"], "1 of 5, though all of it"
    assert NearTexts(["ring red a", "a red ring now"]).near("a red ring", 1) == ["a red ring now"], "by its pairs"
    many = [f"red {i}" for i in range(99)]
    assert NearTexts(many).near("red", 99) == many, "equals as they came"


def paired(texts: tuple[str, ...] | list[str]) -> dict[str, Any]:
    return {"key": "k", "uid": "k", "pairs": [{"text": text, "negatives": [f"no {text}"]} for text in texts]}


def mined_of(view: Any, texts: tuple[str, ...], seed: int, n: int | None = None) -> list[tuple[str, str, bool]]:
    rows = view.rows(paired(texts), None, np.random.default_rng(seed), n)
    return [(row.meta["text"], row.meta["of"], row.meta["right"]) for row in rows]


def test_mined_texts_are_drawn_of_the_nearest_and_never_what_is_said_of_the_clip_itself() -> None:
    view = tiny(negatives=0, mined=2, nearest=3).head.view
    ready = view.among(lambda: iter([paired([text]) for text in SAID]))
    texts = ("a red ring", "a red star")  # the clip's own
    drawn = [mined_of(ready, texts, seed) for seed in range(20)]
    assert drawn[3] == mined_of(ready, texts, 3), "the same from the same seed"
    assert {tuple(row) for rows in drawn for row in rows if row[2]} == {(text, text, True) for text in texts}
    wrong = {(text, of) for rows in drawn for text, of, right in rows if not right}
    assert {text for text, of in wrong if of == "a red ring"} == {"a blue ring"}, "the others have nothing in common"
    one = [mined_of(ready, ("a ring",), seed) for seed in range(20)]
    assert all([right for *_, right in rows] == [True, False, False] for rows in one)
    assert {text for rows in one for text, _, right in rows if not right} == {"a red ring", "a blue ring", "a red star"}
    assert ready.scoring() == RightAndWrong(None, 0, 3) and ready.scoring().others is None, (
        "a score has the clips' own wrong texts alone"
    )


def test_without_mined_texts_nothing_is_read_and_the_same_is_drawn() -> None:
    def never() -> Any:
        raise AssertionError

    plain = RightAndWrong(1)
    assert plain.among(never) is plain
    wide = RightAndWrong(1, mined=1).among(lambda: iter([paired(SAID)]))
    rows = [mined_of(view, SAID[:1], 7) for view in (plain, wide)]
    assert rows[1][:2] == rows[0] == [("a red ring", "a red ring", True), ("no a red ring", "a red ring", False)]
    with pytest.raises(UserError, match=r"^head.mined=5: more than head.nearest=4, of which they are drawn"):
        Match(text_dim=4, mined=5, nearest=4)
    with pytest.raises(UserError, match="mined=5: more than head.*nearest=4"):
        several(match={"mined": 5, "nearest": 4})


def test_each_run_worker_and_resumed_run_draws_the_same_mined_texts_of_its_own_split(tmp_path: Path) -> None:
    shards = {}
    for split, more in (("train", ""), ("val", " now")):
        rows = [
            (f"{split}{i}", {"json": json.dumps({"pairs": [text + more]}).encode(), "mp4": VIDEO})
            for i, text in enumerate((*SAID, "a red circle"))
        ]
        domains = ["general"] * 5 + ["sports"]
        shards[f"{split}-0.tar"] = write_shard(tmp_path / f"{split}-0.tar", rows, split, domains)
    write_manifest(tmp_path, {}, shards, [])
    view = Together((("match", RightAndWrong(0, mined=1, nearest=3)),))

    def module(access: str = "index", **changes: Any) -> DataModule:
        path = str(tmp_path) if access == "index" else str(tmp_path / "train-0.tar")
        settings = {"rows_per_clip": 1, "loss": "answer", "batch_size": 2, "steps": 8, "num_workers": 0, "seed": 3}
        inputs = InputSpec("question_first", 2, 32)
        return DataModule(Shards(path, access=access), chat(), inputs, view=view, **(settings | changes))

    def said(loader: Any) -> list[list[tuple[str, str]]]:
        return [[(row["text"], row["of"]) for row in batch.rows if not row["right"]] for batch in loader]

    once = said(module().train_dataloader())
    assert once == said(module().train_dataloader()) == said(module(num_workers=1).train_dataloader())
    resumed = module()
    resumed.load_state_dict({"consumed": 10, **resumed._identity()})
    assert said(resumed.train_dataloader()) == once[5:]
    every = {text for batch in once for text, _ in batch}
    assert "a red circle" in every and every <= {*SAID, "a red circle"}
    assert all(len(batch) == 2 for batch in once if not any(of.startswith("the") for _, of in batch))
    one_domain = {text for batch in said(module(mixture={"general": 1.0}).train_dataloader()) for text, _ in batch}
    assert one_domain and "a red circle" not in one_domain
    of_val = {text for batch in said(module().val_dataloader()) for text, _ in batch}
    assert of_val and all(text.endswith(" now") for text in of_val)
    with pytest.raises(UserError, match=r"^head.mined=1: dataset.access=stream cannot be searched for similar texts"):
        module("stream").train_dataloader()


# --------------------------------------------------------------------------------------------------------- re-ranking


def line(clip: str, text: str, video: list[float], embedding: list[float]) -> dict[str, Any]:
    return {"key": clip, "uid": clip, "texts": [text], "video": video, "embeddings": [embedding], "head": "retrieve"}


def test_candidates_come_first_in_their_new_order_and_the_others_keep_their_places() -> None:
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.1], [0.9, 0.8, 0.7, 0.1]])
    right = torch.tensor([[False, True, False, False], [False, False, False, True]])
    near = torch.tensor([[True, True, False, False]] * 2)
    again = torch.tensor([[0.2, 0.6, 9.0, 9.0], [0.2, 0.6, 9.0, 9.0]])
    assert second_ranks(scores, right, near, again).tolist() == [1, 4]
    again[0, 0] = 0.6
    assert second_ranks(scores, right, near, again)[0] == 2, "equal scores count against the right one"


def test_a_head_that_matches_ranks_what_embeddings_found_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Embeddings that cannot tell two clips apart, and a second look that can."""
    vlm = several(retrieve={}, match={})
    lines = [line("a", "red ring", [1.0, 0.0], [0.9, 0.1]), line("b", "star", [1.0, 0.0], [1.0, 0.0]),
             line("c", "two", [0.0, 1.0], [0.0, 1.0])]  # fmt: skip
    table = compared(lines)
    assert table.right_VT.equal(torch.eye(3, dtype=torch.bool)) and table.clips == ["a", "b", "c"]
    tried: list[tuple[str, str]] = []

    def clips_of(loaded: Any, benchmark: Any, view: Any) -> list[Batch]:
        def rows(i: int, uid: str) -> Batch:
            found = view.rows({"key": uid, "uid": uid}, None, None, None)
            tried.extend((uid, row.prompt) for row in found)
            batch = clips_with(vlm, "star").text_rows(torch.zeros(len(found), dtype=torch.int64))
            return batch._replace(rows=[row.meta for row in found])

        return [rows(i, uid) for i, uid in enumerate("abc")]

    class Fake:
        head = vlm.head

        def eval(self) -> Any:
            return self

        def output(self, batch: Batch) -> dict[str, torch.Tensor]:
            right = {"a": "red ring", "b": "star", "c": "two"}
            return {"match": torch.tensor([float(row["text"] == right[row["uid"]]) for row in batch.rows])}

    monkeypatch.setattr("hvlm.evaluation.rerank.clips_of", clips_of)
    loaded = type("Loaded", (), {"model": Fake(), "device": torch.device("cpu"), "precision": "32-true"})()
    found = {row["metric"]: row for row in rerank(loaded, None, lines, 2)}
    assert ("a", "red ring") in tried and ("c", "red ring") in tried and len(tried) == len(set(tried)) < 9
    assert found["rerank/video_to_text/r@1_before"]["value"] == pytest.approx(2 / 3)
    assert found["rerank/video_to_text/r@1_after"]["value"] == found["rerank/text_to_video/r@1_after"]["value"] == 1
    gain = found["rerank/video_to_text/r@1_gain"]
    assert gain["value"] == pytest.approx(1 / 3) and gain["stderr"] > 0 and gain["n"] == 3
    # Together the similarity, 0.1 further away and times 1 / 0.07, outweighs the second score's 1.
    assert found["rerank/video_to_text/r@1_sum"]["value"] == pytest.approx(2 / 3)
    assert found["rerank/video_to_text/r@1_sum_gain"]["value"] == 0
    with pytest.raises(UserError, match="benchmark.rerank: head=match has not both retrieve and match"):
        heads_of(tiny().head)
