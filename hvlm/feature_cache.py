"""What a frozen encoder makes of the frames, kept in memory: each frame is encoded once, not once per epoch."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hvlm.errors import UserError
from hvlm.gaze import encode_frames
from hvlm.types import KV, Batch, Encoded, Tokens, Wants


@contextmanager
def shared() -> Iterator[None]:
    """Inside the block, stages whose frozen encoders are equal share one memory, and it outlives each of them.

    For experiments that train many models behind one encoder in one process.
    """
    global _SHARED
    before, _SHARED = _SHARED, {}
    try:
        yield
    finally:
        _SHARED = before


class _Frame(NamedTuple):
    """x_ND: patch tokens; saliency_N; kv: keys and values of the wanted layers [layers, 2, heads, N, d]; summary_LD.
    None: not wanted."""

    x_ND: Tensor | None
    saliency_N: Tensor | None
    kv: Tensor | None
    summary_LD: Tensor | None


_SHARED: dict[Hashable, dict[tuple[str, float], _Frame]] | None = None


class FrozenFeatures:
    """Takes ``vision.encode``'s place in training. Features are kept in bfloat16 in ordinary memory.

    wants: what of ``vision.encode`` is kept: keys and values of all layers (DINOv2-small at 224 pixels: 4.7 MB a frame)
        or, with ``last_layer``, of the last one alone (0.4 MB), which is all that a shallow query reads; saliency,
        summaries. wants_patches: keep the patch tokens (0.2 MB). Frames are known by their clip's uid and their
        time. Every process keeps its own. name: of encoder and data set; inside ``shared`` those of one name share what
        they keep.
    """

    def __init__(self, vision: nn.Module, wants: Wants, wants_patches: bool, last_layer: bool = False, name: str = ""):
        self.vision, self.wants, self.wants_patches = vision, wants, wants_patches
        self.layers = slice(-1, None) if last_layer else slice(None)
        self.frames: dict[tuple[str, float], _Frame] = {}
        if _SHARED is not None:
            self.frames = _SHARED.setdefault((name, wants, wants_patches, last_layer), self.frames)

    def bytes_per_frame(self) -> int:
        """From one black frame of the room's size."""
        side = self.vision.image_size
        device = next(self.vision.parameters()).device
        (frame,) = self._encode(torch.zeros(1, 3, side, side, dtype=torch.uint8, device=device))
        return sum(part.numel() * part.element_size() for part in frame if part is not None)

    def encode(self, batch: Batch) -> Encoded:
        """As ``vision.encode(..., wants)`` (tokens None if not wanted); padded frames are zero."""
        b, t = batch.frame_mask_BT.shape
        frames, device = batch.frames_BTCHW.flatten(0, 1), batch.frames_BTCHW.device
        times = batch.frame_time_BT.tolist()
        names = [(batch.uids[i], times[i][j]) for i in range(b) for j in range(t)]
        if not all(batch.uids):
            raise ValueError("a clip without a name: its features could not be told from another's")
        valid = batch.frame_mask_BT.flatten().nonzero().flatten().tolist()
        if hasattr(self.vision, "unshard"):  # divided: all put it together, also those that have nothing to encode
            self.vision.unshard()
        absent = list({names[i]: i for i in valid if names[i] not in self.frames}.values())
        for part in range(0, len(absent), self.vision.frames_at_once):
            which = absent[part : part + self.vision.frames_at_once]
            for i, frame in zip(which, self._encode(frames[which]), strict=True):
                self.frames[names[i]] = frame
        known = [self.frames[names[i]] for i in valid]
        half = torch.is_autocast_enabled(device.type)

        def put_together(pieces: list[Tensor]) -> Tensor:
            stacked = torch.stack(pieces).to(device)
            stacked = stacked if half else stacked.float()
            if len(valid) == b * t:
                return stacked
            return stacked.new_zeros(b * t, *stacked.shape[1:]).index_copy(
                0, torch.tensor(valid, device=device), stacked
            )

        tokens: Tokens | None = None
        kv: KV | None = None
        summary = None
        if self.wants_patches:
            x = put_together([frame.x_ND for frame in known]).float()
            grid = self.vision.grid(*frames.shape[-2:])
            tokens = Tokens.of_frames(x.unflatten(0, (b, t)), batch.frame_time_BT, batch.frame_mask_BT, grid)
            if self.wants.saliency:
                score = put_together([frame.saliency_N for frame in known]).float()
                tokens = tokens._replace(saliency_BS=score.reshape(b, -1))
        if self.wants.kv:
            kv = [layer.unbind(1) for layer in put_together([frame.kv for frame in known]).unbind(1)]
        if self.wants.summaries:
            summary = put_together([frame.summary_LD for frame in known]).unflatten(0, (b, t))
        return Encoded(tokens, kv, summary)

    @torch.no_grad()
    def _encode(self, frames_FCHW: Tensor) -> list[_Frame]:
        tokens, kv, summary, _ = encode_frames(self.vision, frames_FCHW, self.wants)
        if kv is not None:
            kv = torch.stack([torch.stack(layer, 1) for layer in kv[self.layers]], 1)
        if summary is not None:
            summary = summary[:, 0]
        x = tokens.x_BSD if self.wants_patches else None
        parts = [None if y is None else y.bfloat16().cpu() for y in (x, tokens.saliency_BS, kv, summary)]
        return [_Frame(*(None if y is None else y[i].clone() for y in parts)) for i in range(len(frames_FCHW))]


def plan(features: FrozenFeatures, clips: int, num_frames: int, limit_gb: float) -> str:
    """The size in words, before any work. Raises UserError where it exceeds ``limit_gb``."""
    each = features.bytes_per_frame()
    need = clips * num_frames * each / 1e9
    said = f"{clips} clips of {num_frames} frames at {each / 1e6:.3g} MB need {need:.1f} GB"
    if need > limit_gb:
        raise UserError(
            f"vision.cache_gb={limit_gb:g}: {said}; raise it if there is as much memory, use fewer clips, "
            "connector.depth=shallow (the last layer alone), or vision.cache_gb=0 (encode in every epoch)"
        )
    return said
