"""The backbone all stages share: one batch's way down the corridor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from hvlm import prefill
from hvlm.caching import PastKV
from hvlm.contracts import (
    PARTS,
    Adapter,
    Attention,
    Connector,
    Fusion,
    Head,
    KVCache,
    Language,
    Merger,
    Vision,
)  # fmt: skip
from hvlm.data.batches import rows_of
from hvlm.errors import UserError
from hvlm.feature_cache import FrozenFeatures
from hvlm.gaze import Adapted, CachedKV, RecomputedKV, encode_frames, plainly
from hvlm.router import Router, pooled
from hvlm.types import Alone, Batch, Encoded, Fused, Patches, Prefix, Sequence, Targets, Tokens, Unimodal, Wants


class VLM(nn.Module):
    """vision -> merger -> connector -> attention -> fusion -> language -> head, built from plain modules.

    ``order`` says where the video stands among the text; ``Batch.visual_at_K`` carries the place itself. ``kvcache``
    says what is kept of what was read when the model writes; it has no part in reading a whole sequence.
    """

    def __init__(
        self,
        *,
        vision: Vision,
        merger: Merger,
        connector: Connector,
        attention: Attention,
        fusion: Fusion,
        language: Language,
        adapter: Adapter,
        kvcache: KVCache,
        head: Head,
        order: str,
    ):
        super().__init__()
        self.vision, self.merger, self.connector = vision, merger, connector
        self.attention, self.fusion, self.language = attention, fusion, language
        self.adapter, self.kvcache, self.head = adapter, kvcache, head
        self.order = order
        self.features: FrozenFeatures | None = None  # in the encoder's place while it is frozen
        self.router: Router | None = None  # picks a clip's adapter weights where its domain is not given
        adapter.attach(self)

    def encode_video(self, batch: Batch) -> Patches:
        """Frames -> patch features, with the encoder's gaze over them where the connector wants it."""
        frames, time, mask = batch.frames_BTCHW, batch.frame_time_BT, batch.frame_mask_BT
        b, t = mask.shape
        wants, adapted = self.wants(), self._adapted_frames(batch)
        at_once = b * t <= self.vision.frames_at_once
        if self.features is not None:
            tokens, kv, summary, layers = self.features.encode(batch)
        elif torch.is_grad_enabled() or at_once:
            with adapted(None):
                tokens, kv, summary, layers = self.vision.encode(frames, time, mask, wants)
        else:
            tokens, kv, summary, layers = self._encode_in_parts(batch, wants, adapted)
        gaze: CachedKV | RecomputedKV | None = None
        if kv is not None:
            gaze = CachedKV(self.vision, kv, adapted=adapted)
        elif wants.kv:
            gaze = RecomputedKV(self.vision, frames.flatten(0, 1), self.vision.frames_at_once, adapted=adapted)
        if tokens is not None and batch.motion_BTYX is not None:
            tokens = tokens._replace(motion_BS=batch.motion_BTYX.flatten(1))
        grid = self.vision.grid(*frames.shape[-2:])
        patches = self.merger(Patches(tokens, time, mask, gaze, summary, grid))
        if len(layers) != wants.layers:
            raise UserError(
                f"the fusion reads patches of {wants.layers} of the encoder's layers, and {type(self.vision).__name__} "
                f"gives {len(layers)}; use fusion.pyramid=pooled"
            )
        if layers:
            each = tuple(Tokens.of_frames(x.unflatten(1, (t, -1)), time, mask, grid) for x in layers)
            patches = patches._replace(layers=each)
        return patches

    def wants(self) -> Wants:
        """What the rooms ask of the encoder beside patch tokens."""
        connector = self.connector
        return Wants(
            connector.wants_gaze, self.merger.wants_saliency, connector.wants_summaries, self.fusion.wants_layers
        )

    @property
    def wants_patches(self) -> bool:
        return self.connector.wants_patches or not self.merger.changes_nothing

    def _encode_in_parts(self, batch: Batch, wants: Wants, adapted: Adapted) -> Encoded:
        """Frames that are too many to be encoded at once, without gradients. Keys and values are not kept at all."""
        if not (self.wants_patches or wants.summaries or wants.layers):
            return Encoded(None)
        b, t = batch.frame_mask_BT.shape
        frames = batch.frames_BTCHW.flatten(0, 1)
        each = []
        for start in range(0, len(frames), self.vision.frames_at_once):
            part = slice(start, start + self.vision.frames_at_once)
            with adapted(part):
                each.append(encode_frames(self.vision, frames[part], wants._replace(kv=False)))
        tokens, summary = None, None
        if self.wants_patches:
            grid = self.vision.grid(*frames.shape[-2:])
            x = torch.cat([part.tokens.x_BSD for part in each]).unflatten(0, (b, t))
            tokens = Tokens.of_frames(x, batch.frame_time_BT, batch.frame_mask_BT, grid)
            if wants.saliency:
                tokens = tokens._replace(saliency_BS=torch.cat([p.tokens.saliency_BS for p in each]).reshape(b, -1))
        if wants.summaries:
            summary = torch.cat([part.summary_BTLD for part in each])[:, 0].unflatten(0, (b, t))
        layers = tuple(
            torch.cat([part.layers[i] for part in each]).reshape(b, -1, self.vision.dim) for i in range(wants.layers)
        )
        return Encoded(tokens, None, summary, layers)

    def visual_tokens(self, batch: Batch, text_KSD: Tensor) -> Tokens:
        """Visual tokens of every text row, [K, V, text_dim]."""
        return self.fused(batch, text_KSD)[0].tokens

    def fused(self, batch: Batch, text_KSD: Tensor) -> tuple[Fused, Unimodal | None]:
        """Visual tokens and text of every row as the fusion gives them, and as it got them (None: it reads no text)."""
        if batch.adapter_K is None or not self.adapter.adapts & BETWEEN:
            return self._fused(batch, text_KSD)
        # The rooms between encoder and language model know clips and rows of several kinds: one set after the other.
        each, order = [], []
        for which in batch.adapter_K.unique().tolist():
            rows = (batch.adapter_K == which).nonzero().squeeze(1)
            with self.adapter.using(between=which):
                each.append(self._fused(rows_of(batch, rows), text_KSD[rows]))
            order.append(rows)
        back = torch.cat(order).argsort()
        fused, came = ([pair[i] for pair in each] for i in (0, 1))
        tokens, text, pooled = joined([f.tokens for f in fused]), None, None
        if fused[0].text_KPD is not None:
            text = below([f.text_KPD for f in fused])
        if fused[0].pooled_KD is not None:
            pooled = torch.cat([f.pooled_KD for f in fused])
        unimodal = None
        if came[0] is not None:
            unimodal = Unimodal(
                joined([u.tokens for u in came]).take(back),
                below([u.text_KPD for u in came])[back],
                below([u.prompt_KP for u in came])[back],
            )
        return Fused(tokens, text, pooled).take(back), unimodal

    def _fused(self, batch: Batch, text_KSD: Tensor) -> tuple[Fused, Unimodal | None]:
        prefix = prefix_of(batch, text_KSD) if self.order == "question_first" else None
        patches, rows = self.encode_video(batch), batch.adapter_K
        if prefix is None and rows is not None and self.connector.steers and "language" in self.adapter.adapts:
            rows = adapter_of_clips(batch)  # the connector reads clips, not rows, through the language model
        with self.adapter.using(language=rows):
            tokens, per_row = self.connector(patches, self.language, prefix)
        tokens, _ = self.attention(tokens)
        if not per_row:
            tokens = tokens.take(batch.clip_K)
        if not self.fusion.reads_text:
            return self.fusion(tokens, text_KSD[:, :0], batch.attention_mask_KS[:, :0]), None
        came = Unimodal(tokens, *known_text(batch, text_KSD))
        return self.fusion(*came, layers=tuple(layer.take(batch.clip_K) for layer in patches.layers)), came

    def sequence(self, batch: Batch) -> Sequence:
        """The text of every row with the visual tokens in their place."""
        self._check_adapters(batch)
        with self.adapter.using(language=batch.adapter_K):
            text = self.language.embed(batch.input_ids_KS)
        if not batch.frame_mask_BT.any():
            self._check_length(text.shape[1], 0)
            return Sequence(text, batch.attention_mask_KS, 0, batch=batch)
        fused, unimodal = self.fused(batch, text)
        visual = fused.tokens
        if self.fusion.writes_text and fused.text_KPD is not None:
            text = written(batch, text, fused)
        self._check_length(text.shape[1], visual.x_BSD.shape[1])
        source = interleave(text.shape[1], visual.x_BSD.shape[1], batch.visual_at_K)
        x = pick(source, text, visual.x_BSD.to(text.dtype))
        mask = pick(source, batch.attention_mask_KS, visual.mask_BS)
        position, log_size = None, None
        if visual.position_BS is not None:
            position = pick(source, self._text_positions(batch), batch.visual_at_K.unsqueeze(1) + visual.position_BS)
        if visual.log_size_BS is not None:
            log_size = pick(source, torch.zeros_like(text[..., 0]), visual.log_size_BS.to(text.dtype))
        return Sequence(
            x, mask, visual.x_BSD.shape[1], position, log_size, visual, batch, fused=fused, unimodal=unimodal
        )

    def _check_length(self, text: int, visual: int) -> None:
        if text + visual > self.language.max_positions:
            raise UserError(
                f"{visual} visual tokens and {text} tokens of text make a sequence of {visual + text}, and the "
                f"language model reads {self.language.max_positions}; sample fewer frames (dataset.num_frames), make "
                "fewer tokens of them (connector=mean, merger=tome), or lower dataset.max_tokens"
            )

    def hidden(self, sequence: Sequence, cache: PastKV | None = None) -> Tensor:
        """The language model's states, [K, L, D]; an empty ``cache`` (of ``kvcache``) keeps what writing goes on from,
        and each place sees of those before what it keeps: see ``hvlm.prefill.read``."""
        x, mask, _, position, log_size, _, batch, *_ = sequence
        if cache is not None and batch is not None and sequence.tokens is not None:
            cache.tell(*frames_and_slots(sequence, self.vision.grid(*batch.frames_BTCHW.shape[-2:])))
        with self.adapter.using(language=None if batch is None else batch.adapter_K):
            if cache is not None:
                return prefill.read(self.language, sequence, cache, self.kvcache.chunk, self.kvcache.apart)
            return self.language.hidden(x, mask, position, None, log_size)

    def forgetful(self) -> PastKV | None:
        """An empty cache where it matters to a likelihood what the model's ``kvcache`` keeps; else None."""
        return self.kvcache.new() if self.kvcache.apart else None

    def adapting(self, batch: Batch) -> AbstractContextManager[None]:
        """Inside the block the language model's rows use the weights that ``batch.adapter_K`` names: for those who
        call the language model themselves."""
        self._check_adapters(batch)
        return self.adapter.using(language=batch.adapter_K)

    def routed(self, batch: Batch) -> Batch:
        """The batch in which each row uses the adapter weights that the router picks for its clip; as it is where rows
        have chosen already, or there is no router. What is no video uses none of them."""
        if self.router is None or batch.adapter_K is not None:
            return batch
        with self.adapter.using(language=-1, vision=-1):
            routes = self.router.routes(pooled(self.vision, batch))
        names, shown = self.adapter.names, batch.frame_mask_BT.any(1).tolist()
        sets = [
            names.index(route.adapter) if seen and route.adapter in names else -1
            for route, seen in zip(routes, shown, strict=True)
        ]
        uids = batch.uids or [""] * len(routes)
        self.router.said |= {uid: route for uid, route, seen in zip(uids, routes, shown, strict=True) if seen}
        return batch._replace(adapter_K=torch.tensor(sets, device=batch.clip_K.device)[batch.clip_K])

    def _check_adapters(self, batch: Batch) -> None:
        if batch.adapter_K is None:
            return
        names = self.adapter.names
        if not -1 <= int(batch.adapter_K.min()) <= int(batch.adapter_K.max()) < len(names):
            raise ValueError(
                f"adapter_K={batch.adapter_K.tolist()}: the model has {len(names)} sets of adapter weights "
                f"({', '.join(names) or 'none'})"
            )
        if torch.is_grad_enabled() and (self.language.gradient_checkpointing or self.vision.gradient_checkpointing):
            raise ValueError(
                "adapter_K: rows cannot choose their adapter weights under gradient_checkpointing, whose second pass "
                "no longer knows the choice; train one set at a time, or without it"
            )

        if torch.is_grad_enabled() and self.language.pack:
            raise ValueError(
                "adapter_K: rows cannot choose their adapter weights under language.pack=true, which reads several "
                "rows as one; train one set at a time, or without it"
            )

    def _adapted_frames(self, batch: Batch) -> Adapted:
        """For some of the B * T frames (None: all) a block inside which each uses its clip's adapter weights."""
        if batch.adapter_K is None or "vision" not in self.adapter.adapts:
            return plainly
        set_F = adapter_of_clips(batch).repeat_interleave(batch.frame_mask_BT.shape[1])
        return lambda which: self.adapter.using(vision=set_F if which is None else set_F[which])

    def _text_positions(self, batch: Batch) -> Tensor:
        """Positions of the text's tokens where the video takes as many as it has patches, merged or not: [K, S]."""
        rows, cols = self.vision.grid(*batch.frames_BTCHW.shape[-2:])
        video_K1 = (batch.frame_mask_BT.sum(1) * rows * cols)[batch.clip_K].unsqueeze(1)
        counted = (batch.attention_mask_KS.cumsum(1) - 1).clamp(min=0)
        after = torch.arange(counted.shape[1], device=counted.device) >= batch.visual_at_K.unsqueeze(1)
        return counted + video_K1 * after

    def output(self, batch: Batch, cache: PastKV | None = None) -> Any:
        """What the head makes of the batch; ``head.loss`` takes it. cache: see ``hidden``."""
        batch = self.routed(batch)
        sequence = self.sequence(batch)
        hidden = self.hidden(sequence, cache)
        texts = self.head.texts(batch)
        return self.head(hidden, sequence if texts is None else sequence._replace(alone=self.alone(*texts)))

    def alone(self, ids_MS: Tensor, mask_MS: Tensor) -> Alone:
        """Texts read by the language model without a video."""
        return Alone(self.language.hidden(self.language.embed(ids_MS), mask_MS), mask_MS)

    def targets(self, batch: Batch, cache: PastKV | None = None) -> Targets:
        """Every token under ``loss_mask_KS``, and its logits. ValueError where the head is not one for text."""
        if not self.head.writes:
            raise ValueError(f"{type(self.head).__name__} gives no logits of tokens; use head=text")
        return self.output(batch, cache)

    def token_logprobs(self, batch: Batch, cache: PastKV | None = None) -> Tensor:
        """log p(token | everything before it), float32 [K, S]; 0 where the token is not a target. cache: an empty one,
        of what was before it (``hidden``)."""
        targets = self.targets(batch, cache)
        logp, _ = targets.scored()
        places = (targets.row_M, targets.place_M)
        return torch.zeros(batch.input_ids_KS.shape, device=logp.device).index_put(places, logp)

    def next_token_logprobs(self, batch: Batch, cache: PastKV | None = None) -> Tensor:
        """The distribution over the first target token of every row, float32 [K, vocabulary]."""
        first = batch.loss_mask_KS & (batch.loss_mask_KS.cumsum(1) == 1)
        return self.targets(batch._replace(loss_mask_KS=first), cache).logits_MV.log_softmax(-1)


