"""A model that a program holds: asked about videos, without a command line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import torch

from hvlm.api.given_numbers import positive, sampling
from hvlm.api.stream import Stream
from hvlm.config.rooms import OF_A_MODEL
from hvlm.data.collate import Item, collate
from hvlm.data.given import Given, frames_given
from hvlm.data.optical_flow import motion_energy
from hvlm.errors import UserError
from hvlm.evaluation import scores
from hvlm.evaluation.asking import Query
from hvlm.evaluation.generate import generate
from hvlm.evaluation.likelihood import answer_likelihoods
from hvlm.model import VLM
from hvlm.precision import DTYPES, autocast, choose_precision
from hvlm.prompts import LETTERS, context, lettered_prompt
from hvlm.text.chat import Chat
from hvlm.text.unknown import warn_of_question
from hvlm.types import Batch, InputSpec


class Choice(NamedTuple):
    """index: of the likeliest option. scores: the log-likelihood of each per token. option: what was chosen."""

    index: int
    scores: tuple[float, ...]
    option: str


class Model:
    """Answers questions about videos. Made by ``hvlm.load`` and ``hvlm.build``.

    A video is a file, a folder of stills, a list of pictures (Pillow's, arrays or paths), or an array or tensor of
    uint8 pixels [T, H, W, 3] or [T, 3, H, W]; ``fps`` says how many pictures a second those are that carry no time.
    Frames are taken evenly over it, as many as the model was trained with, or ``num_frames``.

    Attributes:
        vlm: the modules, ``hvlm.model.VLM``. chat: the tokenizer and template. inputs: how the model wants its clips.
        config: the configuration that it was built from, as plain values.
        precision: what is computed in, one of ``hvlm.precision.DTYPES``.
    """

    def __init__(self, vlm: VLM, chat: Chat, inputs: InputSpec, config: Mapping[str, Any], precision: str = "auto"):
        self.vlm, self.chat, self.inputs, self.config = vlm, chat, inputs, config
        self._asked = precision
        self._settle()

    @property
    def device(self) -> torch.device:
        return next(self.vlm.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.vlm.parameters()).dtype

    @property
    def num_parameters(self) -> int:
        """How many weights; those that two layers share count once."""
        return sum(weight.numel() for weight in self.vlm.parameters())

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | str | None = None) -> Model:
        """Move the weights, and turn them into another floating-point dtype. Returns the model itself."""
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        shared = _shared_weights(self.vlm)
        try:
            self.vlm.to(device)
        except (AssertionError, RuntimeError, TypeError) as error:  # torch's words for a device that is not here
            raise UserError(f"device={device}: {str(error).splitlines()[0]}") from error
        for name, first in shared.items():  # on its way to "meta", torch makes two of a weight that two layers share
            owner, _, leaf = name.rpartition(".")
            setattr(self.vlm.get_submodule(owner), leaf, self.vlm.get_parameter(first))
        if dtype is not None:
            asked = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
            if asked not in DTYPES.values():
                raise UserError(f"dtype={dtype}: expected float32, bfloat16 or float16")
            for weight in self.vlm.parameters():  # buffers, as running statistics, keep their digits
                if weight.is_floating_point():
                    weight.data = weight.data.to(asked)
            self._asked = "auto" if asked == torch.float32 else self._asked
        self._settle()
        return self

    def _settle(self) -> None:
        """What is computed in, on this device and with these weights."""
        lower = {dtype: name for name, dtype in DTYPES.items() if dtype != torch.float32}
        on_cpu = self.device.type != "cuda"
        asked = "auto" if on_cpu and self._asked.startswith("16") else self._asked  # weights of a run on a GPU
        self.precision = lower.get(self.dtype) or choose_precision(asked, "cpu" if on_cpu else "gpu")[0]

    @overload
    def answer(self, video: Given, question: str, **how: Any) -> str: ...

    @overload
    def answer(self, video: Given, question: Sequence[str], **how: Any) -> list[str]: ...

    def answer(
        self,
        video: Given,
        question: str | Sequence[str],
        *,
        num_frames: int | None = None,
        fps: float = 1.0,
        section: tuple[float, float] | None = None,
        max_new_tokens: int = 32,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> str | list[str]:
        """What the model says about a video.

        Args:
            video: see the class.
            question: one, or several, which share one look at the video.
            num_frames: how many frames are read at most; None: as trained.
            fps: pictures a second where the video carries no time.
            section: (start, stop) in seconds, of which alone frames are read.
            max_new_tokens: where an answer stops at the latest.
            temperature, top_p, seed: how words are drawn; 0 takes the likeliest.

        Returns:
            The answer, or a list of them.

        Raises:
            UserError: a video that cannot be read, a question without words, a number out of its range.
        """
        several = isinstance(question, Sequence) and not isinstance(question, str)
        questions = list(question) if several else [question]
        if not questions or not all(isinstance(q, str) and q.strip() for q in questions):
            raise UserError(f"question={question!r}: expected a question, or several")
        choose = sampling(temperature, top_p, seed)
        for one in questions:
            warn_of_question(self.chat, one)
        batch = self.batch(video, questions, num_frames=num_frames, fps=fps, section=section)
        with autocast(self.device, self.precision):
            said = generate(self.vlm, self.chat, batch, positive(max_new_tokens), choose)
        return said[0] if isinstance(question, str) else said

    def batch(
        self,
        video: Given,
        questions: Sequence[str],
        *,
        num_frames: int | None = None,
        fps: float = 1.0,
        section: tuple[float, float] | None = None,
        timeout: float | None = None,
    ) -> Batch:
        """What ``self.vlm`` reads, on its device: one clip, and a row for each question. Arguments as of ``answer``.

        timeout: seconds for decoding a file, in a process that is killed when they are over; None decodes here.
        """
        frames, time, motion = self._read(video, num_frames, fps, section, timeout)
        rows = [(*self.chat.encode(q, "", "last", self.inputs.order, **context(q)), {}) for q in questions]
        item = Item(frames, time, rows, motion=motion)
        made = collate([item], pad_id=self.chat.pad_id, size=self.inputs.size, motion=self.inputs.motion)
        return made.to(self.device)

    def choose(
        self,
        video: Given,
        question: str,
        options: Sequence[str],
        *,
        lettered: bool = False,
        num_frames: int | None = None,
        fps: float = 1.0,
        section: tuple[float, float] | None = None,
    ) -> Choice:
        """The likeliest of several answers.

        Args:
            video, num_frames, fps, section: see ``answer``.
            question: one.
            options: 2 or more texts that the tokenizer can tell apart.
            lettered: show the options with their letters and compare the likelihood of the letters, for models that
                were taught so; else the options themselves are compared.

        Raises:
            UserError: as ``answer``, and options that cannot be compared.
        """
        if not isinstance(question, str) or not question.strip():
            raise UserError(f"question={question!r}: expected a question")
        listed = isinstance(options, Iterable) and not isinstance(options, str)
        options = list(options) if listed else [options]
        if len(options) < 2 or (lettered and len(options) > len(LETTERS)):
            raise UserError(f"options={options}: expected 2 or more" + (f", at most {len(LETTERS)}" * lettered))
        if not all(isinstance(option, str) for option in options) or len(set(options)) < len(options):
            raise UserError(f"options={options}: expected texts, each another one")
        prompt, answers = question, tuple(options)
        if lettered:
            prompt, answers = lettered_prompt(question, options), tuple(LETTERS[: len(options)])
        asked = scores.Try(prompt, tuple(options), answers, 0)
        about = scores.Question("question", "video", "choose", (asked,), ())
        frames, time, motion = self._read(video, num_frames, fps, section)
        query = Query(frames, time, [about], motion)
        modes = {module: module.training for module in self.vlm.modules()}
        self.vlm.eval()
        try:
            (found,) = answer_likelihoods(self.vlm, self.chat, [query], self.inputs, self.precision)
        finally:
            for module, mode in modes.items():
                module.training = mode
        likely = tuple(found[prompt, a].logp / found[prompt, a].tokens for a in answers)
        index = scores.choose(likely)
        if index is None:
            raise UserError(f"scores={likely}: not finite; the weights are damaged, or dtype={self.dtype} overflows")
        return Choice(index, likely, options[index])

    def stream(self, video: Given | None = None, question: str | None = None, *, fps: float = 4.0) -> Stream:
        """Watch a video as it comes in, and answer at any moment.

        Args:
            video: what is watched when the stream is iterated over; None: frames come with ``feed``.
            question: what is watched for. A model that reads the question first needs it here; of another one it is
                what ``answer`` asks where it is given nothing else.
            fps: frames a second that are looked at.

        Raises:
            UserError: the model cannot read frame by frame; the message says why, and ``answer`` reads the whole video.
        """
        self._refuse_meta("answer")
        return Stream(self.vlm, self.chat, self.inputs, video, question, fps)

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the sets of adapter weights."""
        return self.vlm.adapter.names

    def use_adapter(self, name: str | None) -> Model:
        """Answer with another set of adapter weights; None: with none, as the base. Returns the model itself."""
        if name is not None and name not in self.adapters:
            raise UserError(f"{name!r}: the model's sets of adapter weights are {', '.join(self.adapters) or 'none'}")
        if self.vlm.adapter.merged not in (None, name):
            raise UserError(f"{name!r}: {self.vlm.adapter.merged!r} is merged into the weights; unmerge it first")
        self.vlm.adapter.use(name)
        return self

    def merge_adapter(self) -> Model:
        """Put the set that is used into the weights, which then cost what the base costs. Returns the model itself.

        Raises:
            UserError: there is none, or it is no change of weights (prefix, bottleneck).
        """
        if self.vlm.adapter.used is None or self.vlm.adapter.merged is not None:
            raise UserError(f"no set of adapter weights to merge: used is {self.vlm.adapter.used}")
        self.vlm.adapter.merge()
        return self

    def unmerge_adapter(self) -> Model:
        """Put the weights back as they were before ``merge_adapter``, bit for bit. Returns the model itself."""
        if self.vlm.adapter.merged is None:
            raise UserError("no set of adapter weights is merged")
        self.vlm.adapter.unmerge()
        return self

    def save_adapter(self, folder: str | Path, name: str | None = None) -> Path:
        """Write a set of adapter weights, by default the one that is used, as a folder of its own: in peft's layout
        where peft knows its kind.

        Raises:
            UserError: there is none of that name, or the folder cannot be written.
        """
        self._refuse_meta("be saved")
        if name is not None and name not in self.adapters:
            raise UserError(f"{name!r}: the model's sets of adapter weights are {', '.join(self.adapters) or 'none'}")
        source = self.config["language"].get("source")
        return self.vlm.adapter.save(folder, name, None if source == "scratch" else source)

    def save(self, folder: str | Path) -> Path:
        """Write a folder that ``hvlm.load`` and transformers read (``hvlm.interop.hf_export``).

        Raises:
            UserError: an export stands there already, or the folder cannot be written.
        """
        from hvlm.interop import hf_export

        self._refuse_meta("be saved")
        if self.vlm.router is not None:
            raise UserError("a saved model holds no router; load it for one domain, hvlm.load(path, 'domain=NAME')")
        rooms = {name: dict(self.config[name]) for name in OF_A_MODEL}
        return hf_export.save(
            self.vlm, self.chat, rooms, self.inputs.num_frames, self.config["domain"]["adapter"], folder
        )

    def _refuse_meta(self, to: str) -> None:
        if self.device.type == "meta":
            raise UserError(f"device=meta: a model without weights cannot {to}; use device=cpu or cuda")

    def __repr__(self) -> str:
        rooms = [f"{name}={self.config[name]['_target_'].split('.')[-2]}" for name in OF_A_MODEL]
        return f"Model({' '.join(rooms)}: {self.num_parameters:,} weights, {self.dtype}, {self.device})"

    def _read(
        self,
        video: Given,
        num_frames: int | None,
        fps: float,
        section: tuple[float, float] | None,
        timeout: float | None = None,
    ) -> tuple[Any, Any, Any]:
        """Frames, times and, where the model wants it, motion."""
        self._refuse_meta("answer")
        count = self.inputs.num_frames if num_frames is None else positive(num_frames, "num_frames")
        frames, time = frames_given(video, count, self.inputs.size, fps, section, timeout)
        motion = None if self.inputs.motion is None else motion_energy(frames, self.inputs.motion)
        return frames, time, motion


def _shared_weights(vlm: VLM) -> dict[str, str]:
    """{name: the name that comes first} of weights that two layers share."""
    first: dict[int, str] = {}
    names = {name: first.setdefault(id(weight), name) for name, weight in vlm.named_parameters(remove_duplicate=False)}
    return {name: owner for name, owner in names.items() if owner != name}
