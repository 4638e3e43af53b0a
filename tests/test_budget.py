"""Batches by frames and tokens: what fits, in which order, shared by how many, and a run that goes on."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from _clips import FakeChat, dataset
from test_resume import STEPS, STOP, fit

from hvlm.data import budget as budget_of
from hvlm.data.budget import WINDOW, Budget, Lengths, Planned, lengths_of, window_of
from hvlm.data.datamodule import DataModule
from hvlm.data.order import Order, SampleRef
from hvlm.data.reader import SampleSpec
from hvlm.data.views import Captions, Pairs, PatchLabels, Questions, View
from hvlm.dataset.shards import Shards
from hvlm.errors import UserError
from hvlm.types import InputSpec

N = 300


def drawn(seed: int = 0) -> Lengths:
    rng = np.random.default_rng(seed)
    return Lengths(rng.choice([1, 4, 8, 16], N), rng.integers(5, 200, N), rng.integers(1, 4, N))


def order(budget: Budget, lengths: Lengths, *, most: int = 24, steps: int = 60, texts: int = 0, **more) -> Order:
    def plan(nominal, **how):
        return Planned(nominal, lengths=lengths, budget=budget, name=lambda i: f"clip {i}", **how)

    interleave = 0.3 if texts else 0.0
    return Order(
        ["general"] * N, batch_size=most, steps=steps, seed=3, texts=texts, interleave=interleave, plan=plan, **more
    )


def held(batch: list[SampleRef], lengths: Lengths) -> tuple[int, int]:
    frames, tokens, rows = (x[[pick.index for pick in batch]] for x in lengths)
    return len(batch) * int(frames.max()), int(rows.sum()) * int(tokens.max())


@pytest.mark.parametrize("budget", [Budget(64, 4000), Budget(frames=48), Budget(tokens=3000)], ids=str)
def test_no_batch_holds_more_than_is_allowed_and_every_clip_comes_once_an_epoch(budget: Budget) -> None:
    lengths = drawn()
    batches = list(order(budget, lengths, steps=200))
    assert len({len(batch) for batch in batches}) > 3 and max(map(len, batches)) <= 24
    for batch in batches:
        frames, tokens = held(batch, lengths)
        assert frames <= (budget.frames or frames) and tokens <= (budget.tokens or tokens)
    seen = Counter((pick.epoch, pick.index) for batch in batches for pick in batch)
    assert set(seen.values()) == {1}
    whole = max(epoch for epoch, _ in seen) - 1  # the last ones may be under way
    assert whole >= 2 and all((epoch, i) in seen for epoch in range(whole) for i in range(N))
    ends = [
        i for i, (a, b) in enumerate(zip(batches, batches[1:], strict=False)) if held(a, lengths) < held(b, lengths)
    ]
    assert 40 < len(ends) < 160, "in no order of length"


def test_clips_of_like_length_come_together() -> None:
    lengths = drawn()
    budget = Budget(64, 4000)
    planned = [held(batch, lengths) for batch in order(budget, lengths)]
    real = [int(lengths.frames_N[[p.index for p in batch]].sum()) for batch in order(budget, lengths)]
    plain = list(Order(["general"] * N, batch_size=8, steps=60, seed=3))
    wasted = 1 - sum(real) / sum(frames for frames, _ in planned)
    before = 1 - sum(int(lengths.frames_N[[p.index for p in b]].sum()) for b in plain) / sum(
        held(batch, lengths)[0] for batch in plain
    )
    assert wasted < 0.1 < 0.4 < before


def test_it_is_a_function_of_the_step_that_any_number_of_processes_shares() -> None:
    lengths, budget = drawn(), Budget(128, 9000)
    whole = list(order(budget, lengths, texts=20))
    assert any(pick.text for batch in whole for pick in batch) and any(not pick.text for b in whole for pick in b)
    assert list(order(budget, lengths, texts=20, start=41)) == whole[41:], "begun in the middle"
    assert list(order(budget, lengths, texts=20, steps=90))[:60] == whole, "of a longer run"
    ranks = [list(order(budget, lengths, texts=20, world=2, rank=r, accumulate=2)) for r in (0, 1)]
    assert {len(share) for share in ranks} == {120} and all(chain(*ranks)), "as many parts, and none is empty"
    for step, batch in enumerate(whole):
        parts = [part for share in ranks for part in share[2 * step : 2 * step + 2]]
        assert sum(parts, []) == batch and max(map(len, parts)) - min(map(len, parts)) <= 1
    other = list(order(budget, lengths, texts=20, repeat=3))
    assert other[:3] == whole[:3] == other[3:6]


@pytest.mark.parametrize("kind", ["mixture", "shares", "all"])
def test_a_clip_that_comes_round_often_does_not_fill_batches_of_its_own(kind: str) -> None:
    """A clip has the length of itself alone, so that draws of it would stand side by side among those of a window."""
    rng = np.random.default_rng(0)
    lengths = Lengths(np.full(N, 4), rng.permutation(N) + 5, np.ones(N, int))
    domains = ["small"] * 30 + ["large"] * (N - 30)
    drawn = {"mixture": {"mixture": {"small": 1.0}}, "shares": {"shares": {"small": 0.5, "large": 0.5}}}.get(kind, {})

    def plan(nominal, **how):
        return Planned(nominal, lengths=lengths, budget=Budget(tokens=2000), name=str, **how)

    batches = list(Order(domains, batch_size=8, steps=100, seed=3, plan=plan, **drawn))
    twice = sum(len({pick.index for pick in batch}) < len(batch) for batch in batches)
    assert min(map(len, batches)) > 1 and twice <= 15, "where the way turns back"


def test_what_fits_one_by_one_needs_no_room_for_what_nobody_has() -> None:
    """One clip has many short texts and another a long one; no clip has many long ones."""
    lengths = Lengths(np.ones(N, int), np.where(np.arange(N) < 9, 100, 20), np.where(np.arange(N) < 9, 1, 5))
    assert len(list(order(Budget(tokens=100), lengths))) == 60


@pytest.mark.parametrize("seed", range(6))
def test_every_process_has_clips_of_every_batch(seed: int) -> None:
    lengths = drawn(seed)
    worst = int(lengths.rows_N.max() * lengths.tokens_N.max())
    budget = Budget(16 * 7, worst * 7)  # the least that four parts take
    assert all(len(batch) >= 1 for batch in order(budget, lengths, steps=150, world=4))
    assert min(map(len, order(budget, lengths, steps=150))) >= 4


def test_a_window_is_no_longer_than_an_epoch() -> None:
    assert (window_of(10, 4), window_of(3, 8), window_of(10**6, 64)) == (2, 1, WINDOW // 64)


@pytest.mark.parametrize(
    "budget, world, said",
    [
        (Budget(frames=12), 1, r"^dataset.batch={frames:12}: clip \d+ alone has 16 frames; make frames 16 or more"),
        (Budget(tokens=100), 1, r"^dataset.batch={tokens:100}: clip \d+ alone has \d+ tokens of text; make tokens"),
        (Budget(frames=32), 2, r"2 clips of up to 16 frames \(such as clip \d+\) fit.* shared by 2 .* frames 48 or"),
    ],
)
def test_what_does_not_fit_is_named(budget: Budget, world: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        order(budget, drawn(), world=world)


@pytest.mark.parametrize("batch", [{}, {"clips": 3}, {"frames": 4, "token": 2}])
def test_unknown_budgets_are_refused(batch: dict[str, int]) -> None:
    with pytest.raises(UserError, match="expected frames, tokens or both"):
        Budget.of(batch)


# ---------------------------------------------------------------------------------------------- lengths of real samples


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("data"), {"train": 18}, texts=5)


def reading(data: Path, view: View, batch: dict[str, int] | None, **more) -> DataModule:
    how = dict(rows_per_clip=2, loss="answer", batch_size=6, steps=9, num_workers=0, seed=5) | more
    return DataModule(Shards(str(data), batch=batch), FakeChat(), InputSpec("question_first", 4, 64), view=view, **how)


@pytest.mark.parametrize("view", [Captions(), Questions(), Pairs()], ids=lambda view: view.name)
def test_lengths_are_never_less_than_what_is_read(data: Path, view: View) -> None:
    module = reading(data, view, {"frames": 16, "tokens": 400}, interleave=0.4)
    module.prepare_data()
    loader = module.train_dataloader()
    batches = list(loader)
    assert len(batches) == 9 and any(not batch.frame_mask_BT.any() for batch in batches)
    for batch in batches:
        assert batch.frames_BTCHW.shape[0] * batch.frames_BTCHW.shape[1] <= 16
        assert batch.input_ids_KS.numel() <= 400
    assert any(batch.num_clips < 6 for batch in batches), "and some do not hold as many clips as they might"


def test_stills_and_patches_know_their_frames(data: Path) -> None:
    module = reading(data, Questions(), {"frames": 16})
    module.prepare_data()
    clips = module.dataset.manifest().split("train")
    show = module._show(Questions(), 2)
    assert (lengths_of(clips, show, Budget(16)).frames_N == 4).all(), "a video is taken for as many as are sampled"
    patches = module._show(PatchLabels(), 3)
    assert (lengths_of(clips, patches, Budget(16)).frames_N == 3).all()
    for fields, frames in ((["000.jpg", "001.png", "json"], 2), (["jpg", "json"], 4), (["7.png"] * 9, 4)):
        members = {field if i == 0 else f"{i}.{field}": [512, 1] for i, field in enumerate(fields)}
        clips._members = [members] * len(clips)
        assert (lengths_of(clips, show, Budget(16)).frames_N == frames).all(), fields


def test_what_is_not_drawn_need_not_fit(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clips of a domain that the mixture leaves out are longer than anything allowed."""
    monkeypatch.setattr(SampleSpec, "tokens", lambda self, row: 30)
    monkeypatch.setattr(budget_of, "_times", lambda sample: np.zeros(1) if sample["domain"] == "general" else 1 / 0)
    for batch in ({"tokens": 200}, {"frames": 16, "tokens": 200}):
        module = reading(data, Captions(), batch, mixture={"general": 1.0})
        module.prepare_data()
        assert len(set(module.dataset.manifest().split("train").domains)) > 1
        module.train_dataloader()  # reads no text of the others


