"""MVBench (arXiv:2311.17005): 20 tasks of 200 questions, each in a JSON file of its own, about videos of nine sources.

    json/<task>.json   [{"video": "ZS9XR.mp4", "question": ..., "candidates": [...], "answer": ..., "start", "end"}]
    video/<folder>/<video>, or video/data0613/<folder>/<video>

Videos are read in two layouts: as first published, where five tasks are about a part of their video and one about a
folder of frames, or cut beforehand, as lmms-eval uses them.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from hvlm.benchmark._published import PublishedTable
from hvlm.benchmark._table import Item
from hvlm.errors import UserError

FRAMES_PER_SECOND = 3.0  # of the folders of frames


class Task(NamedTuple):
    """folder: of its videos as first published. precut: in the layout of lmms-eval. frames: videos are folders."""

    folder: str
    precut: str = ""
    frames: bool = False


_STAR = Task("star/Charades_v1_480", "star/Charades_segment")
_CLEVRER, _PERCEPTION = Task("clevrer/video_validation"), Task("perception/videos")
TASKS = {
    "action_sequence": _STAR,
    "action_prediction": _STAR,
    "action_antonym": Task("ssv2_video", "ssv2_video_mp4"),
    "fine_grained_action": Task("Moments_in_Time_Raw/videos"),
    "unexpected_action": Task("FunQA_test/test"),
    "object_existence": _CLEVRER,
    "object_interaction": _STAR,
    "object_shuffle": _PERCEPTION,
    "moving_direction": _CLEVRER,
    "action_localization": Task("sta/sta_video", "sta/sta_video_segment"),
    "scene_transition": Task("scene_qa/video"),
    "action_count": _PERCEPTION,
    "moving_count": _CLEVRER,
    "moving_attribute": _CLEVRER,
    "state_change": _PERCEPTION,
    "fine_grained_pose": Task("nturgbd", "nturgbd_convert"),
    "character_order": _PERCEPTION,
    "egocentric_navigation": Task("vlnqa"),
    "episodic_reasoning": Task("tvqa/frames_fps3_hq", "tvqa/video_fps3_hq_segment", frames=True),
    "counterfactual_inference": _CLEVRER,
}


class MVBench(PublishedTable):
    """clips: ``cut`` reads start to end of the videos as first published, ``whole`` all of these, ``precut`` the layout
    that lmms-eval uses. The settings are those of ``PublishedTable``."""

    expected = tuple(TASKS)

    def tables(self) -> list[Path]:
        """The files of the tasks that are there, in their published order; of ``tasks`` alone where these are some."""
        files = {file.stem: file for file in super().tables()}
        found = [name for name in TASKS if name in files]
        if not found:
            raise UserError(f"benchmark.path={self.path}: none of the tasks' files is there, e.g. action_sequence.json")
        wanted = [name for name in found if name in (self.tasks or found)]
        return [files[name] for name in wanted or found]

    def place(self, item: Item) -> tuple[str, float | None]:
        """(the video below its task's folder, in one release below data0613/; the rate of a folder of frames)."""
        task = TASKS[item.file.stem]
        precut = self.clips == "precut"
        below = task.precut if precut and task.precut else task.folder
        places = [f"{below}/{item.video}", f"data0613/{below}/{item.video}"]
        found = next((place for place in places if (self.folder / place).exists()), places[0])
        return found, FRAMES_PER_SECOND if task.frames and not precut else None
