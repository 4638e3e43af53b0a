"""Write the tables of README and docs from the records of the experiments.

    python -m experiments.tables [--check]

Between ``<!-- table: NAME -->`` and ``<!-- end -->`` stands what the function of that name makes of the records;
``<!-- records: FILE -->`` says where those of a file come from. ``--check`` writes nothing and fails when a table
differs from its records.
"""

from __future__ import annotations

import argparse
import re
import sys
from importlib import import_module
from pathlib import Path

from experiments.tables import _accuracy, _headlines
from experiments.tables._records import provenance, read

ROOT = Path(__file__).parent.parent.parent
TABLES = {"headlines": _headlines.headlines}
# Tables, and the file of their records, which may not be there: what a full run writes down.
UNWRITTEN = {_accuracy.DEMO: _accuracy.DEMO}
for file in sorted(Path(__file__).parent.glob("_[a-z]*.py")):
    page = import_module(f"experiments.tables.{file.stem}")
    TABLES |= getattr(page, "TABLES", {})
    UNWRITTEN |= getattr(page, "FILES", {})
UNWRITTEN |= {name: _accuracy.DEMO for name in TABLES if name.startswith("demo")}
BLOCK = re.compile(r"(<!-- (table|records): (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 when a table is not that of the records")
    options = parser.parse_args()
    stale = [path for path in pages() if rendered(text := path.read_text(encoding="utf-8")) != text]
    for path in stale:
        if not options.check:
            path.write_text(rendered(path.read_text(encoding="utf-8")), encoding="utf-8")
        print(
            f"{path.relative_to(ROOT)}: {'differs from the records, run make tables' if options.check else 'written'}"
        )
    return int(options.check and bool(stale))


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def rendered(text: str) -> str:
    """The page with every table as the records have it."""

    def block(match: re.Match[str]) -> str:
        start, kind, name, before, end = match.groups()
        if name in UNWRITTEN and not read(UNWRITTEN[name]):  # by nobody yet
            return start + before + end
        if kind == "records":
            lines = provenance(name)
        elif name in TABLES:
            lines = TABLES[name]()
        else:
            raise SystemExit(f"no table is called {name}; known: {', '.join(TABLES)}")
        return start + "\n".join(["", *lines, "", ""]) + end

    return BLOCK.sub(block, text)


if __name__ == "__main__":
    sys.exit(main())
