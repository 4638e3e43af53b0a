"""From a video file and a conversation to what an exported model reads, and from its ids to text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, BatchFeature, PreTrainedTokenizerFast
from transformers.processing_utils import ProcessorMixin

from hvlm.data.given import frames_given
from hvlm.errors import UserError
from hvlm.interop.hf_config import HvlmConfig
from hvlm.interop.hf_hub import FromHub, OnTheHub, found, hub_arguments
from hvlm.interop.hf_inputs import Places
from hvlm.text.chat import Chat

Turns = Sequence[Mapping[str, Any]]
MEDIA = {"video": ("video", "path", "url"), "image": ("image", "path", "url")}


class HvlmProcessor(OnTheHub, ProcessorMixin):
    """Conversations as transformers writes them, about videos or pictures.

    Attributes:
        config: the folder's; it says how many frames are read and of what size. tokenizer: with its chat template.
    """

    pushed = "processor"

    def __init__(self, config: HvlmConfig, tokenizer: PreTrainedTokenizerFast):
        super().__init__(tokenizer, chat_template=tokenizer.chat_template)
        self.config = config

    @classmethod
    def from_pretrained(cls, path: str | Path, **hub: Unpack[FromHub]) -> HvlmProcessor:
        """Load from a folder or a hub id; the arguments are ``hvlm.interop.hf_hub.FromHub``."""
        where = hub_arguments(hub)
        with found(path):
            config = HvlmConfig.from_pretrained(path, **where)
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, **where)
        return cls(config, tokenizer)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and the tokenizer, which is all that ``from_pretrained`` reads."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: Any = None,
        *,
        fps: float = 1.0,
        padding: bool = True,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """What ``HvlmModel`` takes, of texts about videos or pictures.

        Args:
            text: one or several, as the chat template writes them (``apply_chat_template(..., tokenize=False)``).
            videos: one for all texts or, in a list, one for each: files, or whatever ``hvlm.data.given.KINDS`` lists. A
                list of pictures or of arrays [H, W, 3] is one video; of paths or arrays [T, H, W, 3], several.
            images: instead of videos, one picture for all texts or one for each.
            fps: pictures a second of what carries no time.
            padding: at the right, to the longest text.
            return_tensors: ``pt``, as nothing else is read.

        Returns:
            input_ids, attention_mask: int64 [K, S]. pixel_values_videos: uint8 [1 or K, T, 3, H, W]. video_seconds,
            video_mask: float32 and bool [1 or K, T]. Without a text or without videos their part is left out.

        Raises:
            UserError: a video that cannot be read.
            ValueError: another number of videos than of texts, or an argument of another form.
        """
        if return_tensors != "pt":
            raise ValueError(f"return_tensors={return_tensors!r}: expected 'pt'")
        if images is not None and videos is not None:
            raise ValueError("expected one of images and videos: a text is about one of them")
        if text is None and images is None and videos is None:
            raise ValueError("expected text, videos or images")
        given = _several(videos) if images is None else [[image] for image in _flat(images)]
        texts = [text] if isinstance(text, str) else [] if text is None else list(text)
        if texts and len(given) not in (0, 1, len(texts)):
            raise ValueError(f"{len(given)} videos for {len(texts)} texts: expected one for all, or one for each")
        found = {} if text is None else self._ids(texts, padding)
        return BatchFeature(found | (self._pixels(given, fps) if given else {}))

    def apply_chat_template(
        self,
        conversation: Turns | Sequence[Turns],
        *,
        add_generation_prompt: bool = True,
        tokenize: bool = True,
        return_dict: bool = True,
        return_tensors: str = "pt",
        padding: bool = True,
        fps: float = 1.0,
    ) -> BatchFeature | Tensor | str | list[str]:
        """What ``HvlmModel`` takes, of one conversation or of several about the same video or one each.

        Args:
            conversation: turns ``{"role", "content"}``. A content is a text, or a list of
                ``{"type": "text", "text": ...}`` and ``{"type": "video", "path": ...}`` (or ``image``): a file, or
                whatever ``hvlm.data.given.KINDS`` lists.
            add_generation_prompt: an answer is to follow: the last turn is the user's, and the header of the answer
                stands behind it. Else the conversation ends as it is, for ``labels``.
            tokenize: False: the text or texts alone, for ``__call__``; no video is read.
            return_dict: False: ``input_ids`` alone.
            return_tensors, padding, fps: see ``__call__``.

        Returns:
            What ``__call__`` does and answer_at, int64 [K]: how many ids stand before the header of the first answer.

        Raises:
            UserError: no video or another number of them, a content of another form, a video that cannot be read.
        """
        several = bool(conversation) and not isinstance(conversation[0], Mapping)
        texts, first, each = [], [], []
        for turns in conversation if several else [conversation]:
            videos: list[Any] = []
            said = [{"role": turn["role"], "content": _text(turn["content"], videos)} for turn in turns]
            if add_generation_prompt and (not said or said[-1]["role"] != "user"):
                raise UserError("conversation: its last turn is not the user's; nothing is asked")
            texts.append(self._written(said, add_generation_prompt))
            first.append(self._written(_until_answered(said), True))
            each.append(_distinct(videos))
        if not tokenize:
            return texts if several else texts[0]
        shown = _distinct([video for videos in each for video in videos])
        if len(shown) > 1 and all(len(videos) == 1 for videos in each):
            shown = [videos[0] for videos in each]
        elif len(shown) != 1:
            raise UserError(
                f"conversation: {len(shown)} videos; expected one, that all questions are about, or one in each"
            )
        found = self(text=texts, videos=shown, fps=fps, padding=padding, return_tensors=return_tensors)
        if not return_dict:
            return found["input_ids"]
        asked = self.tokenizer(first, **PLAIN)["input_ids"]
        found["answer_at"] = torch.tensor([len(ids) - len(self._header) for ids in asked])
        return found

    def batch_decode(self, ids: Tensor, *, skip_special_tokens: bool = True, **how: Any) -> list[str]:
        """The texts of int64 [K, N] that ``generate`` gave. how: see the tokenizer's."""
        return [self.decode(row, skip_special_tokens=skip_special_tokens, **how) for row in ids]

    def decode(self, ids: Tensor, *, skip_special_tokens: bool = True, **how: Any) -> str:
        """The text of int64 [N], one row of what ``generate`` gave. how: see the tokenizer's."""
        return self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens, **how).strip()

    @cached_property
    def _header(self) -> list[int]:
        return Places(Chat.from_json(self.config.chat), self.config.order).header

    def _written(self, said: list[dict[str, str]], header: bool) -> str:
        return self.tokenizer.apply_chat_template(said, add_generation_prompt=header, tokenize=False)

    def _ids(self, texts: list[str], padding: bool) -> dict[str, Tensor]:
        return dict(self.tokenizer(texts, padding=padding, padding_side="right", return_tensors="pt", **PLAIN))

    def _pixels(self, videos: list[Any], fps: float) -> dict[str, Tensor]:
        side = self.config.rooms["vision"]["image_size"]
        clips = [frames_given(video, self.config.num_frames, (side, side), fps) for video in videos]
        frames, seconds = ([torch.from_numpy(part) for part in parts] for parts in zip(*clips, strict=True))
        shown = [torch.ones(len(part), dtype=torch.bool) for part in seconds]
        named = {"pixel_values_videos": frames, "video_seconds": seconds, "video_mask": shown}
        return {name: pad_sequence(parts, batch_first=True) for name, parts in named.items()}


