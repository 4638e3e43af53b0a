"""How step sizes start (Gu & Dao 2023): log-uniform from 0.001 to 0.1, given as the bias whose softplus they are."""

from __future__ import annotations

import math

import torch
from torch import Tensor

DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 0.1, 1e-4


def dt_bias(channels: int) -> Tensor:
    """[channels]: the inverse of softplus at random step sizes."""
    dt = torch.empty(channels).uniform_(math.log(DT_MIN), math.log(DT_MAX)).exp().clamp(min=DT_FLOOR)
    return dt + torch.log(-torch.expm1(-dt))
