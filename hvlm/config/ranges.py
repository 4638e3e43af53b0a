"""Ranges that stand with the types: ``steps: PositiveInt`` says what a setting may be, where its type is said.

A marker inside ``Annotated`` is checked by ``hvlm.config.schema`` together with the type, so that a number out of range
is refused in one line before any work, wherever the configuration comes from. Constructors that are called from Python
are not checked: the annotation is what they promise to work with.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Protocol


class Check(Protocol):
    """A marker of ``Annotated``: whether a value is in range, and the range in words."""

    def holds(self, value: Any) -> bool: ...

    def __str__(self) -> str: ...


@dataclass(frozen=True)
class Ge:
    """At least ``least``."""

    least: float

    def holds(self, value: float) -> bool:
        return value >= self.least

    def __str__(self) -> str:
        return f"of {self.least:g} or more"


@dataclass(frozen=True)
class Gt:
    """Above ``bound``."""

    bound: float

    def holds(self, value: float) -> bool:
        return value > self.bound

    def __str__(self) -> str:
        return f"above {self.bound:g}"


@dataclass(frozen=True)
class Le:
    """At most ``most``."""

    most: float

    def holds(self, value: float) -> bool:
        return value <= self.most

    def __str__(self) -> str:
        return f"at most {self.most:g}"


@dataclass(frozen=True)
class Lt:
    """Below ``bound``."""

    bound: float

    def holds(self, value: float) -> bool:
        return value < self.bound

    def __str__(self) -> str:
        return f"below {self.bound:g}"


@dataclass(frozen=True)
class AnySign:
    """No bound at all: for a number that means something below 0, too."""

    def holds(self, value: float) -> bool:
        return True

    def __str__(self) -> str:
        return "of either sign"


@dataclass(frozen=True)
class MinLen:
    """A list, map or text with at least ``least`` entries or characters."""

    least: int

    def holds(self, value: Any) -> bool:
        return len(value) >= self.least

    def __str__(self) -> str:
        return "that is not empty" if self.least == 1 else f"with {self.least} entries or more"


@dataclass(frozen=True)
class Written:
    """A text that ``pattern`` matches whole; ``words`` says how it is to be written."""

    pattern: str
    words: str

    def holds(self, value: str) -> bool:
        return re.fullmatch(self.pattern, value) is not None

    def __str__(self) -> str:
        return f"written as {self.words}"


PositiveInt = Annotated[int, Ge(1)]
NonNegativeInt = Annotated[int, Ge(0)]
Width = Annotated[int, Ge(1), Le(65536)]  # of what is added to a layer: beyond any that is of use, and still memory
PositiveFloat = Annotated[float, Gt(0)]
FramesPerSecond = Annotated[float, Gt(0), Le(1000)]  # beyond any camera
NonNegativeFloat = Annotated[float, Ge(0)]
AnyInt = Annotated[int, AnySign()]
AnyFloat = Annotated[float, AnySign()]
Fraction = Annotated[float, Ge(0), Le(1)]  # a share that may be nothing or all
Share = Annotated[float, Gt(0), Le(1)]  # a share of which something must remain
Probability = Annotated[float, Ge(0), Lt(1)]  # of dropping something: never all
Seed = Annotated[int, Ge(0), Lt(2**32)]  # what numpy, torch and Python's random all take
