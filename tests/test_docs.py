"""What README, docs, Makefile and pyproject say is true: commands compose, variants exist, imports are declared."""

import ast
import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from unittest.mock import create_autospec

import pytest
import torch
from _tables import videos

from hvlm.commands import run as commands_run
from hvlm.config.compose import compose

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
HOUSE = (ROOT / "docs" / "architecture.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]

FENCE = re.compile(r"^```[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)


def commands():
    """Every train.py and eval.py call in a code block of README and docs, as its overrides."""
    elsewhere = ("CONTRIBUTING.md", "extending.md")  # about files that are not here; tests/test_outside.py has them
    texts = [page.read_text(encoding="utf-8") for page in PAGES if page.name not in elsewhere]
    lines = "\n".join(block for text in texts for block in FENCE.findall(text)).splitlines()
    calls = dict.fromkeys(
        line.split("  # ")[0].strip()
        for line in lines
        if re.match(r"(python (train|eval)\.py|hvlm (train|eval)) ", line)
    )
    calls = dict.fromkeys(re.sub(r"^hvlm (train|eval) ", r"python \1.py ", call) for call in calls)
    return [shlex.split(call, comments=True)[1:] for call in calls]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_commands_of_the_pages_compose(command):
    script, *words = command
    assert (ROOT / script).is_file()
    overrides = [w for w in words if "=" in w and not w.startswith("hydra.")]
    assert set(words) - set(overrides) <= {"-m", "--cfg", "job"} | {w for w in words if w.startswith("hydra.")}
    if "-m" in words:  # the first job of the sweep, without what only a search chooses
        overrides = [o for o in overrides if "interval(" not in o]
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
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for path in re.findall(r"`((?:hvlm|conf|tests|docs|experiments)/[\w/]+\.(?:py|yaml|md|json))`", text):
            if path != "experiments/demo/results.json":  # written by whoever runs the demo
                assert (ROOT / path).is_file(), f"{page.name}: {path}"
    for name in re.findall(r"`(\w+\.py)`", HOUSE):
        assert (ROOT / name).is_file() or (ROOT / "hvlm" / name).is_file(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text(encoding="utf-8"))):
        path, _, anchor = target.partition("#")
        if path.startswith("http"):
            continue
        file = page.parent / path if path else page
        assert file.is_file() or file.is_dir(), f"{target}: there is no {file}"
        if anchor:
            heads = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}, target


@pytest.mark.fault(106)
def test_the_readme_fits_on_a_page_and_names_what_exists():
    assert len(README.splitlines()) <= 150
    rows = re.findall(r"^\| ((?:`\w+=`(?:, )?)+) \| (.+) \|$", README, re.MULTILINE)
    assert len(rows) >= 10
    for words, choices in rows:
        words, lists = re.findall(r"`(\w+)=`", words), choices.split(";")
        assert len(words) == len(lists), f"{words}: {lists}"
        for word, named in zip(words, lists, strict=True):
            files = {path.stem for path in (ROOT / "conf" / word).glob("*.yaml")}
            named = set(re.findall(r"`(\w+)`", named))
            assert named <= files, f"{word}: {sorted(named - files)} do not exist"
            rest = {name for name in files if name.startswith("fvlm_")}
            assert files - named <= rest, f"{word}: README leaves out {sorted(files - named)}"


def test_tables_are_those_of_the_records():
    from experiments.tables.__main__ import rendered

    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert rendered(text) == text, f"{page.relative_to(ROOT)} differs from the records: run make tables"


def test_a_table_that_drifted_is_noticed():
    from experiments.tables.__main__ import rendered

    page = (ROOT / "docs" / "results" / "connectors.md").read_text(encoding="utf-8")
    figure = re.search(r"\d+\.\d ± \d", page)[0]
    assert rendered(page.replace(figure, "12.3 ± 4", 1)) == page


def test_python_of_the_pages_runs(monkeypatch):
    import hvlm

    # A stand-in that takes what the real one takes; the script of docs/library.md runs on a real one.
    monkeypatch.setattr(hvlm, "load", lambda path: create_autospec(hvlm.Model, instance=True))
    inputs = {"attention.md": torch.randn(1, 100, 768), "merging.md": torch.randn(1, 4, 256, 32)}
    for page in (ROOT / "README.md", *(ROOT / "docs" / name for name in (*inputs, "fusion.md"))):
        blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        assert blocks
        for block in blocks:
            exec(compile(block, page, "exec"), {"x": inputs.get(page.name)})


