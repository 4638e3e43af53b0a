"""Mistakes are refused before any work, in one line that names the key."""

from __future__ import annotations

import inspect
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import torch
from _tiny import ROOT, Variant
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from hvlm import assembly
from hvlm.checks.contract import its_numbers_say_their_range
from hvlm.cli import main
from hvlm.config.check import room_class
from hvlm.config.compose import CONF, compose, plan, stage_name
from hvlm.config.ranges import MinLen, NonNegativeFloat, PositiveInt, Share, Written
from hvlm.config.rooms import ROOMS
from hvlm.config.schema import arguments, convert
from hvlm.errors import UserError
from hvlm.precision import choose_precision, has_fast_bf16
from hvlm.training.trainer import make_trainer_kwargs


def refused(*overrides: str) -> str:
    with pytest.raises(UserError) as e:
        compose(overrides)
    assert "\n" not in str(e.value)
    return str(e.value)


# ---------------------------------------------------------------------------------------------------- one value


@pytest.mark.parametrize(
    "value, annotation, expected",
    [
        (3, float, 3.0),
        (1e3, int, 1000),
        (7, str, "7"),
        (None, int | None, None),
        ([1, 2], list[float], [1.0, 2.0]),
        ({"a": 1}, dict[str, float], {"a": 1.0}),
        ("x", Literal["x", "y"], "x"),
        ("7", int | str, "7"),
        (7, int | str, 7),
        ("auto", int | Literal["auto"], "auto"),
    ],
)
def test_convert(value: Any, annotation: Any, expected: Any) -> None:
    got = convert(value, annotation, "k")
    assert got == expected and type(got) is type(expected)


@pytest.mark.parametrize(
    "value, annotation",
    [
        ("abc", int),
        (1.5, int),
        (True, int),
        (1, bool),
        ("1.0", float),
        (None, int),
        ("abc", int | None),
        ("a", list[str]),
        ([1, "a"], list[int]),
        ({"a": "b"}, dict[str, float]),
        ("z", Literal["x", "y"]),
        (True, Literal[1, 2]),
        ([1], str),
    ],
)
def test_convert_refuses(value: Any, annotation: Any) -> None:
    with pytest.raises(UserError, match="room.key.*expected"):
        convert(value, annotation, "room.key")


def test_arguments_of_a_constructor() -> None:
    class Base:
        def __init__(self, *, steps: int, model: object) -> None: ...

    class Child(Base):
        def __init__(self, *, beta: float = 0.1, **rest: Any) -> None: ...

    assert arguments({"steps": 2, "beta": 1}, Child, "stage", {"model"}) == {"steps": 2, "beta": 1.0}
    with pytest.raises(UserError, match=r"stage.steps has no value"):
        arguments({}, Child, "stage")
    with pytest.raises(UserError, match=r"'stage.betta'; did you mean 'stage.beta'\?"):
        arguments({"steps": 1, "betta": 1}, Child, "stage")
    with pytest.raises(UserError, match=r"unknown key 'stage.model'"):  # a module cannot stand in a YAML
        arguments({"steps": 1, "model": 1}, Child, "stage")

    class Loose:
        def __init__(self, **anything: Any) -> None: ...

    with pytest.raises(TypeError, match="swallow"):
        arguments({}, Loose, "room")


