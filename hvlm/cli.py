"""Entry scripts: a function of a checked configuration becomes a command.

``main`` reads the command line through Hydra (-m, --cfg job, --help, completion) and prints a ``UserError`` as one
line.
"""

from __future__ import annotations

import errno
import functools
import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import hydra
import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from hvlm.config.check import check_files, check_settings
from hvlm.config.compose import compose, explain, resolved
from hvlm.config.overlay import on_top
from hvlm.config.search_path import CONF, OF_THE_COMMAND_LINE, named_by
from hvlm.config.words import as_given, as_written, key_of, quoted
from hvlm.errors import UserError

EntryFunction = Callable[[dict[str, Any], list[str]], Any]
Configure = Callable[[list[str]], dict[str, Any]]
# What a disk or a folder refuses: a matter of the machine, for which a traceback helps nobody.
OF_THE_MACHINE = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG,
    errno.EIO,
}  # fmt: skip


def main(
    function: EntryFunction | None = None, *, configure: Configure = compose, folder: Literal["run", "out"] = "run"
) -> Callable[..., Any]:
    """Makes an entry script of ``function(cfg, overrides)``.

    Called without arguments the script reads ``sys.argv`` through Hydra (-m, --cfg job, --help, completion), prints a
    ``UserError`` as ``error: ...`` and exits 1. Called with a list of overrides, as tests do, it returns what the
    function returns and lets errors through.

    Args:
        function: what the script does.
        configure: makes the checked configuration of overrides; the same for a single run and for a job of a sweep.
        folder: the key that says where a job of a sweep writes.
    """
    if function is None:
        return functools.partial(main, configure=configure, folder=folder)

    @functools.wraps(function)
    def entry(overrides: Sequence[str] | None = None) -> Any:
        if overrides is not None:
            with named_by(overrides):
                return function(configure(list(overrides)), list(overrides))
        import hvlm.sweep.launcher  # noqa: F401  registers the launcher that conf/launcher/process.yaml names

        with error_line():
            return _from_command_line(function, configure, folder)

    return entry


@contextmanager
def error_line() -> Iterator[None]:
    """Prints a ``UserError``, and what a disk or a folder refuses, as one line on stderr and exits 1; after Ctrl-C
    exits 130. HYDRA_FULL_ERROR=1 shows the whole traceback."""
    try:
        yield
    except (UserError, OSError, KeyboardInterrupt) as e:
        machine = e if isinstance(e, OSError) and e.errno in OF_THE_MACHINE else None
        if os.environ.get("HYDRA_FULL_ERROR") == "1" or (isinstance(e, OSError) and machine is None):
            raise
        if isinstance(e, KeyboardInterrupt):
            print("error: stopped by Ctrl-C", file=sys.stderr)
            raise SystemExit(130) from None
        text = f"{machine.filename or 'writing'}: {machine.strerror}; the same command continues" if machine else str(e)
        print(f"error: {text}", file=sys.stderr)
        raise SystemExit(1) from None


def writable(folder: Path, key: str) -> Path:
    """``folder``, made if it is not there; UserError naming ``key`` where nothing can be written into it."""
    probe = folder / f".{os.getpid()}.probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as e:
        raise UserError(f"{key}={folder}: cannot be written ({e.strerror}); name another folder") from e
    return folder


def _from_command_line(function: EntryFunction, configure: Configure, folder: str) -> Any:
    asked, flags, overrides = _read(sys.argv[1:])
    with named_by(_being_completed() if asked.shell_completion else overrides):
        return _run(asked, flags, overrides, function, configure, folder)


def _run(
    asked: Namespace, flags: list[str], overrides: list[str], function: EntryFunction, configure: Configure, folder: str
) -> Any:
    arguments, words = sys.argv, _words(asked, flags, overrides, configure)
    if words is None:
        return None
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
        nonlocal started
        started = True
        restore()
        with error_line():
            # First what takes no import of torch: a missing file is named at once.
            check_files(check_settings(resolved(cfg)))
            from hvlm.io.checkpoint import refuse_unsafe_loading

            refuse_unsafe_loading()
            overrides = as_written(HydraConfig.get().overrides.task)
            checked = configure(overrides)
            from hvlm.console import setup_logging

            setup_logging()
            result.append(function(checked, overrides))

    vars(task).update(configure=configure, folder=folder)  # what a sweep needs to know of the script whose jobs it runs
    # With this set, Hydra lets exceptions through instead of printing them: the only way to say it in our words.
    os.environ[name] = "1"
    sys.argv = [arguments[0], *words]
    try:
        hydra.main(config_path=str(CONF), config_name="train", version_base="1.3")(task)()
    except (HydraException, OmegaConfBaseException) as e:
        if started:
            raise
        raise explain(e, [a for a in sys.argv[1:] if not a.startswith("-")]) from e
    finally:
        sys.argv = arguments
        restore()
    return result[0] if result else None


def _read(given: Sequence[str]) -> tuple[Namespace, list[str], list[str]]:
    """(what the flags ask for, the flags, the overrides in Hydra's language).

    ``--config-dir DIR`` becomes ``config_dir=DIR``, which goes wherever overrides go: to every stage of a chain and
    every job of a sweep.
    """
    asked = get_args_parser().parse_intermixed_args(given)
    if asked.multirun and (asked.cfg or asked.info):
        raise UserError("-m with --cfg or --info: they show one configuration; leave -m out, with one value each")
    if asked.config_name or asked.config_path:
        raise UserError(f"--config-name, --config-path: all settings are in {CONF}; add a folder with --config-dir DIR")
    flags = [a for a in given if a not in asked.overrides]  # Hydra wants them together
    overrides = [as_given(o, asked.multirun) for o in asked.overrides]
    if asked.config_dir is not None:
        overrides.append(f"config_dir={quoted(asked.config_dir)}")
        flags = [a for i, a in enumerate(flags) if not (_is_config_dir(a) or (i and _takes_a_folder(flags[i - 1])))]
    return asked, flags, overrides


def _is_config_dir(argument: str) -> bool:
    """Whether an argument is ``--config-dir``, shortened as argparse allows it, with the folder or before it."""
    name = argument.split("=", 1)[0]
    return argument.startswith("-cd") or (len(name) > len("--config-") and "--config-dir".startswith(name))


def _takes_a_folder(argument: str) -> bool:
    return _is_config_dir(argument) and "=" not in argument and (argument == "-cd" or argument.startswith("--"))


def _being_completed() -> list[str]:
    """What of the line before the cursor names packages and folders; while it is typed, mistakes in it are none yet."""
    try:
        _, _, overrides = _read(shlex.split(os.environ.get("COMP_LINE", ""))[1:])
        overrides = [o for o in overrides if key_of(o) in OF_THE_COMMAND_LINE]
        with named_by(overrides):
            return overrides
    except (UserError, ValueError, SystemExit):
        return []


def _words(asked: Namespace, flags: list[str], overrides: list[str], configure: Configure) -> list[str] | None:
    """The command line in Hydra's language; None when all that was asked for is printed already."""
    if configure is compose:
        return flags + overrides
    if asked.cfg == "job" and not asked.package:
        print(yaml.safe_dump(configure(overrides), sort_keys=False, allow_unicode=True), end="")
        return None
    # Hydra knows nothing of what is stored; ``configure`` checks these against it.
    stored = set(on_top(overrides))
    return flags + [f"++{o.lstrip('+')}" if o in stored else o for o in overrides]
