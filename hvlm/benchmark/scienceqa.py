"""ScienceQA-IMG (arXiv:2209.09513): the 2017 questions of the test split that have a picture, with 2 to 5 options."""

from __future__ import annotations

from hvlm.benchmark._options import OptionsBenchmark


class ScienceQA(OptionsBenchmark):
    """annotations: a parquet file, or the folder of those that begin with ``split``; the pictures stand in it.
    The other settings are those of ``hvlm.benchmark._options``.
    """
