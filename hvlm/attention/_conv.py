"""The short causal convolution along time that Mamba and Mamba-2 put before their states."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvlm.attention import _gpu


def causal_conv(x_BSE: Tensor, conv: nn.Conv1d) -> Tensor:
    """y_t = b + Σ_j w_j x_{t - width + 1 + j}, channel by channel; ``conv`` holds w [E, 1, width] and b [E].

    On a CPU as shifted sums: torch's depthwise convolution wants channels first, and two transposes cost more than it.
    """
    if _gpu.can(_gpu.causal_conv1d_fn, x_BSE) and conv.kernel_size[0] in (2, 3, 4):
        return _gpu.causal_conv(x_BSE, conv.weight.squeeze(1), conv.bias)
    return _shifted(F.pad(x_BSE, (0, 0, conv.kernel_size[0] - 1, 0)), conv)


def conv_step(x_BSE: Tensor, conv: nn.Conv1d, kept_BWE: Tensor) -> tuple[Tensor, Tensor]:
    """The same for the next tokens of a stream: (y, the inputs to keep)."""
    whole = torch.cat([kept_BWE.to(x_BSE.dtype), x_BSE], 1)
    return _shifted(whole, conv), whole[:, x_BSE.shape[1] :]


def _shifted(whole: Tensor, conv: nn.Conv1d) -> Tensor:
    w = conv.weight.squeeze(1).to(whole.dtype)
    width = w.shape[1]
    length = whole.shape[1] - width + 1
    y = conv.bias.to(whole.dtype) + whole[:, :length] * w[:, 0]
    for j in range(1, width):
        y = torch.addcmul(y, whole[:, j : j + length], w[:, j])
    return y