BETWEEN = frozenset({"connector", "attention"})  # parts between encoder and language model that may be adapted


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


def frames_and_slots(sequence: Sequence, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Of each place of the laid-out rows, the frame and the patch of the frame's ``grid`` that it is or stands for;
    -1 for text and padding. int64, both [K, L]."""
    tokens = sequence.tokens
    assert tokens is not None, "a sequence with a video"
    rows, cols = grid
    y, x = (tokens.yx_BS2 * tokens.yx_BS2.new_tensor([rows, cols])).long().unbind(-1)
    slot_KV = y.clamp(0, rows - 1) * cols + x.clamp(0, cols - 1)
    text = torch.full(sequence.mask_KL.shape, -1, device=slot_KV.device)
    return (
        text.scatter(1, sequence.visual_place_KV, tokens.frame_BS.masked_fill(~tokens.mask_BS, -1)),
        text.scatter(1, sequence.visual_place_KV, slot_KV.masked_fill(~tokens.mask_BS, -1)),
    )


def pick(source_KL: Tensor, text_KS: Tensor, visual_KV: Tensor) -> Tensor:
    """Lay out [K, S, ...] and [K, V, ...] as ``interleave`` says: [K, L, ...]."""
    both = torch.cat([text_KS, visual_KV], 1)
    return both.gather(1, source_KL.unflatten(1, (-1, *(1,) * (both.dim() - 2))).expand(-1, -1, *both.shape[2:]))


def joined(each: list[Tokens]) -> Tokens:
    """Rows below each other; shorter ones have padding behind."""
    longest = max(part.mask_BS.shape[1] for part in each)

    def padded(field: Tensor) -> Tensor:
        more = longest - field.shape[1]
        return field if not more else torch.cat([field, field.new_zeros(len(field), more, *field.shape[2:])], 1)

    return Tokens(
        *(None if fields[0] is None else torch.cat([padded(f) for f in fields]) for fields in zip(*each, strict=True))
    )


def below(each: list[Tensor]) -> Tensor:
    """[K, P, ...] below each other; shorter ones are filled with zeros behind."""
    longest = max(x.shape[1] for x in each)
    return torch.cat([torch.cat([x, x.new_zeros(len(x), longest - x.shape[1], *x.shape[2:])], 1) for x in each])


def adapter_of_clips(batch: Batch) -> Tensor:
    """Which adapter weights each clip uses, int64 [B]. ValueError where its rows disagree: what is made once for all
    rows of a clip cannot follow several."""
    sets_B = batch.adapter_K.new_zeros(batch.num_clips).scatter(0, batch.clip_K, batch.adapter_K)
    if not torch.equal(sets_B[batch.clip_K], batch.adapter_K):
        raise ValueError(
            f"adapter_K={batch.adapter_K.tolist()}: rows of one clip (clip_K={batch.clip_K.tolist()}) use different "
            "adapter weights, but what the adapter changes is computed once for the clip; give each its own clip"
        )
    return sets_B


def known_text(batch: Batch, text_KSD: Tensor) -> tuple[Tensor, Tensor]:
    """What of the embedded text may reach visual tokens, [K, P, D] with zeros elsewhere, and where it is, bool [K, P];
    P is the last such place of any row. Nothing of the rest is handed on, so no room can let the answer leak."""
    if batch.prompt_KS is None:
        raise ValueError("a fusion that reads the text needs Batch.prompt_KS: what may be known before the answer")
    known = batch.prompt_KS & batch.attention_mask_KS
    width = int((known * (1 + torch.arange(known.shape[1], device=known.device))).max())
    known = known[:, :width]
    return text_KSD[:, :width].masked_fill(~known.unsqueeze(-1), 0), known


def written(batch: Batch, text_KSD: Tensor, fused: Fused) -> Tensor:
    """The embedded text with the fusion's states of it in their places.

    Such a state knows the whole video and all that may be known of the text. So it goes only into rows where all of
    that stands before the first target, and where there is a video: what is learned is then what is there when the
    model writes, and a row without a video is the language model's alone.
    """
    assert batch.prompt_KS is not None and fused.text_KPD is not None, "a fusion that reads the text"
    width = fused.text_KPD.shape[1]
    known_KS = batch.prompt_KS & batch.attention_mask_KS
    target_KS = batch.loss_mask_KS & batch.attention_mask_KS
    place = torch.arange(known_KS.shape[1], device=known_KS.device)
    first_K1 = torch.where(target_KS, place, known_KS.shape[1]).amin(1, keepdim=True)
    last_K1 = torch.where(known_KS, place, -1).amax(1, keepdim=True)
    ready_K1 = (last_K1 < first_K1) & (batch.visual_at_K.unsqueeze(1) <= first_K1)
    ready_K1 = ready_K1 & fused.tokens.mask_BS.any(1, keepdim=True)
    places_KP1 = (known_KS & ready_K1)[:, :width].unsqueeze(-1)
    head = torch.where(places_KP1, fused.text_KPD.to(text_KSD.dtype), text_KSD[:, :width])
    return torch.cat([head, text_KSD[:, width:]], 1)


def named_parts(model: VLM | Encoder) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Parameters by part. A module says its part (``part``), for itself and for what is below it: the query's own
    projections live in the encoder but train with the connector."""
    parts: dict[str, list[tuple[str, nn.Parameter]]] = {name: [] for name in PARTS}
    seen: set[int] = set()
    for path, module, part in parts_of_modules(model):
        for name, parameter in module.named_parameters(path, recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                parts.setdefault(part, []).append((name, parameter))
    return {name: members for name, members in parts.items() if members}


def parts_of_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """(path, module, part) of every module below ``model``, each once; "" is the part of what says none."""
    part_of = {"": ""}
    for path, module in model.named_modules():
        part_of[path] = part = getattr(type(module), "part", part_of[path.rpartition(".")[0]])
        yield path, module, part
