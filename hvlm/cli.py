"""Entry scripts: a function of a checked configuration becomes a command.

``main`` reads the command line through Hydra (-m, --cfg job, --help, completion) and prints a ``UserError`` as one
line.
"""

from __future__ import annotations

import functools
import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import yaml
from hydra import version
from hydra._internal.utils import _run_hydra, get_args_parser
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from hvlm.config.catalog import page
from hvlm.config.check import check_files, check_settings
from hvlm.config.compose import REFUSED, compose, explain, explains, plan, resolved
from hvlm.config.overlay import on_top
from hvlm.config.search_path import CONF, OF_THE_COMMAND_LINE, folders, named_by
from hvlm.config.words import as_given, as_written, key_of, quoted
from hvlm.console import error_line
from hvlm.errors import UserError

EntryFunction = Callable[[dict[str, Any], list[str]], Any]
Configure = Callable[[list[str]], dict[str, Any]]


def main(
    function: EntryFunction | None = None, *, configure: Configure = compose, folder: Literal["run", "out"] = "run"
) -> Callable[..., Any]:
    """Makes an entry script of ``function(cfg, overrides)``.

    Called without arguments the script reads ``sys.argv`` through Hydra (-m, --cfg job, --help, completion), prints a
    ``UserError`` as ``error: ...`` and exits 1; its attribute ``main`` does the same with the arguments that it is
    given. Called with a list of overrides, as tests do, it returns what the function returns and lets errors through.

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
        return from_arguments(sys.argv[1:])

    def from_arguments(argv: Sequence[str]) -> Any:
        import hvlm.sweep.search  # noqa: F401  registers what conf/launcher and conf/sweep name

        with error_line():
            return _from_command_line(function, configure, folder, argv)

    vars(entry)["main"] = from_arguments
    return entry


def _from_command_line(function: EntryFunction, configure: Configure, folder: str, argv: Sequence[str]) -> Any:
    asked, flags, overrides = _read(argv)
    with named_by(_being_completed() if asked.shell_completion else overrides):
        if asked.help:
            print(page(folder == "out", (CONF, *folders())))
            return None
        return _run(asked, flags, overrides, function, configure, folder)


def _run(
    asked: Namespace, flags: list[str], overrides: list[str], function: EntryFunction, configure: Configure, folder: str
) -> Any:
    words = _words(asked, flags, overrides, configure)
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

    # What a sweep needs to know of the script whose jobs it runs; these shall end in a line, too, unless it was set.
    vars(task).update(configure=configure, folder=folder, environment={name: before or "0"})
    # With this set, Hydra lets exceptions through instead of printing them: the only way to say it in our words.
    os.environ[name] = "1"
    version.setbase("1.3")
    parser = get_args_parser()
    try:
        # As hydra.main does it, but for the arguments: these are not the process's own where the command is ``hvlm``.
        _run_hydra(parser.parse_args(words), parser, task, str(CONF), "train")
    except (*REFUSED, OSError) as e:
        if started or not explains(e):
            raise
        raise explain(e, [w for w in words if not w.startswith("-")]) from e
    finally:
        restore()
    return result[0] if result else None


def _read(given: Sequence[str]) -> tuple[Namespace, list[str], list[str]]:
    """(what the flags ask for, the flags, the overrides in Hydra's language).

    ``--config-dir DIR`` becomes ``config_dir=DIR``, which goes wherever overrides go: to every stage of a chain and
    every job of a sweep.
    """
    asked = get_args_parser().parse_intermixed_args(given)
    if asked.experimental_rerun:
        raise UserError("--experimental-rerun: not here; the same command continues what was begun")
    if asked.multirun and (asked.cfg or asked.info):
        raise UserError("-m with --cfg or --info: they show one configuration; leave -m out, with one value each")
    launcher = next((o for o in asked.overrides if key_of(o) == "launcher"), None)
    if launcher is not None and not asked.multirun:
        raise UserError(f"{launcher}: says where the jobs of a sweep run; add -m and what to sweep, or leave it out")
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


def _has_chain(stages: Mapping[str, Mapping[str, Any]]) -> bool:
    return any(cfg["chain"] for cfg in stages.values())


def _words(asked: Namespace, flags: list[str], overrides: list[str], configure: Configure) -> list[str] | None:
    """The command line in Hydra's language; None when all that was asked for is printed already."""
    if configure is compose:
        if asked.cfg == "job" and not asked.package and (stages := plan(overrides)) and _has_chain(stages):
            for number, (label, cfg) in enumerate(stages.items(), 1):
                print(f"---\n# {label}, stage {number} of {len(stages)}")
                print(yaml.safe_dump(cfg, sort_keys=False, allow_unicode=True), end="")
            return None
        return flags + overrides
    if asked.cfg == "job" and not asked.package:
        print(yaml.safe_dump(configure(overrides), sort_keys=False, allow_unicode=True), end="")
        return None
    # Hydra knows nothing of what is stored; ``configure`` checks these against it.
    stored = set(on_top(overrides))
    return flags + [f"++{o.lstrip('+')}" if o in stored else o for o in overrides]
