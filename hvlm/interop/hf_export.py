"""A trained model as a Hugging Face folder, and back.

    import hvlm.interop.hf_export                                    # registers the architecture
    from transformers import AutoModel, AutoProcessor
    model = AutoModel.from_pretrained("folder")        # or a hub id
    model.answer("clip.mp4", "what color is the ring ?")
    model.answer(frames, "what color is the ring ?")   # frames: uint8 [T, 3, H, W], or normalised floats

``model(**inputs)`` and ``model.generate(**inputs)`` take what the processor gives (``hvlm.interop.hf_processor``).

The folder holds config.json (the resolved rooms), model.safetensors, the tokenizer with its chat template,
generation_config.json and README.md, a model card with the run's own figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor, GenerationConfig
from transformers.generation import BaseStreamer
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.modeling_outputs import CausalLMOutput
from transformers.modeling_utils import ModuleUtilsMixin
from transformers.utils.generic import can_return_tuple

from hvlm import assembly
from hvlm.config.rooms import OF_A_MODEL
from hvlm.errors import UserError
from hvlm.evaluation.generate import generate, generate_ids
from hvlm.evaluation.sampling import GREEDY, Sampling
from hvlm.interop.hf_arguments import check_config, device_of, dtype_of, with_attention
from hvlm.interop.hf_card import CARD, figures_of, model_card
from hvlm.interop.hf_config import HvlmConfig
from hvlm.interop.hf_hub import FromHub, OnTheHub, found, hub_arguments
from hvlm.interop.hf_inputs import Clip, Places, batch_of, clip_of, clips_of, rows_of
from hvlm.interop.hf_processor import HvlmProcessor
from hvlm.interop.hf_template import tokenizer_with_template
from hvlm.io.checkpoint import load_into
from hvlm.model import VLM
from hvlm.rebuild import OFF, rebuild
from hvlm.text.chat import Chat
from hvlm.text.unknown import warn_of_question

WEIGHTS = "model.safetensors"
NO_ADAPTER = {"_target_": "hvlm.adapter.none.NoAdapter"}


class HvlmModel(ModuleUtilsMixin, OnTheHub, nn.Module):
    """The backbone with its tokenizer.

    Attributes:
        vlm: the model. chat: the tokenizer and template.
        card: the text of README.md, with the figures of these weights; None: ``save_pretrained`` writes one without.
    """

    config_class = HvlmConfig

    def __init__(self, config: HvlmConfig, vlm: VLM | None = None):
        """vlm: the model where it is there already; else it is built, with random weights."""
        super().__init__()
        self.config = config
        check_config(config)
        self.chat = Chat.from_json(config.chat)
        self.card: str | None = None
        if vlm is not None:
            self.vlm = vlm
            return
        settings = {**config.rooms, "order": config.order, "domain": {"adapter": config.adapter}}
        stored = {"config": config.rooms, "source_configs": config.source_configs}
        self.vlm = assembly.model(settings, self.chat, weights=False, stored=stored)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        config: HvlmConfig | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device_map: str | torch.device | dict[str, str | torch.device] | None = None,
        attn_implementation: str | None = None,
        adapter_kwargs: dict[str, Any] | None = None,
        **hub: Unpack[FromHub],
    ) -> HvlmModel:
        """Load an exported model from a folder or a hub id, in evaluation mode.

        Args:
            path: the folder, or the hub's id.
            config: instead of the folder's config.json.
            dtype: of the weights: a floating-point dtype or its name; None or ``auto``: as they are stored. Below
                float32, ``answer`` computes under autocast.
            torch_dtype: the older name of ``dtype``.
            device_map: where the model goes: one device, ``{"": device}``, or ``auto`` (the GPU if there is one); None:
                the CPU. A model is never split.
            attn_implementation: of the language model: ``auto`` (ours) or ``sdpa``; None: as configured.
            adapter_kwargs: ``AutoModel`` passes it on; there are no adapters of peft's.
            hub: where the folder is, ``hvlm.interop.hf_hub.FromHub``.

        Raises:
            UserError: no such folder, here or on the hub; weights that are missing, left over or of other shapes; rooms
                that are none of this package.
            TypeError: an argument of another name.
            ValueError: an argument that cannot be honoured.
        """
        from safetensors.torch import load_file
        from transformers.utils import cached_file

        if set(adapter_kwargs or ()) - {"revision", "token"}:  # which AutoModel adds itself where peft is installed
            raise ValueError(f"adapter_kwargs={adapter_kwargs}: adapters of peft cannot be loaded into this model")
        where = hub_arguments(hub)
        wanted, device = dtype_of(torch_dtype if dtype is None else dtype), device_of(device_map)
        with found(path):
            config = HvlmConfig.from_pretrained(path, **where) if config is None else config
        model = cls(with_attention(config, attn_implementation or config._attn_implementation))
        with found(path):
            weights = cached_file(str(path), WEIGHTS, **where)
        state = load_file(weights)
        for name, source in _shared(model.vlm).items():
            state.setdefault(name, state[source])
        load_into(model.vlm, state, path)
        for name, parameter in model.vlm.named_parameters():  # buffers, as running statistics, keep their digits
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(wanted or state[name].dtype)
        card = cached_file(str(path), CARD, **where, _raise_exceptions_for_missing_entries=False)
        model = model.to(device).eval()
        model.card = None if card is None else Path(card).read_text(encoding="utf-8")
        return model

    def train(self, mode: bool = True) -> HvlmModel:
        """Weights that are trained are no longer those whose figures the card has: a new one is written."""
        self.card = None if mode else self.card
        return super().train(mode)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the whole folder. A README.md that is there already stays."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if "kvcache" in self.config.rooms:
            self.config.rooms["kvcache"] = self.vlm.kvcache.settled(self.config.rooms["kvcache"])
        adapter, left_out = self.vlm.adapter, ()
        if adapter.merged is not None:  # it is in the weights
            left_out = ("adapter.",)
            self.config.rooms["adapter"] = dict(NO_ADAPTER)
            self.config.source_configs = {**self.config.source_configs, "adapter": None}
        elif adapter.names:
            self.config.rooms["adapter"] = adapter.settled(self.config.rooms["adapter"])
            self.config.adapter = adapter.used or OFF
        self.config.save_pretrained(folder)
        skipped = set(_shared(self.vlm))
        held = {n: t for n, t in self.vlm.state_dict().items() if n not in skipped and not n.startswith(left_out)}
        state = {n: t.detach().cpu().contiguous() for n, t in held.items()}
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
        tokenizer_with_template(self.chat).save_pretrained(folder)
        end = self.chat.end_id
        ends = sorted(self.chat.end_ids, key=lambda index: (index != end, index))
        settings = {"eos_token_id": end if len(ends) == 1 else ends, "pad_token_id": end}
        GenerationConfig(**settings, do_sample=False, max_new_tokens=32).save_pretrained(folder)
        if not (folder / CARD).exists():
            card = model_card(folder.resolve().name, self.config) if self.card is None else self.card
            (folder / CARD).write_text(card, encoding="utf-8")

    def answer(self, video: Tensor | Any, question: str, max_new_tokens: int = 32, *, fps: float = 1.0) -> str:
        """What the model says about a clip, greedily.

        Args:
            video: a tensor is taken as it is: [T, 3, H, W] of the size that the model was trained with, evenly sampled,
                uint8 pixels, or floating point and then normalised with ImageNet's statistics, as
                ``hvlm.image.transform`` does. Of a file, a folder of stills, a list of pictures or a numpy array,
                frames are sampled and scaled as in training.
            question: as a user writes it; special tokens in it are text.
            max_new_tokens: where to stop at the latest.
            fps: pictures a second of a folder, a list or an array.

        Raises:
            ValueError: frames of another shape or size, or normalised ones where the merger wants optical flow.
            UserError: a file or folder that cannot be read.
        """
        warn_of_question(self.chat, question)
        rows = [(*self.chat.encode(question, "", order=self.config.order), {})]
        batch = batch_of(self.vlm, self.chat.pad_id, [self._clip(video, fps)], rows)
        with self._computing():
            return generate(self.vlm, self.chat, batch, max_new_tokens)[0]

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        video_seconds: Tensor | None = None,
        video_mask: Tensor | None = None,
        answer_at: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> CausalLMOutput:
        """Logits of every next token of conversations about videos, and the loss.

        Args:
            input_ids: int64 [K, S], conversations as the chat template writes them, with or without answers.
            attention_mask: [K, S], 0 where a row is padding; None: nowhere.
            pixel_values_videos: [1, T, 3, H, W], one video for all rows, or [K, T, 3, H, W], one for each, as
                ``answer`` takes tensors; None: no row has one.
            video_seconds, video_mask: of the frames, [1 or K, T]; 0 in the mask where a video is padding. None: a frame
                each second, and no padding.
            answer_at: int64 [K], how many ids stand before the header of each row's first answer; None: it is looked
                for.
            labels: int64 [K, S], ``input_ids`` where a token is to be learned, else -100. What is to be learned is
                hidden from visual tokens, so that nothing leaks; without labels that is all after the first header.

        Returns:
            logits: float32 [K, S, vocabulary], of the token that follows each of ``input_ids``. The video stands among
                them: what follows the last token before it was said without it, and is not learned, as in training.
            loss: mean cross-entropy over the labels, None without them.

        Raises:
            ValueError: shapes that do not fit, rows without the header of an answer, or a model that does not write.
        """
        if not self.vlm.head.writes:
            raise ValueError(f"{type(self.vlm.head).__name__} gives no logits of tokens; use head=text")
        seen = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        rows = rows_of(self.places, input_ids, seen, labels, answer_at)
        clips = self._clips(pixel_values_videos, video_seconds, video_mask, len(rows))
        batch = batch_of(self.vlm, self.chat.pad_id, clips, rows)
        seen_KS, read_KS = seen.bool().to(self.device), batch.attention_mask_KS
        with self._computing():
            sequence = self.vlm.sequence(batch)
            states = self.vlm.hidden(sequence, None if self.training else self.vlm.forgetful())
            place_KS = sequence.text_place_KS
            states = states.gather(1, place_KS.unsqueeze(-1).expand(-1, -1, states.shape[-1]))
            as_given = states.new_zeros(*input_ids.shape, states.shape[-1])
            as_given[seen_KS] = states[read_KS]
            logits = self.vlm.head.logits(as_given)
        if labels is None:
            return CausalLMOutput(logits=logits)
        after_video_KS = place_KS == sequence.visual + batch.visual_at_K.unsqueeze(1)
        unlearned_KS = ~seen_KS
        unlearned_KS[seen_KS] = after_video_KS[read_KS]
        learned = labels.to(self.device).masked_fill(unlearned_KS, -100)
        return CausalLMOutput(loss=ForCausalLMLoss(logits, learned, logits.shape[-1]), logits=logits)

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        video: Tensor | Any = None,
        pixel_values_videos: Tensor | None = None,
        video_seconds: Tensor | None = None,
        video_mask: Tensor | None = None,
        answer_at: Tensor | None = None,
        fps: float = 1.0,
        max_new_tokens: int = 32,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
        streamer: BaseStreamer | None = None,
    ) -> Tensor:
        """Token ids of the answers to questions about videos, without the questions.

        Args:
            input_ids: int64 [K, S], each row one question as the tokenizer's
                ``apply_chat_template(turns, add_generation_prompt=True)`` writes it.
            attention_mask: [K, S], 0 where a row is padding; None: nowhere.
            video, fps: one for all rows, as ``answer`` takes it; or, instead,
            pixel_values_videos, video_seconds, video_mask: as ``forward`` takes them.
            answer_at: see ``forward``.
            max_new_tokens: where to stop at the latest.
            do_sample: draw words by ``temperature``, ``top_p`` and ``seed``; else the likeliest is taken.
            streamer: of ``transformers``; gets ``input_ids``, then each word as it is chosen. Most take one row only.

        Returns:
            int64 [K, N], N <= ``max_new_tokens``; rows that ended earlier go on with the end token.

        Raises:
            ValueError: ids of another shape, or rows that do not end with the header of an answer.
        """
        if (video is None) == (pixel_values_videos is None):
            raise ValueError("expected one of video and pixel_values_videos")
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        rows = rows_of(self.places, input_ids, mask, None, answer_at)
        if not all(self.places.asks(ids) for ids, *_ in rows):
            raise ValueError(
                "input_ids: a row does not end with the header of an answer; use add_generation_prompt=True"
            )
        rows = [(ids, [False] * len(ids), *rest) for ids, _, *rest in rows]  # all that is there may be known
        clips = self._clips(pixel_values_videos, video_seconds, video_mask, len(rows)) or [self._clip(video, fps)]
        batch = batch_of(self.vlm, self.chat.pad_id, clips, rows)
        choose = Sampling(temperature, top_p, seed) if do_sample else GREEDY
        if streamer is not None:
            streamer.put(input_ids.cpu())
        told = None if streamer is None else lambda token_K: streamer.put(token_K.cpu())
        with self._computing():
            written_KN = generate_ids(self.vlm, self.chat, batch, max_new_tokens, choose, told)
        if streamer is not None:
            streamer.end()
        return written_KN

    @cached_property
    def places(self) -> Places:
        """Where a row's answer begins, and where its video stands."""
        return Places(self.chat, self.config.order)

    def _clip(self, video: Tensor | Any, fps: float) -> Clip:
        return clip_of(video, self.config.num_frames, self.vlm.vision.image_size, fps)

    def _clips(self, pixels: Tensor | None, seconds: Tensor | None, mask: Tensor | None, rows: int) -> list[Clip]:
        if pixels is None:
            return []
        return clips_of(pixels, seconds, mask, rows, self.config.num_frames, self.vlm.vision.image_size)

    def _computing(self) -> torch.autocast:
        weight = next(self.parameters())
        return torch.autocast(weight.device.type, weight.dtype, enabled=weight.dtype != torch.float32)


