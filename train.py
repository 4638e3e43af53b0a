"""Train: ``python train.py experiment=demo``, or one stage in one sentence:

python train.py stage=sft connector=foveated merger=none attention=none dataset=needles init_from=runs/demo
"""

from __future__ import annotations

from typing import Any

from hvlm.chain import Outcome, run
from hvlm.config import main


@main
def train(cfg: dict[str, Any], overrides: list[str]) -> Outcome:
    """Stages in order (finished ones are skipped, a stopped one goes on), then the benchmark. Returns what was made."""
    return run(overrides)


if __name__ == "__main__":
    train()
