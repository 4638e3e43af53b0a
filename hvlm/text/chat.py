"""How a conversation becomes token ids, and which of those tokens are targets.

``own`` is the tokenizer's own chat template (``hvlm/text/jinja.py``); ``vicuna`` and ``plain`` are templates for
tokenizers that carry none. ``chatml`` is SmolLM2's: every turn is ``<|im_start|>{role}\\n{content}<|im_end|>\\n``, with
an explicit system turn (left to itself SmolLM2's own template would insert its identity text). ``tiny`` is for
word-level vocabularies: ``<|user|> question <|assistant|> answer <|end|>``, three special tokens and no role names,
because every token costs time.

The visual tokens are not text: ``visual_at`` says how many text tokens stand before them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from hvlm.errors import UserError
from hvlm.text.jinja import WRITTEN, ChatTemplate, Laid, guarded, with_system

TEMPLATES = {  # template -> (tokens it needs in the vocabulary, the last one closes a turn and pads)
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "tiny": ("<|user|>", "<|assistant|>", "<|end|>"),
}
NAMES = ("own", *WRITTEN, *TEMPLATES)
LOSSES = ("answer", "all", "last")
ORDERS = ("question_first", "video_first")


class Encoded(NamedTuple):
    """One text row. ``loss_mask[i]`` is True where ``ids[i]`` is a target, predicted from everything before it;
    ``visual_at`` text tokens stand before the visual tokens; the first ``context`` are up to the end of a text that is
    asked about (``Prompt``), 0: there is none."""

    ids: list[int]
    loss_mask: list[bool]
    visual_at: int
    context: int = 0


class Chat:
    """A tokenizer, a template and a system message: everything that turns text into ids and back.

    tokenizer: any Hugging Face fast tokenizer, or (``chatml``, ``tiny``) a ``tokenizers.Tokenizer``. It is copied.
    template: ``own``, ``chatml``, ``vicuna``, ``plain`` or ``tiny``.
    system: the system message. None: no system turn, or, with ``own`` and ``vicuna``, what the template itself says
        without one. A template without a system turn has it in front of the first question; ``tiny`` takes none.
    chat_template, named: for ``own``, ``vicuna`` and ``plain`` the Jinja template and what it calls the special tokens
        ({"bos_token": text, ...}); by default the tokenizer's.
    ends: ids beside the template's and the tokenizer's own at which an answer ends, too.
    prompt: what a conversation begins with that brings no system message of its own, in place of ``system``; a template
        without a system turn has it in front of the first question (``domain.prompt``).

    Picklable, and complete as one string (``to_json``/``from_json``), so that a checkpoint carries its own vocabulary.
    A special token that is spelt out inside a text stays ordinary text: nobody can close a turn from inside it.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: str,
        system: str | None = None,
        chat_template: str | None = None,
        named: Mapping[str, str] | None = None,
        ends: Iterable[int] = (),
        prompt: str | None = None,
    ):
        if template not in NAMES:
            raise UserError(f"language.template={template!r}: expected one of {', '.join(NAMES)}")
        if system is not None and template == "tiny":
            raise UserError(f"language.system={system!r}: template tiny has no system turn; set language.system=null")
        self.template = template
        self.system, self.prompt = system, prompt
        if template in TEMPLATES:
            self._jinja: ChatTemplate | None = None
            self._begin_fixed(tokenizer, template)
        else:
            self._begin_jinja(tokenizer, template, chat_template, named)
        vocabulary = self._tokenizer.model  # of several classes: BPE, Unigram, WordLevel
        whole = getattr(vocabulary, "byte_fallback", False)  # nothing is unknown where every byte has an id
        self.unknown_token: str | None = None if whole else getattr(vocabulary, "unk_token", None)
        self.unk_id = None if self.unknown_token is None else self._tokenizer.token_to_id(self.unknown_token)
        self.end_ids = self.end_ids | {index for index in ends if self._tokenizer.id_to_token(index) is not None}
        self._special.pop(self.unknown_token, None)  # what the model could not name stays to be seen

    def _begin_fixed(self, tokenizer: Any, template: str) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
        self._tokenizer: Tokenizer = Tokenizer.from_str(backend.to_str())
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._special = {token: self._tokenizer.token_to_id(token) for token in TEMPLATES[template]}
        missing = [token for token, index in self._special.items() if index is None]
        if missing:
            raise UserError(
                f"language.template={template}: the tokenizer has no {', '.join(missing)}; choose the template that "
                f"the tokenizer was made for ({', '.join(NAMES)})"
            )
        self.end_id: int = self._special[TEMPLATES[template][-1]]
        self.end_ids = {self.end_id}

    def _begin_jinja(self, tokenizer: Any, template: str, source: str | None, named: Mapping[str, str] | None) -> None:
        if named is None:
            named = {k: str(v) for k, v in tokenizer.special_tokens_map.items() if isinstance(v, str)}
            if template in WRITTEN and not _puts_bos(tokenizer):
                named.pop("bos_token", None)
        if source is None:
            source = _written(template, tokenizer, named) if template in WRITTEN else _own(tokenizer)
        self._tokenizer = guarded(getattr(tokenizer, "backend_tokenizer", tokenizer))
        self._jinja = ChatTemplate(self._tokenizer, source, named, template)
        self.end_id, self.end_ids = self._jinja.end_id, self._jinja.end_ids
        names = sorted(self._jinja.special | {self._tokenizer.id_to_token(i) for i in self.end_ids})
        self._special = {token: self._tokenizer.token_to_id(token) for token in names}

    def asking(self, prompt: str | None) -> Chat:
        """The same with another ``prompt``; None: without."""
        if prompt == self.prompt:
            return self
        made = Chat.from_json(self.to_json())
        made.prompt = prompt
        return made

    @property
    def jinja(self) -> ChatTemplate | None:
        """The tokenizer's own template, or the Jinja template in its place; None for the two that are built in."""
        return self._jinja

    @property
    def chat_template(self) -> str | None:
        """The Jinja template's text, where there is one."""
        return None if self._jinja is None else self._jinja.source

    @property
    def special_ids(self) -> set[int]:
        """Ids that no text becomes, whatever is spelt out in it."""
        return set(self._special.values())

    @property
    def pad_id(self) -> int:
        """The id to fill up rows with. It is the end token (as in SmolLM2): what is padding, the masks say."""
        return self.end_id

    @property
    def vocab_size(self) -> int:
        """Number of ids, added special tokens included."""
        if self._jinja is None:
            return self._tokenizer.get_vocab_size(with_added_tokens=True)
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def encode(
        self,
        prompt: str,
        answer: str,
        loss: str = "answer",
        order: str = "question_first",
        before: Sequence[tuple[str, str]] = (),
        system: str | None = None,
        context_chars: int = 0,
    ) -> Encoded:
        """A whole row: the turns before the answer, the answer, and the token that closes it.

        Args:
            prompt: the (last) question. answer: to it.
            loss: ``answer`` = the answers and their end tokens are targets; ``last`` = the last one; ``all`` = every
                token but the first.
            order: ``question_first`` = the visual tokens stand between the first question and the assistant's header;
                ``video_first`` = before everything (but the token that begins a text, where the template has one).
            before: the earlier exchanges of the conversation, (question, answer).
            system: of this conversation, in place of the chat's own.
            context_chars: of the first question, up to the end of the text that is asked about (``Prompt``).

        Raises:
            UserError: the template cannot write this conversation.
        """
        if loss not in LOSSES:
            raise ValueError(f"loss={loss!r}: expected one of {', '.join(LOSSES)}")
        laid = self._lay(prompt, answer, before, system, context_chars)
        mask = [loss == "all"] * len(laid.ids)
        mask[0] = False
        for start, stop in {"answer": laid.targets, "last": laid.targets[-1:]}.get(loss, []):
            mask[start:stop] = [True] * (stop - start)
        return Encoded(laid.ids, mask, _visual_at(laid, order), laid.context)

    def encode_prompt(
        self,
        prompt: str,
        order: str = "question_first",
        before: Sequence[tuple[str, str]] = (),
        system: str | None = None,
    ) -> tuple[list[int], int]:
        """(ids up to and including the assistant's header, visual_at): what generation starts from."""
        laid = self._lay(prompt, None, before, system)
        return laid.ids, _visual_at(laid, order)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids without the template's own tokens; unknown words stay visible."""
        special = set(self._special.values())
        text = self._tokenizer.decode([int(i) for i in ids if int(i) not in special], skip_special_tokens=False)
        return text if self._jinja is None else text.strip()  # templates put blanks around an answer

    def unknown(self, prompt: str, answer: str = "") -> list[str]:
        """The words of a question with its conversation and an answer that the vocabulary does not have."""
        if self.unk_id is None:
            return []
        texts = [text for exchange in getattr(prompt, "before", ()) for text in exchange]
        found = []
        for text in (*texts, prompt, answer):
            encoded = self._tokenizer.encode(text, add_special_tokens=False)
            if self.unk_id in encoded.ids:
                places = zip(encoded.ids, encoded.offsets, strict=True)
                found += [text[start:stop] for index, (start, stop) in places if index == self.unk_id]
        return found

    def to_fast(self) -> PreTrainedTokenizerFast:
        """The tokenizer as transformers knows it (without the template)."""
        if self._jinja is None:
            names = list(self._special)
            named = {"eos_token": names[-1], "pad_token": names[-1]}
        else:
            end = self._tokenizer.id_to_token(self.end_id)
            named = {"eos_token": end, "pad_token": end, **self._jinja.named}
        return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(self._tokenizer.to_str()), **named)

    def to_json(self) -> str:
        """The whole tokenizer, template and system message as one string."""
        fields = {"tokenizer": self._tokenizer.to_str(), "template": self.template, "system": self.system}
        if self.prompt is not None:
            fields["prompt"] = self.prompt
        if self._jinja is not None:
            fields |= {"chat_template": self._jinja.source, "named": self._jinja.named}
        if more := sorted(self.end_ids - ({self.end_id} if self._jinja is None else self._jinja.end_ids)):
            fields["ends"] = more
        return json.dumps(fields, ensure_ascii=False, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Chat:
        """The inverse of ``to_json``. UserError where the string is none of it."""
        try:
            fields = json.loads(text)
            more = {name: fields[name] for name in ("chat_template", "named", "ends", "prompt") if name in fields}
            made = cls(Tokenizer.from_str(fields["tokenizer"]), fields["template"], fields["system"], **more)
            made._text("\u2603")  # a word that it does not know: some find only now that they have no token for it
            return made
        except UserError:
            raise
        except Exception as error:  # the tokenizers' library in Rust has no class of its own
            said = " ".join(str(error).split())[:200]
            raise UserError(f"the stored tokenizer is damaged: {type(error).__name__} {said}") from error

    def __reduce__(self) -> tuple[Any, ...]:
        # Through the string, because pickling a Tokenizer alone forgets ``encode_special_tokens``.
        return Chat.from_json, (self.to_json(),)

    def __deepcopy__(self, memo: dict[int, Any]) -> Chat:
        return self  # nothing changes after construction

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Chat) and self.to_json() == other.to_json()

    __hash__ = None  # compared by value, and large

    def _lay(
        self,
        prompt: str,
        answer: str | None,
        before: Sequence[tuple[str, str]],
        system: str | None,
        context_chars: int = 0,
    ) -> Laid:
        usual = self.system if self.prompt is None else self.prompt
        said = usual if system is None else system
        if self._jinja is not None:
            return self._jinja.lay(self._jinja.messages(prompt, answer, before, said, context_chars))
        return self._lay_fixed([*before, (prompt, answer)], said, context_chars)

    def _lay_fixed(self, exchanges: Sequence[tuple[str, str | None]], system: str | None, context_chars: int) -> Laid:
        """A conversation by ``chatml`` or ``tiny``, whose pieces are tokenized one by one."""
        ids: list[int] = []
        targets: list[tuple[int, int]] = []
        after_question = context = 0
        tiny = self.template == "tiny"
        for i, (question, answer) in enumerate(exchanges):
            if i == 0 and system is not None and not tiny:
                ids += self._turn("system", system)
            elif i == 0 and system:
                question, context_chars = with_system(system, question, context_chars)
            elif i > 0 and not tiny:
                ids += self._text("\n")
            if i == 0 and context_chars:
                named = "" if tiny else "user\n"
                context = len(ids) + 1 + self._tokens_within(f"{named}{question}", len(named) + context_chars)
            ids += [self._special["<|user|>"], *self._text(question)] if tiny else self._turn("user", question)
            if i == 0:
                after_question = len(ids)
            ids += [self._special["<|assistant|>"]] if tiny else self._begun("assistant\n")
            if answer is not None:
                start = len(ids)
                ids += [*self._text(answer), self.end_id]
                targets.append((start, len(ids)))
        return Laid(ids, targets, after_question, 0, context)

    def _turn(self, role: str, content: str) -> list[int]:
        return [*self._begun(f"{role}\n{content}"), self.end_id, *self._text("\n")]

    def _begun(self, text: str) -> list[int]:
        return [self._special["<|im_start|>"], *self._text(text)]

    def _tokens_within(self, text: str, chars: int) -> int:
        """How many of a text's tokens come before the first that goes beyond so many characters."""
        ends = [stop for _, stop in self._tokenizer.encode(text, add_special_tokens=False).offsets]
        return next((i for i, stop in enumerate(ends) if stop > chars), len(ends))

    def _text(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids


def _visual_at(laid: Laid, order: str) -> int:
    if order not in ORDERS:
        raise ValueError(f"order={order!r}: expected one of {', '.join(ORDERS)}")
    return laid.after_question if order == "question_first" else laid.after_bos


def _own(tokenizer: Any) -> str:
    """The tokenizer's chat template, of several the one called default."""
    found = getattr(tokenizer, "chat_template", None)
    if isinstance(found, dict):
        found = found.get("default")
    if not found or not isinstance(found, str):
        raise UserError(
            "language.template=own: the tokenizer carries no chat template; say how its model was taught to chat: "
            "language.template=vicuna (USER: … ASSISTANT:), chatml, or plain (a question, a line break, the answer), "
            "or put a chat_template.jinja into the folder"
        )
    return found


def _written(template: str, tokenizer: Any, named: Mapping[str, str]) -> str:
    """One of our templates. Where the tokenizer marks the beginning of a text as that of a word, but not what follows a
    token that is spelt out, a blank after the latter stands for it."""
    if "bos_token" not in named:
        return WRITTEN[template]
    ids = tokenizer("a", add_special_tokens=True)["input_ids"]
    for gap in ("", " "):
        if tokenizer(f"{named['bos_token']}{gap}a", add_special_tokens=False)["input_ids"] == ids:
            return WRITTEN[template].replace("{{ bos_token }}", "{{ bos_token }}" + gap)
    return WRITTEN[template]


def _puts_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer itself begins a text with its BOS, as it does for the models that were taught so."""
    bos = getattr(tokenizer, "bos_token_id", None)
    return bos is not None and tokenizer("a", add_special_tokens=True)["input_ids"][:1] == [bos]
