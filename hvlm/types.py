"""The tuples that travel down the corridor, and the shape legend.

Shape suffixes on names: ``B`` clips of a batch, ``K`` text rows (several may ask about one clip), ``T`` frames,
``N`` patch tokens of one frame, ``S`` sequence positions, ``D`` width, ``H`` heads, ``C`` colour channels, and
``H``/``W`` after ``C`` for pixels. Times are seconds from the start of the clip.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from hvlm.functional import scored_in_parts

KV = list[tuple[Tensor, Tensor]]  # per layer: keys and values, each [frames, heads, patches (+ CLS), head width]


class InputSpec(NamedTuple):
    """How a model wants its clips: everything that the pixels and the text rows of a batch depend on beside the data.

    order: where the video stands in the text, "question_first" or "video_first". num_frames: frames sampled per clip
        (fewer where it has fewer). image_size: pixels, height and width of the frames. motion: (rows, columns) of the
        patches whose motion the batches carry, None: of none.
    """

    order: Literal["question_first", "video_first"]
    num_frames: int
    image_size: int
    motion: tuple[int, int] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the frames."""
        return self.image_size, self.image_size


TEXT_ROWS = (  # what a Batch says of each text row, [K, ...]; of the last three any may be None
    "input_ids_KS", "attention_mask_KS", "loss_mask_KS", "clip_K", "visual_at_K", "prompt_KS", "adapter_K", "context_K",
)  # fmt: skip


class Batch(NamedTuple):
    """What the reader hands to a stage.

    frames_BTCHW: uint8 pixels; normalised on the device by the vision room, not before.
    frame_time_BT: float32 seconds of the frames.
    frame_mask_BT: bool, False where a clip is shorter than the longest of the batch (or where there is no video:
        a text-only batch is one all-zero frame with mask False).
    input_ids_KS / attention_mask_KS: int64 token ids (right padded) and bool validity.
    loss_mask_KS: bool, True where the token is a target, predicted from everything before it.
    clip_K: int64, the clip that each text row belongs to; several questions, or chosen and rejected, share a clip.
    visual_at_K: int64, how many text tokens stand before the visual tokens (0 when the video comes first, or when there
        is none).
    labels: per-patch targets of the vision stage, or None.
    rows: one plain dict per text row (sample key, question id, task, ...), for logging and scoring only.
    uids: the one name of every clip within its data, ``split/shard/key`` (empty for a text), or None where nobody
        knows.
    motion_BTYX: float32, how fast what each patch (row, column) shows moves against the camera, in frame diagonals per
        sampled frame (see ``data/optical_flow.py``); 0 in padded frames and texts. None where no room asked for it.
    prompt_KS: bool, what of the text may be known before the answer, and so may reach visual tokens: what stands before
        the video, and before the first target. None: nobody may ask for it.
    adapter_K: int64, which of the adapter's sets of weights each text row uses; None: the one that is trained.
    step_units: {term of the loss: its units} of all batches of this optimiser step in this process, where there are
        several (``trainer.accumulate``).
    targets: what the head is to learn, by name, [K, ...] each: made by its view (``View.targets``) where the clips are
        read. None: the text rows themselves say it.
    context_K: int64, how many text tokens there are up to the end of a text that is asked about (``prompts.Prompt``);
        0: a row has none. None: no row.
    """

    frames_BTCHW: Tensor
    frame_time_BT: Tensor
    frame_mask_BT: Tensor
    input_ids_KS: Tensor
    attention_mask_KS: Tensor
    loss_mask_KS: Tensor
    clip_K: Tensor
    visual_at_K: Tensor
    labels: dict[str, Tensor] | None = None
    rows: list[dict[str, Any]] | None = None
    uids: list[str] | None = None
    motion_BTYX: Tensor | None = None
    prompt_KS: Tensor | None = None
    adapter_K: Tensor | None = None
    step_units: dict[str, float] | None = None
    targets: dict[str, Tensor] | None = None
    context_K: Tensor | None = None

    @property
    def num_clips(self) -> int:
        return self.frames_BTCHW.shape[0]

    def to(self, device: torch.device) -> Batch:
        moved = {name: x.to(device) for name, x in zip(self._fields, self, strict=True) if isinstance(x, Tensor)}
        labels = self.labels and {name: label.to(device) for name, label in self.labels.items()}
        targets = self.targets and {name: target.to(device) for name, target in self.targets.items()}
        return self._replace(**moved, labels=labels, targets=targets)

    def text_rows(self, index_J: Tensor) -> Batch:
        """Some of the text rows, beside all clips: row ``j`` is row ``index_J[j]`` of this one."""
        taken = {name: None if (x := getattr(self, name)) is None else x[index_J] for name in TEXT_ROWS}
        rows = None if self.rows is None else [self.rows[j] for j in index_J.tolist()]
        targets = self.targets and {name: target[index_J] for name, target in self.targets.items()}
        return self._replace(**taken, rows=rows, targets=targets)


