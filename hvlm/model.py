"""The backbone all stages share: one batch's way down the corridor."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hvlm.feature_cache import FrozenFeatures
from hvlm.gaze import CachedKV, RecomputedKV, encode_frames
from hvlm.types import Batch, Encoded, Patches, Prefix, Tokens, Wants

PARTS = ("vision", "merger", "connector", "attention", "fusion", "language", "head")


class Targets(NamedTuple):
    """Logits of every text token that is scored, M of them in all, in row order.

    logits_MV float32, ids_M the tokens themselves, row_M the text row and place_M the position in it.
    """

    logits_MV: Tensor
    ids_M: Tensor
    row_M: Tensor
    place_M: Tensor


class Sequence(NamedTuple):
    """What the language model reads: text with the video in its place, L = S + visual positions in every row.

    visual: number of the video's positions. position_KL: int64, where merged tokens keep the positions of their
    patches; None: valid positions are counted. log_size_KL: float, added to the attention scores of merged tokens;
    None: not.
    """

    x_KLD: Tensor
    mask_KL: Tensor
    visual: int
    position_KL: Tensor | None = None
    log_size_KL: Tensor | None = None


class VLM(nn.Module):
    """vision -> merger -> connector -> attention -> fusion -> language -> head, built from plain modules.

    ``order`` says where the video stands among the text; ``Batch.visual_at_K`` carries the place itself.
    """

    def __init__(
        self,
        *,
        vision: nn.Module,
        merger: nn.Module,
        connector: nn.Module,
        attention: nn.Module,
        fusion: nn.Module,
        language: nn.Module,
        head: nn.Module,
        order: str,
    ):
        super().__init__()
        self.vision, self.merger, self.connector = vision, merger, connector
        self.attention, self.fusion, self.language, self.head = attention, fusion, language, head
        self.order = order
        self.features: FrozenFeatures | None = None  # in the encoder's place while it is frozen

    def encode_video(self, batch: Batch) -> Patches:
        """Frames -> patch features, with the encoder's gaze over them where the connector wants it."""
        frames, time, mask = batch.frames_BTCHW, batch.frame_time_BT, batch.frame_mask_BT
        b, t = mask.shape
        wants = self.wants()
        at_once = b * t <= self.vision.frames_at_once
        if self.features is not None:
            tokens, kv, summary = self.features.encode(batch)
        elif torch.is_grad_enabled() or at_once:
            tokens, kv, summary = self.vision.encode(frames, time, mask, wants)
        else:
            tokens, kv, summary = self._encode_in_parts(batch, wants)
        if kv is not None:
            gaze: CachedKV | RecomputedKV | None = CachedKV(self.vision, kv)
        else:
            gaze = RecomputedKV(self.vision, frames.flatten(0, 1), self.vision.frames_at_once) if wants.kv else None
        if tokens is not None and batch.motion_BTYX is not None:
            tokens = tokens._replace(motion_BS=batch.motion_BTYX.flatten(1))
        return self.merger(Patches(tokens, time, mask, gaze, summary))

    def wants(self) -> Wants:
        """What the rooms ask of the encoder beside patch tokens."""
        return Wants(self.connector.wants_gaze, self.merger.wants_saliency, self.connector.wants_summaries)

    @property
    def wants_patches(self) -> bool:
        return self.connector.wants_patches or not self.merger.changes_nothing

    def _encode_in_parts(self, batch: Batch, wants: Wants) -> Encoded:
        """Frames that are too many to be encoded at once, without gradients. Keys and values are not kept at all."""
        if not (self.wants_patches or wants.summaries):
            return Encoded(None)
        b, t = batch.frame_mask_BT.shape
        frames = batch.frames_BTCHW.flatten(0, 1)
        each = [
            encode_frames(self.vision, part, wants._replace(kv=False))
            for part in frames.split(self.vision.frames_at_once)
        ]
        tokens, summary = None, None
        if self.wants_patches:
            grid = self.vision.grid(*frames.shape[-2:])
            x = torch.cat([part.tokens.x_BSD for part in each]).unflatten(0, (b, t))
            tokens = Tokens.of_frames(x, batch.frame_time_BT, batch.frame_mask_BT, grid)
            if wants.saliency:
                tokens = tokens._replace(saliency_BS=torch.cat([p.tokens.saliency_BS for p in each]).reshape(b, -1))
        if wants.summaries:
            summary = torch.cat([part.summary_BTLD for part in each])[:, 0].unflatten(0, (b, t))
        return Encoded(tokens, None, summary)

    def visual_tokens(self, batch: Batch, text_KSD: Tensor) -> Tokens:
        """Visual tokens of every text row, [K, V, text_dim]."""
        prefix = prefix_of(batch, text_KSD) if self.order == "question_first" else None
        tokens, per_row = self.connector(self.encode_video(batch), self.language, prefix)
        tokens, _ = self.attention(tokens)
        if not per_row:
            tokens = tokens.take(batch.clip_K)
        return self.fusion(tokens, text_KSD, batch.attention_mask_KS)

    def sequence(self, batch: Batch) -> Sequence:
        """The text of every row with the visual tokens in their place."""
        text = self.language.embed(batch.input_ids_KS)
        if not batch.frame_mask_BT.any():
            return Sequence(text, batch.attention_mask_KS, 0)
        visual = self.visual_tokens(batch, text)
        source = interleave(text.shape[1], visual.x_BSD.shape[1], batch.visual_at_K)
        x = pick(source, text, visual.x_BSD.to(text.dtype))
        mask = pick(source, batch.attention_mask_KS, visual.mask_BS)
        position, log_size = None, None
        if self.merger.positions == "patches" and self.connector.one_per_patch and self.attention.readout == 1:
            position = pick(source, *self._patch_positions(batch, visual))
        if self.merger.proportional:
            log_size = pick(source, torch.zeros_like(text[..., 0]), visual.size_BS.clamp(min=1).log().to(text.dtype))
        return Sequence(x, mask, visual.x_BSD.shape[1], position, log_size)

    def hidden(self, sequence: Sequence, cache: Any = None) -> Tensor:
        """The language model's states, [K, L, D]."""
        x, mask, _, position, log_size = sequence
        return self.language.hidden(x, mask, position, cache, log_size)

    def _patch_positions(self, batch: Batch, visual: Tokens) -> tuple[Tensor, Tensor]:
        """Positions of the text's tokens and of the merged ones, as they would be had nothing been merged."""
        rows, cols = self.vision.grid(*batch.frames_BTCHW.shape[-2:])
        cell = (visual.yx_BS2 * visual.yx_BS2.new_tensor([rows, cols])).long()
        place = (
            visual.frame_BS * (rows * cols) + cell[..., 0].clamp(max=rows - 1) * cols + cell[..., 1].clamp(max=cols - 1)
        )
        at_K1 = batch.visual_at_K.unsqueeze(1)
        video_K1 = (batch.frame_mask_BT.sum(1) * rows * cols)[batch.clip_K].unsqueeze(1)
        counted = (batch.attention_mask_KS.cumsum(1) - 1).clamp(min=0)
        after = torch.arange(counted.shape[1], device=counted.device) >= at_K1
        return counted + video_K1 * after, at_K1 + place

    def targets(self, batch: Batch) -> Targets:
        """Logits for every token under ``loss_mask_KS``, from the hidden state one place before it.

        A token that directly follows the video is not scored: the place before it may be a padded frame.
        """
        sequence = self.sequence(batch)
        h, num_visual = self.hidden(sequence), sequence.visual
        place_KS = torch.arange(batch.input_ids_KS.shape[1], device=h.device).expand_as(batch.input_ids_KS)
        at = batch.visual_at_K.unsqueeze(1)
        scored = batch.loss_mask_KS & batch.attention_mask_KS & (place_KS > 0) & (place_KS != at)
        before = place_KS + num_visual * (place_KS >= at) - 1
        row_M, place_M = scored.nonzero(as_tuple=True)
        logits = self.head(h[row_M, before[row_M, place_M]], self.language)
        return Targets(logits, batch.input_ids_KS[row_M, place_M], row_M, place_M)

    def token_logprobs(self, batch: Batch) -> Tensor:
        """log p(token | everything before it), float32 [K, S]; 0 where the token is not a target."""
        logits, ids, row, place = self.targets(batch)
        logp = logits.log_softmax(-1).gather(1, ids.unsqueeze(1)).squeeze(1)
        return torch.zeros(batch.input_ids_KS.shape, device=logp.device).index_put((row, place), logp)

    def next_token_logprobs(self, batch: Batch) -> Tensor:
        """The distribution over the first target token of every row, float32 [K, vocabulary]."""
        first = batch.loss_mask_KS & (batch.loss_mask_KS.cumsum(1) == 1)
        return self.targets(batch._replace(loss_mask_KS=first)).logits_MV.log_softmax(-1)


