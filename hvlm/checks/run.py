"""Which checks belong to which room of a package, and what came of them."""

from __future__ import annotations

import linecache
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from hvlm.checks import contract, decoding, leaks, models, rooms
from hvlm.checks.tiny import ORDERS, Variant, cases_of, variants
from hvlm.config.compose import compose
from hvlm.config.packages import OURS, conf_of
from hvlm.config.rooms import ROOMS
from hvlm.config.search_path import CONF
from hvlm.errors import UserError

Check = Callable[[], None]


def said(check: Callable[..., None]) -> str:
    """A check's name in words."""
    return check.__name__.replace("_", " ")


# Without these a room cannot be built.
NEEDED = (
    said(contract.its_class_is_a_room), "it is a word of the command line",
    said(contract.it_has_what_its_contract_says),
)  # fmt: skip


class Outcome(NamedTuple):
    """What came of one check of one room; ``why`` where it is not ok."""

    room: str
    check: str
    result: Literal["ok", "failed", "skipped"]
    why: str = ""

    def __str__(self) -> str:
        return f"{self.result:<8}{self.room}: {self.check}" + (f": {self.why}" if self.why else "")


def outcomes(package: str = OURS) -> Iterator[Outcome]:
    """Run every check of every room of a package, one after the other.

    Args:
        package: hvlm, or one that ``hvlm.config.packages.allow`` allows.

    Raises:
        UserError: a package without a room.
    """
    conf = CONF if package == OURS else conf_of(package)
    found = [path for group in ROOMS for path in sorted((conf / group).glob("*.yaml"))] if conf else []
    if conf is None or not found:
        where = f"{conf or package + '/conf'}/<group>/<word>.yaml"
        raise UserError(f"{package}: has no room to check; a room is a class and a YAML, {where}")
    sound: dict[str, list[str]] = {group: [] for group in ROOMS}
    for path in found:
        variant = Variant(path.parent.name, path.stem, folder=conf)
        wrong = False
        for one in _of_a_yaml(variant, package):
            yield one
            wrong = wrong or (one.result == "failed" and one.check in NEEDED)
        if wrong:
            room = f"{variant.group}/{variant.name}"
            yield Outcome(room, "in a model", "skipped", "it cannot be built before what failed above is mended")
        else:
            sound[variant.group].append(variant.name)
    for group, words in sound.items():
        for variant in variants(group, conf, words) if words else []:
            for name, check in _of_a_room(variant):
                yield outcome(f"{group}/{variant.id}", name, check)


def _of_a_yaml(variant: Variant, package: str) -> Iterator[Outcome]:
    """The YAML by itself: a word that is found, of a class that is a room. Without one the rest says nothing."""
    room = f"{variant.group}/{variant.name}"
    found = outcome(room, NEEDED[0], lambda: contract.its_class_is_a_room(variant))
    yield found
    if found.result == "ok":
        yield outcome(room, NEEDED[1], partial(_composes, variant, package))
        for check in contract.CHECKS:
            yield outcome(room, said(check), partial(check, variant))


def _composes(variant: Variant, package: str) -> None:
    named = [] if package == OURS else [f"packages=[{package}]"]
    try:
        cfg = compose([*named, f"{variant.group}={variant.name}"])
    except UserError as error:
        if "is mandatory and has no value" in str(error):
            raise rooms.Skipped(str(error)) from error
        raise
    assert cfg[variant.group]["_target_"] == variant.written["_target_"]


def _of_a_room(variant: Variant) -> Iterator[tuple[str, Check]]:
    if variant.group in rooms.CHECKS:
        yield f"as a {variant.group}", partial(rooms.CHECKS[variant.group], variant)
    if variant.group == "kvcache":
        for order in ORDERS:
            whole = decoding.decoding_with_a_cache_is_argmax_over_the_whole_sequence
            yield f"{said(whole)}, {order}", partial(whole, variant, order)
        size = decoding.bytes_of_a_cache_are_what_is_allocated
        yield said(size), partial(size, variant)
    for case in cases_of(variant):
        others = [room.id for room in case.rooms if room != variant]
        where = ", ".join([*(f"with {other}" for other in others), case.order])
        for check in (*models.CHECKS, leaks.no_text_reaches_what_stands_before_it):
            yield f"{said(check)} ({where})", partial(check, case)
    models.shared_model.cache_clear()


def outcome(room: str, name: str, check: Check) -> Outcome:
    """One check run, whatever it raises."""
    try:
        check()
    except rooms.Skipped as error:
        return Outcome(room, name, "skipped", str(error))
    except (Exception, SystemExit) as error:  # a room of somebody else's may raise anything
        return Outcome(room, name, "failed", _reason(error))
    return Outcome(room, name, "ok")


def _reason(error: BaseException) -> str:
    """The first line of what was raised (of tensors that differ, how far), or the assert itself where that has no
    words, and the last line that ran, outside torch's own comparison."""
    frames = traceback.extract_tb(error.__traceback__)
    frame = next((f for f in reversed(frames) if "torch/testing" not in Path(f.filename).as_posix()), frames[-1])
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    kind = "" if isinstance(error, AssertionError | UserError) else f"{type(error).__name__}: "
    far = [line for line in lines[1:] if line.startswith("Greatest absolute difference")]
    if far:
        text = f"{lines[0].rstrip('!.')}, {far[0]}"
    else:
        text = lines[0] if lines else (frame.line or linecache.getline(frame.filename, frame.lineno or 0)).strip()
    return f"{kind}{text} ({'/'.join(Path(frame.filename).parts[-3:])}:{frame.lineno})"
