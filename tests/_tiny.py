"""Models of a few thousand weights, and batches for them: those of ``hvlm check``."""

from pathlib import Path

from hvlm.checks.tiny import (  # noqa: F401
    ASKED,
    CONF,
    CONFIGS,
    FURTHER,
    ORDERS,
    SIZES,
    USUAL,
    WORDS,
    Case,
    Variant,
    batch_of,
    cases,
    cases_of,
    chat,
    clip,
    model,
    per_row,
    side,
    target,
    two_clips,
    variants,
)

ROOT = Path(__file__).parent.parent
