"""fVLM under the name and with the calls of its release, made of the corridor's own rooms.

model = FoveatedVLM(llm_name="HuggingFaceTB/SmolLM2-135M-Instruct", dino_name="facebook/dinov2-small")
model(frames, input_ids, attention_mask)["logits"]
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from hvlm.adapter.none import NoAdapter
from hvlm.attention.none import NoAttention
from hvlm.config.search_path import CONF
from hvlm.connector.foveated import Foveated
from hvlm.errors import UserError
from hvlm.fusion.none import NoFusion
from hvlm.head.text import TextHead
from hvlm.interop.fvlm_weights import Report, load_release, save_release
from hvlm.io.pretrained import fetch
from hvlm.kvcache.full import FullCache
from hvlm.language.smollm2 import SmolLM2
from hvlm.merger.none import NoMerger
from hvlm.model import VLM
from hvlm.types import Batch
from hvlm.vision.dinov2 import Dinov2

MODES = {"coarse_only": "coarse", "coarse_fine": "coarse_fine", "autoregressive": "autoregressive"}
LLAMA = {  # in config.json -> an argument of the language room
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "rms_norm_eps": "norm_eps",
    "vocab_size": "vocab_size",
}
DINOV2 = ("hidden_size", "num_layers", "num_heads", "patch_size")
SMOLLM2_VOCABULARY = 49152


class FoveatedVLM(VLM):
    """One visual token per frame, in the order [T visual tokens][text].

    llm_name, dino_name: a hub id or a local folder. query_dim: width of the queries. visual_scale: s in
        v = s · (W z + b). deep_query: carry queries through all of the encoder's layers (False: the last one).
    pretrained: load the weights behind both names; False builds the architecture alone (for ``load_release``, or on
        torch's meta device), and needs no network for the names that conf/ knows.
    image_size: pixels, a multiple of the encoder's patch size. frames_at_once: see ``hvlm.gaze.RecomputedKV``.

    Clips may have any number of frames; without gradients, memory for the frames does not grow with it. Show a single
    image ``hvlm.image.IMAGE_FRAMES`` times (``hvlm.image.still``). Errors: ``UserError`` for sources and sizes.
    """

    def __init__(
        self,
        llm_name: str = "HuggingFaceTB/SmolLM2-135M-Instruct",
        dino_name: str = "facebook/dinov2-small",
        query_dim: int = 384,
        visual_scale: float = 0.14,
        deep_query: bool = True,
        *,
        pretrained: bool = True,
        image_size: int = 224,
        frames_at_once: int = 64,
        gradient_checkpointing: bool = False,
    ):
        shared = {"gradient_checkpointing": gradient_checkpointing, "weights": pretrained}
        vision = Dinov2(
            dino_name, image_size=image_size, query_dim=query_dim, frames_at_once=frames_at_once,
            **dinov2_sizes(dino_name), **shared,
        )  # fmt: skip
        language = SmolLM2(None, llm_name, template="chatml", **llama_sizes(llm_name), **shared)
        connector = Foveated(
            depth="deep" if deep_query else "shallow", projector="linear", visual_scale=visual_scale,
            standardise=False, text_dim=language.dim, dim=vision.dim, query_dim=query_dim,
        )  # fmt: skip
        super().__init__(
            vision=vision, merger=NoMerger(), connector=connector, attention=NoAttention(), fusion=NoFusion(),
            language=language, adapter=NoAdapter(), kvcache=FullCache(**language.cache_sizes),
            head=TextHead(logits=language.logits), order="video_first",
        )  # fmt: skip

    def forward(
        self,
        frames: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        loss_mask: Tensor | None = None,
        frame_mask: Tensor | None = None,
        mode: Literal["coarse_fine", "coarse_only", "autoregressive"] = "coarse_fine",
    ) -> dict[str, Tensor]:
        """{"loss": scalar, "logits": [B, S, vocabulary] at the text's positions}.

        frames: [B, T, 3, H, W], normalised floats (``hvlm.transform``) or uint8. input_ids, attention_mask: [B, S],
            right padded. loss_mask: [B, S], nonzero where a token is a target; None: all. frame_mask: [B, T], nonzero
            for frames that are there; None: all. Padding, of frames too, changes nothing.
        loss: next-token cross-entropy, mean over the targets; 0 if there are none. The first text token, which follows
            the last frame, is never a target.
        """
        if mode not in MODES:
            raise ValueError(f"mode={mode!r}: expected one of {', '.join(MODES)}")
        (b, t), device = frames.shape[:2], frames.device
        weights = next(self.vision.parameters()).dtype
        seen = torch.ones(b, t, device=device) if frame_mask is None else frame_mask
        scored = attention_mask if loss_mask is None else loss_mask
        batch = Batch(
            frames_BTCHW=frames.to(weights) if frames.is_floating_point() else frames,
            frame_time_BT=torch.arange(t, device=device, dtype=torch.float32).expand(b, t),
            frame_mask_BT=seen.bool(),
            input_ids_KS=input_ids,
            attention_mask_KS=attention_mask.bool(),
            loss_mask_KS=scored.bool(),
            clip_K=torch.arange(b, device=device),
            visual_at_K=torch.zeros(b, dtype=torch.long, device=device),
        )
        with self.connector.using(MODES[mode]):
            sequence = self.sequence(batch)
        logits = self.head.logits(self.hidden(sequence)[:, sequence.visual :])
        targets = (batch.loss_mask_KS & batch.attention_mask_KS)[:, 1:]
        total = F.cross_entropy(logits[:, :-1][targets], input_ids[:, 1:][targets], reduction="sum")
        return {"loss": total / targets.sum().clamp(min=1), "logits": logits}

    def load_release(self, path: str | Path) -> Report:
        """Published weights, in place; see ``hvlm.interop.fvlm_weights.load_release``."""
        return load_release(self, path)

    def save_release(self, path: str | Path) -> None:
        """The same layout, written."""
        save_release(self, path)


def dinov2_sizes(name: str) -> dict[str, Any]:
    """The encoder room's size arguments for a hub id that conf/ knows; of others and of folders the room reads them."""
    known = _known(name, "vision", DINOV2)
    if not known:
        fetch(name, key="dino_name", files=("config.json",), packages=Dinov2.packages)
    return known


def llama_sizes(name: str) -> dict[str, Any]:
    """The language room's size arguments for a hub id or a folder, ``vocab_size`` among them."""
    sizes = _sizes(name, "language", "llm_name", LLAMA)
    if "rope_parameters" in sizes:
        sizes["rope_theta"] = float(sizes.pop("rope_parameters")["rope_theta"])
    return {"vocab_size": SMOLLM2_VOCABULARY} | sizes


def _sizes(name: str, group: str, key: str, wanted: dict[str, str]) -> dict[str, Any]:
    """From a folder's config.json, else from the YAML in conf/ that names this hub id, else from the hub."""
    if known := _known(name, group, (*wanted.values(), "rope_theta")):
        return known
    folder = fetch(name, key=key, files=("config.json",), packages={})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    absent = [k for k in wanted if k not in config]
    if absent:
        raise UserError(f"{key}={name}: {folder / 'config.json'} has no {', '.join(absent)}")
    sizes = {ours: config[theirs] for theirs, ours in wanted.items()}
    rope = config.get("rope_parameters") or ({"rope_theta": config["rope_theta"]} if "rope_theta" in config else None)
    return sizes | ({"rope_parameters": rope} if rope else {})


def _known(name: str, group: str, sizes: Collection[str]) -> dict[str, Any]:
    """What the YAML in conf/ that names this hub id says of its sizes; nothing for a folder and for others."""
    if not Path(name).expanduser().is_dir():
        for path in sorted((CONF / group).glob("*.yaml")):
            node = yaml.safe_load(path.read_text(encoding="utf-8"))
            if name in node.get("source", "").split(",") and any(size in node for size in sizes):
                return {size: node[size] for size in sizes if size in node}
    return {}
