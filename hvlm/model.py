"""The backbone all stages share: one batch's way down the corridor."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from hvlm.frozen import FrozenFeatures
from hvlm.look import CachedLook, FreshLook, encode_frames
from hvlm.types import Batch, Patches, Prefix, Tokens

PARTS = ("vision", "merger", "connector", "attention", "fusion", "language", "head")


class Targets(NamedTuple):
    """Logits of every text token that is scored, M of them in all, in row order.

    logits_MV float32, ids_M the tokens themselves, row_M the text row and place_M the position in it.
    """

    logits_MV: Tensor
    ids_M: Tensor
    row_M: Tensor
    place_M: Tensor


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

    def see(self, batch: Batch) -> Patches:
        """Frames -> patch features, with the encoder's gaze over them where the connector wants it."""
        frames, time, mask = batch.frames_BTCHW, batch.frame_time_BT, batch.frame_mask_BT
        b, t = mask.shape
        if self.features is not None:
            tokens, kv = self.features.encode(batch)
            return self.merger(Patches(tokens, time, mask, None if kv is None else CachedLook(self.vision, kv)))
        if torch.is_grad_enabled() or b * t <= self.vision.frames_at_once:
            tokens, kv = self.vision.encode(frames, time, mask, cache=self.connector.wants_gaze)
            gaze = CachedLook(self.vision, kv) if self.connector.wants_gaze else None
            return self.merger(Patches(tokens, time, mask, gaze))

        frames, at_once = frames.flatten(0, 1), self.vision.frames_at_once
        tokens, gaze = None, None
        if self.connector.wants_gaze:
            gaze = FreshLook(self.vision, frames, at_once)
        if self.connector.wants_patches or not self.merger.changes_nothing:
            parts = [encode_frames(self.vision, part, cache=False)[0].x_BSD for part in frames.split(at_once)]
            grid = self.vision.grid(*frames.shape[-2:])
            tokens = Tokens.of_frames(torch.cat(parts).unflatten(0, (b, t)), time, mask, grid)
        return self.merger(Patches(tokens, time, mask, gaze))

    def visual_tokens(self, batch: Batch, text_KSD: Tensor) -> Tokens:
        """Visual tokens of every text row, [K, V, text_dim]."""
        prefix = prefix_of(batch, text_KSD) if self.order == "question_first" else None
        tokens, per_row = self.connector(self.see(batch), self.language, prefix)
        tokens, _ = self.attention(tokens)
        if not per_row:
            tokens = tokens.take(batch.clip_K)
        return self.fusion(tokens, text_KSD, batch.attention_mask_KS)

    def sequence(self, batch: Batch) -> tuple[Tensor, Tensor, int]:
        """What the language model reads: x [K, L, D], mask [K, L], and the number of visual places V in every row."""
        text = self.language.embed(batch.input_ids_KS)
        if not batch.frame_mask_BT.any():
            return text, batch.attention_mask_KS, 0
        visual = self.visual_tokens(batch, text)
        x, mask = insert(text, batch.attention_mask_KS, visual.x_BSD, visual.mask_BS, batch.visual_at_K)
        return x, mask, visual.x_BSD.shape[1]

    def targets(self, batch: Batch) -> Targets:
        """Logits for every token under ``loss_mask_KS``, from the hidden state one place before it.

        A token that directly follows the video is not scored: the place before it may be a padded frame.
        """
        x, mask, num_visual = self.sequence(batch)
        h = self.language.hidden(x, mask)
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


def insert(
    text_KSD: Tensor, text_mask_KS: Tensor, x_KVD: Tensor, mask_KV: Tensor, at_K: Tensor
) -> tuple[Tensor, Tensor]:
    """Put the visual tokens of row k after its first ``at_K[k]`` text tokens: x [K, S+V, D], mask [K, S+V]."""
    s, v = text_KSD.shape[1], x_KVD.shape[1]
    place = torch.arange(s + v, device=text_KSD.device).expand(len(text_KSD), -1)
    at = at_K.unsqueeze(1)
    # Index into [text ‖ visual]: text before the video, then the video, then the rest of the text.
    source = torch.where(place < at, place, torch.where(place < at + v, s + place - at, place - v))
    both = torch.cat([text_KSD, x_KVD.to(text_KSD.dtype)], 1)
    mask = torch.cat([text_mask_KS, mask_KV], 1)
    return both.gather(1, source.unsqueeze(-1).expand(-1, -1, both.shape[-1])), mask.gather(1, source)


def named_parts(model: VLM | Encoder) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Parameters by part. The query's own projections live in the encoder but train with the connector."""
    parts: dict[str, list[tuple[str, nn.Parameter]]] = {name: [] for name in PARTS}
    for name, parameter in model.named_parameters():
        part = name.split(".", 1)[0]
        if part == "vision" and name.split(".")[1] == "query":
            part = "connector"
        parts[part].append((name, parameter))
    return {name: members for name, members in parts.items() if members}
