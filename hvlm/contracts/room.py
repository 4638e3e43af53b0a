"""What the contracts of all groups share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import nn

BASES: dict[str, type[Room]] = {}  # of each group, as they are defined


class Room:
    """What all groups share: a base says its group with ``class Merger(Room, group="merger")``."""

    group: ClassVar[str]

    def __init_subclass__(cls, group: str | None = None, **more: Any) -> None:
        super().__init_subclass__(**more)
        if group is not None:
            cls.group = group
            BASES[group] = cls


class Module(Room, nn.Module):
    """A room with weights.

    part: the name under which ``stage.trainable`` finds the weights. Any module inside a room may say another one, and
        it holds for everything below that module.
    nested: settings that hold those of further rooms, which the constructor checks as such.
    fixed: the setting because of which the weights cannot train; empty where they can.
    """

    nested: ClassVar[tuple[str, ...]] = ()
    part: ClassVar[str]
    fixed: str = ""


@runtime_checkable
class MovesByStep(Protocol):
    """A module, in a room or the room itself, with numbers of its own that move once with every optimiser step.

    They stay what they are while the parts of a step (``trainer.accumulate``) are computed, so that a step is the same
    in however many parts. Who trains the room without a stage calls ``end_step`` before ``optimizer.step()``.
    """

    def end_step(self) -> None:
        """Move by what the parts of the step have shown. Called once a step, by all processes, after its last backward
        pass; what was shown in a step that is left out has been taken back before (``training/guard.py``)."""


class FromSource(Module):
    """A room whose sizes may come from where its weights come from.

    source_config: what the source itself says of the model, its config.json as plain values; None where the room's
        settings say everything. A checkpoint keeps it beside the weights and hands it to the constructor again, so
        that the model is built without the source at hand.
    """

    source_config: dict[str, Any] | None = None

    @classmethod
    def read_source_config(cls, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """Read what the configured source says of the model, without its weights. By default there is nothing to read.

        Args:
            settings: the room's own, checked.

        Raises:
            UserError: a source that is not there, or is none that the room can be built from.
        """
        return None
