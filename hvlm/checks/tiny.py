"""Models of a few thousand weights, and batches for them: every room at a size that costs milliseconds.

A room's settings are those of its YAML with the sizes made small, so that a variant can be built the moment its file
exists.
"""

from __future__ import annotations

import importlib
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from torch import Tensor

from hvlm import assembly
from hvlm.config.schema import parameters
from hvlm.config.search_path import CONF
from hvlm.data.collate import Item, collate
from hvlm.model import VLM
from hvlm.prompts import context
from hvlm.text.chat import Chat
from hvlm.text.tokenizer import train_word_tokenizer
from hvlm.types import Batch

USUAL = {
    "vision": "convvit", "merger": "none", "connector": "foveated", "attention": "none", "fusion": "none",
    "language": "smollm2_tiny", "adapter": "none", "kvcache": "full", "head": "text",
}  # fmt: skip
SIZES = {
    "dim": 32,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_layers": 2,
    "num_heads": 2,
    "num_kv_heads": 1,
    "levels": 2,
}
# Of a room that takes its sizes from a source: the family with the most that another would compute otherwise.
CONFIGS = {
    "language": {
        "model_type": "gemma2", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 16,
        "num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 4, "max_position_embeddings": 512,
        "query_pre_attn_scalar": 16, "initializer_range": 0.1, "pad_token_id": 0,
    },
}  # fmt: skip
WORDS = "what color shape is the ring ? how many red blue green circle star one two three"


class Variant(NamedTuple):
    """A room by its YAML, with what differs from it; ``folder`` is that of a package's YAMLs."""

    group: str
    name: str
    changes: tuple[tuple[str, Any], ...] = ()
    folder: Path = CONF

    @property
    def id(self) -> str:
        return "-".join([self.name, *(str(value) for _, value in self.changes)])

    @property
    def written(self) -> dict[str, Any]:
        """What its YAML says."""
        return yaml.safe_load((self.folder / self.group / f"{self.name}.yaml").read_text(encoding="utf-8"))

    @property
    def settings(self) -> dict[str, Any]:
        """The same with small sizes."""
        found = self.written
        small = {key: value for key, value in SIZES.items() if key in found}
        config = found.get("config") or {}
        if config:  # of what the library builds: a source's values in its own names
            sizes = {"hidden_size": 32, "intermediate_size": 48}
            small["config"] = config | {key: value for key, value in sizes.items() if key in config}
        if "image_size" in found:
            patch = found.get("patch_size", config.get("patch_size", target(found).__dict__.get("patch_size", 16)))
            small["image_size"] = 2 * patch
        if self.group in CONFIGS and found.get("source") == "scratch" and "config" in found:
            small |= {"config": CONFIGS[self.group], "template": "tiny"}
        if "labels" in found and found["labels"] is None:  # which training takes from its dataset
            small["labels"] = ["red", "blue", "two", "three", "ring", "circle", "star"]
        if "heads" in found and found["heads"] is None:
            small["heads"] = {
                name: {k: v for k, v in Variant("head", name).settings.items() if k != "_target_"}
                for name in ("detect", "retrieve", "classify")
            }
        if found.get("motion") == "flow":  # what is read from files is tested where files are read
            small["motion"] = "features"
        return found | small | dict(self.changes)


def target(settings: Mapping[str, Any]) -> type:
    """The class that ``_target_`` names."""
    module, name = settings["_target_"].rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


def variants(group: str, folder: Path = CONF, words: Collection[str] | None = None) -> list[Variant]:
    """One per class of the group and per ``mode`` of the class. Of several sizes the one that needs no weights.

    folder: where the YAMLs are. words: of these alone; None: of all.
    """
    by_class: dict[str, str] = {}
    for path in sorted((folder / group).glob("*.yaml")):
        if words is not None and path.stem not in words:
            continue
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        if settings["_target_"] not in by_class or settings.get("source") == "scratch":
            by_class[settings["_target_"]] = path.stem
    found = []
    for name in sorted(by_class.values()):
        plain = Variant(group, name, folder=folder)
        mode, _ = parameters(target(plain.settings)).get("mode", (None, False))
        modes = typing.get_args(mode)
        found += [plain._replace(changes=(("mode", value),)) for value in modes] or [plain]
    return found


class Case(NamedTuple):
    """A whole model: the usual rooms but for those named, and where the video stands."""

    order: str
    rooms: tuple[Variant, ...]

    @property
    def id(self) -> str:
        return "+".join([*(room.id for room in self.rooms), self.order])

    @property
    def config(self) -> dict[str, Any]:
        named = {room.group: room.settings for room in self.rooms}
        return {"order": self.order, "domain": {"adapter": "all"}} | {
            g: named.get(g) or Variant(g, n).settings for g, n in USUAL.items()
        }

    def room(self, group: str) -> dict[str, Any]:
        return self.config[group]


