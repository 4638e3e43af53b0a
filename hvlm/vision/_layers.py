"""The modules of a vision transformer's layer, as the transformers library names them in two families."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from hvlm.vision._transformer import TransformerVision


class DinoLayers(TransformerVision):
    """DINOv2 and DINOv3: what a layer adds is scaled. The token that hides patches in training is not needed."""

    optional = ("embeddings.mask_token",)

    def attention(self, layer: nn.Module) -> nn.Module:
        return layer.attention

    def before(self, layer: nn.Module, x: Tensor) -> Tensor:
        return layer.norm1(x)

    def finish(self, layer: nn.Module, x: Tensor, attended: Tensor) -> Tensor:
        x = x + layer.layer_scale1(layer.attention.o_proj(attended))
        return x + layer.layer_scale2(layer.mlp(layer.norm2(x)))


class ClipLayers(TransformerVision):
    """CLIP and SigLIP."""

    def layers(self) -> Sequence[nn.Module]:
        return self.model.encoder.layers

    def attention(self, layer: nn.Module) -> nn.Module:
        return layer.self_attn

    def before(self, layer: nn.Module, x: Tensor) -> Tensor:
        return layer.layer_norm1(x)

    def finish(self, layer: nn.Module, x: Tensor, attended: Tensor) -> Tensor:
        x = x + layer.self_attn.out_proj(attended)
        return x + layer.mlp(layer.layer_norm2(x))
