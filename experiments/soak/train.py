"""``train.py`` with what a soak needs beside it: it writes down what it sees, and its decoder may hang.

python -m experiments.soak.train OVERRIDES      (with the environment that experiments/soak/process.py gives)
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from experiments.soak import hanging
from experiments.soak.seen import Seen
from hvlm.commands.train import train
from hvlm.data import decode
from hvlm.data.order import Order, SampleRef
from hvlm.training import chain

SEEN = "SOAK_SEEN"  # environment: folder of what was seen
AGAIN = "SOAK_AGAIN"  # environment: a step that sees the samples of the one before it: what a soak must notice


def main() -> None:
    decode.sampled = hanging.sampled
    given, at = chain.callbacks, Order.at

    def callbacks(*args: Any, **kwargs: Any) -> list[Any]:
        return [*given(*args, **kwargs), Seen(Path(os.environ[SEEN]))]

    def repeating(order: Order, step: int) -> list[SampleRef]:
        return at(order, step - 1 if step == int(os.environ[AGAIN]) else step)

    chain.callbacks = callbacks
    if AGAIN in os.environ:
        Order.at = repeating  # type: ignore[method-assign]
    train()


if __name__ == "__main__":
    main()
