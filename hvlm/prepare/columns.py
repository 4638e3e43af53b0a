"""Which column plays which part: said on the command line, or guessed from its name and from what stands in it.

Names come in tiers: a column of an earlier tier is meant before one of a later tier. Two of the same tier are
ambiguous, and nothing is taken before the user has said which.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hvlm.config.schema import did_you_mean
from hvlm.data.shard_folder import SPLITS
from hvlm.errors import UserError
from hvlm.prepare.formats import Blob
from hvlm.prepare.media import Finder
from hvlm.prepare.problems import Problem
from hvlm.prepare.seconds import as_seconds
from hvlm.prepare.settings import ROLES, Settings

NONE = "none"
LOOKED_AT = 100  # rows that names are tried on
FEWEST_SOURCES = 3  # one for each split
DISTINCT = 0.95  # share of ids that must differ for a column to name rows
# Small letters and digits alone count: "Video Path" and video_path are the same.
NAMES: dict[str, tuple[str, ...]] = {
    "video": (
        "video videos",
        "videopath videofile videoname filename filepath file path clip clippath media mediapath image images frames",
        "videoid imagepath imagefile imagename imageid img imgpath vid clipid clipname pictures picture",
    ),
    "source": ("source", "sourcevideo sourceid originalvideo original youtubeid ytid parentvideo longvideo"),
    "split": ("split", "subset partition"),
    "id": ("id", "qid questionid sampleid rowid uid uuid exampleid"),
    "domain": ("domain",),
    "task": ("task", "tasktype questiontype qtype type category"),
    "fps": ("fps",),
    "start": ("start", "starttime startsec startseconds startsecond", "begin begintime"),
    "end": ("end", "endtime endsec endseconds endsecond", "stop stoptime"),
    "caption": ("caption captions", "text description", "summary sentence desc"),
    "question": ("question questions", "query prompt instruction", "user input problem q"),
    "answer": (
        "answer answers", "chosen chosenassistant", "response output completion assistant",
        "correctanswer correct answerkey gtanswer gold label target solution answeridx answerindex a",
    ),
    "options": ("options choices", "candidates candidate optionlist answerchoices multiplechoice"),
    "rejected": ("rejected", "rejectedassistant rejectedanswer rejectedresponse"),
    "conversations": ("conversations messages", "conversation dialog dialogue turns chat"),
}  # fmt: skip
_FAMILY = re.compile(r"(option|choice|candidate|opt|a|c|answer|)[ _-]?([a-z]|\d{1,2})", re.IGNORECASE)


@dataclass
class Taken:
    """columns: {role: its columns}, several for options and videos alone. said: roles that the command line names.
    notes: what was not taken, and why, one line each."""

    columns: dict[str, list[str]]
    said: set[str]
    notes: list[str] = field(default_factory=list)

    def one(self, role: str, row: dict[str, Any]) -> Any:
        """What a row holds for a role; None where it has no column, or nothing in it. Of several columns (a video, or a
        picture) the first one that holds something."""
        for name in self.columns.get(role, ()):
            value = row.get(name)
            if value is not None and not (isinstance(value, str) and not value.strip()):
                return value
        return None


def plain(name: str) -> str:
    """What counts of a column's name."""
    return re.sub(r"[^a-z0-9]", "", str(name).lower())


