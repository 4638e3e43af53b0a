"""Mixing across the visual tokens of a video; the layers can be used on their own."""

from hvlm.attention._block import HierarchicalAttentionBlock, LinearAttentionBlock
from hvlm.attention.cross_memory import CrossMemoryAttention
from hvlm.attention.full import FullAttention
from hvlm.attention.local_global import LocalGlobalAttention
from hvlm.attention.mamba import MambaLayer
from hvlm.attention.mamba2 import Mamba2Layer
from hvlm.attention.performer import PerformerAttention
from hvlm.attention.strided import StridedAttention

__all__ = [
    "CrossMemoryAttention",
    "FullAttention",
    "HierarchicalAttentionBlock",
    "LinearAttentionBlock",
    "LocalGlobalAttention",
    "Mamba2Layer",
    "MambaLayer",
    "PerformerAttention",
    "StridedAttention",
]
