"""MVBench (arXiv:2311.17005): 20 tasks of 200 questions, each in a JSON file of its own, about videos of nine sources.

    json/<task>.json   [{"video": "ZS9XR.mp4", "question": ..., "candidates": [...], "answer": ..., "start", "end"}]
    video/<folder>/<video>

Videos are read in two layouts: as first published, where five tasks are about a part of their video and one about a
folder of frames, or cut beforehand, as lmms-eval uses them.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from hvlm.benchmark import _table
from hvlm.benchmark._options import OptionsBenchmark
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


class MVBench(OptionsBenchmark):
    """annotations: the folder json/. videos: the folder video/, None: the one beside json/. clips: ``cut`` reads start
    to end of the videos as first published, ``whole`` all of these, ``precut`` the layout that lmms-eval uses.
    The other settings are those of ``hvlm.benchmark._options``.
    """

    expected = tuple(TASKS)

    @property
    def folder(self) -> Path:
        """Of the videos."""
        return Path(self.videos) if self.videos else Path(str(self.annotations)).parent / "video"

    def tables(self) -> list[Path]:
        """The files of the tasks that are there, in their published order."""
        folder = Path(str(self.annotations))
        if not folder.is_dir():
            raise UserError(
                f"benchmark.annotations={folder}: no such folder; name MVBench's json/, with a file of each task"
            )
        wanted = TASKS if self.tasks is None else [name for name in TASKS if name in self.tasks]
        found = [folder / f"{name}.json" for name in wanted if (folder / f"{name}.json").is_file()]
        if not found:
            raise UserError(
                f"benchmark.annotations={folder}: none of the tasks' files is there, e.g. action_sequence.json; name "
                "MVBench's json/"
            )
        return found

    def read_items(self, path: Path) -> list[_table.Item]:
        """The rows of the tasks' files."""
        out = []
        for file in self.tables():
            task = TASKS[file.stem]
            precut = self.clips == "precut"
            folder = task.precut if precut and task.precut else task.folder
            fps = FRAMES_PER_SECOND if task.frames and not precut else None
            layout = _table.Layout(
                self.columns, self.groups, self.answer, self.context, self.clips == "cut", f"{folder}/", fps, file.stem
            )
            out += _table.read_table(file, layout)
        return out
