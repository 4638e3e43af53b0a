"""Where the time of a training step goes (``trainer.profile=true``), and how much of the machine it uses.

One clock, whose time belongs to exactly one label: what begins inside something else takes over until it
ends. So the rows sum to the step, "rest" among them. On a GPU the clock is CUDA events in the stream, which are read
when they have passed: nothing waits, and waiting for data is what the GPU waited.
"""

from __future__ import annotations

import functools
import json
import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.profilers import Profiler
from torch.utils.flop_counter import sdpa_backward_flop_count

from hvlm.evaluation.cost import CountFlops
from hvlm.evaluation.results import peak_rss_mb
from hvlm.io.files import write_text
from hvlm.precision import DTYPES
from hvlm.training.parts import ENTRIES, Replaced
from hvlm.types import Batch

log = logging.getLogger(__name__)

FILE = "profile.json"
WARM = 2  # optimiser steps before anything counts: workers start, memory is first asked for, kernels are chosen
COUNTED_EVERY = 100  # one optimiser step in so many has its operations counted, which is slow, so its time is not
DATA, REST_OF_FORWARD, BACKWARD, OPTIMISER, LOGGING, REST = (
    "data",
    "rest of the forward pass",
    "backward",
    "optimiser",
    "logging",
    "rest",
)
STEP = (DATA, *ENTRIES, "reference", REST_OF_FORWARD, BACKWARD, OPTIMISER, LOGGING, REST)
BESIDE = ("validation", "checkpoint", "not timed")  # of the stage, but not of a step

# What Lightning calls it, by its end, and the label; the first that fits.
ACTIONS = (
    ("train_dataloader_next", DATA),
    ("batch_to_device", DATA),
    ("batch_transfer", DATA),
    (".backward", BACKWARD),
    (".on_before_optimizer_step", OPTIMISER),
    (".optimizer_step", OPTIMISER),
    (".configure_gradient_clipping", OPTIMISER),
    (".optimizer_zero_grad", OPTIMISER),
    (".lr_scheduler_step", OPTIMISER),
    (".training_step", REST_OF_FORWARD),
    ("save_checkpoint", "checkpoint"),
    (".on_train_epoch_end", "not timed"),  # once, at the end of the stage
    (".on_train_end", "not timed"),
)


def label_of(action: str) -> str | None:
    """The label of something that Lightning's profiler is told of; None: it belongs to what it is in."""
    for end, label in ACTIONS:
        if action.endswith(end):
            return label
    return LOGGING if action.startswith("[Callback]") else None


class Clock:
    """Seconds by label.

    now: a mark; between: the seconds between two marks, or None while they are not known yet. By default those of the
    processor's clock.
    """

    def __init__(
        self,
        now: Callable[[], Any] = time.perf_counter,
        between: Callable[[Any, Any], float | None] = lambda a, b: b - a,
    ) -> None:
        self._now, self._between = now, between
        self.seconds: dict[str, float] = defaultdict(float)
        self.forced: list[str] = []  # the label of everything, whatever begins inside
        self._stack: list[str] = []
        self._mark: Any = None
        self._pending: deque[tuple[Any, Any, str]] = deque()

    @classmethod
    def on(cls, device: torch.device) -> Clock:
        """The clock of a device."""
        if device.type != "cuda":
            return cls()

        def now() -> Any:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            return event

        return cls(now, lambda a, b: a.elapsed_time(b) / 1e3 if b.query() else None)

    @property
    def label(self) -> str:
        """To whom the time belongs now."""
        return self.forced[-1] if self.forced else self._stack[-1] if self._stack else REST

    def start(self) -> None:
        self._stack, self.forced, self._mark = [], [], self._now()

    def stop(self) -> None:
        self._turn()
        self._mark = None
        self.read()

    @contextmanager
    def inside(self, label: str | None, forced: bool = False) -> Iterator[None]:
        """The block's time is ``label``'s (None: stays whose it is)."""
        stack = self.forced if forced else self._stack
        self._turn()
        stack.append(self.label if label is None else label)
        try:
            yield
        finally:
            self._turn()
            if stack:  # empty: the clock was started anew inside
                stack.pop()

    def _turn(self) -> None:
        """The time since the last mark goes to whose it was."""
        if self._mark is None:
            return
        mark = self._now()
        self._pending.append((self._mark, mark, self.label))
        self._mark = mark
        self.read()

    def read(self) -> None:
        """Add up what is known by now."""
        while self._pending:
            begin, end, label = self._pending[0]
            took = self._between(begin, end)
            if took is None:
                return
            self.seconds[label] += took
            self._pending.popleft()


