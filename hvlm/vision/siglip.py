"""SigLIP (Zhai et al. 2023) and SigLIP 2 (Tschannen et al. 2025), of one resolution or of any (NaFlex).

There is no CLS: a learned probe attends over a frame's patches, and that is the frame's summary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Siglip2VisionConfig, Siglip2VisionModel, SiglipVisionConfig, SiglipVisionModel

from hvlm.vision._layers import ClipLayers


class Siglip(ClipLayers):
    """Frames -> one token per patch; see ``TransformerVision``.

    SigLIP 2 was published in SigLIP's own layout; its NaFlex models in another, which works at any size of frames.
    """

    families = {
        "siglip_vision_model": (SiglipVisionConfig, SiglipVisionModel),
        "siglip2_vision_model": (Siglip2VisionConfig, Siglip2VisionModel),
    }
    normalisation = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    first_patch = 0

    @property
    def is_naflex(self) -> bool:
        return self.config.model_type == "siglip2_vision_model"

    def _own_size(self) -> int:
        if self.is_naflex:
            return int(self.config.num_patches**0.5) * self.config.patch_size
        return super()._own_size()

    def embed(self, pixels_FCHW: Tensor) -> tuple[Tensor, None]:
        if not self.is_naflex:
            return self.model.embeddings(pixels_FCHW, interpolate_pos_encoding=True), None
        (rows, cols), p = self.grid(*pixels_FCHW.shape[-2:]), self.patch_size
        cut = pixels_FCHW.unflatten(3, (cols, p)).unflatten(2, (rows, p))  # F C Y y X x
        patches = cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        shape = torch.tensor([[rows, cols]], device=patches.device).expand(len(patches), -1)
        return self.model.embeddings(patches, shape), None

    def last_norm(self, x: Tensor) -> Tensor:
        return self.model.post_layernorm(x)

    def summary(self, h_FND: Tensor) -> Tensor:
        """The pooling head over the normalised patches of this layer; their mean where the source has no head."""
        h = self.model.post_layernorm(h_FND)
        return self.model.head(h) if self.model.use_head else h.mean(1)
