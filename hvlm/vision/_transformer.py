"""Vision transformers of the transformers library, with the keys and values of every layer within reach.

The modules are the library's own, under its names; the loop over the layers is here, because the library's hands out
features only. A variant says what differs between families: how pixels become the first layer's tokens, what a layer's
modules are called, and what stands for a whole frame.
"""

from __future__ import annotations

import difflib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hvlm.config.ranges import AnyInt, NonNegativeFloat, PositiveInt
from hvlm.contracts import Vision
from hvlm.errors import UserError
from hvlm.functional import attend, join_heads, split_heads
from hvlm.image import IMAGENET_MEAN, IMAGENET_STD
from hvlm.io.pretrained import Package, one_line
from hvlm.io.vision_source import NORMALISATION, colours, described, load, vision_config, weights_folder
from hvlm.types import KV, NOTHING_ELSE, Encoded, Tokens, Wants
from hvlm.vision._encoded import encoded
from hvlm.vision._gaze import Gaze, MergedKeys

# What a source may say as it likes: it changes neither the architecture nor what a trained model computes.
FREE = {
    "attention_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate", "initializer_range",
    "initializer_factor", "layerscale_value", "apply_layernorm", "reshape_hidden_states", "projection_dim",
    "pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale",
}  # fmt: skip
# Of the library's models they would be active in training; here nothing is dropped.
OFF = ("attention_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate")

Place = tuple[Tensor, Tensor] | None  # cosines and sines of the patches' places, where a family rotates by them


