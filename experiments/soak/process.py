"""One run that is started again and again: its processes, what is done to them, and what they said."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.processes import Process, descendants, is_there
from experiments.soak import train
from experiments.soak.hanging import HANG
from experiments.soak.plan import Start
from experiments.soak.seen import START, file_of, lines
from experiments.soak.train import AGAIN, SEEN
from hvlm.training.ranks import RANKS

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 600.0  # seconds that a start may go without a step before it counts as hung
ENDS_WITHIN = 60.0  # seconds in which what is left of a run must end
STANDS_FOR = 6.0  # seconds without a step after which a decoder that hangs has stopped the run
# What a run must say when this has been done to it; a SIGKILL of the main process leaves nobody who could.
SAYS = {
    "worker": r"error: (DataLoader worker .*Clips that the workers were reading|a process that reads has ended)",
    "rank 1": r"another process of this run has ended|Child process with PID",
    "disk": r"error: .*No space left on device",
    "stop": r"SIGTERM: step \d+ of \d+ is saved",
    "shard": r"error: .*{shard}: ",
}


class Wrong(Exception):
    """The run did something else than it should have; the message says what."""


class Run:
    """folder: of this run alone, may stand on a disk of its own. words: the overrides that all its starts have.
    again: see ``AGAIN``."""

    def __init__(
        self, folder: Path, beside: Path, words: Sequence[str], shards: Path, again: int | None = None
    ) -> None:
        self.folder, self.beside, self.words, self.shards, self.again = folder, beside, list(words), shards, again
        self.hang, self.number = beside / "hang", 0
        self.left: list[Process] = []  # what must have ended by itself
        self.child: Any = None  # multiprocessing.Process

    @property
    def stage(self) -> Path:
        return self.folder / "runs" / "soak" / "sft"

    @property
    def said(self) -> str:
        return (self.beside / f"log-{self.number}").read_text(encoding="utf-8", errors="replace")

    def step(self) -> int:
        """The steps done when the last batch of this start had been learnt from; -1: none yet."""
        mine = (line for line in lines(file_of(self.beside, 0)) if line["start"] == self.number and "step" in line)
        return max((line["step"] + 1 for line in mine), default=-1)

    def begin(self, start: Start) -> None:
        self.number += 1
        words = [*self.words, f"trainer.num_workers={start.workers}", f"trainer.accumulate={start.accumulate}"]
        if start.processes > 1:
            words += ["trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={start.processes}"]
        words.append(f"dataset.decode_timeout={300 if start.event == 'hang' else 10}")
        environment = {SEEN: str(self.beside), HANG: str(self.hang), START: str(self.number)}
        environment |= {} if self.again is None else {AGAIN: str(self.again)}
        log = self.beside / f"log-{self.number}"
        # Forked, for importing all of it again takes longer than anything else that a start does.
        self.child = FORK.Process(target=_train, args=(words, self.folder, environment, log))
        self.child.start()

    def do(self, start: Start) -> str:
        """One start with what happens to it. Returns what came of it.

        Raises:
            Wrong: the run hung, ended with another status than it should, or did not say why it ended.
        """
        if start.event == "shard":
            return self._damaged(start)
        self.begin(start)
        try:
            if start.event is None:
                self._ends({0}, LONGEST)
                return "ended"
            begun = time.monotonic()
            if not self._comes_to(start.at or 0):
                return "ended before it could happen"
            time.sleep(start.wait)
            self.left += (before := descendants(self.child.pid))
            done = getattr(self, "_" + start.event.replace(" ", "_"))(start, before)
            return f"{done} ({time.monotonic() - begun:.0f} s)"
        finally:
            self.end()

    # -- what happens --------------------------------------------------------------------------------------------------

    def _kill(self, start: Start, before: list[Process]) -> str:
        self.child.kill()
        self.child.join()
        return f"killed at step {self.step()}"

    def _worker(self, start: Start, before: list[Process]) -> str:
        workers = [one for one in before if is_worker(one)]
        if not workers:
            raise Wrong("no process that reads was found")
        chosen = workers[int(start.which * len(workers))]
        with contextlib.suppress(ProcessLookupError):
            os.kill(chosen.pid, signal.SIGKILL)
        code, took = self._ends(None, ENDS_WITHIN)
        if code == 0:
            return "ended before it could happen"
        self._said("worker", also="rank 1" if start.processes > 1 else None)
        return f"the run ended {took:.1f} s after its worker"

    def _rank_1(self, start: Start, before: list[Process]) -> str:
        second = [one for one in before if is_rank_1(one) and not is_worker(one)]
        if not second:
            raise Wrong("no second training process was found")
        with contextlib.suppress(ProcessLookupError):
            os.kill(second[0].pid, signal.SIGKILL)
        code, took = self._ends(None, ENDS_WITHIN)
        if code == 0:
            return "ended before it could happen"
        self._said("rank 1")
        return f"the first process ended {took:.1f} s after the second"

    def _hang(self, start: Start, before: list[Process]) -> str:
        self.hang.touch()
        try:
            last, since = self.step(), time.monotonic()
            while time.monotonic() - since < STANDS_FOR:
                if self.child.exitcode is not None:
                    if self.child.exitcode:
                        raise Wrong(f"ended with {self.child.exitcode} while its decoders hung")
                    return "ended before it could happen"
                if (now := self.step()) != last:
                    last, since = now, time.monotonic()
                time.sleep(0.1)
            before = descendants(self.child.pid)
            self.child.kill()
            self.child.join()
        finally:
            self.hang.unlink()
        for one in before:  # what hangs in C has nobody left who ends it before its own clock, of minutes
            if b"decode_process" in command(one):
                end(one)
        return f"stood still at step {last}, killed"

    def _disk(self, start: Start, before: list[Process]) -> str:
        ballast = self.folder / "ballast"
        try:
            fill(ballast)
            code, took = self._ends(None, LONGEST)
        finally:
            ballast.unlink(missing_ok=True)
        if code == 0:
            return "ended before it could happen"
        self._said("disk")
        return f"the run ended {took:.1f} s after the disk was full"

    def _stop(self, start: Start, before: list[Process]) -> str:
        self.child.terminate()
        code, took = self._ends({0, 128 + signal.SIGTERM}, ENDS_WITHIN)
        if code == 0:
            return "ended before it could happen"
        self._said("stop")
        return f"saved and left {took:.1f} s after it was asked to"

    def _damaged(self, start: Start) -> str:
        shards = sorted(self.shards.glob("train-*.tar"))
        shard = shards[int(start.which * len(shards))]
        how = ("flipped", "cut", "gone")[int(start.which * 997) % 3]
        whole = shard.read_bytes()
        try:
            damage(shard, how)
            self.begin(start)
            self._ends({1}, LONGEST)
            self._said("shard", shard=re.escape(shard.name))
        finally:
            self.end()
            shard.write_bytes(whole)
        return f"{shard.name} {how}: refused by name"

    # -- waiting -------------------------------------------------------------------------------------------------------

    def _comes_to(self, at: int) -> bool:
        """Wait until that many steps are done; False: the run came to its end first."""
        last, since = -1, time.monotonic()
        while (now := self.step()) < at:
            if (code := self.child.exitcode) is not None:
                if code:
                    raise Wrong(f"ended with {code} before anything was done to it")
                return False
            if now != last:
                last, since = now, time.monotonic()
            if time.monotonic() - since > LONGEST:
                raise Wrong(f"no step for {LONGEST:.0f} s")
            time.sleep(0.03)
        return True

    def _ends(self, codes: set[int] | None, within: float) -> tuple[int, float]:
        """(status, seconds that it took). codes: what the status may be; None: anything."""
        begun = time.monotonic()
        self.child.join(within)
        if (code := self.child.exitcode) is None:
            raise Wrong(f"did not end within {within:.0f} s")
        if codes is not None and code not in codes:
            raise Wrong(f"ended with {code}, expected {' or '.join(map(str, sorted(codes)))}")
        return code, time.monotonic() - begun

    def _said(self, event: str, also: str | None = None, **names: str) -> None:
        expected = [SAYS[name].format(**names) if names else SAYS[name] for name in (event, also) if name]
        if not any(re.search(one, " ".join(self.said.split())) for one in expected):
            raise Wrong(f"did not say why it ended; expected {expected[0]!r}")

    def end(self) -> None:
        """Nothing of the last start's main process is left."""
        if self.child is not None and self.child.is_alive():
            self.left += descendants(self.child.pid)
            self.child.kill()
            self.child.join()

    def orphans(self) -> list[str]:
        """What of earlier starts is still there ``ENDS_WITHIN`` seconds from now; it is ended then."""
        until = time.monotonic() + ENDS_WITHIN
        while (there := [one for one in self.left if is_there(one)]) and time.monotonic() < until:
            time.sleep(0.2)
        said = [f"{one.pid} {command(one)[:80]!r}" for one in there]
        for one in there:
            end(one)
        self.left = []
        return said


