"""A set of adapter weights as a folder: peft reads ours and ours reads peft's, with peft as the oracle for LoRA and
DoRA; what was made for another base, and files that are none, are one line."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_adapter_rooms import EVERYWHERE, adapted, ask, equal, family, far, louder, plain, words
from torch import Tensor

from hvlm.adapter._low_rank import LowRank
from hvlm.errors import UserError
from hvlm.io.adapter_files import CONFIG, WEIGHTS
from hvlm.model import VLM

IDS = torch.arange(12).reshape(2, 6) % 20


def logits(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def peft_of(model: torch.nn.Module, **changes):
    """The bare language model with a loud adapter of peft's."""
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install -c constraints.txt peft")
    settings = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"} | changes
    made = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(**settings)).eval()
    torch.manual_seed(3)
    for name, parameter in made.named_parameters():
        if "lora_" in name:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return made


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3"])
def test_peft_reads_what_we_write(kind: str, name: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install -c constraints.txt peft")
    vlm = louder(adapted(kind, family(name), names=["sports", "news"]), std=0.05)
    vlm.adapter.use("news")
    ours = vlm.adapter.save(tmp_path / "news", base="some/model")
    found = logits(vlm.language.model)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(plain(family(name)).language.model), ours).eval()
    assert far([logits(theirs)], [found]) <= 2e-6
    with vlm.adapter.off():
        assert far([found], [logits(vlm.language.model)]) > 1e-3
    assert json.loads((ours / CONFIG).read_text())["base_model_name_or_path"] == "some/model"


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama", {}),
        ("llama", {"use_dora": True}),
        ("llama", {"use_rslora": True}),
        ("llama", {"target_modules": ["q_proj", "down_proj"], "rank_pattern": {"down_proj": 2},
                   "alpha_pattern": {"layers.0.self_attn.q_proj": 11}}),
        ("gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": True}),
        ("phi3", {"target_modules": ["qkv_proj", "o_proj"], "use_dora": True}),
    ],
)  # fmt: skip
def test_we_read_what_peft_writes(name: str, changes: dict, tmp_path: Path) -> None:
    base = plain(family(name))
    theirs = peft_of(base.language.model, **changes)
    theirs.save_pretrained(tmp_path)
    kind = "dora" if changes.get("use_dora") else "lora"
    vlm = adapted(kind, family(name), loud=False, load={"sports": str(tmp_path)}, names=["sports"])
    assert far([logits(theirs)], [logits(vlm.language.model)]) <= 2e-6
    assert far([logits(theirs)], [logits(base.language.model)]) > 1e-3
    vlm.adapter.save(tmp_path / "again")
    ours, first = load_file(tmp_path / "again" / WEIGHTS), load_file(tmp_path / WEIGHTS)
    assert set(ours) == set(first) and all(far([ours[n]], [first[n]]) <= 1e-6 for n in first)


def test_several_of_peft_in_memory_give_each_row_its_own(tmp_path: Path) -> None:
    """Of different ranks, and with DoRA, which peft itself does not mix."""
    base = plain(family("llama"))
    changes = {"sports": {"use_dora": True}, "news": {"use_dora": True, "r": 2, "target_modules": ["o_proj"]}}
    theirs = {name: peft_of(base.language.model, **change) for name, change in changes.items()}
    for name, one in theirs.items():
        one.save_pretrained(tmp_path / name)
    load = {name: str(tmp_path / name) for name in theirs}
    vlm = adapted("dora", family("llama"), loud=False, load=load, names=["sports", "news"])
    with vlm.adapter.using(language=torch.tensor([1, 0])):
        found = logits(vlm.language.model)
    for row, name in enumerate(["news", "sports"]):
        assert far([found[row]], [logits(theirs[name])[row]]) <= 2e-6


