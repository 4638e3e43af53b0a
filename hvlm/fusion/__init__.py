"""Fusion of video and text; the models and layers can be used on their own."""

from hvlm.fusion._hivilt import HierarchicalViLTransformer
from hvlm.fusion._layers import FusionModule, LocalFusionModule, ProgressiveFusion, SparseLocalFusion

__all__ = [
    "FusionModule",
    "HierarchicalViLTransformer",
    "LocalFusionModule",
    "ProgressiveFusion",
    "SparseLocalFusion",
]
