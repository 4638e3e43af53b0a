"""The whole model by itself: images or video and text to classes, with embeddings of each side for retrieval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvlm.fusion._base import sinusoids
from hvlm.fusion._encoders import TextEncoder, VisionEncoder, check_keys
from hvlm.fusion._global import GlobalFusion
from hvlm.fusion._layers import everything
from hvlm.fusion._levels import CoarseToFine
from hvlm.fusion._local import LocalFusion
from hvlm.fusion._pool import Pool
from hvlm.types import Tokens

KINDS = ("hivilt", "sparse", "progressive")
KEYS = {
    "hidden_dim", "num_heads", "num_classes", "vision_config", "text_config", "dropout", "mlp_ratio", "fusion",
    "layers", "top_k", "update", "num_stages", "pooling", "local_fusion", "global_fusion", "embedding_dim",
}  # fmt: skip


class HierarchicalViLTransformer(nn.Module):
    """config: ``hidden_dim``, ``num_heads`` (8), ``num_classes`` (1000), ``dropout`` (0.1), ``mlp_ratio`` (1.0);
    ``vision_config`` and ``text_config``, either sizes (``image_size``, ``patch_size``, ``hidden_dim``, ``num_layers``;
    ``vocab_size``, ...) or a ``source``, a folder or hub id of transformers; ``fusion``: ``hivilt`` with ``layers`` of
    local fusion, ``sparse`` with ``top_k``, ``progressive`` with ``num_stages``; ``pooling`` (mean); ``local_fusion``,
    ``global_fusion``: leave one out; ``embedding_dim`` (256).
    """

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        check_keys(config, KEYS, "config")
        if "hidden_dim" not in config:
            raise ValueError("config needs hidden_dim")
        dim, heads = config["hidden_dim"], config.get("num_heads", 8)
        kind, has_local = config.get("fusion", "hivilt"), config.get("local_fusion", True)
        has_global = config.get("global_fusion", True)
        if kind not in KINDS:
            raise ValueError(f"fusion={kind!r}: expected one of {', '.join(KINDS)}")
        if not (has_local or has_global):
            raise ValueError("local_fusion and global_fusion are both False: nothing is left")
        self.vision_encoder = VisionEncoder(config.get("vision_config", {}), dim)
        self.text_encoder = TextEncoder(config.get("text_config", {}), dim)
        self.vision_proj, self.text_proj = (
            nn.Linear(encoder.dim, dim) if encoder.dim != dim else nn.Identity()
            for encoder in (self.vision_encoder, self.text_encoder)
        )
        pooling, ratio, dropout = (
            config.get("pooling", "mean"),
            config.get("mlp_ratio", 1.0),
            config.get("dropout", 0.1),
        )
        local: dict[str, Any] = {"mlp_ratio": ratio, "dropout": dropout}
        self.levels = None
        if has_local and kind == "progressive":
            self.levels = CoarseToFine(dim, heads, config.get("num_stages", 3), **local)
        if kind == "sparse":
            local |= {"top_k": config.get("top_k", 64), "update": config.get("update", "chosen")}
        many = config.get("layers", 1) if has_local and self.levels is None else 0
        self.local_fusion = nn.ModuleList(LocalFusion(dim, heads, **local) for _ in range(many))
        if has_global:
            self.global_fusion = GlobalFusion(dim, heads, pooling, ratio, dropout)
        else:
            self.pool = Pool(dim, pooling)
        self.has_global = has_global
        self.pool_v, self.pool_t = Pool(dim, pooling), Pool(dim, pooling)
        width = config.get("embedding_dim", 256)
        self.vision_embedding, self.text_embedding = nn.Linear(dim, width), nn.Linear(dim, width)
        self.output_proj = nn.Linear(dim, config.get("num_classes", 1000))

    def forward(
        self,
        images: Tensor,
        text: Tensor,
        attention_mask: Tensor | None = None,
        frame_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Everything that is known of pairs of pixels and text.

        Args:
            images: normalised pixels, [B, 3, H, W], or of video [B, T, 3, H, W].
            text: token ids, [B, P].
            attention_mask: [B, P], 0 for padding; None: everything is text.
            frame_mask: [B, T], 0 for padding; None: everything is video.

        Returns:
            ``output``: logits [B, num_classes]. ``vision_features`` [B, Nv, hidden_dim] and ``text_features``
            [B, P, hidden_dim]: each side, knowing nothing of the other. ``local_fusion`` [B, Nv + P, hidden_dim],
            ``global_fusion`` [B, hidden_dim]. ``vision_embedding``, ``text_embedding`` [B, embedding_dim]: of each side
            alone, of unit length, for contrastive losses and retrieval.
        """
        tokens, mask = self.encode_vision(images, frame_mask), everything(text, attention_mask)
        words = self.encode_text(text, mask)
        v, t = tokens.x_BSD, words
        if self.levels is not None:
            v, t = self.levels(tokens, t, mask)
        for layer in self.local_fusion:
            v, t = layer(v, t, tokens.mask_BS, mask)
        local, both = torch.cat([v, t], 1), torch.cat([tokens.mask_BS, mask], 1)
        if self.has_global:
            whole = self.global_fusion((tokens.x_BSD, words), (v, t), tokens.mask_BS, mask)
        else:
            whole = self.pool(local, both)
        return {
            "output": self.output_proj(whole),
            "vision_features": tokens.x_BSD,
            "text_features": words,
            "local_fusion": local.masked_fill(~both.unsqueeze(-1), 0),
            "global_fusion": whole,
            "vision_embedding": F.normalize(self.vision_embedding(self.pool_v(tokens.x_BSD, tokens.mask_BS)), dim=-1),
            "text_embedding": F.normalize(self.text_embedding(self.pool_t(words, mask)), dim=-1),
        }

    def encode_vision(self, images: Tensor, frame_mask: Tensor | None = None) -> Tokens:
        """Patches of all frames in time order, each with where and when it is."""
        if images.dim() not in (4, 5) or images.shape[-3] != 3:
            raise ValueError(f"images {tuple(images.shape)}: expected [B, 3, H, W], or [B, T, 3, H, W] for video")
        video = images.unsqueeze(1) if images.dim() == 4 else images
        x, grid = self.vision_encoder(video.flatten(0, 1))
        x = self.vision_proj(x).unflatten(0, video.shape[:2])
        time = torch.arange(video.shape[1], device=x.device).expand(len(x), -1)
        if images.dim() == 5:
            x = x + sinusoids(time, x.shape[-1]).unsqueeze(2).to(x.dtype)
        return Tokens.of_frames(x, time.float(), everything(video, frame_mask), grid)

    def encode_text(self, text: Tensor, mask: Tensor) -> Tensor:
        return self.text_proj(self.text_encoder(text, mask))
