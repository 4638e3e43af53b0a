"""Means that let every domain weigh the same, as a torchmetrics class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hvlm.metrics.states import Sums, share


class DomainMeans(Sums):
    """The mean of each domain's items, the mean of these means (``macro``), and that of all items (``micro``).

    domains: names, in order. Domains without items are left out, of ``macro``, too.
    """

    def __init__(self, domains: Sequence[str]) -> None:
        super().__init__()
        self.domains = tuple(domains)
        if not self.domains or len(set(self.domains)) < len(self.domains) or {"macro", "micro"} & set(self.domains):
            raise ValueError(f"domains={self.domains}: expected names, each once, and none of them macro or micro")
        self.add_sum("total", float, len(self.domains))
        self.add_sum("count", int, len(self.domains))

    def update(self, values: Tensor | Sequence[float], domains: Sequence[str]) -> None:
        """Add items: how good each is, and its domain. ValueError for a domain that was not named."""
        values = torch.as_tensor(values, dtype=torch.float64, device=self.device).reshape(-1)
        if unknown := sorted(set(domains) - set(self.domains)):
            raise ValueError(f"domain {unknown[0]!r}: expected one of {', '.join(self.domains)}")
        if len(values) != len(domains):
            raise ValueError(f"{len(values)} values and {len(domains)} domains: expected as many")
        places = torch.tensor([self.domains.index(name) for name in domains], dtype=torch.int64, device=self.device)
        self.total.index_add_(0, places, values)
        self.count += torch.bincount(places, minlength=len(self.domains))

    def compute(self) -> dict[str, Tensor]:
        """{domain: mean, ..., "macro", "micro"}, float32; NaN without items."""
        means = share(self.total, self.count)
        found = self.count > 0
        out = {name: means[i] for i, name in enumerate(self.domains) if found[i]}
        return out | {"macro": means[found].mean(), "micro": share(self.total.sum(), self.count.sum())}
