"""The console: one format, known noise gone, everything else still there. In its own process: it is global state."""

import os
import subprocess
import sys

SCRIPT = r"""
import logging, warnings
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from hvlm.quiet import quiet

quiet()
log = logging.getLogger("hvlm.chain")
rank_zero_info("Tip: try installing [litlogger](https://example.org) to enable LitLogger")
rank_zero_info("`Trainer.fit` stopped: `max_steps=4` reached.")
rank_zero_info("`Trainer.fit` stopped: `max_time` reached.")
warnings.warn("`isinstance(treespec, LeafSpec)` is deprecated, use something else")
warnings.warn("something new")
log.info("sft: 4 steps")
log.debug("not shown")
log.warning("a clip is unreadable")
rank_zero_only.rank = 1
log.info("said by the first process")
log.error("said by every process")
"""


def test_what_is_shown():
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, check=True)
    assert run.stdout.splitlines() == [
        "`Trainer.fit` stopped: `max_time` reached.",
        "sft: 4 steps",
        "warning: a clip is unreadable",
        "error: said by every process",
    ]
    assert "something new" in run.stderr and "LeafSpec" not in run.stderr
