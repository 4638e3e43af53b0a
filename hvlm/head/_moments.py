"""What ``head=detect`` is shown: clips with the segments in them, from samples or from ActivityNet's JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvlm.data.quarantine import SampleError
from hvlm.data.question_file import Row as FileRow
from hvlm.data.sample_fields import FieldError, as_number, as_object, each_once, shown
from hvlm.data.sample_targets import as_event
from hvlm.data.views import Row, View
from hvlm.errors import UserError, first_few
from hvlm.head._labels import Labels


@dataclass(frozen=True)
class Moments(View):
    """One row for each clip whose sample has ``events``, be they none. prompt: what stands before the video."""

    labels: Labels
    prompt: str
    name = "events"

    def rows(self, sample: dict[str, Any], times: np.ndarray, rng: np.random.Generator, n: int | None) -> list[Row]:
        if "events" not in sample:
            return []
        for i, event in enumerate(sample["events"]):
            if event["label"] not in self.labels.place:
                wrong = f"events[{i}].label: {self.labels.unknown(event['label'])}"
                raise SampleError(sample["key"], "json", wrong)
        events = [{name: event[name] for name in ("start", "end", "label")} for event in sample["events"]]
        about = {name: sample[name] for name in ("key", "uid", "domain") if name in sample}
        duration = sample.get("duration")
        length = {"duration": float(duration)} if isinstance(duration, int | float) and duration > 0 else {}
        return [Row(self.prompt, None, about | {"task": "detect", "events": events} | length)]

    def targets(self, rows: Sequence[Mapping[str, Any]], chat: Any) -> dict[str, Tensor]:
        """``segments``: seconds of start and end, float32 [K, E, 2], and ``classes``: int64 [K, E], -1 where a row has
        fewer."""
        most = max([1, *(len(row.get("events", ())) for row in rows)])
        segments, classes = torch.zeros(len(rows), most, 2), torch.full((len(rows), most), -1)
        for k, row in enumerate(rows):
            for e, event in enumerate(row.get("events", ())):
                segments[k, e] = torch.tensor([event["start"], event["end"]])
                classes[k, e] = self.labels.place[event["label"]]
        return {"segments": segments, "classes": classes}

    def passes_over(self, sample: dict[str, Any]) -> bool:
        return "events" not in sample


def read_activitynet(path: Path, setting: str, labels: Labels) -> list[FileRow]:
    """The videos of a file in ActivityNet's form and what happens in each.

        {"database": {"v1": {"duration": 40.0, "annotations": [{"segment": [3.0, 9.5], "label": "jump"}]}}}

    ``subset`` where it is given: those of ``testing``, whose segments are not published, are left out. ``duration`` may
    be missing.

    Raises:
        UserError: no such form; a name that stands twice; a segment that ends before it starts, or begins
            before the video or after its end; a label that is none of ``labels``.
    """
    where = f"{setting}={path}"
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=each_once)
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({error})") from error
    videos = value.get("database") if isinstance(value, dict) else None
    if not isinstance(videos, dict) or not videos:
        raise UserError(f'{where}: expected ActivityNet\'s form, {{"database": {{video: {{"annotations": [...]}}}}}}')
    found: list[FileRow] = []
    wrong: list[str] = []
    for number, (name, about) in enumerate(videos.items(), start=1):
        try:
            about = as_object(about, "it")
            if about.get("subset") in ("testing", "test_without_annotations") and not about.get("annotations"):
                continue
            found.append(FileRow(number, None, name, None, None, _video(about, labels, wrong, name[:200])))
        except FieldError as error:
            wrong.append(f"{name[:200]}: {error}")
    if wrong:
        raise UserError(f"{where}: {first_few(wrong)}")
    if not found:
        raise UserError(f"{where}: none of its {len(videos)} videos has annotations")
    return found


def _video(about: Mapping[str, Any], labels: Labels, wrong: list[str], name: str) -> dict[str, Any]:
    """A video's sample; what is wrong with a segment is added to ``wrong``."""
    annotations, events = about.get("annotations"), []
    if not isinstance(annotations, list):
        raise FieldError(f"annotations is {shown(annotations)}, expected a list of segments with labels")
    duration = None if about.get("duration") is None else as_number(about["duration"], "duration")
    if duration is not None and duration <= 0:
        raise FieldError(f"duration is {duration:g}, expected seconds, above 0")
    for i, one in enumerate(annotations):
        try:
            where = f"annotations[{i}]"
            one = as_object(one, where)
            segment = one.get("segment")
            if not isinstance(segment, list) or len(segment) != 2:
                raise FieldError(f"{where}.segment is {shown(segment)}, expected [start, end] in seconds")
            event = as_event({"start": segment[0], "end": segment[1], "label": one.get("label")}, f"{where}.segment")
            if event["label"] not in labels.place:
                raise FieldError(f"{where}: {labels.unknown(event['label'])}")
            if duration is not None and event["start"] >= duration:
                raise FieldError(f"{where}.segment starts at {event['start']:g}, after the video's end at {duration:g}")
            events.append(event)
        except FieldError as error:
            wrong.append(f"{name}: {error}")
    return {"events": events} | ({} if duration is None else {"duration": duration})