class StepProfiler(Profiler):
    """Hands on to the clock what Lightning says it is doing."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.counting: CountStep | None = None  # counts the operations of the batch under way
        self._open: dict[str, list[Any]] = defaultdict(list)

    def start(self, action_name: str) -> None:
        label = label_of(action_name)
        block = self.clock.inside(label, forced=label in BESIDE)
        block.__enter__()
        blocks = [block]
        if action_name == "run_training_batch" and self.counting is not None:
            self.counting.__enter__()
            blocks.append(self.counting)
        self._open[action_name].append(blocks)

    def stop(self, action_name: str) -> None:
        if self._open[action_name]:
            for block in reversed(self._open[action_name].pop()):
                block.__exit__(None, None, None)

    def summary(self) -> str:
        return ""

    def describe(self) -> None:
        """Said by ``Profile``, at the end of the stage."""


class CountStep(CountFlops):
    """Operations by the clock's label; those of the backward pass that compute activations again stand apart."""

    AGAIN = "again"

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self.by_label: dict[str, int] = defaultdict(int)
        self.label: Callable[[], str] = lambda: clock._stack[-1] if clock._stack else REST  # under "not timed"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self.total
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if func._overloadpacket is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward:
            self.total += sdpa_backward_flop_count(*(tensor.shape for tensor in args[:4]))
        if self.total > before:
            label = self.label()
            # A backward pass computes without gradients, but for what it computes again.
            again = label == BACKWARD and torch.is_grad_enabled()
            self.by_label[self.AGAIN if again else label] += self.total - before
        return out