PLAIN = {"add_special_tokens": False, "return_token_type_ids": False}


def _several(videos: Any) -> list[Any]:
    """A list of videos, of one or of several."""
    if videos is None:
        return []
    if not isinstance(videos, list | tuple):
        return [videos]
    whole = [isinstance(v, str | Path | list | tuple) or getattr(v, "ndim", 3) == 4 for v in videos]
    return list(videos) if all(whole) else [videos]


def _flat(images: Any) -> list[Any]:
    """A list of pictures, of one, of several, or of lists with one each."""
    listed = images if isinstance(images, list | tuple) else [images]
    return [one for image in listed for one in (image if isinstance(image, list | tuple) else [image])]


def _until_answered(said: list[dict[str, str]]) -> list[dict[str, str]]:
    """The turns before the first answer."""
    return said[: next((i for i, turn in enumerate(said) if turn["role"] == "assistant"), len(said))]


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


def _distinct(videos: list[Any]) -> list[Any]:
    return [video for i, video in enumerate(videos) if not any(_same(video, other) for other in videos[:i])]


def _same(one: Any, other: Any) -> bool:
    """The same object, or the same path."""
    if one is other:
        return True
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other) == 1:
        return _same(one[0], other[0])
    return isinstance(one, str | Path) and isinstance(other, str | Path) and str(one) == str(other)
