"""Conversations by a tokenizer's own chat template, written in Jinja, as transformers renders it.

Everything is rendered and tokenized in one piece, so that ids are those of ``tokenizer.apply_chat_template``. What
keeps a special token that is spelt out in somebody's text from being one is a character without a meaning: it is put
into the text before it is rendered, and the tokenizer's normalizer takes it out after special tokens were looked for.
"""

from __future__ import annotations

import json
import os.path
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from jinja2 import TemplateError
from tokenizers import Tokenizer, normalizers

from hvlm.errors import UserError
from hvlm.text.bounded import MOST_STEPS, TooLong, bounded, takes_powers
from hvlm.text.sized import render

GUARD = "\ue000"
CONTEXT_ENDS = 2 * GUARD  # which no guarded text holds
KEY = "language.template"
# What the two templates of our own say without a system turn: Vicuna's text, and nothing.
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)
WRITTEN = {
    "vicuna": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set said = messages[0]['content'] %}{% else %}"
        f"{{% set said = {json.dumps(VICUNA)} %}}"
        "{% endif %}{{ said + ' ' if said else '' }}{% for m in messages %}{% if m['role'] == 'user' %}"
        "USER: {{ m['content'] }}{% elif m['role'] == 'assistant' %} ASSISTANT: {{ m['content'] }}{{ eos_token }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
    ),
    "plain": (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] }}{{ eos_token }}"
        "{% else %}{{ m['content'] + '\n' }}{% endif %}{% endfor %}"
    ),
}
# A template that writes today's date would give other ids tomorrow. It gets the day that Llama 3's falls back to.
_DAY = {
    "%d": "26", "%-d": "26", "%e": "26", "%b": "Jul", "%B": "July", "%m": "07", "%Y": "2024", "%y": "24",
    "%A": "Friday", "%a": "Fri", "%H": "00", "%M": "00", "%S": "00", "%%": "%",
}  # fmt: skip
# No format is long, and without a limit each beginning of a call would be read to the end of its line.
_CLOCK = re.compile(r"strftime_now\(\s{0,9}(?P<quote>['\"])(?P<format>[^'\"\n]{0,100})(?P=quote)\s{0,9}\)")
MOST_SOURCE = 256_000  # characters of a template; published ones have 20,000 at most
_MARK = re.compile(r"[<\[{|].*[>\]}|]")
_USER, _ANSWER, _SYSTEM = "hvlmuser", "hvlmanswer", "hvlmsystem"  # to find where a template puts what

Messages = Sequence[Mapping[str, str]]


class Laid(NamedTuple):
    """A conversation as ids.

    targets: [start, stop) of each assistant's turn with the token that closes it. after_question: how many tokens stand
    before the assistant's header of the first exchange. after_bos: how many before everything but that. context: how
    many up to the end of the context at the beginning of the first question; 0 without one.
    """

    ids: list[int]
    targets: list[tuple[int, int]]
    after_question: int
    after_bos: int
    context: int = 0


def without_clock(source: str) -> str:
    """The template with a fixed day in place of today. UserError where it asks for the time in another way."""

    def fixed(found: re.Match) -> str:
        return json.dumps(re.sub(r"%-?[A-Za-z%]", lambda part: _DAY.get(part.group(), ""), found["format"]))

    if len(source) > MOST_SOURCE:
        raise UserError(
            f"{KEY}=own: the tokenizer's chat template has {len(source):,} characters; expected {MOST_SOURCE:,} at "
            "most; set language.template to one of chatml, vicuna, plain"
        )
    source = _CLOCK.sub(fixed, source)
    if "strftime_now(" in source:
        raise UserError(
            f"{KEY}=own: the tokenizer's chat template asks for the time in a format that it computes; ids would "
            "depend on the day; set language.template to one of chatml, vicuna, plain"
        )
    return source


