"""results.json: a flat list of records, one figure each, with everything needed to measure it again.

    {question, variant, metric, value, stderr, n, chance, seeds, seconds, peak_rss_mb, command, commit, dirty, cpu,
     torch}

``question`` is the experiment, ``variant`` what was compared, ``metric`` what was measured. Any further column (keep,
n_frames, dtype, ...) is a scalar and belongs to the identity of the record. value: mean over the seeds; stderr: its
standard error, None where there is none; n: questions (or samples) of one seed; chance: what guessing gets, None where
that has no meaning; seconds: of the run that measured it; commit: None outside a git checkout; dirty: the code
differed from the commit.
"""

from __future__ import annotations

import json
import math
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from hvlm.console import typed
from hvlm.errors import UserError
from hvlm.io import foreign
from hvlm.io.processors import usable_processors

Record = dict[str, Any]
IDENTITY = ("question", "variant", "metric")
MEASURED = (
    "value", "stderr", "n", "chance", "seeds", "seconds", "peak_rss_mb", "command", "commit", "dirty", "cpu", "torch",
)  # fmt: skip
FIXED = IDENTITY + MEASURED
BETWEEN = " ; "  # what several records said, in one field of the record that they were put together to
_TEXT = ("text", lambda value: isinstance(value, str))
_TEXT_OR_NOT = ("text or null", lambda value: value is None or isinstance(value, str))
_NUMBER = ("a finite number", foreign.number)
_NUMBER_OR_NOT = ("a finite number or null", lambda value: value is None or foreign.number(value))
# {field: (what is expected, whether a value is that)}
KINDS: Mapping[str, tuple[str, Any]] = {
    "question": _TEXT, "variant": _TEXT, "metric": _TEXT, "value": _NUMBER, "stderr": _NUMBER_OR_NOT,
    "n": ("a whole number", foreign.whole), "chance": _NUMBER_OR_NOT,
    "seeds": ("a list of whole numbers", lambda value: isinstance(value, list) and all(map(foreign.whole, value))),
    "seconds": _NUMBER, "peak_rss_mb": _NUMBER, "command": _TEXT_OR_NOT, "commit": _TEXT_OR_NOT, "cpu": _TEXT_OR_NOT,
    "torch": _TEXT_OR_NOT, "dirty": ("true, false or null", lambda value: value is None or isinstance(value, bool)),
}  # fmt: skip


class Label(NamedTuple):
    """What stands in every record of one measurement.

    question: the experiment. variant: what was compared. seed: of the run. command: the command line that measures it
    again, None: this process's. columns: further columns that belong to the records' identity.
    """

    question: str
    variant: str
    seed: int
    command: str | None = None
    columns: Mapping[str, str | int | float | bool | None] = MappingProxyType({})

    def record(
        self, metric: str, value: float, *, n: int, seconds: float, stderr: float | None = None,
        chance: float | None = None,
    ) -> Record:  # fmt: skip
        """One record under this label; see ``make``."""
        return make(
            self.question, self.variant, metric, value, stderr=stderr, n=n, chance=chance, seeds=[self.seed],
            seconds=seconds, command=self.command, columns=self.columns,
        )  # fmt: skip

    def of_row(self, row: Mapping[str, Any], seconds: float) -> Record:
        """A row of scores, {metric, value, stderr, n, chance}, as a record under this label."""
        score = {name: row[name] for name in ("stderr", "n", "chance")}
        return self.record(row["metric"], row["value"], seconds=seconds, **score)


def make(
    question: str,
    variant: str,
    metric: str,
    value: float,
    *,
    stderr: float | None,
    n: int,
    chance: float | None,
    seeds: Sequence[int],
    seconds: float,
    command: str | None = None,
    columns: Mapping[str, str | int | float | bool | None] | None = None,
) -> Record:
    """One record, with the facts of this process added. ``command``: default is this process's command line.

    Raises ValueError for a value that is no finite number, or a column that is already a field.
    """
    for name, number in (("value", value), ("stderr", stderr), ("chance", chance), ("seconds", seconds)):
        if number is not None and not math.isfinite(number):
            raise ValueError(f"{question}/{variant}/{metric}: {name} is {number}, not a finite number")
    columns = dict(columns or {})
    if taken := sorted(set(columns) & set(FIXED)):
        raise ValueError(f"{question}/{variant}/{metric}: columns {taken} are fields of every record; rename them")
    return {
        "question": question, "variant": variant, "metric": metric, **columns,
        "value": float(value), "stderr": stderr, "n": int(n), "chance": chance, "seeds": [int(s) for s in seeds],
        "seconds": round(float(seconds), 2), "peak_rss_mb": peak_rss_mb(), "command": command or command_line(),
        **environment(),
    }  # fmt: skip


def write(path: Path, records: Iterable[Record]) -> None:
    """Write the list, one record per line so that a diff shows which figure moved; atomically."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    lines = [json.dumps(record, ensure_ascii=False, allow_nan=False) for record in records]
    part.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8", errors="backslashreplace")
    os.replace(part, path)


def read(path: Path) -> list[Record]:
    """Read and check a results file; UserError names the file and what is missing."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: cannot be read (no such file); run the command that writes it first")
    records = foreign.json_of(path)
    if not isinstance(records, list):
        raise UserError(f"{path}: holds a {type(records).__name__}, expected a list of records")
    for i, record in enumerate(records):
        missing = [k for k in FIXED if not isinstance(record, dict) or k not in record]
        if missing:
            raise UserError(f"{path}: record {i} lacks {', '.join(missing)}")
        further = {k: ("a single value", _is_single) for k in record if k not in FIXED}
        if found := foreign.wrong(record, {**KINDS, **further}):
            raise UserError(f"{path}: record {i}: {found}")
    return records


