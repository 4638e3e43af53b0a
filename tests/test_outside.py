"""A package of somebody else's: its words are found, its rooms checked, trained, swept and reloaded where it is named.

The package is the one of docs/extending.md, written from the page.
"""

from __future__ import annotations

import contextlib
import copy
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from _tiny import ROOT

import eval as evaluation
import hvlm
from hvlm import assembly
from hvlm.checks import rooms
from hvlm.checks.run import outcome
from hvlm.checks.tiny import Variant
from hvlm.commands.check import main as checks
from hvlm.config import packages as named_packages
from hvlm.config.check import room_class
from hvlm.config.compose import compose, plan
from hvlm.config.overlay import overlay
from hvlm.errors import UserError
from hvlm.rebuild import load, stored_config
from hvlm.training.chain import run

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
FILES = re.findall(r"^```(?:python|yaml)\n# (mypackage/\S+)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
NAMED = "packages=[mypackage]"


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with the package in it."""
    assert len(FILES) == 4
    folder = write(tmp_path_factory.mktemp("outside"), {"mypackage/__init__.py": "", **dict(FILES)})
    path = list(sys.path)
    with contextlib.chdir(folder):
        yield folder
    sys.path[:] = path
    for name in [n for n in sys.modules if n.split(".")[0] in ("mypackage", "badrooms", "broken", "broken2")]:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def there(outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(outside)


@pytest.fixture(scope="module")
def overrides(needles: list[str]) -> list[str]:
    """Of a run that takes a second."""
    return [NAMED, "connector=power", "stage=noisy", "stage.steps=2", "stage.batch_size=4", "stage.interleave=0",
            "trainer.checkpoint_every=1", "callback.media=0", "evaluate=false", *needles]  # fmt: skip


@pytest.fixture(scope="module")
def mine(outside: Path, overrides: list[str]) -> Path:
    with contextlib.chdir(outside):
        return outside / run([*overrides, "run=mine"]).run


def refused(*overrides: str) -> str:
    with pytest.raises(UserError) as e:
        compose(overrides)
    assert "\n" not in str(e.value)
    return str(e.value)


# ---------------------------------------------------------------------------------------------------- words


def test_its_words_are_words_where_it_is_named() -> None:
    cfg = compose([NAMED, "connector=power", "stage=noisy", "connector.power=3"])
    assert cfg["connector"] == {"_target_": "mypackage.connector.power.Power", "power": 3.0, "visual_scale": 1.0}
    assert cfg["stage"]["noise"] == 0.05 and cfg["packages"] == ["mypackage"]
    assert "no such option" in refused("connector=power")
    assert "did you mean 'power'?" in refused(NAMED, "connector=powr")
    assert "connector.power=0: expected float above 0" in refused(NAMED, "connector=power", "connector.power=0")
    assert "did you mean 'stage.noise'?" in refused(NAMED, "stage=noisy", "+stage.nois=1")
    assert "did you mean 'stage.noise'?" in refused(NAMED, "stage=noisy", "stage.nois=1")


def test_the_commands_of_the_page_compose() -> None:
    calls = re.findall(r"^python (?:train|eval)\.py (.*)$", PAGE, re.MULTILINE)
    assert len(calls) == 3
    for words in map(str.split, calls):
        compose([re.sub(r"=([^,\[]+),.*", r"=\1", o) for o in words if o != "-m"])


def test_what_one_command_names_the_next_does_not_inherit() -> None:
    cfg = compose([NAMED, "connector=power"])
    with pytest.raises(UserError, match=r"package mypackage is not named: add packages=\[mypackage\]"):
        assembly.room(cfg["connector"], dim=4, text_dim=4)
    with named_packages.allow(["mypackage"]):
        assert assembly.room(cfg["connector"], dim=4, text_dim=4).power == 2.0
        assert compose(["connector=power"])["connector"]["power"] == 2.0
    with pytest.raises(UserError, match="is not named"):
        room_class("connector", cfg["connector"])


@pytest.mark.parametrize(
    "override, words",
    [
        ("packages=[gone]", "packages=[gone]: there is no package of that name; install it"),
        ("packages=mypackage", "expected a list of names, e.g. packages=[mypackage]"),
        ("packages=[my.package]", "expected the name of a Python package"),
        ("packages=[hvlm]", "its rooms are always there"),
        ("packages=[abc]", "is one file"),
        ("packages=[broken]", "packages=[broken] cannot be imported: ZeroDivisionError: division by zero"),
        ("packages=null", "packages=None: expected list"),
        ("config_dir=gone", "config_dir=gone: no such folder"),
        ("config_dir=", "no such folder"),
        ("packages=[twice]", "connector=mean stands in two places"),
        ("packages=[mypackage,again]", "connector=power stands in two places"),
        ("config_dir=loose/misspelt", "there is no group 'conector'; did you mean 'connector'?"),
        ("config_dir=loose/flat", "move it into the folder of its group"),
        ("config_dir=loose", "there is no group"),
        ("config_dir=crooked", "crooked/connector/bent.yaml, line 2: not valid YAML (expected the node content"),
    ],
)
def test_mistakes_are_one_line(outside: Path, override: str, words: str) -> None:
    empty = {f"{name}/__init__.py": "" for name in ("twice", "again")}
    write(outside, {"broken/__init__.py": "1 / 0", **empty, "twice/conf/connector/mean.yaml": ""})
    write(
        outside, {"again/conf/connector/power.yaml": "", "loose/misspelt/conector/x.yaml": "", "loose/flat/x.yaml": ""}
    )
    write(outside, {"crooked/connector/bent.yaml": "{{{\n"})
    assert words in refused(override, *(["connector=bent"] if "crooked" in override else []))


def test_a_room_that_cannot_be_imported_is_one_line(outside: Path) -> None:
    write(
        outside, {"broken2/__init__.py": "", "broken2/connector/x.py": "class X:\n  def", "broken2/connector/y.py": ""}
    )
    for name in ("x", "y"):
        write(outside, {f"broken2/conf/connector/{name}.yaml": f"_target_: broken2.connector.{name}.X"})
    assert "x.X cannot be imported: SyntaxError: invalid syntax" in refused("packages=[broken2]", "connector=x")
    assert "y.X cannot be imported: module broken2.connector.y has no X" in refused("packages=[broken2]", "connector=y")


def test_yamls_may_stand_beside_the_package_or_in_a_folder(outside: Path, tmp_path: Path) -> None:
    write(tmp_path, {"beside/__init__.py": "", "conf/experiment/short.yaml": "# @package _global_\nseed: 7\n"})
    with contextlib.chdir(tmp_path):
        assert compose(["packages=[beside]", "experiment=short"])["seed"] == 7
    sys.path.remove(str(tmp_path))
    assert compose([f"config_dir={tmp_path / 'conf'}", "experiment=short"])["seed"] == 7
    assert "no such option" in refused("experiment=short")


def test_no_file_names_packages(outside: Path, tmp_path: Path) -> None:
    write(tmp_path, {"experiment/sly.yaml": "# @package _global_\npackages: [mypackage]\n"})
    write(tmp_path, {"experiment/chained.yaml": "# @package _global_\nchain: {a: ['packages=[mypackage]']}\n"})
    assert "named on the command line alone" in refused(f"config_dir={tmp_path}", "experiment=sly")
    with pytest.raises(UserError, match="packages is given on the command line alone"):
        plan([f"config_dir={tmp_path}", "experiment=chained"])


# ---------------------------------------------------------------------------------------------------- runs


def test_it_trains_and_the_same_command_continues(mine: Path, overrides: list[str]) -> None:
    config = stored_config(mine)
    assert config["packages"] == ["mypackage"] and config["stage"]["noise"] == 0.05
    before = (mine / "noisy" / "finished.json").read_text()
    run([*overrides, "run=mine"])
    assert (mine / "noisy" / "finished.json").read_text() == before
    for file in ("finished.json", "checkpoints/last.ckpt"):
        (mine / "noisy" / file).unlink()
    weights = run([*overrides, "run=mine", "resume=must"]).stages["noisy"]
    assert weights["weights_sha256"] in before and weights["steps_here"] < 2


def test_a_checkpoint_is_refused_until_the_command_names_its_package(mine: Path) -> None:
    for words in ([], ["connector.visual_scale=2"], ["seed=3"]):
        with pytest.raises(UserError, match=r"trained with package mypackage: add packages=\[mypackage\]"):
            evaluation.evaluate([f"checkpoint={mine}", *words])
    with pytest.raises(UserError, match=r"add packages=\[mypackage\] if you trust it"):
        load(mine, stored_config(mine))
    made = evaluation.evaluate([NAMED, f"checkpoint={mine}", "benchmark.limit=2", "connector.visual_scale=2"])
    assert any(record["metric"] == "accuracy_mean" for record in made)
    with named_packages.allow(["mypackage"]):
        assert type(load(mine, stored_config(mine)).model.connector).__module__ == "mypackage.connector.power"


def test_a_hostile_checkpoint_imports_nothing(mine: Path, tmp_path: Path) -> None:
    """Whatever it says of packages and folders; and a package that is named opens the door to itself alone."""
    write(tmp_path, {"evil/__init__.py": "raise SystemExit", "evil/connector/x.py": "raise SystemExit"})
    content = torch.load(next((mine / "noisy" / "checkpoints").glob("last.ckpt")), weights_only=True)
    sys.path.append(str(tmp_path))
    try:
        for target in ("evil.connector.x.X", "os.system", "mypackage.conf.x.X", "mypackage.connector.power.torch"):
            bad = copy.deepcopy(content)
            bad["hvlm"]["config"] |= {"packages": ["mypackage", "evil"], "config_dir": str(tmp_path)}
            bad["hvlm"]["config"]["connector"] = {"_target_": target}
            torch.save(bad, tmp_path / "bad.ckpt")
            for words in ([], [NAMED]):
                with pytest.raises(UserError, match=r"trained with package|expected a class in hvlm.connector"):
                    evaluation.evaluate([*words, f"checkpoint={tmp_path / 'bad.ckpt'}", "benchmark.limit=1"])
            with pytest.raises(UserError, match="expected a class in hvlm"):
                load(tmp_path / "bad.ckpt", bad["hvlm"]["config"])
    finally:
        sys.path.remove(str(tmp_path))
    assert not {"evil", "evil.connector.x"} & set(sys.modules)


def test_what_is_stored_of_packages_and_folders_does_not_count(mine: Path) -> None:
    stored = stored_config(mine) | {"config_dir": "/nowhere", "packages": ["evil"]}
    assert overlay(stored, ["connector=mean", "stage=sft"])["packages"] == []
    got = overlay(stored, [NAMED])
    assert got["packages"] == ["mypackage"] and got["config_dir"] is None


def test_the_library_asks_for_its_name_too(mine: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trained with package mypackage: add packages=\[mypackage\]"):
        hvlm.load(mine)
    model = hvlm.load(mine, packages=["mypackage"])
    exported = model.save(tmp_path / "export")
    with pytest.raises(UserError, match=r"package mypackage is not named: add packages=\[mypackage\]"):
        hvlm.load(exported)
    assert hvlm.load(exported, packages=["mypackage"]).num_parameters == model.num_parameters
    words = {"vision": {"name": "convvit", "dim": 32, "num_layers": 1, "num_heads": 2}, "texts": ["red"]}
    assert hvlm.build(connector="power", packages=["mypackage"], **words).vlm.connector.power == 2.0
    with pytest.raises(UserError, match="connector=power: no such option"):
        hvlm.build(connector="power", **words)


# ---------------------------------------------------------------------------------------------------- hvlm check


def test_its_rooms_are_checked(capsys: pytest.CaptureFixture) -> None:
    checks(["mypackage"])
    *lines, total = capsys.readouterr().out.splitlines()
    assert total == f"{len(lines)} ok" and len(lines) > 30
    assert "ok      stage/noisy: as a stage" in lines
    assert "ok      connector/power: padding changes nothing (video_first)" in lines


BAD = """from hvlm.contracts import Connector
from hvlm.connector.mean import Mean
from hvlm.types import Tokens
import omegaconf

class Seeing(Mean):
    def __init__(self, pull: float = 0.1, *, dim: int, text_dim: int):
        super().__init__(dim=dim, text_dim=text_dim)
        self.pull = pull

    def forward(self, patches, language, prefix):
        tokens, rows = super().forward(patches, language, prefix)
        return tokens._replace(x_BSD=tokens.x_BSD + self.pull * tokens.x_BSD.mean((0, 1))), rows

class Strange:
    def __init__(self, other: str):
        pass
"""


def test_what_is_wrong_is_said_of_each_room(outside: Path, capsys: pytest.CaptureFixture) -> None:
    write(outside, {"badrooms/__init__.py": "", "badrooms/connector/bad.py": BAD})
    yamls = {"seeing": "Seeing\npull: 0.1\nreach: 2\n", "strange": "Strange\n", "gone": "Gone\n"}
    for name, text in yamls.items():
        write(outside, {f"badrooms/conf/connector/{name}.yaml": f"_target_: badrooms.connector.bad.{text}"})
    with pytest.raises(SystemExit) as ended:
        checks(["badrooms", "-q"])
    out = capsys.readouterr().out
    assert ended.value.code == 1 and "Traceback" not in out
    for words in (
        "connector/seeing: it is a word of the command line: unknown key 'connector.reach'",
        "connector/seeing: its settings are what its constructor takes: arguments that the class does not have: reach",
        "connector/seeing: its numbers say their range: connector.pull has no range",
        "connector/seeing: it says what it is: class Seeing has no docstring",
        "connector/seeing: it imports nothing that runs programs: imports omegaconf",
        "connector/strange: its settings are what its constructor takes: arguments without a default and without a",
        "connector/strange: it has what its contract says: does not derive from hvlm.contracts.Connector",
        "connector/gone: its class is a room: connector._target_=badrooms.connector.bad.Gone cannot be imported",
        "skipped connector/seeing: in a model: it cannot be built before what failed above is mended",
    ):
        assert words in out, out
    write(outside, {"badrooms/conf/connector/seeing.yaml": "_target_: badrooms.connector.bad.Seeing\npull: 0.1\n"})
    for name in ("strange", "gone"):
        (outside / f"badrooms/conf/connector/{name}.yaml").unlink()
    with pytest.raises(SystemExit):
        checks(["badrooms", "-q"])
    out = capsys.readouterr().out
    assert "failed  connector/seeing: padding changes nothing (question_first)" in out
    assert "failed  connector/seeing: clips may come in any order" not in out


def test_a_room_that_ends_the_process_has_failed_and_a_comparison_says_how_far_it_is_off() -> None:
    ended = outcome("merger/x", "a check", lambda: sys.exit(3))
    assert (ended.result, ended.why.split(" (")[0]) == ("failed", "SystemExit: 3")
    off = outcome("merger/x", "a check", lambda: torch.testing.assert_close(torch.zeros(2), torch.tensor([0.0, 0.5])))
    assert "not close, Greatest absolute difference: 0.5" in off.why and "test_outside.py" in off.why


def test_a_room_may_not_change_what_it_is_given(outside: Path) -> None:
    text = "from hvlm.merger.none import NoMerger\n\nclass Twice(NoMerger):\n    def forward(self, patches):\n"
    text += "        patches.tokens.x_BSD.mul_(2)\n        return patches\n"
    write(outside, {"rash/__init__.py": "", "rash/merger/twice.py": text})
    write(outside, {"rash/conf/merger/twice.yaml": "_target_: rash.merger.twice.Twice\n"})
    with named_packages.allow(["rash"]), pytest.raises(AssertionError, match="in place"):
        rooms.merger(Variant("merger", "twice", folder=outside / "rash/conf"))


def test_a_package_without_rooms_and_one_that_is_not_there(outside: Path, capsys: pytest.CaptureFixture) -> None:
    write(outside, {"empty/__init__.py": ""})
    for name, words in {"empty": "empty: has no room to check", "gone": "there is no package of that name"}.items():
        with pytest.raises(SystemExit) as ended:
            checks([name])
        assert ended.value.code == 1 and words in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------- processes


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    words = [sys.executable, str(ROOT / "train.py"), *arguments]
    more = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(words, env=os.environ | more, capture_output=True, text=True, timeout=300)


def test_completion_knows_its_words(outside: Path) -> None:
    line = "python train.py --config-dir loose/more packages=[mypackage] connector="
    write(outside, {"loose/more/connector/further.yaml": ""})
    shown = command("-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line))).stdout.split()
    assert {"connector=power", "connector=mean", "connector=further"} <= set(shown)


@pytest.mark.slow
def test_it_is_swept(outside: Path, overrides: list[str]) -> None:
    """Two jobs, each a process of its own; what --config-dir names reaches them, too."""
    write(outside, {"loose/trial/experiment/brief.yaml": "# @package _global_\nstage: {steps: 1}\n"})
    words = [o for o in overrides if not o.startswith(("connector=", "stage.steps"))]
    folder = ("--config-dir", "loose/trial", "experiment=brief")
    done = command("-m", *words, "connector=power,mean", *folder, "run=swept")
    assert done.returncode == 0, done.stdout + done.stderr
    for connector in ("power", "mean"):
        config = stored_config(outside / "runs" / "swept" / f"connector-{connector}")
        assert config["connector"]["_target_"].split(".")[2] == connector and config["stage"]["steps"] == 1