class TransformerVision(Vision):
    """Frames -> one token per patch.

    Args:
        source: ``scratch``, a folder, a hub id at ``revision``, or ``package:<name>`` where a package carries such
            weights. A folder with a text tower beside works: its vision part is loaded.
        config: the source's values in its own names (``hidden_size``, ...), with ``model_type`` where the room knows
            several kinds. Empty: they are read from the source. With values nothing is read before the weights are,
            which must agree; with ``source=scratch`` they are the model, over the library's defaults.
        image_size: side of the frames in pixels, by default the one that the source was trained at. Position embeddings
            are interpolated to it as the library does.
        layer: where the features come from, counted as transformers counts hidden states: 1 is after the first layer,
            -2 before the last one, -1 after it, without the last normalisation. By default after the last one as the
            library gives it. Keys, values, saliency and queries end there, too, and the layers above are computed
            only for who wants summaries, which are always those of the last layers. They stay part of the model.
        query_dim: width of the queries for ``gaze``, by default that of the encoder.
        gradient_checkpointing: compute layers again in the backward pass.
        frames_at_once: without gradients, longer batches are encoded in parts of so many frames (see ``RecomputedKV``).
        cache_gb: memory that training may take to keep the frozen encoder's features (``hvlm.feature_cache``); 0: none.
        weights: False builds the architecture alone, for a checkpoint to fill.
        source_config: what ``read_source_config`` gave, so that the source need not be at hand.

    Raises:
        UserError: sizes that do not fit each other or the source; see also ``hvlm.io.pretrained.fetch``.
    """

    families: ClassVar[dict[str, tuple[type, type]]]  # model_type -> (configuration, model); the first is the usual one
    packages: ClassVar[Mapping[str, Package]] = {}
    normalisation: ClassVar[tuple[Sequence[float], Sequence[float]]] = (IMAGENET_MEAN, IMAGENET_STD)
    optional: ClassVar[tuple[str, ...]] = ()  # weights that a source may lack
    first_patch: int  # so many tokens (CLS, registers) stand before the patches
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        source: str = "scratch",
        revision: str | None = None,
        config: dict[str, bool | int | float | str | None] | None = None,
        image_size: PositiveInt | None = None,
        layer: AnyInt | None = None,
        query_dim: PositiveInt | None = None,
        gradient_checkpointing: bool = False,
        frames_at_once: PositiveInt = 256,
        cache_gb: NonNegativeFloat = 0,
        weights: bool = True,
        source_config: dict[str, Any] | None = None,
    ):
        super().__init__()
        if not config and source != "scratch" and source_config is None:
            source_config = self.read_source_config({"source": source, "revision": revision, "config": config})
        if not isinstance(source_config, Mapping | None):
            raise UserError(
                f"vision.source: the checkpoint keeps {source_config!r} as its source's config; expected a mapping"
            )
        self.source_config = source_config
        values = dict(config or source_config or {})
        if image_size and source == "scratch":
            values.setdefault("image_size", image_size)
        self.config = made = self._configuration(values, "vision.config" if config else f"vision.source={source}")
        _check_sizes(made)
        self.dim, self.num_layers, self.num_heads = made.hidden_size, made.num_hidden_layers, made.num_attention_heads
        if self.dim % self.num_heads:
            raise UserError(f"vision: hidden_size {self.dim} does not divide by num_attention_heads {self.num_heads}")
        self.patch_size, self.own_size = _side(made, "patch_size"), self._own_size()
        self.image_size = image_size or self.own_size
        self.features_from = self._features_from(layer)
        self.is_whole = layer is None
        self.query_dim = query_dim or self.dim
        self.gradient_checkpointing, self.frames_at_once = gradient_checkpointing, frames_at_once
        self.cache_gb = cache_gb
        try:
            self.grid(self.image_size, self.image_size)
        except ValueError as error:
            raise UserError(f"vision.image_size={self.image_size}: {error}") from error
        usual = dict(zip(NORMALISATION, self.normalisation, strict=True))
        mean, std = (colours(key, values.get(key) or usual[key]) for key in NORMALISATION)
        self.beside_weights = f"{layer} {list(mean)} {list(std)} {made.to_json_string()}"
        cls = self.families[made.model_type][1]
        if weights and source != "scratch":
            folder = weights_folder(source, revision, self.packages)
            self._agree(source, self.source_values(folder), (mean, std))
            self.model = load(cls, made, folder, self.optional)
        else:
            try:
                self.model = cls(made)
            except Exception as error:  # whatever torch and transformers have against sizes and names
                raise UserError(f"vision: {made.model_type} cannot be built: {one_line(error)}") from error
        self.query = Gaze(self.query_dim, self.dim)
        self.register_buffer("mean", 255 * torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(3, 1, 1), persistent=False)

    # -- what differs between families ---------------------------------------------------------------------------------

    @abstractmethod
    def layers(self) -> Sequence[nn.Module]:
        """All layers, in order."""

    @abstractmethod
    def embed(self, pixels_FCHW: Tensor) -> tuple[Tensor, Place]:
        """What goes into the first layer, [F, first_patch + N, dim], and how patches are rotated by their places."""

    @abstractmethod
    def last_norm(self, x: Tensor) -> Tensor:
        """After the last layer, for the patches."""

    def query_norm(self, u: Tensor) -> Tensor:
        """After the last layer, for the queries."""
        return self.last_norm(u)

    def summary(self, h_FND: Tensor) -> Tensor:
        """What a layer's output says of whole frames, [F, dim]: CLS, before the last normalisation."""
        return h_FND[:, 0].clone()  # a view would keep the whole layer in memory

    @abstractmethod
    def attention(self, layer: nn.Module) -> nn.Module:
        """The module that holds ``q_proj``, ``k_proj`` and ``v_proj``."""

    @abstractmethod
    def before(self, layer: nn.Module, x: Tensor) -> Tensor:
        """The normalisation before attention."""

    @abstractmethod
    def finish(self, layer: nn.Module, x: Tensor, attended: Tensor) -> Tensor:
        """The rest of the layer after attention, residuals included."""

    def _own_size(self) -> int:
        """Side of the frames that the source was trained on."""
        return _side(self.config, "image_size")

    # -- the contract --------------------------------------------------------------------------------------------------

    @classmethod
    def read_source_config(cls, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """What the source says of its architecture and normalisation, as plain values; None where the settings say it.

        Raises:
            UserError: no such source, or one of another kind of model.
        """
        if settings.get("config") or settings.get("source", "scratch") == "scratch":
            return None
        return cls.source_values(described(settings["source"], settings.get("revision"), cls.packages))

    @classmethod
    def source_values(cls, folder: Path) -> dict[str, Any]:
        """The same of a folder: every value that the architecture has, defaults of the library among them."""
        found = vision_config(folder, tuple(cls.families))
        made = cls._configuration({k: v for k, v in found.items() if k in cls._names(found["model_type"])} | {
            "model_type": found["model_type"]}, str(folder))  # fmt: skip
        values = {name: getattr(made, name) for name in cls._names(made.model_type) if name not in FREE}
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        return {"model_type": made.model_type} | values | {k: found[k] for k in NORMALISATION if k in found}

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of patches for a frame of height x width pixels; ValueError where they do not divide.

        At the source's own size what fills no patch is left out, as the library does (384 pixels are 27 x 27 patches of
        14).
        """
        size = self.patch_size
        for side in (height, width):
            if side % size and side != self.own_size:
                raise ValueError(f"frames of {height} x {width} pixels: this encoder needs multiples of {size}")
        return height // size, width // size

    def encode(self, frames_BTCHW: Tensor, time_BT: Tensor, mask_BT: Tensor, wants: Wants = NOTHING_ELSE) -> Encoded:
        """Tokens [B, T * N, dim] in time order and what else is wanted.

        Args:
            frames_BTCHW: uint8, or floating point and then normalised already.
            time_BT: seconds.
            mask_BT: bool, False for padding (encoded like the rest, and marked).

        Returns:
            Tokens without CLS and registers; keys and values [B * T, heads, first_patch + N, d] with them; of frames,
            what ``summary`` says.
        """
        b, t, _, height, width = frames_BTCHW.shape
        grid = self.grid(height, width)
        x = frames_BTCHW.flatten(0, 1)
        pixels = x if x.is_floating_point() else (x.float() - self.mean) / self.std
        h, place = self.embed(pixels)
        query, features, pixels = None, h, pixels if wants.saliency == "spectral" else None  # four times the frames
        kv: KV = []
        summaries: list[Tensor] = []
        between: list[Tensor] = []
        last, layers = self.features_from, self.layers()
        for i, layer in enumerate(layers if wants.summaries else layers[:last]):
            if wants.layers and 0 < i < last:
                between.append(h[:, self.first_patch :])
            if wants.saliency and i == last - 1:
                query = self._rotated(self.project(layer, h), place)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                h, k, v = checkpoint(self._layer, layer, h, place, use_reentrant=False)
            else:
                h, k, v = self._layer(layer, h, place)
            if i < last:
                features, keys = h, k
                if wants.kv:
                    kv.append((k, v))
            if i >= len(layers) - wants.summaries:
                summaries.append(self.summary(h))
        x = self.last_norm(features)[:, self.first_patch :] if self.is_whole else features[:, self.first_patch :]
        tokens = Tokens.of_frames(x.unflatten(0, (b, t)), time_BT, mask_BT, grid)
        return encoded(wants, tokens, kv, summaries, pixels, query, keys, grid, between or [x])

    def gaze(
        self, query_FQD: Tensor, kv: KV, merged: MergedKeys | None = None, **how: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Read every frame with its queries: [F, Q, query_dim] -> (z [F, Q, dim], mean entropy in nats or None).

        A query has no place in the frame: where patches are rotated by theirs, it is not, like CLS.

        Args:
            query_FQD: queries.
            kv: keys and values of the layers up to the features'.
            merged: what stands behind keys that were merged.
            how: ``shallow``, ``return_entropy``, see ``Gaze``.
        """
        norm = self.query_norm if self.is_whole else _as_it_is
        layers = self.layers()[: self.features_from]
        return self.query(query_FQD, kv, layers, norm, self.project, self.finish, merged=merged, **how)

    def project(self, layer: nn.Module, u_FQD: Tensor) -> Tensor:
        """A layer's queries [F, heads, Q, d], before any rotation."""
        return split_heads(self.attention(layer).q_proj(self.before(layer, u_FQD)), self.num_heads)

    # -- one layer -----------------------------------------------------------------------------------------------------

    def _layer(self, layer: nn.Module, h_FND: Tensor, place: Place) -> tuple[Tensor, Tensor, Tensor]:
        """(the layer's output, keys, values)."""
        y, attention = self.before(layer, h_FND), self.attention(layer)
        q, k, v = (split_heads(p(y), self.num_heads) for p in (attention.q_proj, attention.k_proj, attention.v_proj))
        q, k = self._rotated(q, place), self._rotated(k, place)
        return self.finish(layer, h_FND, join_heads(attend(q, k, v))), k, v

    def _rotated(self, x_FHNd: Tensor, place: Place) -> Tensor:
        """Patches turned by their places; what stands before them has none."""
        if place is None:
            return x_FHNd
        cos, sin = place
        before, patches = x_FHNd[:, :, : self.first_patch], x_FHNd[:, :, self.first_patch :]
        a, b = patches.chunk(2, -1)
        turned = patches * cos + torch.cat([-b, a], -1) * sin
        return torch.cat([before, turned.to(x_FHNd.dtype)], 2)

    # -- configuration -------------------------------------------------------------------------------------------------

    @classmethod
    def _names(cls, model_type: str) -> list[str]:
        """What a configuration of this kind can say."""
        stated = cls.families[model_type][0].__annotations__
        return [name for name in stated if not name.startswith("_") and name != "model_type"]

    @classmethod
    def _configuration(cls, values: Mapping[str, Any], said_by: str) -> Any:
        """The library's configuration with these values, nothing dropped in training."""
        values = {k: v for k, v in values.items() if k not in NORMALISATION}
        kind = values.pop("model_type", None) or next(iter(cls.families))
        if kind not in cls.families:
            raise UserError(f"{said_by}: model_type={kind!r}, expected {' or '.join(cls.families)}")
        names = cls._names(kind)
        for name in values:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(names)}"
                raise UserError(f"unknown key '{said_by}.{name}' of {kind}; {hint}")
        try:
            return cls.families[kind][0](**values | {name: 0.0 for name in OFF if name in names})
        except Exception as error:  # of the library's checks, which raise what they like
            raise UserError(f"{said_by}: {' '.join(str(error).split())}") from error

    def _features_from(self, layer: int | None) -> int:
        """How many layers stand behind the features."""
        n = self.num_layers
        if layer is None:
            return n
        if layer == 0 or not -n <= layer <= n:
            raise UserError(f"vision.layer={layer}: the encoder has {n} layers; expected 1 to {n}, or -{n} to -1")
        return layer if layer > 0 else n + 1 + layer

    def _agree(self, source: str, found: Mapping[str, Any], normalisation: tuple[Sequence[float], ...]) -> None:
        """``UserError`` for the first value of the source that is another one here."""
        if found["model_type"] != self.config.model_type:
            raise self._differs(source, "model_type", found["model_type"], self.config.model_type)
        for name in self._names(self.config.model_type):
            ours = getattr(self.config, name)
            if name not in FREE and found[name] != (list(ours) if isinstance(ours, tuple) else ours):
                raise self._differs(source, name, found[name], ours)
        for name, ours in zip(NORMALISATION, normalisation, strict=True):
            if name in found and any(abs(a - b) > 1e-4 for a, b in zip(found[name], ours, strict=True)):
                raise self._differs(source, name, found[name], ours)

    def _differs(self, source: str, name: str, theirs: Any, ours: Any) -> UserError:
        return UserError(
            f"vision.source={source}: its {name} is {theirs}, the configuration has {ours}; "
            f"set {self.setting_of(name)}={theirs}, or vision.config=null to take the source's values"
        )

    @staticmethod
    def setting_of(name: str) -> str:
        """The key on the command line that says this value."""
        return f"vision.config.{name}"


def _check_sizes(config: Any) -> None:
    """``UserError`` for numbers with which no encoder can be built."""
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size", "num_patches"):
        value = getattr(config, name, None)
        if any(size is not None and size < 1 for size in (value if isinstance(value, list | tuple) else [value])):
            raise UserError(f"vision: {name}={value}: expected 1 or more")
    if (channels := getattr(config, "num_channels", 3)) != 3:
        raise UserError(f"vision: num_channels={channels}: frames have 3")


def _side(config: Any, name: str) -> int:
    """``image_size`` or ``patch_size``, one number or two equal ones."""
    value = getattr(config, name)
    sides = set(value) if isinstance(value, list | tuple) else {value}
    if len(sides) != 1 or None in sides:
        raise UserError(f"vision.source: {name}={value}: only square ones can be used")
    return sides.pop()


def _as_it_is(x: Tensor) -> Tensor:
    return x
