"""``make fuzz MINUTES=120``: spread a budget over the fuzz targets in turn, and write down what came of it.

    python tests/fuzz/run.py minutes=120 [out=tests/fuzz/results.json] [targets=shards,manifest] [turn=60]

Each turn of a target is a process of its own, so that what takes memory or hangs outside of Python ends that turn
alone. A failure is made small, written into ``corpus/<target>/`` (where ``make test`` finds it from then on), and
passed over for the rest of the run. The results of this call are added to those that the file holds.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(ROOT), str(HERE), str(HERE.parent)]

BATCH = 100  # examples between two looks at the clock
LATE = 300  # seconds after which a turn that should be over is ended


def targets() -> dict[str, Any]:
    """All of them, by name."""
    from importlib import import_module

    from _fuzz import TARGETS

    for file in sorted(HERE.glob("test_fuzz_*.py")):
        import_module(file.stem)
    return TARGETS


def turn(name: str, seconds: float, seed: int, known: list[str]) -> dict[str, Any]:
    """One turn in this process: {examples, refused, seconds, failures: [{place, message, file}]}."""
    import hypothesis
    from _fuzz import CORPUS, SETTINGS, kept, place_of, within

    one = targets()[name]
    one.known |= set(known)
    begun, failures = time.monotonic(), []
    while time.monotonic() - begun < seconds:
        seed += 1
        profile = hypothesis.settings(**SETTINGS, max_examples=BATCH, database=None, derandomize=False)
        try:
            one.search(profile, seed)
        except Exception as error:
            place = place_of(error)
            one.known.add(place)
            folder = CORPUS / name
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / f"{re.sub(r'[^a-z0-9]+', '-', place.lower()).strip('-')}.json"
            file.write_text(kept(one.last), encoding="utf-8")
            said = " ".join(str(error).split())[:300]
            failures.append({"place": place, "message": said, "file": str(file.relative_to(ROOT))})
            print(f"  {name}: {place}: {said}\n    {within(one.last)}", flush=True)
    spent = time.monotonic() - begun
    return {**one.counts, "seconds": round(spent, 1), "failures": failures}


def run(minutes: float, out: Path, names: list[str], seconds: float) -> int:
    """All turns; returns how many failures were found."""
    begun, found = time.monotonic(), 0
    before = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {"runs": [], "targets": {}}
    commit = subprocess.run(
        ["git", "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout.strip()
    this = {"begun": f"{datetime.now(UTC):%Y-%m-%d %H:%M}", "commit": commit, "seconds": 0.0}
    before["runs"].append(this)
    spent = dict.fromkeys(names, 0.0)
    known: dict[str, list[str]] = {name: [] for name in names}  # of this run: what earlier ones found has been mended
    while (left := minutes * 60 - (time.monotonic() - begun)) > 1:
        name = min(names, key=lambda one: spent[one])
        told = before["targets"].setdefault(name, {"examples": 0, "refused": 0, "seconds": 0.0, "failures": []})
        made = _turn_apart(name, min(seconds, left), int(time.time()) % 10**6 * 1000, known[name])
        known[name] += [one["place"] for one in made["failures"]]
        spent[name] += max(made["seconds"], 1.0)
        for key in ("examples", "refused", "seconds"):
            told[key] = round(told[key] + made[key], 1)
        told["failures"] += made["failures"]
        found += len(made["failures"])
        this["seconds"] = round(time.monotonic() - begun, 1)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(before, indent=1) + "\n", encoding="utf-8")
        print(
            f"{name}: {made['examples']:,} examples in {made['seconds']:.0f} s, {len(made['failures'])} failures",
            flush=True,
        )
    print(table(before))
    print(f"{out}: {found} failures in this run of {this['seconds'] / 60:.0f} minutes")
    return found


def _turn_apart(name: str, seconds: float, seed: int, known: list[str]) -> dict[str, Any]:
    call = [sys.executable, __file__, "turn", name, str(seconds), str(seed), json.dumps(known)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    begun = time.monotonic()
    nothing: dict[str, Any] = {"examples": 0, "refused": 0}
    try:
        done = subprocess.run(call, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, timeout=seconds + LATE)
    except subprocess.TimeoutExpired:
        why = f"hung for {LATE} s outside of what can be stopped"
        return {
            **nothing,
            "seconds": seconds + LATE,
            "failures": [{"place": f"hang in {name}", "message": why, "file": ""}],
        }
    lines = done.stdout.rstrip().split("\n")
    for line in lines[:-1]:
        print(line)
    if done.returncode:
        why = f"the process ended with {done.returncode}"
        spent = round(time.monotonic() - begun, 1)
        return {**nothing, "seconds": spent, "failures": [{"place": f"crash in {name}", "message": why, "file": ""}]}
    return json.loads(lines[-1])


def table(results: dict[str, Any]) -> str:
    """The results as a table of Markdown."""
    lines = ["| target | examples | refused in a line | minutes | failures found |", "|---|---|---|---|---|"]
    for name, told in sorted(results["targets"].items()):
        numbers = (
            f"{told['examples']:,.0f} | {told['refused']:,.0f} | {told['seconds'] / 60:.1f} | {len(told['failures'])}"
        )
        lines.append(f"| {name} | {numbers} |")
    sums = [sum(told[key] for told in results["targets"].values()) for key in ("examples", "refused", "seconds")]
    failures = sum(len(told["failures"]) for told in results["targets"].values())
    lines.append(f"| all | {sums[0]:,.0f} | {sums[1]:,.0f} | {sums[2] / 60:.1f} | {failures} |")
    return "\n".join(lines)


def main(words: list[str]) -> None:
    if words[:1] == ["turn"]:
        name, seconds, seed, known = words[1:]
        print(json.dumps(turn(name, float(seconds), int(seed), json.loads(known))))
        return
    given = dict(word.partition("=")[::2] for word in words)
    unknown = set(given) - {"minutes", "out", "targets", "turn"}
    if unknown or not given.get("minutes"):
        sys.exit(f"usage: {(__doc__ or '').splitlines()[2].strip()}")
    names = [name for name in given.get("targets", "").split(",") if name] or list(targets())
    out = Path(given.get("out") or HERE / "results.json")
    sys.exit(bool(run(float(given["minutes"]), out, names, float(given.get("turn") or 60))))


if __name__ == "__main__":
    main(sys.argv[1:])
