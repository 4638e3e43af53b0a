"""What was answered already, so that an evaluation that was killed asks only what is missing.

``answered.jsonl`` (with several processes ``answered.<n>.jsonl``, one each) holds a line for each question. The answers
of a forward pass become known together: its lines are written at once, with one that ends the pass, and are on the disk
before the next pass begins. A pass without its end does not count, so that its clips are asked again together and the
scores come out to the last digit as they would have; what is dropped so is named. The first line says whose answers
these are; a file of another model, benchmark or way to answer is put away. The finished evaluation takes the files
away.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hvlm.contracts import Benchmark
from hvlm.errors import first_few
from hvlm.evaluation.scores import Prediction
from hvlm.rebuild import Loaded

log = logging.getLogger(__name__)

STEM = "answered"
SAMPLED = 4096  # values of each weight that tell one model from another
_TEXT = re.compile(rb'"(?:[^"\\]|\\.)*"')
NOT_ASKED_BY = ("batch_size", "blind")  # settings of a benchmark that change no answer


class Answer(NamedTuple):
    """What was answered about one clip, or without one to one question (``name``: its uid, or the question's id).

    times: float32 seconds of the frames that were shown. predictions: of all its questions.
    """

    name: str
    times: tuple[float, ...]
    predictions: list[Prediction]


class Journal:
    """The answers of one evaluation in a folder, by variant and name.

    Args:
        folder: of the evaluation.
        identity: see ``identity_of``.
        keep: whether answers that lie there are taken over; else they are put away.
        process: writes ``answered.<process>.jsonl``; None: ``answered.jsonl``.
    """

    def __init__(self, folder: Path, identity: str, keep: bool = True, process: int | None = None) -> None:
        self.folder, self.identity = Path(folder), identity
        self.path = self.folder / (f"{STEM}.jsonl" if process is None else f"{STEM}.{process}.jsonl")
        self.found: dict[tuple[str, str], Answer] = {}
        self._goes_on = False
        for path in files_of(self.folder) if keep else ():
            read = _read(path)
            if read.head.get("identity") == identity:
                self.found |= read.answers
                self._goes_on |= path == self.path
                if read.dropped:
                    log.warning(f"{path}: {read.dropped}: asked again")
            elif read.head:
                log.info(f"{path}: answers of another evaluation; they are not used")
        self.kept = len(self.found)
        self._file: Any = None

    def get(self, variant: str, name: str) -> Answer | None:
        return self.found.get((variant, name))

    def add(self, variant: str, answers: Iterable[Answer]) -> None:
        """Keep what one forward pass answered; on the disk when this returns."""
        answers = list(answers)
        self.found |= {(variant, answer.name): answer for answer in answers}
        lines = [_line({"variant": variant, **line}) for answer in answers for line in _plain(answer)]
        if self._file is None:
            self._open()
        self._file.write("".join([*lines, _line({"end": len(lines)})]).encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def done(self) -> None:
        """The evaluation is written down: its journals are of no more use."""
        self.close()
        for path in files_of(self.folder):
            path.unlink(missing_ok=True)

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._goes_on:
            whole = _read(self.path).whole
            self._file = open(self.path, "r+b")
            self._file.truncate(whole)  # what a kill left of a pass
            self._file.seek(whole)
        else:
            self._file = open(self.path, "wb")
            self._file.write(_line({"identity": self.identity}).encode())


class Nothing(Journal):
    """Keeps nothing: for answers that depend on more than a clip and its questions."""

    def __init__(self) -> None:
        self.found, self.kept = {}, 0

    def add(self, variant: str, answers: Iterable[Answer]) -> None:
        pass

    def close(self) -> None:
        pass

    def done(self) -> None:
        pass


def files_of(folder: Path) -> list[Path]:
    """The journals that lie in a folder."""
    return sorted([*folder.glob(f"{STEM}.jsonl"), *folder.glob(f"{STEM}.*.jsonl")])


def count_clips(folder: Path, variant: str) -> int:
    """How many clips stand in the journals of a folder, for a progress bar."""
    start = f'{{"variant": {json.dumps(variant)}, "name": '.encode()
    lines = (line for path in files_of(folder) for line in path.read_bytes().split(b"\n"))
    return len({_name_at(line, len(start)) for line in lines if line.startswith(start)})


def journal_of(loaded: Loaded, benchmark: Benchmark, answer: Any, folder: Path, process: int | None = None) -> Journal:
    """The journal of an evaluation, with what lies in the folder where ``resume`` allows it.

    Nothing is kept of specialists that a router picks, and of words that are drawn by chance: there an answer depends
    on what was asked before.
    """
    by_chance = getattr(getattr(answer, "choose", None), "temperature", 0)
    if loaded.model.router is not None or by_chance:
        return Nothing()
    identity = identity_of(loaded, benchmark, benchmark.source(loaded.data), answer)
    return Journal(folder, identity, loaded.config.get("resume", "auto") != "never", process)


def identity_of(loaded: Loaded, benchmark: Benchmark, source: Any, answer: Any) -> str:
    """What decides about an answer: weights, rooms and their settings, precision, benchmark, clips, way to answer."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(loaded.model.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        some = flat[:: max(1, len(flat) // SAMPLED)].cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(some.view(torch.uint8).numpy().tobytes() if some.numel() else b"")
    rooms = {key: value for key, value in loaded.config.items() if isinstance(value, Mapping)}
    leave = ("trainer", "logger", "callback", "stage", "ask", "benchmark", "chain", "launcher", "sweep", "dataset")
    asked = {key: value for key, value in vars(benchmark).items() if key not in NOT_ASKED_BY}
    parts = [
        {key: value for key, value in rooms.items() if key not in leave},
        {"dataset": {k: v for k, v in rooms.get("dataset", {}).items() if k in ("max_tokens", "too_long", "decoder")}},
        loaded.precision, str(benchmark.inputs(loaded.inputs)), [type(benchmark).__name__, asked],
        getattr(source, "identity", ""), [type(answer).__name__, vars(answer)],
    ]  # fmt: skip
    digest.update(json.dumps(parts, sort_keys=True, default=_named).encode())
    return digest.hexdigest()


def _named(value: Any) -> Any:
    """What JSON does not know: sets and paths as they print, of other objects their class and their plain settings."""
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, Path):
        return str(value)
    plain = {k: v for k, v in getattr(value, "__dict__", {}).items() if isinstance(v, str | int | float | tuple | None)}
    return [type(value).__name__, plain]


