"""Packages beside hvlm whose rooms may be built: those that the person at the command line named, and no others.

``packages=[mypackage]`` allows the classes of ``mypackage.<group>.<module>`` for that command, ``allow`` those of a
Python program for a block. What a checkpoint or an exported folder says of packages is never asked: a file that
anybody can write must not choose what is imported. Needs neither Hydra nor OmegaConf.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from hvlm.config.rooms import ROOMS
from hvlm.errors import UserError

OURS = "hvlm"
# A context's, not the process's: what one command allows, the next one in the same program does not inherit.
_NAMED: ContextVar[tuple[str, ...]] = ContextVar("packages", default=())


def named() -> tuple[str, ...]:
    """The packages that are allowed here beside hvlm, in the order in which they were named."""
    return _NAMED.get()


@contextmanager
def allow(packages: Sequence[str]) -> Iterator[None]:
    """Inside the block, rooms of these packages may be built, too, and their ``conf/`` is searched for words.

    Args:
        packages: names as the user gave them; those of an enclosing block stay allowed.

    Raises:
        UserError: a name that is none, or a package that is not there.
    """
    for name in packages:
        _folder_of(name)
    token = _NAMED.set(tuple(dict.fromkeys((*named(), *packages))))
    try:
        yield
    finally:
        _NAMED.reset(token)


def _folder_of(name: str) -> Path:
    """Where a package lies, without importing it: installed, or in the working folder."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_]\w*", name):
        raise UserError(f"packages=[{name}]: expected the name of a Python package, e.g. packages=[mypackage]")
    if name == OURS:
        raise UserError(f"packages=[{name}]: its rooms are always there; name your own package, or leave it out")
    spec = importlib.util.find_spec(name)
    if spec is None and Path(name).is_dir():
        sys.path.append(os.getcwd())  # as python -m does it; the processes of this command inherit the folder
        importlib.invalidate_caches()
        spec = importlib.util.find_spec(name)
    if spec is None:
        raise UserError(
            f"packages=[{name}]: there is no package of that name; install it (pip install -e <its folder>), or start "
            "in the folder that holds it"
        )
    if not spec.submodule_search_locations:
        raise UserError(f"packages=[{name}]: {spec.origin} is one file; a package is a folder {name}/ with __init__.py")
    return Path(next(iter(spec.submodule_search_locations))).resolve()


def conf_of(name: str) -> Path | None:
    """The folder of a package's YAMLs: ``conf/`` inside the package, else beside it; None where it has none.

    Beside an installed package lie other people's files, so that is only looked at in a project's own folder.
    """
    folder = _folder_of(name)
    if (folder / "conf").is_dir():
        return folder / "conf"
    beside = folder.parent / "conf"
    return beside if beside.is_dir() and folder.parent.name not in ("site-packages", "dist-packages") else None


def import_named(packages: Sequence[str]) -> None:
    """Import packages that were named.

    Raises:
        UserError: one that was not named on the command line, or whose import fails.
    """
    for name in packages:
        if name not in named():
            raise UserError(
                f"packages: {name} stands in a file; packages are named on the command line alone, so that no file "
                f"chooses what is imported: add packages=[{name}] there"
            )
        import_module(name, f"packages=[{name}]")


def import_module(path: str, said: str) -> Any:
    """A module by its dotted path; ``said`` begins the one line about one that cannot be imported."""
    try:
        return importlib.import_module(path)
    except Exception as e:  # whatever the user's own file raises
        kind = "" if isinstance(e, ImportError) else f"{type(e).__name__}: "
        lines = str(e).splitlines()
        raise UserError(f"{said} cannot be imported: {kind}{lines[0] if lines else 'no reason given'}") from e


def refuse_unnamed(stored: Mapping[str, Any], source: str) -> None:
    """UserError where a stored configuration holds a room of a package that the command does not name."""
    strange = [package for group in ROOMS if (package := package_of(stored.get(group), group)) not in (None, OURS)]
    missing = [name for name in dict.fromkeys(strange) if name not in named()]
    if missing:
        both = ",".join(dict.fromkeys((*named(), *missing)))
        raise UserError(
            f"{source}: trained with package {', '.join(missing)}: add packages=[{both}] if you trust it; a checkpoint "
            "never chooses what is imported"
        )


def package_of(node: Any, group: str) -> str | None:
    """The package of a room's ``_target_``, ``<package>.<group>.<module>.<Class>``; None where it is not of that
    form."""
    target = node.get("_target_") if isinstance(node, Mapping) else None
    match = re.fullmatch(rf"(\w+)\.{re.escape(group)}(\.\w+)+\.\w+", target) if isinstance(target, str) else None
    return match[1] if match else None