def export(path: str | Path, cfg: Mapping[str, Any], metadata: Mapping[str, Any], out: Path) -> Path:
    """Write the checkpoint at ``path``, which holds ``metadata``, as a Hugging Face folder ``out`` of the model that
    ``cfg`` describes. Returns it."""
    refuse_to_overwrite(out)
    rooms = {name: dict(cfg[name]) for name in OF_A_MODEL}
    frames, adapter = cfg["dataset"]["num_frames"], cfg["domain"]["adapter"]
    vlm, _ = rebuild(path, cfg)
    sources = assembly.source_configs(vlm)
    config = HvlmConfig(rooms, metadata["chat"], cfg["order"], frames, adapter, sources, architectures=["HvlmModel"])
    model, here = HvlmModel(config, vlm), Path(path)
    model.card = model_card(here.name, config, cfg["seed"], figures_of(here))
    model.save_pretrained(out)
    return out


def save(vlm: VLM, chat: Chat, rooms: Mapping[str, Any], num_frames: int, adapter: str, out: str | Path) -> Path:
    """Write a model that a program holds as a Hugging Face folder ``out``, with a card. Returns it."""
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"out={out}: is a file; name a folder")
    refuse_to_overwrite(out)
    sources = assembly.source_configs(vlm)
    config = HvlmConfig(
        dict(rooms), chat.to_json(), vlm.order, num_frames, adapter, sources, architectures=["HvlmModel"]
    )
    try:
        HvlmModel(config, vlm).save_pretrained(out)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"out={out}: cannot be written ({why}); name another folder") from error
    return out


def refuse_to_overwrite(out: Path) -> None:
    """``UserError`` where a model stands in the folder already."""
    there = [name for name in (WEIGHTS, "config.json") if (out / name).exists()]
    if there:
        raise UserError(f"out={out}: holds {there[0]} already; name another folder, or delete that one")


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
AutoModelForImageTextToText.register(HvlmConfig, HvlmModel)
AutoProcessor.register(HvlmConfig, HvlmProcessor)