FORK = multiprocessing.get_context("fork")


def _train(words: list[str], folder: Path, environment: dict[str, str], log: Path) -> None:
    """What ``python -m experiments.soak.train WORDS`` does in that folder, in a process that is a fork of this one."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.chdir(folder)
    for name in [name for name in os.environ if name.startswith("PYTEST") or name in RANKS]:
        del os.environ[name]
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    with open(log, "wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
    # A second training process is started by the name of the main module, with these arguments.
    sys.modules["__main__"], sys.argv = train, [str(train.__file__), *words]
    train.main()


# -- processes ---------------------------------------------------------------------------------------------------------


def parent(one: Process) -> int | None:
    try:
        return int(Path(f"/proc/{one.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    except OSError:
        return None


def end(one: Process) -> None:
    if is_there(one):
        with contextlib.suppress(ProcessLookupError):
            os.kill(one.pid, signal.SIGKILL)


def command(one: Process) -> bytes:
    return _of(one, "cmdline")


def is_rank_1(one: Process) -> bool:
    return b"LOCAL_RANK=1" in _of(one, "environ").split(b"\0")


def is_worker(one: Process) -> bool:
    """Forked from a training process: the same command line, and the same environment, as its parent."""
    above = parent(one)
    if above is None or command(one) != command(Process(above, 0)):
        return False
    return is_rank_1(one) == is_rank_1(Process(above, 0))


def _of(one: Process, name: str) -> bytes:
    try:
        return Path(f"/proc/{one.pid}/{name}").read_bytes()
    except OSError:
        return b""


# -- disks and shards --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[str | None]:
    """``folder`` as a file system of that size, in memory. Gives why it is none, where nobody may mount one."""
    folder.mkdir(parents=True)
    try:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
        done = subprocess.run(mount, capture_output=True, text=True)
        why = done.stderr.strip() if done.returncode else None
    except FileNotFoundError:
        why = "there is no mount command"
    try:
        yield why
    finally:
        if why is None:
            subprocess.run(["umount", "-l", str(folder)], capture_output=True)


def fill(path: Path) -> None:
    """Write until the disk takes no further byte."""
    with open(path, "wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))


def _flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    at = len(data) // 2
    data[at] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "flipped": _flipped,
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "gone": Path.unlink,
}


def damage(path: Path, how: str) -> None:
    """One bit, half of it, or all of it."""
    DAMAGES[how](path)