class Tokens(NamedTuple):
    """A sequence of visual tokens with everything a later room may want to know about them.

    x_BSD: features. time_BS: float seconds. frame_BS: int64 frame index. yx_BS2: float centre in [0, 1] (row, column).
    size_BS: float, how many patches were merged into the token. mask_BS: bool, False for padding.
    saliency_BS, motion_BS: float scores, present when a room asked for them.
    position_BS: int64, which of the clip's patches the token stands for or in place of, counted frame by frame: the
        language model then reads it at that patch's position, and what follows the video after all patches. None: the
        language model counts tokens.
    log_size_BS: float, what is added to the attention scores of the token in the language model: log of the number of
        its patches. None: nothing.
    """

    x_BSD: Tensor
    time_BS: Tensor
    frame_BS: Tensor
    yx_BS2: Tensor
    size_BS: Tensor
    mask_BS: Tensor
    saliency_BS: Tensor | None = None
    motion_BS: Tensor | None = None
    position_BS: Tensor | None = None
    log_size_BS: Tensor | None = None

    def take(self, index_K: Tensor) -> Tokens:
        """Row ``k`` of the result is row ``index_K[k]`` of this one."""
        return Tokens(*(None if field is None else field[index_K] for field in self))

    def each(self, index_S: Tensor | slice) -> Tokens:
        """Keep the positions ``index_S`` of every row."""
        return Tokens(*(None if field is None else field[:, index_S] for field in self))

    def gather(self, index_BK: Tensor) -> Tokens:
        """Position ``k`` of row ``b`` of the result is position ``index_BK[b, k]`` of that row."""

        def pick(field: Tensor) -> Tensor:
            index = index_BK.unflatten(1, (-1, *(1,) * (field.dim() - 2)))
            return field.gather(1, index.expand(-1, -1, *field.shape[2:]))

        return Tokens(*(None if field is None else pick(field) for field in self))

    @classmethod
    def of_frames(cls, x_BTND: Tensor, time_BT: Tensor, mask_BT: Tensor, grid: tuple[int, int] | None) -> Tokens:
        """Flatten per-frame tokens in time order. ``grid``: (rows, columns) of the patches; None: a centred token."""
        b, t, n, d = x_BTND.shape
        dev = x_BTND.device
        if grid is None:
            yx = torch.full((n, 2), 0.5, device=dev)
        else:
            rows, cols = grid
            y = (torch.arange(rows, device=dev) + 0.5) / rows
            x = (torch.arange(cols, device=dev) + 0.5) / cols
            yx = torch.stack(torch.meshgrid(y, x, indexing="ij"), -1).reshape(n, 2)
        return cls(
            x_BSD=x_BTND.reshape(b, t * n, d),
            time_BS=time_BT.repeat_interleave(n, 1),
            frame_BS=torch.arange(t, device=dev).repeat_interleave(n).expand(b, -1),
            yx_BS2=yx.repeat(t, 1).expand(b, -1, -1),
            size_BS=torch.ones(b, t * n, device=dev),
            mask_BS=mask_BT.repeat_interleave(n, 1),
        )