@pytest.mark.fault(75)
@pytest.mark.parametrize(
    "value, annotation, words",
    [
        (0, PositiveInt, "room.key=0: expected int of 1 or more"),
        (0, PositiveInt | None, "expected int of 1 or more"),
        (0, PositiveInt | Literal["auto"], "expected int of 1 or more"),
        (-1, dict[str, NonNegativeFloat], "expected a map {name: float of 0 or more}, found int -1"),
        (True, dict[str, bool] | None, "expected a map {name: bool}, found bool True"),
        ({"a": -1}, dict[str, NonNegativeFloat | None], "room.key.a=-1: expected float of 0 or more"),
        ([1, -1], list[NonNegativeFloat], r"room.key\[1\]=-1"),
        (2, Share, "above 0 and at most 1"),
        (float("nan"), float, "expected float"),
        (float("inf"), NonNegativeFloat, "expected float"),
        ("5", Annotated[str, Written(r"\d:\d", "m:s")], "written as m:s"),
        ([], Annotated[list[str], MinLen(1)], "not empty"),
        (True, PositiveInt, "expected int, found bool"),
    ],
)
def test_a_range_stands_with_the_type(value: Any, annotation: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        convert(value, annotation, "room.key")


def test_values_in_range_are_converted_as_before() -> None:
    assert convert(None, PositiveInt | None, "k") is None
    assert convert("auto", PositiveInt | Literal["auto"], "k") == "auto"
    assert type(convert(1, Share, "k")) is float and type(convert(2.0, PositiveInt, "k")) is int


def test_a_stated_signature_comes_first() -> None:
    class Joined:
        __signature__ = inspect.Signature(
            [inspect.Parameter("layers", inspect.Parameter.KEYWORD_ONLY, default=1, annotation=PositiveInt)]
        )

        def __init__(self, **anything: Any) -> None: ...

    assert arguments({"layers": 2}, Joined, "attention") == {"layers": 2}
    with pytest.raises(UserError, match="unknown key 'attention.layer'; did you mean 'attention.layers'"):
        arguments({"layer": 2}, Joined, "attention")


# ---------------------------------------------------------------------------------------------------- where rooms are


HERE = __name__


class NoRoom:
    """What a file might name instead of a room."""

    called = False

    def __init__(self) -> None:
        NoRoom.called = True


@pytest.mark.fault(64)
@pytest.mark.parametrize(
    "target",
    [
        f"{HERE}.NoRoom",
        "subprocess.Popen",
        "hvlm.vision.convvit.nn.Linear",  # what the module imported
        "hvlm.vision.convvit.F",
        "hvlm.vision.convvit.nn",
        "hvlm.vision.convvit.IMAGENET_MEAN",
        "hvlm.data.datamodule.DataModule",  # a class of ours that is no room
        "hvlm.vision.convvit.ConvViT ",
        "hvlm.vision.ConvViT",
        "hvlm.vision..convvit.ConvViT",
        "hvlm.vision.gone.X",
        "hvlm_vision.convvit.ConvViT",
        "builtins.eval",
        None,
        ["hvlm.vision.convvit.ConvViT"],
    ],
)
def test_a_room_is_built_from_a_class_of_its_group_only(target: Any) -> None:
    with pytest.raises(UserError):
        assembly.room({"_target_": target})
    with pytest.raises(UserError):
        room_class("vision", {"_target_": target})
    assert not NoRoom.called


@pytest.mark.fault(64)
@pytest.mark.parametrize("values", [{"dim": "128"}, {"dim": 0}, {"dims": 128}, {"dim": {"a": [1]}}, {"weights": True}])
def test_a_stored_room_is_checked_like_one_of_the_command_line(values: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        assembly.room({"_target_": "hvlm.vision.convvit.ConvViT", **values})


# ---------------------------------------------------------------------------------------------------- the command line


def test_defaults_compose_to_plain_values() -> None:
    cfg = compose([])
    assert type(cfg["connector"]) is dict and set(ROOMS) <= set(cfg)
    assert cfg["seed"] == 1 and cfg["order"] == "question_first" and stage_name(cfg) == "align"


@pytest.mark.fault(53, 54, 55, 56)
@pytest.mark.parametrize(
    "override, words",
    [
        ("stage.stepz=3", ["'stage.stepz'", "did you mean 'stage.steps'?"]),
        ("conector=mean", ["'conector'", "did you mean 'connector'?"]),
        ("connector=men", ["connector=men", "did you mean 'mean'?", "options:", "foveated"]),
        ("+typo=3", ["unknown key 'typo'"]),
        ("merger.kep=0.5", ["unknown key 'merger.kep'", "the chosen merger has no settings"]),
        ("+merger.kep=0.5", ["unknown key 'merger.kep'; merger has no settings"]),
        ("+sead=3", ["unknown key 'sead'", "did you mean 'seed'?"]),
        ("+connector.projetor=mlp", ["'connector.projetor'", "did you mean 'connector.projector'?"]),
        ("+connector.dim=3", ["connector.dim is not a setting"]),
        ("+seed=3", ["'seed' exists already"]),
        ("domain.mixture.sports=1", ["'domain.mixture' is a map and empty: write domain.mixture={sports:1}"]),
        ("domain.prompt.sports=1", ["'domain.prompt' is a single value"]),
        ("adapter=lora adapter.load.x=DIR", ["'adapter.load' is a map and empty: write adapter.load={x:DIR}"]),
        ("adapter=lora adapter.load.x=", ["write adapter.load={x:...}"]),
        ("adapter=lora adapter.targets.x=DIR", ["'adapter.targets' is a single value"]),
        ("stage.steps=abc", ["stage.steps=abc", "expected int"]),
        ("trainer.devices=many", ["trainer.devices=many", "expected int"]),
        ("trainer.log_evry=1", ["did you mean 'trainer.log_every'?"]),
        ("seed=null", ["seed=None", "expected int"]),
        ("order=videofirst", ["order=videofirst", "did you mean 'video_first'?"]),
        ("dataset=shards", ["dataset.path is mandatory"]),
        ("~stage.steps", ["stage.steps has no value"]),
        ("~connector", ["connector has no value", "connector=<name>"]),
        ("stage.trainable={vision:abc}", ["stage.trainable.vision=abc", "expected float"]),
        ("connector._target_=os.system", ["expected a class in hvlm.connector"]),
        ("connector._target_=hvlm.connector.gone.X", ["cannot be imported"]),
        ("seed=1,2", ["several values", "-m"]),
        ("connector.mean", ["connector=mean seed=2"]),
        ("++connector.mode={a:{b:1}}", ["nested values"]),
        (f"adapter={'a' * 300}", ["adapter=aaa", "no such option"]),
        (f"{'a' * 300}=1", ["302 characters"]),
        ("adapter=\0", ["NUL", "leave it out"]),
        ("trainer.precision=bf16-true", ["expected one of auto, 32-true, bf16-mixed, 16-mixed"]),
    ],
)
def test_mistakes(override: str, words: list[str]) -> None:
    message = refused(*override.split())
    for word in words:
        assert word in message, message


@pytest.mark.fault(75)
@pytest.mark.parametrize(
    "override, words",
    [
        ("stage.batch_size=0", "int of 1 or more"),
        ("stage.steps=-1", "int of 1 or more"),
        ("stage.rows_per_clip=0", "int of 1 or more"),
        ("stage.weight_decay=-0.1", "float of 0 or more"),
        ("stage.interleave=1", "float of 0 or more and below 1"),
        ("stage.warmup=2", "at most 1"),
        ("stage.trainable={vision:-1e-3}", "stage.trainable.vision=-0.001: expected float of 0 or more"),
        ("seed=-1", "int of 0 or more"),
        ("seed=4294967296", "below"),
        ("callback.keep=-5", "int of -1 or more"),
        ("callback.media=-1", "int of 0 or more"),
        ("trainer.num_workers=-1", "int of 0 or more"),
        ("trainer.max_time=5", "written as dd:hh:mm:ss"),
        ("trainer.threads=0", "int of 1 or more"),
        ("trainer.devices=0", "int of 1 or more"),
        ("trainer.accumulate=0", "int of 1 or more"),
        ("trainer.checkpoint_every=0", "int of 1 or more"),
        ("trainer.log_every=0", "int of 1 or more"),
        ("trainer.gradient_clip_val=-1", "float of 0 or more"),
        ("trainer.max_steps=0", "int of 1 or more"),
        ("ask.fps=0", "float above 0"),
        ("ask.at=[-3,100]", r"ask.at[0]=-3: expected float of 0 or more"),
        ("domain.mixture={news:-1}", "domain.mixture.news=-1"),
        ("vision.num_heads=0", "int of 1 or more"),
        ("language.num_layers=0", "int of 1 or more"),
        ("dataset.num_frames=0", "int of 1 or more"),
        ("benchmark.limit=0", "int of 1 or more"),
        ("benchmark.batch_size=0", "int of 1 or more"),
    ],
)
def test_numbers_out_of_range_are_refused_in_one_line(override: str, words: str) -> None:
    message = refused(override)
    assert words in message and message.startswith(override.split("=", 1)[0]), message


@pytest.mark.fault(75)
@pytest.mark.parametrize("group", ROOMS)
def test_every_number_of_every_room_says_its_range(group: str) -> None:
    """A count, a size, a rate or a share says what it may be; the few that may be anything are named there."""
    for path in sorted((CONF / group).glob("*.yaml")):
        its_numbers_say_their_range(Variant(group, path.stem))


def test_plan_of_a_chain() -> None:
    """The chain's overrides, then the user's: the user wins; ``stage=`` runs one stage alone."""
    chain = "++chain={align:['stage=align','stage.steps=5','seed=3'],sft:['stage=sft','stage.steps=6']}"
    stages = plan([chain, "seed=9"])
    assert list(stages) == ["align", "sft"]
    assert [s["stage"]["steps"] for s in stages.values()] == [5, 6]
    assert {s["seed"] for s in stages.values()} == {9}
    alone = plan([chain, "stage=sft"])
    assert list(alone) == ["sft"] and alone["sft"]["stage"]["steps"] == 6
    with pytest.raises(UserError, match="stage.stepz"):  # the mistake is in the last stage; nothing has run
        plan(["++chain={align:['stage=align'],sft:['stage=sft','stage.stepz=6']}"])


def test_a_rate_goes_to_the_stages_of_a_chain_that_know_the_part() -> None:
    chain = "++chain={vision:['stage=vision'],sft:['stage=sft']}"
    stages = plan([chain, "stage.trainable={language:0,connector:1e-3}", "stage.trainable.vision=null"])
    rates = {label: cfg["stage"]["trainable"] for label, cfg in stages.items()}
    assert rates["sft"]["language"] == 0 and "language" not in rates["vision"]
    assert {(r["connector"], r["vision"]) for r in rates.values()} == {(1e-3, None)}
    with pytest.raises(UserError, match=r"'stage.trainable.langauge'; did you mean 'stage.trainable.language'"):
        plan([chain, "stage.trainable={langauge:0}"])


def test_main_called_with_overrides_returns() -> None:
    @main
    def entry(cfg: dict[str, Any], overrides: list[str]) -> Any:
        return cfg["seed"], overrides

    assert entry(["seed=4"]) == (4, ["seed=4"])


@main
def entry(cfg: dict[str, Any], overrides: list[str]) -> Any:
    return cfg["seed"]


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """Calls ``entry`` as a shell would, in an empty folder; Hydra's global state is put back afterwards."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Any:
        monkeypatch.setattr(sys, "argv", ["entry.py", *arguments])
        return entry()

    yield call
    root.handlers[:] = handlers
    root.setLevel(level)
    HydraConfig.instance().cfg = None


def test_entry_runs_and_leaves_nothing_behind(command_line: Any, tmp_path: Path) -> None:
    assert command_line("seed=4") == 4
    assert list(tmp_path.iterdir()) == []


def test_entry_says_what_is_wrong_in_one_line(command_line: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for override, line in {
        "stage.steps=abc": "error: stage.steps=abc: expected int, found str 'abc'\n",
        "conector=mean": "error: unknown key 'conector'; did you mean 'connector'?\n",
    }.items():
        with pytest.raises(SystemExit) as stopped:
            command_line(override)
        assert stopped.value.code == 1 and capsys.readouterr().err == line
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(SystemExit):
        command_line()
    assert "unset it" in capsys.readouterr().err
    assert "HYDRA_FULL_ERROR" not in os.environ
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(UserError):
        command_line("stage.steps=abc")


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys, train\ntry: train.train()\nfinally: print(sorted({'torch', 'lightning'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "usage: python -c [experiment=NAME]" in done.stdout and done.stdout.endswith("[]\n")


def test_cfg_job_prints_the_configuration(command_line: Any, capsys: Any) -> None:
    command_line("--cfg", "job", "seed=5")
    assert OmegaConf.create(capsys.readouterr().out).seed == 5


# ---------------------------------------------------------------------------------------------------- trainer


def test_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hvlm.precision.has_fast_bf16", lambda: False)
    assert choose_precision("auto", "cpu")[0] == "32-true"
    monkeypatch.setattr("hvlm.precision.has_fast_bf16", lambda: True)
    assert choose_precision("auto", "cpu")[0] == "bf16-mixed"
    assert choose_precision("32-true", "cpu")[0] == "32-true"
    with pytest.raises(UserError, match="needs a GPU"):
        choose_precision("16-mixed", "cpu")


@pytest.mark.parametrize(
    ("amx", "avx", "maker", "fast"),
    [
        (True, True, "GenuineIntel", True),
        (False, True, "GenuineIntel", False),
        (False, True, "AuthenticAMD", True),
        (False, False, "AuthenticAMD", False),
    ],
)
def test_which_processors_are_faster_in_bfloat16(
    amx: bool, avx: bool, maker: str, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    assert has_fast_bf16(maker) is fast


def test_trainer_kwargs() -> None:
    import lightning

    trainer = compose(["trainer.val_every=5", "trainer.accumulate=2", "trainer.max_steps=7"])["trainer"]
    kwargs = make_trainer_kwargs(trainer, steps=100)
    assert kwargs["max_steps"] == 7 and kwargs["val_check_interval"] == 10
    lightning.Trainer(**kwargs, logger=False)