@pytest.mark.parametrize("kind", ["lora", "dora", "prefix", "bottleneck"])
def test_a_folder_brings_a_set_back(kind: str, tmp_path: Path) -> None:
    rooms = words(attention="full", connector="mean", vision="dinov2_tiny")
    where = ["language"] if kind == "prefix" else EVERYWHERE
    vlm = adapted(kind, *rooms, where=where, names=["sports", "news"])
    vlm.adapter.use("news")
    folder = vlm.adapter.save(tmp_path / "news")
    again = adapted(kind, *rooms, loud=False, where=where, load={"evening": str(folder)}, names=["morning", "evening"])
    assert equal(ask(again), ask(plain(*rooms)))
    again.adapter.use("evening")
    assert far(ask(again), ask(vlm)) <= 1e-5
    if kind in ("lora", "dora"):  # one folder for each model that peft could stand beside
        assert sorted(p.name for p in folder.iterdir()) == ["attention", "connector", "language.model", "vision.model"]


def other_base(tmp_path: Path, kind: str = "lora") -> tuple[str, VLM]:
    folder = adapted(kind, family("llama"), names=["sports"]).adapter.save(tmp_path / "sports")
    return str(folder), plain(family("gpt2"))


@pytest.mark.parametrize("kind", ["lora", "dora", "prefix", "bottleneck"])
def test_an_adapter_for_another_base_is_one_line(kind: str, tmp_path: Path) -> None:
    folder, _ = other_base(tmp_path, kind)
    with pytest.raises(UserError) as raised:
        adapted(kind, family("gpt2"), load={"sports": folder}, names=["sports"])
    said = str(raised.value)
    assert f"adapter.load.sports={folder}: was made for another base: language.model.model.layers.0" in said
    assert "nothing here to stand beside" in said and "more" in said and "\n" not in said


def test_another_width_is_named_with_both_shapes(tmp_path: Path) -> None:
    folder = adapted("lora", names=["sports"]).adapter.save(tmp_path / "sports")
    tensors = load_file(folder / WEIGHTS)
    name = next(n for n in tensors if n.endswith("layers.0.self_attn.q_proj.lora_A.weight"))
    tensors[name] = torch.zeros(8, 77)
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(UserError, match=r"q_proj.lora_A.weight is \(8, 77\) there and \(8, 32\) here; name the base"):
        adapted("lora", load={"sports": str(folder)}, names=["sports"])


@pytest.mark.parametrize("kind", ["lora", "dora", "bottleneck"])
def test_names_of_layers_are_looked_at_where_all_sets_come_from_files(kind: str, tmp_path: Path) -> None:
    load = {"sports": str(adapted(kind, names=["sports"]).adapter.save(tmp_path / "sports"))}
    with pytest.raises(UserError, match="adapter.targets: nope names no linear layer of language"):
        adapted(kind, load=load, names=["sports"], targets=["nope"])
    found, expected = (adapted(kind, load=load, names=["sports"], **more) for more in ({"targets": ["q_proj"]}, {}))
    assert set(found.state_dict()) == set(expected.state_dict())  # where they stand, the file says


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "IA3"}, "is of type 'IA3'; expected LORA or one of ours"),
        ({"peft_type": "PREFIX_TUNING"}, "peft's prefix has no gate"),
        ({"bias": "all"}, "has bias='all', which is not read here"),
        ({"modules_to_save": ["lm_head"]}, "has modules_to_save"),
        ({"init_lora_weights": "pissa_niter_4"}, "which changed the base weights"),
        ({"use_dora": True}, "holds dora; use adapter=dora"),
        (None, "cannot be read"),
    ],
)
def test_what_is_not_read_is_one_line(changes: dict | None, said: str, tmp_path: Path) -> None:
    folder = adapted("lora", names=["sports"]).adapter.save(tmp_path / "sports")
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text("{" if changes is None else json.dumps(config | changes))
    with pytest.raises(UserError) as raised:
        LowRank.read_source_config({"load": {"sports": str(folder)}}) if not changes else adapted(
            "lora", load={"sports": str(folder)}, names=["sports"]
        )
    assert said in str(raised.value) and "\n" not in str(raised.value) and "adapter.load.sports" in str(raised.value)
