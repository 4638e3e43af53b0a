"""The config.json of an exported folder."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class HvlmConfig(PretrainedConfig):
    """rooms: {room: its settings with ``_target_``}. chat: the tokenizer, ``Chat.to_json``. order, num_frames: as
    trained. adapter: the name of the adapter's weights that are used. source_configs: {room: what its source said
    of the model}, see ``hvlm.contracts.FromSource``."""

    model_type = "hvlm"

    def __init__(
        self,
        rooms: dict[str, Any] | None = None,
        chat: str | None = None,
        order: str = "question_first",
        num_frames: int = 8,
        adapter: str = "all",
        source_configs: dict[str, Any] | None = None,
        **other: Any,
    ):
        super().__init__(**other)
        self.rooms, self.chat, self.order, self.num_frames = rooms or {}, chat, order, num_frames
        self.adapter, self.source_configs = adapter, source_configs or {}
