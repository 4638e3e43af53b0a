"""A trained model as a Hugging Face folder, and back.

    import hvlm.interop.hf_export                                    # registers the architecture
    from transformers import AutoModel, AutoProcessor
    model = AutoModel.from_pretrained("folder")        # or a hub id
    model.answer("clip.mp4", "what color is the ring ?")
    model.answer(frames, "what color is the ring ?")   # frames: uint8 [T, 3, H, W], or normalised floats

The folder holds config.json (the resolved rooms), model.safetensors, the tokenizer with its chat template,
generation_config.json and README.md, a model card with the run's own figures.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from hvlm import assembly
from hvlm.config.rooms import OF_A_MODEL
from hvlm.data.collate import Item, collate
from hvlm.data.given import frames_given
from hvlm.data.optical_flow import motion_energy
from hvlm.errors import UserError
from hvlm.evaluation import results
from hvlm.evaluation.evaluate import RESULTS
from hvlm.evaluation.generate import generate, generate_ids
from hvlm.evaluation.report import table
from hvlm.evaluation.sampling import GREEDY, Sampling
from hvlm.interop.hf_config import HvlmConfig
from hvlm.interop.hf_processor import HvlmProcessor, upload
from hvlm.interop.hf_template import tokenizer_with_template
from hvlm.io.checkpoint import load_into
from hvlm.model import VLM
from hvlm.rebuild import OFF, rebuild
from hvlm.text.chat import ORDERS, Chat
from hvlm.text.unknown import warn_of_question
from hvlm.types import Batch

WEIGHTS = "model.safetensors"
NO_ADAPTER = {"_target_": "hvlm.adapter.none.NoAdapter"}
MOST_FRAMES = 1 << 16  # of a clip


class HvlmModel(nn.Module):
    """The backbone with its tokenizer. ``vlm`` is the model, ``chat`` the tokenizer and template."""

    config_class = HvlmConfig

    def __init__(self, config: HvlmConfig, vlm: VLM | None = None):
        """vlm: the model where it is there already; else it is built, with random weights."""
        super().__init__()
        self.config = config
        _check(config)
        self.chat = Chat.from_json(config.chat)
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
        revision: str | None = None,
        subfolder: str = "",
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        trust_remote_code: bool | None = None,
        adapter_kwargs: dict[str, Any] | None = None,
        _from_auto: bool = False,
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
            revision: branch, tag or commit of a hub id, for configuration and weights alike.
            subfolder, cache_dir, force_download, local_files_only, token: see ``transformers``.
            trust_remote_code, adapter_kwargs, _from_auto: ``AutoModel`` passes these on. No code of a folder is ever
                run, whatever the first says; there are no adapters of peft's.

        Raises:
            UserError: weights that are missing, left over or of other shapes; rooms that are none of this package.
            ValueError: an argument that cannot be honoured.
        """
        from safetensors.torch import load_file
        from transformers.utils import cached_file

        if set(adapter_kwargs or ()) - {"revision", "token"}:  # which AutoModel adds itself where peft is installed
            raise ValueError(f"adapter_kwargs={adapter_kwargs}: adapters of peft cannot be loaded into this model")
        hub = {
            "revision": revision, "subfolder": subfolder, "cache_dir": cache_dir, "force_download": force_download,
            "local_files_only": local_files_only, "token": token,
        }  # fmt: skip
        config = HvlmConfig.from_pretrained(path, **hub) if config is None else config
        wanted, device = _dtype(torch_dtype if dtype is None else dtype), _device(device_map)
        model = cls(_with_attention(config, attn_implementation or config._attn_implementation))
        state = load_file(cached_file(str(path), WEIGHTS, **hub))
        for name, source in _shared(model.vlm).items():
            state.setdefault(name, state[source])
        load_into(model.vlm, state, path)
        for name, parameter in model.vlm.named_parameters():  # buffers, as running statistics, keep their digits
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(wanted or state[name].dtype)
        return model.to(device).eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Everything but the model card."""
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

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        commit_message: str = "Upload model",
        endpoint: str | None = None,
    ) -> str:
        """Upload what ``save_pretrained`` writes, as one commit. Returns its address.

        Args:
            repo_id: OWNER/NAME; made if it is not there.
            private, token, revision, commit_message: see ``huggingface_hub``.
            endpoint: another hub than Hugging Face's own, or than HF_ENDPOINT names.
        """
        return upload(self, repo_id, private, token, revision, commit_message, endpoint)

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
        frames, time = self._frames(video, fps)
        batch = self._batch(frames, time, [(*self.chat.encode(question, "", order=self.config.order), {})])
        with self._computing():
            return generate(self.vlm, self.chat, batch, max_new_tokens)[0]

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        video: Tensor | Any = None,
        pixel_values_videos: Tensor | None = None,
        video_seconds: Tensor | None = None,
        fps: float = 1.0,
        max_new_tokens: int = 32,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Tensor:
        """Token ids of the answers to several questions about one clip, without the questions.

        Args:
            input_ids: int64 [K, S], each row one question as the tokenizer's
                ``apply_chat_template(turns, add_generation_prompt=True)`` writes it.
            attention_mask: [K, S], 0 where a row is padding; None: nowhere.
            video, fps: as ``answer`` takes them; or, instead,
            pixel_values_videos, video_seconds: [1, T, 3, H, W] and [1, T], as ``HvlmProcessor`` gives them.
            max_new_tokens: where to stop at the latest.
            do_sample: draw words by ``temperature``, ``top_p`` and ``seed``; else the likeliest is taken.

        Returns:
            int64 [K, N], N <= ``max_new_tokens``; rows that ended earlier go on with the end token.

        Raises:
            ValueError: ids of another shape, or rows that do not end with the header of an answer.
        """
        if (video is None) == (pixel_values_videos is None):
            raise ValueError("expected one of video and pixel_values_videos")
        if input_ids.dim() != 2 or (attention_mask is not None and attention_mask.shape != input_ids.shape):
            raise ValueError(f"input_ids of shape {tuple(input_ids.shape)}: expected [K, S], with a mask of that shape")
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        rows = [self._asked(ids[seen.bool()].tolist()) for ids, seen in zip(input_ids, mask, strict=True)]
        if pixel_values_videos is not None:
            if pixel_values_videos.dim() != 5 or len(pixel_values_videos) != 1:
                shape = tuple(pixel_values_videos.shape)
                raise ValueError(f"pixel_values_videos of shape {shape}: expected one video, [1, T, 3, H, W]")
            video = pixel_values_videos[0]
        frames, time = self._frames(video, fps)
        if video_seconds is not None:
            if tuple(video_seconds.shape) != (1, len(frames)):
                raise ValueError(f"video_seconds of shape {tuple(video_seconds.shape)}: expected [1, {len(frames)}]")
            time = video_seconds[0].cpu().numpy()
        choose = Sampling(temperature, top_p, seed) if do_sample else GREEDY
        with self._computing():
            return generate_ids(self.vlm, self.chat, self._batch(frames, time, rows), max_new_tokens, choose)

    def _asked(self, ids: list[int]) -> tuple[list[int], list[bool], int, int, dict[str, Any]]:
        """A row of ids, the visual tokens where training has them: before everything, or before the answer's header."""
        order = self.config.order
        probe, at = self.chat.encode_prompt("?", order)
        header = probe[at:] if order == "question_first" else self.chat.encode_prompt("?", "question_first")[0][-1:]
        if not header or ids[-len(header) :] != header:
            raise ValueError(
                "input_ids: a row does not end with the header of an answer; use add_generation_prompt=True"
            )
        return ids, [False] * len(ids), len(ids) - len(header) if order == "question_first" else at, 0, {}

    def _frames(self, video: Tensor | Any, fps: float) -> tuple[Tensor, np.ndarray]:
        """[T, 3, H, W] as the encoder takes them, and their float32 seconds."""
        side = self.vlm.vision.image_size
        if not isinstance(video, Tensor):
            frames, time = frames_given(video, self.config.num_frames, (side, side), fps)
            return torch.from_numpy(frames), time
        if video.dim() != 4 or tuple(video.shape[1:]) != (3, side, side) or not len(video):
            raise ValueError(f"frames of shape {tuple(video.shape)}: expected [T, 3, {side}, {side}]")
        if not (video.is_floating_point() or video.dtype == torch.uint8):
            raise ValueError(f"frames of {video.dtype}: expected uint8, or floating point and normalised")
        return video.cpu(), np.arange(len(video), dtype=np.float32)

    def _batch(self, frames: Tensor, time: np.ndarray, rows: list[Any]) -> Batch:
        grid, normalised, size = assembly.motion_grid(self.vlm), frames.is_floating_point(), tuple(frames.shape[2:])
        if grid is not None and normalised:
            raise ValueError("frames that are normalised: this model's merger reads optical flow, which needs uint8")
        motion = None if grid is None else motion_energy(frames.numpy(), grid)
        pixels = torch.zeros(frames.shape, dtype=torch.uint8) if normalised else frames
        item = Item(pixels.numpy(), time, rows, motion=motion)
        batch = collate([item], pad_id=self.chat.pad_id, size=size, motion=grid)
        if normalised:
            batch = batch._replace(frames_BTCHW=frames.float().unsqueeze(0))
        return batch.to(next(self.parameters()).device)

    def _computing(self) -> torch.autocast:
        weight = next(self.parameters())
        return torch.autocast(weight.device.type, weight.dtype, enabled=weight.dtype != torch.float32)


