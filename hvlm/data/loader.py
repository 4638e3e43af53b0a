"""A torch DataLoader that knows its length, starts anywhere, and fails with one clear line."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data._utils import signal_handling

from hvlm.data.order import InOrder, Order
from hvlm.data.reader import Failure, Reader
from hvlm.errors import UserError
from hvlm.types import Batch

Units = Callable[[Batch], Mapping[str, float]]  # of a stage: {term of the loss: its units in the batch}


def _as_is(batch: Any) -> Any:
    return batch


class Loader:
    """Iterates over batches; ``len`` is the whole run's length even when it starts in the middle of it.

    num_workers: processes that read and decode (0: in this process, without ``timeout``). timeout: seconds after which
    a batch that does not come (a decoder that hangs, a dead disk) is an error that names the clips being read.
    accumulate, units: see ``counted``.
    """

    def __init__(
        self,
        reader: Reader,
        sampler: Order | InOrder,
        *,
        num_workers: int,
        timeout: float,
        accumulate: int = 1,
        units: Units | None = None,
    ) -> None:
        self.accumulate, self.units = accumulate, units
        # Not named ``sampler``: Lightning would take this for a torch DataLoader and look for its parts.
        self.reader, self.order, self.num_workers, self.timeout = reader, sampler, num_workers, timeout

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        busy = multiprocessing.Array("q", [-1] * max(1, self.num_workers), lock=False)
        self.reader.busy = busy
        loader = _torch_loader(self.reader, self.num_workers, self.timeout, batch_sampler=self.order)
        try:
            yield from counted(_batches(loader), self.accumulate, self.units)
        except RuntimeError as error:
            if "DataLoader" not in str(error):
                raise
            clips = self.reader.clips
            keys = ", ".join(f"{clips.shards[i]}:{clips.keys[i]}" for i in busy if i >= 0) or "none"
            raise UserError(f"{str(error).splitlines()[0]} Clips that the workers were reading: {keys}") from error


class StreamLoader:
    """The same over an iterable dataset that makes whole batches, cut at ``steps`` of ``accumulate`` batches each
    (``start`` of them already done)."""

    def __init__(
        self,
        stream: IterableDataset,
        *,
        steps: int,
        start: int,
        num_workers: int,
        timeout: float,
        accumulate: int = 1,
        units: Units | None = None,
    ) -> None:
        self.stream, self.steps, self.start = stream, steps, start
        self.num_workers, self.timeout = num_workers, timeout
        self.accumulate, self.units = accumulate, units

    def __len__(self) -> int:
        return self.steps * self.accumulate

    def __iter__(self) -> Iterator[Batch]:
        loader = _torch_loader(self.stream, self.num_workers, self.timeout, batch_size=None)
        batches = islice(_batches(loader), (self.steps - self.start) * self.accumulate)
        return counted(batches, self.accumulate, self.units)


def counted(batches: Iterator[Batch], accumulate: int, units: Units | None) -> Iterator[Batch]:
    """The same batches, each with the ``step_units`` of the ``accumulate`` batches that make up its optimiser step.

    They are read ahead: what the loss is divided by must be known before the first of them is learned from. The price
    is the memory of a whole step's pixels, uint8, beside the model's.
    """
    if accumulate == 1 or units is None:
        yield from batches
        return
    while step := list(islice(batches, accumulate)):
        each = [units(batch) for batch in step]
        summed = {name: float(sum(part[name] for part in each)) for name in each[0]}
        yield from (batch._replace(step_units=summed) for batch in step)


def _torch_loader(dataset: Any, num_workers: int, timeout: float, **how: Any) -> DataLoader:
    if num_workers:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one thread per worker; no warning about the fork
        if signal.getsignal(signal.SIGCHLD) in (signal.SIG_DFL, None):
            # A finished Trainer takes away the handler by which torch notices dead workers at once; have it set again.
            signal_handling._SIGCHLD_handler_set = False
    return DataLoader(
        dataset,
        collate_fn=_as_is,
        num_workers=num_workers,
        timeout=timeout if num_workers else 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_by_itself if num_workers else None,
        generator=torch.Generator(),  # else each iterator would draw its seed from the global one
        **how,
    )


def _by_itself(worker: int) -> None:
    """A group of its own: a signal that asks a whole run to stop (Ctrl-C, ``timeout``) is for the process that trains,
    which finishes its step with what is read for it."""
    os.setpgid(0, 0)


def _batches(loader: DataLoader) -> Iterator[Batch]:
    for batch in loader:
        if isinstance(batch, Failure):
            raise UserError(batch.message)
        if batch is not None:
            yield batch
