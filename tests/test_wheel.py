"""What an installed hvlm is: the package, its settings and its command, in any folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from _tiny import CONF, ROOT


def copied(folder: Path) -> Path:
    """What a wheel is made of, so that nothing is written into the repository."""
    for part in ("hvlm", "conf"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.mark.fault(113)
def test_the_wheel_holds_the_package_its_settings_and_the_command(tmp_path: Path) -> None:
    """As pip does it, but without a process: the build backend writes the wheel."""
    source = copied(tmp_path / "source")
    (source / "conf" / "connector" / "mean.yaml~").touch()
    code = "import os, sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=source, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    with zipfile.ZipFile(tmp_path / done.stdout.split()[-1]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info" not in name}
        (points,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
        assert "hvlm = hvlm.commands:run" in wheel.read(points).decode()
    settings = {f"hvlm/conf/{path.relative_to(CONF)}" for path in CONF.rglob("*.yaml")}
    code_files = {str(path.relative_to(ROOT)) for path in (ROOT / "hvlm").rglob("*.py")}
    assert names == settings | code_files | {"hvlm/py.typed"}, "no test, no script, no file of an editor"


@pytest.mark.fault(113)
def test_an_editable_install_is_found_before_a_folder_of_the_same_name() -> None:
    """A script beside a clone: the clone's folder is no package, and one that lies on Python's path comes first. That
    takes a plain path in the installation, which setuptools makes where the root is named and packages lie below it."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert tool["package-dir"] == {"": "."}


@pytest.mark.slow
def test_an_installed_wheel_trains_and_answers_in_an_empty_folder(needles: list[str], tmp_path: Path) -> None:
    source, site, empty = copied(tmp_path / "source"), tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    wheel = ["wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(source)]
    subprocess.run([*pip, *wheel], check=True)
    (made,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(made)], check=True)
    # A clone lies beside the script: its folder hvlm is no package, and is not taken for one.
    (empty / "hvlm" / "docs").mkdir(parents=True)
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def hvlm(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, str(site / "bin" / "hvlm"), *words],
            cwd=empty,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    assert "completion" in hvlm("--help") and "foveated" in hvlm("train", "--help")
    tiny = ["debug=fast_dev_run", "experiment=demo", "run=tiny", "stage.batch_size=4", *needles]
    hvlm("train", *tiny)
    hvlm("train", "-m", "stage=sft", "init_from=runs/tiny", "debug=fast_dev_run", "stage.batch_size=4",
         *(n for n in needles), "seed=1,2", "run=swept", "hydra.launcher.threads=1")  # fmt: skip
    assert "done" in (empty / "runs" / "swept" / "sweep.md").read_text()
    video = next(o.split("=", 1)[1] for o in needles if o.startswith("dataset.haystack=")) + "/a.mp4"
    script = f"import hvlm; print(hvlm.__file__); print(hvlm.load('runs/tiny').answer({video!r}, 'what color ?'))"
    (empty / "ask.py").write_text(script)
    done = subprocess.run([sys.executable, "ask.py"], cwd=empty, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith(str(site)), done.stdout + done.stderr[-2000:]
