"""What is asked about a clip: the text rows, or the patches, that a stage sees.

A stage names its view (``view = Questions()``), and the reader asks the view what it needs to know. A view of one's own
is a frozen dataclass with ``name`` and ``rows``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from torch import Tensor

from hvlm.data.sample_fields import FieldError
from hvlm.data.sampling import is_shown
from hvlm.prompts import LETTERS, Prompt, lettered_prompt


class Row(NamedTuple):
    """One exchange. ``prompt``: with the conversation that it stands in, where it has one (``Prompt``). ``answer``:
    None where nothing is written, so that the row ends where an answer would begin. ``meta``: plain values for logging
    and scoring (sample key, domain, task, question id, ...), and what ``View.targets`` makes targets of."""

    prompt: str
    answer: str | None
    meta: dict[str, Any]


@dataclass(frozen=True)
class View:
    """What a stage sees of a sample.

    name: in messages. has_text: whether there are text rows at all; a view without reads no text-only chats.
    needs_labels: whether per-patch labels come with the frames (the dataset makes them).
    """

    name: ClassVar[str]
    has_text: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False

    def rows(self, sample: dict[str, Any], times: np.ndarray, rng: np.random.Generator, n: int | None) -> list[Row]:
        """The text rows of one clip; [] if the sampled frames answer none of its texts.

        Args:
            sample: as ``samples.parse`` gives it.
            times: seconds of the sampled frames, float [T]. Only texts whose evidence they show are asked.
            rng: seeded from (seed, epoch, sample key) alone.
            n: how many texts to draw; None: all of them, in the order of the file.
        """
        raise NotImplementedError

    def window(self, frames: int, rng: np.random.Generator, n: int | None) -> slice:
        """Which of the sampled frames are shown: by default all."""
        return slice(None)

    def fitted(self, rows: list[Row], fits: Callable[[str, str | None], bool], cut: bool) -> list[Row] | None:
        """Rows that belong together (a pair, or a single one) as they fit into the tokens allowed, as far as the view
        sees to that itself; None: they are left out. By default the reader refuses or cuts what is too long.

        Args:
            rows: as ``rows`` gives them.
            fits: whether a prompt with an answer fits (None: without one).
            cut: whether what is too long may be cut.
        """
        return rows

    def targets(self, rows: Sequence[Mapping[str, Any]], chat: Any) -> dict[str, Tensor]:
        """What a head is to learn of a batch's text rows, by name: [K, ...] each. By default nothing beside the texts.

        Called where clips are read (in a worker process), without the model.

        Args:
            rows: their ``meta``, in the order of the batch.
            chat: the tokenizer and template (``hvlm.text.chat.Chat``).
        """
        return {}

    def alone(self, meta: Mapping[str, Any]) -> Sequence[str]:
        """The texts of a row that are read by themselves (``Head.texts``), which must be no longer than others. By
        default none.

        Args:
            meta: of the row.
        """
        return ()

    def scoring(self) -> View:
        """The view with all rows that count in a score, where training leaves some out."""
        return self

    def among(self, samples: Callable[[], Iterable[dict[str, Any]]] | None) -> View:
        """The view with what it must know of all samples of a split to show one of them in training; by default
        nothing.

        Args:
            samples: reads their JSON, as ``samples.parse`` gives it. None: they cannot all be read, for they come in
                a stream.
        """
        return self

    def passes_over(self, sample: dict[str, Any]) -> bool:
        """Whether the JSON alone says that nothing of the sample will be shown, so that nothing need be decoded."""
        return False


class Captions(View):
    """Each caption is one exchange."""

    name = "captions"

    def rows(self, sample: dict[str, Any], times: np.ndarray, rng: np.random.Generator, n: int | None) -> list[Row]:
        meta = _meta(sample) | {"task": "caption"}
        return [
            Row(in_context(text["prompt"], text), text["text"], meta | {"answer": text["text"]})
            for text in _draw(sample["captions"], times, rng, n)
        ]


class Questions(View):
    """Each question is one exchange; a lettered one lists the options of one of its tries and asks for the letter."""

    name = "questions"

    def rows(self, sample: dict[str, Any], times: np.ndarray, rng: np.random.Generator, n: int | None) -> list[Row]:
        rows = []
        for q in _draw(sample["questions"], times, rng, n):
            prompt, answer, _ = _wording(q, int(rng.integers(len(q["tries"]))) if "tries" in q else 0)
            rows.append(Row(prompt, answer, _question_meta(sample, q) | {"answer": answer}))
        return rows


class Pairs(View):
    """Chosen and rejected answer of each question, one after the other; ``meta["pair"]`` ties them together."""

    name = "pairs"

    def rows(self, sample: dict[str, Any], times: np.ndarray, rng: np.random.Generator, n: int | None) -> list[Row]:
        rows = []
        for q in _draw([q for q in sample["questions"] if "rejected" in q], times, rng, n):
            prompt, answer, rejected = _wording(q, 0)  # always the same: the reference's log-probs may be stored
            if rejected is None:
                continue  # a rejected answer that is none of the options has no letter
            meta = _question_meta(sample, q) | {"pair": f"{sample['uid']}/{q['id']}", "answer": answer}
            rows.append(Row(prompt, answer, meta | {"role": "chosen"}))
            rows.append(Row(prompt, rejected, meta | {"role": "rejected"}))
        return rows


class PatchLabels(View):
    """No text: frames with per-patch labels, ``n`` neighbouring ones of each clip."""

    name = "patches"
    has_text = False
    needs_labels = True

    def rows(self, sample: dict[str, Any], times: np.ndarray, rng: np.random.Generator, n: int | None) -> list[Row]:
        return []

    def window(self, frames: int, rng: np.random.Generator, n: int | None) -> slice:
        if n is None or n >= frames:
            return slice(None)
        start = int(rng.integers(frames - n + 1))
        return slice(start, start + n)


def chat_row(sample: dict[str, Any]) -> Row:
    """The first exchange or conversation of a text-only chat. Raises FieldError where there is none."""
    exchanges = [(in_context(text["prompt"], text), text["text"]) for text in sample["captions"]]
    exchanges += [(in_context(q["question"], q), q["answer"]) for q in sample["questions"]]
    if not exchanges:
        raise FieldError("no exchange of a prompt and an answer in it")
    prompt, answer = exchanges[0]
    return Row(prompt, answer, {"key": sample["key"], "uid": sample["uid"], "task": "chat", "answer": answer})


def in_context(prompt: str, text: Mapping[str, Any]) -> str:
    """The prompt of a caption or question with the conversation that it stands in, if it does."""
    if not {"turns", "system", "context_chars"} & set(text):
        return prompt
    return Prompt(prompt, text.get("turns", ()), text.get("system"), text.get("context_chars", 0))


def _wording(q: dict[str, Any], attempt: int) -> tuple[str, str, str | None]:
    """(prompt, answer, rejected answer or None), with the letters of a try where letters are asked for."""
    if not q.get("lettered"):
        return in_context(q["question"], q), q["answer"], q.get("rejected")
    options, right = q["tries"][attempt]["options"], q["tries"][attempt]["gold"]
    rejected = LETTERS[options.index(q["rejected"])] if q.get("rejected") in options else None
    return in_context(lettered_prompt(q["question"], options), q), LETTERS[right], rejected


def _draw(texts: list[dict], times: np.ndarray, rng: np.random.Generator, n: int | None) -> list[dict]:
    shown = [text for text in texts if is_shown(text["evidence"], times)]
    if n is None:
        return shown
    return [shown[i] for i in rng.permutation(len(shown))[:n]]


def _meta(sample: dict[str, Any]) -> dict[str, Any]:
    return {name: sample[name] for name in ("key", "uid", "domain", "set", "outline") if name in sample}


def _question_meta(sample: dict[str, Any], q: dict[str, Any]) -> dict[str, Any]:
    meta = _meta(sample) | {"task": q["task"], "question_id": q["id"], "answer": q["answer"]}
    return meta | ({"tries": q["tries"]} if "tries" in q else {})
