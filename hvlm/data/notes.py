"""What was done to texts on their way to the model, counted over all reading processes and said once."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Iterable

from hvlm.text.unknown import unknown_words

log = logging.getLogger(__name__)

EXAMPLES = 6
_ROOM = 600  # bytes of examples


class Tally:
    """A count with its first few distinct examples, shared with the processes that inherit it."""

    def __init__(self) -> None:
        self._count = multiprocessing.Value("q", 0)
        self._texts = multiprocessing.Value("q", 0)
        self._examples = multiprocessing.Array("c", _ROOM)

    @property
    def count(self) -> int:
        return self._count.value

    @property
    def texts(self) -> int:
        """In how many texts."""
        return self._texts.value

    @property
    def examples(self) -> list[str]:
        return [text for text in self._examples.value.decode("utf-8", "ignore").split("\n") if text]

    def add(self, examples: Iterable[str]) -> bool:
        """Count the examples of one text. Returns whether it is the first."""
        examples = [" ".join(text.split())[:60] for text in examples]
        with self._count:
            first = self._count.value == 0
            self._count.value += len(examples)
            self._texts.value += 1
            known = self.examples
            new = [text for text in dict.fromkeys(examples) if text not in known][: EXAMPLES - len(known)]
            if new:
                self._examples.value = "\n".join([*known, *new]).encode("utf-8", "replace")[: _ROOM - 1]
        return first


class Notes:
    """cut: texts that were made to fit ``dataset.max_tokens``. left_out: questions that could not be. unknown: words
    outside the vocabulary."""

    def __init__(self) -> None:
        self.cut, self.left_out, self.unknown = Tally(), Tally(), Tally()

    def say(self, max_tokens: int, unknown_token: str | None) -> None:
        """One line for each kind that there is."""
        if self.cut.count:
            log.warning(
                "dataset.too_long=cut: %d texts were cut to dataset.max_tokens=%d, e.g. %s",
                self.cut.count, max_tokens, ", ".join(self.cut.examples),
            )  # fmt: skip
        if self.left_out.count:
            log.warning(
                "%d questions are longer than dataset.max_tokens=%d and were not asked, e.g. %s; raise it if memory "
                "allows", self.left_out.count, max_tokens, ", ".join(self.left_out.examples),
            )  # fmt: skip
        if self.unknown.count:
            log.warning(unknown_words(self.unknown.count, self.unknown.texts, self.unknown.examples, unknown_token))
