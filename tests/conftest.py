"""What several test files share: a generated dataset and a trained chain, made once however many processes test."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from _reliability import pytest_addoption, pytest_collection_modifyitems, pytest_configure  # noqa: F401
from _small import SMALL, once, write_haystack

# Two test processes on two cores; torch reads it when it is imported, child processes inherit it. Nothing large is
# imported here: xdist's own process reads this file before it starts the others.
os.environ["OMP_NUM_THREADS"] = "1"
# The checks that `hvlm check` runs are plain asserts; here they say what was compared.
pytest.register_assert_rewrite("hvlm.checks")


@pytest.fixture(autouse=True)
def no_process_group_is_left() -> Iterator[None]:
    """What a test leaves behind, the next one in this process would take itself for a part of."""
    yield
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        pytest.fail("the test left a process group behind")


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this test run that all its processes see."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def needles(shared: Path) -> list[str]:
    """Overrides of a small run: 24 + 8 + 8 clips of 32 pixels and models of a few thousand weights."""
    haystack = once(shared / "haystack", write_haystack)
    return [*SMALL, f"dataset.haystack={haystack}", f"dataset.root={shared / 'data'}"]


@pytest.fixture(scope="session")
def trained(shared: Path, needles: list[str]) -> tuple[Path, list[str]]:
    """(folder, overrides): in ``folder`` stands runs/tiny of the demo's chain, all stages with a few steps."""
    overrides = ["experiment=demo", "run=tiny", "stage.steps=4", "stage.batch_size=4", *needles]

    def train(folder: Path) -> None:
        from hvlm.training.chain import run

        with contextlib.chdir(folder):
            run(overrides)

    return once(shared / "trained", train), overrides


@pytest.fixture
def small_pieces(monkeypatch):
    """Everything that goes piece by piece in mixing does so at the sizes of tests, too."""
    from hvlm.attention import _kernel, _kernel_causal, _scan, _softmax, mamba

    monkeypatch.setattr(_softmax, "SCORES", 1 << 11)
    monkeypatch.setattr(_kernel, "AT_LEAST", 16)
    monkeypatch.setattr(_kernel, "FEATURES", 1 << 11)
    monkeypatch.setattr(_kernel, "FEATURES_LEARNING", 1 << 11)
    monkeypatch.setattr(_kernel, "KEPT_BYTES", 1 << 13)
    monkeypatch.setattr(_kernel_causal, "CAUSAL_CHUNK", 16)
    monkeypatch.setattr(_scan, "STATES", 1 << 12)
    monkeypatch.setattr(mamba, "STRETCH", 20)
