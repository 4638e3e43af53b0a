"""The model ``hvlm`` of lmms-eval 0.7.3, which finds it by the entry point of the group ``lmms_eval.models``.

    python -m lmms_eval --model hvlm --model_args checkpoint=runs/demo --tasks videomme --batch_size 1

lmms-eval is no dependency of this package: it brings versions of its own, so it has an environment of its own
(``make test-lmms``).
"""

from __future__ import annotations

from typing import Any

from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from hvlm.api.load import load
from hvlm.errors import UserError


def manifest() -> ModelManifest:
    """What the entry point names."""
    return ModelManifest(model_id="hvlm", simple_class_path="hvlm.api.lmms_eval.Hvlm")


class Hvlm(lmms):
    """A run, a checkpoint or an export, asked one question after the other about one video or picture each."""

    is_simple = True

    def __init__(
        self,
        checkpoint: str,
        num_frames: int | None = None,
        max_new_tokens: int = 32,
        fps: float = 1.0,
        batch_size: int | str = 1,
        device: str | None = None,
    ):
        """checkpoint: as ``hvlm.load`` takes it. num_frames: None: as trained. max_new_tokens: where a task says none.
        batch_size: 1. device: None: the GPU if there is one."""
        super().__init__()
        if str(batch_size) != "1":
            raise UserError(f"batch_size={batch_size}: expected 1; hvlm's own benchmarks ask in batches")
        self.model = load(checkpoint, device=device)
        self.num_frames, self.max_new_tokens, self.fps = num_frames, int(max_new_tokens), fps

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The answers, each cut before the first of the task's stop strings."""
        said = []
        for request in requests:
            question, settings, visual, index, task, split = request.args
            temperature = float(settings.get("temperature") or 0.0) if settings.get("do_sample") else 0.0
            text = self.model.answer(
                self._visual(visual, index, task, split), question, num_frames=self.num_frames, fps=self.fps,
                max_new_tokens=int(settings.get("max_new_tokens", self.max_new_tokens)), temperature=temperature,
                top_p=float(settings.get("top_p") or 1.0) if temperature else 1.0,
            )  # fmt: skip
            until = settings.get("until") or []
            for stop in [until] if isinstance(until, str) else until:
                text = text.split(stop)[0] if stop else text
            said.append(text)
        return said

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """For each continuation (mean loss of its tokens, False): whether it is the greedy one is not asked.

        lmms-eval takes the smallest for the answer, so it is a loss and no log-likelihood. Its unwrapper makes a text
        of a bare tuple; of a ``GenerationResult`` it takes the tuple out.
        """
        asked: dict[tuple[Any, ...], list[int]] = {}
        for i, request in enumerate(requests):
            question, _, _, index, task, split = request.args
            asked.setdefault((question, index, task, split), []).append(i)
        found: dict[int, GenerationResult] = {}
        for (question, index, task, split), places in asked.items():
            options = [requests[i].args[1].strip() for i in places]
            video = self._visual(requests[places[0]].args[2], index, task, split)
            scores = self.model.choose(video, question, options, num_frames=self.num_frames, fps=self.fps).scores
            found |= {i: GenerationResult(text=(-score, False)) for i, score in zip(places, scores, strict=True)}
        return [found[i] for i in range(len(requests))]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Refused: the model was trained on single questions."""
        raise UserError("hvlm answers single questions; choose a task whose output_type is generate_until")

    def _visual(self, visual: Any, index: int, task: str, split: str) -> Any:
        """The document's one video (a path) or its pictures."""
        seen = visual(self.task_dict[task][split][index])
        if not seen:
            raise UserError(f"{task}, document {index}: no video or picture; hvlm answers about one")
        return seen[0] if len(seen) == 1 and isinstance(seen[0], str) else list(seen)
