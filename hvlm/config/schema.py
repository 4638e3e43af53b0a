"""Types before work: a value from a configuration against a Python annotation.

``convert`` checks one value, ``arguments`` the whole mapping that goes to a constructor or a dataclass. Both raise
``UserError`` with the full dotted key, what was found and what was expected, so that ``attention.local_window=abc``
stops before a model is built. OmegaConf's structured configs would do the first half; they have no ``Literal``, do not
read a constructor's signature and do not suggest the key that was meant. A range stands with the type
(``Annotated[int, Ge(1)]``, see ``hvlm.config.ranges``) and is checked with it.
"""

from __future__ import annotations

import difflib
import inspect
import math
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any, Literal, Union

from hvlm.config.synonyms import instead_of_key, instead_of_value
from hvlm.errors import UserError

SCALARS = (bool, int, float, str)


def did_you_mean(word: str, known: Collection[str]) -> str:
    """`` did you mean 'x'?`` (with the leading space), or the list of what exists when nothing is near."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f" did you mean '{near[0]}'?"
    return f" known: {', '.join(sorted(known))}" if known else ""


def is_plain(annotation: Any) -> bool:
    """Whether a value of this annotation can stand in a YAML file: scalars, lists and maps of them, and unions."""
    if annotation in SCALARS or annotation is type(None):
        return True
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return True
    if origin is Annotated:
        return is_plain(args[0])
    if origin in (Union, types.UnionType):
        return all(is_plain(a) for a in args)
    if origin in (list, tuple, Sequence) or annotation in (list, tuple):
        return all(a is Ellipsis or is_plain(a) for a in args)
    if origin in (dict, Mapping) or annotation is dict:
        return all(is_plain(a) for a in args)
    return False


def convert(value: Any, annotation: Any, key: str) -> Any:
    """``value`` as ``annotation`` wants it, or a ``UserError`` that names ``key``.

    The only conversions are those nobody would call a mistake: an int where a float is wanted, a whole float (``1e3``)
    where an int is wanted, a number where a string is wanted (``run=7``). A bool is never a number, and nan and inf are
    no values that a setting can have.
    """
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        converted = convert(value, args[0], key)
        if all(check.holds(converted) for check in args[1:]):
            return converted
        raise UserError(f"{key}={value}: expected {describe(annotation)}")
    if origin in (Union, types.UnionType):
        return _convert_union(value, annotation, args, key)
    if origin is Literal:
        if value in args and type(value) in {type(a) for a in args}:
            return value
        known = [a for a in args if isinstance(a, str)]
        hint = instead_of_value(key, value, known) or (did_you_mean(value, known) if isinstance(value, str) else "")
        hint = hint if "did you mean" in hint else ""  # what there is stands in the line already
        raise UserError(f"{key}={value}: expected one of {', '.join(map(str, args))};{hint}".rstrip(";"))
    if annotation in (list, tuple) or origin in (list, tuple, Sequence):
        if not isinstance(value, list | tuple):
            raise _wrong(key, value, annotation)
        item = args[0] if args else Any
        return [convert(v, item, f"{key}[{i}]") for i, v in enumerate(value)]
    if annotation is dict or origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise _wrong(key, value, annotation)
        item = args[1] if args else Any
        return {str(k): convert(v, item, f"{key}.{k}") for k, v in value.items()}
    if annotation is Any:
        return value
    return _convert_scalar(value, annotation, key)


def _convert_union(value: Any, annotation: Any, options: tuple[Any, ...], key: str) -> Any:
    """An exact type wins over a conversion, so that ``int | str`` leaves ``"7"`` a string and 7 a number."""
    if value is None:
        if type(None) in options:
            return None
        raise _wrong(key, value, annotation)
    options = tuple(o for o in options if o is not type(None))
    exact = [o for o in options if type(value) is (typing.get_args(o)[0] if typing.get_origin(o) is Annotated else o)]
    words = [word for o in options if typing.get_origin(o) is Literal for word in typing.get_args(o)]
    if hint := instead_of_value(key, value, words):
        raise UserError(f"{key}={value}: expected {describe(annotation)};{hint}")
    if exact or len(options) == 1:
        return convert(value, exact[0] if exact else options[0], key)
    for option in options:
        try:
            return convert(value, option, key)
        except UserError:
            continue
    raise _wrong(key, value, annotation)


def _convert_scalar(value: Any, annotation: Any, key: str) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is bool and isinstance(value, bool):
        return value
    if annotation is int and number and float(value).is_integer():
        return int(value)
    if annotation is float and number and math.isfinite(value):
        return float(value)
    if annotation is str and isinstance(value, str):
        return value
    if annotation is str and number:
        return str(value)
    raise _wrong(key, value, annotation)


def _wrong(key: str, value: Any, annotation: Any) -> UserError:
    shown = repr(value) if isinstance(value, str) else str(value)
    return UserError(f"{key}={value}: expected {describe(annotation)}, found {type(value).__name__} {shown}")


def describe(annotation: Any) -> str:
    """``Optional[int]`` as ``int or null``: the annotation in words."""
    if annotation is type(None):
        return "null"
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(a) for a in args)
    if origin is Annotated:
        return f"{describe(args[0])} {' and '.join(map(str, args[1:]))}"
    if origin in (dict, Mapping) and args:
        return f"a map {{name: {describe(args[1])}}}"
    if origin is None and isinstance(annotation, type):
        return annotation.__name__
    return str(annotation).replace("typing.", "").replace("NoneType", "null")


def parameters(target: type) -> dict[str, tuple[Any, bool]]:
    """{name: (annotation, required)} of a class's constructor.

    A class that says its own ``__signature__`` has the arguments that stand there. Else a subclass may pass ``**rest``
    on to its base in its own package or in this one: the base's arguments then count as its own. ``**rest`` that no
    base takes up would swallow misspelt keys and is a TypeError, like a missing annotation.
    """
    if "__signature__" in vars(target):
        stated = vars(target)["__signature__"].parameters.values()
        init: Callable[..., Any] = target.__init__  # type: ignore[misc]  # of this very class
        return {p.name: (_evaluate(p.annotation, init), p.default is p.empty) for p in stated}
    found: dict[str, tuple[Any, bool]] = {}
    packages = {target.__module__.split(".")[0], __name__.split(".")[0]}
    passes_on = False
    for cls in target.__mro__:
        if "__init__" not in vars(cls) or cls.__module__.split(".")[0] not in packages:
            continue
        where = f"{cls.__module__}.{cls.__qualname__}"
        passes_on, init = False, vars(cls)["__init__"]
        for p in list(inspect.signature(init).parameters.values())[1:]:
            if p.kind is p.VAR_KEYWORD:
                passes_on = True
            elif p.kind is p.VAR_POSITIONAL or p.annotation is p.empty:
                raise TypeError(f"{where}: argument '{p.name}' has no annotation, so its value cannot be checked")
            else:
                found.setdefault(p.name, (_evaluate(p.annotation, init), p.default is p.empty))
        if not passes_on:
            return found
    if passes_on:
        raise TypeError(
            f"{target.__module__}.{target.__qualname__}: ** swallows misspelt keys; write the arguments out"
        )
    return found


def _evaluate(annotation: Any, function: Callable[..., Any]) -> Any:
    """A string annotation as the object it names. Names that exist only under TYPE_CHECKING belong to modules and
    tensors, which no YAML can hold: they come back as ``object``."""
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, function.__globals__)
    except NameError:
        return object


def arguments(values: Mapping[str, Any], target: type, key: str, supplied: Collection[str] = ()) -> dict[str, Any]:
    """The mapping ``values`` (found under ``key``) as arguments of ``target``, every one checked and converted.

    ``supplied`` are keywords that somebody else passes: they may be absent and must not be given. Raises ``UserError``
    for an unknown key, a wrong type, and a plain argument that has no default and no value.
    """
    dot = f"{key}." if key else ""
    known = parameters(target)
    yaml_able = [n for n, (annotation, _) in known.items() if is_plain(annotation) and n not in supplied]
    for name in values:
        if name in supplied and name in known:
            raise UserError(f"{dot}{name} is not a setting: the program sets it from the other parts; leave it out")
        if name not in yaml_able:
            # The whole dotted key, so that it can be pasted.
            own = did_you_mean(str(name), yaml_able).replace("mean '", f"mean '{dot}")
            own = own or f" {dot.rstrip('.') or 'this'} has no settings"
            hint = instead_of_key(f"{dot}{name}") or own
            raise UserError(f"unknown key '{dot}{name}';{hint}")
    for name in yaml_able:
        if known[name][1] and name not in values:
            raise UserError(f"{dot}{name} has no value: set {dot}{name}=... ({describe(known[name][0])})")
    return {name: convert(value, known[name][0], f"{dot}{name}") for name, value in values.items()}
