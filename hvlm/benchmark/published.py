"""Public benchmarks of multiple choice whose questions are a table: a YAML says which column holds what."""

from __future__ import annotations

from hvlm.benchmark._published import PublishedTable


class Published(PublishedTable):
    """A benchmark of which its YAML says everything; the settings are those of ``PublishedTable``."""
