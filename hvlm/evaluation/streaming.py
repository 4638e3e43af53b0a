"""A video as it comes in: one frame at a time, and a question at any moment."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from hvlm.caching import PastKV
from hvlm.errors import UserError
from hvlm.evaluation.generate import write
from hvlm.evaluation.sampling import GREEDY, Sampling
from hvlm.gaze import CachedKV
from hvlm.model import VLM
from hvlm.text.chat import Chat
from hvlm.types import Patches

log = logging.getLogger(__name__)


def why_not_frame_by_frame(model: VLM) -> str | None:
    """What keeps the model from watching a video as it comes in; None where nothing does."""
    if not (model.connector.steers or model.connector.alone):
        return "connector= must be one that reads each frame alone (foveated, mean, patches)"
    if model.attention.mixes or model.attention.readout > 1:
        return "attention= must be none, with readout 1; others mix whole clips"
    if not model.merger.changes_nothing:
        return "merger= must be none, others share tokens among all frames"
    if model.fusion.reads_text:
        return "fusion= must be none, others wait for the whole clip"
    return None


class StreamingReader:
    """A frame costs one pass through the encoder and one position of the language model for each of its tokens. Nothing
    is kept of it but these tokens' keys and values in the language model (what the model's ``kvcache`` keeps of them).

    A connector that steers reads as fVLM's autoregressive reading does, kept going: the query of the next frame comes
    from the state at the newest one. Of others the answer is that of the whole clip read through the same cache.

    question: what is watched for. With order ``question_first`` it is read (and steers the gaze) before the first frame
        and must be given here; with ``video_first`` every ``answer`` has a question of its own.
    Raises UserError where ``why_not_frame_by_frame`` has a reason.
    """

    def __init__(self, model: VLM, chat: Chat, question: str | None = None):
        if reason := why_not_frame_by_frame(model):
            raise UserError(f"reading frame by frame: {reason}")
        if model.router is not None:
            raise UserError(
                "reading frame by frame: what has not been seen cannot be routed; say whose specialist watches, e.g. "
                "domain=sports"
            )
        connector = model.connector
        if (question is not None) != (model.order == "question_first"):
            raise UserError(
                "order=question_first: the question is needed before the first frame"
                if question is None
                else "order=video_first: questions are asked after frames, with answer(question)"
            )
        self.model, self.chat, self.cache, self.question = model.eval(), chat, model.kvcache.new(), question
        self.device = next(model.parameters()).device
        self.frames = 0
        self.query: Tensor | None = None  # of the next frame, where the model steers
        self._said = False
        with torch.inference_mode():
            # Before the video stands the question; or, in this order, the token that begins a text, if there is one.
            ids, at = chat.encode_prompt(question or "?", model.order)
            state = self._read(ids[:at], self.cache)[:, -1:] if at else None
            if connector.steers:
                self.query = connector.q_init.unsqueeze(0) if question is None else connector.llm_to_query(state)

    @torch.inference_mode()
    def read_frame(self, frame_CHW: Tensor) -> None:
        """The next frame, uint8 [3, H, W] (or normalised floats)."""
        vision, connector, language = self.model.vision, self.model.connector, self.model.language
        frames = frame_CHW.to(self.device)[None, None]
        time = torch.full((1, 1), float(self.frames), device=self.device)
        seen = torch.ones(1, 1, dtype=torch.bool, device=self.device)
        tokens, kv, summary, _ = vision.encode(frames, time, seen, self.model.wants())
        gaze = None if kv is None else CachedKV(vision, kv)
        patches = Patches(tokens, time, seen, gaze, summary, vision.grid(*frames.shape[-2:]))
        if connector.steers:
            row = torch.zeros(1, dtype=torch.long, device=self.device)
            new = connector.read_frame(patches, self.query, row, at=0)
        else:
            new = connector(patches, language, None)[0].x_BSD
        slot = torch.arange(new.shape[1], device=self.device).unsqueeze(0)
        self.cache.tell(torch.full_like(slot, self.frames), slot)
        states = language.hidden(new, cache=self.cache)
        if connector.steers:
            self.query = connector.llm_to_query(states)
        self.frames += 1
        if self.cache.get_seq_length() > language.max_positions and not self._said:
            self._said = True
            log.warning(
                f"frame {self.frames}: the language model was made for {language.max_positions} positions, and what it "
                "reads goes on beyond them; look at fewer frames a second (ask.fps)"
            )

    @torch.inference_mode()
    def answer(self, question: str | None = None, max_new_tokens: int = 32, choose: Sampling = GREEDY) -> str:
        """What the model answers after the frames so far; watching can go on afterwards as if nothing was asked.

        question: with ``video_first`` only. choose: which word comes next. Raises UserError before the first frame.
        """
        if not self.frames:
            raise UserError("nothing was seen yet: ask after the first frame")
        if (question is None) != (self.question is not None):
            raise UserError(f"order={self.model.order}: " + ("give a question" if question is None else "it was asked"))
        ids, at = self.chat.encode_prompt(self.question or question, self.model.order)
        cache = self.cache.copy()
        cache.question()
        steps = [ids[at:]] if cache.in_pieces else [[one] for one in ids[at:]]
        newest = [self._read(step, cache) for step in steps][-1][:, -1]
        written = write(self.model, self.chat, cache, newest, max_new_tokens, choose)
        return self.chat.decode(written[0].tolist())

    def _read(self, ids: list[int], cache: PastKV) -> Tensor:
        """States [1, S, dim] of text that follows what ``cache`` has read so far."""
        language = self.model.language
        return language.hidden(language.embed(torch.tensor([ids], device=self.device)), cache=cache)
