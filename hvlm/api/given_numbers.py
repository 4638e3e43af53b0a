"""Numbers that a program gives, checked."""

from __future__ import annotations

import math
from numbers import Real

from hvlm.errors import UserError
from hvlm.evaluation.sampling import Sampling


def positive(number: int, name: str = "max_new_tokens") -> int:
    """The number, checked: whole, 1 or more. UserError names the argument ``name``."""
    if not isinstance(number, int) or number < 1:
        raise UserError(f"{name}={number!r}: expected a whole number, 1 or more")
    return number


def sampling(temperature: float, top_p: float, seed: int) -> Sampling:
    """How the next token is drawn.

    Args:
        temperature: what logits are divided by; 0 takes the likeliest token.
        top_p: of the likeliest tokens as many as together have this probability; 1: all.
        seed: of the draws.

    Raises:
        UserError: a number out of its range, or one that would do nothing.
    """
    numbers = all(isinstance(value, Real) for value in (temperature, top_p))
    if not numbers or not 0 <= temperature < math.inf or not 0 < top_p <= 1:
        raise UserError(f"temperature={temperature}, top_p={top_p}: expected 0 or more, and above 0 up to 1")
    if temperature == 0 and top_p < 1:
        raise UserError(f"top_p={top_p}: with temperature=0 the likeliest word is taken; give temperature=1")
    if not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise UserError(f"seed={seed!r}: expected a whole number, 0 or more")
    return Sampling(temperature, top_p, seed)