class Profile(Callback):
    """Times a stage's steps, and says and writes the table at its end.

    Args:
        profiler: what the trainer was made with.
        folder: where ``profile.json`` is written.

    Of several processes each times itself; the first one's is written, and its backward pass holds the waiting for the
    others' gradients.
    """

    def __init__(self, profiler: StepProfiler, folder: Path, warm: int = WARM, every: int = COUNTED_EVERY) -> None:
        self.profiler, self.path = profiler, Path(folder) / FILE
        self.warm, self.every = warm, every
        self._replaced = Replaced()

    # -- a stage -------------------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        device = pl_module.device
        self.profiler.clock = clock = Clock.on(device)
        self._dtype = DTYPES.get(trainer.precision) or torch.float32
        self._peak = matmul_peak(device, self._dtype)
        self._began_at, self._done, self._steps, self._clips = trainer.global_step, 0, 0, 0
        self._rests: list[dict[str, float]] = []
        self._counts: list[dict[str, int]] = []
        model = pl_module.model

        def timed(label: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
            def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
                @functools.wraps(function)
                def call(*args: Any, **kwargs: Any) -> Any:
                    with clock.inside(label):
                        return function(*args, **kwargs)

                return call

            return wrap

        rooms = dict(model.named_children())
        for part, names in ENTRIES.items():
            room = rooms.get(part)
            for name in names:
                if hasattr(room, name):
                    self._replaced.put(room, name, timed(part))
        if model.features is not None:
            self._replaced.put(model.features, "encode", timed("vision"))
        for reference in getattr(pl_module, "_reference", ()):
            self._replaced.put(reference, "token_logprobs", timed("reference"))
        for logger in trainer.loggers:
            for name in ("log_metrics", "save"):
                self._replaced.put(logger, name, timed(LOGGING))

        def beside(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                with clock.inside("validation", forced=True):
                    return function(*args, **kwargs)

            return call

        self._replaced.put(trainer.fit_loop.epoch_loop.val_loop, "run", beside)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.profiler.clock.start()
        self._not_timed()  # the first steps

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        clock = self.profiler.clock
        if not clock.forced:
            self._clips += batch.num_clips * trainer.world_size
        if trainer.global_step - self._began_at == self._done:  # a part of an optimiser step
            return
        self._done = trainer.global_step - self._began_at
        if self.profiler.counting is not None:
            self._counts.append(dict(self.profiler.counting.by_label))
            self.profiler.counting = None
        if not clock.forced:
            self._steps += 1
        counted = self._done == self.warm - 1 or (self._done >= self.warm and (self._done + 1) % self.every == 0)
        if counted:
            self.profiler.counting = CountStep(clock)
        if counted or self._done < self.warm:
            self._not_timed()
        elif clock.forced:
            clock._turn()
            clock.forced.clear()

    def _not_timed(self) -> None:
        clock = self.profiler.clock
        if not clock.forced:
            clock._turn()
            clock.forced.append("not timed")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        clock = self.profiler.clock
        clock.stop()
        if pl_module.device.type == "cuda":  # the stage is over
            torch.cuda.synchronize(pl_module.device)
            clock.read()
        self._peak = max(self._peak, matmul_peak(pl_module.device, self._dtype))
        if not trainer.is_global_zero:
            return
        found = self.found(trainer, pl_module)
        write_text(self.path, json.dumps(found, indent=2) + "\n")
        if not self._steps:
            log.info(
                f"trainer.profile: no step was timed, for the first {self.warm} are not, and {self._done} were made"
            )
            return
        for line in table(found):
            log.info(line)
        rows = {f"profile/{label}_s".replace(" ", "_"): row["seconds"] for label, row in found["step"].items()}
        numbers = rows | {f"profile/{k}": found[k] for k in ("seconds_per_step", "mfu") if found[k] is not None}
        for logger in trainer.loggers:
            logger.log_metrics(numbers, trainer.global_step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._replaced.back()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self.profiler.counting is not None:
            self.profiler.counting = None
        self._replaced.back()

    # -- what was found ------------------------------------------------------------------------------------------------

    def found(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What ``profile.json`` says: seconds of one optimiser step by label, their shares, operations, MFU, memory.

        flops_per_step: of one process, from the operations that ran (``hvlm.evaluation.cost.CountFlops``), forward and
        backward; what is computed again under activation checkpointing is ``flops_again``, and does not count for
        ``mfu`` = flops_per_step / seconds_per_step / matmul_peak.
        """
        seconds, steps = self.profiler.clock.seconds, max(self._steps, 1)
        total = sum(seconds[label] for label in STEP) / steps
        flops = {label: _mean([c.get(label, 0) for c in self._counts]) for label in (*STEP, CountStep.AGAIN)}
        again = flops.pop(CountStep.AGAIN)
        whole = sum(flops.values())
        rows = {
            label: {
                "seconds": seconds[label] / steps,
                "share": seconds[label] / steps / total if total else 0.0,
                "flops": flops[label],
            }
            for label in STEP
            if seconds[label] or flops[label]
        }
        device = pl_module.device
        cuda = device.type == "cuda"
        memory = torch.cuda.max_memory_allocated(device) / 2**20 if cuda else peak_rss_mb(children=False)
        return {
            "steps": self._steps,
            "steps_not_timed": self._done - self._steps,
            "steps_counted": len(self._counts),
            "seconds_per_step": total,
            "samples_per_s": self._clips / steps / total if total else None,
            "step": rows,
            "beside": {label: seconds[label] for label in BESIDE},
            "flops_per_step": whole,
            "flops_again": again,
            "matmul_peak": self._peak,
            "mfu": whole / total / self._peak if total and self._counts else None,
            "peak_mb": memory,
            "device": torch.cuda.get_device_name(device) if cuda else "cpu",
            "precision": str(trainer.precision),
            "threads": torch.get_num_threads(),
            "processes": trainer.world_size,
        }


def table(found: dict[str, Any]) -> list[str]:
    """Lines for the log."""
    several = f" of the first of {found['processes']} processes" if found["processes"] > 1 else ""
    lines = [f"a step{several} takes {1e3 * found['seconds_per_step']:.1f} ms, mean of {found['steps']}:"]
    for label, row in found["step"].items():
        speed = f"{row['flops'] / row['seconds'] / 1e9:9.1f} GFLOP/s" if row["flops"] and row["seconds"] else ""
        lines.append(f"  {label:26s}{1e3 * row['seconds']:10.2f} ms {100 * row['share']:6.1f} %  {speed}".rstrip())
    if found["mfu"] is not None:
        lines.append(
            f"  MFU {100 * found['mfu']:.1f} % of {found['matmul_peak'] / 1e9:.0f} GFLOP/s (a matrix product here, "
            f"{found['precision']}); peak memory {found['peak_mb']:.0f} MB"
        )
    return lines


def matmul_peak(device: torch.device, dtype: torch.dtype = torch.float32, seconds: float = 0.3) -> float:
    """Operations a second of the fastest of several large matrix products on the device, in ``dtype``."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best, began = float("inf"), time.perf_counter()
    with torch.no_grad():
        while time.perf_counter() - began < seconds or best == float("inf"):
            _wait(device)
            started = time.perf_counter()
            a @ b
            _wait(device)
            best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _mean(values: list[int]) -> float:
    return sum(values) / len(values) if values else 0.0
