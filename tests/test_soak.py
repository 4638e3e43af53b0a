"""``make soak``: its plan, how it compares, and two real kills with other processes and workers after each."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from _small import once, write_haystack

from experiments.soak import data, process
from experiments.soak.__main__ import Ended, Soak, judge, sound, verdict
from experiments.soak.plan import CHANGING, EVENTS, LEGS, ONE, Start, kills, starts
from experiments.soak.seen import Compared, Learnt, compare, learnt


def write(folder: Path, rank: int, *lines: dict) -> None:
    folder.mkdir(exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / f"rank{rank}.jsonl").write_text(text + '{"start": 9, "st', encoding="utf-8")


def test_what_was_learnt_from_ends_for_a_start_where_the_next_one_goes_on(tmp_path: Path) -> None:
    """Two processes get to step 3, of which 2 are saved; one goes on. A line that was cut was not learnt from."""
    first = [{"start": 1, "step": step, "samples": [f"a{step}"]} for step in range(3)]
    second = [{"start": 1, "step": step, "samples": [f"b{step}"]} for step in range(2)]
    alone = [{"start": 3, "step": 2, "samples": ["a2"]}, {"start": 3, "step": 2, "samples": ["b2"]}]
    write(tmp_path, 0, {"start": 1, "from": 0}, *first, {"start": 3, "from": 2}, *alone)
    write(tmp_path, 1, {"start": 1, "from": 0}, *second)
    found = learnt(tmp_path)
    whole = {step: [f"a{step}", f"b{step}"] for step in range(3)}
    assert found == Learnt(whole, redone=1)
    assert compare(found.steps, whole) == Compared(0, 0, 0)


def test_a_sample_too_many_or_too_few_and_another_order_are_counted() -> None:
    whole = {0: ["a", "b"], 1: ["c", "d"], 2: ["e", "f"]}
    assert compare({0: ["a", "b"], 1: ["a", "b"], 2: ["e", "f"]}, whole) == Compared(2, 2, 0)
    assert compare({0: ["b", "a"], 1: ["c", "c"], 2: ["e", "f"]}, whole) == Compared(1, 1, 1)
    assert compare({0: ["a", "b"], 1: ["c", "d"]}, whole) == Compared(0, 2, 0)
    assert compare({**whole, 3: ["g"]}, whole) == Compared(1, 0, 0)


def test_a_plan_is_a_function_of_its_seed_and_has_every_event_once() -> None:
    assert starts(CHANGING, CHANGING.events, 120, 5, 0) == starts(CHANGING, CHANGING.events, 120, 5, 0)
    assert starts(CHANGING, CHANGING.events, 120, 5, 0) != starts(CHANGING, CHANGING.events, 120, 5, 1)
    seen: set[tuple] = set()
    for leg in LEGS:
        for seed in range(5):
            made = starts(leg, leg.events, 120, seed, 0)
            assert sorted(start.event for start in made[:-1]) == sorted(leg.events) and made[-1].event is None
            moments = [start.at for start in made if start.at is not None]
            assert moments == sorted(set(moments)) and moments[0] > 0 and moments[-1] < 119
            assert {start.processes for start in made} <= set(leg.processes)
            for start in made:
                assert start.event != "worker" or start.workers > 0
                assert start.event != "rank 1" or start.processes == 2
            seen |= {(start.processes, start.workers) for start in made}
    assert {workers for processes, workers in seen if processes == 1} == {0, 1, 2, 3}
    assert set(EVENTS) == set(CHANGING.events) and set(EVENTS) - set(ONE.events) == {"rank 1"}
    assert len(kills(20, 0)) == 20 and kills(20, 0) == kills(20, 0)


def ended(weight: float, digest: str, samples: list[str]) -> Ended:
    return Ended(Learnt({0: samples}, 0), {"w": torch.full((4,), weight)}, digest)


def test_the_verdict_is_no_where_weights_or_samples_differ_or_something_else_happened() -> None:
    whole = ended(1.0, "a", ["x", "y"])
    done = [(Start(1, 0, 1, "kill", 3), "killed at step 3"), (Start(1, 0, 1, None), "ended")]
    good = judge("one process", whole, whole, done, [], True)
    assert sound(good) and good.events == Counter(kill=1) and good.starts == 2
    rounded = ended(1.0 + 1e-7, "b", ["x", "y"])
    assert not sound(judge("one process", rounded, whole, done, [], True)), "to the bit"
    assert sound(judge("changing", rounded, whole, done, [], False)), "within rounding"
    assert not sound(judge("changing", ended(1.001, "b", ["x", "y"]), whole, done, [], False))
    assert not sound(judge("one process", ended(1.0, "a", ["x", "x"]), whole, done, [], True))
    assert not sound(judge("one process", whole, whole, done, ["it hung"], True))
    other = judge("control", ended(1.001, "b", ["x", "x"]), whole, [], [], True)
    line, code = verdict([good], other, 60.0)
    assert code == 0 and line.startswith("soak: equal after 1.0 minutes, 1 rounds and 2 starts (1 kill)")
    assert verdict([good], good, 60.0)[1] == 1, "a control that looks sound"
    assert verdict([good, other], None, 60.0)[1] == 1


def test_spoilt_clips_stand_in_shards_whose_sums_are_right(tmp_path: Path, shared: Path) -> None:
    shards = data.make(tmp_path, 16, 32, 0, str(once(shared / "haystack", write_haystack)))
    found = [path.read_bytes() for path in sorted(shards.glob("train-*.tar"))]
    assert sum(one.count(data.DAMAGED) for one in found) == 2 and sum(one.count(data.MARK) for one in found) == 1
    for how in process.DAMAGES:
        path = shards / "train-000000.tar"
        process.damage(path, how)
        assert not path.exists() or path.read_bytes() != found[0]
        path.write_bytes(found[0])


def test_what_is_forked_reads_and_what_is_started_is_another_training_process() -> None:
    forked = process.FORK.Process(target=time.sleep, args=(60,))
    forked.start()
    started = subprocess.Popen(["sleep", "60"], env=os.environ | {"LOCAL_RANK": "1"})
    try:
        found = {one.pid: one for one in process.descendants(os.getpid())}
        reads, second = found[forked.pid], found[started.pid]
        assert process.is_worker(reads) and not process.is_rank_1(reads)
        assert process.is_rank_1(second) and not process.is_worker(second)
        assert process.is_there(reads) and not process.is_there(process.Process(reads.pid, reads.born + 1))
        process.end(reads)
        forked.join()
        assert not process.is_there(reads)
    finally:
        forked.kill()
        forked.join()
        started.kill()
        started.wait()


def few(folder: Path, shared: Path, steps: int, clips: int, hangs: bool) -> Soak:
    haystack = str(once(shared / "haystack", write_haystack))
    return Soak(folder, steps, 3, clips=clips, size=32, haystack=haystack, small=None, hangs=hangs)


def test_nothing_is_lost_when_a_run_is_killed_and_goes_on_with_other_processes(
    tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One alone with a worker, the second of two, and one that reads; at last one goes on in four parts."""
    soak = few(tmp_path, shared, 13, 24, hangs=False)
    plan = [Start(1, 1, 1, "kill", 6), Start(2, 0, 2, "rank 1", 7), Start(1, 1, 1, "worker", 8), Start(1, 0, 4, None)]
    monkeypatch.setattr("experiments.soak.__main__.starts", lambda *_: plan)
    found = soak.round(CHANGING, (), 0)
    assert sound(found), found
    assert found.events == Counter({"kill": 1, "rank 1": 1, "worker": 1}) and found.starts == 4
    assert found.samples > 13 * 8 and found.redone > 0


@pytest.mark.slow
@pytest.mark.parametrize("leg", LEGS, ids=lambda leg: leg.name)
def test_nothing_is_lost_whatever_happens_to_a_run(leg, tmp_path: Path, shared: Path) -> None:
    found = few(tmp_path, shared, 60, 120, hangs=True).round(leg, leg.events, 0)
    assert sound(found), found
    assert found.starts >= len(leg.events)
