"""``hvlm prepare`` killed at random moments and started again: the same manifest as of a run that nobody disturbed?

    python -m experiments.prepare.kills [--videos 100] [--rows 10000] [--kills 8] [--workers 2] [--seed 1]

The table is that of ``experiments.prepare``, with one row in a hundred broken. The command is a process of its own that
gets SIGKILL; moments are drawn evenly over the time that the undisturbed run took. Whenever it ends before its moment,
what it made is compared and it begins anew. Writes kills.json beside this file: kills, how many shards were whole at
each, and of the runs that ended the share whose manifest, shards and quarantine were the same to the byte.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from experiments.prepare.__main__ import check, make
from experiments.started import as_started
from hvlm.evaluation import results

HERE = Path(__file__).parent
COMMAND = "python -m experiments.prepare.kills"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=100)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    began, drawn = time.perf_counter(), random.Random(options.seed)
    with tempfile.TemporaryDirectory() as place:
        table = make(Path(place) / "in", options.videos, options.rows)
        straight, out = Path(place) / "straight", Path(place) / "out"
        started = time.perf_counter()
        assert run(table, straight, options.workers, None), "it did not end"
        took = time.perf_counter() - started
        whole: list[int] = []
        ended: list[bool] = []
        while True:
            last = len(whole) >= options.kills
            if run(table, out, options.workers, None if last else drawn.uniform(0, took)):
                check(out, options.rows)
                ended.append(digests(out) == digests(straight))
                print(f"it ended with {'the same' if ended[-1] else 'other'} bytes", flush=True)
                if last:
                    break
                shutil.rmtree(out)
            else:
                whole.append(len(list(out.glob("*.tar"))))
                print(f"killed, {whole[-1]} shards are whole", flush=True)
        digest = hashlib.sha256((straight / "manifest.json").read_bytes()).hexdigest()
    columns = {"videos": options.videos, "rows": options.rows, "workers": options.workers, "kills": len(whole)}
    columns |= {"shards_whole_at_kills": " ".join(map(str, whole)), "manifest_sha256": digest}
    same = sum(ended) / len(ended)
    record = results.make("prepare", "killed", "same_bytes", same, stderr=None, n=len(ended), chance=None,
                          seeds=[options.seed], seconds=time.perf_counter() - began, command=as_started(COMMAND),
                          columns=columns)  # fmt: skip
    results.write(HERE / "kills.json", [record])


def run(table: Path, out: Path, workers: int, moment: float | None) -> bool:
    """Whether the command ended before it was killed, after so many seconds. Waits until its workers are gone, too."""
    command = [sys.executable, "-m", "hvlm.commands.prepare", str(table), f"out={out}", f"workers={workers}"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        assert child.wait(moment) == 0, "it failed"
        return True
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGKILL)
        child.wait()
    while is_held(out / ".lock"):
        time.sleep(0.02)
    return False


def is_held(lock: Path) -> bool:
    """Whether a worker of the killed command still holds the folder's lock."""
    if not lock.exists():
        return False
    with open(lock, encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def digests(folder: Path) -> dict[str, str]:
    """{file: its sum} of all that a run leaves."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.name != ".lock"}


if __name__ == "__main__":
    main()