def test_versions_agree():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^## (\d\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == version
    assert f"Version {version}," in README


@pytest.mark.slow
def test_the_connector_of_contributing_passes_the_contract_tests(tmp_path):
    house = tmp_path / "house"
    for part in ("hvlm", "conf", "tests"):
        shutil.copytree(ROOT / part, house / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", house)
    blocks = re.findall(r"^```(?:python|yaml)\n(# (\S+)\n.*?)^```", CONTRIBUTING, re.DOTALL | re.MULTILINE)
    assert [Path(name).stem for _, name in blocks] == ["peak", "peak"]
    for text, name in blocks:
        (house / name).write_text(text, encoding="utf-8")
    call = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "tests/test_contracts.py",
        "-k",
        "peak and convvit",
    ]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    done = subprocess.run(
        call, cwd=house, env=environment | {"PYTHONPATH": str(house)}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def test_make_help():
    shown = subprocess.run(["make", "-C", ROOT, "help"], capture_output=True, text=True, check=True).stdout
    for target in (
        "setup",
        "weights",
        "demo",
        "ui",
        "test",
        "test-ui",
        "test-all",
        "test-gpu",
        "lint",
        "reliability",
        "tables",
        "bench",
        "help",
    ):
        assert re.search(rf"^  make {target} +\S", shown, re.MULTILINE), target


def test_torch_is_the_release_of_the_constraints():
    pins = dict(re.findall(r"^(\w+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert torch.__version__.split("+")[0] == pins["torch"], "another build of torch has come in; run make setup again"
    assert importlib.util.find_spec("torchvision") is None, "torchvision replaces torch; nothing here needs it"


def test_imports_are_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [*project["dependencies"], *project["optional-dependencies"]["flow"]]
    for extra in ("data", "ui", "optuna", "submitit", "ray", "dashboard"):
        requirements += project["optional-dependencies"][extra]
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
    # What `make weights` and `make test-lmms` install, and kernels for GPUs: used where they are there.
    weights = {"gguf", "onnx", "lmms_eval", "mamba_ssm", "causal_conv1d", "fla"}
    for module, file in imported.items():
        if module not in own | weights:
            names = {name.lower().replace("_", "-") for name in providers.get(module, [module])}
            assert names & declared, f"{file.name} imports {module}: declare it in pyproject.toml"


@pytest.mark.slow
def test_the_tutorial_runs_as_written(trained, tmp_path, monkeypatch):
    """Every command and the script of the page, in one process, with a tiny model in the place of the demo's."""
    page = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    calls = [
        shlex.split(line)
        for line in re.findall(
            r"^(?:hvlm|python) .*", "\n".join(FENCE.findall(page.split("## Other")[0])), re.MULTILINE
        )
    ]
    (script,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert [call[1] for call in calls] == ["prepare", "eval", "train", "train", "eval", "ask.py"]
    setup = re.search(r"^python3 -m venv.*?^```", page, re.DOTALL | re.MULTILINE)[0].splitlines()[:-1]
    assert len(setup) + len(calls) + len(re.findall(r"^.", script, re.MULTILINE)) <= 12

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HVLM_CACHE", str(tmp_path / "cache"))
    shutil.copytree(trained[0] / "runs" / "tiny", tmp_path / "runs" / "demo")
    videos(tmp_path / "clips", 20)
    for i in range(20):
        (tmp_path / "clips" / f"v{i}.mp4").rename(tmp_path / "clips" / f"clip{i:02d}.mp4")
    header, first = re.search(r"^```text\n(video,.*)\n(clip.*)\n", page, re.MULTILINE).groups()
    rows = [first.replace("clip00", f"clip{i:02d}") for i in range(20)]
    (tmp_path / "clips" / "clips.csv").write_text("\n".join([header, *rows]) + "\n")
    tiny = [word for word in trained[1] if word.startswith(("vision.", "language.", "trainer.", "dataset.num_frames"))]
    for _, command, *words in calls[:-1]:
        words = ["stage.steps=1" if word.startswith("stage.steps=") else word for word in words]
        commands_run([command, *words, *(tiny + ["stage.batch_size=2"] if command == "train" else [])])
    results = json.loads((tmp_path / "runs" / "mine" / "eval" / "results.json").read_text())
    assert any(record["metric"] == "accuracy_macro" for record in results)
    exec(compile(script, "ask.py", "exec"), {})
