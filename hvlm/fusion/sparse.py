"""HiViLT whose local fusion keeps, of every query, the keys with its ``top_k`` highest scores."""

from __future__ import annotations

from hvlm.config.ranges import AnyFloat, NonNegativeInt, PositiveFloat, PositiveInt, Probability
from hvlm.fusion._hierarchical import HierarchicalFusion
from hvlm.fusion._local import Update
from hvlm.fusion._pool import Pooling


class Sparse(HierarchicalFusion):
    """top_k: keys that a query keeps; as many as there are give dense attention. update: which visual tokens learn of
    the text: those that a word has ``chosen``, or ``all``. compute_from: from so many visual tokens on, only what is
    chosen is computed; the figures are the same. The rest: see ``HiViLT``.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        top_k: PositiveInt = 16,
        update: Update = "chosen",
        compute_from: PositiveInt = 512,
        layers: PositiveInt = 1,
        global_fusion: bool = True,
        pooling: Pooling = "mean",
        text_layers: NonNegativeInt = 1,
        mlp_ratio: PositiveFloat = 1.0,
        gate: AnyFloat = 1.0,
        dropout: Probability = 0.0,
        write_text: bool = False,
    ):
        super().__init__(
            dim=dim, num_heads=num_heads, layers=layers, local_fusion=True, global_fusion=global_fusion,
            pooling=pooling, text_layers=text_layers, mlp_ratio=mlp_ratio, gate=gate, dropout=dropout,
            write_text=write_text, top_k=top_k, update=update, compute_from=compute_from,
        )  # fmt: skip
