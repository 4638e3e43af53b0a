"""Two passes over the same sequence by which gates are learnt (DuoAttention, Xiao et al. 2024).

The first records what full attention gives in every layer. In the second, each KV head's output is a mixture: its gate
times what was recorded, which is a constant, plus the rest times what the head finds itself if it looks at the
beginning (the sink) and at what is recent alone. Both are caches only in name: they see one pass and keep no keys.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from hvlm.caching import PastKV, Scores
from hvlm.functional import attend, visible


class OnePass(PastKV):
    """Sees one pass over a whole sequence and keeps neither keys nor values of it."""

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_, **__) -> tuple[Tensor, Tensor]:
        if self.length > self._new:
            raise ValueError(f"{type(self).__name__} sees one pass over the whole sequence, and this is another one")
        return key_states.to(value_states.dtype), value_states


class Recorder(OnePass):
    """Full attention. outputs: {layer: what its heads gave, [K, H, S, d]}."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[int, Tensor] = {}

    def attend(self, layer_idx: int, query: Tensor, key: Tensor, value: Tensor, how: Scores) -> Tensor:
        self.outputs[layer_idx] = super().attend(layer_idx, query, key, value, how)
        return self.outputs[layer_idx]


class GatedMix(OnePass):
    """gate * recorded + (1 - gate) * sink-and-recent attention of this pass's own queries, keys and values.

    Args:
        gates: [layers, KV heads], in [0, 1]; gradients flow to it. A gate is its KV head's and serves the query heads
            that share it.
        recorded: ``Recorder.outputs`` of the same sequence.
        sink, recent: how many of a row's first tokens, and of those up to itself, a token sees. Padding does not count.
    """

    def __init__(self, gates: Tensor, recorded: Mapping[int, Tensor], sink: int, recent: int) -> None:
        super().__init__()
        self.gates, self.recorded, self.sink, self.recent = gates, recorded, sink, recent
        self._near: Tensor | None = None

    def attend(self, layer_idx: int, query: Tensor, key: Tensor, value: Tensor, how: Scores) -> Tensor:
        if how.window is not None:
            raise ValueError(f"layer {layer_idx} looks back by {how.window} positions: it is a streaming layer already")
        if self._near is None:
            self._near = sink_and_recent(self.mask_KL, self.sink, self.recent)
        near = attend(query, key, value, self._near, False, how.scale, self.bias_KL, how.softcap)
        gate_H = self.gates[layer_idx].repeat_interleave(query.shape[1] // self.gates.shape[1])
        gate = gate_H.view(1, -1, 1, 1)
        return (gate * self.recorded[layer_idx] + (1 - gate) * near).to(near.dtype)


def sink_and_recent(mask_KS: Tensor, sink: int, recent: int) -> Tensor:
    """What a streaming head sees of a whole sequence: bool [K or 1, 1, S, S].

    Of the valid tokens of its row the first ``sink``, and the last ``recent`` up to itself. Padding sees itself, so
    that no row of the softmax is empty; nobody sees padding.
    """
    if mask_KS.device.type != "meta" and bool(mask_KS.all()):
        mask_KS = mask_KS[:1]
    nth_KS = mask_KS.cumsum(1) - 1
    query, key = nth_KS[:, None, :, None], nth_KS[:, None, None, :]
    return visible(mask_KS, mask_KS.shape[1]) & ((key < sink) | (query - key < recent))
