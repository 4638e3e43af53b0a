"""The one check that every configuration passes, wherever it comes from: command line, checkpoint, exported folder.

``check`` takes a whole configuration, ``check_room`` one room's node; ``hvlm.assembly.room`` calls the latter for every
room it builds, so that nothing reaches a constructor unchecked and no file can name a class outside of the rooms.
Needs neither Hydra nor OmegaConf.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from hvlm.config.packages import OURS, import_module, import_named, named, package_of
from hvlm.config.rooms import ROOMS
from hvlm.config.schema import arguments, did_you_mean
from hvlm.config.settings import SECTIONS, RootConfig
from hvlm.config.synonyms import instead_of_key
from hvlm.errors import UserError


def check(plain: Mapping[str, Any], unused: Collection[str] = ()) -> dict[str, Any]:
    """Every key and every value against the class that will receive it. Returns the converted configuration.

    Args:
        plain: the configuration.
        unused: rooms that will not be built: of these only the name of the class is checked, and nothing is imported.

    Raises:
        UserError: an unknown key (with the one that was probably meant), a wrong type, a number out of range, a missing
            value, or a room whose node is not one flat call of a class of its group.
    """
    checked = check_settings(plain)
    import_named(checked["packages"])
    for group in ROOMS:
        if group in unused:
            allowed_target(group, plain[group])
            checked[group] = plain[group]
        else:
            checked[group] = check_room(group, plain[group])
    return {key: checked[key] for key in plain}


def check_settings(plain: Mapping[str, Any]) -> dict[str, Any]:
    """``check`` of everything but the rooms, which takes no import of a room and hence none of torch."""
    known = [f.name for f in fields(RootConfig)] + list(ROOMS)
    for key in plain:
        if key not in known:
            raise UserError(f"unknown key '{key}';{instead_of_key(key) or did_you_mean(key, known)}")
    for key in known:
        if key not in plain:
            way_out = f"choose one with {key}=<name>" if key in (*ROOMS, *SECTIONS) else f"set {key}=..."
            raise UserError(f"{key} has no value: {way_out}")
    checked = arguments({k: v for k, v in plain.items() if k not in ROOMS}, RootConfig, "")
    for name, section in SECTIONS.items():
        checked[name] = arguments(checked[name], section, name)
    return checked


def check_room(group: str, node: Any, supplied: Collection[str] = ()) -> dict[str, Any]:
    """A room's node, ``{"_target_": path of a class, setting: value, ...}``, with every value converted.

    Args:
        group: the room's group, e.g. ``connector``.
        node: what the configuration holds under that name.
        supplied: arguments that the program passes itself, beside those of the group (``ROOMS``); the node must not
            hold them.

    Raises:
        UserError: see ``check``.
    """
    cls = room_class(group, node)
    for key, value in node.items():
        if key in getattr(cls, "nested", ()):
            continue  # it checks what is in there as rooms of its own
        inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
        if any(isinstance(v, Mapping | list | tuple) for v in inner):
            raise UserError(f"{group}.{key}: holds nested values; a room takes scalars, flat lists and flat maps")
    settings = {k: v for k, v in node.items() if k != "_target_"}
    supplied = {*ROOMS[group], *supplied}
    return {"_target_": node["_target_"], **arguments(settings, cls, group, supplied)}


def group_of(node: Any) -> str:
    """The group that a room's ``_target_`` names; one that is no group of rooms is a ``UserError``."""
    target = node.get("_target_") if isinstance(node, Mapping) else None
    parts = target.split(".") if isinstance(target, str) else []
    if len(parts) < 4 or parts[1] not in ROOMS:
        raise UserError(f"_target_={target!r}: expected a class in hvlm.<group>, one of {', '.join(ROOMS)}")
    return parts[1]


def room_class(group: str, node: Any) -> type:
    """The class that ``_target_`` names, which must be defined in ``<package>.<group>`` of hvlm or of a package that
    the command line names. Imports nothing else."""
    package = allowed_target(group, node)
    path = node["_target_"]
    module, name = path.rsplit(".", 1)
    cls = getattr(import_module(module, f"{group}._target_={path}"), name, None)
    if cls is None:
        raise UserError(f"{group}._target_={path} cannot be imported: module {module} has no {name}")
    # What the module itself imported (its libraries' classes, say) is no room.
    if not isinstance(cls, type) or not cls.__module__.startswith(f"{package}.{group}."):
        raise _refused(group, path)
    return cls


def allowed_target(group: str, node: Any) -> str:
    """The package whose class ``_target_`` names: hvlm or one that the command line names, else ``UserError``."""
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise UserError(f"{group}: expected a mapping with _target_ (conf/{group}/<name>.yaml), found {node!r}")
    path = node["_target_"]
    package = package_of(node, group)
    if package is None:
        raise _refused(group, path)
    if package not in (OURS, *named()):
        both = ",".join((*named(), package))
        raise UserError(
            f"{group}._target_={path}: expected a class in hvlm.{group}, and package {package} is not named: add "
            f"packages=[{both}] if you trust it"
        )
    return package


def _refused(group: str, path: Any) -> UserError:
    return UserError(f"{group}._target_={path}: expected a class in hvlm.{group}; choose it with {group}=<name>")


def files_of_the_benchmark(checked: Mapping[str, Any]) -> dict[str, str | None]:
    """{setting: path} of what a benchmark reads beside the dataset."""
    settings = checked.get("benchmark", {})
    return {
        f"benchmark.{name}": settings.get(name) for name in ("path", "questions", "annotations", "videos", "subtitles")
    }


def _folders(copy: Path, name: str) -> str:
    """Which folder of a local copy was probably meant, or those that it has."""
    there = sorted(inner.name for inner in copy.iterdir() if inner.is_dir() and not inner.name.startswith("."))
    return did_you_mean(name, there) if there else " the copy has no folders"


def check_files(checked: Mapping[str, Any]) -> None:
    """``UserError`` for a file of the command's that does not exist. Only for a command that starts: a stage of a chain
    may name what an earlier one is going to write."""
    named = {key: checked[key] for key in ("init_from", "checkpoint", "predictions")}
    named["ask.video"] = checked["ask"]["video"]
    named |= files_of_the_benchmark(checked)
    published = checked.get("benchmark", {}).get("tables") is not None  # whose videos lie in its copy
    for key, path in named.items():
        if path == "":
            raise UserError(f"{key}= is empty: name a file or folder, or leave {key}= out")
        if published and key in ("benchmark.videos", "benchmark.subtitles") and path is not None:
            copy = named["benchmark.path"]
            if copy in (None, "hub") or (Path(copy) / path).exists():
                continue  # without path= the benchmark says what is missing
            if Path(copy).is_dir() and not Path(path).is_absolute() and not Path(path).exists():
                raise UserError(f"{key}={path}: no such file or folder, here or in {copy};{_folders(Path(copy), path)}")
        if published and key == "benchmark.path" and path == "hub":
            continue  # what is fetched, or was
        if path is not None and "://" not in path and not Path(path).exists():
            raise UserError(f"{key}={path}: no such file or folder")
