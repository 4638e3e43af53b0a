"""A video as it comes in, for a program: frames are fed, or read from a file, and questions asked in between."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from hvlm.api.given_numbers import positive, sampling
from hvlm.data.given import Given, streamed_frames
from hvlm.errors import UserError
from hvlm.evaluation.streaming import StreamingReader, why_not_frame_by_frame
from hvlm.model import VLM
from hvlm.text.chat import Chat
from hvlm.types import InputSpec


class Stream:
    """Made by ``Model.stream``. ``for seconds in stream: ...`` reads the video a frame at a time, ``feed`` reads more;
    ``answer`` asks about what was seen so far and can be called at any moment.

    Attributes:
        frames: how many were read. seconds: the time of the newest.
    """

    def __init__(
        self, vlm: VLM, chat: Chat, inputs: InputSpec, video: Given | None, question: str | None, fps: float
    ) -> None:
        if reason := why_not_frame_by_frame(vlm):
            raise UserError(f"stream: this model cannot watch frame by frame: {reason}; answer() reads the whole video")
        if question is not None and not isinstance(question, str):
            raise UserError(f"question={question!r}: expected a question")
        if inputs.order == "question_first" and not (question or "").strip():
            raise UserError("stream: this model reads the question before the first frame; give question=")
        self._first = inputs.order == "question_first"
        self._video, self._question, self._fps, self._size = video, question, fps, inputs.size
        self._device, self._dtype = next(vlm.parameters()).device, next(vlm.parameters()).dtype
        with self._computing():
            self._reader = StreamingReader(vlm, chat, question if self._first else None)
        self.seconds = 0.0

    @property
    def frames(self) -> int:
        return self._reader.frames

    def __iter__(self) -> Iterator[float]:
        """Read the stream's video; gives the time of each frame, in seconds, when it was read."""
        if self._video is None:
            raise UserError("stream: no video was given; feed(frames) reads some")
        yield from self._watch(self._video, self._fps)

    def feed(self, video: Given, fps: float | None = None) -> Stream:
        """Read all of ``video``, which goes on where the stream is.

        Args:
            video: a file, a folder of stills, pictures, or an array, as ``Model.answer`` takes it.
            fps: frames a second; None: the stream's.
        """
        for _ in self._watch(video, self._fps if fps is None else fps):
            pass
        return self

    def answer(
        self,
        question: str | None = None,
        *,
        max_new_tokens: int = 32,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> str:
        """What the model says about what it has seen so far; watching goes on afterwards as if nothing was asked.

        Args:
            question: where the model reads questions after the frames; None: the stream's own.
            max_new_tokens, temperature, top_p, seed: see ``Model.answer``.
        """
        if self._first and question is not None:
            raise UserError(
                "stream: this model was asked before the first frame; begin a new stream for a new question"
            )
        asked = None if self._first else question or self._question
        if not self._first and not (asked or "").strip():
            raise UserError("stream: nothing is asked; give question=")
        choose = sampling(temperature, top_p, seed)
        with self._computing():
            return self._reader.answer(asked, positive(max_new_tokens), choose)

    def _watch(self, video: Given, fps: float) -> Iterator[float]:
        began = self.seconds
        for frame, seconds in streamed_frames(video, self._size, fps):
            with self._computing():
                self._reader.read_frame(torch.from_numpy(frame))
            self.seconds = began + seconds
            yield self.seconds

    def _computing(self) -> contextlib.AbstractContextManager:
        """float32 weights compute in float32, as task=ask does; lower ones need autocast around what stays float32."""
        if self._dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, self._dtype)
