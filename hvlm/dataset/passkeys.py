"""Passkeys in a long text, and questions about them: what is far back must be found again (after DuoAttention, Xiao et
al. 2024, §2.2, and the passkey task of Mohtashami and Jaggi 2023).

A sample is one conversation without a video: a long text in which sentences stand that name passkeys (``context``), and
questions for them. Which one is asked for is drawn anew each time, so no answer follows from those before. Each sample
is a function of (settings, seed, split, number) and, with texts of one's own, of these.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from hvlm.config.ranges import Fraction, Ge, Le, NonNegativeInt, PositiveFloat, PositiveInt, Seed
from hvlm.data.shard_index import write_manifest, write_shard
from hvlm.dataset._generated import GeneratedSet, Wanted
from hvlm.dataset._passkeys_text import KEY_WORDS, ORDINALS, TEMPLATES, conversation, filler, filler_words
from hvlm.errors import UserError

log = logging.getLogger(__name__)

VERSION = 2  # of the generator: raise it when the same settings give other samples
SPLITS = ("train", "val", "test")
# Fractions of each text of one's own; the gaps keep a paragraph on one side.
SEGMENTS = {"train": (0.0, 0.60), "val": (0.65, 0.78), "test": (0.83, 1.0)}


class Passkeys(GeneratedSet):
    """Settings of one generated set; ``prepare`` makes what is missing, ``manifest`` opens it.

    root: folder that receives ``passkeys-<hash of the settings>/``; None: ``HVLM_DATA`` of the environment, or
        ``data`` in the working directory.
    haystack: a text file, or a folder of ``*.txt``, searched recursively, of which each split gets a part of its own;
        None = sentences made from a small grammar.
    train_samples, val_samples, test_samples: per split.
    min_words, max_words, lengths: of the text around the passkeys; lengths that many steps apart take turns.
    passkeys, key_words: how many are hidden, and of how many words (of 26) each is made.
    questions: how many are asked, each for a passkey drawn from all.
    min_depth, max_depth: where passkeys may stand, as shares of the text.
    shard_samples: samples per shard. seed: of the generator.
    max_tokens: of one conversation. too_long: what becomes of a longer one: ``refuse`` makes a bad sample: named,
        counted, left out; ``cut`` leaves out the oldest exchanges, and with the first one the text.
    num_frames, decoder, decode_timeout: of videos that a model trained on this set is asked about; the set has none.
    """

    access = "index"
    domain = "general"
    kind = "passkeys"
    text_only = True

    def __init__(
        self,
        root: str | None = None,
        haystack: str | None = None,
        train_samples: PositiveInt = 500,
        val_samples: NonNegativeInt = 50,
        test_samples: NonNegativeInt = 100,
        min_words: PositiveInt = 500,
        max_words: PositiveInt = 4000,
        lengths: PositiveInt = 50,
        passkeys: Annotated[int, Ge(1), Le(len(ORDINALS))] = 10,
        key_words: PositiveInt = 32,
        questions: PositiveInt = 10,
        min_depth: Fraction = 0.05,
        max_depth: Fraction = 0.95,
        shard_samples: PositiveInt = 125,
        seed: Seed = 0,
        max_tokens: PositiveInt = 8192,
        too_long: Literal["refuse", "cut"] = "refuse",
        num_frames: PositiveInt = 16,
        decoder: Literal["pyav", "decord"] = "pyav",
        decode_timeout: PositiveFloat = 60.0,
    ) -> None:
        self.root = Path(root or os.environ.get("HVLM_DATA") or "data")
        self.haystack, self.per_shard, self.seed = haystack, shard_samples, seed
        self.counts = dict(zip(SPLITS, (train_samples, val_samples, test_samples), strict=True))
        self.words, self.lengths = (min_words, max_words), lengths
        self.passkeys, self.key_words, self.asked = passkeys, key_words, questions
        self.depth = (min_depth, max_depth)
        self.max_tokens, self.too_long = max_tokens, too_long
        self.num_frames, self.decoder, self.decode_timeout = num_frames, decoder, decode_timeout
        if min_words > max_words:
            raise UserError(f"dataset.min_words={min_words}: more than dataset.max_words={max_words}")
        if min_depth >= max_depth:
            raise UserError(f"dataset.min_depth={min_depth:g}: expected less than dataset.max_depth={max_depth:g}")
        if min_words < passkeys:
            raise UserError(f"dataset.min_words={min_words}: too few to part dataset.passkeys={passkeys} passkeys")

    @property
    def spec(self) -> dict[str, Any]:
        """Everything that decides the bytes of the shards, apart from one's own texts."""
        names = ("haystack", "counts", "words", "lengths", "passkeys", "key_words", "asked", "depth", "seed")
        spec = {name: getattr(self, name) for name in names} | {"shard_samples": self.per_shard}
        return spec | {"generator": VERSION, "templates": list(TEMPLATES)}

    def texts(self) -> Iterator[str]:
        """Sentences with every word of the set, for a tokenizer."""
        yield from (*TEMPLATES, *ORDINALS, *KEY_WORDS)
        if self.haystack is None:
            yield from filler_words()
        else:
            yield from (text for _, text in self._own_texts())

    def make(self, wanted: Wanted, progress: bool) -> None:
        """Make all shards, without a bar: it takes seconds. UserError about the haystack."""
        own = None if self.haystack is None else self._own_texts()
        texts = None if own is None else [text.split() for _, text in own]
        log.info("making %d shards in %s", len(wanted), self.folder)
        shards = {name: self._shard(name, split, numbers, texts) for name, (split, numbers) in wanted.items()}
        sources = [{"name": name, "words": len(text.split())} for name, text in own or ()]
        write_manifest(self.folder, self.spec | {"sources": sources}, shards, [])

    def _shard(self, name: str, split: str, numbers: range, texts: list[list[str]] | None) -> dict[str, Any]:
        samples = [self.sample(split, number, texts) for number in numbers]
        files = [(s["key"], {"json": json.dumps(s, sort_keys=True, separators=(",", ":")).encode()}) for s in samples]
        return write_shard(self.folder / name, files, split, [self.domain] * len(files))

    def sample(self, split: str, number: int, texts: list[list[str]] | None = None) -> dict[str, Any]:
        """One sample's JSON. texts: one's own, as words; None: made ones."""
        rng = np.random.default_rng([self.seed, SPLITS.index(split), number])
        least, most = self.words
        length = round(least + (most - least) * (number % self.lengths) / max(1, self.lengths - 1))
        words = filler(rng, length) if texts is None else _stretch(rng, texts, split, length)
        messages, depths = conversation(rng, words, self.passkeys, self.key_words, self.asked, self.depth)
        context, _, messages[0]["content"] = messages[0]["content"].rpartition("\n\n")
        info = {"key": f"passkeys-{split}-{number:06d}", "split": split, "words": length, "depths": depths}
        return info | {"questions": [{"id": "q0", "task": "passkeys", "context": context, "messages": messages}]}

    def _own_texts(self) -> list[tuple[str, str]]:
        """(name, text) of every file, by name."""
        path = Path(str(self.haystack)).expanduser()
        files = sorted(path.rglob("*.txt")) if path.is_dir() else [path] if path.is_file() else []
        if not files:
            raise UserError(f"dataset.haystack={self.haystack}: no such text file, and no folder with *.txt in it")
        found = []
        for file in files:
            try:
                text = file.read_text(encoding="utf-8-sig")
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"dataset.haystack: {file} cannot be read as UTF-8 text ({error})") from error
            found.append((file.name if path.is_file() else file.relative_to(path).as_posix(), text))
        if min(len(_part(text.split(), split)) for _, text in found for split in SPLITS) < 1:
            short = next(name for name, text in found if min(len(_part(text.split(), s)) for s in SPLITS) < 1)
            raise UserError(f"dataset.haystack: {short} has too few words to be divided among train, val and test")
        return found


def _part(words: list[str], split: str) -> list[str]:
    first, last = SEGMENTS[split]
    return words[int(first * len(words)) : int(last * len(words))]


def _stretch(rng: np.random.Generator, texts: list[list[str]], split: str, length: int) -> list[str]:
    """Neighbouring words of the split's part of one text; where that is shorter, it is read again from its start."""
    part = _part(texts[rng.integers(len(texts))], split)
    start = int(rng.integers(max(1, len(part) - length + 1)))
    return [part[(start + i) % len(part)] for i in range(length)]