def _is_single(value: Any) -> bool:
    return foreign.number(value) or value is None or isinstance(value, str | bool)


def update(path: Path, records: Sequence[Record]) -> list[Record]:
    """Write ``records`` into the file: those with the same identity are replaced, others stay. Returns the new list."""
    old = read(path) if Path(path).exists() else []
    new = {identity(r) for r in records}
    merged = [r for r in old if identity(r) not in new] + list(records)
    write(path, merged)
    return merged


def identity(record: Record) -> tuple[tuple[str, Any], ...]:
    """What makes two records measurements of the same thing: all columns but the measured ones, ``ratio_to_...`` among
    them."""
    return tuple(sorted((k, v) for k, v in record.items() if k not in MEASURED and not k.startswith("ratio_to_")))


def merge_seeds(runs: Iterable[Sequence[Record]]) -> list[Record]:
    """Records of several seeds -> one record per identity, in order of first appearance.

    value and chance are means over seeds. The standard error joins two sources:

        stderr^2 = mean_s(stderr_s^2) + var_s(value_s) / S          (sample variance over the S seeds)

    The first term, from the choice of test clips, is not divided by S: every seed is asked about the same clips, so
    more seeds do not make it smaller. The second is the error of the mean over seeds. (The first already holds a share
    of the seeds' noise, so the sum errs on the large side.) With one seed the second term is unknown and left out.

    seconds are means, peak_rss_mb the maximum, n the smallest of a seed. Raises UserError if a seed stands in twice,
    or if some seeds have a standard error and others do not.
    """
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in (r for run in runs for r in run):
        groups.setdefault(identity(record), []).append(record)
    return [_merge(group) for group in groups.values()]


def _merge(group: list[Record]) -> Record:
    name = "/".join(str(group[0][k]) for k in IDENTITY)
    seeds = [seed for record in group for seed in record["seeds"]]
    if len(set(seeds)) != len(seeds):
        raise UserError(f"{name}: seeds {sorted(seeds)} repeat; the same run was given twice")
    if len(seeds) != len(group):
        raise UserError(f"{name}: records of several seeds cannot be merged again; merge the single runs")
    errors = [record["stderr"] for record in group]
    if len({error is None for error in errors}) > 1:
        raise UserError(f"{name}: only some of the seeds {seeds} have a standard error; evaluate them alike")
    values = [record["value"] for record in group]
    within = statistics.fmean(e**2 for e in errors) if errors[0] is not None else None
    between = statistics.variance(values) / len(values) if len(values) > 1 else None
    terms = [term for term in (within, between) if term is not None]
    chances = [record["chance"] for record in group]
    same = {k: _joined([record[k] for record in group]) for k in ("command", "commit", "cpu", "torch")}
    return {
        **group[0],
        "value": statistics.fmean(values),
        "stderr": math.sqrt(sum(terms)) if terms else None,
        "n": min(record["n"] for record in group),
        "chance": None if None in chances else statistics.fmean(chances),
        "seeds": seeds,
        "seconds": round(statistics.fmean(record["seconds"] for record in group), 2),
        "peak_rss_mb": max(record["peak_rss_mb"] for record in group),
        "dirty": None if None in (d := [record["dirty"] for record in group]) else any(d),
        **same,
    }


def _joined(values: list[str | None]) -> str | None:
    """One text for a field of several records: the distinct values in order."""
    distinct = dict.fromkeys(v for v in values if v is not None)
    return BETWEEN.join(distinct) if distinct else None


# -------------------------------------------------------------------------------------------------- where it was run


def peak_rss_mb(children: bool = True) -> float:
    """Largest resident memory of this process so far, or with ``children`` of a finished child if that was larger.
    MB = 2^20 bytes."""
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN) if children else (resource.RUSAGE_SELF,)
    peak = max(resource.getrusage(who).ru_maxrss for who in whose)
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)  # macOS counts bytes, Linux kilobytes


def resident_mb() -> float | None:
    """Memory that this process holds now, in MB of 2^20 bytes; None where the system does not say (it has no /proc)."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return round(pages * resource.getpagesize() / 2**20, 1)


def command_line() -> str:
    """This process as one would type it."""
    return shlex.join(typed())


@cache
def environment() -> dict[str, Any]:
    """commit, dirty, cpu, torch of this machine and checkout."""
    import torch  # seconds, which whoever only reads records does without

    return {"commit": _commit(), "dirty": _dirty(), "cpu": _cpu(), "torch": torch.__version__}


_ROOT = Path(__file__).resolve().parents[2]


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(_ROOT), *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@cache
def _commit() -> str | None:
    # An installed copy may lie inside some other repository: only a checkout that tracks this very file counts.
    tracked = _git("ls-files", "--error-unmatch", str(Path(__file__).resolve()))
    return _git("rev-parse", "--verify", "HEAD") if tracked is not None else None


def _dirty() -> bool | None:
    """Whether tracked code or configuration differs from the commit. Results that the run writes do not count."""
    if _commit() is None:
        return None
    status = _git("status", "--porcelain", "--untracked-files=no", "--", "hvlm", "conf", "*.py")
    return None if status is None else status != ""


def _cpu() -> str:
    """Model name, family and model (hypervisors give processors years apart one name), and the number of logical CPUs
    that this process may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n", 1)[0].splitlines()
        about = {k.strip(): v.strip() for k, v in (line.split(":", 1) for line in lines if ":" in line)}
        name = about["model name"]
    except (OSError, KeyError):
        about, name = {}, platform.processor() or platform.machine()
    if "cpu family" in about and "model" in about:
        name += f", family {about['cpu family']} model {about['model']}"
    return f"{name} ({usable_processors()} CPUs)"
