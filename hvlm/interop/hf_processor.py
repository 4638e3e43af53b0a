"""From a video file and a conversation to what an exported model generates from, and from its ids to text."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AutoTokenizer, BatchFeature, PreTrainedTokenizerFast

from hvlm.data.given import frames_given
from hvlm.errors import UserError
from hvlm.interop.hf_config import HvlmConfig

Turns = Sequence[Mapping[str, Any]]
MEDIA = {"video": ("video", "path", "url"), "image": ("image", "path", "url")}


class HvlmProcessor:
    """Conversations as transformers writes them, about one video or picture.

    Attributes:
        config: the folder's; it says how many frames are read and of what size. tokenizer: with its chat template.
    """

    def __init__(self, config: HvlmConfig, tokenizer: PreTrainedTokenizerFast):
        self.config, self.tokenizer = config, tokenizer

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        revision: str | None = None,
        subfolder: str = "",
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        trust_remote_code: bool | None = None,
        _from_auto: bool = False,
    ) -> HvlmProcessor:
        """Load from a folder or a hub id; the arguments are those of ``HvlmModel.from_pretrained``."""
        hub = {
            "revision": revision, "subfolder": subfolder, "cache_dir": cache_dir, "force_download": force_download,
            "local_files_only": local_files_only, "token": token,
        }  # fmt: skip
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, **hub)
        return cls(HvlmConfig.from_pretrained(path, **hub), tokenizer)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and the tokenizer, which is all that ``from_pretrained`` reads."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        commit_message: str = "Upload processor",
        endpoint: str | None = None,
    ) -> str:
        """Upload what ``save_pretrained`` writes; see ``HvlmModel.push_to_hub``."""
        return upload(self, repo_id, private, token, revision, commit_message, endpoint)

    def apply_chat_template(self, conversation: Turns | Sequence[Turns], *, fps: float = 1.0) -> BatchFeature:
        """What ``HvlmModel.generate`` takes, of one conversation or of several about the same video.

        Args:
            conversation: turns ``{"role", "content"}``, the last one the user's. A content is a text, or a list of
                ``{"type": "text", "text": ...}`` and ``{"type": "video", "path": ...}`` (or ``image``): a file, or
                whatever ``hvlm.data.given.KINDS`` lists.
            fps: pictures a second of what carries no time.

        Returns:
            input_ids, attention_mask: int64 [K, S], padded at the right. pixel_values_videos: uint8 [1, T, 3, H, W].
            video_seconds: float32 [1, T].

        Raises:
            UserError: no video or several, a content of another form, a video that cannot be read.
        """
        several = bool(conversation) and not isinstance(conversation[0], Mapping)
        texts, videos = [], []
        for turns in conversation if several else [conversation]:
            said = [{"role": turn["role"], "content": _text(turn["content"], videos)} for turn in turns]
            if not said or said[-1]["role"] != "user":
                raise UserError("conversation: its last turn is not the user's; nothing is asked")
            texts.append(self.tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False))
        distinct = [video for i, video in enumerate(videos) if not any(_same(video, other) for other in videos[:i])]
        if len(distinct) != 1:
            raise UserError(f"conversation: {len(distinct)} videos; expected one, that all questions are about")
        return BatchFeature({**self._ids(texts), **self._pixels(distinct[0], fps)})

    def batch_decode(self, ids: Tensor) -> list[str]:
        """The texts of int64 [K, N] that ``generate`` gave, without special tokens."""
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def _ids(self, texts: list[str]) -> dict[str, Tensor]:
        rows = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        longest = max(map(len, rows))
        pad = self.tokenizer.pad_token_id or 0
        return {
            "input_ids": torch.tensor([row + [pad] * (longest - len(row)) for row in rows]),
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows]),
        }

    def _pixels(self, video: Any, fps: float) -> dict[str, Tensor]:
        side = self.config.rooms["vision"]["image_size"]
        frames, seconds = frames_given(video, self.config.num_frames, (side, side), fps)
        return {"pixel_values_videos": torch.from_numpy(frames)[None], "video_seconds": torch.from_numpy(seconds)[None]}


def _text(content: Any, videos: list[Any]) -> str:
    """The text of a turn; its media are added to ``videos``."""
    if isinstance(content, str):
        return content
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text":
            texts.append(part["text"])
            continue
        given = [part[name] for name in MEDIA.get(kind, ()) if part.get(name) is not None]
        if len(given) != 1:
            raise UserError(f"conversation: a content {part!r:.80}; expected type text, video or image, and what it is")
        videos.append([given[0]] if kind == "image" else given[0])
    return "\n".join(texts)


def _same(one: Any, other: Any) -> bool:
    """The same object, or the same path."""
    if one is other:
        return True
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other) == 1:
        return _same(one[0], other[0])
    return isinstance(one, str | Path) and isinstance(other, str | Path) and str(one) == str(other)


class Saved(Protocol):
    """What can be uploaded."""

    def save_pretrained(self, folder: str | Path) -> None: ...


def upload(
    what: Saved,
    repo_id: str,
    private: bool | None,
    token: str | None,
    revision: str | None,
    commit_message: str,
    endpoint: str | None,
) -> str:
    """Upload the files of ``what`` as one commit; see ``HvlmModel.push_to_hub``. Returns the commit's address."""
    from huggingface_hub import HfApi

    hub = HfApi(endpoint=endpoint, token=token)
    hub.create_repo(repo_id, private=private, exist_ok=True)
    if revision is not None:
        hub.create_branch(repo_id, branch=revision, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        what.save_pretrained(folder)
        info = hub.upload_folder(repo_id=repo_id, folder_path=folder, revision=revision, commit_message=commit_message)
    return str(info.commit_url)
