"""A run that is stopped and started again sees the samples, and ends with the weights, of one that was not."""

from __future__ import annotations

import hashlib
import os
import signal
import warnings
from pathlib import Path

import lightning
import pytest
import torch
from _clips import FakeChat, dataset
from lightning.pytorch.callbacks import ModelCheckpoint

from hvlm.data import reader
from hvlm.data.datamodule import DataModule
from hvlm.data.views import Questions
from hvlm.dataset.shards import Shards
from hvlm.errors import UserError
from hvlm.training.resume_callbacks import GracefulStop, OtherParts
from hvlm.types import InputSpec

STEPS, STOP = 25, 7
ASKED = 2


class Tiny(lightning.LightningModule):
    """A linear model on mean pixels and the length of the text: its weights remember every batch and their order."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, 1)
        self.seen: list[list[str]] = []

    def training_step(self, batch, index):
        assert self.trainer.accumulate_grad_batches == 1 or batch.step_units == {"rows": 2.0}
        self.seen.append([f"{row['key']}:{row.get('question_id')}" for row in batch.rows])
        pixels = batch.frames_BTCHW.float().mean((1, 3, 4))[batch.clip_K] / 255
        length = batch.attention_mask_KS.sum(1, keepdim=True) / 20
        return (self.layer(torch.cat([pixels, length], 1)) - batch.input_ids_KS[:, :1] / 100).square().mean()

    def validation_step(self, batch, index):
        """Nothing: Lightning wants one where there are validation batches."""

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)

    def digest(self) -> str:
        return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in self.parameters())).hexdigest()


class Stop(lightning.Callback):
    """Dies as a killed process would: after the checkpoint of step ``STOP``, with batches already prefetched."""

    def on_train_batch_start(self, trainer, module, batch, index):
        if trainer.global_step == STOP:
            raise KeyError("killed")


class Asked(lightning.Callback):
    """SIGTERM in the middle of a step."""

    def on_train_batch_start(self, trainer, module, batch, index):
        if trainer.global_step == ASKED:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return dataset(tmp_path_factory.mktemp("data"), {"train": 18}, texts=5)


def fit(
    data: Path, folder: Path, workers: int, *, stop: bool = False, resume: bool = False, accumulate: int = 1,
    last: str = "last.ckpt", further: tuple = (), **changes
):  # fmt: skip
    arguments = dict(
        view=Questions(), rows_per_clip=1, loss="answer", batch_size=2,
        steps=STEPS, accumulate=accumulate, units=lambda batch: {"rows": len(batch.rows)},
        num_workers=workers, seed=5, interleave=0.2,
    )  # fmt: skip
    module = Tiny()
    callbacks = [ModelCheckpoint(folder, every_n_train_steps=1, save_last=True), OtherParts(), *further] + [
        Stop()
    ] * stop
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=STEPS, max_epochs=1, accumulate_grad_batches=accumulate, callbacks=callbacks,
        logger=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    reader = DataModule(Shards(str(data)), FakeChat(), InputSpec("question_first", 2, 64), **(arguments | changes))
    path = folder / last
    try:
        trainer.fit(module, reader, ckpt_path=str(path) if resume else None, weights_only=True)
    except KeyError:
        assert stop
    except SystemExit:
        assert further and trainer.global_step == ASKED + 1
        return module
    assert trainer.global_step == (STOP if stop else STEPS)
    return module


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Tiny:
    return fit(data, tmp_path_factory.mktemp("whole"), 0)


@pytest.mark.fault(1, 3, 4, 7, 8)
@pytest.mark.parametrize(("before", "after"), [(0, 0), (0, 2), (2, 0)])
def test_resume_is_exact_for_any_number_of_workers(data, whole, tmp_path, monkeypatch, before, after):
    first = fit(data, tmp_path, before, stop=True)
    read = []
    original = reader.Reader._try
    monkeypatch.setattr(reader.Reader, "_try", lambda self, *a: (read.append(1), original(self, *a))[1])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # About every loader without a state of its own; here the DataModule keeps it, as this test shows.
        warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the epoch ended")
        second = fit(data, tmp_path, after, resume=True)
    assert first.seen == whole.seen[:STOP] and second.seen == whole.seen[STOP:]
    assert second.digest() == whole.digest()
    assert len(whole.seen) == STEPS and any("t" == row[0][0] and row[0][1] != "r" for row in whole.seen)  # chats too
    if not after:
        assert len(read) == 2 * (STEPS - STOP)  # nothing of the past is read again
    assert not [w for w in caught if "not resumable" in str(w.message)]


def test_state_counts_finished_optimiser_steps(data, tmp_path):
    fit(data, tmp_path, 0, accumulate=2, stop=True)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["DataModule"]
    assert state["consumed"] == STOP * 2 and state["batch_size"] == 2
    whole = fit(data, tmp_path / "whole", 0, accumulate=2)
    rest = fit(data, tmp_path, 0, accumulate=2, resume=True)
    assert rest.seen == whole.seen[STOP * 2 :] and rest.digest() == whole.digest()


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_a_run_goes_on_in_other_parts_of_a_step(data, whole, tmp_path, caplog, before, after):
    """Samples of each step, and where the run ends, are those of a run that nobody stopped."""

    def steps(seen: list[list[str]], parts: int) -> list[list[str]]:
        return [sum(seen[i : i + parts], []) for i in range(0, len(seen), parts)]

    first = fit(data, tmp_path, 0, accumulate=before, stop=True)
    second = fit(data, tmp_path, 0, accumulate=after, resume=True)
    assert steps(first.seen, before) + steps(second.seen, after) == whole.seen
    assert f"trainer.accumulate was {before} and is {after}" in caplog.text


def test_a_run_that_was_asked_to_stop_and_then_killed_goes_on_at_the_end_of_a_step(data, tmp_path):
    """Batches are counted on from a checkpoint of a step's start, and what is saved later is one of a batch's end."""
    whole = fit(data, tmp_path / "whole", 0, accumulate=2)
    first = fit(data, tmp_path, 0, accumulate=2, further=(Asked(), GracefulStop()))
    stopped = {"resume": True, "last": "checkpoints/stopped.ckpt"}
    second = fit(data, tmp_path, 0, accumulate=2, stop=True, further=(GracefulStop(),), **stopped)
    third = fit(data, tmp_path, 0, accumulate=2, resume=True)
    assert first.seen + second.seen + third.seen == whole.seen
    assert third.digest() == whole.digest()


def test_a_count_that_an_older_version_left_wrong_is_put_right(data, tmp_path):
    whole = fit(data, tmp_path / "whole", 0, accumulate=2)
    fit(data, tmp_path, 0, accumulate=2, stop=True)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"] += 1
    torch.save(saved, tmp_path / "last.ckpt")
    rest = fit(data, tmp_path, 0, accumulate=2, resume=True)
    assert rest.seen == whole.seen[STOP * 2 :] and rest.digest() == whole.digest()


@pytest.mark.fault(8)
@pytest.mark.parametrize(("name", "value", "was"), [("batch_size", 4, 2), ("seed", 6, 5), ("interleave", 0.0, 0.2)])
def test_what_would_change_the_order_is_refused_with_both_values(data, tmp_path, name, value, was):
    fit(data, tmp_path, 0, stop=True)
    with pytest.raises(UserError, match=f"{name} is {value}, the run of the checkpoint had {was}"):
        fit(data, tmp_path, 0, resume=True, **{name: value})


@pytest.mark.fault(8)
def test_another_number_of_ranks_continues_the_same_global_batches(data):
    def picks(world: int, start: int) -> list[list]:
        from hvlm.data.order import Order

        ranks = [
            Order(["general"] * 18, batch_size=4, steps=STEPS, seed=5, rank=r, world=world, start=start)
            for r in range(world)
        ]
        return [sum(shares, []) for shares in zip(*ranks, strict=True)]

    assert picks(1, 0)[:STOP] + picks(4, STOP) == picks(2, 0)