class _Read(NamedTuple):
    """head: the first line. answers: of all whole passes. whole: bytes up to the end of the last of them. dropped: what
    stands behind that, in words."""

    head: dict[str, Any]
    answers: dict[tuple[str, str], Answer]
    whole: int
    dropped: str


def _read(path: Path) -> _Read:
    head: dict[str, Any] = {}
    answers: dict[tuple[str, str], Answer] = {}
    lines: list[dict[str, Any]] = []
    read = whole = 0
    for value, size in _lines(path):
        read += size
        if not head:
            head, whole = value, read
        elif "end" in value:
            if value["end"] != len(lines):
                break
            answers |= _gathered(lines)
            lines, whole = [], read
        else:
            lines.append(value)
    names = [str(line.get("question") or line["name"]) for line in lines]
    torn = path.stat().st_size - read
    dropped = [f"a pass that was not written to its end ({first_few(names, 'questions')})"] if names else []
    dropped += [f"{torn} bytes that are no whole line"] if torn else []
    return _Read(head, answers, whole, " and ".join(dropped))


def _gathered(lines: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], Answer]:
    """The lines of each clip as one answer; the first of them says its times."""
    found: dict[tuple[str, str], Answer] = {}
    for line in lines:
        key = line["variant"], line["name"]
        before = found.get(key) or Answer(line["name"], tuple(line["times"]), [])
        found[key] = before._replace(predictions=[*before.predictions, *map(_prediction, line["predictions"])])
    return found


def _lines(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """(value, bytes) of each line up to the first that is not whole."""
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            value = json.loads(line) if line.endswith(b"\n") else None
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            return
        yield value, len(line)


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value) + "\n"


def _plain(answer: Answer) -> Iterator[dict[str, Any]]:
    """A line for each question; the clip's times stand in the first."""
    first: dict[str, Any] = {"times": answer.times}
    for question, predictions in groupby(answer.predictions, key=lambda p: p.question_id):
        yield {"name": answer.name, "question": question, **first, "predictions": [p._asdict() for p in predictions]}
        first = {}
    if first:
        yield {"name": answer.name, "question": None, **first, "predictions": []}


def _name_at(line: bytes, place: int) -> bytes:
    """The JSON text that begins at a place of the line."""
    found = _TEXT.match(line, place)
    return b"" if found is None else found.group()


def _prediction(value: Mapping[str, Any]) -> Prediction:
    def listed(field: Sequence[Any] | None) -> tuple[Any, ...] | None:
        return None if field is None else tuple(field)

    names = ("options", "scores", "answers")
    about = tuple((column, said) for column, said in value.get("about", ()))
    return Prediction(**{**value, **{name: listed(value[name]) for name in names}, "about": about})