class Encoder(nn.Module):
    """The vision room alone, under the name that it has in the backbone: what stage 0 trains and stores."""

    def __init__(self, vision: nn.Module):
        super().__init__()
        self.vision = vision
        self.features: FrozenFeatures | None = None


def prefix_of(batch: Batch, text_KSD: Tensor) -> Prefix:
    """The text before the video, cut to the longest."""
    width = int(batch.visual_at_K.max())
    mask = torch.arange(width, device=text_KSD.device) < batch.visual_at_K.unsqueeze(1)
    return Prefix(text_KSD[:, :width], mask, batch.clip_K)


def interleave(s: int, v: int, at_K: Tensor) -> Tensor:
    """For every place of the laid-out row, its index in [text ‖ visual]: the first ``at_K[k]`` of ``s`` text tokens,
    then the ``v`` visual ones, then the rest of the text. int64 [K, s + v]."""
    place = torch.arange(s + v, device=at_K.device).expand(len(at_K), -1)
    at = at_K.unsqueeze(1)
    return torch.where(place < at, place, torch.where(place < at + v, s + place - at, place - v))


def pick(source_KL: Tensor, text_KS: Tensor, visual_KV: Tensor) -> Tensor:
    """Lay out [K, S, ...] and [K, V, ...] as ``interleave`` says: [K, L, ...]."""
    both = torch.cat([text_KS, visual_KV], 1)
    return both.gather(1, source_KL.unflatten(1, (-1, *(1,) * (both.dim() - 2))).expand(-1, -1, *both.shape[2:]))


def named_parts(model: VLM | Encoder) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Parameters by part. The query's own projections live in the encoder but train with the connector."""
    parts: dict[str, list[tuple[str, nn.Parameter]]] = {name: [] for name in PARTS}
    for name, parameter in model.named_parameters():
        part = name.split(".", 1)[0]
        if part == "vision" and name.split(".")[1] == "query":
            part = "connector"
        parts[part].append((name, parameter))
    return {name: members for name, members in parts.items() if members}
