"""Which KV heads need everything that was read: their gates, layers by heads, as a picture.

    python -m hvlm.viz.gate_map PATTERN [PICTURE]

draws a pattern's folder (or its TSV file); without a name the picture is ``gates.png`` beside the TSV.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from hvlm.console import error_line
from hvlm.errors import UserError
from hvlm.io.head_patterns import GATES, HeadPattern, read_pattern
from hvlm.viz.heat_map import heat_map

PICTURE = "gates.png"
MOST_IN_WORDS = 16  # heads of a layer, up to which each cell says its gate


def gate_map(gates: Tensor, path: Path, title: str = "") -> Path:
    """One PNG: a row for each layer, a column for each KV head, darker for a larger gate.

    Args:
        gates: float [layers, KV heads] in [0, 1].
        path: of the picture.
        title: above it; "": how many gates are 0.5 or more.

    Returns:
        The path.
    """
    values = gates.detach().float().cpu().numpy()
    layers, heads = values.shape
    kept = f"{int((values >= 0.5).sum())} of {values.size} gates are 0.5 or more"
    words = [[f"{gate:.2f}" for gate in row] for row in values] if heads <= MOST_IN_WORDS else None
    return heat_map(
        values, path, title=title or kept, rows=[str(i) for i in range(layers)],
        columns=[str(i) for i in range(heads)], row_title="layer", column_title="KV head", words=words,
    )  # fmt: skip


def draw(pattern: str | Path, path: Path | None = None) -> Path:
    """The picture of a pattern's folder or TSV file. UserError where it cannot be read."""
    file = Path(pattern)
    file = file / GATES if file.is_dir() else file
    try:
        lines = file.read_text(encoding="utf-8").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{pattern}: no pattern that can be read; expected a folder with {GATES}, or such a file"
        ) from error
    found: HeadPattern = read_pattern(file, len(lines), len(lines[0].split("\t")) if lines else 0, "pattern")
    return gate_map(found.gates, file.with_name(PICTURE) if path is None else path)


def main(arguments: Sequence[str]) -> int:
    if len(arguments) not in (1, 2):
        print("usage: python -m hvlm.viz.gate_map PATTERN [PICTURE]", file=sys.stderr)
        return 2
    with error_line():
        print(draw(arguments[0], *map(Path, arguments[1:])))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