ORDERS = ("question_first", "video_first")


FURTHER = {
    ("question_first", "foveated", (("mode", "coarse_fine"),)),
    ("video_first", "longvlm", ()),
}


def cases() -> Iterator[Case]:
    """Every encoder with every connector, and every other room's variants among the usual ones. Both orders where a
    room reads the text; the others cannot know where it stands."""
    for order in ORDERS:
        for vision in variants("vision"):
            for connector in variants("connector"):
                # What the library's encoders share is shown by DINOv2; the others need one reader of each kind.
                if vision.name in ("convvit", "dinov2_tiny") or (order, connector.name, connector.changes) in FURTHER:
                    yield Case(order, (vision, connector))
    for group in ("attention", "fusion", "language", "adapter", "head"):
        for variant in variants(group):
            if group == "head" and not target(variant.written).writes:  # what is held of models is about text
                continue
            for order in ORDERS if group == "fusion" else ORDERS[:1]:
                if variant.name != USUAL[group]:
                    yield Case(order, (variant,))
    for merger in variants("merger"):  # what a merger does depends on the connector, not on the order
        if merger.name != USUAL["merger"]:
            yield Case("question_first", (merger,))
            yield Case("video_first", (merger, Variant("connector", "patches"), Variant("vision", "dinov2_tiny")))


def cases_of(variant: Variant) -> list[Case]:
    """The whole models that show what a room does: as ``cases`` chooses them."""
    if variant.group == "vision":
        return [Case(ORDERS[i % 2], (variant, connector)) for i, connector in enumerate(variants("connector"))]
    if variant.group == "merger":
        densely = (variant, Variant("connector", "patches"), Variant("vision", "dinov2_tiny"))
        return [Case("question_first", (variant,)), Case("video_first", densely)]
    if variant.group == "head" and not target(variant.written).writes:
        return []
    orders = ORDERS if variant.group in ("connector", "fusion") else ORDERS[:1]
    return [Case(order, (variant,)) for order in orders] if variant.group in USUAL else []


@lru_cache
def chat() -> Chat:
    return Chat(train_word_tokenizer([WORDS]), "tiny")


def model(case: Case, seed: int = 0) -> VLM:
    """The model in evaluation mode, its weights moved from where they start so that none is zero or one. Only a random
    projection stays: it is no weight, and the rows of FAVOR+'s come in pairs."""
    torch.manual_seed(seed)
    made = assembly.model(case.config, chat())
    for name, tensor in made.state_dict().items():
        if tensor.is_floating_point() and not name.endswith(".projection"):
            noise = 0.1 * torch.randn_like(tensor)
            tensor.add_(noise.abs() if name.endswith("var") else noise)
    return made.eval()


def side(vlm: VLM) -> int:
    return vlm.vision.image_size


def clip(
    seed: int, frames: int | None, rows: Sequence[tuple[str, str]], order: str, size: int, loss: str = "answer"
) -> Item:
    """A clip of noise that is always the same for its seed (None frames: no video), and what is asked about it."""
    texts = [
        (*chat().encode(prompt, answer, loss, order, **context(prompt)), {"key": f"clip{seed}"})
        for prompt, answer in rows
    ]
    if frames is None:
        return Item(None, None, texts)
    pixels = np.random.default_rng(seed).integers(0, 256, (frames, 3, size, size), dtype=np.uint8)
    return Item(pixels, (np.arange(frames, dtype=np.float32) + 0.5) / 4, texts, uid=f"clip{seed}")


def batch_of(*items: Item, size: int) -> Batch:
    return collate(list(items), pad_id=chat().pad_id, size=(size, size))


ASKED = [("what color is the ring ?", "red"), ("how many ?", "two three"), ("what shape ?", "blue circle star")]


def two_clips(vlm: VLM, loss: str = "answer") -> tuple[Item, Item]:
    """A long clip with two questions of different lengths and a short one with one."""
    long = clip(1, 4, ASKED[:2], vlm.order, side(vlm), loss)
    short = clip(2, 2, ASKED[2:], vlm.order, side(vlm), loss)
    return long, short


def per_row(vlm: VLM, batch: Batch) -> list[Tensor]:
    """The log-probabilities of each row's scored tokens."""
    with torch.no_grad():
        return [p[m] for p, m in zip(vlm.token_logprobs(batch), batch.loss_mask_KS, strict=True)]
