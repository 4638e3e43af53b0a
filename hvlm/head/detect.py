"""What happens when: a class and the distances to start and end for each moment, over a temporal pyramid.

ActionFormer (Zhang et al. 2022): its pyramid of local attention, its assignment of moments to segments, its losses
(focal and distance-IoU over the moving average of the number of positives) and its decoding with Gaussian soft-NMS.
``boundary=trident`` finds the ends as TriDet does (Shi et al. 2023). ``causal=true`` reads frame by frame.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from hvlm.config.ranges import (
    Fraction,
    Ge,
    Le,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
)
from hvlm.contracts import Head
from hvlm.data.question_file import Row as FileRow
from hvlm.data.sample_fields import FieldError, as_number, as_object
from hvlm.data.sample_targets import as_event
from hvlm.errors import UserError
from hvlm.head._boundaries import DistanceEnds, TridentEnds, focal
from hvlm.head._grid import Assigned, Points, assign, points_of, to_grid, to_seconds
from hvlm.head._labels import Labels
from hvlm.head._lines import check_each, clip_of, label_in, listed
from hvlm.head._moments import Moments, read_activitynet
from hvlm.head._pool import Frames, frame_states
from hvlm.head._pyramid import Pyramid, State, Tower
from hvlm.head._segments import diou_loss, giou_loss, soft_nms
from hvlm.metrics.temporal import TemporalMAP
from hvlm.prompts import DESCRIBE
from hvlm.types import Batch, Sequence

PRIOR = 0.01  # of a class at a moment, before anything is learned
SHORTEST = 0.05  # frames: no segment is shorter
LEAST = 1e-3  # moments whose probability is no larger are not decoded


class Found(NamedTuple):
    """The head's output: logits_KPC of every point and class; ends, its distances to start and end; frames, of which
    they were made; points and valid_KP, where there is a frame."""

    logits_KPC: Tensor
    ends: Any
    frames: Frames
    points: Points
    valid_KP: Tensor


class Detect(Head):
    """labels: the classes; None stands for the dataset's. dim: width of the pyramid. levels: of the pyramid, each at
    half the rate of the one below. stem: blocks at the full rate before it. num_heads, window: of local attention
    (places of a level). first_range: segments whose ends are within so many frames are found on the lowest level, twice
    as many on each one above. radius: a moment learns a segment that far from its middle, in strides. boundary:
    ``distance`` (ActionFormer) or ``trident`` (TriDet), with so many ``bins``.
    focal_alpha, focal_gamma: of the focal loss. label_smoothing: of the classes. regression_weight: of the distances'
    loss against the classes'; 0: so that both are equal. momentum: of the moving average of the number of positives,
    by which the loss is divided; 0: of this step alone. positives: its first value.
    sigma: of soft-NMS. min_score: what it leaves below that is dropped. most: segments of a clip. candidates: of each
    level before it.
    causal: no moment sees more than ``look_ahead`` frames beyond itself, and ``stream`` finds the same frame by frame.
    dropout: in the blocks. prompt: what stands before the video.
    """

    names = "events"
    measures = ("focal", "diou")
    running: Tensor

    def __init__(
        self,
        *,
        text_dim: int,
        labels: list[str] | None = None,
        dim: Annotated[int, Ge(1), Le(8192)] = 128,
        levels: Annotated[int, Ge(1), Le(16)] = 5,
        stem: Annotated[int, Ge(0), Le(64)] = 1,
        num_heads: PositiveInt = 4,
        window: PositiveInt = 9,
        first_range: PositiveFloat = 4.0,
        radius: PositiveFloat = 1.5,
        boundary: Literal["distance", "trident"] = "distance",
        bins: Annotated[int, Ge(1), Le(4096)] = 16,
        focal_alpha: Fraction = 0.25,
        focal_gamma: NonNegativeFloat = 2.0,
        label_smoothing: Probability = 0.0,
        regression_weight: NonNegativeFloat = 1.0,
        momentum: Probability = 0.9,
        positives: PositiveFloat = 100.0,
        sigma: PositiveFloat = 0.5,
        min_score: NonNegativeFloat = 1e-3,
        most: PositiveInt = 200,
        candidates: PositiveInt = 2000,
        causal: bool = False,
        look_ahead: NonNegativeInt = 4,
        dropout: Probability = 0.1,
        prompt: str = DESCRIBE,
    ):
        super().__init__()
        if causal and boundary == "trident":
            raise UserError(
                "head.causal=true: head.boundary=trident looks for the end among later moments; use "
                "head.boundary=distance"
            )
        if dim % num_heads:
            raise UserError(f"head.dim={dim}: expected a multiple of head.num_heads={num_heads}")
        self.labels = Labels(labels, "events")
        self.view = Moments(self.labels, prompt)
        self.levels, self.first_range, self.radius, self.boundary = levels, first_range, radius, boundary
        self.alpha, self.gamma, self.smoothing = focal_alpha, focal_gamma, label_smoothing
        self.regression_weight, self.momentum = regression_weight, momentum
        self.sigma, self.min_score, self.most, self.candidates = sigma, min_score, most, candidates
        self.look_ahead = look_ahead if causal else None
        classes = len(self.labels)
        self.norm = nn.LayerNorm(text_dim)
        self.pyramid = Pyramid(
            text_dim, dim, levels=levels, stem=stem, heads=num_heads, window=window, dropout=dropout,
            look_ahead=self.look_ahead,
        )  # fmt: skip
        self.scores = Tower(dim, classes, causal=causal, bias=-math.log((1 - PRIOR) / PRIOR))
        trident = boundary == "trident"
        self.ends = TridentEnds(dim, classes, levels, bins) if trident else DistanceEnds(dim, levels, causal)
        self.register_buffer("running", torch.tensor(float(positives)))

    # -- what it makes of the states of frames -------------------------------------------------------------------------

    def forward(self, hidden_KLD: Tensor, sequence: Sequence) -> Found:
        return self.of_frames(frame_states(hidden_KLD, sequence))

    def of_frames(self, frames: Frames) -> Found:
        """Of the states of frames, wherever they come from."""
        levels = self.pyramid(self.norm(frames.x_KTD), frames.mask_KT)
        points = self.points(frames.mask_KT)
        count_K1 = frames.mask_KT.sum(1, keepdim=True)
        valid = (points.place_P >= 0) & (points.place_P < count_K1)
        logits = torch.cat([self.scores(x, mask) for x, mask in levels], 1).float()
        return Found(logits, self.ends(levels), frames, points, valid)

    def points(self, mask_KT: Tensor) -> Points:
        """The moments of which something is said, for a batch of so many frames."""
        places = self.pyramid.length(mask_KT.shape[1])
        return points_of(places, self.levels, self.first_range, self.look_ahead or 0, mask_KT.device)

    # -- learning ------------------------------------------------------------------------------------------------------

    def assigned(self, batch: Batch) -> Assigned:
        """What each point is to learn; needs no model."""
        assert batch.targets is not None, "a batch of the head's own view"
        time_KT, mask_KT = batch.frame_time_BT[batch.clip_K], batch.frame_mask_BT[batch.clip_K]
        segment = to_grid(batch.targets["segments"].flatten(1), time_KT, mask_KT).unflatten(1, (-1, 2))
        points = self.points(mask_KT)
        valid = (points.place_P >= 0) & (points.place_P < mask_KT.sum(1, keepdim=True))
        return assign(points, segment, batch.targets["classes"], valid, len(self.labels), self.radius)

    def units(self, batch: Batch) -> int:
        return int(self.assigned(batch).positive_KP.sum())

    def loss(self, output: Found, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Focal loss of all points and classes and distance-IoU loss of the positives, summed; their number."""
        want = self.assigned(batch)
        right = want.classes_KPC
        found_N2, right_N2, where = self.ends.of_positives(output.ends, want)
        smooth = right * (1 - self.smoothing) + self.smoothing / (right.shape[-1] + 1)
        each = focal(output.logits_KPC, smooth, self.alpha, self.gamma)
        if self.boundary == "trident" and len(found_N2):  # what is found badly shall not be certain
            quality = (1 - giou_loss(found_N2, right_N2)).clamp(min=0).detach() ** 0.2
            each = each.index_put(where, each[where] * quality)
        classes = (each * output.valid_KP.unsqueeze(-1)).sum()
        ends = diou_loss(found_N2, right_N2).sum()
        weight: Tensor | float = self.regression_weight
        if not weight:
            weight = classes.detach() / ends.detach().clamp(min=0.01)
        count = want.positive_KP.sum()
        return classes + weight * ends, count, {"focal": classes.detach(), "diou": ends.detach()}

    @torch.no_grad()
    def divisor(self, term: str, units: Tensor) -> Tensor:
        """The moving average of the number of positives."""
        if not self.momentum:
            return units
        self.running.lerp_(units.clamp(min=1.0).to(self.running), 1 - self.momentum)
        return self.running.clone()

    # -- answering -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(self, output: Found, batch: Batch) -> list[dict[str, Any]]:
        """{key, uid, domain, duration, segments: [{start, end, label, score}], events}: the best first."""
        lines = []
        left, right = self.ends.segments(output.ends, output.points)
        for k, row in enumerate(batch.rows or []):
            probability = output.logits_KPC[k].sigmoid() * output.valid_KP[k].unsqueeze(-1)
            candidates = self.decoded(probability, left[k], right[k], output.points)
            time, mask = output.frames.time_KT[k : k + 1], output.frames.mask_KT[k : k + 1]
            duration = row.get("duration") or _duration(time, mask)
            about = {name: row.get(name, "") for name in ("key", "uid", "domain")}
            segments = self.kept(self.timed(candidates, time, mask, duration))
            lines.append(about | {"duration": duration, "segments": segments, "events": row.get("events", [])})
        return lines

    def decoded(self, probability_PC: Tensor, left: Tensor, right: Tensor, points: Points) -> tuple[Tensor, ...]:
        """(start, end on the grid, class, score) of the likeliest of each level, level by level.

        left, right: places on the grid, [P] or for each class [P, C].
        """
        found: list[tuple[Tensor, ...]] = []
        begin = 0
        for size in points.sizes:
            score_N, index_N = probability_PC[begin : begin + size].flatten().sort(descending=True, stable=True)
            keep = score_N > LEAST
            score_N, index_N = score_N[keep][: self.candidates], index_N[keep][: self.candidates]
            point, label = index_N // probability_PC.shape[1] + begin, index_N % probability_PC.shape[1]
            at = (point,) if left.dim() == 1 else (point, label)
            start, end = left[at], right[at]
            long = end - start > SHORTEST
            found.append((start[long], end[long], label[long], score_N[long]))
            begin += size
        return tuple(torch.cat(parts) for parts in zip(*found, strict=True))

    def timed(
        self, candidates: tuple[Tensor, ...], time_1T: Tensor, mask_1T: Tensor, duration: float
    ) -> tuple[Tensor, ...]:
        """The same in seconds, from 0 to the end of the clip."""
        start, end, label, score = candidates
        both = to_seconds(torch.cat([start, end])[None], time_1T, mask_1T)[0].clamp(0, duration)
        start, end = both.chunk(2)
        keep = end > start
        return start[keep], end[keep], label[keep], score[keep]

    def kept(self, candidates: tuple[Tensor, ...]) -> list[dict[str, Any]]:
        """What soft-NMS leaves of each class, the best of all classes first; ties in the order of the candidates."""
        start, end, label, score = (x.double().cpu().numpy() for x in candidates)
        left: list[tuple[float, int]] = []
        for c in range(len(self.labels)):
            (index,) = (label == c).nonzero()
            if not len(index):
                continue
            segments = np.stack([start[index], end[index]], 1)
            how = {"sigma": self.sigma, "min_score": self.min_score, "most": self.most}
            left += [(kept, int(index[i])) for i, kept in soft_nms(segments, score[index], **how)]
        left.sort(key=lambda one: (-one[0], one[1]))
        return [
            {"start": round(float(start[i]), 4), "end": round(float(end[i]), 4)}
            | {"label": self.labels.names[int(label[i])], "score": round(kept, 6)}
            for kept, i in left[: self.most]
        ]

    def stream(self) -> Stream:
        """For frames that come one by one. UserError without ``causal``."""
        if self.look_ahead is None:
            raise UserError(
                "head.causal=false: all moments see the whole clip; train with head.causal=true for streams"
            )
        return Stream(self)

    # -- scoring -------------------------------------------------------------------------------------------------------

    def metrics(self) -> dict[str, Metric]:
        return {"map": TemporalMAP()}

    def update(self, metrics: Mapping[str, Metric], lines: SequenceOf[Mapping[str, Any]]) -> None:
        """Mean average precision at each overlap, and their mean."""
        for line in lines:
            found, right = (_columns(line[name]) for name in ("segments", "events"))
            metrics["map"].update([line["uid"] or line["key"]], [found], [right[:2]])

    def score(self, lines: SequenceOf[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """See ``Head.score``; with standard errors over videos."""
        metrics = self.metrics()
        self.update(metrics, lines)
        errors = {f"map/{name}": error for name, error in metrics["map"].errors().items() if math.isfinite(error)}
        return [row | {"stderr": errors.get(row["metric"])} for row in super().score(lines)]

    def check_lines(self, lines: Mapping[int, Mapping[str, Any]], path: Path) -> None:
        """See ``Head.check_lines``."""

        def name_of(line: Mapping[str, Any]) -> str:
            for i, one in enumerate(listed(line, "segments")):
                where = f"segments[{i}]"
                one = as_object(one, where)
                start, end, _ = (as_number(one.get(name), f"{where}.{name}") for name in ("start", "end", "score"))
                if end < start:
                    raise FieldError(f"{where} ends at {end:g}, before its start at {start:g}")
                label_in(self.labels, one.get("label"), f"{where}.label")
            for i, one in enumerate(listed(line, "events")):
                label_in(self.labels, as_event(one, f"events[{i}]")["label"], f"events[{i}].label")
            return clip_of(line)

        check_each(lines, path, name_of)

    def read(self, path: Path, setting: str) -> list[FileRow]:
        """ActivityNet's JSON; see ``read_activitynet``."""
        return read_activitynet(path, setting, self.labels)


def _columns(segments: SequenceOf[Mapping[str, Any]]) -> tuple[list[Any], ...]:
    """(start and end, label, score) of segments, as metrics take them."""
    ends = [(one["start"], one["end"]) for one in segments]
    return ends, [one["label"] for one in segments], [one.get("score", 0.0) for one in segments]


def _duration(time_1T: Tensor, mask_1T: Tensor) -> float:
    """Seconds of a clip of which only the times of its frames are known: they are the middles of equal parts."""
    count = int(mask_1T.sum())
    last = float(time_1T[0, count - 1])
    return last + (last - float(time_1T[0, 0])) / (2 * max(1, count - 1)) if count > 1 else 2 * last


class Stream:
    """A clip whose frames come one by one: what the whole pass says of each moment, ``look_ahead`` frames later."""

    def __init__(self, head: Detect) -> None:
        self.head, self.number = head, 0
        self.state: State = {}
        self.times: list[float] = []
        self.said: list[dict[str, Any]] = []

    @torch.no_grad()
    def read(self, x_D: Tensor, seconds: float) -> list[dict[str, Any]]:
        """One frame's state; returns what it completes: {place (of the frame that the moment stands at), level, logits
        [classes], offsets [2] in strides}."""
        self.times.append(seconds)
        return self._step(self.head.norm(x_D.view(1, 1, -1)))

    @torch.no_grad()
    def end(self) -> list[dict[str, Any]]:
        """What is completed by there being no more frames."""
        nothing = torch.zeros(1, 1, self.head.norm.normalized_shape[0], device=self.head.running.device)
        return [one for _ in range(self.head.look_ahead or 0) for one in self._step(nothing)]

    def _step(self, x_11D: Tensor) -> list[dict[str, Any]]:
        head, found = self.head, []
        place = self.number - (head.look_ahead or 0)
        for level, y in head.pyramid.step(x_11D, self.state, self.number):
            logits = head.scores.step(y, self.state, level)[0, 0]
            offsets = head.ends.step(y, self.state, level)[0, 0]
            if place >= 0:
                found.append({"place": place, "level": level, "logits": logits.float(), "offsets": offsets})
        self.number += 1
        self.said += found
        return found

    def segments(self, duration: float | None = None) -> list[dict[str, Any]]:
        """What was found so far, as ``Detect.predict`` gives it; after ``end`` the same as of the whole clip."""
        head = self.head
        if not self.said or not self.times:
            return []
        time = torch.tensor([self.times])
        mask = torch.ones_like(time, dtype=torch.bool)
        said = sorted(self.said, key=lambda one: (one["level"], one["place"]))
        place = torch.tensor([float(one["place"]) for one in said])
        stride = torch.tensor([2.0 ** one["level"] for one in said])
        offsets = torch.stack([one["offsets"] for one in said]).cpu() * stride.unsqueeze(1)
        sizes = tuple(sum(one["level"] == level for one in said) for level in range(head.levels))
        points = Points(place, stride, stride, stride, sizes)
        probability = torch.stack([one["logits"] for one in said]).cpu().sigmoid()
        candidates = head.decoded(probability, place - offsets[:, 0], place + offsets[:, 1], points)
        return head.kept(head.timed(candidates, time, mask, duration or _duration(time, mask)))