class Wants(NamedTuple):
    """What the later rooms want from the encoder beside patch features.

    kv: every layer's keys and values. saliency: a score per patch, "attention" (of CLS in the last layer, or, without
    CLS, what a patch receives from the others), "sharpness" (of its own attention) or "spectral" (of the pixels); None:
    not. summaries: what each of the last so many layers says of a whole frame (CLS, or the patches' mean). layers: the
    patches of so many layers, evenly spread over those before the last, some of them twice where there are fewer.
    """

    kv: bool = False
    saliency: str | None = None
    summaries: int = 0
    layers: int = 0


NOTHING_ELSE = Wants()


class Encoded(NamedTuple):
    """What the encoder gives: tokens [B, T * N, dim], with ``saliency_BS`` if it was wanted; keys and values of every
    layer, each [B * T, heads, (CLS +) N, d]; summary_BTLD, one row per wanted layer. None: not wanted. layers: patches
    of each layer that was wanted, [B, T * N, dim], the first layer's first."""

    tokens: Tokens | None
    kv: KV | None = None
    summary_BTLD: Tensor | None = None
    layers: tuple[Tensor, ...] = ()


class Patches(NamedTuple):
    """What vision (and the merger) hand to the connector.

    tokens: patch features, frame by frame; None where nobody reads them and the clip is too long to keep them (a
        connector with ``wants_patches = False``, without gradients).
    frame_time_BT, frame_mask_BT: as in :class:`Batch`.
    gaze: carries queries [F, Q, D] (``F = B * T`` frames, ``Q`` queries each) through the encoder's layers over the
        keys and values of its patches: (z [F, Q, dim], with ``return_entropy=True`` the mean attention entropy in nats,
        else None). With ``index_F`` the queries are for those frames only; ``shallow=True`` uses the last layer alone.
        The field is None unless the connector asked for it (``wants_gaze``).
    summary_BTLD: of whole frames, the last layers' (``wants_summaries`` of the connector), or None.
    grid: (rows, columns) of a frame's patches before any were merged; None where nobody knows.
    layers: patches of some of the encoder's layers, none of them merged, where the fusion asked for them.
    """

    tokens: Tokens | None
    frame_time_BT: Tensor
    frame_mask_BT: Tensor
    gaze: Callable[..., Any] | None = None
    summary_BTLD: Tensor | None = None
    grid: tuple[int, int] | None = None
    layers: tuple[Tokens, ...] = ()


class Prefix(NamedTuple):
    """The embedded text that stands before the video, one row per question: x_KPD, mask_KP (right padded), clip_K."""

    x_KPD: Tensor
    mask_KP: Tensor
    clip_K: Tensor


class Fused(NamedTuple):
    """What a fusion makes of visual tokens and text, of every text row.

    tokens: the visual tokens, as many as came in. text_KPD: states of the text that may be known before the answer,
    zero elsewhere; None: the room makes none. pooled_KD: one state of both; None: the room makes none.
    """

    tokens: Tokens
    text_KPD: Tensor | None = None
    pooled_KD: Tensor | None = None

    def take(self, index_K: Tensor) -> Fused:
        """Row ``k`` of the result is row ``index_K[k]`` of this one."""
        text, pooled = (None if x is None else x[index_K] for x in (self.text_KPD, self.pooled_KD))
        return Fused(self.tokens.take(index_K), text, pooled)


class Unimodal(NamedTuple):
    """What came into the fusion, each side knowing nothing of the other: the visual tokens (only a connector that has
    read the question knows it), the embedded text up to the last place that any row may know, and those places."""

    tokens: Tokens
    text_KPD: Tensor
    prompt_KP: Tensor


class Alone(NamedTuple):
    """Texts that the language model reads by themselves: states_MSD, and mask_MS, where a token stands."""

    states_MSD: Tensor
    mask_MS: Tensor


