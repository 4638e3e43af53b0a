"""hvlm: efficient long-video vision-language models, from the command line."""

from __future__ import annotations

from typing import Any

_PUBLIC = {"FoveatedVLM": "hvlm.fvlm", "transform": "hvlm.pixels"}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    """Imported when it is asked for: ``import hvlm`` alone stays fast."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'hvlm' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_PUBLIC[name]), name)
