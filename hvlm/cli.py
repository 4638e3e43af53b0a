"""Entry scripts: a function of a checked configuration becomes a command.

``main`` reads the command line through Hydra (-m, --cfg job, --help, completion) and prints a ``UserError`` as one
line.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from hvlm.config.check import check
from hvlm.config.compose import CONF, compose, explain, resolved
from hvlm.errors import UserError

EntryFunction = Callable[[dict[str, Any], list[str]], Any]


def main(function: EntryFunction) -> Callable[..., Any]:
    """Makes an entry script of ``function(cfg, overrides)``.

    Called without arguments it reads ``sys.argv`` through Hydra (-m, --cfg job, --help, completion), prints a
    ``UserError`` as ``error: ...`` and exits 1. Called with a list of overrides, as tests do, it returns what the
    function returns and lets errors through.
    """

    @functools.wraps(function)
    def entry(overrides: Sequence[str] | None = None) -> Any:
        if overrides is not None:
            return function(compose(overrides), list(overrides))
        import hvlm.sweep.launcher  # noqa: F401  registers the launcher that conf/launcher/process.yaml names

        with error_line():
            return _from_command_line(function)

    return entry


@contextmanager
def error_line() -> Iterator[None]:
    """Prints a ``UserError`` as one line on stderr and exits 1; HYDRA_FULL_ERROR=1 shows the whole traceback."""
    try:
        yield
    except UserError as e:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"error: {e}", file=sys.stderr)
        raise SystemExit(1) from None


def _from_command_line(function: EntryFunction) -> Any:
    name = "HYDRA_FULL_ERROR"
    before = os.environ.get(name)
    result: list[Any] = []
    started = False

    def restore() -> None:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before

    @functools.wraps(function)
    def task(cfg: DictConfig) -> None:
        from hvlm.console import setup_logging
        from hvlm.io.checkpoint import refuse_unsafe_loading  # seconds of imports, which --help does without

        nonlocal started
        started = True
        restore()
        setup_logging()
        with error_line():
            refuse_unsafe_loading()
            result.append(function(check(resolved(cfg)), list(HydraConfig.get().overrides.task)))

    # With this set, Hydra lets exceptions through instead of printing them: the only way to say it in our words.
    os.environ[name] = "1"
    try:
        hydra.main(config_path=str(CONF), config_name="train", version_base="1.3")(task)()
    except (HydraException, OmegaConfBaseException) as e:
        if started:
            raise
        raise explain(e, [a for a in sys.argv[1:] if not a.startswith("-")]) from e
    finally:
        restore()
    return result[0] if result else None
