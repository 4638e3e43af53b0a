"""LongVLM: few tokens for each segment of the clip, and what the encoder's last layers say of the whole (Weng et al.
2024, "LongVLM: Efficient Long Video Understanding via Large Language Models").

Local: the T frames are cut into S consecutive segments. The patches of a segment, all T/S · N of them, merge jointly in
space and time: rounds of bipartite matching (see ``hvlm.merging``) halve them until M are left, each a mean

    x_m = Σ_p s_p x_p / Σ_p s_p        over the patches p that went into it, s_p their sizes.

Global: the summary (CLS) of whole frames after each of the last L layers, averaged over the clip, g_l = 1/T Σ_t c_tl.
The language model reads [P(g_1) … P(g_L) ‖ P(x_1) … P(x_{S·M})]: for 100 frames of 256 patches, S = 10, M = 30 and
L = 5 that is 305 tokens for 25,600 patches, as published (there with ``projector=linear`` and without
``standardise``; the patches there come from the layer before the last).

The published code leaves a segment's tokens in the order of the matching, which loses the order in time; here tokens
stand in the order of their mean times. In each segment half of the patches are compared with the other half, by D/16
numbers each: (T·N)²/(4 S) · D/16 multiplications in all, a third more for the further rounds.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from hvlm.config.ranges import NonNegativeInt, PositiveInt
from hvlm.connector._project import Projector
from hvlm.contracts import Connector, Language
from hvlm.merging import Assignment, bipartite_down_to, in_time_order
from hvlm.types import Patches, Prefix, Tokens


class LongVLM(Connector):
    """segments: blocks of consecutive frames, as equal as possible; a clip of fewer frames has one for each frame.
    tokens: how many are left of each segment's patches; a segment of fewer keeps them all.
    summaries: global tokens that come first, from so many of the encoder's last layers (an encoder of fewer gives what
        it has); 0: local ones alone.
    groups: patches are compared by the means of so many equal groups of channels (published: 16); 0: by all channels.

    What a merger left goes into segments by its mean frame, and sizes count on from there. A summary counts as one
    token, as CLS does in ToMe: no patch was merged into it, so the local sizes alone add up to the clip's patches.
    """

    def __init__(
        self,
        segments: PositiveInt = 10,
        tokens: PositiveInt = 30,
        summaries: NonNegativeInt = 5,
        groups: NonNegativeInt = 16,
        projector: Literal["linear", "mlp"] = "mlp",
        visual_scale: float = 1.0,
        standardise: bool = True,
        *,
        dim: int,
        text_dim: int,
    ):
        super().__init__()
        if groups and dim % groups:
            raise ValueError(
                f"connector.groups={groups}: expected a number that divides the encoder's width {dim}, or 0 to compare "
                "all channels"
            )
        self.segments, self.tokens, self.groups = segments, tokens, groups
        self.wants_summaries = summaries
        readings = ("patches", "summaries") if summaries else ("patches",)
        self.project = Projector(dim, text_dim, projector, visual_scale, standardise, readings)

    def forward(self, patches: Patches, language: Language, prefix: Prefix | None) -> tuple[Tokens, bool]:
        """Returns ([B, L + S·M, text_dim], False: rows are clips)."""
        local = self.local(patches)
        local = local._replace(x_BSD=self.project(local.x_BSD, local.mask_BS))
        if not self.wants_summaries:
            return local, False
        whole = self.whole(patches)
        whole = whole._replace(x_BSD=self.project(whole.x_BSD, whole.mask_BS, "summaries"))
        # What happened in a patch is not known of the whole, so scores do not go on.
        tokens = Tokens(*(torch.cat(both, 1) for both in zip(whole[:6], local[:6], strict=True)))
        if local.log_size_BS is not None:
            tokens = tokens._replace(log_size_BS=torch.cat([torch.zeros_like(whole.size_BS), local.log_size_BS], 1))
        return tokens, False

    def local(self, patches: Patches) -> Tokens:
        """Merged patches in time order, at most S·M of every clip: [B, S·M, dim], float32."""
        tokens, b = patches.tokens, len(patches.frame_mask_BT)
        rows = by_segment(tokens, patches.frame_mask_BT, self.segments)
        x, size, mask = rows.x_BSD.float(), rows.size_BS, rows.mask_BS
        with torch.autocast(x.device.type, enabled=False):
            roots = bipartite_down_to(x.detach(), size, mask, torch.full_like(mask.sum(1), self.tokens), self.groups)
            merged = Assignment.of_roots(roots, mask, size).tokens(rows._replace(x_BSD=x))
        local = in_time_order(Tokens(*(None if f is None else f.unflatten(0, (b, -1)).flatten(1, 2) for f in merged)))
        return local.each(slice(max(1, int(local.mask_BS.sum(1).max()))))

    def whole(self, patches: Patches) -> Tokens:
        """Summaries of the clip, in the order of their layers: [B, L, dim]. They stand in the middle of it."""
        mask_BT, time_BT = patches.frame_mask_BT, patches.frame_time_BT
        frames = mask_BT.sum(1, keepdim=True)
        x = (patches.summary_BTLD.float() * mask_BT[:, :, None, None]).sum(1) / frames.clamp(min=1).unsqueeze(-1)
        last = (frames - 1).clamp(min=0)
        middle = (time_BT[:, :1] + time_BT.gather(1, last)) / 2
        whole = Tokens.of_frames(x.unsqueeze(2), middle.expand(x.shape[:2]), (frames > 0).expand(x.shape[:2]), None)
        return whole._replace(frame_BS=(last // 2).expand(x.shape[:2]))


def by_segment(tokens: Tokens, mask_BT: Tensor, segments: int) -> Tokens:
    """Every segment as a row: [B, S, ...] -> [B · segments, P, ...], P the tokens of the largest, padding behind.

    Frame f of a clip's F belongs to segment ⌊f · S / F⌋, S = min(segments, F); tokens keep their order.
    """
    b, s = tokens.mask_BS.shape
    device = mask_BT.device
    frames = mask_BT.sum(1, keepdim=True).clamp(min=1)
    segments = min(segments, mask_BT.shape[1])
    segment = tokens.frame_BS * frames.clamp(max=segments) // frames
    segment = torch.where(tokens.mask_BS, segment, segments)
    order = segment.argsort(dim=1, stable=True)
    count = torch.zeros(b, segments + 1, dtype=torch.long, device=device)
    count = count.scatter_add(1, segment, torch.ones_like(segment))[:, :segments]
    place = torch.arange(max(1, int(count.max())), device=device)
    index = (count.cumsum(1) - count).unsqueeze(-1) + place
    rows = tokens.gather(order.gather(1, index.clamp(max=s - 1).flatten(1)))
    rows = Tokens(*(None if f is None else f.unflatten(1, (segments, -1)).flatten(0, 1) for f in rows))
    return rows._replace(mask_BS=(place < count.unsqueeze(-1)).flatten(0, 1))
