"""What can be wrong with a row, by name."""

from __future__ import annotations

from hvlm.errors import UserError


class Problem(UserError):
    """A row that cannot be used. kind: a few words, the same for all such rows. file: at fault, or nothing. reason: one
    line."""

    def __init__(self, kind: str, reason: str, file: str = "") -> None:
        super().__init__(reason)
        self.kind, self.reason, self.file = kind, reason, file
