"""What a room of each group must have and what it may have.

A class of ``hvlm/<group>/`` derives from its group's base here. What is abstract or only annotated a room must have;
what has a value here it may leave as it is. ``hvlm/config/rooms.py`` lists the groups, ``CONTRACTS`` has the base of
each, and ``tests/test_contracts.py`` checks every variant against it.
"""

from __future__ import annotations

from hvlm.config.rooms import ROOMS
from hvlm.contracts.corridor import Attention, Connector, Fusion, Merger, Vision
from hvlm.contracts.data import Benchmark, Dataset
from hvlm.contracts.head import Head, Stage
from hvlm.contracts.language import Adapter, KVCache, Language
from hvlm.contracts.room import BASES, FromSource, Module, Room

__all__ = [
    "CONTRACTS",
    "PARTS",
    "Adapter",
    "Attention",
    "Benchmark",
    "Connector",
    "Dataset",
    "FromSource",
    "Fusion",
    "Head",
    "KVCache",
    "Language",
    "Merger",
    "Module",
    "Room",
    "Stage",
    "Vision",
]

CONTRACTS: dict[str, type[Room]] = {group: BASES[group] for group in ROOMS}
# The parts of a model: each is an attribute of ``hvlm.model.VLM`` under its group's name.
PARTS = tuple(group for group, base in CONTRACTS.items() if issubclass(base, Module))
