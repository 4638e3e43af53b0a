"""Complete commands, groups, words and settings in a shell: ``eval "$(hvlm completion bash)"`` (or zsh, fish).

The shell asks ``hvlm completion query`` with the line up to the cursor in COMP_LINE.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hvlm.config.settings import SECTIONS, RootConfig
from hvlm.errors import UserError

BASH = """_hvlm_complete() {
    local IFS=$'\\n' word
    local line="${COMP_LINE:0:$COMP_POINT}"
    word="${line##* }"
    COMPREPLY=($(COMP_LINE="$line" hvlm completion query 2>/dev/null))
    # Readline takes = and : for ends of words; what stands before the last of them is there already.
    local before="${word%"${word##*[=:]}"}"
    COMPREPLY=("${COMPREPLY[@]#"$before"}")
}
complete -o nospace -o default -F _hvlm_complete hvlm
"""
SHELLS = {
    "bash": BASH,
    "zsh": "autoload -Uz +X bashcompinit && bashcompinit\n" + BASH,
    "fish": "complete -c hvlm -f -a '(COMP_LINE=(commandline -cp) hvlm completion query 2>/dev/null)'\n",
}
# Commands with a few settings of their own, and where their class stands.
WITH_SETTINGS = {
    "prepare": "hvlm.prepare.settings",
    "compare": "hvlm.commands.compare",
    "convert": "hvlm.commands.convert",
    "report": "hvlm.commands.report",
}
USAGE = """usage: hvlm completion bash|zsh|fish

Prints what a shell needs to complete hvlm's commands, groups, words and settings. For every new shell:

  bash  echo 'eval "$(hvlm completion bash)"' >> ~/.bashrc
  zsh   echo 'eval "$(hvlm completion zsh)"' >> ~/.zshrc
  fish  hvlm completion fish > ~/.config/fish/completions/hvlm.fish"""


def main(argv: Sequence[str]) -> None:
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
    elif argv[0] == "query":
        print("\n".join(candidates(os.environ.get("COMP_LINE", ""))))
    elif argv[0] in SHELLS:
        print(SHELLS[argv[0]], end="")
    else:
        raise UserError(f"hvlm completion {argv[0]}: expected one of {', '.join(SHELLS)}")


def candidates(line: str) -> list[str]:
    """What the last word of ``line``, a command line that begins with hvlm, can become."""
    from hvlm.commands import names

    _, *given = line.split() or [""]
    if line.endswith(" "):
        given.append("")
    if len(given) <= 1:
        return [name for name in names() if name.startswith("".join(given))]
    if given[0] == "completion":
        return [shell for shell in SHELLS if shell.startswith(given[-1])]
    if given[0] in WITH_SETTINGS:
        settings = importlib.import_module(WITH_SETTINGS[given[0]]).Settings
        named = [f"{name}=" for name in get_type_hints(settings) if given[-1] and f"{name}=".startswith(given[-1])]
        return _values(given[-1], {"": settings}) or named
    if given[0] not in ("train", "eval"):
        return []
    if values := _values(given[-1], {"": RootConfig} | {f"{name}.": of for name, of in SECTIONS.items()}):
        return values
    out = io.StringIO()
    before = os.environ.get("COMP_LINE")
    os.environ["COMP_LINE"] = line.replace(f" {given[0]}", "", 1)  # as of a script, which is what Hydra completes
    try:
        with contextlib.redirect_stdout(out):
            importlib.import_module(f"hvlm.commands.{given[0]}").main(["-sc", "query=bash"])
    finally:
        os.environ.pop("COMP_LINE") if before is None else os.environ.update(COMP_LINE=before)
    return out.getvalue().split()


def _values(word: str, classes: Mapping[str, type]) -> list[str]:
    """What ``key=`` can become where the key's type says it: the values of a Literal, true and false.

    classes: {what stands before a key and its dot: the class whose fields are the keys}.
    """
    key, equals, begun = word.partition("=")
    section, dot, name = key.rpartition(".")
    found = classes.get(section + dot)
    annotation = get_type_hints(found).get(name) if found is not None and equals else None
    return [f"{key}={value}" for value in _said(annotation) if value.startswith(begun)]


def _said(annotation: Any) -> Iterator[str]:
    if annotation is bool:
        yield from ("true", "false")
    elif get_origin(annotation) is Literal:
        yield from (str(value) for value in get_args(annotation))
    elif get_origin(annotation) in (Union, types.UnionType):
        for one in get_args(annotation):
            yield from _said(one)
