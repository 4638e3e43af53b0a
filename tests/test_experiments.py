"""Every module of experiments/ can be imported, its arguments and its results read; running them costs hours."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from pathlib import Path

import pytest

from hvlm.evaluation import results

ROOT = Path(__file__).parent.parent
EXTRAS = {"performer_pytorch", "local_attention", "linear_attention_transformer", "mambapy"}  # of the extra ``bench``
EXTRAS |= {"kvpress"}  # of ``make bench-kv``, in an environment of its own
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in sorted((ROOT / "experiments").rglob("*.py"))
    if path.stem != "__init__"
}
WITH_ARGUMENTS = [name for name, path in MODULES.items() if "ArgumentParser(" in path.read_text()]


def missing(name: str) -> set[str]:
    """Packages of the extra ``bench`` that the module needs and this machine lacks."""
    tree = ast.parse(MODULES[name].read_text())
    named = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    named |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    tops = {full.split(".")[0] for full in named}
    own = {full for full in named if full in MODULES}
    here = {top for top in tops & EXTRAS if importlib.util.find_spec(top) is None}
    return here.union(*(missing(other) for other in own))


@pytest.mark.parametrize("name", MODULES)
def test_it_can_be_imported(name: str) -> None:
    if lacking := missing(name):
        pytest.skip(f"needs {', '.join(sorted(lacking))}: make bench-attention or bench-kv installs it")
    importlib.import_module(name)


@pytest.mark.parametrize("name", MODULES)
def test_what_it_takes_from_hvlm_is_there(name: str) -> None:
    """Also for modules that cannot be imported without the extra ``bench``."""
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "hvlm":
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")


@pytest.mark.parametrize("name", WITH_ARGUMENTS)
def test_it_says_what_its_arguments_are(name: str, monkeypatch, capsys) -> None:
    if lacking := missing(name):
        pytest.skip(f"needs {', '.join(sorted(lacking))}: make bench-attention installs it")
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as left:
        importlib.import_module(name).main()
    assert left.value.code == 0 and "usage:" in capsys.readouterr().out


@pytest.mark.parametrize(
    "path", sorted((ROOT / "experiments").rglob("*.json")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_its_results_can_be_read(path: Path) -> None:
    assert results.read(path)
