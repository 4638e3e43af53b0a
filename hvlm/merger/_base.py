"""What all mergers share: the budget, and applying what was chosen to tokens and to the gaze."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from hvlm.config.ranges import PositiveInt, Share
from hvlm.contracts import Merger
from hvlm.merger._scores import View
from hvlm.merging import Assignment, in_time_order, round_half_up
from hvlm.types import Patches, Tokens

Scope = Literal["auto", "video", "frame"]
Positions = Literal["patches", "packed"]
Places = Literal["centroid", "root"]


LEAST = 1  # patches of every frame that stay


class Choice(NamedTuple):
    """roots_BS: int64 [B, T * N], see ``hvlm.merging``. weight_BS: float, how much each patch counts in the mean of its
    token; None: all alike."""

    roots_BS: Tensor
    weight_BS: Tensor | None = None


class MergerRoom(Merger):
    """Patches -> fewer of them, an exact number for each clip, in time order.

    keep: share of a clip's patches that stays, rounded to whole tokens and never below one a frame. tokens: their
        number, in place of ``keep``.
    scope: ``frame`` merges within frames only; ``video`` across them, too; ``auto`` is video where the connector
        allows it (foveated and mean read frame by frame and do not) and the variant does (``across``).
    proportional: the language model's attention counts a merged token as often as it has patches (+ log size): ToMe's
        proportional attention. Without effect where what is not kept is dropped. The foveated gaze always does.
    positions: ``patches``, merged tokens keep the positions that their patches would have had in the language model;
        ``packed``, they are counted through. (For connectors that make one token of each patch, and without
        ``attention.readout``: what is read out is counted through.)
    places: a merged token's time, frame and place are the ``centroid`` of its patches', or those of its ``root``, the
        patch that stands for it: a centroid of what moved lies where nothing is.

    A variant says which patch stands for which (``choose``), which is not differentiated: gradients flow through the
    features alone, and the weights of a mean are constants. ``across``: whether it can merge across frames. ``drops``:
    what is not kept is lost, and sizes do not add up. ``chosen``: the last batch's assignment and budgets, for pictures
    and tests.
    """

    across = True

    def __init__(
        self,
        keep: Share = 0.25,
        tokens: PositiveInt | None = None,
        scope: Scope = "auto",
        proportional: bool = False,
        positions: Positions = "patches",
        places: Places = "centroid",
        *,
        needs_frames: bool = False,
    ):
        super().__init__()
        if scope not in ("auto", "video", "frame"):
            raise ValueError(f"merger.scope={scope!r}: expected auto, video or frame")
        if positions not in ("patches", "packed"):
            raise ValueError(f"merger.positions={positions!r}: expected patches or packed")
        if places not in ("centroid", "root"):
            raise ValueError(f"merger.places={places!r}: expected centroid or root")
        if scope == "video" and needs_frames:
            raise ValueError("merger.scope=video: this connector reads every frame by itself; use scope=frame or auto")
        if scope == "video" and not self.across:
            raise ValueError(f"merger.scope=video: {type(self).__name__} works within frames; use scope=frame or auto")
        self.keep, self.tokens, self.proportional = keep, tokens, proportional
        self.positions, self.places = positions, places
        self.per_frame = needs_frames or scope == "frame"
        self.chosen: Chosen | None = None

    @abstractmethod
    def choose(self, view: View) -> Choice:
        """Which patch stands for which. Called without gradients and without autocast."""

    def budget(self, mask_BT: Tensor, patches: int) -> Tensor:
        """Tokens of each clip, int64 [B]: at least one a frame, at most all."""
        frames = mask_BT.sum(1)
        wanted = torch.full_like(frames, self.tokens) if self.tokens else round_half_up(self.keep * frames * patches)
        return torch.minimum(torch.maximum(wanted, frames), frames * patches)

    def merge_frames(
        self,
        x_BTND: Tensor,
        grid: tuple[int, int],
        mask_BT: Tensor | None = None,
        motion_BTN: Tensor | None = None,
        saliency_BTN: Tensor | None = None,
    ) -> Tokens:
        """For use on its own: features of frames [B, T, N, D] on a ``grid`` of rows and columns -> fewer tokens.

        Frames count as a second each. mask_BT: bool, False for padding. motion_BTN, saliency_BTN: where ``motion=flow``
        or a saliency that the encoder gives needs them.
        """
        b, t = x_BTND.shape[:2]
        mask = torch.ones(b, t, dtype=torch.bool, device=x_BTND.device) if mask_BT is None else mask_BT
        time = torch.arange(t, device=x_BTND.device, dtype=torch.float32).expand(b, t)
        tokens = Tokens.of_frames(x_BTND, time, mask, grid)
        if motion_BTN is not None:
            tokens = tokens._replace(motion_BS=motion_BTN.flatten(1))
        if saliency_BTN is not None:
            tokens = tokens._replace(saliency_BS=saliency_BTN.flatten(1))
        return self(Patches(tokens, time, mask, grid=grid)).tokens

    def forward(self, patches: Patches) -> Patches:
        tokens, mask_BT = patches.tokens, patches.frame_mask_BT
        b, t = mask_BT.shape
        n = tokens.x_BSD.shape[1] // t

        def by_frame(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.detach().float().unflatten(1, (t, n))

        view = View(
            by_frame(tokens.x_BSD), mask_BT, by_frame(tokens.saliency_BS), by_frame(tokens.motion_BS),
            self.budget(mask_BT, n), LEAST,
        )  # fmt: skip
        with torch.no_grad(), torch.autocast(tokens.x_BSD.device.type, enabled=False):
            roots, weight = self.choose(view)
        weight = tokens.size_BS if weight is None else weight * tokens.size_BS
        to = Assignment.of_roots(roots, tokens.mask_BS, weight)
        merged = to.tokens(tokens, sizes_add=not self.drops)
        if self.places == "root":
            merged = merged._replace(**places_of_roots(tokens, roots, merged.mask_BS.shape[1]))
        if self.positions == "patches" and patches.grid is not None:
            merged = merged._replace(position_BS=patch_positions(merged, patches.grid))
        if self.proportional:
            merged = merged._replace(log_size_BS=merged.size_BS.clamp(min=1).log())
        if not self.per_frame:
            merged = in_time_order(merged)
        self.chosen = Chosen(roots, to, b, t, n)
        gaze = patches.gaze
        if gaze is not None:
            gaze = gaze.merged(frame_by_frame(to, mask_BT, n))
        return patches._replace(tokens=merged, gaze=gaze)


def patch_positions(tokens: Tokens, grid: tuple[int, int]) -> Tensor:
    """Which of the clip's patches, counted frame by frame, stands where the token stands: int64 [B, S]."""
    rows, cols = grid
    cell = (tokens.yx_BS2 * tokens.yx_BS2.new_tensor([rows, cols])).long()
    y, x = cell[..., 0].clamp(max=rows - 1), cell[..., 1].clamp(max=cols - 1)
    return tokens.frame_BS * (rows * cols) + y * cols + x


