"""Parts that are compiled or computed again train as they do without, and for which numbers a step waits."""

from __future__ import annotations

import functools
import shutil
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hvlm import assembly
from hvlm.config.compose import compose
from hvlm.errors import UserError
from hvlm.io.checkpoint import load_weights
from hvlm.stage._base import Stage
from hvlm.training import chain, parts
from hvlm.training.identity import identity
from hvlm.training.start import start_stage
from hvlm.types import Batch

DEEPER = ["vision.num_layers=3", "language.num_layers=3", "connector.standardise=false"]


def start(overrides: list[str], *more: str, rows: int = 6) -> tuple[Stage, Batch]:
    """A stage around a fresh model, and a batch of it."""
    cfg = compose([*overrides, *more])
    torch.manual_seed(0)
    data = assembly.dataset(cfg)
    data.prepare(progress=False)
    stage, chat = start_stage(cfg, data, None)
    reading = assembly.datamodule(cfg, stage, data, chat, None)
    return stage, next(iter(reading.loader("train", stage.view, stage.rows_per_clip, rows, rows)))


class Saved:
    """The bytes that the backward pass is left, but for the weights themselves."""

    def __init__(self, stage: Stage) -> None:
        self.bytes, self._own = 0, {p.untyped_storage().data_ptr() for p in stage.parameters()}

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in self._own:
            self.bytes += tensor.nbytes
        return tensor


