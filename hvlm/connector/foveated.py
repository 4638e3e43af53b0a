"""Foveated: one visual token per frame, read by a query that the language model writes (fVLM).

Coarse pass: every frame is read with one static query, z^c_t = gaze(q_static, frame t); the language model reads the
coarse tokens, h^c_t. Fine pass: the query of the next frame is q_{t+1} = W h^c_t + b, z_t = gaze(q_t, frame t), and
v_t = P(z_t) goes on. No gradient is cut, so the loss on the text teaches the language model where to look.

Order ``video_first`` (published): the coarse pass sees visual tokens only and the first frame is read with q_init.
Order ``question_first``: the coarse pass runs over [question ‖ coarse tokens], the first query comes from the last
question token, and the gaze knows from the first frame on what is asked.

Cost beside one language pass: T·(12 d² + 2 N d)·layers for each reading of the frames, and one more language pass over
prefix + T tokens.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from hvlm.connector._project import Projector
from hvlm.types import Patches, Prefix, Tokens


class Foveated(nn.Module):
    """``mode=coarse`` stops after the static reading; ``mode=coarse_fine`` goes on to the steered one.

    Queries start with standard deviation 1: at 0.02 all queries read the same average (attention entropy ln N).
    """

    wants_gaze = True

    def __init__(
        self,
        mode: Literal["coarse", "coarse_fine"] = "coarse_fine",
        projector: Literal["linear", "mlp"] = "mlp",
        visual_scale: float = 1.0,
        standardise: bool = True,
        *,
        text_dim: int,
        dim: int,
        query_dim: int,
    ):
        super().__init__()
        if mode not in ("coarse", "coarse_fine"):
            raise ValueError(f"connector.mode={mode!r}: expected coarse or coarse_fine")
        self.mode = mode
        self.q_static = nn.Parameter(torch.randn(1, query_dim))
        self.project = Projector(dim, text_dim, projector, visual_scale, standardise, ("coarse", "fine"))
        if mode == "coarse_fine":
            self.q_init = nn.Parameter(torch.randn(1, query_dim))
            self.llm_to_query = nn.Linear(text_dim, query_dim)
            nn.init.normal_(self.llm_to_query.bias, std=1.0)
        self.monitor = False
        self.health: dict[str, Tensor] = {}

    def forward(self, patches: Patches, language: nn.Module, prefix: Prefix | None) -> tuple[Tokens, bool]:
        """Returns (one token per frame, whether rows are questions [K, T, D] rather than clips [B, T, D])."""
        mask_BT = patches.frame_mask_BT
        b, t = mask_BT.shape
        z_BTD = self._gaze(patches, self.q_static.expand(b * t, 1, -1), "coarse").reshape(b, t, -1)
        coarse_BTD = self.project(z_BTD, mask_BT, "coarse")
        if self.mode == "coarse":
            return self._tokens(coarse_BTD, patches, None), False

        clip_K = prefix.clip_K if prefix is not None else torch.arange(b, device=mask_BT.device)
        queries_KTD = self.queries(coarse_BTD[clip_K], mask_BT[clip_K], language, prefix)
        z_KTD = self._read(patches, queries_KTD, clip_K)
        fine_KTD = self.project(z_KTD, mask_BT[clip_K], "fine")
        return self._tokens(fine_KTD, patches, clip_K), prefix is not None

    def queries(self, x_KTD: Tensor, mask_KT: Tensor, language: nn.Module, prefix: Prefix | None) -> Tensor:
        """Query of every frame [K, T, query_dim], from the language model's state one token earlier."""
        if prefix is None:
            h_KTD = language.hidden(x_KTD, mask_KT)
            first = self.q_init.expand(len(x_KTD), 1, -1)
            return torch.cat([first, self.llm_to_query(h_KTD[:, :-1])], 1)
        x = torch.cat([prefix.x_KPD, x_KTD.to(prefix.x_KPD.dtype)], 1)
        h = language.hidden(x, torch.cat([prefix.mask_KP, mask_KT], 1))
        p = prefix.x_KPD.shape[1]
        last = prefix.mask_KP.sum(1) - 1
        asked = h[torch.arange(len(h), device=h.device), last].unsqueeze(1)
        return self.llm_to_query(torch.cat([asked, h[:, p : p + x_KTD.shape[1] - 1]], 1))

    def _read(self, patches: Patches, queries_KTD: Tensor, clip_K: Tensor) -> Tensor:
        """Steered reading. All questions of a clip look at its frames in one call: rows stand as [clip, slot]."""
        b, t = patches.frame_mask_BT.shape
        slot_K = rank_within(clip_K, b)
        q = int(slot_K.max()) + 1
        grid = queries_KTD.new_zeros(b, q, *queries_KTD.shape[1:]).index_put((clip_K, slot_K), queries_KTD)
        z = self._gaze(patches, grid.transpose(1, 2).reshape(b * t, q, -1), "fine")
        return z.reshape(b, t, q, -1).transpose(1, 2)[clip_K, slot_K]

    def _gaze(self, patches: Patches, query_FQD: Tensor, reading: str) -> Tensor:
        z, entropy = patches.gaze(query_FQD, return_entropy=self.monitor)
        if entropy is not None:
            self.health[f"entropy_{reading}"] = entropy
        return z

    @staticmethod
    def _tokens(x_RTD: Tensor, patches: Patches, rows: Tensor | None) -> Tokens:
        time, mask = patches.frame_time_BT, patches.frame_mask_BT
        if rows is not None:
            time, mask = time[rows], mask[rows]
        return Tokens.of_frames(x_RTD.unsqueeze(2), time, mask, None)


def rank_within(clip_K: Tensor, num_clips: int) -> Tensor:
    """How many earlier rows belong to the same clip: [0, 0, 1, 0, 1, 1] -> [0, 1, 0, 2, 1, 2]."""
    onehot = nn.functional.one_hot(clip_K, num_clips)
    return (onehot.cumsum(0) - 1).gather(1, clip_K.unsqueeze(1)).squeeze(1)
