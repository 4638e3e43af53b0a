"""What stands in a sample with passkeys: filler, the sentences that name them, and the conversation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

KEY_WORDS = (
    "alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliett", "kilo", "lima",
    "mike", "november", "oscar", "papa", "quebec", "romeo", "sierra", "tango", "uniform", "victor", "whiskey", "xray",
    "yankee", "zulu",
)  # fmt: skip
ORDINALS = (
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh",
    "twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth",
)  # fmt: skip
BEFORE = "Read this long book. <book>"
NEEDLE = "Keep in mind: the {ordinal} passkey to the vault is {words}."
AFTER = "</book> Now answer from the book."
QUESTION = "What is the {ordinal} passkey to the vault?"
TEMPLATES = (BEFORE, NEEDLE, AFTER, QUESTION)

_WHO = ("the miller", "a sailor", "the old queen", "a young clerk", "the baker", "a shepherd", "the doctor", "a singer")
_DOES = ("carried", "painted", "forgot", "mended", "watched", "sold", "found", "praised")
_WHAT = ("a lantern", "the blue cart", "some bread", "a letter", "the garden gate", "two horses", "a bell", "the map")
_WHERE = ("by the river", "near the mill", "behind the church", "at the market", "under the bridge", "in the rain")
_WHEN = ("that morning", "before winter", "late at night", "every spring", "once more", "without a word")
_PARTS = (_WHO, _DOES, _WHAT, _WHERE, _WHEN)
DEPTHS = 1000  # places from which those of the passkeys are drawn


def filler(rng: np.random.Generator, length: int) -> list[str]:
    """That many words of made sentences."""
    words: list[str] = []
    while len(words) < length:
        sentence = " ".join(part[rng.integers(len(part))] for part in _PARTS)
        words += f"{sentence[0].upper()}{sentence[1:]}.".split()
    return words[:length]


def filler_words() -> Iterator[str]:
    """Texts with every word of the filler."""
    for part in _PARTS:
        yield from part


def conversation(
    rng: np.random.Generator,
    words: list[str],
    passkeys: int,
    key_words: int,
    questions: int,
    depth: tuple[float, float],
) -> tuple[list[dict[str, str]], list[float]]:
    """(messages, the passkeys' depths as shares of the text).

    Args:
        words: of the text around them.
        passkeys, key_words, questions: how many passkeys, words of each, and questions, each for one drawn from all.
        depth: least and greatest, as shares of the text.
    """
    keys = [" ".join(KEY_WORDS[i] for i in rng.integers(len(KEY_WORDS), size=key_words)) for _ in range(passkeys)]
    places = np.linspace(*depth, DEPTHS)[np.sort(rng.choice(DEPTHS, passkeys, replace=False))]
    text, begun = [BEFORE], 0
    for ordinal, key, place in zip(ORDINALS, keys, places.tolist(), strict=False):
        at = int(place * len(words))
        text += [" ".join(words[begun:at]), NEEDLE.format(ordinal=ordinal, words=key)]
        begun = at
    text += [" ".join(words[begun:]), AFTER]
    messages = []
    for i, which in enumerate(rng.integers(passkeys, size=questions).tolist()):
        asked = QUESTION.format(ordinal=ORDINALS[which])
        before = "\n\n".join(part for part in text if part) + "\n\n" if i == 0 else ""
        messages.append({"role": "user", "content": before + asked})
        messages.append({"role": "assistant", "content": keys[which]})
    return messages, [round(place, 6) for place in places.tolist()]
