"""The console: one format, known noise gone, everything else still there."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from hvlm.console import error_line, setup_logging
from hvlm.errors import UserError


@contextmanager
def put_back() -> Iterator[None]:
    """Logging is global state: afterwards it is as before."""
    loggers = [logging.getLogger(name) for name in (None, "lightning", "lightning.pytorch", "lightning.fabric")]
    before = [(logger, logger.handlers, logger.level, logger.propagate) for logger in loggers]
    try:
        yield
    finally:
        for logger, handlers, level, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)


def test_what_is_shown(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    with put_back(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        setup_logging()
        log = logging.getLogger("hvlm.training.chain")
        rank_zero_info("Tip: try installing [litlogger](https://example.org) to enable LitLogger")
        rank_zero_info("`Trainer.fit` stopped: `max_steps=4` reached.")
        rank_zero_info("`Trainer.fit` stopped: `max_time` reached.")
        warnings.warn("`isinstance(treespec, LeafSpec)` is deprecated, use something else", stacklevel=1)
        warnings.warn("something new", stacklevel=1)
        log.info("sft: 4 steps")
        log.debug("not shown")
        log.warning("a clip is unreadable")
        monkeypatch.setattr(rank_zero_only, "rank", 1)
        log.info("said by the first process")
        log.error("said by every process")
    assert capsys.readouterr().out.splitlines() == [
        "`Trainer.fit` stopped: `max_time` reached.",
        "sft: 4 steps",
        "warning: a clip is unreadable",
        "error: said by every process",
    ]
    assert [str(w.message) for w in caught] == ["something new"]


def test_what_an_error_quotes_stays_in_its_line(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit), error_line():
        raise UserError("a.json: video 'x\n\x1b[2J\ud800é' " + "a" * 10**6 + ": use another")
    said = capsys.readouterr().err
    assert said.startswith(r"error: a.json: video 'x\n\x1b[2J\ud800é' aaa") and said.endswith("a: use another\n")
    assert said.count("\n") == 1 and len(said) < 2100


@pytest.mark.parametrize("error", [RuntimeError("[alloc_cpu] can't allocate memory: you tried 5 bytes"), MemoryError()])
def test_too_little_memory_is_one_line_and_other_errors_are_let_through(
    error: Exception, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit), error_line():
        raise error
    said = capsys.readouterr().err
    assert said.startswith("error: not enough memory (") and "choose smaller" in said and said.count("\n") == 1
    with pytest.raises(RuntimeError, match="other"), error_line():
        raise RuntimeError("other")
    with pytest.raises(FileNotFoundError), error_line():
        raise FileNotFoundError(2, "no such file")


@pytest.mark.parametrize(
    "error",
    [RuntimeError("Too many open files. Communication with the workers is over"), OSError(24, "Too many open files")],
)
def test_too_many_open_files_are_one_line_that_says_the_limit(error: Exception, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit), error_line():
        raise error
    said = capsys.readouterr().err
    assert said.startswith("error: too many open files: ") and "ulimit -n" in said and said.count("\n") == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_behind_stdout_is_said_once() -> None:
    code = "import logging; from hvlm.console import *; setup_logging(); log = logging.getLogger()\n"
    code += "with error_line():\n  for i in range(3): log.info('x')"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.stderr.count("warning: stdout: No space left on device") == 1 and "Traceback" not in done.stderr
