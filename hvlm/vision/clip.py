"""CLIP's vision transformer (Radford et al. 2021)."""

from __future__ import annotations

from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from hvlm.vision._layers import ClipLayers

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Clip(ClipLayers):
    """Frames -> one token per patch; see ``TransformerVision``.

    Patches are the last layer's, as the library gives them: CLIP normalises CLS alone at the end, and so are queries,
    which read a frame as CLS does. LLaVA and LongVLM take them from the layer before (``layer=-2``).
    """

    families = {"clip_vision_model": (CLIPVisionConfig, CLIPVisionModel)}
    normalisation = (MEAN, STD)
    first_patch = 1

    def embed(self, pixels_FCHW: Tensor) -> tuple[Tensor, None]:
        return self.model.pre_layrnorm(self.model.embeddings(pixels_FCHW, interpolate_pos_encoding=True)), None

    def last_norm(self, x: Tensor) -> Tensor:
        return x

    def query_norm(self, u: Tensor) -> Tensor:
        return self.model.post_layernorm(u)
