"""Train the stages of an experiment, or one stage in one sentence, and evaluate the last.

``hvlm train experiment=demo``, in a clone ``python train.py experiment=demo``, or

hvlm train stage=sft connector=foveated merger=none attention=none dataset=needles init_from=runs/demo
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hvlm.cli import main as command

if TYPE_CHECKING:
    from hvlm.training.chain import Outcome


@command
def train(cfg: dict[str, Any], overrides: list[str]) -> Outcome:
    """Stages in order (finished ones are skipped, a stopped one goes on), then the benchmark. Returns what was made."""
    from hvlm.training.chain import run  # seconds of imports, which --help and a misspelt word do without

    return run(overrides)


main = train.main
