"""Weights, gradients and optimiser states divided among processes: their checkpoints, and what each process holds."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from _many_runs import together
from _small import once
from test_ddp import logged, train

from hvlm.errors import UserError
from hvlm.io.checkpoint import furthest_checkpoint, load_checkpoint, load_weights, weights_hash
from hvlm.io.files import verify
from hvlm.io.shards import KEY, Pieces, folder_of, stand_in, write_piece
from hvlm.training.chain import run
from hvlm.training.checkpoint_io import AtomicCheckpointIO

SMALL_RUN = [
    "stage=sft", "connector=mean", "connector.standardise=false", "trainer.precision=32-true", "stage.steps=6",
    "stage.batch_size=4", "stage.interleave=0.5", "evaluate=false", "callback.media=0", "run=it", "adapter=lora",
    "adapter.alone=false", "adapter.rate=1e-4", "trainer.log_every=1",
]  # fmt: skip
ONE, TWO = ["trainer=cpu"], ["trainer=fsdp", "trainer.accelerator=cpu"]
LAST = Path("runs/it/sft/checkpoints/last.ckpt")


def states() -> dict[str, Any]:
    """{what: tensor} of weights and optimiser, as one process reads them."""
    content = load_checkpoint(LAST)
    (optimiser,) = content["optimizer_states"]
    numbers = [number for group in optimiser["param_groups"] for number in group["params"]]
    found = {f"weights {name}": value for name, value in content["state_dict"].items()}
    for place, number in enumerate(numbers):
        for key, value in optimiser["state"].get(number, {}).items():
            found[f"optimiser {place} {key}"] = value
    return found


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def again(*overrides: str) -> None:
    """The stage from its checkpoint, which has all its steps already: read, and written anew."""
    Path("runs/it/sft/finished.json").unlink()
    (train if "trainer=fsdp" in overrides else lambda *o: run(list(o)))(*SMALL_RUN, *overrides)


@pytest.mark.slow
def test_a_checkpoint_goes_through_two_one_and_two_processes_bit_for_bit(
    needles: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And training goes on in either number of processes as one process does it from the beginning."""
    monkeypatch.chdir(tmp_path)
    train(*SMALL_RUN, *needles, *TWO, "trainer.max_steps=2")
    assert len(list(folder_of(LAST).glob("*.pt"))) == 2
    first = states()
    assert any(name.startswith("optimiser") and value.ndim for name, value in first.items())
    again(*needles, *ONE, "trainer.max_steps=2")
    assert not folder_of(LAST).exists()
    assert_same(first, states())
    again(*needles, *TWO, "trainer.max_steps=2")
    assert len(list(folder_of(LAST).glob("*.pt"))) == 2
    assert_same(first, states())
    run([*SMALL_RUN, *needles, *ONE, "trainer.max_steps=4"])
    train(*SMALL_RUN, *needles, *TWO)
    run([*SMALL_RUN, *needles, *ONE, "run=alone"])
    one, two = logged(Path("runs/alone/sft")), logged(Path("runs/it/sft"))
    assert len(one["train/loss"]) == 6
    assert two["train/loss"] == pytest.approx(one["train/loss"], abs=1e-5, rel=1e-5)


# {run: what it is told}; each begins from nothing, with the same seed.
CLASSIFY = ["stage=task", "head=classify", "dataset.set=binding"]
STAGES = {
    "align": ["stage=align", "stage.interleave=0.3"],
    "sft": ["stage=sft", "stage.interleave=0.5", "connector=foveated"],
    "lora": ["stage=sft", "adapter=lora"],  # everything else is frozen
    "dpo": ["stage=dpo", "stage.nll_weight=0.1"],
    "off": ["stage=dpo", "adapter=lora", "stage.reference=adapter_off"],
    "task": CLASSIFY,
    "duo": ["stage=duo", "kvcache=duo", "dataset.set=keys", "dataset.keys=2", "connector=patches", "order=video_first",
            "stage.sink=1", "stage.recent=2", "stage.trainable.kvcache=0.05", "stage.l1_weight=10"],
}  # fmt: skip


def stage_run(name: str, needles: list[str], *more: str) -> list[str]:
    words = [
        "connector=mean", "connector.standardise=false", *needles, "language.num_layers=2", "stage.steps=3",
        "stage.batch_size=4", "evaluate=false", "callback.media=0", "trainer.log_every=1", *STAGES[name],
    ]  # fmt: skip
    return [*words, *more]


@pytest.fixture(scope="session")
def side_by_side(shared: Path, needles: list[str]) -> Path:
    """A folder with runs/one/NAME, trained by one process, and runs/ddp/NAME and runs/fsdp/NAME, by two."""

    def make(folder: Path) -> None:
        two = [
            stage_run(name, needles, f"trainer={trainer}", "trainer.accelerator=cpu", f"run={trainer}/{name}")
            for name in STAGES
            for trainer in (("fsdp", "ddp") if name in ("sft", "lora") else ("fsdp",))
        ]
        with contextlib.chdir(folder):
            for name in STAGES:
                run(stage_run(name, needles, f"run=one/{name}"))
        together(two, folder)

    return once(shared / "side_by_side", make)


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_two_processes_lose_what_one_loses(name: str, side_by_side: Path) -> None:
    word = STAGES[name][0].removeprefix("stage=")
    one, two = (logged(side_by_side / "runs" / kind / name / word) for kind in ("one", "fsdp"))
    assert len(one["train/loss"]) == 3
    assert two["train/loss"] == pytest.approx(one["train/loss"], abs=1e-5, rel=0)
    assert two["val/loss"] == pytest.approx(one["val/loss"], abs=1e-5, rel=0)
    assert two["grad_norm"] == pytest.approx(one["grad_norm"], abs=1e-5, rel=1e-4)


