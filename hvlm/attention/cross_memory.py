"""Cross-memory: a segment of the video looks at itself and at a memory of everything before it.

The recurrent memories of Transformer-XL and RMT (Dai et al. 2019; Bulatov et al. 2022), and for video MovieChat (Song
et al. 2023), whose ``merge`` is one of the updates. Instead of concatenating memory and segment, every head decides for
every token how much it takes from where:

    y = W_o ( (1 - g) ⊙ softmax(q kᵀ) v  +  g ⊙ softmax(q k_mᵀ) v_m ),   g = σ(W_g x), one per head

The room walks through the video segment by segment; each sees at most M memory tokens m, which are then updated by

    fifo   the newest M tokens stay
    merge  of memory and segment, neighbours in time that are most alike are averaged until M are left
    write  m <- m + σ(W_z m) ⊙ Attn(m <- segment): learned slots that read the segment

Cost for segments of L tokens: 4 S (L + M) D operations beside the projections' 8 S D²: linear in S. A stream keeps the
memory alone, M D values, and a segment.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvlm.attention._base import check_readout, read_out
from hvlm.attention._qkv import Heads
from hvlm.config.ranges import PositiveInt, Probability
from hvlm.contracts import Attention
from hvlm.functional import attend
from hvlm.types import Tokens

UPDATES = ("merge", "fifo", "write")


class CrossMemoryAttention(Heads):
    """Called as ``layer(local [B, N, dim], memory [B, M, dim])``; without a memory it looks at a learned bank of
    ``bank`` tokens. dim, num_heads, dropout: see ``Heads``; causal: within the segment."""

    def __init__(
        self,
        dim: int = 768,
        num_heads: int = 12,
        causal: bool = False,
        bank: PositiveInt = 16,
        dropout: Probability = 0.0,
    ):
        super().__init__(dim, num_heads, dropout)
        self.causal = causal
        self.bank = nn.Parameter(0.02 * torch.randn(1, bank, dim))
        self.gate = nn.Linear(dim, num_heads)

    def forward(
        self,
        local_BND: Tensor,
        memory_BMD: Tensor | None = None,
        mask_BN: Tensor | None = None,
        memory_mask_BM: Tensor | None = None,
    ) -> Tensor:
        """[B, N, dim] -> [B, N, dim]. Masks: bool, False where nobody may look."""
        q, k, v = self.project(local_BND)
        near = attend(q, k, v, mask_BN, self.causal, scale=1.0)
        far = self._from_memory(q, memory_BMD, memory_mask_BM)
        share = self.gate(local_BND).sigmoid().transpose(1, 2).unsqueeze(-1).to(near.dtype)
        if memory_mask_BM is not None:  # nothing remembered yet
            share = share * memory_mask_BM.any(1)[:, None, None, None]
        return self.finish(torch.lerp(near, far, share))

    def reference(
        self,
        local_BND: Tensor,
        memory_BMD: Tensor,
        mask_BN: Tensor | None = None,
        memory_mask_BM: Tensor | None = None,
    ) -> Tensor:
        """``forward`` with all scores, where every clip remembers something."""
        n, m = local_BND.shape[1], memory_BMD.shape[1]
        (q, k, v), (_, k_m, v_m) = self.project(local_BND), self.project(memory_BMD)
        seen = torch.ones(1, 1, n, n + m, dtype=torch.bool, device=q.device)
        if self.causal:
            seen = F.pad(seen[..., :n].tril(), (0, m), value=True)
        for mask, at in ((mask_BN, slice(0, n)), (memory_mask_BM, slice(n, None))):
            if mask is not None:
                seen = seen.expand(len(q), -1, -1, -1).clone()
                seen[..., at] &= mask[:, None, None]
        scores = (q @ torch.cat([k, k_m], 2).mT).masked_fill(~seen, -torch.inf)
        share = self.gate(local_BND).sigmoid().transpose(1, 2).unsqueeze(-1)
        near, far = scores[..., :n].softmax(-1) @ v, scores[..., n:].softmax(-1) @ v_m
        return self.finish((1 - share) * near + share * far)

    def fuse_with_memory(
        self,
        local_BND: Tensor,
        memory_BMD: Tensor,
        fusion_ratio: float = 0.5,
        memory_mask_BM: Tensor | None = None,
    ) -> Tensor:
        """(1 - ρ) local + ρ CrossAttn(local <- memory), shape of ``local``; ρ = 0 gives ``local`` itself."""
        if not 0 <= fusion_ratio <= 1:
            raise ValueError(f"fusion_ratio={fusion_ratio}: expected 0 to 1")
        if fusion_ratio == 0:
            return local_BND
        (q,) = self.split_qkv(1, 2)[0](local_BND)
        far = self.finish(self._from_memory(q, memory_BMD, memory_mask_BM))
        return (1 - fusion_ratio) * local_BND + fusion_ratio * far

    def _from_memory(self, q: Tensor, memory_BMD: Tensor | None, mask_BM: Tensor | None) -> Tensor:
        if memory_BMD is None:
            memory_BMD = self.bank.expand(len(q), -1, -1)
        k, v = self.split_qkv(1, 2)[1](memory_BMD)
        return attend(q, k, v, mask_BM, scale=1.0)

    def flops(self, length: int, memory: int | None = None) -> int:
        """For one segment of ``length`` tokens."""
        memory = self.bank.shape[1] if memory is None else memory
        pairs = length * (length + 1) // 2 if self.causal else length**2
        gate = 2 * length * self.dim * self.num_heads
        return (
            self.projection_flops(length) + 4 * memory * self.dim**2 + 4 * (pairs + length * memory) * self.dim + gate
        )

    def state_bytes(self, length: int, bytes_per_value: int = 4, memory: int | None = None) -> int:
        return (self.bank.shape[1] if memory is None else memory) * self.dim * bytes_per_value


class Memory(NamedTuple):
    """x_BMD, which of them mean anything, and how many tokens were averaged into each (float32)."""

    x_BMD: Tensor
    mask_BM: Tensor
    size_BM: Tensor


class CrossMemoryRoom(Attention):
    """Tokens -> (Tokens, Memory), segment by segment in time order.

    segment: tokens that see each other. memory_tokens: M. update: ``merge``, ``fifo`` or ``write``. readout: hand on
    every k-th token. gradient_checkpointing: compute segments again in the backward pass. causal: inside a segment, too
    (what came before is seen through the memory alone in any case).
    """

    def __init__(
        self,
        segment: PositiveInt = 256,
        memory_tokens: PositiveInt = 64,
        update: Literal["merge", "fifo", "write"] = "merge",
        causal: bool = False,
        dropout: Probability = 0.0,
        readout: PositiveInt = 1,
        gradient_checkpointing: bool = False,
        *,
        dim: int,
        num_heads: int,
    ):
        super().__init__()
        if update not in UPDATES:
            raise ValueError(f"attention.update={update!r}: expected one of {', '.join(UPDATES)}")
        if segment < 1 or memory_tokens < 1:
            raise ValueError(
                f"attention.segment={segment}, attention.memory_tokens={memory_tokens}: expected 1 or more"
            )
        self.segment, self.memory_tokens, self.update, self.causal = segment, memory_tokens, update, causal
        self.readout, self.gradient_checkpointing = check_readout(readout), gradient_checkpointing
        self.norm = nn.LayerNorm(dim)
        self.layer = CrossMemoryAttention(dim, num_heads, causal, bank=memory_tokens, dropout=dropout)
        if update == "write":
            self.memory_norm = nn.LayerNorm(dim)
            self.writer = Heads(dim, num_heads, dropout)
            self.keep = nn.Linear(dim, dim)

    def forward(self, tokens: Tokens) -> tuple[Tokens, Memory]:
        memory, parts = self.new_memory(tokens.x_BSD), []
        for start in range(0, tokens.x_BSD.shape[1], self.segment):
            piece = slice(start, start + self.segment)
            part, memory = self.step(tokens.x_BSD[:, piece], tokens.mask_BS[:, piece], memory)
            parts.append(part)
        return read_out(tokens._replace(x_BSD=torch.cat(parts, 1)), self.readout), memory

    def new_memory(self, like_BSD: Tensor) -> Memory:
        """Empty, or for ``write`` the slots as they were learned."""
        b, m = len(like_BSD), self.memory_tokens
        if self.update == "write":
            slots = self.layer.bank.expand(b, -1, -1)
            return Memory(slots, slots.new_ones(b, m, dtype=torch.bool), slots.new_ones(b, m, dtype=torch.float32))
        none = like_BSD.new_zeros(b, 0, like_BSD.shape[2])
        return Memory(none, none.new_zeros(b, 0, dtype=torch.bool), none.new_zeros(b, 0, dtype=torch.float32))

    def step(self, x_BND: Tensor, mask_BN: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """One segment (of any length) and the memory after it: what a stream calls."""
        if self.gradient_checkpointing and self.training:
            run = torch.utils.checkpoint.checkpoint
            y, *after = run(self._step, x_BND, mask_BN, *memory, use_reentrant=False)
        else:
            y, *after = self._step(x_BND, mask_BN, *memory)
        return y, Memory(*after)

    def _step(self, x: Tensor, mask: Tensor, *before: Tensor) -> tuple[Tensor, ...]:
        memory = Memory(*before)
        if memory.x_BMD.shape[1]:
            y = x + self.layer(self.norm(x), self.norm(memory.x_BMD), mask, memory.mask_BM)
        else:  # the first segment has its bank
            y = x + self.layer(self.norm(x), None, mask)
        return y, *self._remember(memory, y, mask)

    def _remember(self, memory: Memory, y_BND: Tensor, mask_BN: Tensor) -> Memory:
        if self.update == "write":
            return memory._replace(x_BMD=self._write(memory.x_BMD, y_BND, mask_BN))
        both = Memory(
            torch.cat([memory.x_BMD, y_BND], 1),
            torch.cat([memory.mask_BM, mask_BN], 1),
            torch.cat([memory.size_BM, mask_BN.float()], 1),
        )
        after = (newest if self.update == "fifo" else merge_neighbours)(both, self.memory_tokens)
        ended = ~mask_BN.any(1)
        if not ended.any():
            return after
        # A clip that has ended keeps the memory that it ended with.
        grown = after.mask_BM.shape[1] - memory.mask_BM.shape[1]
        before = Memory(F.pad(memory.x_BMD, (0, 0, 0, grown)), *(F.pad(part, (0, grown)) for part in memory[1:]))
        return Memory(
            torch.where(ended[:, None, None], before.x_BMD, after.x_BMD),
            *(torch.where(ended[:, None], old, new) for old, new in zip(before[1:], after[1:], strict=True)),
        )

    def _write(self, slots_BMD: Tensor, y_BND: Tensor, mask_BN: Tensor) -> Tensor:
        m = self.memory_norm(slots_BMD)
        queries, keys = self.writer.split_qkv(1, 2)
        (q,), (k, v) = queries(m), keys(y_BND)
        read = self.writer.finish(attend(q, k, v, mask_BN, scale=1.0))
        written = slots_BMD + self.keep(m).sigmoid() * read
        return torch.where(mask_BN.any(1)[:, None, None], written, slots_BMD)


def newest(memory: Memory, keep: int) -> Memory:
    """The last ``keep`` valid tokens of every row, in order; padding in front of them where there are fewer."""
    length = memory.mask_BM.shape[1]
    if length <= keep:
        return memory
    # Stable sort by validity: valid tokens come last, in their order.
    order = memory.mask_BM.to(torch.int8).argsort(dim=1, stable=True)[:, -keep:]
    return _pick(memory, order)


def merge_neighbours(memory: Memory, keep: int) -> Memory:
    """Average neighbours in time that are most alike (cosine), weighted by their sizes, until ``keep`` are left.

    MovieChat's rule takes the single most alike pair, again and again. Here a round takes up to a quarter of the pairs,
    the most alike of those that are more alike than both pairs beside them, so that rounds are few. Valid tokens come
    first in the result, in order; how much padding there was changes nothing.
    """
    if memory.mask_BM.shape[1] > keep:
        memory = _pick(memory, (~memory.mask_BM).to(torch.int8).argsort(dim=1, stable=True))
    while memory.mask_BM.shape[1] > keep:
        memory = _merge_round(memory, keep)
    return memory


@torch.no_grad()
def _goes(memory: Memory, keep: int) -> Tensor:
    """Which tokens but the first of a row join the one before them, [B, length - 1]."""
    x, mask, _ = memory
    pair = mask[:, :-1] & mask[:, 1:]
    like = F.cosine_similarity(x[:, :-1].float(), x[:, 1:].float(), dim=-1).masked_fill(~pair, -torch.inf)
    # Of equals those at even places come first: they can all go at once.
    place = torch.arange(like.shape[1], device=x.device)
    order = torch.cat([place[::2], place[1::2]])
    order = order[like[:, order].argsort(dim=1, descending=True, stable=True)]
    rank = torch.empty_like(order).scatter_(1, order, place.expand_as(order))
    beside = F.pad(rank, (1, 1), value=like.shape[1])
    best = pair & (rank < beside[:, :-2]) & (rank < beside[:, 2:])
    many = torch.minimum((mask.sum(1) - keep).clamp(min=0), (pair.sum(1) // 4).clamp(min=1))
    before = best.gather(1, order).cumsum(1).gather(1, rank)  # how many of the best are at least as alike
    return best & (before <= many.unsqueeze(1))


def _merge_round(memory: Memory, keep: int) -> Memory:
    x, mask, size = memory
    stays = mask.clone()
    stays[:, 1:] &= ~_goes(memory, keep)
    left = max(int(stays.sum(1).max()), keep)
    # Padding goes to a place of its own, which is then cut off.
    target = torch.where(mask, stays.cumsum(1) - 1, left)
    total = size.new_zeros(len(x), left + 1).scatter_add(1, target, size)[:, :-1]
    summed = size.new_zeros(len(x), left + 1, x.shape[2]).scatter_add(
        1, target.unsqueeze(-1).expand_as(x), x.float() * size.unsqueeze(-1)
    )[:, :-1]
    return Memory((summed / total.clamp(min=1e-6).unsqueeze(-1)).to(x.dtype), total > 0, total)


def _pick(memory: Memory, index_BM: Tensor) -> Memory:
    return Memory(
        memory.x_BMD.gather(1, index_BM.unsqueeze(-1).expand(-1, -1, memory.x_BMD.shape[2])),
        memory.mask_BM.gather(1, index_BM),
        memory.size_BM.gather(1, index_BM),
    )
