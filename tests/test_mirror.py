"""A config word is a file name, a room's YAML is one flat call of its class, and rooms know only what they may."""

from __future__ import annotations

import ast
import importlib
import multiprocessing
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from _tiny import CONF, ROOT, Variant, target

from hvlm.checks import contract
from hvlm.checks.contract import ALLOWED, RUNNING
from hvlm.config.compose import plan
from hvlm.config.rooms import ROOMS

PACKAGE = ROOT / "hvlm"
# Groups that say how things run: hvlm/config/settings.py or Hydra reads their YAML; there is no class behind it.
WITHOUT_PYTHON = {"trainer", "logger", "callback", "sweep", "launcher", "experiment", "debug", "domain"}
# Folders of the program itself; nothing in them is chosen by a word.
WITHOUT_CONF = {
    "api", "checks", "commands", "config", "contracts", "data", "evaluation", "interop", "io", "metrics", "prepare",
    "sweep", "text", "training", "ui", "viz",
}  # fmt: skip
# Several sizes of one class, or several corpora behind one reader: {YAML: Python file it shares}.
SHARED = {
    **{f"dataset/fvlm_{stage}": "dataset/mixture" for stage in ("align", "sft", "dpo")},
    **{
        f"benchmark/{name}": "benchmark/published"
        for name in (
            "mlvu",
            "longvideobench",
            "lvbench",
            "timescope",
            "egoschema",
            "nextqa",
            "tempcompass",
            "videomme",
            "scienceqa",
        )  # fmt: skip
    },
    "vision/dinov2_tiny": "vision/dinov2",
    "vision/dinov2_small": "vision/dinov2",
    "vision/dinov2_base": "vision/dinov2",
    "vision/dinov2_large": "vision/dinov2",
    "vision/dinov3_tiny": "vision/dinov3",
    "vision/dinov3_small": "vision/dinov3",
    "vision/clip_tiny": "vision/clip",
    "vision/clip_large": "vision/clip",
    "vision/clip_large_336": "vision/clip",
    "vision/siglip2": "vision/siglip",
    "vision/siglip_tiny": "vision/siglip",
    "vision/siglip2_base": "vision/siglip",
    "vision/siglip_so400m": "vision/siglip",
    "language/smollm2_tiny": "language/smollm2",
    "language/smollm2_135m": "language/smollm2",
    "language/smollm2_360m": "language/smollm2",
    "language/smollm2_1_7b": "language/smollm2",
    "language/qwen": "language/causal",
    "language/qwen2_5_0_5b": "language/causal",
    "language/qwen3_0_6b": "language/causal",
    "language/vicuna_7b": "language/causal",
    "language/llama3_2_1b": "language/causal",
    "language/gemma2_2b": "language/causal",
    "language/gemma3_1b": "language/causal",
    "language/smollm3_3b": "language/causal",
    "language/phi3_mini": "language/causal",
    "language/olmo2_1b": "language/causal",
    "language/mistral_7b": "language/causal",
}
# Options with a mandatory value, and one that makes them whole.
MIXED = ["dataset.root=somewhere"]
MANDATORY = {
    "dataset=shards": ["dataset.path=somewhere"],
    "dataset=mixture": [*MIXED, "+dataset.weights={a: 1}"],
    **{f"dataset=fvlm_{stage}": MIXED for stage in ("align", "sft", "dpo")},
}

YAMLS = {str(p.relative_to(CONF).with_suffix("")): p for p in sorted(CONF.glob("*/**/*.yaml"))}
ROOM_YAMLS = [name for name in YAMLS if name.split("/")[0] in ROOMS]


def mirrored(name: str) -> str:
    """``vision/convvit`` or, for public corpora, the one reader of shards."""
    if name in SHARED:
        return SHARED[name]
    settings = yaml.safe_load(YAMLS[name].read_text())
    is_corpus = name.startswith("dataset/") and settings["_target_"].startswith("hvlm.dataset.shards.")
    return "dataset/shards" if is_corpus else name


def room_files() -> list[str]:
    """``group/name`` of every Python file that should have a YAML."""
    files = (p.relative_to(PACKAGE).with_suffix("") for group in ROOMS for p in sorted((PACKAGE / group).glob("*.py")))
    return [str(f) for f in files if not f.name.startswith("_")]


# ---------------------------------------------------------------------------------------------------- conf <-> hvlm


def test_groups_are_folders_on_both_sides() -> None:
    conf = {p.name for p in CONF.iterdir() if p.is_dir()}
    code = {p.name for p in PACKAGE.iterdir() if p.is_dir() and any(p.glob("*.py"))}
    assert conf == set(ROOMS) | WITHOUT_PYTHON and code == set(ROOMS) | WITHOUT_CONF


def test_every_python_file_has_a_yaml_and_the_other_way_round() -> None:
    assert set(room_files()) == {mirrored(name) for name in ROOM_YAMLS}
    assert set(SHARED) <= set(YAMLS), "an exception that no longer exists"


@pytest.mark.parametrize("name", ROOM_YAMLS)
def test_a_rooms_yaml_is_one_flat_call_of_a_class_in_the_mirrored_file(name: str) -> None:
    variant = Variant(*name.split("/", 1))
    module, _, cls = variant.written["_target_"].rpartition(".")
    assert module == "hvlm." + mirrored(name).replace("/", ".")
    assert target(variant.written).__module__ == module, "defined there, not imported from elsewhere"
    contract.its_settings_are_what_its_constructor_takes(variant)
    contract.it_says_what_it_is(variant)


