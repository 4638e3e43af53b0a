"""What language rooms share: a causal language model of transformers, spoken to in embeddings.

The video's tokens stand among the text's, so ``embed`` comes first, then ``hidden`` over whatever sequence was laid
out, then ``logits`` at the places that matter.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from hvlm.caching import NOWHERE, PastKV
from hvlm.contracts import Language
from hvlm.errors import UserError
from hvlm.functional import visible, within
from hvlm.language._attention import IMPLEMENTATION
from hvlm.language._packing import Packed, packed
from hvlm.language._rotation import Rotation
from hvlm.text.chat import Chat

# The name that transformers changed within version 5: the older one, which warns now, goes in 5.40 and in 6.
_CHECKPOINTING = (
    "activation_checkpointing_enable"
    if hasattr(PreTrainedModel, "activation_checkpointing_enable")
    else "gradient_checkpointing_enable"
)


class CausalRoom(Language):
    """A causal language model over embeddings. ``.model`` is transformers' own, untouched.

    A variant makes the model (its config with ``attention`` from ``implementation``) and calls ``take``; the sizes that
    other rooms ask for come from the model's own config.

    pack: whether, while learning, rows are laid into fewer ones without padding.
    ours: attention is ``hvlm.functional.attend``. windows: of the layers that look back by so many positions only.
    """

    model: PreTrainedModel
    ours: bool

    def __init__(self, chat: Chat | None, gradient_checkpointing: bool, pack: bool = False):
        super().__init__()
        self.chat, self.gradient_checkpointing, self.pack = chat, gradient_checkpointing, pack

    def take(self, model: PreTrainedModel) -> None:
        """The room's model, once, when it stands."""
        config = model.config
        self.model, self.ours = model, config._attn_implementation == IMPLEMENTATION
        self.asks_cache = self.ours
        self._eager = config._attn_implementation == "eager"
        self.dim, self.num_layers = config.hidden_size, config.num_hidden_layers
        self.num_heads = config.num_attention_heads
        self.num_kv_heads = getattr(config, "num_key_value_heads", None) or self.num_heads
        self.head_dim = getattr(config, "head_dim", None) or self.dim // self.num_heads
        self.max_positions = config.max_position_embeddings
        self.learned_positions = any(
            isinstance(part, nn.Embedding) and part.num_embeddings >= self.max_positions
            for part in model.base_model.modules()
            if part is not model.get_input_embeddings()
        )
        self.windows = windows_of(config)
        self._dtype = next(model.parameters()).dtype
        accepted = inspect.signature(type(model.base_model).forward).parameters
        self._cache = "cache" if "cache" in accepted else "past_key_values"
        if self.gradient_checkpointing:
            getattr(model, _CHECKPOINTING)({"use_reentrant": False})

    def checkpoint_layers(self) -> list[nn.Module]:
        """Compute activations again in the backward pass from now on, layer by layer: the layers, which transformers
        lets do so in training mode only."""
        self.gradient_checkpointing = True
        getattr(self.model, _CHECKPOINTING)({"use_reentrant": False})
        return [m for m in self.model.modules() if isinstance(m, GradientCheckpointingLayer)]

    def embed(self, ids_KS: Tensor) -> Tensor:
        """Token ids -> embeddings [K, S, dim], as the model's own layers are fed them (Gemma's are scaled)."""
        return self._out(self.model.get_input_embeddings()(ids_KS))

    def hidden(
        self,
        x_KSD: Tensor,
        mask_KS: Tensor | None = None,
        position_KS: Tensor | None = None,
        cache: PastKV | None = None,
        log_size_KS: Tensor | None = None,
    ) -> Tensor:
        """Embeddings -> states after the final norm. Token s sees the valid tokens up to itself.

        Args:
            x_KSD: embeddings of the S tokens to read. All arguments speak of these alone, whatever was read before.
            mask_KS: bool, False for padding, anywhere in the row: the valid tokens come out exactly as if the others
                were not there. None: everything is valid.
            position_KS: int64; by default valid tokens are counted, in a cache from the row's last valid one on. Layers
                with a window look back by so many positions.
            cache: what is kept of the tokens read before, and grows by these; None: there were none.
            log_size_KS: float, added to the attention scores of each token: ToMe's proportional attention, in which a
                merged token counts as often as the tokens that it stands for.

        Returns:
            [K, S, dim].

        Raises:
            ValueError: for a mask or sizes of another shape than [K, S].
            UserError: positions beyond those that the model has learned, in a cache.
        """
        if self._dtype != torch.float32:
            x_KSD = x_KSD.to(self._dtype)
        if cache is not None:
            cache.rotation = self.rotation
            position_KS = cache.extend(x_KSD, mask_KS, position_KS, log_size_KS)
            if self.learned_positions and not position_KS.is_meta and position_KS.max() >= self.max_positions:
                raise UserError(
                    f"the language model has learned {self.max_positions} positions, and what it reads goes on to "
                    f"{int(position_KS.max()) + 1}; show fewer frames, or use a model with rotary positions"
                )
            # Our attention asks the cache; the mask is there to keep transformers from making one.
            seen = x_KSD.new_ones(1, 1, 1, 1, dtype=torch.bool) if self.ours else self._by_layer(cache.full_mask)
            more = {self._cache: cache, "kept": cache} if self.ours else {self._cache: cache}
            checkpoints = self.training and torch.is_grad_enabled()
            with self._without_checkpointing() if checkpoints else nullcontext():
                return self._states(x_KSD, seen, position_KS, **more)

        rows, length, _ = x_KSD.shape
        if mask_KS is not None and mask_KS.shape != (rows, length):
            raise ValueError(f"mask {tuple(mask_KS.shape)}: expected ({rows}, {length})")
        if self.pack and torch.is_grad_enabled() and mask_KS is not None and (fewer := packed(mask_KS)) is not None:
            return self._packed(fewer, x_KSD, mask_KS, position_KS, log_size_KS)
        if self._looks_back_less_than(length, position_KS):
            return self._windowed(x_KSD, mask_KS, position_KS, log_size_KS)
        more = {}
        if log_size_KS is not None and self.ours:
            # Sizes, and with them padding, travel beside the keys; attention stays plainly causal.
            more["key_bias"] = log_size_KS if mask_KS is None else log_size_KS.masked_fill(~mask_KS, NOWHERE)
            if position_KS is None and mask_KS is not None:
                position_KS = (mask_KS.cumsum(1) - 1).clamp(min=0)
            seen = x_KSD.new_ones(rows, length, dtype=torch.bool)
        elif log_size_KS is None and (mask_KS is None or mask_KS.all()):
            # Plain causal: transformers and the attention know how to do that without a mask. (Where positions leap and
            # no mask says that all is one sequence, transformers takes them for several packed ones.)
            seen = None if position_KS is None else x_KSD.new_ones(rows, length, dtype=torch.bool)
        else:
            if mask_KS is None:
                mask_KS = torch.ones(rows, length, dtype=torch.bool, device=x_KSD.device)
            if position_KS is None:
                position_KS = (mask_KS.cumsum(1) - 1).clamp(min=0)
            seen = self._added(_with_sizes(visible(mask_KS, length), log_size_KS))
        if position_KS is None:
            position_KS = torch.arange(length, device=x_KSD.device).unsqueeze(0)
        return self._states(x_KSD, seen, position_KS, **more)

    def _packed(
        self, fewer: Packed, x_KSD: Tensor, mask_KS: Tensor, position_KS: Tensor | None, log_size_KS: Tensor | None
    ) -> Tensor:
        """``hidden`` with several rows in one: none sees another, and positions are those of its own."""
        if position_KS is None:
            position_KS = (mask_KS.cumsum(1) - 1).clamp(min=0)
        x, position, seen = fewer.lay(x_KSD), fewer.lay(position_KS), fewer.seen()
        log_size = None if log_size_KS is None else fewer.lay(log_size_KS)
        if self._looks_back_less_than(x.shape[1], position):
            states = self._windowed(x, fewer.mask_RC, position, log_size, seen)
        else:
            states = self._states(x, self._added(_with_sizes(seen, log_size)), position)
        return fewer.back(states, *mask_KS.shape)

    def logits(self, h: Tensor) -> Tensor:
        """States [..., dim] -> [..., vocabulary]. Pass only the places that are needed: the vocabulary is large."""
        return self.model.lm_head(h)

    @cached_property
    def rotation(self) -> Rotation | None:
        """How the model's layers rotate queries and keys; None where that cannot be told from outside."""
        return Rotation.of(self.model)

    # --------------------------------------------------------------------------------------------- windows of layers

    def _looks_back_less_than(self, length: int, position_KS: Tensor | None) -> bool:
        """Whether some layer's window is shorter than the sequence."""
        if not self.windows:
            return False
        reach = length if position_KS is None else max(length, int(position_KS.max() - position_KS.min()) + 1)
        return min(self.windows) < reach

    def _windowed(
        self,
        x_KSD: Tensor,
        mask_KS: Tensor | None,
        position_KS: Tensor | None,
        log_size_KS: Tensor | None,
        together: Tensor | None = None,
    ) -> Tensor:
        """``hidden`` where a layer's mask depends on its window. together: what places see without one, where
        rows hold several."""
        rows, length, _ = x_KSD.shape
        valid_KS = torch.ones(rows, length, dtype=torch.bool, device=x_KSD.device) if mask_KS is None else mask_KS
        if position_KS is None:
            position_KS = (valid_KS.cumsum(1) - 1).clamp(min=0)
        everything = visible(valid_KS, length) if together is None else together

        def seen(window: int | None) -> Tensor:
            return everything if window is None else everything & within(position_KS, length, window)

        if not self.ours:
            return self._states(x_KSD, self._by_layer(lambda w=None: _with_sizes(seen(w), log_size_KS)), position_KS)
        more: dict[str, Any] = {"masks": {window: seen(window) for window in (None, *self.windows)}}
        if together is None and (mask_KS is None or bool(mask_KS.all())):
            more["masks"][None] = None  # plainly causal, which is faster without a mask
        if log_size_KS is not None:
            more["key_bias"] = log_size_KS if mask_KS is None else log_size_KS.masked_fill(~mask_KS, NOWHERE)
        # As with a cache, the mask only keeps transformers from making one.
        return self._states(x_KSD, x_KSD.new_ones(1, 1, 1, 1, dtype=torch.bool), position_KS, **more)

    def _by_layer(self, mask: Callable[..., Tensor]) -> Tensor | dict[str, Tensor]:
        """``mask(window)`` as transformers' own models want it: one mask, or one for each kind of layer where the
        config knows kinds."""
        config = self.model.config
        if not self.windows:
            return self._added(mask())
        if (kinds := getattr(config, "layer_types", None)) is None:
            return self._added(mask(config.sliding_window))
        window = {SLIDING: config.sliding_window}
        return {kind: self._added(mask(window.get(kind))) for kind in set(kinds)}

    def _added(self, seen: Tensor) -> Tensor:
        """transformers' readable attention adds its mask to the scores."""
        if not self._eager or seen.dtype != torch.bool:
            return seen.to(self._dtype) if seen.dtype != torch.bool and self._dtype != torch.float32 else seen
        return torch.zeros(seen.shape, dtype=self._dtype, device=seen.device).masked_fill(
            ~seen, torch.finfo(self._dtype).min
        )

    # ------------------------------------------------------------------------------------------------------- passes

    def rehearse(self) -> None:
        """Read two places with a cache, on torch's meta device: takes no memory. UserError where the model's layers do
        not hand on to attention what ours needs, which some classes of transformers forget."""
        if type(self.model) in _TOLD:
            return
        with torch.no_grad(), suppress(NotImplementedError, RuntimeError):  # of what depends on values there
            self.hidden(torch.empty(1, 2, self.dim), cache=PastKV())

    def _states(self, x_KSD: Tensor, seen: Any, position_KS: Tensor, **more: Any) -> Tensor:
        kind = type(self.model)
        if not more or not self.ours or kind in _TOLD:
            return self._pass(x_KSD, seen, position_KS, **more)
        reached: set[int] = set()
        states = self._pass(x_KSD, seen, position_KS, reached=reached, **more)
        if len(reached) < self.num_layers:
            raise UserError(
                f"language.attention=auto: the layers of {self.model.config.model_type} do not hand on what ours needs "
                "to know; use language.attention=sdpa"
            )
        _TOLD.add(kind)
        return states

    def _pass(self, x_KSD: Tensor, seen: Any, position_KS: Tensor, **more: Any) -> Tensor:
        output = self.model.base_model(inputs_embeds=x_KSD, attention_mask=seen, position_ids=position_KS, **more)
        return self._out(output.last_hidden_state)

    def _out(self, x: Tensor) -> Tensor:
        """The other rooms compute in float32 (under autocast): narrower weights keep to themselves."""
        return x if self._dtype == torch.float32 else x.float()

    @contextmanager
    def _without_checkpointing(self) -> Iterator[None]:
        """For a pass with a cache: layers that compute their activations again would add their keys again, so
        transformers leaves the cache out of them."""
        layers = [m for m in self.model.modules() if isinstance(m, GradientCheckpointingLayer)]
        before = [layer.gradient_checkpointing for layer in layers]
        for layer in layers:
            layer.gradient_checkpointing = False
        try:
            yield
        finally:
            for layer, on in zip(layers, before, strict=True):
                layer.gradient_checkpointing = on


