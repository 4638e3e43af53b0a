"""Where the words of a command line are looked up: hvlm's ``conf/``, those of named packages, and ``config_dir=``.

``named_by`` reads ``packages=`` and ``config_dir=`` out of a command's overrides; inside its block Hydra finds their
YAMLs, whoever starts it: the command line, ``hvlm.config.compose.compose``, a sweep, or shell completion.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin

import hvlm
from hvlm.config.packages import allow, conf_of, named
from hvlm.config.schema import did_you_mean
from hvlm.config.words import as_given, key_of
from hvlm.errors import UserError


def _conf() -> Path:
    """The folder of settings: inside the package where a wheel put it (setup.py), beside it in a clone."""
    package = Path(hvlm.__file__).parent
    inside = package / "conf"
    return inside if (inside / "train.yaml").is_file() else package.parent / "conf"


CONF = _conf()
# Only a command line says them: no file chooses what is imported or where files are looked for.
OF_THE_COMMAND_LINE = ("packages", "config_dir")
_FOLDERS: ContextVar[tuple[Path, ...]] = ContextVar("folders", default=())


@contextmanager
def named_by(overrides: Sequence[str]) -> Iterator[None]:
    """Inside the block, what ``packages=`` and ``config_dir=`` of a command line name is allowed and found.

    Raises:
        UserError: a package or folder that is not there, a group that does not exist, a word in two places.
    """
    packages = _value(overrides, "packages")
    if packages is not None and not (isinstance(packages, list) and all(isinstance(p, str) for p in packages)):
        raise UserError(f"packages={packages}: expected a list of names, e.g. packages=[mypackage]")
    given = _value(overrides, "config_dir")
    if given is not None and not (given and Path(str(given)).is_dir()):
        raise UserError(f"config_dir={given}: no such folder; name one that holds <group>/<word>.yaml")
    with allow(packages or []):
        folders = [conf for name in named() if (conf := conf_of(name)) is not None]
        folders += [*_FOLDERS.get(), *([Path(str(given)).resolve()] if given else [])]
        further = tuple(dict.fromkeys(f for f in folders if f != CONF.resolve()))
        _check(further)
        token = _FOLDERS.set(further)
        try:
            yield
        finally:
            _FOLDERS.reset(token)


def folders() -> tuple[Path, ...]:
    """The folders that are searched here beside hvlm's own."""
    return _FOLDERS.get()


def contents() -> tuple[tuple[str, int, int], ...]:
    """What stands in ``folders`` now, (file, ns of its last change, bytes) of every YAML: in a program that runs on,
    somebody edits them."""
    files = [path for folder in folders() for path in sorted(folder.rglob("*.yaml"))]
    return tuple((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in files)


def _value(overrides: Sequence[str], key: str) -> Any:
    """What the last override of ``key`` gives it; None where there is none, or where it cannot be read (which is said
    when the whole command line is)."""
    given = [o for o in overrides if key_of(o) == key and "=" in o]
    if not given:
        return None
    try:
        parsed = OverridesParser.create().parse_override(as_given(given[-1]))
    except HydraException:
        return None
    if parsed.is_sweep_override():
        raise UserError(f"{given[-1]}: a command has one list of packages and one folder; {key} cannot be swept")
    return parsed.value()


def _check(further: Sequence[Path]) -> None:
    """Every file is ``<group>/<word>.yaml`` of a group that exists, and no word stands in two places: which one Hydra
    takes would depend on the order."""
    groups = {path.name for path in CONF.iterdir() if path.is_dir()}
    where = {path.relative_to(CONF): CONF for path in CONF.rglob("*.yaml")} if further else {}
    for folder in further:
        for path in sorted(folder.rglob("*.yaml")):
            inside = path.relative_to(folder)
            group, word = inside.parts[0], "/".join(inside.with_suffix("").parts[1:])
            if not word:
                raise UserError(f"{path}: expected {folder}/<group>/<word>.yaml; move it into the folder of its group")
            if group not in groups:
                raise UserError(f"{path}: there is no group '{group}';{did_you_mean(group, groups)}")
            if inside in where:
                raise UserError(
                    f"{group}={word} stands in two places, {where[inside] / inside} and {path}: rename one of them"
                )
            where[inside] = folder


class Further(SearchPathPlugin):
    """Hydra asks it whenever it makes a search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in folders():
            search_path.append(provider="hvlm", path=f"file://{folder}")


Plugins.instance().register(Further)
