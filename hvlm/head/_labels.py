"""The labels of a head: names in a fixed order, each once."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from hvlm.errors import UserError


class Labels:
    """{name: its place}. UserError where there are none, or one stands there twice."""

    def __init__(self, names: Sequence[str] | None, of: str) -> None:
        self.names = [str(name) for name in names or ()]
        self.place = {name: i for i, name in enumerate(self.names)}
        if not self.names:
            raise UserError(f"head.labels is empty: name the {of}, head.labels=[a,b,...], or take those of a dataset")
        if blank := [i for i, name in enumerate(self.names) if not name.strip()]:
            raise UserError(f"head.labels[{blank[0]}] is blank: a label is a text")
        if len(self.place) < len(self.names):
            twice = next(name for i, name in enumerate(self.names) if self.place[name] != i)
            raise UserError(f"head.labels: {twice!r} stands there twice")

    def __len__(self) -> int:
        return len(self.names)

    def unknown(self, name: str) -> str:
        """What is wrong with a name that is none of them, in words."""
        near = difflib.get_close_matches(name, self.names, n=1)
        said = f"did you mean {near[0]!r}?" if near else ", ".join(self.names[:8]) + (", ..." * (len(self) > 8))
        return f"label {name!r} is none of the {len(self)} of head.labels: {said}"
