"""Public corpora for training, read as they are published: ``hvlm prepare NAME src=FOLDER out=DIR``.

A corpus is a file of this folder; nothing lists them. It says which files hold its annotations and what a row of them
says; finding and checking media, splits, shards, the quarantine and going on after a kill are those of any table.
``docs/prepare.md`` says where each one is published.
"""

from __future__ import annotations

import fnmatch
import importlib
import os
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from hvlm.config.schema import did_you_mean
from hvlm.data.sample_fields import FieldError, as_text
from hvlm.errors import UserError
from hvlm.prepare.formats import Format, Malformed, Row, of_file
from hvlm.prepare.problems import Problem
from hvlm.prepare.settings import ROLES, Settings

MEDIA = "src"  # settings that only a corpus has
OPTIONS = {"tokenizer": None, "moments": False}  # {setting that few corpora know: its default}
PACKED = ("*.tar.gz", "*.tgz", "*.zip.*", "*.zip_*", "*_parta?", "*.part?")  # archives that are not looked into


class At(NamedTuple):
    """Where a row stands. root: the folder that media lie below. file: the table."""

    root: Path
    file: Path
    settings: Settings

    @property
    def prompt(self) -> str | None:
        """What is asked for a caption; None: what the reader asks."""
        return self.settings.prompt

    def first(self, *names: str) -> str:
        """The first of these paths that lies below the root; the first of all where none does."""
        return next((name for name in names if os.path.exists(self.root / name)), names[0])


class Corpus(Protocol):
    """A module of this folder.

    TITLE: what it is called. FILES: names of its tables, as groups of patterns: of the first group that finds some, all
    are read. ROLES: what its rows fill. COLUMNS: what its tables must have; () where a row is anything. PROMPT: what is
    asked for its captions, None: nothing of its own. OPTIONS: settings of ``OPTIONS`` that it knows.
    """

    TITLE: str
    FILES: tuple[tuple[str, ...], ...]
    ROLES: tuple[str, ...]
    COLUMNS: tuple[str, ...]
    PROMPT: str | None
    OPTIONS: tuple[str, ...]

    def rows(self, row: Mapping[str, Any], at: At) -> Iterator[dict[str, Any]]:
        """What a published row says, by role. Raises FieldError or Problem where it is broken."""
        ...


