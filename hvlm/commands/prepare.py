"""Make checked shards of a table and the videos or pictures that it names: ``hvlm prepare SRC out=DIR``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hvlm.console import error_line, setup_logging

USAGE = """hvlm prepare SRC out=DIR [setting=value ...]
hvlm prepare CORPUS src=FOLDER out=DIR [setting=value ...]

Makes checked shards for dataset=shards from a table (CSV, TSV, JSONL, JSON, Parquet, Hugging Face datasets) and the
videos, pictures or folders of stills that it names, or from videos with a text beside each. dry_run=true shows what
would be made. CORPUS is a public one, read as it is published: {corpora}.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command with these words (by default those of the command line)."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or set(words) & {"-h", "--help"}:
        from hvlm.prepare.corpora import corpora

        print(USAGE.format(corpora=", ".join(corpora())))
        from hvlm.prepare.settings import Settings

        print(Settings.__doc__)
        return
    with error_line():
        setup_logging()
        from hvlm.prepare.command import prepare

        prepare(words)


if __name__ == "__main__":
    main()
