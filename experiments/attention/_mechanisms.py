"""The mechanisms and what a user would pick instead, each as a module [1, S, 768] -> [1, S, 768] with 12 heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvlm import attention
from hvlm.functional import join_heads, split_heads

DIM, HEADS = 768, 12
FEATURES, PEER_FEATURES = 128, 256  # of equal error: experiments.attention.features
WINDOW = 64


class Family(NamedTuple):
    """What is timed in turn. ours: our mechanism. judged: the peer that the goal names; goals: {length: (forward,
    forward + backward)} as peer / ours. others: further peers of the family. also: more of ours, without a goal."""

    ours: str
    judged: str
    goals: dict[int, tuple[float, float]]
    others: tuple[str, ...] = ()
    also: tuple[str, ...] = ()

    @property
    def members(self) -> tuple[str, ...]:
        return self.ours, self.judged, *self.others, *self.also


FAMILIES = {
    "window": Family(
        "window", "local_attention", {4096: (1.3, 1.0), 16384: (1.3, 1.0)}, ("longformer", "flex"), ("local_global",)
    ),
    "favor": Family("favor", "performer_pytorch", {4096: (1.5, 1.5), 16384: (1.5, 1.5)}, (), ("favor_256",)),
    "linear": Family("linear", "linear_attention_transformer", {4096: (1.0, 1.0), 16384: (1.0, 1.0)}),
    "s6": Family("mamba", "mambapy", {4096: (2.5, 2.5), 16384: (2.5, 2.5)}),
    "ssd": Family("mamba2", "hf_mamba2", {4096: (1.8, 1.8), 16384: (1.8, 1.8)}),
    "strided": Family("strided_64", "sdpa", {4096: (3.0, 3.0), 16384: (10.0, 10.0)}, (), ("strided_4", "full")),
}


class Sdpa(nn.Module):
    """Full attention by torch alone."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(t, HEADS) for t in self.qkv(x).chunk(3, -1))
        return self.out(join_heads(F.scaled_dot_product_attention(q, k, v)))


class LocalAttentionPeer(nn.Module):
    """local-attention: windows of 64 and the ones beside them, 192 keys a query."""

    def __init__(self) -> None:
        super().__init__()
        from local_attention import LocalAttention

        self.qkv, self.out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.core = LocalAttention(window_size=WINDOW, causal=False, look_backward=1, look_forward=1, dim=DIM // HEADS,
                                   use_rotary_pos_emb=False, autopad=True)  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(t, HEADS) for t in self.qkv(x).chunk(3, -1))
        return self.out(join_heads(self.core(q, k, v)))


class Flex(nn.Module):
    """FlexAttention, compiled; on a CPU forward only."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.run = None

    def forward(self, x: Tensor) -> Tensor:
        from torch.nn.attention.flex_attention import flex_attention

        from hvlm.attention._flex import window_mask

        if self.run is None:
            self.run = torch.compile(flex_attention, dynamic=False)
        q, k, v = (split_heads(t, HEADS) for t in self.qkv(x).chunk(3, -1))
        mask = window_mask(x.shape[1], WINDOW, False, x.device)
        return self.out(join_heads(self.run(q, k, v, block_mask=mask)))


class Longformer(nn.Module):
    """transformers' Longformer self-attention, 64 to either side."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import LongformerConfig
        from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

        config = LongformerConfig(hidden_size=DIM, num_attention_heads=HEADS, attention_window=[2 * WINDOW],
                                  attention_probs_dropout_prob=0.0)  # fmt: skip
        self.core, self.out = LongformerSelfAttention(config, 0), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        absent = torch.zeros(1, x.shape[1], dtype=torch.bool)
        mask = torch.zeros(1, x.shape[1])
        y = self.core(x, attention_mask=mask, is_index_masked=absent, is_index_global_attn=absent, is_global_attn=False)
        return self.out(y[0])


class First(nn.Module):
    """A module of which only the first result counts."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        y = self.module(x)
        return y[0] if isinstance(y, tuple) else y


def performer_pytorch() -> nn.Module:
    from performer_pytorch import SelfAttention

    return SelfAttention(dim=DIM, heads=HEADS, dim_head=DIM // HEADS, nb_features=PEER_FEATURES, causal=False,
                         qkv_bias=True, attn_out_bias=True)  # fmt: skip


def linear_attention_transformer() -> nn.Module:
    from linear_attention_transformer.linear_attention_transformer import SelfAttention

    return SelfAttention(DIM, HEADS, causal=False)


def mambapy() -> nn.Module:
    from mambapy.mamba import MambaBlock, MambaConfig

    return MambaBlock(MambaConfig(d_model=DIM, n_layers=1, d_state=16))


def hf_mamba2() -> nn.Module:
    from transformers import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    config = Mamba2Config(hidden_size=DIM, state_size=64, num_heads=2 * DIM // 64, head_dim=64, expand=2, n_groups=1,
                          chunk_size=256, num_hidden_layers=1)  # fmt: skip
    return First(Mamba2Mixer(config, 0))


OURS: dict[str, Callable[[], nn.Module]] = {
    "full": lambda: attention.FullAttention(DIM, HEADS),
    "window": lambda: attention.LocalGlobalAttention(WINDOW, 0, DIM, HEADS),
    "local_global": lambda: attention.LocalGlobalAttention(WINDOW, 4, DIM, HEADS),
    "strided_64": lambda: attention.StridedAttention(64, DIM, HEADS),
    "strided_4": lambda: attention.StridedAttention(4, DIM, HEADS),
    "favor": lambda: attention.PerformerAttention(DIM, HEADS, FEATURES),
    "favor_256": lambda: attention.PerformerAttention(DIM, HEADS, PEER_FEATURES),
    "linear": lambda: attention.PerformerAttention(DIM, HEADS, kernel="elu"),
    "mamba": lambda: attention.MambaLayer(DIM, 16),
    "mamba2": lambda: attention.Mamba2Layer(DIM, 64),
}
PEERS: dict[str, Callable[[], nn.Module]] = {
    "sdpa": Sdpa,
    "local_attention": LocalAttentionPeer,
    "longformer": Longformer,
    "flex": Flex,
    "performer_pytorch": performer_pytorch,
    "linear_attention_transformer": linear_attention_transformer,
    "mambapy": mambapy,
    "hf_mamba2": hf_mamba2,
}
FORWARD_ONLY = {"flex"}