@pytest.mark.parametrize("before, after", [(0, 2), (2, 0)])
def test_a_run_by_budget_goes_on_exactly(data: Path, tmp_path: Path, monkeypatch, before: int, after: int) -> None:
    made = Shards.__init__
    monkeypatch.setattr(Shards, "__init__", lambda self, path: made(self, path, batch={"frames": 6, "tokens": 200}))
    whole = fit(data, tmp_path / "whole", before, batch_size=4)
    assert len({len(rows) for rows in whole.seen}) > 1 and len(whole.seen) == STEPS
    fit(data, tmp_path / "run", before, stop=True, batch_size=4)
    rest = fit(data, tmp_path / "run", after, resume=True, batch_size=4)
    assert rest.seen == whole.seen[STOP:] and rest.digest() == whole.digest()
    monkeypatch.setattr(Shards, "__init__", lambda self, path: made(self, path))
    with pytest.raises(UserError, match="cannot resume exactly: batch is None, the run of the checkpoint had"):
        fit(data, tmp_path / "run", after, resume=True, batch_size=4)


def test_streams_have_no_lengths(data: Path) -> None:
    with pytest.raises(UserError, match=r"dataset.batch: dataset.access=stream knows no sample's length"):
        Shards(str(data), access="stream", batch={"frames": 8})


def test_tokens_of_a_stage_without_text_are_said_to_limit_nothing(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Silent(Captions):
        has_text = False

    module = reading(data, Silent(), {"tokens": 50})
    module.prepare_data()
    with caplog.at_level("WARNING"):
        module.train_dataloader()
    assert "dataset.batch={tokens:50}: this stage reads no text, so tokens limit none of its batches" in caplog.text
