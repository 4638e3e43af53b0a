"""What was answered already, so that an evaluation that was killed asks only what is missing.

``answered.jsonl`` (with several processes ``answered.<n>.jsonl``, one each) grows by a group of lines with every
forward pass: a line for each clip with its predictions, then a line that ends the group. What a kill leaves of a group
without its end does not count, so that the clips of a pass are asked again together and the scores come out to the last
digit as they would have. The first line says whose answers these are; a file of another model, benchmark or way to
answer is put away. The finished evaluation takes the files away.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hvlm.contracts import Benchmark
from hvlm.evaluation.scores import Prediction
from hvlm.rebuild import Loaded

log = logging.getLogger(__name__)

STEM = "answered"
SAMPLED = 4096  # values of each weight that tell one model from another
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
            head, groups, _ = _read(path)
            if head.get("identity") == identity:
                self.found |= groups
                self._goes_on |= path == self.path
            elif head:
                log.info(f"{path}: answers of another evaluation; they are not used")
        self.kept = len(self.found)
        self._file: Any = None

    def get(self, variant: str, name: str) -> Answer | None:
        return self.found.get((variant, name))

    def add(self, variant: str, answers: Iterable[Answer]) -> None:
        """Keep what one forward pass answered; on the disk when this returns."""
        answers = list(answers)
        self.found |= {(variant, answer.name): answer for answer in answers}
        lines = [_line({"variant": variant, **_plain(answer)}) for answer in answers] + [_line({"end": len(answers)})]
        if self._file is None:
            self._open()
        self._file.write("".join(lines).encode())
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
            *_, whole = _read(self.path)
            self._file = open(self.path, "r+b")
            self._file.truncate(whole)  # half a line that a kill left
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
    mark = json.dumps(variant).encode()
    return sum(
        line.startswith(b'{"variant": ' + mark) for p in files_of(folder) for line in p.read_bytes().split(b"\n")
    )


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


def _read(path: Path) -> tuple[dict[str, Any], dict[tuple[str, str], Answer], int]:
    """(first line, answers of all whole groups, bytes up to the end of the last of them)."""
    head: dict[str, Any] = {}
    answers: dict[tuple[str, str], Answer] = {}
    group: dict[tuple[str, str], Answer] = {}
    read = whole = 0
    for value, size in _lines(path):
        read += size
        if not head:
            head, whole = value, read
        elif "end" in value:
            answers |= group
            group, whole = {}, read
        else:
            answer = _answer(value)
            group[value["variant"], answer.name] = answer
    return head, answers, whole


def _lines(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """(value, bytes) of each line up to the first that is not whole."""
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            value = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            value = None
        if not isinstance(value, dict):
            return
        yield value, len(line)


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value) + "\n"


def _plain(answer: Answer) -> dict[str, Any]:
    return {"name": answer.name, "times": answer.times, "predictions": [p._asdict() for p in answer.predictions]}


def _answer(value: Mapping[str, Any]) -> Answer:
    return Answer(value["name"], tuple(value["times"]), [_prediction(p) for p in value["predictions"]])


def _prediction(value: Mapping[str, Any]) -> Prediction:
    def listed(field: Sequence[Any] | None) -> tuple[Any, ...] | None:
        return None if field is None else tuple(field)

    names = ("options", "scores", "answers")
    about = tuple((column, said) for column, said in value.get("about", ()))
    return Prediction(**{**value, **{name: listed(value[name]) for name in names}, "about": about})