def take(columns: Sequence[str], rows: Sequence[dict[str, Any]], finder: Finder, settings: Settings) -> Taken:
    """The column of every role.

    Args:
        columns: all of the table's.
        rows: all that can be read.
        finder: knows which cells name files.
        settings: what is said.

    Raises:
        UserError: a column that is said does not exist, a guess has several candidates, or no video or text is found.
    """
    taken = Taken({}, set())
    off = set()
    for role in ROLES:
        value = getattr(settings, role)
        if value is None or (role == "split" and isinstance(value, list)):
            continue
        if value == NONE:
            off.add(role)
            continue
        names = value if isinstance(value, list) else [value]
        for name in names:
            if name not in columns:
                raise UserError(f"{role}={name}: no such column;{did_you_mean(name, columns)}")
        taken.columns[role] = list(names)
        taken.said.add(role)
    if isinstance(settings.split, list):
        off.add("split")
    few = rows[:: max(1, len(rows) // LOOKED_AT)][:LOOKED_AT]
    for role in ("conversations", "rejected", "options", *ROLES):
        if role in off or role in taken.columns:
            continue
        free = [c for c in columns if all(c not in names for names in taken.columns.values())]
        guess = _video(free, few, finder) if role == "video" else _named(role, free, few, rows, taken)
        if guess:
            taken.columns[role] = guess
    for role, other in (("start", "end"), ("end", "start")):
        if role in taken.columns and other not in taken.columns:
            if role in taken.said:
                raise UserError(f"{role}={taken.columns[role][0]}: a part of a video has both; say {other}=…, too")
            taken.notes.append(f"{taken.columns.pop(role)[0]} is not taken for the {role}: no column says the {other}")
    _enough(taken, columns, few)
    return taken


def _named(role: str, free: list[str], few: Sequence[dict], rows: Sequence[dict], taken: Taken) -> list[str] | None:
    for tier in NAMES[role]:
        found = [c for c in free if plain(c) in tier.split() and _suits(role, c, few, rows, taken)]
        if len(found) == 1:
            return found
        if found:
            raise ambiguous(role, found)
        families = _families(free) if role == "options" and tier == NAMES[role][0] else []
        if len(families) == 1:
            return families[0]
        if families:
            raise ambiguous(role, [f"[{','.join(family)}]" for family in families])
    if role in ("caption", "question", "answer"):
        found = [c for c in free if plain(c).endswith(role) and plain(c) != role]
        if role == "answer" and "question" not in taken.columns:
            return None
        if len(found) == 1:
            return found
        if found and not (role == "caption" and "question" in taken.columns):
            raise ambiguous(role, found)
    return None


def ambiguous(role: str, found: Sequence[str]) -> UserError:
    """The error about several candidates."""
    return UserError(
        f"{role}: could be {' or '.join(found)}; say which with {role}={found[0]} (or {role}={NONE} for no column)"
    )


def _suits(role: str, column: str, few: Sequence[dict], rows: Sequence[dict], taken: Taken) -> bool:
    """Whether what stands in a column can play the role that its name says."""
    values = [v for row in few if (v := row.get(column)) not in (None, "")]
    if not values:
        return False
    if role == "split":
        return _noted(
            taken, all(str(v).strip().lower() in SPLITS for v in values),
            f"{column} is not taken for the split: {_shown(values[0])} is no train, val or test",
        )  # fmt: skip
    if role == "source":
        number = len({str(row.get(column)) for row in rows})
        return _noted(
            taken, number >= FEWEST_SOURCES,
            f"{column} is not taken for the source: {number} different values are too few to split by",
        )  # fmt: skip
    if role == "id":
        number = len({str(row.get(column)) for row in rows})
        return _noted(
            taken, number >= DISTINCT * len(rows),
            f"{column} is not taken for the rows' id: {number:,} different values in {len(rows):,} rows",
        )  # fmt: skip
    if role == "conversations":
        return all(isinstance(v, (list, dict)) or str(v).lstrip().startswith("[") for v in values)
    if role == "rejected":
        return not all(isinstance(v, (int, float)) for v in values)
    if role == "fps":
        odd = [v for v in values if not _number(v)]
        return _noted(
            taken, not odd, f"{column} is not taken for fps: {_shown(odd[0]) if odd else ''} is no rate above 0"
        )
    if role in ("start", "end"):
        odd = [v for v in values if as_seconds(v) is None]
        return _noted(
            taken, not odd, f"{column} is not taken for the {role}: {_shown(odd[0]) if odd else ''} is no time"
        )
    return not isinstance(values[0], Blob)


def _noted(taken: Taken, good: bool, note: str) -> bool:
    if not good:
        taken.notes.append(note)
    return good


def _number(value: Any) -> bool:
    try:
        return float(value) > 0
    except (TypeError, ValueError, OverflowError):
        return False


def _families(free: list[str]) -> list[list[str]]:
    """Columns that hold one option each: a0 … a4, option_a … option_d, A … D."""
    families: dict[str, dict[int, str]] = {}
    for column in free:
        found = _FAMILY.fullmatch(str(column).strip())
        if not found or (not found[1] and not found[2].isupper()):
            continue
        place = int(found[2]) if found[2].isdigit() else ord(found[2].upper()) - ord("A")
        families.setdefault(f"{found[1].lower()}{found[2].isdigit()}", {})[place] = column
    out = []
    for places in families.values():
        numbers = sorted(places)
        if len(numbers) > 1 and numbers[0] in (0, 1) and numbers == list(range(numbers[0], numbers[-1] + 1)):
            out.append([places[n] for n in numbers])
    return out


def _video(free: list[str], few: Sequence[dict], finder: Finder) -> list[str] | None:
    found_by_name = [c for tier in NAMES["video"] for c in free if plain(c) in tier.split()]
    shares = {c: _found(c, few, finder) for c in free}
    by_name = [c for c in found_by_name if shares[c] > 0]
    if not by_name and (others := [c for c in free if shares[c] >= 0.5]):
        by_name = others
    if len(by_name) > 1 and all(sum(row.get(c) not in (None, "", []) for c in by_name) < 2 for row in few):
        return by_name  # a video, or a picture
    for names in (by_name, found_by_name):
        for tier in (*NAMES["video"], ""):
            found = [c for c in names if not tier or plain(c) in tier.split()]
            if len(found) == 1:
                return found
            if found and (best := [c for c in found if shares[c] == max(shares[f] for f in found)]) and len(best) == 1:
                if shares[best[0]] >= 0.5 and all(shares[c] < 0.5 for c in found if c not in best):
                    return best
            if found:
                raise ambiguous("video", found)
    return None


def _found(column: str, few: Sequence[dict], finder: Finder) -> float:
    """The share of rows whose cell names something that is there."""
    values = [v for row in few if (v := row.get(column)) not in (None, "")]
    good = 0
    for value in values:
        if isinstance(value, str) and (len(value) > 1024 or "\n" in value):
            continue
        if isinstance(value, (int, float)) or (isinstance(value, list) and not _names_files(value)):
            continue
        try:
            finder.find(value)
            good += 1
        except (Problem, OSError, ValueError):
            continue
    return good / len(values) if values else 0.0


def _names_files(values: list[Any]) -> bool:
    return bool(values) and all(isinstance(v, (str, Blob)) for v in values)


def _enough(taken: Taken, columns: Sequence[str], few: Sequence[dict]) -> None:
    has, names = set(taken.columns), ", ".join(map(str, columns))
    if "question" in has and not has & {"answer"} and not _inside(taken, few, "question", "answer"):
        raise UserError(f"no column with the answers to {taken.columns['question'][0]}; say answer=… (it has {names})")
    if "answer" in has and "question" not in has and ("rejected" in has or "options" in has or not has & {"caption"}):
        raise UserError(
            f"no column with the questions to {taken.columns['answer'][0]}; say question=… (it has {names})"
        )
    if not has & {"caption", "question", "conversations"}:
        raise UserError(
            f"no column with texts: expected a caption, a question with its answer, or conversations; it has {names}; "
            "say caption=…, question=… answer=…, or conversations=…"
        )
    if "video" not in has and "conversations" not in has:
        raise UserError(f"no column names the videos or pictures; it has {names}; say video=…")


def _inside(taken: Taken, few: Sequence[dict], role: str, key: str) -> bool:
    """Whether a column holds lists of objects that have such a key."""
    values = [v for row in few if (v := taken.one(role, row))]
    items = [item for v in values if isinstance(v, list) for item in v[:1]]
    return bool(items) and all(isinstance(item, dict) and key in item for item in items)


def _shown(value: Any) -> str:
    text = "bytes" if isinstance(value, Blob) else str(value)
    return text if len(text) <= 40 else f"{text[:39]}…"
