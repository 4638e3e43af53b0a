"""A trained model as a Hugging Face folder, and back.

    import hvlm.interop.hf_export                                    # registers the architecture
    from transformers import AutoModel, AutoTokenizer
    model = AutoModel.from_pretrained("folder")        # or a hub id
    model.answer(frames, "what color is the ring ?")   # frames: uint8 [T, 3, H, W], or transformed ones

The folder holds config.json (the resolved rooms), model.safetensors, the tokenizer with its chat template,
generation_config.json and README.md, a model card with the run's own figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, GenerationConfig, PretrainedConfig

from hvlm import build
from hvlm.chat import Chat
from hvlm.config.rooms import OF_A_MODEL
from hvlm.data.collate import Item, collate
from hvlm.data.optical_flow import motion_energy
from hvlm.evaluation import results
from hvlm.evaluation.evaluate import RESULTS
from hvlm.evaluation.generate import generate
from hvlm.evaluation.report import table
from hvlm.io.checkpoint import load_into, load_weights
from hvlm.model import VLM

WEIGHTS = "model.safetensors"
TEMPLATES = {  # as Chat writes a conversation, in the language of chat templates
    "chatml": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "tiny": (
        "{% for m in messages %}{% if m['role'] == 'user' %}<|user|> {{ m['content'] }}{% else %}<|assistant|> "
        "{{ m['content'] }}<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    ),
}


class HvlmConfig(PretrainedConfig):
    """rooms: {room: its settings with ``_target_``}. chat: the tokenizer, ``Chat.to_json``. order, num_frames: as
    trained. adapter: the name of the adapter's weights that are used."""

    model_type = "hvlm"

    def __init__(
        self,
        rooms: dict[str, Any] | None = None,
        chat: str | None = None,
        order: str = "question_first",
        num_frames: int = 8,
        adapter: str = "all",
        **other: Any,
    ):
        super().__init__(**other)
        self.rooms, self.chat, self.order, self.num_frames = rooms or {}, chat, order, num_frames
        self.adapter = adapter


class HvlmModel(nn.Module):
    """The backbone with its tokenizer. ``vlm`` is the model, ``chat`` the tokenizer and template."""

    config_class = HvlmConfig

    def __init__(self, config: HvlmConfig):
        super().__init__()
        self.config = config
        self.chat = Chat.from_json(config.chat)
        settings = {**config.rooms, "order": config.order, "domain": {"adapter": config.adapter}}
        self.vlm: VLM = build.model(settings, self.chat, weights=False)

    @classmethod
    def from_pretrained(cls, path: str, *, config: HvlmConfig | None = None, **_: Any) -> HvlmModel:
        """From a folder or a hub id. Raises ``UserError`` where weights are missing, left over or of other shapes."""
        from safetensors.torch import load_file
        from transformers.utils import cached_file

        config = HvlmConfig.from_pretrained(path) if config is None else config
        model = cls(config)
        state = load_file(cached_file(path, WEIGHTS))
        for name, source in _shared(model.vlm).items():
            state.setdefault(name, state[source])
        load_into(model.vlm, state, path)
        return model.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Everything but the model card."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.config.save_pretrained(folder)
        skipped = set(_shared(self.vlm))
        state = {n: t.detach().cpu().contiguous() for n, t in self.vlm.state_dict().items() if n not in skipped}
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
        tokenizer = self.chat.to_fast()
        tokenizer.chat_template = TEMPLATES[self.chat.template]
        tokenizer.save_pretrained(folder)
        end = self.chat.end_id
        GenerationConfig(eos_token_id=end, pad_token_id=end, do_sample=False, max_new_tokens=32).save_pretrained(folder)

    def answer(self, frames_TCHW: Tensor, question: str, max_new_tokens: int = 32) -> str:
        """What the model says about a clip: uint8 [T, 3, H, W] of the size it was trained with, evenly sampled."""
        size = tuple(frames_TCHW.shape[-2:])
        time = torch.arange(len(frames_TCHW), dtype=torch.float32).numpy()
        row = (*self.chat.encode(question, "", order=self.config.order), {})
        frames, grid = frames_TCHW.cpu().numpy(), build.motion_grid(self.vlm)
        motion = None if grid is None else motion_energy(frames, grid)
        batch = collate([Item(frames, time, [row], motion=motion)], pad_id=self.chat.pad_id, size=size, motion=grid)
        return generate(self.vlm, self.chat, batch, max_new_tokens)[0]


def export(path: str | Path, cfg: Mapping[str, Any], chat: str, out: Path) -> Path:
    """Write the checkpoint at ``path``, trained with ``cfg``, as a Hugging Face folder ``out``. Returns it."""
    rooms = {name: dict(cfg[name]) for name in OF_A_MODEL}
    frames, adapter = cfg["dataset"]["num_frames"], cfg["domain"]["adapter"]
    model = HvlmModel(HvlmConfig(rooms, chat, cfg["order"], frames, adapter, architectures=["HvlmModel"]))
    load_into(model.vlm, load_weights(path), path)
    model.save_pretrained(out)
    (out / "README.md").write_text(model_card(path, cfg, rooms), encoding="utf-8")
    return out


def model_card(path: str | Path, cfg: Mapping[str, Any], rooms: Mapping[str, Mapping[str, Any]]) -> str:
    """The model card: rooms, how to load it, and the figures of the run that the checkpoint is from, if it has any."""
    here = Path(path)
    figures = here / RESULTS if here.is_dir() else here.parent.parent.parent / RESULTS
    words = [f"{name}={node['_target_'].split('.')[-2]}" for name, node in rooms.items()]
    lines = ["---", "library_name: transformers", "pipeline_tag: video-text-to-text", "tags: [hvlm]", "---", ""]
    lines += [f"# {here.name}", "", f"Made with hvlm: {' '.join(words)} order={cfg['order']} seed={cfg['seed']}.", ""]
    lines += ["```python", "import hvlm.interop.hf_export", "from transformers import AutoModel", ""]
    lines += ["model = AutoModel.from_pretrained(FOLDER)", "print(model.answer(frames, QUESTION))", "```", ""]
    side = cfg["vision"]["image_size"]
    lines += [
        f"`frames`: uint8 [T, 3, {side}, {side}], {cfg['dataset']['num_frames']} of them evenly over the clip.",
        "",
    ]
    if figures.exists():
        lines += ["## Figures of its own run", "", *table(results.read(figures)), ""]
    else:
        lines += ["This run was not evaluated.", ""]
    return "\n".join(lines)


def _shared(vlm: VLM) -> dict[str, str]:
    """{name: the name that comes first} of tensors that are one (tied output layers): stored once."""
    first: dict[int, str] = {}
    shared = {}
    for name, tensor in vlm.state_dict(keep_vars=True).items():
        owner = first.setdefault(id(tensor), name)
        if owner != name:
            shared[name] = owner
    return shared


AutoConfig.register(HvlmConfig.model_type, HvlmConfig)
AutoModel.register(HvlmConfig, HvlmModel)
