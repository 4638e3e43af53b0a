"""Whether this process is one of several, as the environment says."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from hvlm.errors import UserError

RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")  # Lightning believes the first of them that is set


def refuse_left_over_rank(trainer: Mapping[str, Any]) -> None:
    """``UserError`` where the environment counts this process among several and the configuration says it is alone.

    Such a process would train, and write neither metrics nor files.
    """
    name = next((name for name in RANKS if name in os.environ), None)
    if name is None or os.environ[name] in ("", "0"):
        return
    alone = trainer["devices"] == 1 and trainer["num_nodes"] == 1
    if alone or (name == "RANK" and "LOCAL_RANK" not in os.environ):  # no launcher sets it by itself
        expects = "trainer.devices=1 and trainer.num_nodes=1" if alone else "no launcher's LOCAL_RANK beside it"
        raise UserError(
            f"{name}={os.environ[name]} in the environment says that this is one of several processes, but there is "
            f"{expects}: unset {name}, or start one process only, or use trainer=ddp"
        )