@pytest.mark.parametrize("name", [name for name in YAMLS if name not in ROOM_YAMLS])
def test_every_option_composes_and_passes_the_checks(name: str) -> None:
    needed = (
        MANDATORY["dataset=shards"] if name.endswith(("/longvlm_7b", "/vila_like")) else []
    )  # the data are the user's
    needed = MIXED if "/fvlm_" in name else needed
    plan([name.replace("/", "=", 1), *needed])


def one_of_each() -> list[list[str]]:
    """Options of all rooms, so few times one of each that every option comes up: composing is slow."""
    options = [[name for name in ROOM_YAMLS if name.split("/")[0] == room] for room in ROOMS]
    return [[of[min(i, len(of) - 1)] for of in options] for i in range(max(map(len, options)))]


@pytest.mark.parametrize("names", one_of_each(), ids=" ".join)
def test_every_room_composes_and_passes_the_checks(names: list[str]) -> None:
    overrides = [name.replace("/", "=", 1) for name in names]
    needed = [more for override in overrides for more in MANDATORY.get(override, [])]
    for cfg in plan([*overrides, *needed]).values():
        for name in names:
            assert cfg[name.split("/")[0]]["_target_"] == yaml.safe_load(YAMLS[name].read_text())["_target_"]


# ---------------------------------------------------------------------------------------------------- who knows whom


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a file imports anywhere, also inside functions: ``from hvlm.dataset import _samples`` gives
    ``hvlm.data.samples``."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                is_module = full.startswith("hvlm.") and is_file(full)
                yield full if is_module else node.module


def is_file(module: str) -> bool:
    path = ROOT / Path(*module.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


# What a room may import of the project, beside files of its own group. Those that carry tensors know the least.
OF_TENSORS = {"types", "contracts", "functional", "merging", "caching", "errors"}
OF_THE_PROJECT = {
    **dict.fromkeys(ROOMS, OF_TENSORS),
    "vision": OF_TENSORS | {"image", "io"},
    "fusion": OF_TENSORS | {"io"},
    "language": OF_TENSORS | {"io", "text"},
    "adapter": OF_TENSORS | {"io"},
    "kvcache": OF_TENSORS | {"io"},
    "head": OF_TENSORS | {"data", "prompts", "metrics", "config", "evaluation"},
    "stage": OF_TENSORS | {"model", "data", "io"},
    "dataset": OF_TENSORS | {"data", "prompts", "image", "io"},
    "benchmark": {"types", "contracts", "errors", "prompts", "evaluation", "data", "metrics"},
}


@pytest.mark.parametrize("path", [p for room in ROOMS for p in sorted((PACKAGE / room).glob("*.py"))], ids=str)
def test_rooms_know_only_what_they_may(path: Path) -> None:
    group = path.parent.name
    for name in imports(path):
        top, *rest = name.split(".")
        assert top not in RUNNING - ALLOWED.get(group, set()), f"imports {name}"
        if top != "hvlm":
            continue
        if rest == ["config", "ranges"]:
            continue  # what a setting may be stands in the constructor
        if rest[0] != group:
            assert rest[0] in OF_THE_PROJECT[group], f"imports {name}"
        elif len(rest) > 1 and not path.name.startswith("_"):
            assert rest[1].startswith("_"), f"imports its sibling {name}; shared code belongs into a file _*.py"


READS_CFG = {
    "assembly", "config/compose", "config/overlay", "config/search_path", "config/settings", "config/words", "cli",
    "sweep/launcher", "sweep/search", "training/chain",
}  # fmt: skip
# These take the resolved configuration as a plain mapping: one rebuilds a model from it, one hands it to a logger.
TAKES_PLAIN_CFG = {
    "rebuild",
    "tasks",
    "api/build",
    "commands/train",
    "commands/eval",
    "evaluation/processes",
    "interop/hf_export",
    "training/start",
    "training/wandb_logger",
}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=str)
def test_only_a_few_files_read_the_configuration(path: Path) -> None:
    name = str(path.relative_to(PACKAGE).with_suffix(""))
    if name in READS_CFG:
        return
    assert not {module.split(".")[0] for module in imports(path)} & {"hydra", "omegaconf"}
    names = {a.arg for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.arguments)
             for a in [*node.posonlyargs, *node.args, *node.kwonlyargs]}  # fmt: skip
    if name not in TAKES_PLAIN_CFG:
        assert not names & {"cfg", "conf"}, "takes a configuration instead of plain values"


def import_alone(names: list[str]) -> None:
    """In a process of its own: the project anew, with nothing of what runs things."""
    for name in list(sys.modules):
        if name.split(".")[0] in RUNNING | {"hvlm"}:
            del sys.modules[name]
    sys.modules.update(dict.fromkeys(RUNNING))  # None: importing it is an ImportError
    for name in names:
        importlib.import_module(name)


def test_rooms_can_be_imported_without_the_libraries_that_run_things(capfd: pytest.CaptureFixture) -> None:
    """A room works in a notebook that has torch and transformers only."""
    names = ["hvlm." + f.replace("/", ".") for f in room_files() if not f.startswith("stage/")]
    process = multiprocessing.get_context("fork").Process(target=import_alone, args=(names,))
    process.start()
    process.join()
    assert process.exitcode == 0, capfd.readouterr().err[-2000:]
