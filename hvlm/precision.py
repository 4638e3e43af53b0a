"""Which number format a run computes in, and the context of a forward pass in it."""

from __future__ import annotations

import contextlib
import platform
from pathlib import Path

import torch

from hvlm.errors import UserError

# What a run may compute in, each for training and evaluation alike: weights stay float32, and what autocast knows to be
# safe is computed in the dtype that stands here.
DTYPES = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def has_fast_bf16(maker: str | None = None) -> bool:
    """Whether this processor multiplies faster in bfloat16 than in float32: one with AMX, or with AVX512-BF16 where
    Intel did not make it.

    On a Xeon whose AMX a virtual machine hides, large products in bfloat16 came at half the rate of float32, and the
    demo's steps took 1.3 times as long (``python -m experiments.speed --only precision --threads 1``). maker: None asks
    this machine.
    """
    if torch.cpu._is_amx_tile_supported():
        return True
    return torch.cpu._is_avx512_bf16_supported() and "Intel" not in (processor_maker() if maker is None else maker)


def processor_maker() -> str:
    """``GenuineIntel``, ``AuthenticAMD``, or whatever the system says of its processor; "" where it says nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")


def choose_precision(precision: str, accelerator: str) -> tuple[str, str]:
    """(one of ``DTYPES``, why). float16 on a CPU is refused: it is slower than float32 there and overflows."""
    on_cpu = accelerator == "cpu" or not torch.cuda.is_available()
    if on_cpu and precision.startswith("16"):
        raise UserError(f"trainer.precision={precision} needs a GPU; on a CPU use trainer.precision=auto or 32-true")
    if precision != "auto":
        return precision, "as asked"
    if on_cpu:
        if has_fast_bf16():
            return "bf16-mixed", "this processor is faster in bfloat16"
        return "32-true", "this processor is not faster in bfloat16"
    if torch.cuda.is_bf16_supported():
        return "bf16-mixed", "this GPU computes in bfloat16"
    return "32-true", "this GPU has no bfloat16 arithmetic"


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """The context of a forward pass in one of ``DTYPES``."""
    if precision not in DTYPES:
        raise UserError(f"precision={precision}: expected one of {', '.join(DTYPES)}")
    if precision == "32-true":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])
