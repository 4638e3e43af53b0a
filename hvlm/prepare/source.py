"""SRC → its table: which file or folder is meant, and the rows of all its files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hvlm.data import published
from hvlm.data.shard_folder import SPLITS, split_of, tars_of
from hvlm.data.tar import VIDEO_FIELDS
from hvlm.errors import UserError
from hvlm.prepare.columns import Taken
from hvlm.prepare.corpora import corpora, corpus_of, settled
from hvlm.prepare.corpora import tables as corpus_tables
from hvlm.prepare.formats import Format, Malformed, Row, formats, of_file
from hvlm.prepare.formats.beside import media_below
from hvlm.prepare.settings import Settings

SPLIT = "split"  # the column that file names such as train.csv and val.csv give


@dataclass
class Source:
    """The table. about: what it is. root: the folder that paths begin in. columns: of all files together. settings:
    with what a public corpus says beside the user. corpus: whose columns are called by their roles; or None."""

    about: str
    root: Path
    columns: list[str]
    tables: list[Any]  # Format, or what reads like one
    splits: list[str]  # of each table, by its name; or nothing
    settings: Settings
    corpus: Any = None

    def taken(self, rows: Iterable[Mapping[str, Any]]) -> Taken | None:
        """The columns of a corpus that some row fills; None where they are to be found."""
        if self.corpus is None:
            return None
        shares = isinstance(self.settings.split, list)
        filled = {role for row in rows for role, value in row.items() if value is not None}
        roles = [role for role in self.columns if role in filled and not (shares and role == SPLIT)]
        return Taken({role: [role] for role in roles}, set(roles))

    def rows(self) -> Iterator[tuple[str, int, Row]]:
        """(file, number from 1 in it, row) of all tables."""
        for table, split in zip(self.tables, self.splits, strict=True):
            more = {SPLIT: split} if split else {}
            for file, number, row in table.rows():
                yield file, number, row if isinstance(row, Malformed) else row | more


def find(settings: Settings) -> Source:
    """Raises UserError where it is not there, is nothing that is known, or several things could be meant."""
    src = Path(settings.src).expanduser()
    if not src.exists():
        if settings.src in corpora() and settings.corpus is None:
            raise UserError(f"{src}: no such folder; of the corpus: hvlm prepare {src} src=FOLDER out=DIR")
        raise UserError(f"{src}: no such file or folder; expected {known()}")
    if settings.corpus is not None:
        return _of_corpus(src, settings)
    paths, kind = [src], _kind(src)
    if src.is_dir():
        if settings.table:
            paths, kind = [src / settings.table], _kind(src / settings.table)
            if not paths[0].is_file():
                raise UserError(f"table={settings.table}: no such file in {src}")
        elif (whole := formats()["datasets_folder"]).takes(src):
            kind = whole
        elif found := published.files_in(src):
            paths, kind = found, formats()["published"]
        else:
            paths, kind = _in_folder(src)
    if kind is None:
        ending = paths[0].suffix.lower().lstrip(".")
        more = "; a video alone has no texts: give the folder or its table" if ending in VIDEO_FIELDS else ""
        raise UserError(f"{paths[0]}: expected {known()}{more}")
    tables = [kind(path) for path in paths]
    columns = list(dict.fromkeys(name for table in tables for name in table.columns))
    splits = _splits(paths) if SPLIT not in columns else [""] * len(paths)
    if any(splits):
        columns.append(SPLIT)
    return Source(tables[0].about, _root(src, settings), columns, tables, splits, settings)


def _root(src: Path, settings: Settings) -> Path:
    root = Path(settings.videos).expanduser() if settings.videos else src if src.is_dir() else src.parent
    if not root.is_dir():
        raise UserError(f"videos={root}: no such folder; expected the one that the table's paths begin in")
    return root


def _of_corpus(src: Path, settings: Settings) -> Source:
    corpus = corpus_of(str(settings.corpus))
    settings, root = settled(settings, corpus), _root(src, settings)
    found = corpus_tables(src, corpus, root, settings)
    names = ", ".join(table.path.name for table in found[:3]) + (", …" if len(found) > 3 else "")
    return Source(f"{corpus.TITLE}, {names}", root, list(corpus.ROLES), found, [""] * len(found), settings, corpus)


def _kind(path: Path) -> type[Format] | None:
    """The format of a file, by what stands in it or by its ending."""
    return formats()["published"] if published.set_of(path) else of_file(path)


def known() -> str:
    """What can be prepared, in words."""
    return "one of: " + "; ".join(sorted(table.about for table in formats().values()))


def _in_folder(src: Path) -> tuple[list[Path], type[Format] | None]:
    found = _tables_in(src) or _tables_in(src / "data")
    if not found:
        beside = formats()["beside"]
        if beside.takes(src):
            return [src], beside
        what = "it holds shards already: dataset=shards reads them" if tars_of(src) else "no table and no video in it"
        raise UserError(f"{src}: {what}; expected {known()}")
    if len(found) == 1:
        return found, of_file(found[0])
    endings = {path.suffix.lower() for path in found}
    if len(endings) == 1 and all(_splits(found)):
        return found, of_file(found[0])
    if endings == {".parquet"}:
        return found, of_file(found[0])
    raise UserError(
        f"{src}: several tables ({', '.join(path.name for path in found[:8])}{', …' if len(found) > 8 else ''}); say "
        f"which with table={found[0].name}, or name them after their splits: train.csv, val.csv, test.csv"
    )


def _tables_in(folder: Path) -> list[Path]:
    """Files that are tables, but for texts that stand beside a video or a folder of stills of the same name."""
    if not folder.is_dir():
        return []
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".") and of_file(p))
    if not files:
        return []
    beside = {text for medium, texts in media_below(folder) if medium.parent == folder for text in texts}
    return [
        path for path in files if path not in beside and path.name not in ("dataset_infos.json", "dataset_info.json")
    ]


def _splits(paths: list[Path]) -> list[str]:
    """The split that each name says, where all of several names say one."""
    said = [_said(path.stem) for path in paths]
    return said if len(paths) > 1 and all(said) else [""] * len(paths)


def _said(stem: str) -> str:
    split = split_of(stem)
    return split if split != "train" or any(word in stem.lower() for word in SPLITS if SPLITS[word] == "train") else ""
