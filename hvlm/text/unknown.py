"""Words outside a vocabulary, said in one line: the model does not read them."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Protocol

log = logging.getLogger(__name__)

ADVICE = (
    "train the vocabulary on texts with these words, or use a pretrained language model (language=smollm2_135m, or "
    "language=causal)"
)


class Vocabulary(Protocol):
    """What is needed of a chat (``hvlm.text.chat.Chat``)."""

    unknown_token: str | None

    def unknown(self, prompt: str, answer: str = "") -> list[str]: ...


def unknown_words(words: int, texts: int, examples: Iterable[str], token: str | None) -> str:
    """The line.

    Args:
        words: how many, and in how many ``texts``.
        examples: a few of them.
        token: what the model reads in their place.
    """
    shown = ", ".join(map(repr, examples))
    return (
        f"{words:,} words in {texts:,} texts are outside the vocabulary: {shown}; the model reads {token} for each of "
        f"them; {ADVICE}"
    )


def warn_of_question(chat: Vocabulary, question: str) -> None:
    """Say at once which words of a question the model cannot read."""
    if found := chat.unknown(question):
        examples = list(dict.fromkeys(found))[:6]
        log.warning("the question: %s", unknown_words(len(found), 1, examples, chat.unknown_token))


def warn_of_answers(chat: Vocabulary, answers: Iterable[str | None]) -> None:
    """Say where the model itself wrote the token that stands for unknown words."""
    answers, token = [answer for answer in answers if answer], chat.unknown_token
    found = [answer for answer in answers if token is not None and token in answer]
    if found:
        examples = ", ".join(repr(answer[:60]) for answer in list(dict.fromkeys(found))[:3])
        log.warning(
            "%d of %d answers contain %s, e.g. %s: the model learned from texts with words outside its vocabulary; %s",
            len(found), len(answers), token, examples, ADVICE,
        )  # fmt: skip
