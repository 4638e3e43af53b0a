"""How a question and its answer become token ids, and which of those tokens are targets.

Two templates. ``chatml`` is SmolLM2's: every turn is ``<|im_start|>{role}\\n{content}<|im_end|>\\n``, with an explicit
system turn (left to itself SmolLM2's own template would insert its identity text). ``tiny`` is for word-level
vocabularies: ``<|user|> question <|assistant|> answer <|end|>``, three special tokens and no role names, because
every token costs time.

The visual tokens are not text: ``visual_at`` says how many text tokens stand before them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from hvlm.errors import UserError

TEMPLATES = {  # template -> (tokens it needs in the vocabulary, the last one closes a turn and pads)
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "tiny": ("<|user|>", "<|assistant|>", "<|end|>"),
}
LOSSES = ("answer", "all")
ORDERS = ("question_first", "video_first")


class Encoded(NamedTuple):
    """One text row. ``loss_mask[i]`` is True where ``ids[i]`` is a target, predicted from everything before it;
    ``visual_at`` text tokens stand before the visual tokens."""

    ids: list[int]
    loss_mask: list[bool]
    visual_at: int


class Chat:
    """A tokenizer, a template and a system message: everything that turns text into ids and back.

    tokenizer: a ``tokenizers.Tokenizer`` or any Hugging Face fast tokenizer around one. It is copied.
    template: ``chatml`` or ``tiny``. system: the system message (``chatml`` only), or None for no system turn.

    Picklable, and complete as one string (``to_json``/``from_json``), so that a checkpoint carries its own vocabulary.
    A special token that is spelt out inside a question stays ordinary text: nobody can close a turn from inside it.
    """

    def __init__(self, tokenizer: Any, template: str, system: str | None = None):
        if template not in TEMPLATES:
            raise UserError(f"language.template={template!r}: expected one of {', '.join(TEMPLATES)}")
        if system is not None and template == "tiny":
            raise UserError(f"language.system={system!r}: template tiny has no system turn; set language.system=null")
        backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
        self._tokenizer: Tokenizer = Tokenizer.from_str(backend.to_str())
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.template = template
        self.system = system
        self._special = {token: self._tokenizer.token_to_id(token) for token in TEMPLATES[template]}
        missing = [token for token, index in self._special.items() if index is None]
        if missing:
            raise UserError(
                f"language.template={template}: the tokenizer has no {', '.join(missing)}; choose the template that "
                f"the tokenizer was made for ({', '.join(TEMPLATES)})"
            )
        self.end_id: int = self._special[TEMPLATES[template][-1]]

    @property
    def pad_id(self) -> int:
        """The id to fill up rows with. It is the end token (as in SmolLM2): what is padding, the masks say."""
        return self.end_id

    @property
    def vocab_size(self) -> int:
        """Number of ids, added special tokens included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, prompt: str, answer: str, loss: str = "answer", order: str = "question_first") -> Encoded:
        """A whole row: the turns before the answer, the answer, and the end token.

        loss: ``answer`` = the answer and its end token are targets; ``all`` = every token but the first.
        order: ``question_first`` = the visual tokens stand between the user's turn and the assistant's header;
        ``video_first`` = before everything.
        """
        if loss not in LOSSES:
            raise ValueError(f"loss={loss!r}: expected one of {', '.join(LOSSES)}")
        head, visual_at = self.encode_prompt(prompt, order)
        tail = [*self._text(answer), self.end_id]
        if loss == "all":
            mask = [False] + [True] * (len(head) + len(tail) - 1)
        else:
            mask = [False] * len(head) + [True] * len(tail)
        return Encoded(head + tail, mask, visual_at)

    def encode_prompt(self, prompt: str, order: str = "question_first") -> tuple[list[int], int]:
        """(ids up to and including the assistant's header, visual_at): what generation starts from."""
        if order not in ORDERS:
            raise ValueError(f"order={order!r}: expected one of {', '.join(ORDERS)}")
        if self.template == "tiny":
            user = [self._special["<|user|>"], *self._text(prompt)]
            header = [self._special["<|assistant|>"]]
        else:
            user = [] if self.system is None else self._turn("system", self.system)
            user += self._turn("user", prompt)
            header = [self._special["<|im_start|>"], *self._text("assistant\n")]
        return user + header, len(user) if order == "question_first" else 0

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids without the template's own tokens; unknown words stay visible."""
        special = set(self._special.values())
        return self._tokenizer.decode([int(i) for i in ids if int(i) not in special], skip_special_tokens=False)

    def to_fast(self) -> PreTrainedTokenizerFast:
        """The tokenizer as transformers knows it (without the template)."""
        names = list(self._special)
        return PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(self._tokenizer.to_str()), eos_token=names[-1], pad_token=names[-1]
        )

    def to_json(self) -> str:
        """The whole tokenizer, template and system message as one string."""
        return json.dumps(
            {"tokenizer": self._tokenizer.to_str(), "template": self.template, "system": self.system},
            ensure_ascii=False,
            sort_keys=True,
        )

    @classmethod
    def from_json(cls, text: str) -> Chat:
        """The inverse of ``to_json``."""
        fields = json.loads(text)
        return cls(Tokenizer.from_str(fields["tokenizer"]), fields["template"], fields["system"])

    def __reduce__(self) -> tuple[Any, ...]:
        # Through the string, because pickling a Tokenizer alone forgets ``encode_special_tokens``.
        return Chat.from_json, (self.to_json(),)

    def __deepcopy__(self, memo: dict[int, Any]) -> Chat:
        return self  # nothing changes after construction

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Chat) and self.to_json() == other.to_json()

    __hash__ = None  # compared by value, and large

    def _turn(self, role: str, content: str) -> list[int]:
        start, end = self._special["<|im_start|>"], self._special["<|im_end|>"]
        return [start, *self._text(f"{role}\n{content}"), end, *self._text("\n")]

    def _text(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids
