"""A question about a video, answered word by word, with what there is to see and to count of it."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from hvlm.api.model import Model
from hvlm.data.batches import clip_frames, prompts_alone
from hvlm.evaluation.generate import words
from hvlm.functional import last_true
from hvlm.precision import autocast
from hvlm.text.unknown import unknown_words
from hvlm.types import Batch
from hvlm.viz.gaze_maps import gaze_maps, lit
from hvlm.viz.merge_maps import coloured, merge_maps

T = TypeVar("T")
DECODE_S = 60.0  # for a video, whose decoder is killed then: the next visitor waits


class Pictures(NamedTuple):
    """Rows of uint8 [T, 3, H, W]. frames: what was read, at ``seconds`` [T]. gaze: lit where the model looked, None
    for one that does not gaze. merged: patches in the colours of their tokens, None for one that merges nothing;
    ``tokens`` [T] are those of each frame."""

    seconds: np.ndarray
    frames: np.ndarray
    gaze: np.ndarray | None = None
    merged: np.ndarray | None = None
    tokens: np.ndarray | None = None


class Told(NamedTuple):
    """How far an answer has come.

    text: written so far. figures: {name: value with its unit}. note: what the reader should know, or "". pictures: with
    the last one of an answer.
    """

    text: str
    figures: dict[str, str]
    note: str = ""
    pictures: Pictures | None = None


def tell(model: Model, video: str, question: str, num_frames: int | None, max_new_tokens: int) -> Iterator[Told]:
    """Answer greedily, as ``Model.answer`` does, giving the text whenever a word is added; the pictures come last.

    Args:
        model: answers one question at a time.
        video: a file.
        question: one, with words.
        num_frames: how many are read at most; None: as the model was trained.
        max_new_tokens: where the answer stops at the latest.

    Raises:
        UserError: the video cannot be read within ``DECODE_S``, or is too long for the model.
    """
    question = question.encode("utf-8", "replace").decode()  # JSON can say half a letter, and no tokenizer takes it
    model.vlm.eval()
    began = time.perf_counter()
    with autocast(model.device, model.precision), torch.inference_mode():
        batch = model.batch(video, [question], num_frames=num_frames, timeout=DECODE_S)
        read = time.perf_counter()
        batch = model.vlm.routed(prompts_alone(batch))
        sequence, cache = model.vlm.sequence(batch), model.vlm.kvcache.new()
        states = model.vlm.hidden(sequence, cache)
        newest = states[torch.arange(len(states), device=states.device), last_true(sequence.mask_KL)]
        figures = {
            "frames": f"{int(batch.frame_mask_BT.sum())}",
            "visual tokens": f"{sequence.visual}",
            "text tokens": f"{int(batch.attention_mask_KS.sum())}",
            "reading the video": f"{1e3 * (read - began):,.0f} ms",
        }
        note, ids = _unknown(model, question), []
        with model.vlm.adapting(batch):
            for token in words(model.vlm, model.chat, cache, newest, max_new_tokens):
                ids.append(int(token[0]))
                now = time.perf_counter()
                if len(ids) == 1:
                    first = now
                    figures["first token after"] = f"{1e3 * (now - began):,.0f} ms"
                else:
                    figures["then"] = f"{(len(ids) - 1) / max(now - first, 1e-9):,.1f} tokens/s"
                figures |= {"tokens written": f"{len(ids)}", "KV cache": f"{cache.nbytes:,} bytes"}
                yield Told(model.chat.decode(ids), dict(figures), note)
        pictures = _pictures(model, batch)
    yield Told(model.chat.decode(ids), figures, note, pictures)


def _unknown(model: Model, question: str) -> str:
    found = model.chat.unknown(question)
    examples = list(dict.fromkeys(found))[:6]
    return unknown_words(len(found), 1, examples, model.chat.unknown_token) if found else ""


def _pictures(model: Model, batch: Batch) -> Pictures:
    frames = clip_frames(batch, 0)
    seconds = batch.frame_time_BT[0][batch.frame_mask_BT[0]].cpu().numpy()
    gaze = merged = tokens = None
    if model.vlm.connector.wants_gaze:
        (maps,) = gaze_maps(model.vlm, batch)
        gaze = lit(frames, maps.weights_TLYX.mean(1))
    if not model.vlm.merger.changes_nothing:
        (found,) = merge_maps(model.vlm, batch)
        merged, tokens = coloured(frames, found), found.kept_T
    return Pictures(seconds, frames, gaze, merged, tokens)


def in_a_thread(make: Callable[[], Iterator[T]]) -> Iterator[T]:
    """What an iterator gives, all of it computed in one thread, which ends when the caller stops listening.

    A web server takes each step of a generator in another thread, but torch's modes (inference, autocast) belong to
    the thread that began them.
    """
    steps: queue.Queue[tuple[str, T | BaseException | None]] = queue.Queue()
    left = threading.Event()

    def work() -> None:
        try:
            for step in make():
                if left.is_set():
                    return
                steps.put(("step", step))
            steps.put(("end", None))
        except BaseException as error:  # goes to the caller
            steps.put(("error", error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            kind, value = steps.get()
            if kind == "end":
                return
            if kind == "error":
                raise value  # type: ignore[misc]
            yield value  # type: ignore[misc]
    finally:
        left.set()
        thread.join()