class One:
    """A loader of one batch."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Batch]:
        return iter([self.batch])


def gradients(stage: Stage, batch: Batch, company: list[Any], folder: Path) -> tuple[dict[str, torch.Tensor], int]:
    """Of one step, and the bytes that were kept for its backward pass."""
    found: dict[str, torch.Tensor] = {}

    class Spy(lightning.Callback):
        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            found.update({n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None})

    saved = Saved(stage)
    with torch.autograd.graph.saved_tensors_hooks(saved.keep, lambda x: x):
        lightning.Trainer(
            accelerator="cpu", max_steps=1, max_epochs=-1, limit_val_batches=0, logger=False,
            callbacks=[*company, Spy()],
            enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
            use_distributed_sampler=False, default_root_dir=folder,
        ).fit(stage, One(batch))  # fmt: skip
    return found, saved.bytes


@pytest.mark.parametrize(
    ("name", "part", "more"),
    [
        ("sft", "vision", []),  # convvit, as a whole
        ("sft", "vision", ["vision=clip_tiny"]),
        ("sft", "connector", ["connector=foveated"]),
        ("sft", "language", []),
        ("sft", "attention", ["attention=full"]),
        ("dpo", "language", []),  # whose policy is in evaluation mode
        ("align", "language", ["stage.trainable={vision:0,connector:1e-3,language:0}"]),  # and so is what is frozen
    ],
)
def test_what_is_computed_again_has_the_same_gradients_and_keeps_less(
    needles: list[str], tmp_path: Path, name: str, part: str, more: list[str]
) -> None:
    usual = [o for o in (*needles, *DEEPER) if "vision=clip_tiny" not in more or not o.startswith("vision.")]
    settings = [*usual, f"stage={name}", *more]
    plain, kept = gradients(*start(settings), [], tmp_path)
    again, fewer = gradients(*start(settings), [parts.Parts([], [part])], tmp_path)
    assert plain.keys() == again.keys() and plain
    for parameter, value in plain.items():
        assert float((again[parameter] - value).abs().max()) <= 1e-6, parameter
    assert fewer < (1 if part == "attention" else 0.9) * kept  # of a few tokens, attention keeps little


@pytest.mark.parametrize("connector", ["foveated", "longvlm"])
def test_running_statistics_are_the_same_where_everything_is_computed_again(needles: list[str], connector: str) -> None:
    stage, batch = start(needles, "stage=sft", f"connector={connector}")
    seen: list[dict[str, torch.Tensor]] = []
    for asked in ([], ["connector"]):
        replaced = parts.Replaced()
        parts.checkpoint_activations(stage.model, asked, replaced)
        stage.losses(batch).terms["text"].total.backward()
        replaced.back()
        seen.append({n: b.clone() for n, b in stage.named_buffers() if n.endswith("seen")})
        for name, buffer in stage.named_buffers():
            if name.endswith("seen"):
                buffer.zero_()
    assert len(seen[0]) == 2 and all(float(b[0]) > 0 for b in seen[0].values())
    for name, once in seen[0].items():  # their count, sum and sum of squares: each place twice, none once
        torch.testing.assert_close(seen[1][name] / 2, once)


@pytest.mark.slow
def test_a_compiled_part_learns_the_same_under_the_same_names(
    needles: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The capture alone: what a compiler makes of it is tested with one, below."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    monkeypatch.setattr(shutil, "which", lambda _: "g++")
    train_compiled(needles, tmp_path, monkeypatch, "{connector:true}", "connector=mean")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs g++")
def test_what_the_compiler_makes_learns_the_same(
    needles: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_compiled(needles, tmp_path, monkeypatch, "{vision:true,connector:true,language:true,head:true}")


def train_compiled(needles: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, asked: str, *more: str) -> None:
    monkeypatch.chdir(folder)
    few = ["stage=sft", "stage.steps=3", "stage.batch_size=4", "stage.interleave=0.3", "evaluate=false"]
    few += [*more, *needles]
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    fast = chain.run([*few, f"trainer.compile={asked}", "callback.media=0", "run=fast"])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    plain = chain.run([*few, "callback.media=0", "run=plain"])
    one, other = (load_weights(run.run / "sft") for run in (plain, fast))
    assert one.keys() == other.keys()
    assert max(float((other[name].float() - value.float()).abs().max()) for name, value in one.items()) < 1e-5
    losses = [run.stages["sft"]["metrics"]["val/loss"] for run in (plain, fast)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("trainer.compile={vsion:true}", "trainer.compile names 'vsion', and no part is called so; did you mean"),
        ("trainer.checkpoint_activations={merger:true}", "trainer.checkpoint_activations names 'merger'"),
        ("trainer.compile={vision:3}", "trainer.compile"),
    ],
)
def test_a_part_that_does_not_exist_is_one_line(needles: list[str], setting: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as said:
        chain.run(["stage=sft", setting, *needles])
    assert "\n" not in str(said.value)


def test_without_a_compiler_it_is_said_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="needs a C\\+\\+ compiler"):
        parts.check_parts(compose(["trainer.compile={vision:true}"])["trainer"])


def test_how_it_is_computed_is_not_whose_folder_it_is() -> None:
    other = compose(
        ["trainer.compile={vision:true}", "trainer.checkpoint_activations={vision:true}", "trainer.profile=true"]
    )
    assert identity(other) == identity(compose([]))


def test_chosen_and_rejected_share_one_vision_pass(needles: list[str]) -> None:
    stage, batch = start([*needles, "stage=dpo"])
    stage.configure_model()
    passes: list[int] = []
    for model in (stage.model, stage._reference[0]):
        encode = model.vision.encode

        def counted(frames: torch.Tensor, *rest: Any, encode: Any = encode) -> Any:
            passes.append(len(frames))
            return encode(frames, *rest)

        object.__setattr__(model.vision, "encode", counted)
    stage.losses(batch)
    assert len(batch.input_ids_KS) >= 2 * batch.num_clips
    assert passes == [batch.num_clips] * 2, "policy and reference: each clip once, not once for each answer"


# ------------------------------------------------------------------------------------------------ waiting for a number

# Where a step of training asks for a number that a GPU would have to finish for, and why it stays.
ALLOWED = {
    "hvlm/connector/foveated.py": "how long the text of a clip's rows is, and how many frames it has",
    "hvlm/model.py": "whether there is a video, and how long the text before it is: shapes of what follows",
    "hvlm/types.py": "which tokens are targets: the shape of the logits",
    "hvlm/language/_base.py": "whether rows are padded: attention without a mask is faster",
    "hvlm/training/guard.py": "whether the step is taken: the norm of the gradients, once a step",
}


class Waits(TorchDispatchMode):
    """Operations whose result the processor needs, and the file of ours that asks."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if by_mask or name in ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "is_nonzero", "equal"):
            asks = [f.filename for f in traceback.extract_stack() if "/hvlm/" in f.filename]
            self.found[f"hvlm/{asks[-1].rpartition('/hvlm/')[2]}" if asks else "elsewhere"] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["align", "sft", "dpo"])
@pytest.mark.parametrize("connector", ["mean", "foveated"])
def test_a_step_waits_only_for_these(needles: list[str], name: str, connector: str) -> None:
    stage, batch = start([*needles, f"stage={name}", f"connector={connector}"])
    stage.configure_model()
    with Waits() as waits:
        loss = sum(term.total / term.count for term in stage.losses(batch).terms.values())
        loss.backward()
    elsewhere = {"hvlm/training/guard.py", *(["hvlm/connector/foveated.py"] if connector == "mean" else [])}
    assert set(waits.found) == set(ALLOWED) - elsewhere
    assert sum(waits.found.values()) <= (24 if name == "dpo" else 12)
