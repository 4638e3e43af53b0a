"""hvlm: efficient long-video vision-language models, from the command line and from Python (docs/library.md)."""

from __future__ import annotations

import os
from typing import Any

# On Linux torch then asks for huge pages for tensors of 2 MB and more, read when it first allocates one: a long clip is
# encoded in half the system time. A value that is set already stays.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

_PUBLIC = {
    "load": "hvlm.api.load", "build": "hvlm.api.build", "Model": "hvlm.api.model",
    "FoveatedVLM": "hvlm.interop.fvlm", "transform": "hvlm.image",
}  # fmt: skip
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    """Imported when it is asked for: ``import hvlm`` alone stays fast."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'hvlm' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_PUBLIC[name]), name)
