"""The import graph: no circle, and no import from a lower layer to a higher one."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvlm.config.rooms import ROOMS

ROOT = Path(__file__).parent.parent
ROOM_GROUPS = tuple(group for group in ROOMS if group != "stage")
# From the bottom to the top, as in docs/architecture.md. A file belongs to the longest name that it begins with.
LAYERS = [
    ("errors",),
    (
        "types",
        "contracts",
        "prompts",
        "functional",
        "image",
        "console",
        "text",
        "precision",
        "config.ranges",
        "config.rooms",
        "config.schema",
        "config.synonyms",
        "io",
    ),  # fmt: skip
    ("merging", "caching", "config"),
    (
        "evaluation.stats",
        "evaluation.answers",
        "evaluation.scores",
        "evaluation.open_scores",
        "evaluation.caption_scores",
        "evaluation.predictions",
        "metrics",
    ),  # fmt: skip
    ("data",),
    ROOM_GROUPS,
    ("gaze", "feature_cache", "prefill", "router", "model"),
    ("stage",),
    ("assembly", "rebuild"),
    ("evaluation", "viz", "interop", "prepare"),
    ("training", "tasks", "checks", "api"),
    ("ui",),
    ("sweep", "cli", "commands", "__main__"),
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def files() -> dict[str, Path]:
    """{module without ``hvlm.``: file} of the package; a folder's ``__init__`` carries the folder's name."""
    found = {}
    for path in sorted((ROOT / "hvlm").rglob("*.py")):
        parts = path.relative_to(ROOT / "hvlm").with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            found[name] = path
    return found


FILES = files()


def imports(path: Path) -> Iterator[str]:
    """Modules of the project that a file imports when it is loaded or inside functions; not those of type checking."""
    tree = ast.parse(path.read_text())
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (a.name.removeprefix("hvlm.") for a in node.names if a.name.startswith("hvlm."))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "hvlm":
            module = node.module.removeprefix("hvlm").removeprefix(".")
            for alias in node.names:
                full = f"{module}.{alias.name}".removeprefix(".")
                if full in FILES or module:
                    yield full if full in FILES else module


GRAPH = {name: sorted(set(imports(path)) - {name}) for name, path in FILES.items()}


def level(name: str) -> int:
    for length in range(name.count(".") + 1, 0, -1):
        prefix = ".".join(name.split(".")[:length])
        if prefix in LEVEL:
            return LEVEL[prefix]
    raise AssertionError(f"hvlm/{name} stands in no layer: add it to LAYERS here and in docs/architecture.md")


@pytest.mark.parametrize("name", FILES)
def test_no_import_goes_from_a_lower_layer_to_a_higher_one(name: str) -> None:
    upward = [other for other in GRAPH[name] if level(other) > level(name)]
    assert not upward, f"hvlm.{name} imports {upward}, which stand above it"


def test_no_circle_of_files() -> None:
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join([*way[way.index(name) :], name])
        if name in done:
            return
        for other in GRAPH[name]:
            visit(other, (*way, name))
        done.add(name)

    for name in GRAPH:
        visit(name, ())


def test_few_files_stand_free_at_the_top() -> None:
    top = [path for path in (ROOT / "hvlm").glob("*.py") if not path.stem.startswith("__")]
    assert len(top) <= 20, "a newcomer should see the architecture in the listing"


def test_the_layers_of_the_house_are_these() -> None:
    house = (ROOT / "docs" / "architecture.md").read_text()
    rows = [line for line in house.splitlines() if line.startswith("| ") and line[2].isdigit()]
    assert len(rows) == len(LAYERS)
    for row, names in zip(rows, LAYERS, strict=True):
        listed = row.split("|")[2].replace("`", "").replace("/", ".").split(", ")
        assert {name.strip().rstrip(".") for name in listed} == set(names), row
