"""How things are asked.

Multiple choice with letters, as VNBench asks it: the options stand in the prompt and the answer is a letter. A question
that follows others in a conversation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

DESCRIBE = "Describe this."  # asked when a caption comes without a prompt
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
POST_PROMPT = "Answer with the option's letter from the given choices directly."


def lettered_prompt(question: str, options: Iterable[str]) -> str:
    """The question, one ``A. text`` line per option, and the request for the letter."""
    lines = [f"{LETTERS[i]}. {option}" for i, option in enumerate(options)]
    return "\n".join([question, *lines, POST_PROMPT])


def bare_options(options: Sequence[str]) -> tuple[str, ...]:
    """The options without their own letters (``A. red``, ``(A) red``, ``A) red``, ``A: red``), if all have them."""
    found = [re.match(rf"\(?{LETTERS[i]}[.):]\s+(?=\S)", option) for i, option in enumerate(options[: len(LETTERS)])]
    if not options or None in found:
        return tuple(options)
    return tuple(option[own.end() :] for option, own in zip(options, found, strict=True) if own)


class Prompt(str):
    """A question with the conversation that it stands in. Equal only to one that stands in the same.

    before: the earlier exchanges, (question, answer). system: the conversation's own system message, or None.
    context_chars: so many characters at the beginning of the conversation's first question are no question yet, but a
        text that is asked about: it is read, and what a cache does not keep of it forgotten, before the rest is.
    """

    before: tuple[tuple[str, str], ...]
    system: str | None
    context_chars: int

    def __new__(
        cls, text: str, before: Sequence[Sequence[str]] = (), system: str | None = None, context_chars: int = 0
    ) -> Prompt:
        made = super().__new__(cls, text)
        made.before, made.system = tuple((asked, answered) for asked, answered in before), system
        made.context_chars = context_chars
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:
        return str(self), self.before, self.system, self.context_chars

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and str.__eq__(self, other) and context(self) == context(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return str.__hash__(self)


def context(prompt: str) -> dict[str, Any]:
    """What ``Chat.encode`` must be told of a question beside its text: nothing where it stands alone."""
    plain = {"before": (), "system": None, "context_chars": 0}
    found = {name: getattr(prompt, name, value) for name, value in plain.items()}
    return {name: value for name, value in found.items() if value != plain[name]}
