"""The parts of a model while they train: compiled, computed again in the backward pass, and timed, each by its name.

What is called of a part stands in ``ENTRIES``. It is replaced on the one object for the time of ``fit``, as an
attribute of the instance: modules, parameters and the names in a checkpoint stay as they are.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.checkpoint import checkpoint

from hvlm.config.schema import did_you_mean
from hvlm.errors import UserError

# {part: what the backbone and the stages call of it}
ENTRIES: dict[str, tuple[str, ...]] = {
    "vision": ("encode",),
    "merger": ("forward",),
    "connector": ("forward",),
    "attention": ("forward",),
    "fusion": ("forward",),
    "language": ("embed", "hidden"),
    "head": ("forward", "loss"),
}
COMPILED = {part: entries[-1:] if part == "language" else entries[:1] for part, entries in ENTRIES.items()}
CHECKPOINTED = ("vision", "connector", "attention", "fusion", "language")  # the others hold next to nothing


def asked(trainer: Mapping[str, Any], key: str) -> list[str]:
    """The parts that ``trainer.<key>`` turns on."""
    return [part for part, on in (trainer[key] or {}).items() if on]


def check_parts(trainer: Mapping[str, Any]) -> None:
    """``UserError`` for parts that do not exist, and for compiling where nothing can compile."""
    for key, known in (("compile", tuple(ENTRIES)), ("checkpoint_activations", CHECKPOINTED)):
        for part in trainer[key] or {}:
            if part not in known:
                raise UserError(f"trainer.{key} names {part!r}, and no part is called so;{did_you_mean(part, known)}")
    if not asked(trainer, "compile"):
        return
    if trainer["strategy"] == "fsdp":
        raise UserError(
            "trainer.compile: with trainer=fsdp the weights of a part are gathered while it runs, which is not "
            "compiled here; leave trainer.compile out, or use trainer=ddp"
        )
    compiler = os.environ.get("CXX", "g++")
    if not torch.cuda.is_available() and shutil.which(compiler) is None:
        raise UserError(
            f"trainer.compile: on a CPU torch.compile needs a C++ compiler, and there is no {compiler}; install one, "
            "say which by the environment variable CXX, or leave trainer.compile out"
        )


class Replaced:
    """Methods that were replaced on their objects, to be put back."""

    def __init__(self) -> None:
        self._before: list[tuple[Any, str]] = []

    def put(self, owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Replace ``owner.name`` by ``make`` of what it is now."""
        if name not in vars(owner):
            self._before.append((owner, name))
        object.__setattr__(owner, name, make(getattr(owner, name)))

    def back(self) -> None:
        for owner, name in self._before:
            object.__delattr__(owner, name)
        self._before = []


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` compiled where gradients are computed, and as it is elsewhere: validation, writing and a reference's
    pass have caches and lengths of their own, and nothing of them is worth the time that compiling takes.

    Sizes are constants until they are seen to change, lengths with the second batch, and the frames' sides never: where
    all sizes may change from the start (``dynamic=True``), torch 2.13 cannot compile convolutions over sides it does
    not know (``ValueRangeError``)."""
    fast = torch.compile(function)

    @functools.wraps(function)
    def either(*args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled() and _get_current_dispatch_mode() is None:
            return fast(*args, **kwargs)
        return function(*args, **kwargs)

    return either


def computed_again(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` whose activations are not kept for the backward pass. A connector's running statistics see
    everything twice, which leaves them as they are."""

    @functools.wraps(function)
    def again(*args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            return checkpoint(function, *args, use_reentrant=False, **kwargs)
        return function(*args, **kwargs)

    return again


@contextmanager
def said_to_train(layers: list[nn.Module]) -> Iterator[None]:
    """Inside the block the layers themselves (not what is in them) are in training mode, without which transformers
    computes nothing again: a frozen or a preferring model is in evaluation mode, and its activations are kept, too."""
    before = [layer.training for layer in layers]
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer, mode in zip(layers, before, strict=True):
            layer.training = mode


def checkpoint_activations(model: nn.Module, parts: list[str], replaced: Replaced) -> None:
    """Compute the activations of these parts again in the backward pass: layer by layer where a room does that
    (language, attention, all of vision but convvit), else the whole room."""
    rooms = dict(model.named_children())
    for part in parts:
        room: Any = rooms.get(part)
        if room is None:
            continue
        if hasattr(room, "checkpoint_layers"):
            layers = room.checkpoint_layers()

            def marked(function: Callable[..., Any], layers: list[nn.Module] = layers) -> Callable[..., Any]:
                def call(*args: Any, **kwargs: Any) -> Any:
                    with said_to_train(layers if torch.is_grad_enabled() else []):
                        return function(*args, **kwargs)

                return functools.wraps(function)(call)

            replaced.put(room, "hidden", marked)
        elif "gradient_checkpointing" in vars(room):  # of its own, not the contract's word that it does not
            room.gradient_checkpointing = True
        elif any(True for _ in room.parameters()):
            replaced.put(room, "encode" if part == "vision" else "forward", computed_again)


class Parts(Callback):
    """Does to the parts what ``trainer.compile`` and ``trainer.checkpoint_activations`` say, while a stage trains.

    A stage makes its reference of the model before (``configure_model``), so that one stays as it is.
    """

    def __init__(self, compile: list[str], checkpoint: list[str]) -> None:
        self.compile, self.checkpoint = compile, checkpoint
        self._replaced = Replaced()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        model = pl_module.model
        checkpoint_activations(model, self.checkpoint, self._replaced)
        rooms = dict(model.named_children())
        for part in self.compile:
            if (room := rooms.get(part)) is not None:
                for name in COMPILED[part]:
                    self._replaced.put(room, name, compiled)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.checkpoint and getattr(batch, "adapter_K", None) is not None:
            raise UserError(
                "trainer.checkpoint_activations: rows cannot choose their adapter weights under it, whose second pass "
                "no longer knows the choice; train one set at a time, or leave it out"
            )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._replaced.back()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._replaced.back()