SLIDING = "sliding_attention"
_TOLD: set[type] = set()  # models all of whose layers were seen to hand on to attention what ours needs


def windows_of(config: PreTrainedConfig) -> tuple[int, ...]:
    """The windows of a model's layers, as transformers' own masks have them: () where every layer sees everything."""
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    return () if window is None or (kinds is not None and SLIDING not in kinds) else (window,)


def implementation(attention: str) -> str:
    """The setting ``attention`` as transformers knows it."""
    return IMPLEMENTATION if attention == "auto" else attention


def check_chat(chat: Chat | None, settings: Mapping[str, Any], vocab_size: int | None) -> None:
    """UserError where a model of that many ids cannot read the chat, or the chat was made with other settings."""
    if chat is None:
        if vocab_size is None:
            raise UserError("language.vocab_size=null: without a tokenizer the number of ids must be given")
        return
    template, system = settings["template"], settings["system"]
    if (chat.template, chat.system) != (template, system):
        raise UserError(
            f"language.template={template}, language.system={system!r}: the chat was made with template="
            f"{chat.template}, system={chat.system!r}; leave both as they were when the vocabulary was made"
        )
    if isinstance(vocab_size, int) and vocab_size < chat.vocab_size:  # of another type, its config refuses it
        raise UserError(f"language.vocab_size={vocab_size}: the tokenizer has {chat.vocab_size} ids; use null")


def _with_sizes(seen: Tensor, log_size_KS: Tensor | None) -> Tensor:
    """A mask, with what sizes add to the scores of those that may be seen."""
    if log_size_KS is None:
        return seen
    return torch.where(seen, log_size_KS[:, None, None, :].float(), torch.finfo(torch.float32).min)
