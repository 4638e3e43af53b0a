"""A question to a video whose frames the model reads all at once: for models that cannot watch frame by frame."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from hvlm.data.collate import Item, collate
from hvlm.data.decode import decode
from hvlm.data.optical_flow import motion_energy
from hvlm.data.video import VideoDecodeError
from hvlm.errors import UserError
from hvlm.evaluation.generate import generate
from hvlm.evaluation.sampling import GREEDY, Sampling
from hvlm.precision import autocast
from hvlm.rebuild import Loaded


class Answer(NamedTuple):
    """What the model said, and how many frames it had read."""

    text: str
    frames: int


def answer_offline(
    loaded: Loaded,
    video: Path,
    question: str,
    seconds: float,
    max_new_tokens: int = 32,
    choose: Sampling = GREEDY,
) -> Answer:
    """Answer a question about what a video showed until ``seconds``.

    The frames are those of training: as many as the model was trained with, evenly over that time, so what is asked
    later sees the beginning more coarsely.

    Args:
        loaded: the model, with its tokenizer and how it wants its clips.
        video: a file.
        question: of any length.
        seconds: from the video's first frame; more than 0.
        max_new_tokens: of the answer.
        choose: which word comes next.

    Raises:
        UserError: the video cannot be read.
    """
    chat, inputs, data = loaded.chat, loaded.inputs, loaded.config["dataset"]
    try:
        frames_TCHW, time_T = decode(
            video, inputs.num_frames, name=str(video), size=inputs.size, decoder=data["decoder"],
            timeout=data["decode_timeout"], section=(0.0, seconds),
        )  # fmt: skip
    except VideoDecodeError as error:
        raise UserError(f"{video}: cannot be read as a video ({error.reason})") from error
    motion = None if inputs.motion is None else motion_energy(frames_TCHW, inputs.motion)
    row = (*chat.encode(question, "", order=inputs.order), {})
    item = Item(frames_TCHW, time_T, [row], uid=str(video), motion=motion)
    batch = collate([item], pad_id=chat.pad_id, size=inputs.size, motion=inputs.motion).to(loaded.device)
    with autocast(loaded.device, loaded.precision):
        (text,) = generate(loaded.model, chat, batch, max_new_tokens, choose)
    return Answer(text, len(frames_TCHW))
