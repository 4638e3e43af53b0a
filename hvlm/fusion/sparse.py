"""HiViLT whose local fusion keeps, of every query, the keys with its ``top_k`` highest scores."""

from __future__ import annotations

from typing import Any

from hvlm.config.ranges import PositiveInt
from hvlm.fusion._hierarchical import HierarchicalFusion
from hvlm.fusion._local import Update


class Sparse(HierarchicalFusion):
    """top_k: keys that a query keeps; as many as there are give dense attention. update: which visual tokens learn of
    the text: those that a word has ``chosen``, or ``all``. compute_from: from so many visual tokens on, only what is
    chosen is computed; the figures are the same. The rest: see ``HierarchicalFusion``.
    """

    def __init__(
        self,
        *,
        top_k: PositiveInt = 16,
        update: Update = "chosen",
        compute_from: PositiveInt = 512,
        **rest: Any,
    ):
        self.of_local = {"top_k": top_k, "update": update, "compute_from": compute_from}
        super().__init__(**rest)
