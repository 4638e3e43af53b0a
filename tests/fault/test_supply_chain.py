"""What is installed is what was looked at: every package by its hash, and none that is known to be bad."""

from __future__ import annotations

import re
import tomllib

import pytest
from _tiny import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
PINS = {canonicalize_name(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+) \\$", LOCK, re.MULTILINE)}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.mark.fault(63)
def test_the_lock_has_every_package_with_its_hashes() -> None:
    extras = PROJECT["optional-dependencies"]
    for line in [*PROJECT["dependencies"], *(line for name in ("flow", "data", "dev") for line in extras[name])]:
        wanted = Requirement(line)
        pinned = PINS.get(canonicalize_name(wanted.name))
        assert pinned is not None, f"{wanted.name} is not in requirements.lock; its first lines say how it is made"
        assert wanted.specifier.contains(pinned, prereleases=True), f"{line}, and requirements.lock has {pinned}"
    for name, version in re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE):
        assert PINS.get(canonicalize_name(name), version).split("+")[0] == version, (
            f"constraints.txt: {name}=={version}"
        )
    body = "\n".join(line for line in LOCK.splitlines() if not line.startswith("#"))
    entries = re.split(r"^(?=\S)", body, flags=re.MULTILINE)[1:]
    assert len(entries) == len(PINS)
    for entry in entries:
        assert re.fullmatch(r"[\w.-]+==\S+ \\\n(    --hash=sha256:[0-9a-f]{64}( \\)?\n?)+", entry), entry
    assert not {"torchvision", "triton"} & set(PINS) and not any(name.startswith("nvidia") for name in PINS)


@pytest.mark.fault(63)
def test_the_checks_of_every_change_install_by_the_lock() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "--require-hashes --no-deps --no-build-isolation -r requirements.lock" in makefile
    (flow,) = (ROOT / ".github" / "workflows").glob("*.yml")
    said = flow.read_text(encoding="utf-8")
    assert "make lint LOCKED=1" in said and 'locked: "1"' in said


@pytest.mark.fault(60, 63)
def test_releases_of_lightning_that_ran_what_a_checkpoint_names_are_not_installed() -> None:
    (lightning,) = (Requirement(line) for line in PROJECT["dependencies"] if line.startswith("lightning"))
    for bad in ("2.5.0", "2.6.2", "2.6.3", "2.6.5"):
        assert not lightning.specifier.contains(bad)
    assert lightning.specifier.contains(PINS["lightning"]) and "pytorch-lightning" in PINS
