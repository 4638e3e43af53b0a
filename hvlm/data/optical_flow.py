"""How fast each patch of a frame moves: optical flow (OpenCV's DIS) without the camera's motion, and what flashes up.

Flow alone is fooled three ways. Each has its answer here:

- A pan or zoom moves every pixel. A similarity (shift, turn, zoom) is fitted to the flow by RANSAC and taken away, and
  what the camera alone explains stands still whatever the flow says: over a plain surface it may say anything. A pan
  further than DIS can follow is found by phase correlation, from where DIS starts.
- Where a thing has no counterpart in the other frame (it is covered, only one frame shows it, or there is a cut) flow
  invents one. So a pixel counts as unmatched where the colours that its flow leads to differ, or where the way back
  does not lead home.
- What is unmatched both before and after has no speed that could be measured, but nothing is more remarkable. It gets
  the speed ``GONE``. In the frames beside it the same patches are matched on their other side, and stay low.

Per pixel x of frame t and neighbour n, with flow F, the flow back B, the camera's C and colours I (|.| of colours: the
largest of the three differences, averaged over 3 x 3 pixels; ramp(e) = clip(e / tolerance - 1, 0, 1)):

    changed_n   = ramp(|I_t(x) - I_n(x + C)|)
    unmatched_n = max(ramp(|I_t(x) - I_n(x + F)|), clip(|F + B(x + F)| - 1 - |F - C| / 5, 0, 1))
    speed_n     = min(|F - C| / diagonal, LIMIT) * dilate(changed_n) * (1 - unmatched_n)
    lost_n      = changed_n * unmatched_n
    energy      = mean over the patch of max(max_n speed_n, GONE * min_n lost_n)

The tolerance grows with the noise of the pair and with the slope of the picture, so that an error of half a pixel is
evidence of nothing. ``changed`` is dilated because the inside of a plain thing that moves does not change. A pair of
which more than ``CUT`` is lost is a cut: nothing moves across it and all is lost. The first frame has one neighbour to
move to, but what is lost in frame 1 is looked for in frame 2 as well, or a thing that only frame 1 shows would make the
patches that it covers remarkable in frame 0; the last frame likewise.
"""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from hvlm.errors import UserError

# The working size in pixels: the longer side at most, the shorter side at least, a patch's side at least.
LONG, SHORT, PER_PATCH = 96, 32, 4
LIMIT = 1 / 8  # diagonals per sampled frame: about as far as DIS follows a thing
FAR = 0.07  # of the longer side: DIS is sure to find a shift up to this
GONE = 1 / 16  # the same unit: faster than nearly everything that can be followed
CUT = 0.4  # share of the pixels, mean of both frames
CODING = 4.0  # levels (of 255) by which video coding changes a plain surface
NOISE = 12.0  # levels: what differs more than this is a change even where half the frame does so
BLUR = 0.5  # pixels by which flow may err


def opencv() -> ModuleType:
    """OpenCV, on one thread: workers are the parallelism, and its results depend on how it divides a frame.

    The setting holds for the whole process. Raises UserError where OpenCV is not installed.
    """
    try:
        import cv2  # an optional dependency, loaded where motion is asked for
    except ImportError as error:
        raise UserError(
            "merger.motion=flow: optical flow is computed by OpenCV, which is not installed; run `pip install "
            "opencv-python-headless` (the extra hvlm[flow]), or set merger.motion=features"
        ) from error
    cv2.setNumThreads(1)
    return cv2