@cache
def corpora() -> dict[str, Any]:
    """{name: its module}, by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))
    return {name: importlib.import_module(f"{__name__}.{name}") for name in names}


def corpus_of(name: str) -> Any:
    """Raises UserError where there is none of this name."""
    if name not in corpora():
        raise UserError(f"corpus={name}: no such corpus;{did_you_mean(name, corpora())}")
    return corpora()[name]


@dataclass
class Published:
    """A published table whose rows are given by role. As a ``Format``: path, about, columns, rows."""

    corpus: Any
    table: Format
    at: At

    @property
    def about(self) -> str:
        return self.corpus.TITLE

    @property
    def path(self) -> Path:
        return self.table.path

    @property
    def columns(self) -> list[str]:
        return list(self.corpus.ROLES)

    def rows(self) -> Iterator[tuple[str, int, Row]]:
        name = os.path.relpath(self.path, self.at.root).replace(os.sep, "/")
        name = self.path.name if name.startswith("../") else name
        for _, number, row in self.table.rows():
            if isinstance(row, Malformed):
                yield name, number, row
                continue
            try:
                found = list(self.corpus.rows(row, self.at))
            except (FieldError, Problem) as error:
                yield name, number, Malformed(str(error))
                continue
            for one in found:
                yield name, number, one


def settled(settings: Settings, corpus: Any) -> Settings:
    """The settings with what the corpus says. Raises UserError for those that have no use for it."""
    name = settings.corpus
    if said := [role for role in ROLES if role != "split" and getattr(settings, role) is not None]:
        raise UserError(
            f"{said[0]}=: corpus {name} knows its columns; leave it out, or prepare the table without {name}"
        )
    if isinstance(settings.split, str):
        raise UserError(f"split={settings.split}: of corpus {name} shares alone can be said, split=[0.98,0.01,0.01]")
    for option, usual in OPTIONS.items():
        if option not in corpus.OPTIONS and getattr(settings, option) != usual:
            able = ", ".join(one for one, module in corpora().items() if option in module.OPTIONS)
            raise UserError(f"{option}=: corpus {name} has no use for it; it belongs to {able}")
    split = settings.split if settings.split or "split" in corpus.ROLES else [1.0, 0.0, 0.0]
    return replace(settings, prompt=settings.prompt or corpus.PROMPT, split=split)


def tables(src: Path, corpus: Any, root: Path, settings: Settings) -> list[Published]:
    """The published tables below ``src``, by path. Raises UserError where there is none, or one is of another form."""
    paths = [src] if src.is_file() else _found(src, corpus, settings.table)
    chosen = getattr(corpus, "chosen", None)
    out = []
    for path in chosen(paths) if chosen else paths:
        kind = getattr(corpus, "Table", None) or of_file(path)
        if kind is None:
            raise UserError(f"{path}: not a file of {corpus.TITLE}; expected {_patterns(corpus)}")
        table = kind(path)
        if missing := [name for name in corpus.COLUMNS if name not in table.columns]:
            raise UserError(
                f"{path}: not as {corpus.TITLE} publishes it: it lacks {', '.join(missing)}; it has "
                f"{', '.join(map(str, table.columns[:12]))}"
            )
        out.append(Published(corpus, table, At(root, path, settings)))
    return out


def _found(src: Path, corpus: Any, only: str | None) -> list[Path]:
    if only:
        path = src / only
        if not path.is_file():
            raise UserError(f"table={only}: no such file in {src}")
        return [path]
    every: dict[int, list[Path]] = {}
    for place, folders, files in os.walk(src):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            for i, group in enumerate(corpus.FILES):
                if any(fnmatch.fnmatchcase(name, pattern) for pattern in group):
                    every.setdefault(i, []).append(Path(place, name))
    if not every:
        packed = packed_in(src)
        more = f"; extract {', '.join(packed[:3])}{', …' if len(packed) > 3 else ''} first" if packed else ""
        raise UserError(f"src={src}: no file of {corpus.TITLE} in or below it; expected {_patterns(corpus)}{more}")
    return every[min(every)]


def packed_in(root: Path) -> list[str]:
    """Archives directly in a folder, and in those directly in it, that nothing here looks into."""
    places = [root, *sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))]
    return [
        entry.name
        for place in places
        for entry in sorted(os.scandir(place), key=lambda e: e.name)
        if any(fnmatch.fnmatchcase(entry.name, pattern) for pattern in PACKED)
    ]


def _patterns(corpus: Any) -> str:
    return " or ".join(", ".join(group) for group in corpus.FILES)


# --------------------------------------------------------------------------------------------- what corpora share


def told(text: Any, where: str, prompt: str | None, **more: Any) -> dict[str, Any]:
    """A caption, as a stage of captions and one of questions reads it. Raises FieldError where there is no text."""
    text = as_text(text, where).strip()
    exchange = {"question": prompt, "answer": text, "task": "caption"}
    return {"caption": text, "question": [exchange] if prompt else None, **more}


def messages(turns: Sequence[tuple[Any, Any]], where: str) -> list[dict[str, str]]:
    """[(question, answer)] as a conversation. Raises FieldError."""
    out = []
    for i, (asked, answered) in enumerate(turns):
        out.append({"role": "user", "content": as_text(asked, f"{where}[{i}], the question")})
        out.append({"role": "assistant", "content": as_text(answered, f"{where}[{i}], the answer")})
    if not out:
        raise FieldError(f"{where} is empty")
    return out