@pytest.mark.slow
def test_two_processes_hold_half_each(side_by_side: Path) -> None:
    for rank in (0, 1):
        held = json.loads((side_by_side / f"held_{rank}.json").read_text())
        whole, part = held["ddp/sft"], held["fsdp/sft"]
        assert whole["optimiser"] > 1.9 * whole["parameters"] > 0
        assert part["parameters"] + part["optimiser"] <= 0.6 * (whole["parameters"] + whole["optimiser"])
        assert part["gradients"] <= 0.6 * whole["gradients"]


def test_a_run_in_one_piece_is_a_run(needles: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process under trainer=fsdp: what it writes is read, continued without it, damaged, replaced and removed."""
    monkeypatch.chdir(tmp_path)
    alone = [*SMALL_RUN, *needles, "trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=1"]
    run([*alone, "trainer.max_steps=2", "trainer.checkpoint_every=1", "callback.keep=1"])
    (step,) = LAST.parent.glob("step-*.ckpt")
    assert {path.name for path in LAST.parent.iterdir()} == {
        *(f"{path.name}{end}" for path in (LAST, step) for end in ("", ".sha256", ".shards"))
    }
    (piece,) = folder_of(LAST).iterdir()
    assert verify(LAST) is None and LAST.stat().st_size < piece.stat().st_size
    content, weights = load_checkpoint(LAST), load_weights(LAST)
    assert content["global_step"] == 2 and len(weights) == len(content["state_dict"])
    assert weights_hash(weights) == json.loads(LAST.parent.with_name("finished.json").read_text())["weights_sha256"]
    before = piece.read_bytes()
    piece.write_bytes(before[:-100] + bytes(100))
    with pytest.raises(UserError, match="last.ckpt.shards/.*differs from its checksum"):
        load_checkpoint(LAST)
    assert furthest_checkpoint(LAST.parent) == step  # of the same step, and sound
    piece.rename(tmp_path / "away")
    with pytest.raises(UserError, match="is not there .copy the folder beside the file"):
        load_checkpoint(LAST)
    piece.write_bytes(before)
    (folder_of(LAST) / "left-0of1.pt").write_bytes(b"of a killed save")
    run([*SMALL_RUN, *needles, "trainer=cpu", "trainer.max_steps=3"])
    assert load_checkpoint(LAST)["global_step"] == 3 and not folder_of(LAST).exists()
    run([*alone, "trainer.max_steps=1", "resume=never"])
    assert [path.name for path in LAST.parent.glob("*.ckpt")] == ["last.ckpt"] and folder_of(LAST).is_dir()


def test_pieces_of_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="trainer.checkpoint=sharded with trainer.strategy=auto: .*use trainer=fsdp"):
        run([*SMALL_RUN, "trainer=cpu", "trainer.checkpoint=sharded"])


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_rows_are_read_from_whatever_pieces(ranks: int, tmp_path: Path) -> None:
    tensor, path = torch.arange(14).reshape(7, 2), tmp_path / "x.ckpt"
    each = -(-7 // ranks)
    entries = [
        write_piece(path, f"a-{r}", {"w": (r * each, tensor[r * each : (r + 1) * each].clone())}) for r in range(ranks)
    ]
    index = {"state_dict": {"w": stand_in("w", tensor)}, "global_step": 3, KEY: entries}
    AtomicCheckpointIO().save_checkpoint(index, path)
    assert torch.equal(load_checkpoint(path)["state_dict"]["w"], tensor)
    pieces = Pieces(path, index)
    for start in range(7):
        for stop in range(start, 8):
            assert torch.equal(pieces.rows(index["state_dict"]["w"], start, stop), tensor[start:stop])
    if ranks > 1:
        short = {**index, KEY: entries[:-1]}
        AtomicCheckpointIO().save_checkpoint(short, path)
        with pytest.raises(UserError, match="hold [0-9] of 7 rows of w"):
            load_checkpoint(path)
    AtomicCheckpointIO().remove_checkpoint(path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "wrong",
    [
        {KEY: 3},
        {KEY: [{"name": "../x", "sha256": "0"}]},
        {KEY: [], "state_dict": {"w": {"rows": "w", "shape": [1 << 50], "dtype": torch.float32}}},
        {KEY: [], "state_dict": {"w": {"rows": "w", "shape": "?", "dtype": 3}}},
    ],
)
def test_a_wrong_index_is_one_line(wrong: dict[str, Any], tmp_path: Path) -> None:
    torch.save(wrong, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match="x.ckpt: "):
        load_checkpoint(tmp_path / "x.ckpt")
