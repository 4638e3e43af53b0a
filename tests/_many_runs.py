"""Several runs of train.py one after the other in each of several processes that torchrun starts.

    torchrun --nproc-per-node=2 tests/_many_runs.py RUNS.json

RUNS.json: a list of lists of overrides. Starting Python and torch is what costs; one start serves all. Each process
leaves ``held_RANK.json`` beside RUNS.json: {run: {what: bytes}} of what it held at the end of its last step.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent


def together(runs: Sequence[Sequence[str]], folder: Path, processes: int = 2, timeout: int = 500) -> None:
    """Run them in ``processes`` processes, with ``folder`` as the current one."""
    file = folder / "runs.json"
    file.write_text(json.dumps([list(run) for run in runs]))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")} | {"OMP_NUM_THREADS": "1"}
    child = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}",
         str(Path(__file__)), str(file)],
        cwd=folder, env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip
    assert child.returncode == 0, (child.stdout + child.stderr)[-4000:]


def main(file: Path) -> None:
    import lightning

    from hvlm.training import chain
    from hvlm.training.held import held_bytes

    held = {}

    class Watch(lightning.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_) -> None:
            held["last"] = held_bytes(pl_module, trainer.optimizers)

    usual = chain.callbacks
    chain.callbacks = lambda *arguments: [*usual(*arguments), Watch()]
    found = {}
    for overrides in json.loads(file.read_text()):
        outcome = chain.run(overrides)
        found[outcome.run.relative_to("runs").as_posix()] = held.pop("last", {})
    rank = os.environ["RANK"]
    file.with_name(f"held_{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