def guarded(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that takes the guard out of texts, and looks for special tokens in the text as it is written."""
    whole = json.loads(tokenizer.to_str())
    for token in whole["added_tokens"]:
        if token["special"]:
            token["normalized"] = False  # the guard is still there
    tokenizer = Tokenizer.from_str(json.dumps(whole, ensure_ascii=False))
    first = (whole["normalizer"] or {}).get("normalizers", [{}])[:1] or [{}]
    if first[0].get("pattern") != {"String": GUARD}:
        before = [] if tokenizer.normalizer is None else [tokenizer.normalizer]
        tokenizer.normalizer = normalizers.Sequence([normalizers.Replace(GUARD, ""), *before])
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


class Guard:
    """Keeps tokens that are spelt out in a text from being found in it."""

    def __init__(self, tokens: Iterable[str]) -> None:
        # The longest first.
        self.tokens = sorted({token for token in tokens if len(token) > 1}, key=lambda token: (-len(token), token))
        self._starts = re.compile(f"(?=(?:{'|'.join(map(re.escape, self.tokens))}))") if self.tokens else None

    def __call__(self, text: str) -> str:
        text = text.replace(GUARD, "")
        if self._starts is None:
            return text
        parts, last = [], 0
        for found in self._starts.finditer(text):
            parts += [text[last : found.start() + 1], GUARD]
            last = found.start() + 1
        return "".join([*parts, text[last:]])


def with_system(system: str, question: str, context_chars: int) -> tuple[str, int]:
    """A first question that the system message stands in, where there is no turn for it, and where its context ends."""
    whole = f"{system}\n\n{question}"
    return whole, context_chars + len(whole) - len(question) if context_chars else 0


class ChatTemplate:
    """A Jinja chat template with the tokenizer that it is written for.

    tokenizer: from ``guarded``. source: the template. named: {"bos_token": text, ...}, as templates call them.
    name: the setting ``language.template``, for messages.

    Raises UserError for a template that cannot be rendered, that leaves questions or answers out, or that closes an
    answer with no token where the tokenizer has no end-of-sequence token either.
    """

    def __init__(self, tokenizer: Tokenizer, source: str, named: Mapping[str, str], name: str) -> None:
        self.tokenizer, self.source, self.named, self.name = tokenizer, source, dict(named), name
        self.frozen = without_clock(source)
        self._powers = self._raises_to_powers()
        added = tokenizer.get_added_tokens_decoder()
        self.special = {token.content for token in added.values() if token.special}
        # Others that the template writes close turns, too. But what a vocabulary has been given for ordinary text (two
        # line breaks, say) belongs to everybody.
        mine = self.special | {t.content for t in added.values() if t.content in source and _MARK.fullmatch(t.content)}
        mine |= {token for token in self.named.values() if tokenizer.token_to_id(token) is not None}
        asked = [{"role": "user", "content": _USER}]
        answered = [*asked, {"role": "assistant", "content": _ANSWER}]
        header, whole = self._render(asked, True), self._render(answered, False)
        if _USER not in header or _ANSWER not in whole:
            raise UserError(
                f"{KEY}={name}: the chat template leaves {'answers' if _USER in header else 'questions'} out; set "
                "language.template to one of chatml, vicuna, plain"
            )
        self._closing = header[header.rindex(_USER) + len(_USER) :]
        self.end_id, self._adds_end = self._find_end(whole[whole.rindex(_ANSWER) + len(_ANSWER) :], added)
        self.end_ids = {self.end_id, *filter(None.__ne__, [tokenizer.token_to_id(self.named.get("eos_token", ""))])}
        self.of_others = Guard(mine)
        self.of_answers = Guard(self.special | {tokenizer.id_to_token(self.end_id)})
        self.takes_system = self._has_system_turn(asked, answered)

    def messages(
        self,
        prompt: str,
        answer: str | None,
        before: Sequence[tuple[str, str]],
        system: str | None,
        context_chars: int = 0,
    ) -> list[dict[str, str]]:
        """A conversation, its texts guarded. A system message goes into the first question where the template has no
        turn for one. The end of a context (``Prompt``) is marked."""
        exchanges: list[tuple[str, str | None]] = [*before, (prompt, answer)]
        out = []
        for i, (question, reply) in enumerate(exchanges):
            if i == 0 and system is not None:
                if self.takes_system:
                    out.append({"role": "system", "content": self.of_others(system)})
                elif system:
                    question, context_chars = with_system(system, question, context_chars)
            content = self.of_others(question)
            if i == 0 and context_chars:
                parts = question[:context_chars], question[context_chars:]
                content = CONTEXT_ENDS.join(self.of_others(part) for part in parts)
            out.append({"role": "user", "content": content})
            if reply is not None:
                out.append({"role": "assistant", "content": self.of_answers(reply)})
        return out

    def lay(self, messages: Messages) -> Laid:
        """Ids of a conversation; where it ends with a question, the assistant's header stands last.

        Raises:
            UserError: the template refuses the conversation, or writes an answer elsewhere than after its header.
        """
        open_end = messages[-1]["role"] != "assistant"
        whole = self._render(messages, open_end)
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        cuts = [self._start(messages[:i], whole) for i in answers]
        ids, places = self._joined(whole, cuts)
        targets = []
        for start, after in pairwise([*places, len(ids)]):
            stop = next((j + 1 for j in range(start, after) if ids[j] == self.end_id), None)
            if stop is None and self._adds_end and after == len(ids):
                ids, stop = [*ids, self.end_id], len(ids) + 1
            if stop is None:
                raise UserError(
                    f"{KEY}={self.name}: the chat template closes an earlier answer with another token than the last "
                    "one; conversations of several turns need another template: chatml, vicuna, plain"
                )
            targets.append((start, stop))
        if targets and not open_end:
            ids = ids[: targets[-1][1]]
        bos = self.named.get("bos_token")
        after_bos = int(bool(bos) and ids[:1] == [self.tokenizer.token_to_id(bos)])
        known = whole.find(CONTEXT_ENDS)
        context = 0 if known < 0 else len(os.path.commonprefix([self.encode(whole[:known]), ids]))
        return Laid(ids, targets, self._after_question(messages, ids), after_bos, context)

    def encode(self, text: str) -> list[int]:
        try:
            return self.tokenizer.encode(text, add_special_tokens=False).ids
        except TypeError as error:  # Rust has no text for it
            raise UserError(f"{KEY}={self.name}: what the chat template writes holds half a character") from error

    def _raises_to_powers(self) -> bool:
        try:
            return takes_powers(self.frozen)
        except TemplateError:
            return False  # rendering says what is wrong with it

    def _render(self, messages: Messages, header: bool, thinking: bool = False) -> str:
        try:
            with bounded(0 if self._powers else MOST_STEPS):
                return render(
                    self.frozen, messages, add_generation_prompt=header, enable_thinking=thinking, **self.named
                )
        except TooLong:
            raise UserError(
                f"{KEY}={self.name}: the chat template computes without an end in sight, which none does that only "
                "writes a conversation; set language.template to one of chatml, vicuna, plain"
            ) from None
        except Exception as error:  # a template is a program that anybody may have written
            said = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"{KEY}={self.name}: the chat template cannot write this conversation ({said[:200]}); set "
                "language.template to one of chatml, vicuna, plain, or change what is said"
            ) from error

    def _start(self, before: Messages, whole: str) -> int:
        """Where in the text an answer begins: after the header that generation starts from. (A template that writes
        what was thought has a header with and one without it.)"""
        for thinking in (False, True):
            text = self._render(before, True, thinking)
            if whole.startswith(text):
                return len(text)
        raise UserError(
            f"{KEY}={self.name}: the chat template writes an answer elsewhere than after its own header, so it cannot "
            "be trained on; set language.template to one of chatml, vicuna, plain"
        )

    def _joined(self, text: str, cuts: Sequence[int]) -> tuple[list[int], list[int]]:
        """(ids, number of tokens before each cut). The ids before a cut are those of the text before it, whatever comes
        after: a token that would stretch over a cut is split there."""
        ids: list[int] = []
        places = []
        last = 0
        for cut in [*cuts, len(text)]:
            found = self.encode(text[:cut])
            ids = found if found[: len(ids)] == ids else ids + self.encode(text[last:cut])
            places.append(len(ids))
            last = cut
        return ids, places[:-1]

    def _after_question(self, messages: Messages, ids: list[int]) -> int:
        """Between the first question and the assistant's header; before what closes the question where the template has
        no header, so that some text always stands between the video and the answer."""
        first = next(i for i, message in enumerate(messages) if message["role"] == "user")
        asked = messages[: first + 1]
        text = self._render(asked, True)
        end = len(os.path.commonprefix([text, self._render(asked, False)]))
        if not text[end:].strip() and text.endswith(self._closing):
            end = len(text) - len(self._closing)
        question = self.encode(text[:end])
        return len(os.path.commonprefix([question, ids]))

    def _find_end(self, tail: str, added: Mapping[int, object]) -> tuple[int, bool]:
        """(the token that closes an answer, whether it must be added because the template writes none)."""
        for index in self.encode(tail):
            if index in added:
                return index, False
        end = self.tokenizer.token_to_id(self.named.get("eos_token", ""))
        if end is None:
            raise UserError(
                f"{KEY}={self.name}: neither the chat template nor the tokenizer has a token that ends an answer; name "
                "one as eos_token in the folder's tokenizer_config.json"
            )
        return end, True

    def _has_system_turn(self, asked: Messages, answered: Messages) -> bool:
        system = {"role": "system", "content": _SYSTEM}
        try:
            prompt, row = self._render([system, *asked], True), self._render([system, *answered], False)
        except UserError:
            return False
        return _SYSTEM in prompt and row.startswith(prompt)