def motion_energy(frames_TCHW: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """How fast what each patch shows moves against the camera: float32 [T, rows, columns].

    frames_TCHW: uint8 [T, 3, H, W], neighbours in time; any H and W, equal for all. grid: (rows, columns) of the
        patches; it need not divide the frame.
    Unit: frame diagonals per sampled frame, averaged over the patch: the same clip in another size has the same
        energies. 0 where nothing moves against the camera (also for T = 1), ``GONE`` for a patch that is filled by
        something that only this frame shows, never above ``LIMIT``. A frame's value is the larger of its motion from
        the frame before and to the frame after. The same input gives the same bits on the same machine.

    Raises UserError where OpenCV is not installed.
    """
    cv2 = opencv()
    t, _, height, width = frames_TCHW.shape
    rows, cols = grid
    energy = np.zeros((t, rows, cols), np.float32)
    if t < 2:
        return energy
    compare = _Comparison(cv2, (height, width), grid)
    view = lru_cache(maxsize=4)(lambda i: compare.view(frames_TCHW[i]))
    pair = lru_cache(maxsize=2)(lambda i: compare(view(i), view(i + 1)))
    for i in range(t):
        near = [pair(i - 1)[1]] if i > 0 else []
        near += [pair(i)[0]] if i + 1 < t else []
        speed = np.maximum.reduce([change.speed for change in near])
        if len(near) == 1 and t > 2:
            near.append(compare(view(i), view(2 if i == 0 else i - 2))[0])
        lost = np.minimum.reduce([change.lost for change in near])
        remarkable = np.maximum(speed, GONE * lost)
        energy[i] = cv2.resize(remarkable, (cols, rows), interpolation=cv2.INTER_AREA)  # exact shares at the borders
    return energy


class _View(NamedTuple):
    """A frame at the working size. slope: grey levels per pixel around a pixel; corner: what flow can hold on to."""

    rgb: np.ndarray
    grey: np.ndarray
    slope: np.ndarray
    corner: np.ndarray


class _Change(NamedTuple):
    """What became of a frame's pixels in another one: speed (diagonals per frame) and lost (0 to 1), float32 [H, W]."""

    speed: np.ndarray
    lost: np.ndarray


class _Comparison:
    """Compares two frames of one size; everything that stays the same from pair to pair."""

    def __init__(self, cv2: Any, size: tuple[int, int], grid: tuple[int, int]) -> None:
        self.cv2 = cv2
        (height, width), (rows, cols) = size, grid
        scale = min(1.0, LONG / max(size))
        scale = max(scale, SHORT / min(size), PER_PATCH * rows / height, PER_PATCH * cols / width)
        self.size = h, w = round(height * scale), round(width * scale)
        self.smoothing = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        self.at = np.stack(np.meshgrid(np.arange(w), np.arange(h)), -1).astype(np.float32)  # (x, y) of each pixel
        self.diagonal = float(np.hypot(h, w))
        side = 2 * (max(h, w) // 32) + 1  # about the size of what moves
        self.around = np.ones((side, side), np.uint8)
        self.dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        self.dis.setFinestScale(1)  # half the working size: finer costs three times as much and is no better

    def view(self, frame_CHW: np.ndarray) -> _View:
        cv2 = self.cv2
        rgb = np.ascontiguousarray(frame_CHW.transpose(1, 2, 0))
        if rgb.shape[:2] != self.size:
            rgb = cv2.resize(rgb, self.size[::-1], interpolation=self.smoothing)
        grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
        smooth = cv2.GaussianBlur(grey, (0, 0), 1.0).astype(np.float32)
        slope = _length(*(cv2.Sobel(smooth, cv2.CV_32F, *axis, scale=1 / 8) for axis in ((1, 0), (0, 1))))
        return _View(rgb, grey, cv2.blur(slope, (5, 5)), cv2.cornerMinEigenVal(grey, 5))

    def __call__(self, one: _View, other: _View) -> tuple[_Change, _Change]:
        """What became of the pixels of ``one`` in ``other``, and the other way round."""
        start = self._shift(one.grey, other.grey)
        there = self.dis.calc(one.grey, other.grey, start.copy())
        back = self.dis.calc(other.grey, one.grey, -start)
        changes = self._change(one, other, there, back), self._change(other, one, back, there)
        if np.mean([change.lost for change in changes]) > CUT:
            nothing, all_lost = np.zeros(self.size, np.float32), np.ones(self.size, np.float32)
            return _Change(nothing, all_lost), _Change(nothing, all_lost)
        return changes

    def _shift(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """The flow [H, W, 2] that DIS starts from: a shift of the whole frame, by phase correlation, if it is one that
        DIS would not find by itself and the frames are far more alike with it; else zero, from where DIS also finds
        what moves against a small pan."""
        (h, w), flow = self.size, np.zeros((*self.size, 2), np.float32)
        shift, _ = self.cv2.phaseCorrelate(one.astype(np.float32), other.astype(np.float32))
        if not (FAR * max(h, w) <= np.abs(shift).max() and abs(shift[0]) <= w / 2 and abs(shift[1]) <= h / 2):
            return flow  # near, or with little in common, or not a number (plain frames)
        x, y = (round(s) for s in shift)
        # The places that both frames show, in each of them.
        here = one[max(0, -y) : h - max(0, y), max(0, -x) : w - max(0, x)]
        there = other[max(0, y) : h - max(0, -y), max(0, x) : w - max(0, -x)]
        unmoved = other[max(0, -y) : h - max(0, y), max(0, -x) : w - max(0, x)]
        if self.cv2.absdiff(here, there).mean() < 0.6 * self.cv2.absdiff(here, unmoved).mean():
            flow[:] = (x, y)
        return flow

    def _change(self, one: _View, other: _View, flow: np.ndarray, back: np.ndarray) -> _Change:
        home = _length(*self.cv2.split(flow + self._at(back, self.at + flow)))
        camera = self._camera(one, flow, home)
        unexplained = self._differs(one, other, camera)
        tolerance = CODING + min(1.5 * _quantile(unexplained, 0.5), NOISE) + BLUR * one.slope
        changed = _ramp(unexplained, tolerance)
        own = _length(*self.cv2.split(flow - camera))
        unmatched = np.maximum(_ramp(self._differs(one, other, flow), tolerance), np.clip(home - 1 - own / 5, 0, 1))
        lost = changed * unmatched
        near_change = self.cv2.dilate(changed, self.around)
        return _Change(np.minimum(own / self.diagonal, LIMIT) * near_change * (1 - unmatched), lost)

    def _camera(self, view: _View, flow: np.ndarray, home: np.ndarray) -> np.ndarray:
        """The flow [H, W, 2] of the similarity that most points with something to hold on to agree on, or where there
        is none their median, or zero without such points (a plain frame)."""
        few = (slice(2, None, 4), slice(2, None, 4))
        corner = view.corner[few]
        firm = (home[few] < 1) & (corner > max(1e-6, 0.1 * _quantile(corner, 0.9)))
        if firm.sum() < 12:
            return np.zeros_like(flow)
        start, step = self.at[few][firm], flow[few][firm]
        matrix, agree = self.cv2.estimateAffinePartial2D(
            start, start + step, ransacReprojThreshold=0.7, maxIters=500, confidence=0.999
        )
        if matrix is None or agree.mean() < 0.3 or not 0.5 < np.hypot(*matrix[:, 0]) < 2:
            return np.zeros_like(flow) + np.median(step, 0)
        return self.cv2.transform(self.at, matrix) - self.at

    def _differs(self, one: _View, other: _View, flow: np.ndarray) -> np.ndarray:
        """Levels (0 to 255) by which the colours that the flow leads to differ; 0 where it leads out of the frame."""
        cv2, (h, w), to = self.cv2, self.size, self.at + flow
        red, green, blue = cv2.split(cv2.absdiff(one.rgb, self._at(other.rgb, to)))
        inside = cv2.inRange(to, (-0.5, -0.5), (w - 0.5, h - 0.5))
        return cv2.blur((cv2.max(cv2.max(red, green), blue) & inside).astype(np.float32), (3, 3))

    def _at(self, values: np.ndarray, places: np.ndarray) -> np.ndarray:
        return self.cv2.remap(values, places, None, self.cv2.INTER_LINEAR, borderMode=self.cv2.BORDER_REPLICATE)


def _length(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """As cv2.magnitude, whose last bit depends on where in memory the arrays lie."""
    return np.sqrt(x * x + y * y)


def _ramp(difference: np.ndarray, tolerance: np.ndarray) -> np.ndarray:
    return np.clip(difference / tolerance - 1, 0, 1)


def _quantile(values: np.ndarray, share: float) -> float:
    """Without numpy's interpolation, which costs more than the rest of a small frame."""
    at = int(share * values.size)
    return float(np.partition(values, at, axis=None)[at])
