"""Files of other people run nothing: checkpoints, folders of weights, configurations; and the code keeps to rules that
make it so."""

from __future__ import annotations

import ast
import copy
import json
import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _tiny import ROOT
from omegaconf import OmegaConf

from hvlm.config.compose import compose
from hvlm.config.overlay import overlay
from hvlm.errors import UserError
from hvlm.fusion._encoders import VisionEncoder
from hvlm.interop.fvlm_weights import read_release
from hvlm.io.checkpoint import UNSAFE, load_checkpoint, read_checkpoint
from hvlm.training.checkpoint_io import AtomicCheckpointIO
from hvlm.training.resume_callbacks import rng_state, set_rng_state
from hvlm.vision.clip import Clip

FILES = [*sorted((ROOT / "hvlm").rglob("*.py")), *sorted((ROOT / "experiments").rglob("*.py"))]
OWN_PIPE = {"hvlm/data/decode_process.py"}  # what it unpickles comes from the process that it started


class Canary:
    """Makes a folder when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)


def calls() -> Iterator[tuple[str, str, dict[str, ast.expr]]]:
    """(file, dotted name, keywords) of every call in the program."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                keywords = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
                yield str(path.relative_to(ROOT)), ast.unparse(node.func), keywords


def is_true(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Constant) and value.value is True


@pytest.mark.fault(57, 62)
def test_nothing_in_the_program_unpickles_trusts_or_runs_what_it_reads() -> None:
    seen = 0
    for file, name, keywords in calls():
        where, last = f"{file}: {name}", name.rpartition(".")[2]
        if name in ("torch.load", "torch.hub.load_state_dict_from_url"):
            seen += 1
            assert name == "torch.load" and is_true(keywords.get("weights_only")), where
        assert not is_true(keywords.get("trust_remote_code")) and not is_true(keywords.get("shell")), where
        if last == "from_pretrained" and name.startswith("Auto"):
            assert isinstance(keywords["trust_remote_code"], ast.Constant), where
        if "weights_only" in keywords:
            assert not (isinstance(keywords["weights_only"], ast.Constant) and keywords["weights_only"].value is False)
        assert name not in ("exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "torch.hub.load"), where
        assert name not in ("hydra.utils.instantiate", "marshal.loads", "shelve.open", "joblib.load"), where
        if name in ("pickle.load", "pickle.loads", "pickle.Unpickler"):
            assert file in OWN_PIPE, where
        if name == "np.load":
            assert not is_true(keywords.get("allow_pickle")), where
    assert seen >= 3


@pytest.fixture
def clip_folder(tmp_path: Path) -> Path:
    """A tiny CLIP as somebody publishes it, with code beside it that Auto classes are told to use."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    folder = tmp_path / "clip"
    CLIPVisionModel(CLIPVisionConfig(image_size=32, patch_size=16, **sizes)).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["auto_map"] = {name: "evil.Model" for name in ("AutoConfig", "AutoModel", "AutoTokenizer")}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'canary')!r})\nclass Model: pass\n")
    return folder


@pytest.mark.fault(62)
def test_code_beside_weights_is_never_run(clip_folder: Path, tmp_path: Path) -> None:
    assert Clip(str(clip_folder)).dim == 16
    VisionEncoder({"source": str(clip_folder)}, 16)
    assert not (tmp_path / "canary").exists()


@pytest.mark.fault(57, 59, 62)
def test_pickled_weights_hold_tensors_or_are_refused(
    clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder of the hub's form, in fVLM's layout, in a checkpoint, whatever the environment says."""
    (clip_folder / "model.safetensors").unlink()
    canary = {"a": torch.zeros(1), "b": Canary(tmp_path / "canary")}
    torch.save(canary, clip_folder / "pytorch_model.bin")
    (tmp_path / "raw").write_bytes(pickle.dumps(canary, protocol=2))
    torch.save(canary, tmp_path / "release.pt")
    torch.save({"state_dict": canary}, tmp_path / "some.ckpt")
    for unsafe in (False, True):
        if unsafe:
            monkeypatch.setenv(UNSAFE, "1")
        for read in (
            lambda: Clip(str(clip_folder)),
            lambda: VisionEncoder({"source": str(clip_folder)}, 16),
            lambda: read_release(tmp_path / "release.pt"),
            lambda: load_checkpoint(tmp_path / "some.ckpt"),
            lambda: read_checkpoint(tmp_path / "some.ckpt"),
            lambda: load_checkpoint(tmp_path / "raw"),
        ):
            with pytest.raises(UserError) as caught:
                read()
            assert "\n" not in str(caught.value)
        assert not (tmp_path / "canary").exists()


@pytest.mark.fault(58)
@pytest.mark.parametrize("url", ["https://example.org/a.ckpt", "http://a.org/a.ckpt", "s3://b/a.ckpt", "file:///a"])
def test_a_checkpoint_is_a_file_of_this_machine(url: str) -> None:
    for read in (load_checkpoint, read_checkpoint, AtomicCheckpointIO().load_checkpoint):
        with pytest.raises(UserError, match="checkpoints are files on this machine"):
            read(url)


@pytest.mark.fault(60)
def test_a_stored_configuration_imports_no_package_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by naming it as a package nor by naming its classes."""
    (tmp_path / "evilpackage").mkdir()
    (tmp_path / "evilpackage" / "__init__.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'canary')!r})\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    stored = compose([]) | {"packages": ["evilpackage"], "config_dir": str(tmp_path)}
    assert overlay(copy.deepcopy(stored), ["checkpoint=runs/x"])["packages"] == []
    stored["connector"] = {"_target_": "evilpackage.connector.x.X"}
    with pytest.raises(UserError, match="add packages=.evilpackage. if you trust it"):
        overlay(stored, ["checkpoint=runs/x"])
    assert not (tmp_path / "canary").exists() and "evilpackage" not in sys.modules


@pytest.mark.fault(61)
def test_what_a_checkpoint_holds_comes_back_and_nothing_else_goes_in(tmp_path: Path) -> None:
    before = rng_state()
    file = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"rng": [before], "hvlm": {"config": compose([])}}, file)
    drawn = np.random.rand(), torch.rand(1)
    set_rng_state(load_checkpoint(file)["rng"][0])
    assert (np.random.rand(), torch.rand(1)) == drawn
    for bad in (OmegaConf.create({"a": 1}), Path("x"), np.float64(1), np.random.get_state()):
        with pytest.raises(TypeError, match="checkpoints hold plain values and tensors only"):
            AtomicCheckpointIO().save_checkpoint({"a": bad}, tmp_path / "other.ckpt")
    assert not (tmp_path / "other.ckpt").exists()
