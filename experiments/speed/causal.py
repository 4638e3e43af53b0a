"""Does ``language=causal`` read and write SmolLM2-135M as fast as the room that is made for it?

Both hold the same random weights. Cases: a training step over a row of 128 tokens (states, logits of the last 32, and
back), reading 4 rows of 128 without gradients, and writing 16 tokens greedily after a prompt of 32. In turns, CPU
seconds of one thread, for other programs run beside; the ratio is the median over the rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from hvlm.caching import PastKV
from hvlm.contracts import Language
from hvlm.evaluation import results
from hvlm.language.causal import Causal
from hvlm.language.smollm2 import SmolLM2

VOCABULARY = 49_152
CONFIG = {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
    "rope_theta": 1e5, "tie_word_embeddings": True,
}  # fmt: skip
TOKENS = {"step": 128, "reading": 4 * 128, "writing": 16}


def records(repeats: int) -> list[results.Record]:
    """Measure all cases, print a line for each, and give what ``results.json`` says of them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rooms: dict[str, Language] = {
        "smollm2": SmolLM2(None, vocab_size=VOCABULARY),
        "causal": Causal(None, config=CONFIG, vocab_size=VOCABULARY),
    }
    rooms["causal"].load_state_dict(rooms["smollm2"].state_dict(), assign=True)
    found = []
    for case, act in (("step", step), ("reading", reading), ("writing", writing)):
        seconds = in_turns(rooms, act, repeats)
        ratio = statistics.median(a / b for a, b in zip(seconds["smollm2"], seconds["causal"], strict=True))
        print(f"{case:10s} causal at {ratio:.3f} x the speed of smollm2")
        for name, taken in seconds.items():
            columns = {"case": f"smollm2_135m_{case}", "threads": 1, "ratio_to_smollm2": 1.0}
            if name == "causal":
                columns["ratio_to_smollm2"] = round(ratio, 3)
            found.append(
                results.make("speed", name, "tokens_per_cpu_s", TOKENS[case] / statistics.median(taken), stderr=None,
                             n=repeats, chance=None, seeds=[1], seconds=sum(taken), columns=columns,
                             command=f"python -m experiments.speed --only causal --repeats {repeats}")
            )  # fmt: skip
    torch.set_num_threads(threads)
    return found


def in_turns(rooms: dict[str, Language], act: Callable[[Language], None], repeats: int) -> dict[str, list[float]]:
    """CPU seconds of every repeat, after one round to warm up; each round begins with the other room."""
    seconds: dict[str, list[float]] = {name: [] for name in rooms}
    for i in range(repeats + 1):
        for name in list(rooms)[:: 1 if i % 2 else -1]:
            started = time.process_time()
            act(rooms[name])
            if i:
                seconds[name].append(time.process_time() - started)
    return seconds


def step(room: Language) -> None:
    h = room.hidden(room.embed(torch.arange(128)[None]))
    room.logits(h[:, -32:]).float().logsumexp(-1).sum().backward()
    room.zero_grad()


@torch.inference_mode()
def reading(room: Language) -> None:
    room.hidden(room.embed(torch.arange(512).view(4, 128)))


@torch.inference_mode()
def writing(room: Language) -> None:
    cache = PastKV()
    newest = room.hidden(room.embed(torch.arange(32)[None]), cache=cache)[:, -1:]
    for _ in range(TOKENS["writing"]):
        newest = room.hidden(room.embed(room.logits(newest).argmax(-1)), cache=cache)
