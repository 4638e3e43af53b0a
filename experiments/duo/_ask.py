"""One cell: every question about every clip, read through one cache.

The video is read first; each question then goes on from a copy of what the cache kept, as tokens of its
own. What the question asks for is therefore not known while the cache decides what to keep, and heads that stream must
do without the video. (Read in one piece together with the video, every head would see everything.)
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hvlm import assembly
from hvlm.caching import PastKV
from hvlm.config.overlay import overlay
from hvlm.contracts import KVCache, Merger
from hvlm.data.collate import Item, collate
from hvlm.evaluation.stats import clustered_mean
from hvlm.feature_cache import FrozenFeatures
from hvlm.rebuild import Loaded
from hvlm.types import Wants

ROWS = 8  # clips at a time
TEXTS = ("input_ids_KS", "attention_mask_KS", "loss_mask_KS", "prompt_KS")


class Clip(NamedTuple):
    """A clip's item without texts, and what is asked about it: (prompt ids, id of the answer)."""

    item: Item
    asked: list[tuple[list[int], int]]


class Found(NamedTuple):
    """What a cell measured. share: of the answers right (the likeliest of all words is the answer's); stderr: clustered
    by clip. kv_bytes: of keys and values of one clip when the video was read. seconds: of the whole cell.
    right, said: of each clip's answers, whether it is right, and its id."""

    share: float
    stderr: float | None
    questions: int
    kv_bytes: float
    seconds: float
    right: list[list[bool]]
    said: list[list[int]]


class Asker:
    """A model with the clips that it is asked about. Frames are decoded and encoded once for all cells.

    limit: of clips.
    """

    def __init__(self, loaded: Loaded, limit: int | None = None) -> None:
        self.loaded, self.model = loaded, loaded.model.eval()
        self.model.features = FrozenFeatures(self.model.vision, Wants(saliency="attention"), wants_patches=True)
        self.clips = list(_clips(loaded, limit))
        self.patches = _grid(loaded)

    def room(self, overrides: Sequence[str]) -> KVCache:
        """The cache that these words of a command line name, for this model."""
        cfg = overlay(self.loaded.config, list(overrides))
        return assembly.room(cfg["kvcache"], **self.model.language.cache_sizes)

    def merger(self, overrides: Sequence[str]) -> Merger:
        cfg = overlay(self.loaded.config, list(overrides))
        return assembly.room(cfg["merger"], needs_frames=self.model.connector.needs_frames)

    @torch.inference_mode()
    def __call__(self, cache: KVCache, merger: Merger | None = None) -> Found:
        """What is answered through a cache, with another merger than none where one is given."""
        before = self.model.merger, self.model.kvcache
        self.model.merger, self.model.kvcache = merger or self.model.merger, cache
        began, kept = time.monotonic(), 0.0
        right: list[list[bool]] = []
        said: list[list[int]] = []
        try:
            for first in range(0, len(self.clips), ROWS):
                some = self.clips[first : first + ROWS]
                answers, nbytes = self._some(cache, some)
                said += answers
                right += [
                    [word == wanted for word, (_, wanted) in zip(words, clip.asked, strict=True)]
                    for words, clip in zip(answers, some, strict=True)
                ]
                kept += nbytes
        finally:
            self.model.merger, self.model.kvcache = before
        flat = [float(r) for clip in right for r in clip]
        share, stderr = clustered_mean(flat, [i for i, clip in enumerate(right) for _ in clip])
        return Found(share, stderr, len(flat), kept / len(self.clips), time.monotonic() - began, right, said)

    def _some(self, room: KVCache, clips: Sequence[Clip]) -> tuple[list[list[int]], float]:
        batch = collate([clip.item for clip in clips], pad_id=0, size=self.loaded.inputs.size)
        nothing = {name: getattr(batch, name)[:, :0] for name in TEXTS}  # nothing stands before the video
        sequence = self.model.sequence(batch._replace(**nothing))
        language, cache = self.model.language, room.new()
        self.model.hidden(sequence, cache)
        nbytes = float(cache.nbytes)
        said: list[list[int]] = [[] for _ in clips]
        for asked in zip(*(clip.asked for clip in clips), strict=True):
            ids = torch.tensor([prompt for prompt, _ in asked])
            position = None
            if sequence.position_KL is not None:  # the text stands after all patches, merged or not
                position = self.patches + torch.arange(ids.shape[1]).expand(len(ids), -1)
            h = self._go_on(cache.copy(), language.embed(ids), position)
            for row, word in enumerate(self.model.head.logits(h[:, -1]).argmax(-1).tolist()):
                said[row].append(word)
        return said, nbytes

    def _go_on(self, cache: PastKV, x_KSD: Tensor, position: Tensor | None) -> Tensor:
        """The states of a question, in the pieces that the cache asks for."""
        size = x_KSD.shape[1] if cache.in_pieces else 1
        cuts = [slice(start, start + size) for start in range(0, x_KSD.shape[1], size)]
        places = [None if position is None else position[:, cut] for cut in cuts]
        read = self.model.language.hidden
        return torch.cat([read(x_KSD[:, c], None, p, cache) for c, p in zip(cuts, places, strict=True)], 1)


def _grid(loaded: Loaded) -> int:
    """Patches of a whole clip."""
    rows, cols = loaded.model.vision.grid(*loaded.inputs.size)
    return loaded.inputs.num_frames * rows * cols


def _clips(loaded: Loaded, limit: int | None) -> Any:
    """The test clips with their questions. All prompts have the same number of tokens: a template and one word."""
    from hvlm.data.views import Questions

    chat, inputs = loaded.chat, loaded.inputs
    for batch in loaded.reader().loader("test", Questions(), None, 1, limit):
        asked = []
        for row in range(len(batch.input_ids_KS)):
            mask, loss = batch.attention_mask_KS[row], batch.loss_mask_KS[row]
            ids, at = batch.input_ids_KS[row], int(loss.int().argmax())
            asked.append((ids[:at].tolist(), int(ids[at])))
            assert int((mask & loss).sum()) == 2 and int(batch.visual_at_K[row]) == 0, "one word, asked after the video"
        item = Item(batch.frames_BTCHW[0].numpy(), batch.frame_time_BT[0].numpy(), [([chat.pad_id], [False], 0, 0, {})],
                    uid=batch.uids[0])  # fmt: skip
        assert batch.frames_BTCHW.shape[1] == inputs.num_frames
        yield Clip(item, asked)
