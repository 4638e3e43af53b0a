"""DINOv3's vision transformers (Siméoni et al. 2025): patches are turned by their places in every layer.

CLS and the registers have no place, and neither has a query. The random shifts and scales of places that the library
applies in training are left out: training and evaluation compute the same function.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from hvlm.vision._layers import DinoLayers
from hvlm.vision._transformer import Place


class Dinov3(DinoLayers):
    """Frames -> one token per patch; see ``TransformerVision``. Any size of frames is one that it was trained for."""

    families = {"dinov3_vit": (DINOv3ViTConfig, DINOv3ViTModel)}

    @property
    def first_patch(self) -> int:
        return 1 + self.config.num_register_tokens

    def layers(self) -> Sequence[nn.Module]:
        return self.model.model.layer

    def embed(self, pixels_FCHW: Tensor) -> tuple[Tensor, Place]:
        places = self.model.rope_embeddings.eval()  # in training it would move the places at random
        return self.model.embeddings(pixels_FCHW), places(pixels_FCHW)

    def last_norm(self, x: Tensor) -> Tensor:
        return self.model.norm(x)