def _check(config: HvlmConfig) -> None:
    """UserError for a config.json of which a field is none that an export writes."""
    frames, adapter = config.num_frames, config.adapter
    wrong = {
        "order": None if config.order in ORDERS else f"one of {', '.join(ORDERS)}",
        "num_frames": None if type(frames) is int and 1 <= frames <= MOST_FRAMES else f"1 to {MOST_FRAMES}",
        "adapter": None if isinstance(adapter, str) and adapter else "the name of a set of adapter weights",
        "chat": None if isinstance(config.chat, str) else "a tokenizer as text",
        "rooms": None if isinstance(config.rooms, Mapping) else "rooms with their settings",
        "source_configs": None if isinstance(config.source_configs, Mapping) else "what rooms' sources said",
    }
    for field, expected in wrong.items():
        if expected is not None:
            raise UserError(f"config.json: {field} is {getattr(config, field)!r:.60}, expected {expected}")
    if missing := [room for room in OF_A_MODEL if not isinstance(config.rooms.get(room), Mapping)]:
        raise UserError(f"config.json: rooms holds no {missing[0]}; export the model again")


def _dtype(given: torch.dtype | str | None) -> torch.dtype | None:
    """None: as stored."""
    found = getattr(torch, given.removeprefix("torch."), None) if isinstance(given, str) else given
    if given in (None, "auto"):
        return None
    if found not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"dtype={given}: expected float32, bfloat16, float16 or auto")
    return found


