"""SRC → its table: which file or folder is meant, and the rows of all its files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hvlm.data import published
from hvlm.data.shard_folder import SPLITS, split_of, tars_of
from hvlm.data.tar import VIDEO_FIELDS
from hvlm.errors import UserError
from hvlm.prepare.formats import Format, Malformed, Row, formats, of_file
from hvlm.prepare.formats.beside import media_below
from hvlm.prepare.settings import Settings

SPLIT = "split"  # the column that file names such as train.csv and val.csv give


@dataclass
class Source:
    """The table. about: what it is. root: the folder that paths begin in. columns: of all files together."""

    about: str
    root: Path
    columns: list[str]
    tables: list[Format]
    splits: list[str]  # of each table, by its name; or nothing

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
        raise UserError(f"{src}: no such file or folder; expected {known()}")
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
    root = Path(settings.videos).expanduser() if settings.videos else src if src.is_dir() else src.parent
    if not root.is_dir():
        raise UserError(f"videos={root}: no such folder; expected the one that the table's paths begin in")
    return Source(tables[0].about, root, columns, tables, splits)


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
