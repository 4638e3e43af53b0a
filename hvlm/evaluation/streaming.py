"""A video as it comes in: one frame at a time, and a question at any moment."""

from __future__ import annotations

import torch
from torch import Tensor

from hvlm.caching import PastKV
from hvlm.errors import UserError
from hvlm.evaluation.generate import write
from hvlm.evaluation.sampling import GREEDY, Sampling
from hvlm.gaze import CachedKV
from hvlm.model import VLM
from hvlm.text.chat import Chat
from hvlm.types import Patches, Wants


def why_not_frame_by_frame(model: VLM) -> str | None:
    """What keeps the model from watching a video as it comes in; None where nothing does."""
    if not model.connector.steers:
        return "it needs a model with connector=foveated and mode coarse_fine or autoregressive"
    if model.attention.mixes or model.attention.readout > 1:
        return "attention= must be none, with readout 1; others mix whole clips"
    if not model.merger.changes_nothing:
        return "merger= must be none, others share tokens among all frames"
    if model.fusion.reads_text:
        return "fusion= must be none, others wait for the whole clip"
    return None


class StreamingReader:
    """fVLM's autoregressive reading, kept going: the query of the next frame comes from the state at the newest one.

    A frame costs one pass through the encoder, one look and one position of the language model. Of the frames nothing
    is kept but their tokens' keys and values in the language model (what the model's ``kvcache`` keeps of them).

    question: what is watched for. With order ``question_first`` it steers the gaze from the first frame on and must be
        given here; with ``video_first`` every ``answer`` has a question of its own.
    Raises UserError where ``why_not_frame_by_frame`` has a reason.
    """

    def __init__(self, model: VLM, chat: Chat, question: str | None = None):
        if reason := why_not_frame_by_frame(model):
            raise UserError(f"reading frame by frame: {reason}")
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
        with torch.inference_mode():
            if question is None:
                self.query = connector.q_init.unsqueeze(0)
            else:
                ids, at = chat.encode_prompt(question, model.order)
                self.query = connector.llm_to_query(self._read(ids[:at], self.cache)[:, -1:])

    @torch.inference_mode()
    def read_frame(self, frame_CHW: Tensor) -> None:
        """The next frame, uint8 [3, H, W] (or normalised floats)."""
        vision, connector = self.model.vision, self.model.connector
        frames = frame_CHW.to(self.device)[None, None]
        time = torch.full((1, 1), float(self.frames), device=self.device)
        seen = torch.ones(1, 1, dtype=torch.bool, device=self.device)
        tokens, kv, _ = vision.encode(frames, time, seen, Wants(kv=True))
        patches = Patches(tokens, time, seen, CachedKV(vision, kv))
        token = connector.read_frame(patches, self.query, torch.zeros(1, dtype=torch.long, device=self.device), at=0)
        self.cache.tell(torch.full((1, 1), self.frames, device=self.device), torch.zeros_like(seen, dtype=torch.long))
        self.query = connector.llm_to_query(self.model.language.hidden(token, cache=self.cache))
        self.frames += 1

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
