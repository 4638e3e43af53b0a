"""Foveated: one visual token per frame, read by a query that the language model writes (fVLM).

Coarse pass: every frame is read with one static query, z^c_t = gaze(q_static, frame t); the language model reads the
coarse tokens, h^c_t. Fine pass: the query of the next frame is q_{t+1} = W h^c_t + b, z_t = gaze(q_t, frame t), and
v_t = P(z_t) goes on. No gradient is cut, so the loss on the text teaches the language model where to look.

Autoregressive: q_{t+1} = W h_t + b, where h_t is the state at the fine token v_t itself, one frame after the other with
a KV cache. That is what the fine pass approximates in parallel: repeating it with the queries of its own tokens
(``fine_iterations``) is a Jacobi iteration of the same recursion. After n passes the first n frames are exactly those
of autoregressive reading (n + 1 if q_init = q_static and both readings are standardised alike), after T passes all.

Order ``video_first`` (published): the coarse pass sees visual tokens only and the first frame is read with q_init.
Order ``question_first``: the coarse pass runs over [question ‖ coarse tokens], the first query comes from the last
question token, and the gaze knows from the first frame on what is asked.

Cost beside one language pass: T·(12 d² + 2 N d)·layers for each reading of the frames, and one more language pass over
prefix + T tokens for each fine iteration (or for the whole of autoregressive reading).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from hvlm.caching import PastKV
from hvlm.config.ranges import PositiveInt
from hvlm.connector._project import Projector
from hvlm.contracts import Connector, Language
from hvlm.types import Patches, Prefix, Tokens

MODES = ("coarse", "coarse_fine", "autoregressive")


class Foveated(Connector):
    """mode: ``coarse`` stops after the static reading, ``coarse_fine`` goes on to the steered one, ``autoregressive``
        reads frame by frame (inference as it would be in a stream; slow to train with).
    depth: ``deep`` carries the query through all of the encoder's layers, ``shallow`` reads the last one only.
    fine_iterations: passes of ``coarse_fine`` over the frames.

    The weights are the same for all modes (``coarse`` does not train those of the steered query), so a checkpoint may
    be evaluated in another mode than it was trained in, and ``using`` may switch.
    Queries start with standard deviation 1: at 0.02 all queries read the same average (attention entropy ln N).
    """

    wants_gaze, wants_patches, needs_frames = True, False, True
    modes = MODES

    no_weight_decay = frozenset({"q_static", "q_init"})

    def __init__(
        self,
        mode: Literal["coarse", "coarse_fine", "autoregressive"] = "coarse_fine",
        depth: Literal["deep", "shallow"] = "deep",
        fine_iterations: PositiveInt = 1,
        projector: Literal["linear", "mlp"] = "mlp",
        visual_scale: float = 1.0,
        standardise: bool = True,
        *,
        text_dim: int,
        dim: int,
        query_dim: int,
    ):
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"connector.mode={mode!r}: expected one of {', '.join(MODES)}")
        if depth not in ("deep", "shallow"):
            raise ValueError(f"connector.depth={depth!r}: expected deep or shallow")
        self.mode, self.shallow, self.fine_iterations = mode, depth == "shallow", fine_iterations
        self.q_static = nn.Parameter(torch.randn(1, query_dim))
        self.project = Projector(dim, text_dim, projector, visual_scale, standardise, ("coarse", "fine"))
        self.q_init = nn.Parameter(torch.randn(1, query_dim))
        self.llm_to_query = nn.Linear(text_dim, query_dim)
        nn.init.normal_(self.llm_to_query.bias, std=1.0)

    @property
    def reads_forward(self) -> str:
        return "connector.mode=autoregressive" if self.mode == "autoregressive" else ""

    @property
    def steers(self) -> bool:
        return self.mode != "coarse"

    @property
    def alone(self) -> bool:
        return self.mode == "coarse"

    def forward(self, patches: Patches, language: Language, prefix: Prefix | None) -> tuple[Tokens, bool]:
        """Returns (one token per frame, whether rows are questions [K, T, D] rather than clips [B, T, D])."""
        mask_BT = patches.frame_mask_BT
        clip_K = prefix.clip_K if prefix is not None else torch.arange(len(mask_BT), device=mask_BT.device)
        if self.mode == "autoregressive":
            tokens_KTD = self._autoregressive(patches, language, prefix, clip_K)
            return self._tokens(tokens_KTD, patches, clip_K), prefix is not None
        coarse_BTD = self._coarse(patches)
        if self.mode == "coarse":
            return self._tokens(coarse_BTD, patches, None), False
        seen_KTD, mask_KT = coarse_BTD[clip_K], mask_BT[clip_K]
        for _ in range(self.fine_iterations):
            queries_KTD = self.queries(seen_KTD, mask_KT, language, prefix)
            seen_KTD = self.project(self._read(patches, queries_KTD, clip_K), mask_KT, "fine")
        return self._tokens(seen_KTD, patches, clip_K), prefix is not None

    def queries(self, x_KTD: Tensor, mask_KT: Tensor, language: Language, prefix: Prefix | None) -> Tensor:
        """Query of every frame [K, T, query_dim], from the language model's state one token earlier."""
        if prefix is None:
            h_KTD = language.hidden(x_KTD, mask_KT)
            first = self.q_init.expand(len(x_KTD), 1, -1)
            return torch.cat([first, self.llm_to_query(h_KTD[:, :-1])], 1)
        x = torch.cat([prefix.x_KPD, x_KTD.to(prefix.x_KPD.dtype)], 1)
        h = language.hidden(x, torch.cat([prefix.mask_KP, mask_KT], 1))
        p = prefix.x_KPD.shape[1]
        asked = last_valid(h, prefix.mask_KP)
        return self.llm_to_query(torch.cat([asked, h[:, p : p + x_KTD.shape[1] - 1]], 1))

    def _coarse(self, patches: Patches) -> Tensor:
        """Static reading: [B, T, text_dim]."""
        b, t = patches.frame_mask_BT.shape
        z_BTD = self._gaze(patches, self.q_static.expand(b * t, 1, -1), "coarse").reshape(b, t, -1)
        return self.project(z_BTD, patches.frame_mask_BT, "coarse")

    def _read(self, patches: Patches, queries_KTD: Tensor, clip_K: Tensor, at: int | None = None) -> Tensor:
        """Steered reading of all frames, or of frame ``at`` of every clip with T = 1 query for each row.

        All questions of a clip look at its frames in one call: rows stand as [clip, slot].
        """
        b, t = patches.frame_mask_BT.shape
        frames = None
        if at is not None:
            frames, t = torch.arange(b, device=clip_K.device) * t + at, 1
        slot_K = rank_within(clip_K, b)
        q = int(slot_K.max()) + 1
        grid = queries_KTD.new_zeros(b, q, *queries_KTD.shape[1:]).index_put((clip_K, slot_K), queries_KTD)
        z = self._gaze(patches, grid.transpose(1, 2).reshape(b * t, q, -1), "fine", frames)
        return z.reshape(b, t, q, -1).transpose(1, 2)[clip_K, slot_K]

    def read_frame(self, patches: Patches, query_K1D: Tensor, clip_K: Tensor, at: int) -> Tensor:
        """Token of frame ``at`` for every row's query: [K, 1, text_dim]."""
        return self.project(
            self._read(patches, query_K1D, clip_K, at), patches.frame_mask_BT[clip_K, at : at + 1], "fine"
        )

    def _autoregressive(self, patches: Patches, language: Language, prefix: Prefix | None, clip_K: Tensor) -> Tensor:
        """[K, T, text_dim], frame after frame: the query of each comes from the state at the token before it."""
        mask_KT = patches.frame_mask_BT[clip_K]
        # A cache of its own that keeps everything, whatever decoding keeps (the model's kvcache): the queries are those
        # that the parallel fine passes converge to, and these see all that was read.
        cache = PastKV()
        if prefix is None:
            query = self.q_init.expand(len(clip_K), 1, -1)
        else:
            read = language.hidden(prefix.x_KPD, prefix.mask_KP, cache=cache)
            query = self.llm_to_query(last_valid(read, prefix.mask_KP))
        tokens: list[Tensor] = []
        for t in range(mask_KT.shape[1]):
            tokens.append(self.read_frame(patches, query, clip_K, at=t))
            query = self.llm_to_query(language.hidden(tokens[-1], mask_KT[:, t : t + 1], cache=cache))
        return torch.cat(tokens, 1)

    def _gaze(self, patches: Patches, query_FQD: Tensor, reading: str, frames: Tensor | None = None) -> Tensor:
        z, entropy = patches.gaze(query_FQD, frames, shallow=self.shallow, return_entropy=self.monitor)
        if entropy is not None:
            self.metrics[f"entropy_{reading}"] = entropy
        return z

    @staticmethod
    def _tokens(x_RTD: Tensor, patches: Patches, rows: Tensor | None) -> Tokens:
        time, mask = patches.frame_time_BT, patches.frame_mask_BT
        if rows is not None:
            time, mask = time[rows], mask[rows]
        return Tokens.of_frames(x_RTD.unsqueeze(2), time, mask, None)


def last_valid(h_KSD: Tensor, mask_KS: Tensor) -> Tensor:
    """The state at the last valid place of every (right padded) row, [K, 1, D]."""
    return h_KSD[torch.arange(len(h_KSD), device=h_KSD.device), mask_KS.sum(1) - 1].unsqueeze(1)


def rank_within(clip_K: Tensor, num_clips: int) -> Tensor:
    """How many earlier rows belong to the same clip: [0, 0, 1, 0, 1, 1] -> [0, 1, 0, 2, 1, 2]."""
    onehot = nn.functional.one_hot(clip_K, num_clips)
    return (onehot.cumsum(0) - 1).gather(1, clip_K.unsqueeze(1)).squeeze(1)
