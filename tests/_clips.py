"""Small real data for the reader's tests: H.264 clips, shards, and a chat that needs no vocabulary."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from hvlm.data.shard_index import write_manifest, write_shard


class Encoded(NamedTuple):
    ids: list[int]
    loss_mask: list[bool]
    visual_at: int
    context: int = 0


class FakeChat:
    """One id per character; the answer starts where the visual tokens stand (question first)."""

    pad_id = 0
    unknown_token = unk_id = None

    def unknown(self, prompt: str, answer: str = "") -> list[str]:
        return []

    def encode(self, prompt: str, answer: str, loss: str, order: str, before=(), system=None) -> Encoded:
        prompt = "".join([system or "", *(text for exchange in before for text in exchange), prompt])
        ids = [ord(c) for c in prompt + answer]
        scored = [loss == "all" or i >= len(prompt) for i in range(len(ids))]
        return Encoded(ids, scored, len(prompt) if order == "question_first" else 0)


def pictures(
    count: int, height: int = 64, width: int = 64, colour: tuple[int, int, int] = (255, 0, 0)
) -> list[np.ndarray]:
    """Frames whose brightness tells their number; ``colour`` fills the top left quarter."""
    out = []
    for i in range(count):
        frame = np.full((height, width, 3), 10 + i * 240 // max(count, 16), np.uint8)
        frame[: height // 2, : width // 2] = colour
        out.append(frame)
    return out


def encode(frames: list[np.ndarray], pts: list[int] | None = None, fps: int = 8) -> bytes:
    """An mp4; ``pts`` in frames, for a variable frame rate."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=fps, options={"crf": "10"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.thread_count = "yuv420p", 1
        for i, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = i if pts is None else pts[i]
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return buffer.getvalue()


def rotate_flag(video: bytes) -> bytes:
    """The same mp4, flagged to be shown a quarter turn clockwise (the matrix in its track header)."""
    at = video.index(b"tkhd") + 4 + 40
    matrix = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    return video[:at] + matrix + video[at + 36 :]


def sample(key: str, domain: str = "general") -> dict:
    """JSON of a 16-frame, 2-second clip with one moving object, a flash in encoded frame 5, and texts about them."""
    tries = [{"options": ["red", "blue", "green", "cyan"], "gold": 0}] * 4
    questions = [
        {"id": "q0", "task": "shape", "question": "what shape ?", "answer": "circle", "rejected": "star"},
        {"id": "q1", "task": "colour", "question": "what color ?", "answer": "red", "rejected": "blue"},
        {"id": "q2", "task": "flash", "question": "frame four ?", "answer": "yes", "rejected": "no"},
    ]
    evidence = ([[0.0, 2.0]], [[0.0, 2.0]], [[0.5, 0.625]])
    return {
        "key": key,
        "domain": domain,
        "set": "easy",
        "outline": False,
        "size": 64,
        "fps": 8.0,
        "frames": 16,
        "duration": 2.0,
        "objects": [{"shape": "circle", "colour": "red", "track": [[8 + 3 * i, 20, 9] for i in range(16)]}],
        "flashes": [{"shape": "ring", "colour": "blue", "frame": 5, "x": 50, "y": 50, "r": 2.0}],
        "captions": [{"prompt": "describe .", "text": "a red circle", "evidence": [[0.0, 2.0]]}],
        "questions": [q | {"tries": tries, "evidence": e} for q, e in zip(questions, evidence, strict=True)],
    }


VIDEO = encode(pictures(16))


def dataset(folder: Path, clips: dict[str, int], *, bad: dict[str, bytes] | None = None, texts: int = 0) -> Path:
    """A folder with a manifest: split → number of clips, in shards of 8; domains alternate between general and sports.

    ``bad``: key → bytes that stand in place of its video.
    """
    shards = {}
    for split, count in clips.items():
        for first in range(0, count, 8):
            keys = [f"{split}{i:04d}" for i in range(first, min(first + 8, count))]
            domains = ["sports" if int(key[-4:]) % 2 else "general" for key in keys]
            rows = [
                (key, {"json": json.dumps(sample(key, domain)).encode(), "mp4": (bad or {}).get(key, VIDEO)})
                for key, domain in zip(keys, domains, strict=True)
            ]
            name = f"{split}-{first // 8:06d}.tar"
            shards[name] = write_shard(folder / name, rows, split, domains)
    if texts:
        chats = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
        rows = [(f"t{i}", {"json": json.dumps({"key": f"t{i}", "messages": chats}).encode()}) for i in range(texts)]
        shards["text-000000.tar"] = write_shard(folder / "text-000000.tar", rows, "text", ["text"] * texts)
    write_manifest(folder, {}, shards, [])
    return folder
