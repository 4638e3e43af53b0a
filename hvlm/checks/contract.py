"""What the class of a room must be: what its contract in ``hvlm/contracts/`` says, and annotated as settings are."""

from __future__ import annotations

import ast
import inspect
import sys
import types
import typing
from collections.abc import Iterator
from typing import Literal

from hvlm.checks.tiny import Variant, target
from hvlm.config.check import room_class
from hvlm.config.rooms import ROOMS
from hvlm.config.schema import is_plain, parameters
from hvlm.contracts import CONTRACTS

# Libraries that decide how a program runs. Stages are LightningModules, and nothing else in a room is.
RUNNING = frozenset({"lightning", "pytorch_lightning", "hydra", "omegaconf", "wandb"})
ALLOWED = {"stage": frozenset({"lightning"})}
SIGNED = frozenset(
    {"visual_scale", "threshold", "weight"}
)  # settings that mean something below 0, or above every bound


def its_class_is_a_room(variant: Variant) -> None:
    """``_target_`` is a class of the group, of hvlm or of a package that is named."""
    room_class(variant.group, variant.written)


def methods(base: type) -> dict[str, inspect.Signature]:
    """{name: signature without self} of what a contract says can be called."""
    public = {name: member for name, member in vars(base).items() if name == "forward" or not name.startswith("_")}
    found = {name: getattr(base, name) for name, member in public.items() if inspect.isroutine(member)}
    return {name: inspect.signature(function) for name, function in found.items()}


def named(signature: inspect.Signature) -> list[inspect.Parameter]:
    return [p for name, p in signature.parameters.items() if name != "self"]


def it_has_what_its_contract_says(variant: Variant) -> None:
    """It derives from the base, leaves nothing of it open, and can be called as the base says; what it takes beyond
    that it must not need."""
    made, base = target(variant.settings), CONTRACTS[variant.group]
    assert issubclass(made, base), f"does not derive from hvlm.contracts.{base.__name__}"
    assert not inspect.isabstract(made), f"leaves open {', '.join(sorted(made.__abstractmethods__))}"
    for name, said in methods(base).items():
        theirs, ours = named(said), named(inspect.signature(getattr(made, name)))
        for wanted, found in zip(theirs, ours, strict=False):
            assert (found.name, found.kind) == (wanted.name, wanted.kind), f"{name}: another argument than the contract"
        assert len(ours) >= len(theirs), f"{name}: fewer arguments than the contract"
        needed = [p.name for p in ours[len(theirs) :] if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
        assert not needed, f"{name} needs more than the contract gives"


def its_settings_are_what_its_constructor_takes(variant: Variant) -> None:
    """Every argument that a YAML can hold stands in the YAML or has a default, and nothing else stands there."""
    settings = {key: value for key, value in variant.written.items() if key != "_target_"}
    for key, value in settings.items():
        inner = value if isinstance(value, list) else value.values() if isinstance(value, dict) else [value]
        assert all(v is None or isinstance(v, bool | int | float | str) for v in inner), f"{key} is nested"
        assert not any("${" in v for v in inner if isinstance(v, str)), f"{key} interpolates another room"
    known, supplied = parameters(target(variant.written)), ROOMS[variant.group]
    plain = {n for n, (annotation, _) in known.items() if is_plain(annotation) and n not in supplied}
    more = sorted(set(settings) - plain)
    assert not more, f"arguments that the class does not have: {', '.join(more)}"
    less = sorted({n for n in plain if known[n][1]} - set(settings))
    assert not less, f"arguments without a default and without a value: {', '.join(less)}"
    others = sorted({n for n, (_, needed) in known.items() if needed} - plain - supplied)
    assert not others, f"arguments that neither the YAML nor hvlm.assembly can give: {', '.join(others)}"


def its_numbers_say_their_range(variant: Variant) -> None:
    """A count, a size, a rate or a share says what it may be (``hvlm.config.ranges``)."""
    for name, (annotation, _) in parameters(target(variant.written)).items():
        if name in ROOMS[variant.group] or name in SIGNED or typing.get_origin(annotation) is Literal:
            continue
        options = typing.get_args(annotation) if typing.get_origin(annotation) is types.UnionType else (annotation,)
        assert not {int, float} & set(options), (
            f"{variant.group}.{name} has no range: take a type of hvlm.config.ranges"
        )


def it_says_what_it_is(variant: Variant) -> None:
    """The class and its file have docstrings of their own."""
    made = target(variant.written)
    assert vars(made).get("__doc__"), f"class {made.__name__} has no docstring"
    assert sys.modules[made.__module__].__doc__, f"{made.__module__} has no docstring"


def it_imports_nothing_that_runs_programs(variant: Variant) -> None:
    """A room works in a notebook that has torch and transformers only."""
    made = target(variant.written)
    with open(str(sys.modules[made.__module__].__file__), encoding="utf-8") as file:
        tops = {name.split(".")[0] for name in imports(file.read())}
    found = sorted(tops & (RUNNING - ALLOWED.get(variant.group, frozenset())))
    assert not found, f"imports {', '.join(found)}"


def imports(text: str) -> Iterator[str]:
    """Dotted names of the modules that a file's text imports anywhere, also inside functions."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


CHECKS = (
    its_settings_are_what_its_constructor_takes,
    its_numbers_say_their_range,
    it_has_what_its_contract_says,
    it_says_what_it_is,
    it_imports_nothing_that_runs_programs,
)