def places_of_roots(tokens: Tokens, roots_BS: Tensor, most: int) -> dict[str, Tensor]:
    """time_BS, frame_BS and yx_BS2 of the (at most ``most``) tokens that stand for themselves, in their order."""
    kept = (roots_BS == torch.arange(roots_BS.shape[1], device=roots_BS.device)) & tokens.mask_BS
    root_BM = (~kept).long().argsort(dim=1, stable=True)[:, :most]
    return {
        "time_BS": tokens.time_BS.gather(1, root_BM),
        "frame_BS": tokens.frame_BS.gather(1, root_BM),
        "yx_BS2": tokens.yx_BS2.gather(1, root_BM.unsqueeze(-1).expand(-1, -1, 2)),
    }


class Chosen(NamedTuple):
    """roots_BS, the assignment, and the shape [B, T, N] of the patches."""

    roots_BS: Tensor
    to: Assignment
    b: int
    t: int
    n: int

    def own_BS(self) -> Tensor:
        """bool: which patches stand for themselves (and others). Of padded frames it says nothing."""
        return self.roots_BS == torch.arange(self.t * self.n, device=self.roots_BS.device)

    def kept_BT(self) -> Tensor:
        """How many patches of each frame stand for themselves (and others)."""
        return self.own_BS().unflatten(1, (self.t, self.n)).sum(-1)


def frame_by_frame(to: Assignment, mask_BT: Tensor, n: int) -> Assignment:
    """An assignment that stays within frames, as one for each of B * T frames: [F, N] -> [F, M].

    A padded frame keeps one token for all its patches, so that a query finds something to look at there.
    """
    b, t = mask_BT.shape
    m = to.mask_BM.shape[1]
    goes = (to.to_BS < m).unflatten(1, (t, n))
    target = to.to_BS.unflatten(1, (t, n))
    # Destinations of a frame are neighbours, for they stand in the order of their roots.
    first = torch.where(goes, target, m).amin(-1, keepdim=True)
    local = torch.where(goes, target - first, -1)
    count = local.amax(-1) + 1
    count = torch.where(mask_BT, count, 1)
    local = torch.where(mask_BT.unsqueeze(-1), local, 0)
    most = int(count.max())
    weight = torch.where(mask_BT.unsqueeze(-1), to.weight_BS.unflatten(1, (t, n)), 1.0)
    return Assignment(
        torch.where(local < 0, most, local).flatten(0, 1),
        weight.flatten(0, 1),
        torch.arange(most, device=mask_BT.device) < count.flatten().unsqueeze(1),
    )