def _device(given: str | torch.device | dict[str, str | torch.device] | None) -> torch.device:
    if isinstance(given, dict):
        if set(given) != {""}:
            raise ValueError(f"device_map={given}: this model is not split; give one device, or {{'': device}}")
        given = given[""]
    if given == "auto":
        given = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device("cpu" if given is None else given)
    except RuntimeError as error:
        raise ValueError(f"device_map={given}: expected one device, {{'': device}} or auto") from error
    if device.type == "meta":
        raise ValueError("device_map=meta: a model without weights cannot answer; use HvlmModel(config)")
    return device


def _with_attention(config: HvlmConfig, asked: str | None) -> HvlmConfig:
    if asked is None:
        return config
    if asked not in ("auto", "sdpa"):
        raise ValueError(f"attn_implementation={asked}: expected auto or sdpa")
    config = copy.deepcopy(config)
    config.rooms["language"]["attention"] = asked
    return config


def export(path: str | Path, cfg: Mapping[str, Any], metadata: Mapping[str, Any], out: Path) -> Path:
    """Write the checkpoint at ``path``, which holds ``metadata``, as a Hugging Face folder ``out`` of the model that
    ``cfg`` describes. Returns it."""
    refuse_to_overwrite(out)
    rooms = {name: dict(cfg[name]) for name in OF_A_MODEL}
    frames, adapter = cfg["dataset"]["num_frames"], cfg["domain"]["adapter"]
    vlm, _ = rebuild(path, cfg)
    sources = assembly.source_configs(vlm)
    config = HvlmConfig(rooms, metadata["chat"], cfg["order"], frames, adapter, sources, architectures=["HvlmModel"])
    HvlmModel(config, vlm).save_pretrained(out)
    (out / "README.md").write_text(model_card(path, cfg, rooms), encoding="utf-8")
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


def figures_of(path: Path) -> Path | None:
    """The results of the run that a checkpoint is from: what eval.py wrote beside the checkpoint, its stage or its run,
    or what the training ended with. None where it was not evaluated."""
    run = path if path.is_dir() else path.parent.parent.parent
    folders = [path] if path.is_dir() else [path.parent, path.parent.parent, run]
    found = [folder / "eval" / RESULTS for folder in folders[:-1]] + [run / RESULTS, run / "eval" / RESULTS]
    return next((file for file in found if file.exists()), None)


def model_card(path: str | Path, cfg: Mapping[str, Any], rooms: Mapping[str, Mapping[str, Any]]) -> str:
    """The model card: rooms, how to load it, and the figures of the run that the checkpoint is from, if it has any."""
    here = Path(path)
    figures = figures_of(here)
    words = [f"{name}={node['_target_'].split('.')[-2]}" for name, node in rooms.items()]
    lines = ["---", "library_name: transformers", "pipeline_tag: video-text-to-text", "tags: [hvlm]", "---", ""]
    lines += [f"# {here.name}", "", f"Made with hvlm: {' '.join(words)} order={cfg['order']} seed={cfg['seed']}.", ""]
    lines += ["```python", "import hvlm.interop.hf_export", "from transformers import AutoModel", ""]
    lines += ["model = AutoModel.from_pretrained(FOLDER)", "print(model.answer(VIDEO, QUESTION))", "```", ""]
    side = cfg["vision"]["image_size"]
    lines += [
        f"`frames`: uint8 [T, 3, {side}, {side}], {cfg['dataset']['num_frames']} of them evenly over the clip.",
        "",
    ]
    if figures is not None:
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
AutoModelForImageTextToText.register(HvlmConfig, HvlmModel)
AutoProcessor.register(HvlmConfig, HvlmProcessor)
