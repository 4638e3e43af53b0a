"""Weights, gradients and optimiser states divided among processes: their checkpoints, and what each process holds."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.fabric.utilities.rank_zero
import lightning.pytorch.utilities.rank_zero
import pytest
import torch
import torch.distributed as dist
from _small import once
from _tiny import ROOT
from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from test_ddp import logged, train
from test_stages import start
from torch.distributed.device_mesh import init_device_mesh

from experiments.strategies.held import held_bytes
from experiments.strategies.processes import held, together
from hvlm.api.load import load
from hvlm.config.compose import compose
from hvlm.errors import UserError
from hvlm.io.checkpoint import furthest_checkpoint, load_checkpoint, load_weights, weights_hash
from hvlm.io.files import verify
from hvlm.io.shards import KEY, Pieces, clean_pieces, folder_of, stand_in, write_piece
from hvlm.rebuild import stored_config
from hvlm.stage._base import Stage
from hvlm.stage._sharding import shard
from hvlm.tasks import export
from hvlm.training import preflight
from hvlm.training.chain import run
from hvlm.training.checkpoint_io import AtomicCheckpointIO
from hvlm.training.ranks import refuse_left_over_rank
from hvlm.training.sharded import Sharded
from hvlm.training.trainer import make_trainer, make_trainer_kwargs

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
    # how often a process calls the encoder is its own: so many frames at a time of those that it does not know yet
    "kept": ["stage=sft", "adapter=lora", "vision.cache_gb=1", "vision.frames_at_once=4", "stage.steps=9"],
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
    assert len(one["train/loss"]) == (9 if name == "kept" else 3)
    assert two["train/loss"] == pytest.approx(one["train/loss"], abs=1e-5, rel=0)
    assert two["val/loss"] == pytest.approx(one["val/loss"], abs=1e-5, rel=0)
    assert two["grad_norm"] == pytest.approx(one["grad_norm"], abs=1e-5, rel=1e-4)


@pytest.mark.slow
def test_two_processes_hold_half_each(side_by_side: Path) -> None:
    for rank in (0, 1):
        whole, part = (held(side_by_side, rank)[name] for name in ("ddp/sft", "fsdp/sft"))
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
    export(LAST, stored_config(LAST), tmp_path / "hf")
    assert_same(load_weights(LAST), dict(load(tmp_path / "hf").vlm.state_dict()))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("hvlm.training.checkpoint_io.sync_folder", full)  # when the new index already stands
        with pytest.raises(UserError, match="last.ckpt not written .*No space left"):
            run([*alone, "trainer.max_steps=2"])
    assert load_checkpoint(LAST)["global_step"] == 2
    clean_pieces(LAST.parent)
    stood = {path: path.read_bytes() for path in LAST.parent.rglob("*") if path.is_file()}
    monkeypatch.setattr("hvlm.training.sharded.write_piece", full)
    with pytest.raises(UserError, match="not written .*No space left.*; the previous checkpoint is whole"):
        run([*alone, "trainer.max_steps=3"])
    assert stood == {path: path.read_bytes() for path in LAST.parent.rglob("*") if path.is_file()}


def test_momentum_stays_that_of_its_weight_however_both_lie_in_memory(needles: list[str]) -> None:
    """Convolutions lie channels last in one process and not where they are divided; fused AdamW asks no names."""

    def step(stage: Stage, optimizer: torch.optim.Optimizer, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in stage.parameters():
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = torch.empty_like(parameter).copy_(gradient)
        optimizer.step()

    stages = [start(needles, "stage=sft", "stage.trainable.vision=0.01")[0] for _ in range(2)]
    optimizers = [stage.configure_optimizers()["optimizer"] for stage in stages]
    assert any(p.ndim == 4 and not p.is_contiguous() for p in stages[0].parameters())
    step(stages[0], optimizers[0], 0)
    saved = optimizers[0].state_dict()
    state = {n: {k: v.contiguous().clone() for k, v in held.items()} for n, held in saved["state"].items()}
    stages[1].load_state_dict(stages[0].state_dict())
    optimizers[1].load_state_dict({**saved, "state": state})
    for stage, optimizer in zip(stages, optimizers, strict=True):
        step(stage, optimizer, 1)
    assert_same(stages[0].state_dict(), stages[1].state_dict())


def test_pieces_of_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="trainer.checkpoint=sharded with trainer.strategy=auto: .*use trainer=fsdp"):
        run([*SMALL_RUN, "trainer=cpu", "trainer.checkpoint=sharded"])


def test_a_weight_that_is_a_single_number_is_refused(needles: list[str]) -> None:
    """FSDP cannot divide it."""
    stage = start(needles, "stage=task", "head=retrieve", "dataset.set=events")[0]
    with pytest.raises(UserError, match="trainer.strategy=fsdp: model.head.log_scale is .*use trainer=ddp"):
        shard(stage, stage.model, ("losses",), None)


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
    for first in range(7):
        for stop in range(first, 8):
            assert torch.equal(pieces.rows(index["state_dict"]["w"], first, stop), tensor[first:stop])
    write_piece(path, "b-0", {"w": (0, tensor + 1)})  # of a process that is killed before the index is there
    assert torch.equal(load_checkpoint(path)["state_dict"]["w"], tensor)
    clean_pieces(tmp_path)
    assert len(list(folder_of(path).iterdir())) == ranks
    assert torch.equal(load_checkpoint(path)["state_dict"]["w"], tensor)
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


@pytest.mark.parametrize("entries", [[], [{"name": "a"}], [5], "text", [{"sha256": "0"}]])
def test_cleaning_removes_nothing_behind_a_link_and_survives_any_index(entries: Any, tmp_path: Path) -> None:
    elsewhere, run = tmp_path / "elsewhere", tmp_path / "run"
    for folder in (elsewhere, run):
        folder.mkdir()
    (elsewhere / "mine.txt").write_text("kept")
    folder_of(run / "x.ckpt").symlink_to(elsewhere)
    torch.save({KEY: entries}, run / "x.ckpt")
    folder_of(run / "gone.ckpt").symlink_to(elsewhere)  # of an index that is not there
    clean_pieces(run)
    assert (elsewhere / "mine.txt").read_text() == "kept"


def test_of_two_processes_each_holds_half(needles: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in one of two, of which the other is only said to be there; the figures of real ones are slow."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    def bytes_of(stage: Stage) -> dict[str, int]:
        optimizer = stage.configure_optimizers()["optimizer"]
        for parameter in stage.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        optimizer.step()
        return held_bytes(stage, [optimizer])

    stages = [start(needles, "stage=sft", "merger=tome", "adapter=lora", "adapter.alone=false")[0] for _ in range(2)]
    for stage in stages:
        stage.freeze()
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        whole = bytes_of(stages[0])
        stages[1]._device_mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
        stages[1].configure_model()
        part = bytes_of(stages[1])
    finally:
        dist.destroy_process_group()
    for what in ("parameters", "gradients", "optimiser"):
        assert 0 < part[what] <= 0.6 * whole[what], what
    assert part["buffers"] == whole["buffers"]  # these are whole


def test_what_is_divided_is_not_asked_of_each(
    needles: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that fits the GPUs only when it is divided is not refused; processes on CPUs share the memory."""
    stage = start(needles, "stage=sft")[0]
    stage.freeze()
    trainer = {"checkpoint_every": 1, "accumulate": 1, "accelerator": "gpu", "devices": 4, "num_nodes": 2}
    need = preflight.optimiser_bytes(stage)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(preflight, "available_bytes", lambda _: ("the GPU's memory", need // 2))
    preflight.check_room(stage, tmp_path, {**trainer, "strategy": "fsdp"}, 1, 1, 1)
    for wrong in ({"strategy": "ddp"}, {"strategy": "fsdp", "devices": 1, "num_nodes": 1}):
        with pytest.raises(UserError, match="of the GPU's memory are available"):
            preflight.check_room(stage, tmp_path, trainer | wrong, 1, 1, 1)
    monkeypatch.setattr(preflight, "available_bytes", lambda _: ("memory", need * 3 // 2))
    on_cpus = {**trainer, "accelerator": "cpu", "num_nodes": 1, "devices": 2}
    preflight.check_room(stage, tmp_path, {**on_cpus, "strategy": "fsdp"}, 1, 1, 1)
    with pytest.raises(UserError, match="of memory are available"):
        preflight.check_room(stage, tmp_path, {**on_cpus, "strategy": "ddp"}, 1, 1, 1)


def node_commands(page: str) -> list[str]:
    """The lines of a page that start training on several machines, each as one."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8").replace("\\\n", " ")
    return [line for line in text.splitlines() if line.startswith(("torchrun ", "srun ", "#SBATCH"))]


def environment_of_slurm(header: str, task: int, port: int) -> dict[str, str]:
    """What srun sets for a task of a job with such a header, on this machine."""
    asked = dict(word.removeprefix("--").split("=", 1) for word in header.split()[1:] if "=" in word)
    nodes, each = int(asked["nodes"]), int(asked["ntasks-per-node"])
    return {
        "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": str(nodes * each),
        "SLURM_NTASKS_PER_NODE": str(each), "SLURM_NNODES": str(nodes), "SLURM_NODELIST": "127.0.0.1",
        "SLURM_PROCID": str(task), "SLURM_LOCALID": str(task % each), "SLURM_NODEID": str(task // each),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip


def test_the_commands_for_several_machines_fit_what_they_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the launchers' environments are understood by the trainer: eight processes, this one in its place."""
    lines = node_commands("training.md")
    (torchrun,) = (line for line in lines if line.startswith("torchrun"))
    (header,) = (line for line in lines if line.startswith("#SBATCH"))
    (srun,) = (line for line in lines if line.startswith("srun"))
    options = dict(word.removeprefix("--").split("=", 1) for word in torchrun.split() if word.startswith("--"))
    assert int(options["nnodes"]) == 2 and options["rdzv-backend"] == "c10d"
    world = int(options["nnodes"]) * int(options["nproc-per-node"])
    elastic = {
        "TORCHELASTIC_RUN_ID": options["rdzv-id"], "RANK": "6", "LOCAL_RANK": "2", "GROUP_RANK": "1",
        "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": options["nproc-per-node"], "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
    }  # fmt: skip
    slurm = environment_of_slurm(header, 6, 29500)
    for line, environment, kind in ((torchrun, elastic, TorchElasticEnvironment), (srun, slurm, SLURMEnvironment)):
        overrides = line[line.index("train.py") :].split()[1:]
        trainer = compose([*overrides, "stage=sft", "trainer.accelerator=cpu"])["trainer"]
        with monkeypatch.context() as patch:
            for module in (lightning.fabric.utilities.rank_zero, lightning.pytorch.utilities.rank_zero):
                patch.setattr(module.rank_zero_only, "rank", 0)  # a trainer of rank 6 sets it
            for name, value in environment.items():
                patch.setenv(name, value)
            refuse_left_over_rank(trainer)
            made = make_trainer(make_trainer_kwargs(trainer, 4))
            assert isinstance(made.strategy, Sharded) and made.strategy.in_pieces
            place = made.strategy.cluster_environment
            assert isinstance(place, kind) and place.creates_processes_externally
            assert (made.num_nodes, made.num_devices, made.world_size) == (2, 4, world) == (2, 4, 8)
            assert (place.global_rank(), place.local_rank(), place.node_rank()) == (6, 2, 1)
            with pytest.raises(UserError, match="trainer.devices"):
                make_trainer(make_trainer_kwargs({**trainer, "devices": 3}, 4))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "srun"])
def test_two_machines_of_one_process_each_lose_what_one_loses(
    launcher: str, side_by_side: Path, needles: list[str], tmp_path: Path
) -> None:
    """Both on this machine: what torchrun does with a meeting point at localhost, and what SLURM's variables do."""
    train_py = [str(ROOT / "train.py"), *stage_run("sft", needles, "trainer=fsdp", "trainer.accelerator=cpu")]
    train_py += ["trainer.devices=1", "trainer.num_nodes=2", "run=it"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    usual = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")} | {"PYTHONPATH": str(ROOT)}
    meet = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-id=it", "--rdzv-backend=c10d"]
    meet.append(f"--rdzv-endpoint=localhost:{port}")
    children = []
    for node in range(2):
        more = environment_of_slurm("#SBATCH --nodes=2 --ntasks-per-node=1", node, port)
        run_it, more = (meet, {}) if launcher == "torchrun" else ([], more)
        with open(tmp_path / f"{node}.log", "w") as log:
            children.append(
                subprocess.Popen(
                    [sys.executable, *run_it, *train_py], cwd=tmp_path, env=usual | more, stdout=log, stderr=log
                )
            )
    try:
        codes = [child.wait(timeout=400) for child in children]
    finally:
        for child in children:
            child.kill()
    assert codes == [0, 0], "".join((tmp_path / f"{node}.log").read_text()[-3000:] for node in range(2))
    one, two = logged(side_by_side / "runs/one/sft/sft"), logged(tmp_path / "runs/it/sft")
    assert two["train/loss"] == pytest.approx(one["train/loss"], abs=1e-5, rel=0)
    assert len(list((tmp_path / "runs/it/sft/checkpoints/last.ckpt.shards").iterdir())) == 2
