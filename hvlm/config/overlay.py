"""A stored configuration with what a command line says in its place: how eval.py finds what to build.

What an override means depends on what it is said over: ``merger.keep=0.5`` is a setting of the merger that the
checkpoint was trained with, unless ``merger=`` chooses another one.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from hvlm.config.check import check, check_room, room_class
from hvlm.config.compose import compose, explained, resolved
from hvlm.config.packages import refuse_unnamed
from hvlm.config.rooms import ROOMS
from hvlm.config.search_path import OF_THE_COMMAND_LINE, named_by
from hvlm.config.settings import SECTIONS
from hvlm.config.words import as_given, key_of
from hvlm.errors import UserError

log = logging.getLogger(__name__)

# What belongs to a command and not to the model it is about: never taken from a checkpoint.
OF_THE_COMMAND = (
    "run", "init_from", "checkpoint", "chain", "resume", "evaluate", "processes", "task", "ask", "predictions",
    "adapters", "out", "callback", *OF_THE_COMMAND_LINE,
)  # fmt: skip
SWEEPING = ("launcher", "sweep")  # groups that say how jobs are run, and nothing of a configuration


def on_top(overrides: Sequence[str]) -> list[str]:
    """Of ``overrides``, those that set one value of a room which is not chosen beside them: the stored one's."""
    chosen = {key_of(o) for o in overrides}
    return [o for o in overrides if "." in key_of(o) and (g := key_of(o).split(".")[0]) in ROOMS and g not in chosen]


def of_the_command(overrides: Sequence[str]) -> dict[str, Any]:
    """The checked configuration of everything that the overrides say by themselves (task, checkpoint, out, ...)."""
    later = on_top(overrides)
    return compose([o for o in overrides if o not in later], unused=_unused(overrides))


def _unused(overrides: Sequence[str]) -> tuple[str, ...]:
    """What a command about a trained model builds none of, unless it speaks of it: the stage, which is Lightning's and
    takes seconds to import."""
    return () if any(key_of(o).split(".")[0] == "stage" for o in overrides) else ("stage",)


def overlay(stored: Mapping[str, Any], overrides: Sequence[str], source: str = "the checkpoint") -> dict[str, Any]:
    """The stored configuration with the overrides in its place, checked.

    Args:
        stored: a configuration that was stored, by this version or an older one: keys that are newer have the values of
            today, and keys that are gone and belong to no room are left out.
        overrides: as on the command line. ``benchmark=needles`` replaces a whole room, ``dataset.set=hard`` one value.
        source: where ``stored`` is from, for the message.

    Raises:
        UserError: what is stored cannot be used by this version, or an override does not fit it.
    """
    with named_by(overrides):
        return _overlay(stored, overrides, source)


def _overlay(stored: Mapping[str, Any], overrides: Sequence[str], source: str) -> dict[str, Any]:
    for override in overrides:
        if override.startswith("~"):
            raise UserError(f"{override}: nothing can be taken out of a stored configuration; set another value")
    later, unused = on_top(overrides), _unused(overrides)
    given = of_the_command(overrides)
    chosen = {key_of(o) for o in overrides}
    refuse_unnamed({key: node for key, node in stored.items() if key not in chosen}, source)
    merged = copy.deepcopy(given)
    for key, value in stored.items():
        if key in unused:
            merged[key] = value
        elif key in ROOMS and key not in chosen:
            merged[key] = _of_this_version(key, value, source)
            if key == "dataset":
                _forget_a_new_root(merged[key], source)
        elif key in SECTIONS and key in merged and key not in (*chosen, *OF_THE_COMMAND):
            merged[key] |= {name: v for name, v in value.items() if name in merged[key]}
        elif key in merged and key not in (*ROOMS, *SECTIONS, *chosen, *OF_THE_COMMAND):
            merged[key] = value
    for override in overrides:
        key = key_of(override)
        if override in later or key in SWEEPING or key.split(".")[0] == "hydra":
            continue
        if key.split(".")[0] not in given:
            raise UserError(f"{override}: the settings are {source}'s; name what should differ, e.g. dataset.set=hard")
        _set(merged, key, _get(given, key))
    for override in later:
        key, value = _parse(override)
        _set(merged, key, value)
    return check(merged, unused)


def _of_this_version(group: str, node: Any, source: str) -> dict[str, Any]:
    try:
        return check_room(group, node)
    except UserError as error:
        raise UserError(
            f"{source}: its configuration is damaged or of another version of hvlm ({error}); use that one, or train "
            "again"
        ) from error


def _forget_a_new_root(dataset: dict[str, Any], source: str) -> None:
    """A stored folder is read from where it holds sets, and none is made because a checkpoint names it."""
    root = dataset.get("root")
    if root is None or signature(room_class("dataset", dataset)).parameters["root"].default is not None:
        return  # the latter: a folder that is only read
    try:
        found = any(Path(root).glob("*/manifest.json"))
    except (OSError, ValueError):  # no name of a folder
        found = False
    if not found:
        dataset["root"] = None
        log.info(
            f"{source}: its dataset.root={root[:200]} holds no sets and is not made; dataset.root=FOLDER chooses one"
        )


def _parse(override: str) -> tuple[str, Any]:
    """(dotted key, value), with ``${...}`` resolved."""
    override = as_given(override)
    with explained([override]):
        parsed = OverridesParser.create().parse_override(override)
        key = key_of(override)
        if parsed.is_sweep_override():
            raise UserError(f"{override} holds several values: add -m to run each, or write {key}=[...] for a list")
        return key, resolved(OmegaConf.create({key: parsed.value()}))[key]


def _get(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value[part]
    return value


def _set(config: dict[str, Any], key: str, value: Any) -> None:
    """Sets a dotted key; a map is laid over the one that stands there, as an override of Hydra's is."""
    *parents, leaf = key.split(".")
    target: Any = config
    for i, part in enumerate(parents):
        target = target.get(part) if isinstance(target, dict) else None
        if not isinstance(target, dict):
            raise UserError(f"unknown key '{key}'; '{'.'.join(parents[: i + 1])}' holds no settings")
    both = isinstance(value, Mapping) and isinstance(target.get(leaf), Mapping)
    target[leaf] = {**target[leaf], **value} if both else value
