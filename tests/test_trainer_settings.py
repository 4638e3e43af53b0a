"""The trainer's settings do what Lightning's of the same names do, and other programs' words are answered with ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from hvlm.config.compose import CONF, compose
from hvlm.config.rooms import ROOMS
from hvlm.config.schema import did_you_mean
from hvlm.config.synonyms import KEYS, VALUES, WORDS, instead_of_word
from hvlm.errors import UserError
from hvlm.sweep.table import read_numbers
from hvlm.training import chain
from hvlm.training.identity import LATER, config_id, identity


class Spy(Callback):
    """What the batches, the gradients and the validations of a stage are."""

    def __init__(self) -> None:
        self.batches: list[Any] = []
        self.largest: list[float] = []
        self.anomaly: set[bool] = set()
        self.validated = 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append((batch.uids, batch.input_ids_KS.tolist(), batch.frame_time_BT.tolist()))
        self.anomaly.add(torch.is_anomaly_enabled())

    def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        found = [p.grad.abs().max().item() for p in pl_module.parameters() if p.grad is not None]
        self.largest += [max(found)] if found else []

    def on_validation_batch_end(self, *_: Any) -> None:
        self.validated += 1


@pytest.mark.fault(102)
def test_the_trainers_own_settings(needles: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made, spy = chain.callbacks, Spy()
    monkeypatch.setattr(chain, "callbacks", lambda *a, **k: [*made(*a, **k), spy])
    few = ["stage=sft", "stage.steps=4", "stage.batch_size=2", "stage.interleave=0", "evaluate=false", *needles]
    chain.run([*few, "callback.media=0", "run=a", "trainer.overfit_batches=2", "trainer.detect_anomaly=true",
               "trainer.gradient_clip_algorithm=value", "trainer.gradient_clip_val=1e-4",
               "trainer.val_every=2", "trainer.limit_val_batches=1"])  # fmt: skip
    first, second, third, fourth = spy.batches
    assert first == third and second == fourth and first != second, "two batches, in turn, to the same frames"
    assert max(spy.largest) == pytest.approx(1e-4)
    assert spy.anomaly == {True}
    assert spy.validated == 3, "after two steps, after four, and at the end: one batch each"
    assert read_numbers(tmp_path / "runs" / "a").val_loss > 0
    with pytest.raises(UserError, match="trainer.overfit_batches: 2 -> absent"):
        chain.run([*few, "callback.media=0", "run=a"])


def test_what_came_later_leaves_older_folders_their_owners() -> None:
    now = compose([])
    before = {**now, "trainer": {k: v for k, v in now["trainer"].items() if f"trainer.{k}" not in LATER}}
    assert identity(before) == identity(now) and config_id(before) == config_id(now)
    assert config_id(compose(["trainer.overfit_batches=1"])) != config_id(now)
    alike = dict.fromkeys(("general", "sports", "tutorials", "news"), 1.0)
    written = {**now, "domain": {**now["domain"], "mixture": alike}, "stage": {**now["stage"], "interleave": 0.14}}
    assert identity(written) == identity(now) and config_id(written) == config_id(now), "what null stands for"
    assert "domain.mixture.news" in identity(now)
    for other in ("stage.interleave=0", "stage.interleave=0.2", "domain=news"):
        assert config_id(compose([other])) != config_id(now)


# ------------------------------------------------------------------------------------------------- words of others


def refused(*overrides: str) -> str:
    with pytest.raises(UserError) as e:
        compose(overrides)
    assert "\n" not in str(e.value)
    return str(e.value)


@pytest.mark.fault(102)
@pytest.mark.parametrize(
    "override, ours",
    [
        ("trainer.fast_dev_run=true", "did you mean 'debug=fast_dev_run'?"),
        ("trainer.limit_train_batches=10", "did you mean 'trainer.max_steps'?"),
        ("trainer.log_every_n_steps=1", "'trainer.log_every'"),
        ("trainer.max_epochs=3", "'stage.steps'"),
        ("+trainer.max_epochs=3", "'stage.steps'"),
        ("trainer.accumulate_grad_batches=2", "'trainer.accumulate'"),
        ("trainer.enable_checkpointing=false", "'trainer.checkpoint_every'"),
        ("trainer.profiler=simple", "task=cost measures an answer"),
        ("trainer.precision=bf16", "did you mean 'bf16-mixed'?"),
        ("trainer.precision=32", "did you mean '32-true'?"),
        ("trainer.devices=-1", "did you mean 'auto'?"),
        ("trainer.strategy=deepspeed", "did you mean 'fsdp'?"),
        ("strategy=fsdp", "did you mean 'trainer.strategy'?"),
        ("lr=1e-3", "'stage.trainable={connector: 1e-3}'"),
        ("+learning_rate=1e-3", "'stage.trainable={connector: 1e-3}'"),
        ("stage.epochs=3", "'stage.steps'"),
        ("batch_size=4", "did you mean 'stage.batch_size' or 'benchmark.batch_size'?"),
        ("num_frames=4", "did you mean 'dataset.num_frames' or 'benchmark.num_frames'?"),
        ("model=qwen", "'language=smollm2_tiny' or 'vision=convvit'"),
        ("data=folder", "'dataset=shards dataset.path=FOLDER'"),
    ],
)
def test_words_of_other_programs_are_answered_with_ours(override: str, ours: str) -> None:
    assert ours in refused(override)


@pytest.mark.fault(104)
@pytest.mark.parametrize(
    "override, ours",
    [
        ("benchmark=videoniah", "did you mean 'vnbench'?"),
        ("benchmark=video_mme", "did you mean 'videomme'?"),
        ("connector=mlp", "did you mean 'connector=patches connector.projector=mlp'?"),
        ("connector=projector", "did you mean 'patches'?"),
        ("connector=qformer", "did you mean 'foveated'?"),
        ("dataset=webdataset", "did you mean 'shards'?"),
        ("vision=dino", "'dinov2' or 'dinov2_base'"),
        ("merger=null", "did you mean 'none'?"),
        ("debug=true", "did you mean 'fast_dev_run'?"),
        ("connector=3", "connector=3: no such option; options: "),
    ],
)
def test_words_of_the_field_are_answered_with_ours(override: str, ours: str) -> None:
    assert ours in refused(override)


@pytest.mark.fault(104)
def test_a_word_means_what_begins_with_it_and_what_the_table_says() -> None:
    known = ["causal", "qwen2_5_0_5b", "qwen3_0_6b", "smollm2_tiny"]
    assert instead_of_word("language", "qwen", known) == " did you mean 'qwen2_5_0_5b' or 'qwen3_0_6b' or 'causal'?"
    assert instead_of_word("language", "llama", known) == " did you mean 'causal'?"
    assert instead_of_word("vision", "siglip", ["clip", "siglip2_base"]) == " did you mean 'siglip2_base'?"
    assert "language.source=" in instead_of_word("language", "llama", ["smollm2_tiny"])
    assert instead_of_word("language", "xyz", known) == ""


@pytest.mark.fault(102, 104)
def test_everything_that_is_suggested_exists() -> None:
    cfg = compose(["stage=sft"])
    words = {o for group in WORDS.values() for ours in group.values() for o in ours if "=" in o}
    for ours in {o for answer in KEYS.values() for o in answer.ours} | words:
        group, _, word = ours.partition("=")
        if word and (CONF / group).is_dir() and " " not in ours:
            assert (CONF / group / f"{word}.yaml").exists(), ours
            continue
        if word:
            compose(ours.split(" ") if "{" not in ours else [ours])
            continue
        node: Any = cfg
        for part in ours.split("."):
            assert part in node, ours
            node = node[part]
    for key, values in VALUES.items():
        assert all(value and not did_you_mean(value, [value]).startswith(" known") for value in values.values()), key
    assert set(WORDS) <= {*ROOMS, "trainer", "logger", "debug", "experiment"}
