"""What SmolLM2 is asked: passkeys in texts, and flashes in clips through a connector. The context is read first, once;
each question then goes on from a copy of what the cache kept.

An answer is chosen among the words that can be one (26 words of passkeys, six colours), by the first token of each, no
two of which are the same. SmolLM2 answers in a sentence of its own, so a passkey's answer is begun for it ("The second
passkey to the vault is"), and after each word it goes on from the right one. Where all words are right, greedy
decoding among these words writes the passkey.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from experiments.duo._smollm2_models import passkeys
from hvlm.contracts import KVCache, Language
from hvlm.data.views import Questions
from hvlm.dataset._needles_scene import COLOURS, SHAPES
from hvlm.dataset._needles_text import KEYS
from hvlm.dataset._passkeys_text import KEY_WORDS, QUESTION
from hvlm.rebuild import Loaded
from hvlm.text.chat import Chat

NAMED = re.compile(r"the (\w+) passkey to the vault is ([a-z ]+)\.")


class Asked(NamedTuple):
    """A question as it follows the context, up to its answer's last word. places: of the tokens from which a word is
    predicted. right: which of the choices each is."""

    ids: list[int]
    places: list[int]
    right: list[int]


class Sample(NamedTuple):
    """context: embeddings [1, S, D]. choices: the first token of each word that can be an answer."""

    context: Tensor
    asked: list[Asked]
    choices: list[int]


class Answers(NamedTuple):
    """kv_bytes: of keys and values when the context was read. logprobs: of each question, of each word, of each choice,
    normalised among them. right: which of them it is."""

    tokens: int
    kv_bytes: int
    logprobs: list[list[list[float]]]
    right: list[list[int]]


@torch.inference_mode()
def ask(language: Language, room: KVCache, sample: Sample) -> Answers:
    """Every question about a sample through one cache."""
    cache = room.new()
    language.hidden(sample.context, None, None, cache)
    kept, found = int(cache.nbytes), []
    for asked in sample.asked:
        h = language.hidden(language.embed(torch.tensor([asked.ids])), None, None, cache.copy())
        logits = language.logits(h[0, asked.places])[:, sample.choices]
        found.append(logits.float().log_softmax(-1).tolist())
    return Answers(sample.context.shape[1], kept, found, [asked.right for asked in sample.asked])


def texts(language: Language, chat: Chat, tokens: int, count: int) -> Iterator[Sample]:
    """Test texts of about so many tokens; each of their passkeys is asked for."""
    tokenizer = chat.to_fast()

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    choices = [ids(f" {word}")[0] for word in KEY_WORDS]
    for number in range(count):
        text = passkeys(tokens).sample("test", number)["questions"][0]["context"]
        keys = [(ordinal, key.split()) for ordinal, key in NAMED.findall(text)]
        context, questions = apart(chat, text, [QUESTION.format(ordinal=ordinal) for ordinal, _ in keys])
        asked = []
        for question, (ordinal, words) in zip(questions, keys, strict=True):
            begun, places = question + ids(f"The {ordinal} passkey to the vault is"), []
            for word in words:
                places.append(len(begun) - 1)
                begun += ids(f" {word}")
            asked.append(Asked(begun, places, [KEY_WORDS.index(word) for word in words]))
        with torch.inference_mode():
            yield Sample(language.embed(torch.tensor([context])), asked, choices)


def apart(chat: Chat, text: str, questions: Sequence[str]) -> tuple[list[int], list[list[int]]]:
    """The ids of a text, and those that follow where a question stands after it in the same turn."""
    prompts = [chat.encode_prompt(f"{text}\n\n{question}")[0] for question in (*questions, ".")]
    shared = len(os.path.commonprefix(prompts))
    return prompts[0][:shared], [prompt[shared:] for prompt in prompts[:-1]]


@torch.inference_mode()
def clips(loaded: Loaded, count: int, written: bool = False) -> Iterator[Sample]:
    """Test clips; the colour of each of their flashes is asked for, in the wording that no gate was learnt from.

    written: in place of the video stands, in words, what flashes in it.
    """
    language, chat = loaded.model.language, loaded.chat
    choices = [chat.to_fast().encode(word, add_special_tokens=False)[0] for word in COLOURS]
    for batch in loaded.reader().loader("test", Questions(), None, 1, count):
        at = int(batch.visual_at_K[0])
        answers = batch.loss_mask_KS.int().argmax(1).tolist()
        questions = [ids[at:end].tolist() for ids, end in zip(batch.input_ids_KS, answers, strict=True)]
        right = [COLOURS.index(row["answer"]) for row in batch.rows]
        if written:
            asked = [next(shape for shape in SHAPES if shape in chat.decode(ids)) for ids in questions]
            said = [f"a {COLOURS[c]} {shape}" for c, shape in zip(right, asked, strict=True)]
            text = f"the video shows {', then '.join(said)} ."
            ids, questions = apart(chat, text, [KEYS["second"].format(shape=shape) for shape in asked])
            context = language.embed(torch.tensor([ids]))
        else:
            sequence = loaded.model.sequence(batch)
            context = sequence.x_KLD[:1, : at + sequence.visual]
        yield Sample(context, [Asked(q, [len(q) - 1], [r]) for q, r in zip(questions, right, strict=True)], choices)
