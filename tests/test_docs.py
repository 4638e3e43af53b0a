"""What README, docs, Makefile and pyproject say is true: commands compose, variants exist, imports are declared."""

import ast
import importlib.metadata
import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from hvlm.config.compose import compose

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
HOUSE = (ROOT / "docs" / "architecture.md").read_text()


def commands():
    """Every train.py and eval.py call in a code block of the README, as its overrides."""
    blocks = "\n".join(re.findall(r"```\n(.*?)```", README, re.DOTALL))
    lines = [line for line in blocks.splitlines() if line.startswith("python ")]
    return [shlex.split(line, comments=True)[1:] for line in lines]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_commands_of_the_readme_compose(command):
    script, *words = command
    assert (ROOT / script).is_file()
    overrides = [w for w in words if "=" in w and not w.startswith("hydra.")]
    assert set(words) - set(overrides) <= {"-m", "--cfg", "job"} | {w for w in words if w.startswith("hydra.")}
    if "-m" in words:  # the first job of the sweep
        overrides = [re.sub(r"=([^,\[{]+),.*", r"=\1", o) for o in overrides]
    chain = compose(overrides)["chain"]
    if chain and not any(o.startswith("stage=") for o in overrides):  # its last stage stands for all: composing is slow
        compose([*list(chain.values())[-1], *overrides])


def test_the_house_lists_what_exists():
    rows = re.findall(r"^\| (\w+) \| ([^|]+) \|([^|]*)\| [^|]+ \|$", HOUSE, re.MULTILINE)
    assert len(rows) > 10
    for group, exists, planned in rows:
        if not (ROOT / "conf" / group).is_dir():
            continue
        files = {p.stem for p in (ROOT / "conf" / group).glob("*.yaml")}
        # "dinov2 (tiny, small, base)" are dinov2_tiny and so on; other brackets are remarks
        sizes = re.sub(r"(\w+) \((tiny[^)]*)\)", lambda m: ", ".join(f"{m[1]}_{s}" for s in m[2].split(", ")), exists)
        named = set(re.sub(r" \([^)]*\)", "", sizes).strip().split(", "))
        assert named == files, f"{group}: docs/architecture.md says {sorted(named)}, conf/{group} has {sorted(files)}"
        assert not files & set(planned.strip().split(", ")), f"{group}: exists, but is called planned"


def test_files_that_are_named_exist():
    for text in (README, HOUSE):
        for path in re.findall(r"`((?:hvlm|conf|tests|docs|experiments)/[\w/]+\.(?:py|yaml|md))`", text):
            assert (ROOT / path).is_file(), path
    for name in re.findall(r"`(\w+\.py)`", HOUSE):
        assert (ROOT / name).is_file() or (ROOT / "hvlm" / name).is_file(), name


def test_make_help():
    shown = subprocess.run(["make", "-C", ROOT, "help"], capture_output=True, text=True, check=True).stdout
    for target in ("setup", "weights", "demo", "test", "test-all", "bench", "help"):
        assert re.search(rf"^  make {target} +\S", shown, re.MULTILINE), target


def test_torch_is_the_release_of_the_constraints():
    pins = dict(re.findall(r"^(\w+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert torch.__version__.split("+")[0] == pins["torch"], "another build of torch has come in; run make setup again"
    assert importlib.util.find_spec("torchvision") is None, "torchvision replaces torch; nothing here needs it"


def test_imports_are_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [*project["dependencies"], *project["optional-dependencies"]["flow"]]
    declared = {re.match(r"[\w-]+", requirement)[0] for requirement in requirements}
    providers = importlib.metadata.packages_distributions()
    files = [*(ROOT / "hvlm").rglob("*.py"), ROOT / "train.py", ROOT / "eval.py"]
    imported = {}
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            imported |= {name.split(".")[0]: file for name in names}
    own = {"hvlm", "hydra_plugins", *sys.stdlib_module_names}
    # What `make weights` installs, and kernels for GPUs: used where they are there.
    weights = {"gguf", "onnx", "mamba_ssm", "causal_conv1d", "fla"}
    for module, file in imported.items():
        if module not in own | weights:
            names = {name.lower().replace("_", "-") for name in providers.get(module, [module])}
            assert names & declared, f"{file.name} imports {module}: declare it in pyproject.toml"
