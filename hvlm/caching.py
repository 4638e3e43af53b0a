"""What a language model keeps of what it has read: keys and values, and of each its validity, position and bias.

A pass over new tokens goes: ``language.hidden`` announces them with ``cache.extend`` and gets their positions; each
layer's attention hands in its new keys and values (``update``) and looks at what it gets back (``attend``). So whoever
calls the language model speaks of the new tokens alone, and a cache may forget what it likes: it knows itself what is
left, where that stood, how much it counts and which row it belongs to.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import Cache, DynamicLayer

from hvlm.functional import attend, last_true, visible, with_causal, within

NOWHERE = -1e4  # as a bias it leaves a weight of exactly zero, and every dtype holds it


class Held(NamedTuple):
    """What ``update`` gives in place of keys and of values where only the cache itself can read them."""

    cache: PastKV
    layer_idx: int


class Scores(NamedTuple):
    """How a layer makes scores of queries and keys: what is the layer's own, and no cache changes it.

    scale: of their products; None: 1 / sqrt(d). window: it looks back by fewer positions than that
    (``PastKV.window_mask``). softcap: as in ``hvlm.functional.attend``. None: the layer has none.
    """

    scale: float | None = None
    window: int | None = None
    softcap: float | None = None

    def scale_for(self, width: int) -> float:
        """The scale spelt out, for queries of so many numbers."""
        return width**-0.5 if self.scale is None else self.scale


class Rotates(Protocol):
    """How a language model rotates queries and keys (``hvlm.language._rotation.Rotation``)."""

    def angles(self, position_KS: Tensor, layer: int) -> Any: ...

    def turn(self, x_KHSd: Tensor, angles: Any) -> Tensor: ...


class PastKV(Cache):
    """Keeps everything: reading piece by piece then equals one pass over the whole sequence.

    Tensors are never written in place, so gradients flow through it and copies share them.

    A cache that forgets overrides ``keep``, which is the same for all layers and heads; one whose layers or heads keep
    different things overrides ``update`` and ``attend``, where the layer is known.

    Attributes (of the places that are kept, L of them, oldest first; None before the first ``extend``):
        mask_KL: bool, False for padding. It may stand anywhere in a row.
        position_KL: int64.
        bias_KL: float, added to the attention scores of a place; None while nobody gave one.
        next_K1: int64, the position after each row's last valid token.
        length: places read so far, padding and forgotten ones included.
        in_pieces: reading in pieces of any size is reading all at once; False: what is asked goes in token by token.
        rotation: of the language model that reads through it; None before the first pass, and of a model whose rotation
            cannot be told.
    """

    in_pieces: bool = True
    rotation: Rotates | None = None

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=DynamicLayer)
        self._forget()

    def _forget(self) -> None:
        self.layers: list[DynamicLayer] = []
        self.mask_KL: Tensor | None = None
        self.position_KL: Tensor | None = None
        self.bias_KL: Tensor | None = None
        self.next_K1: Tensor | None = None
        self.length = 0
        self._padded = False  # whether a kept place may be invalid; known without asking the device
        # Of the pass that was announced last: its tokens, all keys that it sees, what of them, and what is kept then.
        self._new = self._keys = 0
        self._mask: Tensor | None = None
        self._key_bias: Tensor | None = None
        self._index_KN: Tensor | None = None
        # For attention within a window: where what that pass sees stood, whether all of it was counted, and the masks.
        self._mask_KL: Tensor | None = None
        self._position_KL: Tensor | None = None
        self._counted = True
        self._windows: dict[int, Tensor | None] = {}

    # ------------------------------------------------------------------------------------------------------ a pass

    def extend(
        self,
        x_KSD: Tensor,
        mask_KS: Tensor | None = None,
        position_KS: Tensor | None = None,
        bias_KS: Tensor | None = None,
    ) -> Tensor:
        """Announce S new tokens in each of K rows, before their pass.

        Args:
            x_KSD: their embeddings, of which only the shape and the device count.
            mask_KS: bool, False for padding. None: all are valid.
            position_KS: int64 [K or 1, S]. None: valid tokens go on counting after the row's last valid one.
            bias_KS: float, added to the attention scores of each. None: zero.

        Returns:
            Their positions, int64 [K, S].

        Raises:
            ValueError: for shapes that are not those of the new tokens alone.
        """
        rows, new, device = len(x_KSD), x_KSD.shape[1], x_KSD.device
        for name, value in (("mask", mask_KS), ("bias", bias_KS)):
            if value is not None and value.shape != (rows, new):
                raise ValueError(
                    f"{name} {tuple(value.shape)}: expected ({rows}, {new}), that of the new tokens alone; the cache "
                    "knows its own"
                )
        if self.mask_KL is None:
            self.mask_KL = torch.ones(rows, 0, dtype=torch.bool, device=device)
            self.position_KL = torch.zeros(rows, 0, dtype=torch.long, device=device)
            self.next_K1 = torch.zeros(rows, 1, dtype=torch.long, device=device)
        elif len(self.mask_KL) != rows:
            raise ValueError(f"{rows} rows of new tokens, but the cache holds {len(self.mask_KL)}")
        padded = mask_KS is not None and not mask_KS.all()
        if mask_KS is None:
            mask_KS = torch.ones(rows, new, dtype=torch.bool, device=device)
        self._counted = self._counted and position_KS is None
        if position_KS is None:
            counted = mask_KS.cumsum(1) - 1 if padded else torch.arange(new, device=device)
            position_KS = (self.next_K1 + counted).clamp(min=0)
        position_KS = position_KS.expand(rows, new)
        self.next_K1 = _after(mask_KS, position_KS, self.next_K1) if padded else position_KS[:, -1:] + 1

        if bias_KS is not None or self.bias_KL is not None:
            new_bias = torch.zeros(rows, new, device=device) if bias_KS is None else bias_KS
            old_bias = new_bias.new_zeros(self.mask_KL.shape) if self.bias_KL is None else self.bias_KL
            self.bias_KL = torch.cat([old_bias, new_bias], 1)
        self.mask_KL = torch.cat([self.mask_KL, mask_KS], 1)
        self.position_KL = torch.cat([self.position_KL, position_KS], 1)
        self.length, self._padded = self.length + new, self._padded or padded

        self._new, self._keys = new, self.mask_KL.shape[1]
        self._see()
        self._index_KN = self.keep()
        if self._index_KN is not None:
            self._go_on_with(self._index_KN)
        return position_KS

    def announced(self, layer_idx: int, mask: Tensor | None) -> None:
        """Called before ``attend`` of a layer whose ``update`` gave ``Held``, with the mask that attention was given:
        for passes that nobody announced with ``extend``."""

    def _see(self) -> None:
        """What the pass that was announced sees of all that is kept and of itself."""
        self._mask = self._key_bias = None
        self._mask_KL, self._position_KL, self._windows = self.mask_KL, self.position_KL, {}
        if self.bias_KL is not None:  # padding travels beside the keys as well, and attention stays plainly causal
            self._key_bias = self.bias_KL.masked_fill(~self.mask_KL, NOWHERE) if self._padded else self.bias_KL
        elif self._padded:
            self._mask = visible(self.mask_KL, self._new)

    def tell(self, frame_KS: Tensor, slot_KS: Tensor) -> None:
        """Say of the next S places of each row, before the passes that read them, what of the video they are.

        Whoever does not know says nothing. What it is to a cache is its own matter, and to most of them nothing.

        Args:
            frame_KS: int64 [K, S], which frame; -1 for text.
            slot_KS: int64 [K, S], which place within a frame, the same number in every frame.
        """

    def keep(self) -> Tensor | None:
        """Which places to go on with after this pass, in which the new tokens still see all that was kept before it.

        Called by ``extend`` when ``mask_KL``, ``position_KL`` and ``bias_KL`` speak of the kept places and, after them,
        of the new ones.

        Returns:
            Their indices, int64 [K, N], ascending; -1 fills rows with fewer than N. None keeps all.
        """
        return None

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_, **__) -> tuple[Tensor, Tensor]:
        """Take a layer's new keys and values [K, G, S, d]; returns those of the kept places and then the new ones.

        (Arguments as transformers names them.) Under autocast the rotation leaves keys in float32: they are kept in the
        dtype of the values.
        """
        keys, values = super().update(key_states.to(value_states.dtype), value_states, layer_idx)
        if self._index_KN is not None:
            layer, (rows, kept) = self.layers[layer_idx], self._index_KN.shape
            index = self._index_KN.clamp(min=0).view(rows, 1, kept, 1).expand(-1, keys.shape[1], -1, keys.shape[3])
            layer.keys, layer.values = keys.gather(2, index), values.gather(2, index)
        return keys, values

    def attend(self, layer_idx: int, query: Tensor, key: Tensor, value: Tensor, how: Scores) -> Tensor:
        """Attention of the new tokens' queries [K, H, S, d] over what ``update`` gave for this layer: [K, H, S, d].

        how: the layer makes its scores.
        """
        mask = self._mask if how.window is None else self.window_mask(how.window)
        return attend(query, key, value, mask, mask is None, how.scale, self._key_bias, how.softcap)

    def window_mask(self, window: int) -> Tensor | None:
        """What the new tokens see in a layer that looks back by fewer than ``window`` positions: bool [K, 1, S, L].
        None: everything up to itself, and no padding."""
        if window not in self._windows:
            mask, position_KL = self._mask, self._position_KL
            # Counted positions of fewer places than the window holds lie within it; others must be asked.
            reach = self.length if self._counted else int(position_KL.max() - position_KL.min()) + 1
            if reach > window:
                mask = visible(self._mask_KL, self._new) if mask is None else mask
                mask = mask & within(position_KL, self._new, window)
            self._windows[window] = mask
        return self._windows[window]

    def full_mask(self, window: int | None = None) -> Tensor:
        """The same visibility spelt out, for an attention that does not ask the cache: bool, or float and to be added,
        [K or 1, 1, S, L] with L the places that ``update`` returns."""
        seen = self._mask if window is None else self.window_mask(window)
        if self._key_bias is None and seen is not None:
            return seen
        if seen is None:
            seen = with_causal(None, self._new, self._keys, self._position_KL.device)[None, None]
        if self._key_bias is None:
            return seen
        return torch.where(seen, self._key_bias[:, None, None, :].float(), torch.finfo(torch.float32).min)

    def reserve(self, places: int) -> None:
        """So many places will be read in all: a cache that allocates ahead does it once."""

    def question(self) -> None:
        """The context was read; what follows is asked about it. For caches that choose at this point what stays."""

    # --------------------------------------------------------------------------------------------- rows and copies

    def copy(self) -> PastKV:
        """Another cache that goes on from here; the tensors are shared until one of the two grows."""
        other = copy.copy(self)
        other.layers = [copy.copy(layer) for layer in self.layers]
        return other

    @property
    def nbytes(self) -> int:
        """Bytes allocated for keys and values."""
        tensors = [tensor for layer in self.layers for tensor in (layer.keys, layer.values)]
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Places read so far, whatever became of them."""
        return self.length

    def reset(self) -> None:
        """Empty again."""
        self._forget()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row k goes on as row ``beam_idx[k]`` was."""
        super().reorder_cache(beam_idx)
        self._take_rows(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows only."""
        super().batch_select_indices(indices)
        self._take_rows(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row becomes ``repeats`` neighbouring ones."""
        super().batch_repeat_interleave(repeats)
        if self.mask_KL is not None:
            rows = torch.arange(len(self.mask_KL), device=self.mask_KL.device)
            self._take_rows(rows.repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the newest ``-tokens_to_remove`` places of every row (a negative number, as in transformers).

        Raises:
            ValueError: for a positive number, or where places were forgotten that would have to come back.
        """
        if tokens_to_remove > 0 or self.length + tokens_to_remove < 0:
            raise ValueError(f"crop({tokens_to_remove}): expected minus a number of places, of {self.length}")
        if self.mask_KL is None or not tokens_to_remove:
            return
        if self.mask_KL.shape[1] < self.length:
            raise ValueError("places were forgotten since: a cache that forgets cannot take tokens back; use copy()")
        super().crop(tokens_to_remove)
        for layer in self.layers:  # a slice alone would hold on to all of the memory
            layer.keys, layer.values = layer.keys.clone(), layer.values.clone()
        self.length += tokens_to_remove
        left = torch.arange(self.length, device=self.mask_KL.device)
        self._go_on_with(left.expand(len(self.mask_KL), -1))
        self.next_K1 = torch.zeros_like(self.next_K1)
        if self.length:
            self.next_K1 = _after(self.mask_KL, self.position_KL, self.next_K1)

    def _take_rows(self, index_R: Tensor) -> None:
        for name in ("mask_KL", "position_KL", "bias_KL", "next_K1"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else value[index_R])

    def _go_on_with(self, index_KN: Tensor) -> None:
        """Know of these places of each row alone, -1 for none. (Keys and values follow in ``update``.)"""
        index = index_KN.clamp(min=0)
        self.mask_KL = self.mask_KL.gather(1, index) & (index_KN >= 0)
        self.position_KL = self.position_KL.gather(1, index)
        self.bias_KL = None if self.bias_KL is None else self.bias_KL.gather(1, index)
        self._padded = not bool(self.mask_KL.all())


def _after(mask_KS: Tensor, position_KS: Tensor, otherwise_K1: Tensor) -> Tensor:
    """The position after each row's last valid one."""
    last = position_KS.gather(1, last_true(mask_KS).unsqueeze(1))
    return torch.where(mask_KS.any(1, keepdim=True), last + 1, otherwise_K1)
