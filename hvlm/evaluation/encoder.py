"""How often the vision encoder works while questions are asked: counted, and once for each clip."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class Count:
    """frames: valid ones that went through the encoder."""

    def __init__(self) -> None:
        self.frames = 0


@contextmanager
def counted(vision: nn.Module) -> Iterator[Count]:
    """Inside the block, frames that are encoded are counted."""
    count = Count()

    def around(encode: Callable[..., Any], frames: Tensor, time: Tensor, mask: Tensor, *more: Any, **how: Any) -> Any:
        count.frames += int(mask.sum())
        return encode(frames, time, mask, *more, **how)

    with _in_place(vision, around):
        yield count


@contextmanager
def once(vision: nn.Module | None) -> Iterator[None]:
    """Inside the block, a tensor of frames that comes a second time is not encoded again. None: nothing happens."""
    if vision is None:
        yield
        return
    known: list[tuple[Tensor, Any]] = []

    def around(encode: Callable[..., Any], frames: Tensor, *more: Any, **how: Any) -> Any:
        for before, encoded in known:
            if before is frames:
                return encoded
        known.append((frames, encode(frames, *more, **how)))
        return known[-1][1]

    with _in_place(vision, around):
        yield


@contextmanager
def _in_place(vision: nn.Module, around: Callable[..., Any]) -> Iterator[None]:
    """``vision.encode`` goes through ``around(encode, ...)``."""
    own, encode = vars(vision).get("encode"), vision.encode
    vision.encode = lambda *args, **how: around(encode, *args, **how)  # type: ignore[assignment]
    try:
        yield
    finally:
        if own is None:
            del vision.encode
        else:
            vision.encode = own
