"""``--help``: the groups, their words and what each is about, read from files without importing any of them."""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import get_args, get_type_hints

from hvlm.config.rooms import ROOMS
from hvlm.config.settings import RootConfig
from hvlm.console import typed

WIDTH = 120
TASKS = {
    "benchmark": "answer the benchmark's questions; results.json, predictions.jsonl, report.md",
    "cost": "operations, milliseconds and bytes of one answer",
    "speed": "questions a second, and the ratio to asking each one alone",
    "score": "score predictions=FILE, whoever made it; no model is needed",
    "generate": "write answers to the benchmark's questions in its own words",
    "ask": "watch ask.video=FILE frame by frame and answer ask.question=...",
    "look": "draw where it looks and what its merger did",
    "export": "a Hugging Face folder, for transformers and hvlm.load",
    "gguf": "the language model alone, for llama.cpp",
    "release": "fVLM's own layout, of its rooms",
    "gather": "one checkpoint of several specialists, with a router",
}
FLAGS = """  -m                    run every combination of key=a,b,c, each in its own process
  --cfg job             print the configuration and stop
  --config-dir DIR      look for words in DIR/<group>/<word>.yaml, too
  --help                this page"""


def words(folders: Sequence[Path]) -> dict[str, dict[str, str]]:
    """{group: {word: what it is about, in a line}} of the YAMLs in ``folders``: rooms first, in the corridor's order.

    The line is the YAML's first comment, where it stands on a line of its own before any setting but the class, else
    the first sentence of the file that has the class.
    """
    found: dict[str, dict[str, str]] = {}
    for path in sorted(p for folder in folders for p in folder.glob("*/*.yaml")):
        found.setdefault(path.parent.name, {})[path.stem] = about(path)
    return {group: found[group] for group in [*(g for g in ROOMS if g in found), *sorted(set(found) - set(ROOMS))]}


def about(path: Path) -> str:
    """What a YAML is about; "" where nothing says it."""
    lines = path.read_text(encoding="utf-8").splitlines()
    target = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("_target_:")), None)
    comment: list[str] = []
    for line in lines:
        if line.startswith("#") and not line.startswith("# @"):
            comment.append(line[1:].strip())
        elif comment or not line.startswith(("#", "_target_:")):
            break
    return _sentence(" ".join(comment)) if comment else _of_class(target) if target else ""


def page(evaluates: bool, folders: Sequence[Path]) -> str:
    """The page that ``--help`` prints.

    Args:
        evaluates: of eval, else of train.
        folders: where words are looked up.
    """
    command = " ".join(typed()[:2])
    if evaluates:
        tasks = get_args(get_type_hints(RootConfig)["task"])
        what = [
            f"usage: {command} checkpoint=RUN [task=TASK] [group=word] [key=value] ...", "",
            "Does something with a checkpoint (a file or a run folder). What the command line says comes on top of the",
            "configuration that it was trained with.", "", "task=", *_list({t: TASKS.get(t, "") for t in tasks}),
        ]  # fmt: skip
    else:
        what = [
            f"usage: {command} [experiment=NAME] [run=NAME] [group=word] [key=value] ...", "",
            "Trains the stages of an experiment, or one stage=, and evaluates the last. The same command continues.",
        ]  # fmt: skip
    what += ["", *FLAGS.splitlines(), "", "A word chooses a file, group.setting=value changes what stands in it.", ""]
    for group, options in words(folders).items():
        what += [f"{group}=", *_list(options), ""]
    return "\n".join(what).rstrip()


def _list(options: dict[str, str]) -> list[str]:
    width = max(map(len, options))
    room = WIDTH - width - 4
    return [
        f"  {name:{width}}  {textwrap.shorten(line, room, placeholder=' …')}".rstrip() for name, line in options.items()
    ]


def _sentence(text: str) -> str:
    """The first sentence, without its full stop and without marks of code."""
    first = re.split(r"(?<!et al)\.\s+(?=[A-Z])|\.$", " ".join(text.split()), maxsplit=1)[0]
    return first.replace("``", "").rstrip(":")


@functools.cache
def _of_class(target: str) -> str:
    package, *rest = target.split(".")[:-1]
    spec = importlib.util.find_spec(package)  # of a package at the top, which imports nothing
    if spec is None or not spec.submodule_search_locations:
        return ""
    path = Path(next(iter(spec.submodule_search_locations)), *rest).with_suffix(".py")
    return _sentence(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "") if path.is_file() else ""