class Sequence(NamedTuple):
    """What the language model reads: text with the video in its place, L = S + visual positions in every row.

    visual: number of the video's places, V. position_KL: int64, where merged tokens keep the positions of their
    patches; None: valid positions are counted. log_size_KL: float, added to the attention scores of merged tokens;
    None: not. tokens: the visual tokens of every row, [K, V, ...]; None where there is no video. batch: what was laid
    out; None for a sequence that comes from elsewhere. alone: texts that were read for the head without the video
    (``Head.texts``), None where it asked for none. fused: what the fusion made of video and text, None where there is
    no video. unimodal: what it made that of, None where it does not read the text.
    """

    x_KLD: Tensor
    mask_KL: Tensor
    visual: int
    position_KL: Tensor | None = None
    log_size_KL: Tensor | None = None
    tokens: Tokens | None = None
    batch: Batch | None = None
    alone: Alone | None = None
    fused: Fused | None = None
    unimodal: Unimodal | None = None

    def text_rows(self, index_J: Tensor) -> Sequence:
        """Some of the rows: row ``j`` is row ``index_J[j]`` of this one. What was read alone is left out."""
        return Sequence(
            self.x_KLD[index_J],
            self.mask_KL[index_J],
            self.visual,
            None if self.position_KL is None else self.position_KL[index_J],
            None if self.log_size_KL is None else self.log_size_KL[index_J],
            None if self.tokens is None else self.tokens.take(index_J),
            None if self.batch is None else self.batch.text_rows(index_J),
            fused=None if self.fused is None else self.fused.take(index_J),
            unimodal=None if self.unimodal is None else Unimodal(
                self.unimodal.tokens.take(index_J), self.unimodal.text_KPD[index_J], self.unimodal.prompt_KP[index_J]
            ),
        )  # fmt: skip

    @property
    def text_place_KS(self) -> Tensor:
        """int64: where each text token stands among the L places."""
        assert self.batch is not None, "a sequence that was laid out"
        place = torch.arange(self.batch.input_ids_KS.shape[1], device=self.x_KLD.device)
        return place + self.visual * (place >= self.batch.visual_at_K.unsqueeze(1))

    def scored(self) -> tuple[Tensor, Tensor]:
        """(text row, position in it) of every token under the loss mask, int64 [M] each, in row order.

        A token that directly follows the video is not scored: the place before it may be a padded frame.
        """
        assert self.batch is not None, "a sequence that was laid out"
        batch, place_KS = self.batch, self.text_place_KS
        follows = (place_KS == self.visual + batch.visual_at_K.unsqueeze(1)) | (place_KS == 0)
        row_M, place_M = (batch.loss_mask_KS & batch.attention_mask_KS & ~follows).nonzero(as_tuple=True)
        return row_M, place_M

    @property
    def visual_place_KV(self) -> Tensor:
        """int64: where each visual token stands among the L places."""
        assert self.batch is not None, "a sequence that was laid out"
        return self.batch.visual_at_K.unsqueeze(1) + torch.arange(self.visual, device=self.x_KLD.device)


class Term(NamedTuple):
    """A term of a head's loss: its sum over units, their number, and further sums to be divided by the same number."""

    total: Tensor
    count: Tensor
    further: dict[str, Tensor]


class Targets(NamedTuple):
    """Every text token that is scored, M of them in all, in row order: what the text head gives.

    states_MD: of the language model, each one place before its token. ids_M: the tokens themselves, row_M: the text
    row, place_M: the position in it. logits: states [..., D] -> float32 [..., vocabulary]. at_once: bytes of logits
    that ``scored`` holds at a time, None: all.
    """

    states_MD: Tensor
    ids_M: Tensor
    row_M: Tensor
    place_M: Tensor
    logits: Callable[[Tensor], Tensor]
    at_once: int | None = None

    @property
    def logits_MV(self) -> Tensor:
        """All of them, float32: with a large vocabulary the largest tensor of a step. ``scored`` needs less."""
        return self.logits(self.states_MD)

    def scored(self) -> tuple[Tensor, Tensor]:
        """(log p of each token, float32 [M]; whether it is the likeliest, bool [M])."""
        tokens = len(self.ids_M)
        if self.at_once is not None:
            each = 4 * self.logits(self.states_MD[:0]).shape[-1]  # bytes
            tokens = max(1, self.at_once // each)
        return scored_in_parts(self.logits, self.states_MD, self.ids_M, tokens)
