"""A small vision transformer with a convolutional stem, trained from nothing (the demo's encoder).

Four stride-2 convolutions see edges and colours before anything is cut into patches ("Early convolutions help
transformers see better", Xiao et al. 2021): a single patch convolution of the same stride learned far less in the same
time. Then pre-norm transformer blocks over rows x columns tokens with learned positions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvlm.config.ranges import NonNegativeFloat, PositiveFloat, PositiveInt
from hvlm.contracts import Vision
from hvlm.functional import attend, join_heads, split_heads
from hvlm.image import IMAGENET_MEAN, IMAGENET_STD
from hvlm.types import KV, NOTHING_ELSE, Encoded, Tokens, Wants
from hvlm.vision._encoded import encoded
from hvlm.vision._gaze import Gaze, MergedKeys


class Block(nn.Module):
    """x + W_O attn(LN1 x); then x + MLP(LN2 x). Weights are laid out so that a query can walk through alone."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float):
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.q_proj, self.kv_proj, self.o_proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        hidden = int(dim * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x_FND: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Patches [F, N, D] -> (patches, (k, v) each [F, heads, N, d])."""
        y = self.norm1(x_FND)
        k, v = (split_heads(z, self.num_heads) for z in self.kv_proj(y).chunk(2, -1))
        q = split_heads(self.q_proj(y), self.num_heads)
        return self.finish(x_FND, join_heads(attend(q, k, v))), (k, v)

    def project(self, u_FQD: Tensor) -> Tensor:
        return split_heads(self.q_proj(self.norm1(u_FQD)), self.num_heads)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.o_proj(attended)
        return x + self.mlp(self.norm2(x))


class ConvViT(Vision):
    """Frames -> (image_size / 16)² tokens per frame.

    frames_at_once: without gradients, longer batches are encoded in parts of so many frames (see ``RecomputedKV``).
    cache_gb: memory that training may take to keep the frozen encoder's features (``hvlm.feature_cache``); 0: none.
    """

    patch_size = 16
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        dim: PositiveInt = 128,
        num_layers: PositiveInt = 3,
        num_heads: PositiveInt = 4,
        mlp_ratio: PositiveFloat = 4.0,
        image_size: PositiveInt = 64,
        query_dim: PositiveInt | None = None,
        frames_at_once: PositiveInt = 4096,
        cache_gb: NonNegativeFloat = 0,
    ):
        super().__init__()
        if image_size % self.patch_size:
            raise ValueError(f"vision.image_size={image_size}: expected a multiple of {self.patch_size}")
        if dim % num_heads:
            raise ValueError(f"vision.dim={dim} must be a multiple of vision.num_heads={num_heads}")
        self.dim, self.num_layers, self.num_heads, self.image_size = dim, num_layers, num_heads, image_size
        self.query_dim, self.frames_at_once, self.cache_gb = query_dim or dim, frames_at_once, cache_gb
        widths = (3, dim // 4, dim // 2, dim, dim)
        stem: list[nn.Module] = []
        for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
            stem += [nn.Conv2d(a, b, 3, stride=2, padding=1)] + ([nn.GroupNorm(1, b), nn.ReLU()] if i < 3 else [])
        # ReLU and channels-last: a third faster than GELU and the default layout in bfloat16 on a CPU.
        self.stem = nn.Sequential(*stem).to(memory_format=torch.channels_last)
        rows, cols = self.grid(image_size, image_size)
        self.position = nn.Parameter(torch.randn(1, dim, rows, cols) * 0.02)
        self.layers = nn.ModuleList(Block(dim, num_heads, mlp_ratio) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)
        self.query = Gaze(self.query_dim, dim)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of tokens for a frame of that size."""
        return height // self.patch_size, width // self.patch_size

    def encode(self, frames_BTCHW: Tensor, time_BT: Tensor, mask_BT: Tensor, wants: Wants = NOTHING_ELSE) -> Encoded:
        """Tokens [B, T·N, dim] and what else is wanted; keys and values are [B·T, heads, N, d], and a layer's summary
        of a frame is the mean of its patches.

        frames_BTCHW: uint8, or floating point and then normalised already.
        """
        b, t, _, height, width = frames_BTCHW.shape
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(f"frames of {height} x {width} pixels: convvit needs multiples of {self.patch_size}")
        x = frames_BTCHW
        if not x.is_floating_point():
            x = (x.float() / 255.0 - self.mean) / self.std
        pixels = x.flatten(0, 1)
        x = self.stem(pixels.contiguous(memory_format=torch.channels_last))
        pixels = pixels if wants.saliency == "spectral" else None
        x = (x + self._positions(*x.shape[-2:])).flatten(2).transpose(1, 2)
        kv: KV = []
        summaries: list[Tensor] = []
        between: list[Tensor] = []
        for i, layer in enumerate(self.layers):
            before = x
            if wants.layers and i:
                between.append(x)
            x, keys_values = layer(x)
            kv.append(keys_values)
            if i >= len(self.layers) - wants.summaries:
                summaries.append(x.mean(1))
        grid = self.grid(height, width)
        tokens = Tokens.of_frames(self.norm(x).unflatten(0, (b, t)), time_BT, mask_BT, grid)
        query = self.layers[-1].project(before) if wants.saliency else None
        return encoded(wants, tokens, kv, summaries, pixels, query, kv[-1][0], grid, between or [x])

    def gaze(
        self, query_FQD: Tensor, kv: KV, merged: MergedKeys | None = None, **how: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Read every frame with its queries: [F, Q, query_dim] -> (z [F, Q, dim], mean entropy in nats or None).

        merged: what stands behind keys that were merged. how: ``shallow``, ``return_entropy``, see ``Gaze``.
        """
        return self.query(query_FQD, kv, self.layers, self.norm, Block.project, Block.finish, merged=merged, **how)

    def _positions(self, rows: int, cols: int) -> Tensor:
        if (rows, cols) == self.position.shape[-2:]:
            return self.position
        return F.interpolate(self.position, (rows, cols), mode="bicubic", align_corners=False)
