"""Several folders of shards in one training: shares, temperature, text-only batches, resume, and what is refused."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _tables import TINY, videos, write_csv, write_json

from hvlm.config.compose import compose
from hvlm.data.order import Order
from hvlm.data.shares import Drawn, shares_of
from hvlm.dataset.mixture import Mixture
from hvlm.errors import UserError
from hvlm.prepare.command import prepare
from hvlm.training.chain import run
from hvlm.training.identity import identity

SIZES = {"large": 12, "small": 3}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """large: 12 clips to train and 2 val, small: 3 and 2, chats: 5 text-only chats."""
    folder = tmp_path_factory.mktemp("mixture")
    for name, count in SIZES.items():
        source = videos(folder / "raw" / name, count + 2)
        rows = [
            {"video": f"v{i}.mp4", "caption": f"a {name} dog", "split": "train" if i < count else "val"}
            for i in range(count + 2)
        ]
        prepare([str(write_csv(source / "t.csv", rows)), f"out={folder / name}", "workers=1"])
    said = [{"role": "user", "content": "good day"}, {"role": "assistant", "content": "a dog"}]
    (folder / "raw" / "chats").mkdir()
    write_json(folder / "raw" / "chats" / "t.json", [{"messages": said, "n": i} for i in range(5)])
    prepare([str(folder / "raw" / "chats"), f"out={folder / 'chats'}", "workers=1"])
    return folder


def mixture(root: Path, weights: dict[str, float | None], **more: Any) -> Mixture:
    made = Mixture(str(root), weights, **more)
    made.prepare()
    return made


# ----------------------------------------------------------------------------------------------------------- shares


def test_temperature_makes_shares_more_even() -> None:
    weights = {"a": 8.0, "b": 2.0, "c": 0.0}
    assert shares_of(weights, 1.0) == pytest.approx({"a": 0.8, "b": 0.2})
    assert shares_of(weights, 2.0) == pytest.approx({"a": 2 / 3, "b": 1 / 3}), "square roots of 4 and 1"
    assert shares_of(weights, 0.5)["a"] == pytest.approx(64 / 68)
    assert shares_of(weights, 1e6)["a"] == pytest.approx(0.5, abs=1e-5)
    assert shares_of({"a": 1e300, "b": 1e-300}, 0.1)["b"] == 0.0, "nothing overflows"


def test_a_source_comes_as_often_as_its_share_and_its_clips_alike() -> None:
    domains, steps = ["a"] * 100 + ["b"] * 7 + ["c"] * 20, 1000
    drawn = Drawn(domains, {"a": 0.3, "b": 0.7}, batch_size=8, steps=steps, seed=5)
    clips = [clip for step in range(steps) for clip in drawn.batch(step)]
    counts = Counter(domains[index] for _, index in clips)
    error = 4 * math.sqrt(0.3 * 0.7 / len(clips))
    assert set(counts) == {"a", "b"} and abs(counts["a"] / len(clips) - 0.3) < error
    for source in "ab":
        places = [index for _, index in clips if domains[index] == source]
        each = Counter(places)
        assert max(each.values()) - min(each.values()) <= 1, "each clip as often as any other"
        size = domains.count(source)
        epochs = [epoch for epoch, index in clips if domains[index] == source]
        assert epochs == [i // size for i in range(len(epochs))]
        assert drawn.epochs()[source] == pytest.approx(len(places) / size)
    rounds = [[i for e, i in clips if domains[i] == "b" and e == epoch] for epoch in (0, 1)]
    assert sorted(rounds[0]) == sorted(rounds[1]) and rounds[0] != rounds[1], "a new permutation in each round"


def test_the_order_of_a_mixture_is_a_pure_function_that_ranks_share() -> None:
    domains = ["a"] * 30 + ["b"] * 5

    def make(steps: int = 40, **more: Any) -> Order:
        shares = {"a": 0.5, "b": 0.5}
        return Order(domains, batch_size=4, steps=steps, seed=3, shares=shares, texts=6, interleave=0.25, **more)

    whole = list(make())
    assert whole == list(make()) and list(make(start=17)) == whole[17:] and list(make(steps=60))[:40] == whole
    halves = [list(make(rank=rank, world=2)) for rank in (0, 1)]
    assert [a + b for a, b in zip(*halves, strict=True)] == whole
    assert [b for part in zip(*[iter(make(accumulate=2))] * 2, strict=True) for b in [part[0] + part[1]]] == whole
    assert list(make(repeat=2)) == whole[:2] * 20
    text = [batch for batch in whole if batch[0].text]
    assert 0 < len(text) < 25 and all(ref.text for batch in text for ref in batch)


def test_a_long_run_of_many_sources_is_drawn_in_little_time_and_memory() -> None:
    names = [f"s{i}" for i in range(9)]
    drawn = Drawn(np.repeat(names, 1000), dict.fromkeys(names, 1 / 9), batch_size=32, steps=31_250, seed=0)
    assert drawn._source.nbytes + drawn._before.nbytes < 6e6
    assert len(drawn.batch(31_249)) == 32


# ---------------------------------------------------------------------------------------------------------- dataset


def test_sources_keep_their_samples_and_are_their_domains(root: Path) -> None:
    data = mixture(root, {"large": 1.0, "small": None}, texts=["chats"], text_ratio=0.5)
    manifest = data.manifest()
    manifest.verify(full=True)
    train = manifest.split("train")
    assert Counter(train.domains) == SIZES and len({train.uid(i) for i in range(len(train))}) == len(train)
    assert train.uid(0).startswith("train/large/train-000000/")
    sample = json.loads(train.read(len(train) - 1)["json"])
    assert sample["captions"][0]["text"] == "a small dog" and TINY in train.read(0)["mp4"]
    assert manifest.split("val").domains == ["large", "small"] * 2, "in turns"
    assert len(manifest.split("text")) == 5
    assert data.shares() == pytest.approx({"large": 1 / 4, "small": 3 / 4}), "null: as many as it has"
    assert "a large dog" in set(data.texts()) and "good day" in set(data.texts())


def test_what_is_left_out_need_not_be_there_and_places_change_nothing(root: Path, tmp_path: Path) -> None:
    data = mixture(root, {"large": 2.0, "small": 2.0, "absent": 0.0})
    assert data.shares() == {"large": 0.5, "small": 0.5} and data.manifest().splits == ["train", "val"]
    moved = tmp_path / "elsewhere"
    moved.symlink_to(root / "small")
    other = mixture(root, {"large": 2.0, "small": 2.0}, paths={"small": str(moved)})
    assert other.manifest().identity == data.manifest().identity
    settings = {"root": str(root), "weights": {"large": 1.0}, "temperature": 1.0}
    same = [identity({"dataset": settings | {"paths": paths}}) for paths in (None, {"large": "/x"})]
    assert same[0] == same[1] and identity({"dataset": settings | {"temperature": 2.0}}) != same[0]


@pytest.mark.parametrize(
    ("weights", "more", "message"),
    [
        (
            {"larg": 1.0},
            {},
            r"dataset.paths.larg=.*larg: no such folder; make it with hvlm prepare .* dataset.weights.larg=0",
        ),
        ({"large": 0.0}, {}, r"dataset.weights=.*: expected a source with a weight above 0"),
        (
            {"chats": 1.0},
            {},
            r"dataset.weights.chats=.*no clips of the training split there; .* dataset.weights.chats=0",
        ),
        ({"large": 1.0}, {"paths": {"larg": "x"}}, r"dataset.paths.larg: no such source; weights and texts name large"),
        ({"large": 1.0}, {"text_ratio": 0.1}, r"dataset.text_ratio=0.1: dataset.texts names no source"),
        (
            {"large": 1.0},
            {"text_ratio": 0.1, "texts": ["small"]},
            r"dataset.text_ratio=0.1: no text-only chats in small",
        ),
        ({"large": 1.0}, {"text_ratio": 0.1, "texts": ["gone"]}, r"dataset.paths.gone=.* dataset.text_ratio=0"),
    ],
)
def test_mistakes_in_a_mixture_are_one_line(root: Path, weights: Any, more: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        mixture(root, weights, **more)
    assert "\n" not in str(error.value)


# --------------------------------------------------------------------------------------------------------- training


def words(root: Path, *more: str) -> list[str]:
    return [
        "stage=align", "dataset=mixture", f"dataset.root={root}", "+dataset.weights={large: 1, small: 1}",
        "dataset.texts=[chats]", "dataset.text_ratio=0.4", "dataset.num_frames=2", "language.source=scratch",
        "stage.batch_size=2", "stage.rows_per_clip=1", "trainer.num_workers=0", "evaluate=false", *more,
    ]  # fmt: skip


def test_a_mixture_trains_and_goes_on_exactly_where_it_was(root: Path, needles: list[str], tmp_path: Path, monkeypatch, caplog) -> None:  # fmt: skip  # noqa: E501
    monkeypatch.chdir(tmp_path)
    small = [o for o in needles if not o.startswith(("dataset.", "stage.", "benchmark."))]
    tiny = words(root, *small)
    with caplog.at_level("INFO"):
        straight = run([*tiny, "stage.steps=6", "run=straight"])
    assert "mixture: large 50.0% (" in caplog.text and "epochs); 40% of the batches are text alone" in caplog.text
    at = Order.at

    def killed(self: Order, step: int) -> Any:
        if step == 3:
            raise MemoryError("killed")
        return at(self, step)

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(Order, "at", killed)
        run([*tiny, "stage.steps=6", "trainer.checkpoint_every=1", "run=parts"])
    seen: list[int] = []
    monkeypatch.setattr(Order, "at", lambda self, step: (seen.append(step), at(self, step))[1])
    resumed = run([*tiny, "stage.steps=6", "trainer.checkpoint_every=1", "run=parts"])
    assert seen == [3, 4, 5]
    assert straight.stages["align"]["weights_sha256"] == resumed.stages["align"]["weights_sha256"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("stage.interleave=0", r"stage.interleave=0: dataset.text_ratio=0.4 says another share of text-only batches"),
        ("domain=general", r"domain.mixture=.*: the dataset has weights of its own; set domain=all"),
        ("dataset.weights.large=-1", r"dataset.weights.*-1.*: expected float"),
        ("dataset.temperature=0", r"dataset.temperature=0: expected float above 0"),
    ],
)
def test_what_is_said_twice_is_refused(
    root: Path, needles: list[str], tmp_path: Path, monkeypatch, more, message
) -> None:
    monkeypatch.chdir(tmp_path)
    small = [o for o in needles if not o.startswith(("dataset.", "stage.", "benchmark."))]
    with pytest.raises(UserError, match=message):
        run([*words(root, *small), "stage.steps=2", "run=refused", more])


def test_fvlms_experiments_name_their_published_mixtures() -> None:
    found = {}
    for size in ("135m", "1_7b"):
        for stage in ("align", "sft", "dpo"):
            data = compose([f"experiment=fvlm_{size}_{stage}", "dataset.root=x"])["dataset"]
            by_name = compose([f"dataset=fvlm_{stage}", "dataset.root=x"])["dataset"]
            assert by_name["weights"] == data["weights"] and by_name["texts"] == data["texts"]
            found[stage] = (shares_of(dict(data["weights"]), data["temperature"]), data["text_ratio"], data["texts"])
    assert found["align"][0]["openvid"] == pytest.approx(905 / 924) and found["align"][1:] == (0.14, ["smoltalk"])
    assert found["sft"][0]["cauldron"] == pytest.approx(0.55, abs=0.005), "55 % pictures, as published"
    assert set(found["sft"][0]) == {"cauldron", "openvid", "webvid", "vista", "vript", "sharegpt4video", "llava_video"}
    assert found["dpo"] == ({"rlaif_v": 1.0}, 0.0, None)
    from hvlm.prepare.corpora import corpora

    assert {n for shares, *_ in found.values() for n in shares} - {"vista"} | {"smoltalk"} <= set(corpora())
