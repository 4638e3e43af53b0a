"""Is anything lost when training is killed, starved and moved about? Each run beside one that nobody disturbed.

    python -m experiments.soak [--minutes 10] [--seed 0] [--cycles 0] [--steps 120]

A small model trains on the demo's clips (real H.264 in shards; two are damaged, one always hangs the decoder), with
a checkpoint every five steps. In each round a run is started again until it comes to its end, and on the way has
one of each happen to it: SIGKILL to the main process, to a process that reads, to the second training process; every
decoder hangs until the run is killed; a full disk (a small tmpfs; left out, with the reason, where nobody may mount
one); SIGTERM; a training shard damaged, cut or gone until the run has refused it by name. The number of reading
processes changes with every start. Rounds come in three kinds, in turn: ``changing`` is 1 or 2 processes and
accumulate 1, 2 or 4, ``one process`` and ``two processes`` keep these. The plan is a function of the seed.

In the end the weights are compared with those of a run that nobody disturbed: the same to the bit where sums were taken
in the same order, else within ``LARGEST`` and ``MEAN``; and so are the samples of every step that the weights learnt
from. A control shows that both can tell: a run in which one step sees the samples of the step before.

--cycles N: instead, one run with N kills and no other event, of kind ``changing``. --minutes: no further round begins
after that. Writes results.json beside this file. The last line is the verdict; the exit status is 1 where something
differed, hung, was left over or ended without saying why. Needs Linux.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

import torch

from experiments.soak import data
from experiments.soak.plan import CHANGING, LEGS, Leg, Start, kills, starts
from experiments.soak.process import Run, Wrong, small_disk
from experiments.soak.seen import Compared, Learnt, compare, learnt
from experiments.started import as_started
from hvlm.console import setup_logging
from hvlm.evaluation import results
from hvlm.io.checkpoint import load_weights
from hvlm.io.files import FINISHED

HERE = Path(__file__).parent
QUESTION, COMMAND = "soak", "python -m experiments.soak"
BATCH = 8
DISK_MB = 24
# Largest and root mean square difference of the weights that the order of sums may make.
LARGEST, MEAN = 2e-5, 1e-6
TINY = [
    "vision.dim=32", "vision.num_layers=1", "vision.num_heads=2", "vision.image_size=32", "language.hidden_size=32",
    "language.intermediate_size=64", "language.num_layers=1", "language.num_heads=2", "language.num_kv_heads=2",
]  # fmt: skip
# Without running statistics (standardise=false) weights part by the order of the gradients' sums alone, which is what
# LARGEST and MEAN allow for.
WORDS = [
    "stage=sft", "run=soak", "connector=mean", "connector.standardise=false", f"stage.batch_size={BATCH}", *TINY,
    "dataset=shards", "dataset.num_frames=4", "vision.cache_gb=0", "evaluate=false", "callback.media=0",
    "callback.progress=false", "trainer.precision=32-true", "trainer.threads=1", "trainer.cache_mb=0",
    "trainer.log_every=1", "trainer.checkpoint_every=5",
]  # fmt: skip


class Ended(NamedTuple):
    """What a run left behind. learnt: samples of each step. folder: its stage's, or a copy of it. digest: of its
    weights."""

    learnt: Learnt
    weights: dict[str, torch.Tensor]
    digest: str


class Round(NamedTuple):
    """leg: its kind. compared, largest, mean, equal: with the undisturbed run. events: that happened. wrong: what the
    run did that it should not have done, one line each."""

    leg: str
    samples: int
    compared: Compared
    largest: float
    mean: float
    equal: bool
    redone: int
    starts: int
    events: Counter[str]
    wrong: list[str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cycles", type=int, default=0, help="one run with so many kills instead of rounds")
    parser.add_argument("--steps", type=int, default=120)
    options = parser.parse_args()
    setup_logging()
    torch.set_num_threads(1)  # the runs are forks of this process
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that what it started ends, too
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-") as place:
        soak = Soak(Path(place), options.steps, options.seed)
        rounds = soak.cycles(options.cycles) if options.cycles else soak.rounds(options.minutes * 60)
        control = None if options.cycles else soak.control()
    seconds = time.monotonic() - begun
    prefix = f"{options.cycles} kills, " if options.cycles else ""
    results.update(HERE / "results.json", records(rounds, control, prefix, options.seed, seconds))
    line, code = verdict(rounds, control, seconds)
    print(line, flush=True)
    sys.exit(code)


class Soak:
    """folder: for data and runs. steps: of each run. seed: of data and plan. clips, size, haystack: see ``data.make``.
    small: megabytes of the disk that a run writes to; None: on the folder's own."""

    def __init__(
        self, folder: Path, steps: int, seed: int, clips: int = 240, size: int = 64, haystack: str | None = None,
        small: int | None = DISK_MB, hangs: bool = True,
    ) -> None:  # fmt: skip
        self.folder, self.steps, self.seed, self.small = folder, steps, seed, small
        say(f"{clips} clips")
        self.shards = data.make(folder, clips, size, seed, haystack, hangs)
        self.words = [*WORDS, f"stage.steps={steps}", f"dataset.path={self.shards}"]
        self._whole: dict[int, Ended] = {}
        self._runs = 0

    def whole(self, processes: int) -> Ended:
        """A run that nobody disturbs, made once."""
        if processes not in self._whole:
            say(f"undisturbed, {processes} process{'es' * (processes > 1)}")
            self._whole[processes] = self._undisturbed(processes)
        return self._whole[processes]

    def _undisturbed(self, processes: int, again: int | None = None) -> Ended:
        run = self._run(self._place(), again)
        run.do(Start(processes, 0, 1, None))
        return self._ended(run)

    def control(self) -> Round:
        """A run in which one step sees the samples of the step before."""
        say("control: one step sees the samples of the step before")
        return judge("control", self._undisturbed(1, self.steps // 2), self.whole(1), [], [], True)

    def rounds(self, seconds: float) -> list[Round]:
        """As many as begin in that time, at least one."""
        until, made = time.monotonic() + seconds, []
        while not made or time.monotonic() < until:
            leg = LEGS[len(made) % len(LEGS)]
            made.append(self.round(leg, leg.events, len(made)))
        return made

    def cycles(self, count: int) -> list[Round]:
        """One run with so many kills."""
        return [self.round(CHANGING, kills(count, self.seed), 0)]

    def round(self, leg: Leg, events: Sequence[str], number: int) -> Round:
        """One run with these events."""
        whole, wrong, done = self.whole(leg.processes[0]), [], []
        say(f"round {number + 1}, {leg.name}")
        place = self._place()
        with small_disk(place, self.small or 1) if self.small else here(place) as no_disk:
            run = self._run(place)
            for start in starts(leg, events, self.steps, self.seed, number):
                if start.event == "disk" and no_disk is not None:
                    say(f"  {start}: skipped, a small disk needs the right to mount one: {no_disk}")
                    continue
                try:
                    came = run.do(start)
                except Wrong as error:
                    came = f"WRONG: {error}"
                    wrong.append(f"start {run.number} ({start}): {error}; it said: {' | '.join(last_lines(run.said))}")
                say(f"  {start}: {came}")
                done.append((start, came))
                if came.startswith("ended"):
                    break
            wrong += [f"left over after {run.number} starts: {one}" for one in run.orphans()]
            if not (run.stage / FINISHED).exists():
                wrong.append(f"it did not come to its end: {run.stage / FINISHED} is missing")
                nothing = Compared(0, BATCH * self.steps, 0)
                return Round(leg.name, 0, nothing, 0.0, 0.0, False, 0, run.number, happened(done), wrong)
            ended = self._ended(run)
        found = judge(leg.name, ended, whole, done, wrong, leg.exact)
        say("  " + told(found))
        return found

    def _place(self) -> Path:
        self._runs += 1
        return self.folder / f"run-{self._runs}"

    def _run(self, place: Path, again: int | None = None) -> Run:
        place.mkdir(parents=True, exist_ok=True)
        beside = self.folder / f"seen-{self._runs}"
        beside.mkdir()
        return Run(place, beside, self.words, self.shards, again)

    def _ended(self, run: Run) -> Ended:
        digest = json.loads((run.stage / FINISHED).read_text(encoding="utf-8"))["weights_sha256"]
        return Ended(learnt(run.beside), dict(load_weights(run.stage)), digest)


def judge(
    name: str, ended: Ended, whole: Ended, done: Sequence[tuple[Start, str]], wrong: list[str], exact: bool
) -> Round:
    """A run beside the undisturbed one."""
    largest, mean = apart(ended.weights, whole.weights)
    equal = ended.digest == whole.digest if exact else largest <= LARGEST and mean <= MEAN
    samples = sum(map(len, ended.learnt.steps.values()))
    compared = compare(ended.learnt.steps, whole.learnt.steps)
    redone, events = ended.learnt.redone, happened(done)
    return Round(name, samples, compared, largest, mean, equal, redone, max(1, len(done)), events, wrong)


def happened(done: Sequence[tuple[Start, str]]) -> Counter[str]:
    return Counter(start.event for start, came in done if start.event and not came.startswith(("ended", "WRONG")))


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> tuple[float, float]:
    """(largest, root mean square) difference of weights."""
    if one.keys() != other.keys():
        return float("inf"), float("inf")
    all_ = torch.cat([(other[name] - value).float().flatten() for name, value in one.items()])
    return all_.abs().max().item(), all_.square().mean().sqrt().item()


def sound(found: Round) -> bool:
    return found.equal and not any(found.compared) and found.samples > 0 and not found.wrong


def told(found: Round) -> str:
    weights = "weights the same to the bit" if found.equal and not found.largest else (
        f"weights {'' if found.equal else 'NOT '}equal: largest difference {found.largest:.1e}, "
        f"root mean square {found.mean:.1e}"
    )  # fmt: skip
    repeated, missed, turned = found.compared
    return (
        f"{found.leg}: {weights}; {found.samples} samples, {repeated} repeated, {missed} missed, {turned} steps in "
        f"another order; {found.redone} steps done again from a checkpoint"
    )


def verdict(rounds: Sequence[Round], control: Round | None, seconds: float) -> tuple[str, int]:
    """The last line, and the exit status."""
    events = sum((found.events for found in rounds), Counter())
    said = ", ".join(f"{count} {name}" for name, count in sorted(events.items()))
    repeated, missed = (sum(found.compared[i] for found in rounds) for i in (0, 1))
    wrong = [line for found in rounds for line in found.wrong]
    for line in wrong:
        print(f"WRONG: {line}", flush=True)
    noticed = control is None or (not control.equal and control.compared.repeated > 0)
    good = all(map(sound, rounds)) and noticed
    exact = sum(found.equal and not found.largest for found in rounds)
    close = sum(found.equal for found in rounds) - exact
    beside = "" if noticed else "; the control was NOT told from a sound run"
    return (
        f"soak: {'equal' if good else 'NOT EQUAL'} after {seconds / 60:.1f} minutes, {len(rounds)} rounds and "
        f"{sum(found.starts for found in rounds)} starts ({said}): weights the same to the bit in {exact}, within "
        f"rounding in {close}, different in {len(rounds) - exact - close}; {repeated} samples repeated, {missed} "
        f"missed; {len(wrong)} times something else than expected{beside}",
        0 if good else 1,
    )


def records(
    rounds: Sequence[Round], control: Round | None, prefix: str, seed: int, seconds: float
) -> list[results.Record]:
    """Sums and maxima over the rounds of a kind."""
    made = []
    for name in dict.fromkeys(found.leg for found in [*rounds, *([control] if control else [])]):
        group = [found for found in [*rounds, *([control] if control else [])] if found.leg == name]
        label = results.Label(QUESTION, prefix + name, seed, as_started(COMMAND))
        values: dict[str, float] = {
            "rounds": len(group),
            "starts": sum(found.starts for found in group),
            "samples": sum(found.samples for found in group),
            "repeated": sum(found.compared.repeated for found in group),
            "missed": sum(found.compared.missed for found in group),
            "steps in another order": sum(found.compared.turned for found in group),
            "steps done again": sum(found.redone for found in group),
            "equal": sum(found.equal for found in group),
            "same to the bit": sum(found.equal and not found.largest for found in group),
            "largest difference": max(found.largest for found in group),
            "root mean square difference": max(found.mean for found in group),
            "unexpected": sum(len(found.wrong) for found in group),
        }
        events = sum((found.events for found in group), Counter())
        values |= {f"event: {event}": count for event, count in sorted(events.items())}
        made += [label.record(metric, value, n=len(group), seconds=seconds) for metric, value in values.items()]
    return made


def last_lines(said: str, count: int = 3) -> list[str]:
    return [line[:300] for line in said.strip().splitlines()[-count:]]


def here(folder: Path) -> AbstractContextManager[str]:
    """A folder in place of a disk of its own."""
    folder.mkdir(parents=True)
    return nullcontext("no disk was asked for")


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


if __name__ == "__main__":
    main()
