"""Folders of adapter weights that somebody else made, damaged or with intent: one line each, and nothing is read."""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hvlm.adapter.lora import LoRA
from hvlm.errors import UserError
from hvlm.io.adapter_files import CONFIG, PEFT, WEIGHTS, read

LORA = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
LAYER = f"{PEFT}layers.0.q_proj"


def folder_of(tmp_path: Path, config: Any = None, **changes: torch.Tensor) -> Path:
    """A folder with LoRA of one layer. config: in place of the usual one, a text as it is."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / CONFIG).write_text(config if isinstance(config, str) else json.dumps(LORA | (config or {})))
    tensors = {"A": torch.ones(2, 4), "B": torch.ones(4, 2)} | changes
    save_file({f"{LAYER}.lora_{name}.weight": value for name, value in tensors.items()}, folder / WEIGHTS)
    return folder


def said_of(folder: Path) -> str:
    started = time.monotonic()
    with pytest.raises(UserError) as error:
        read(folder, "adapter.load.a")
    said = str(error.value)
    assert "adapter.load.a" in said and "\n" not in said and len(said) < 700 and time.monotonic() - started < 5
    return said


def test_what_is_not_used_may_be_of_any_type(tmp_path: Path) -> None:
    found = read(folder_of(tmp_path, {"r": "8", "target_modules": 5, "alpha_pattern": {"q_proj": 6}}), "adapter.load.a")
    assert found.kind == "lora" and found.alphas == {"language.model.layers.0.q_proj": 6.0}


def test_patterns_take_no_longer_together_than_they_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hvlm.io.adapter_files.MOST_SECONDS", -1.0)
    assert "alpha_pattern that takes too long" in said_of(folder_of(tmp_path, {"alpha_pattern": {"q_proj": 6}}))


@pytest.mark.parametrize(
    "pattern",
    [
        "q_proj",
        "^layers.0.q_proj",
        r".*\.0\..*(q_proj|v_proj)",
        r"layers\.\d+\.(?:q_proj|k_proj|v_proj)",
        "layers.(" + "|".join(map(str, range(32))) + ").(q|v)_proj",
        "|".join(f"layers.{i}.q_proj" for i in range(60)),
    ],
)
def test_patterns_of_layers_as_people_write_them(tmp_path: Path, pattern: str) -> None:
    found = read(folder_of(tmp_path, {"alpha_pattern": {pattern: 6}}), "adapter.load.a")
    assert found.alphas == {"language.model.layers.0.q_proj": 6.0}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("[" * 100_000, "maximum recursion depth"),
        ("[1]", "holds no mapping"),
        ('{"peft_type": "LORA", "lora_alpha": NaN}', "lora_alpha=nan; expected a number above 0"),
        ('{"peft_type": "LORA", "lora_alpha": 1' + "0" * 400 + "}", "lora_alpha=1000"),
        ({"lora_alpha": "abc"}, "lora_alpha='abc'"),
        ({"lora_alpha": None}, "lora_alpha=None"),
        ({"lora_alpha": 0}, "lora_alpha=0"),
        ({"alpha_pattern": [1]}, "alpha_pattern=[1]; expected a map"),
        ({"alpha_pattern": {"(": 3}}, "no regular expression"),
        ({"alpha_pattern": {"q_proj": "x"}}, "alpha_pattern['q_proj']='x'; expected a number"),
        ({"alpha_pattern": {"(a+)+b": 3}}, "could take for ever"),
        ({"alpha_pattern": {".*.*.*b": 3}}, "could take for ever"),
        ({"alpha_pattern": {"a?" * 28 + "a" * 28 + "b": 3}}, "could take for ever"),
        ({"alpha_pattern": {"(a|aa)" * 40 + "b": 3}}, "could take for ever"),
        ({"alpha_pattern": {"(a|a)" * 28 + "b": 3}}, "could take for ever"),
        ({"alpha_pattern": {"((a|a)|(a|a))" * 9 + "b": 3}}, "could take for ever"),
        ({"use_dora": "no"}, "use_dora='no'; expected true or false"),
        ({"peft_type": "HVLM_PREFIX", "settings": "x"}, "settings='x'; expected a map"),
        ({"peft_type": [1]}, "is of type [1]; expected LORA"),
        ({"bias": {"a": "b" * 10_000}}, "which is not read here"),
    ],
)
def test_a_config_of_other_types_is_one_line(tmp_path: Path, config: Mapping[str, Any] | str, said: str) -> None:
    assert said in said_of(folder_of(tmp_path, config))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"A": torch.full((2, 4), float("nan"))}, "lora_A.weight holds numbers that are not finite"),
        ({"B": torch.ones(4, 2, dtype=torch.int32)}, "lora_B.weight holds torch.int32"),
        ({"A": torch.ones(())}, "lora_A () and lora_B (4, 2); expected two matrices"),
        ({"A": torch.ones(0, 4), "B": torch.ones(4, 0)}, "lora_A (0, 4)"),
        ({"A" * 400: torch.ones(1)}, "characters; expected 300 at most"),
    ],
)
def test_weights_that_are_none_are_one_line(tmp_path: Path, changes: dict[str, torch.Tensor], said: str) -> None:
    assert said in said_of(folder_of(tmp_path, **changes))


def test_a_file_that_is_none_is_one_line(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    (folder / WEIGHTS).write_bytes(pickle.dumps({"a": 1}))
    assert "cannot be read" in said_of(folder)
    header = json.dumps({"x": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4]}}).encode()
    (folder / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + b"0000")
    assert "cannot be read" in said_of(folder)
    (folder / WEIGHTS).unlink()
    assert f"holds no {WEIGHTS}" in said_of(folder)
    save_file({}, folder / WEIGHTS)
    assert "holds no tensors" in said_of(folder)


@pytest.mark.parametrize("name", ["/evil", "../evil", "a/b", "a.b", "", "off", "a\n", "x" * 200])
def test_a_name_is_that_of_one_folder(name: str) -> None:
    with pytest.raises(UserError, match="adapter.names, domain.adapter: .* letters, digits, _ and - alone"):
        LoRA(where=["language"], names=["all", name], name="all")


@pytest.mark.parametrize("names", [["all", "x", "x"], ["all", *map(str, range(10**5))]])
def test_sets_have_each_a_name_and_are_not_endlessly_many(names: list[str]) -> None:
    with pytest.raises(UserError, match="adapter.names: .* expected each once and 1000 at most"):
        LoRA(where=["language"], names=names, name="all")


WHOLE = {"folder": "x", "shapes": {"l": {"lora_A.weight": [2, 4]}}, "alphas": {"l": 4.0}, "settings": {}}


@pytest.mark.parametrize(
    "change",
    [
        {"shapes": None}, {"shapes": {"l": [2, 4]}}, {"shapes": {"l": {"lora_A.weight": [2, "4"]}}},
        {"alphas": {"l": 0}},
        {"shapes": {"l": {"lora_A.weight": [10**9, 10**9]}}}, {"shapes": {"l": {"lora_A.weight": [-1]}}}, {"folder": 1},
        {"alphas": {"l": "4"}}, {"settings": "x"},
    ],
)  # fmt: skip
def test_what_a_checkpoint_says_of_its_sets_is_checked_before_it_is_built(change: dict[str, Any]) -> None:
    LoRA(where=["language"], names=["all"], name="all", source_config={"all": WHOLE})
    for config in ({"all": WHOLE | change}, {"all": change.get("none")}, [WHOLE]):
        with pytest.raises(UserError, match="what the checkpoint says of its sets of weights is damaged"):
            LoRA(where=["language"], names=["all"], name="all", source_config=config)
