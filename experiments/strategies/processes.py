"""Several runs of train.py one after the other in each of several processes that torchrun starts.

    torchrun --nproc-per-node=2 -m experiments.strategies.processes RUNS.json

RUNS.json: a list of lists of overrides. Starting Python and torch is what costs; one start serves all. Each process
leaves ``held_RANK.json`` beside it: {run: {what: bytes}} of what it held when its last step's gradients were there, and
by how much the process had grown since the run began, ``resident`` then and ``peak`` at its most.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.memory import memory_mb, start_peak
from experiments.strategies.held import held_bytes

ROOT = Path(__file__).parent.parent.parent


def together(runs: Sequence[Sequence[str]], folder: Path, processes: int = 2, timeout: int = 500) -> None:
    """Run them in ``processes`` processes, with ``folder`` as the current one. Raises RuntimeError where one fails."""
    file = folder / "runs.json"
    file.write_text(json.dumps([list(run) for run in runs]), encoding="utf-8")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    child = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}",
         "-m", "experiments.strategies.processes", str(file)],
        cwd=folder, env=environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=timeout,
    )  # fmt: skip
    if child.returncode:
        raise RuntimeError((child.stdout + child.stderr)[-4000:])


def held(folder: Path, rank: int) -> dict[str, dict[str, int]]:
    """What a process of ``together`` left."""
    return json.loads((folder / f"held_{rank}.json").read_text(encoding="utf-8"))


def main(file: Path) -> None:
    import lightning

    from hvlm.training import chain

    last: dict[str, int] = {}
    before = 0.0

    def grown(field: str) -> int:
        return int((memory_mb(field) - before) * 2**20)

    class Watch(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            last.update(held_bytes(pl_module, trainer.optimizers), resident=grown("VmRSS"))

    usual = chain.callbacks
    chain.callbacks = lambda *arguments: [*usual(*arguments), Watch()]
    found = {}
    for overrides in json.loads(file.read_text(encoding="utf-8")):
        last.clear()
        before = start_peak()
        outcome = chain.run(overrides)
        found[outcome.run.relative_to("runs").as_posix()] = last | {"peak": grown("VmHWM")}
    path = file.with_name(f"held_{os.environ['RANK']}.json")
    path.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
