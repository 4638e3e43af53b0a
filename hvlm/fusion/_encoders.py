"""Encoders of images and of text from the transformers library: from a folder, the hub, or tiny ones from scratch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from hvlm.errors import UserError
from hvlm.io.pretrained import fetch, one_line

VISION = {
    "source", "revision", "image_size", "patch_size", "hidden_dim", "num_layers", "num_heads", "mlp_ratio",
}  # fmt: skip
TEXT = {
    "source", "revision", "vocab_size", "hidden_dim", "num_layers", "num_heads", "mlp_ratio", "max_length", "pad_id",
}  # fmt: skip


def check_keys(given: Mapping[str, Any], known: set[str], name: str) -> None:
    if unknown := sorted(set(given) - known):
        raise ValueError(f"{name} has no key {', '.join(unknown)}; expected {', '.join(sorted(known))}")


def _loaded(auto: Any, config: Mapping[str, Any], name: str) -> nn.Module:
    """The weights in ``source``, with the config that lies beside them."""
    files = ("config.json", "*.json", "model*.safetensors")
    key = f"{name}.source"
    folder = fetch(config["source"], key=key, files=files, packages={}, revision=config.get("revision"))
    if not any(folder.glob("model*.safetensors")):
        raise UserError(f"{key}={config['source']}: {folder} has no model*.safetensors; expected a Hugging Face model")
    try:
        return auto.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True
        ).train()
    except Exception as error:  # of transformers and safetensors: unknown kinds, damaged files
        raise UserError(f"{key}: the model in {folder} cannot be loaded: {one_line(error)}") from error


def _without_pooler(model: nn.Module) -> nn.Module:
    """Without the layer on the first token alone, which nobody reads here."""
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model


class VisionEncoder(nn.Module):
    """Frames [F, 3, H, W] -> patches [F, rows * columns, dim]: any vision transformer with square patches.

    config: ``source`` (a folder or hub id of a ViT, DINOv2, CLIP, SigLIP, ...), or the sizes of a ViT from scratch.
    """

    def __init__(self, config: Mapping[str, Any], default_dim: int):
        super().__init__()
        check_keys(config, VISION, "vision_config")
        from transformers import AutoModel, ViTConfig, ViTModel

        if config.get("source"):
            model = _loaded(AutoModel, config, "vision_config")
            model = getattr(model, "vision_model", model)
        else:
            dim = config.get("hidden_dim", default_dim)
            model = ViTModel(
                ViTConfig(
                    hidden_size=dim, num_hidden_layers=config.get("num_layers", 2),
                    num_attention_heads=config.get("num_heads", 8), image_size=config.get("image_size", 224),
                    intermediate_size=round(dim * config.get("mlp_ratio", 4)), patch_size=config.get("patch_size", 16),
                ),
                add_pooling_layer=False,
            )  # fmt: skip
        self.model = _without_pooler(model)
        self.dim, self.patch_size = model.config.hidden_size, model.config.patch_size

    def forward(self, frames_FCHW: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """(patches, (rows, columns)); what stands before the patches (CLS, registers) is left out."""
        grid = frames_FCHW.shape[-2] // self.patch_size, frames_FCHW.shape[-1] // self.patch_size
        states = self.model(pixel_values=frames_FCHW).last_hidden_state
        if states.shape[1] < grid[0] * grid[1]:
            raise ValueError(f"vision_config: {states.shape[1]} states of {grid[0]} x {grid[1]} patches")
        return states[:, -grid[0] * grid[1] :], grid


class TextEncoder(nn.Module):
    """Token ids [B, P] and their mask -> states [B, P, dim]: any encoder of transformers, like BERT's or T5's.

    config: ``source`` (a folder or hub id), or the sizes of a small BERT from scratch.
    """

    def __init__(self, config: Mapping[str, Any], default_dim: int):
        super().__init__()
        check_keys(config, TEXT, "text_config")
        from transformers import AutoModelForTextEncoding, BertConfig, BertModel

        if config.get("source"):
            model = _loaded(AutoModelForTextEncoding, config, "text_config")
            model = getattr(model, "text_model", model)
        else:
            dim = config.get("hidden_dim", default_dim)
            model = BertModel(
                BertConfig(
                    vocab_size=config.get("vocab_size", 30522), hidden_size=dim, pad_token_id=config.get("pad_id", 0),
                    num_hidden_layers=config.get("num_layers", 2), num_attention_heads=config.get("num_heads", 8),
                    intermediate_size=round(dim * config.get("mlp_ratio", 4)), type_vocab_size=1,
                    max_position_embeddings=config.get("max_length", 512),
                ),
                add_pooling_layer=False,
            )  # fmt: skip
        self.model = _without_pooler(model)
        self.dim = getattr(model.config, "hidden_size", None) or model.config.d_model

    def forward(self, ids_BP: Tensor, mask_BP: Tensor) -> Tensor:
        return self.model(input_ids=ids_BP, attention_mask=mask_BP.long()).last_hidden_state
