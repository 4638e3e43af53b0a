"""The package kvpress on prompts that others are asked, too. Runs in an environment of its own and imports no hvlm.

    .venv-kvpress/bin/python experiments/duo/kvpress_peer.py MODEL prompts.jsonl answers.jsonl
        --press none,snapkv,expected,kvzip,adakv,duo --keep 0.5,0.25 [--pattern DIR] [--window 32] [--sink 64]
        [--recent 256] [--tokens 8] [--retrieval 0.4,0.2]

MODEL: a Hugging Face folder. Prompts, one a line: {"id", "context_ids", "question_ids"}; ids, so that every reader
reads the same tokens. The context goes through the model under the press, the question after it, and the answer is
written greedily, as in kvpress' own pipeline. Answers, one for each prompt, press and share that is kept: {"id",
"press", "keep", "answer_ids", "places", "said"}. places: of all layers' and heads' keys that are stored in the cache
after the context, as a share of the full cache's; said: the share that the press says it keeps. They differ for kvzip,
adakv and duo, which mask what they forget and store it all the same.

duo: kvpress' own DuoAttention, with the gates of ``--pattern`` (published ones are for models of 7 B and more, and its
score without training needs a corpus from the hub); keep is the share of retrieval heads, or what ``--retrieval`` says
in its place, a share for each of ``--keep``.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kvpress import AdaKVPress, DuoAttentionPress, ExpectedAttentionPress, KVzipPress, SnapKVPress
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.utils import logging

PRESSES = ("none", "snapkv", "expected", "kvzip", "adakv", "duo")


class GivenDuo(DuoAttentionPress):
    """With gates from a file in place of those that kvpress knows where to download."""

    def __init__(self, keep: float, gates: np.ndarray, sink: int, recent: int) -> None:
        super().__init__(head_compression_ratio=1 - keep)
        self.given = sink, recent, gates

    def load_attention_pattern(self, model: Any) -> tuple[int, int, np.ndarray]:  # called on the instance there, too
        del model
        return self.given


def press_of(name: str, keep: float, options: argparse.Namespace) -> Any:
    """None for the full cache."""
    lost = 1 - keep
    if name == "none" or keep >= 1:
        return None
    if name == "snapkv":
        return SnapKVPress(compression_ratio=lost, window_size=options.window, kernel_size=5)
    if name == "expected":
        return ExpectedAttentionPress(compression_ratio=lost)
    if name == "kvzip":
        return KVzipPress(compression_ratio=lost)
    if name == "adakv":
        return AdaKVPress(ExpectedAttentionPress(compression_ratio=lost))
    if options.pattern is None:
        raise SystemExit("--press duo: give the gates with --pattern DIR")
    gates = np.clip(np.loadtxt(options.pattern / "full_attention_heads.tsv", delimiter="\t", ndmin=2), 0, 1)
    shares = dict(zip(options.keep.split(","), options.retrieval.split(","), strict=True)) if options.retrieval else {}
    keep = float({float(k): share for k, share in shares.items()}.get(keep, keep))
    return GivenDuo(keep, gates, options.sink, options.recent)


@torch.inference_mode()
def answer(model: Any, press: Any, context: list[int], question: list[int], tokens: int) -> dict[str, Any]:
    cache, ids = DynamicCache(), torch.tensor([context])
    if press is None:
        model.model(input_ids=ids, past_key_values=cache)
    else:
        with press(model):
            model.model(input_ids=ids, past_key_values=cache)
    stored = sum(layer.keys.shape[2] for layer in cache.layers) / (len(cache.layers) * len(context))
    said = 1.0 if press is None else 1 - press.compression_ratio
    new, position, written = torch.tensor([question]), len(context), []
    for _ in range(tokens):
        places = torch.arange(position, position + new.shape[1])[None]
        logits = model(input_ids=new, past_key_values=cache, position_ids=places, logits_to_keep=1).logits
        position += new.shape[1]
        new = logits[:, -1].argmax(-1, keepdim=True)
        written.append(int(new))
    return {"answer_ids": written, "places": stored, "said": float(said)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("answers", type=Path)
    parser.add_argument("--press", default="none,snapkv,expected,kvzip,adakv", help=", ".join(PRESSES))
    parser.add_argument("--keep", default="0.5,0.25")
    parser.add_argument("--retrieval", help="shares of retrieval heads for duo, one for each of --keep")
    parser.add_argument("--pattern", type=Path)
    parser.add_argument("--window", type=int, default=32)
    parser.add_argument("--sink", type=int, default=64)
    parser.add_argument("--recent", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=8)
    options = parser.parse_args()
    names = options.press.split(",")
    if wrong := sorted(set(names) - set(PRESSES)):
        raise SystemExit(f"--press {wrong[0]}: expected some of {', '.join(PRESSES)}")
    warnings.filterwarnings("ignore")
    logging.disable_progress_bar()
    prompts = [json.loads(line) for line in options.prompts.read_text(encoding="utf-8").splitlines()]
    model = AutoModelForCausalLM.from_pretrained(
        options.model, dtype=torch.float32, attn_implementation="sdpa", trust_remote_code=False
    ).eval()
    cells = [(n, float(k)) for n in names if n != "none" for k in options.keep.split(",")]
    cells = [("none", 1.0)] * ("none" in names) + cells
    with options.answers.open("w", encoding="utf-8") as out:
        for name, keep in cells:
            print(f"kvpress {name} {keep:g}", flush=True)
            for prompt in prompts:
                press = press_of(name, keep, options)
                found = answer(model, press, prompt["context_ids"], prompt["question_ids"], options.tokens)
                print(json.dumps({"id": prompt["id"], "press": name, "keep": keep, **found}), file=out, flush=True)


if __name__ == "__main__":
    main()
