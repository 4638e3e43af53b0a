"""What can be said on the command line of ``hvlm prepare``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hvlm.config.ranges import Fraction, NonNegativeInt, PositiveFloat, PositiveInt, Seed
from hvlm.config.schema import arguments
from hvlm.errors import UserError
from hvlm.io.foreign import said

# Parts that a column can play, in the order in which they are shown.
ROLES = (
    "video", "source", "split", "id", "domain", "task", "fps", "start", "end", "caption", "question", "answer",
    "options", "rejected", "conversations",
)  # fmt: skip
# Settings that change how the work is done and not what comes out: a second start may give them other values.
FREE = ("out", "dry_run", "workers", "max_bad", "decode_timeout", "videos", "src", "table")
WORD_FOR_WORD = ("src", "corpus", "tokenizer", "out", "videos", "table", "prompt")
OF_CORPORA = ("corpus", "tokenizer", "moments")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Settings:
    """The settings of one command.

    src: a table, or a folder with a table and videos, with videos and texts beside them, or as Hugging Face's
        ``save_to_disk`` writes it. corpus: the name of a public corpus (the first word), whose published files src
        holds; its columns are known. tokenizer: of corpus fvlm: the folder of the tokenizer that made its ids. moments:
        of corpus activitynet: each sentence is the caption of its own part of the video.
    out: the folder of the shards. table: the table's name, where ``src`` holds several.
    videos: the folder that paths in the table begin in; by default the table's own.
    video … conversations: the column that plays this part, ``none`` for no column; what is not said is guessed.
        options: one column, or one for each option. video: one, or several of which each row fills one. split: a
        column, or the shares of train, val and test.
    answers: how a multiple-choice answer is written: the option's text, its letter, its number from 0 or from 1.
    lettered: whether a multiple-choice question lists its options and asks for the letter.
    prompt: what is asked for a caption; by default what the reader asks.
    frames: that are decoded of every video to see that it can be read, beside the first and the last one.
    decode_timeout: seconds for that; a video that takes longer is a bad one.
    max_bad: share of the rows that may be bad; beyond it the work stops.
    shard_mb: about how large a shard becomes, in millions of bytes.
    seed: of the draw of the splits. workers: processes; 0: one for each processor.
    dry_run: say what would be made, without decoding or writing anything.
    """

    src: str
    corpus: str | None = None
    tokenizer: str | None = None
    moments: bool = False
    out: str | None = None
    table: str | None = None
    videos: str | None = None
    video: list[str] | str | None = None
    source: str | None = None
    split: list[Fraction] | str | None = None
    id: str | None = None
    domain: str | None = None
    task: str | None = None
    fps: str | None = None
    start: str | None = None
    end: str | None = None
    caption: str | None = None
    question: str | None = None
    answer: str | None = None
    options: list[str] | str | None = None
    rejected: str | None = None
    conversations: str | None = None
    answers: Literal["auto", "text", "letter", "index0", "index1"] = "auto"
    lettered: bool = False
    prompt: str | None = None
    frames: PositiveInt = 8
    decode_timeout: PositiveFloat = 60.0
    max_bad: Fraction = 0.05
    shard_mb: PositiveFloat = 256.0
    seed: Seed = 0
    workers: NonNegativeInt = 0
    dry_run: bool = False

    @property
    def shares(self) -> tuple[float, float, float]:
        """Of train, val and test, where no column says the split."""
        train, val, test = self.split if isinstance(self.split, list) else (0.9, 0.05, 0.05)
        return train, val, test

    def said(self) -> dict[str, Any]:
        """What decides the result, for comparison with an earlier start."""
        said = {name: value for name, value in vars(self).items() if name not in FREE}
        return {name: value for name, value in said.items() if self.corpus or name not in OF_CORPORA}


def read(words: Sequence[str]) -> Settings:
    """``SRC key=value …``, or ``CORPUS src=SRC key=value …``. Raises UserError."""
    given: dict[str, Any] = {}
    if any(word.startswith("src=") for word in words):
        words = [word if "=" in word else f"corpus={word}" for word in words]
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key.isidentifier():
            if "src" in given:
                raise UserError(f"{word}: {given['src']} is the source already; everything else is setting=value")
            given["src"] = word
            continue
        if key in given:
            raise UserError(f"{key} is given twice: {given[key]} and {text}")
        given[key] = _value(key, text)
    if "src" not in given:
        corpus = given.get("corpus")
        way = f"{corpus} src=SRC" if corpus else "SRC"
        raise UserError(f"nothing to prepare: hvlm prepare {way} out=DIR, SRC being a table or a folder of videos")
    settings = Settings(**arguments(given, Settings, ""))
    if not settings.dry_run and not settings.out:
        raise UserError("out= is missing: name the folder for the shards, or look first with dry_run=true")
    if isinstance(settings.split, list):
        if len(settings.split) != 3 or abs(sum(settings.split) - 1) > 1e-6:
            raise UserError(
                f"split={settings.split}: expected the shares of train, val and test, which make 1 together, e.g. "
                "split=[0.9,0.05,0.05], or the name of a column"
            )
    return settings


def _value(key: str, text: str) -> Any:
    """Lists, numbers, true and false as YAML says; paths, prompts and names word for word."""
    if key in WORD_FOR_WORD or (key in ROLES and not text.startswith("[")):
        return text or None
    return said(text)
