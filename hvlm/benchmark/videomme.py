"""Video-MME (arXiv:2405.21075): 900 videos with three questions each, with and without subtitles.

videomme/test-00000-of-00001.parquet   data/<videoID>.mp4   subtitle/<videoID>.srt
"""

from __future__ import annotations

from hvlm.benchmark._options import OptionsBenchmark


class VideoMME(OptionsBenchmark):
    """annotations: the parquet file or its folder. videos: data/. subtitles: subtitle/, None: without.
    The other settings are those of ``hvlm.benchmark._options``.
    """
