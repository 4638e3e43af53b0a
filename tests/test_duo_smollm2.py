"""experiments.duo.smollm2 on models of a few thousand weights: what is asked, and what is written down."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from experiments.duo import _smollm2_models as models
from experiments.duo import smollm2 as duo
from experiments.duo._cells import Cell
from experiments.duo._smollm2_ask import Sample, ask, clips, texts
from experiments.duo._smollm2_records import collect, table
from hvlm import assembly
from hvlm.config.compose import compose
from hvlm.dataset._passkeys_text import KEY_WORDS, QUESTION
from hvlm.dataset.passkeys import Passkeys
from hvlm.evaluation import results
from hvlm.evaluation.stats import clustered_mean
from hvlm.io.head_patterns import write_pattern
from hvlm.kvcache.full import FullCache
from hvlm.language.smollm2 import SmolLM2
from hvlm.rebuild import Loaded
from hvlm.text.chat import Chat
from hvlm.text.tokenizer import train_word_tokenizer
from hvlm.training.start import start_stage


@pytest.fixture(scope="module")
def loaded(needles: list[str]) -> Loaded:
    keys = ["dataset.set=keys", "dataset.keys=2", "connector=patches", "order=video_first", "language.num_layers=2"]
    cfg = compose(["stage=sft", *needles, *keys, "dataset.wording=second"])
    data = assembly.dataset(cfg)
    data.prepare(progress=False)
    torch.manual_seed(0)
    stage, chat = start_stage(cfg, data, None)
    return Loaded(stage.model.eval(), chat, data, assembly.input_spec(cfg, stage.model), "32-true", cfg)


@pytest.fixture(scope="module")
def reader() -> tuple[SmolLM2, Chat]:
    """A language model that knows every word of the passkeys."""
    chat = Chat(train_word_tokenizer(Passkeys().texts()), "tiny", None)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2}
    return SmolLM2(chat, template="tiny", init_std=0.3, **sizes).eval(), chat


def test_each_passkey_of_a_text_is_asked_for_after_it(reader: tuple[SmolLM2, Chat]) -> None:
    language, chat = reader
    (sample,) = texts(language, chat, 300, 1)
    names = ["first", "second", "third", "fourth"]
    assert len(sample.asked) == models.KEYS and len(set(sample.choices)) == len(KEY_WORDS)
    made = Passkeys(min_words=126, max_words=126, passkeys=models.KEYS, key_words=models.KEY_WORDS).sample("test", 0)
    text = made["questions"][0]["context"]
    for name, asked in zip(names, sample.asked, strict=True):
        whole = chat.encode_prompt(f"{text}\n\n{QUESTION.format(ordinal=name)}")[0]
        torch.testing.assert_close(sample.context, language.embed(torch.tensor([whole]))[:, : sample.context.shape[1]])
        assert asked.ids[: len(whole) - sample.context.shape[1]] == whole[sample.context.shape[1] :]
        words = [sample.choices[right] for right in asked.right]
        assert [asked.ids[place + 1] for place in asked.places] == words
        assert f"the {name} passkey to the vault is {' '.join(KEY_WORDS[i] for i in asked.right)}." in text


@torch.no_grad()
def test_with_everything_kept_it_is_the_whole_sequence(reader: tuple[SmolLM2, Chat]) -> None:
    language, chat = reader
    (sample,) = texts(language, chat, 300, 1)
    found = ask(language, FullCache(**language.cache_sizes), sample)
    asked = sample.asked[2]
    whole = torch.cat([sample.context, language.embed(torch.tensor([asked.ids]))], 1)
    places = [sample.context.shape[1] + place for place in asked.places]
    logits = language.logits(language.hidden(whole)[0, places])[:, sample.choices]
    torch.testing.assert_close(torch.tensor(found.logprobs[2]), logits.log_softmax(-1), rtol=1e-4, atol=1e-4)
    assert found.kv_bytes == 2 * 2 * 2 * 16 * found.tokens * 4, "keys and values, layers, heads, width, tokens, bytes"


def test_clips_are_asked_about_what_flashes_in_them(loaded: Loaded) -> None:
    seen, written = list(clips(loaded, 2)), list(clips(loaded, 2, written=True))
    for sample, words in zip(seen, written, strict=True):
        assert [a.right for a in sample.asked] == [a.right for a in words.asked] and len(sample.asked) == 2
        assert sample.context.shape[1] == loaded.inputs.num_frames * 4
        assert words.context.shape != sample.context.shape


def test_every_cell_is_measured_once_and_written_down(
    loaded: Loaded, reader: tuple[SmolLM2, Chat], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "ROOT", tmp_path)
    monkeypatch.setattr(models, "SINK", 1)
    monkeypatch.setattr(models, "RECENT", 4)
    for source, gates in (("text", [[0.9, 0.1], [0.2, 0.8]]), ("video", [[0.0, 1.0], [0.5, 0.7]])):
        write_pattern(tmp_path / source / "duo" / "head_pattern", torch.tensor(gates), 1, 4)
    language, chat = reader
    text = loaded._replace(model=_Speaks(language), chat=chat)
    asked: dict[str, tuple[Loaded, list[Sample]]] = {
        duo.PASSKEYS: (text, list(texts(language, chat, 250, 2))),
        duo.NEEDLES: (loaded, list(clips(loaded, 2))),
    }
    monkeypatch.setattr(duo, "_samples", lambda plan: asked[plan.task])
    plans = [
        duo.Plan(duo.PASSKEYS, 250, 2, shares=(0.5,), draws=2),
        duo.Plan(duo.NEEDLES, 16, 2, ("gates_text",), (0.5,)),
    ]
    for plan in plans:
        duo.measure(plan)
    files = sorted((tmp_path / "cells").glob("*/*.json"))
    assert len(files) == (2 + 5 + 2) + (2 + 1)
    before = {path: path.stat().st_mtime_ns for path in files}
    for plan in plans:
        duo.measure(plan)
    assert {path: path.stat().st_mtime_ns for path in files} == before, "what is there is not measured again"
    records = list(collect())
    assert len({results.identity(r) for r in records}) == len(records)
    of = {(r["task"], r["variant"], r["metric"]): r for r in records}
    assert of["passkeys", "random", "accuracy"]["n"] == 2 * 2 * models.KEYS * models.KEY_WORDS
    assert of["passkeys", "full", "kv_bytes"]["value"] > of["passkeys", "gates_text", "kv_bytes"]["value"]
    assert of["needles", "gates_text", "kl"]["value"] > 0 and ("passkeys", "full", "kl") not in of
    shared = {r["share"]: r["value"] for r in records if r["metric"] == "shared_with_video"}
    assert shared[0.5] == 0.5 and shared[0.25] == 0.0
    assert "| gates_text | 0.5 |" in table(records) and "**needles**" in table(records)


def test_figures_of_cells_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two samples with a word each, of two choices, the first of which is right; two draws of random heads."""
    monkeypatch.setattr(models, "ROOT", tmp_path)
    of_full, drawn = (0.8, 0.4), ((0.6, 0.3), (0.7, 0.9))
    for cell, likely in ((Cell("full", 1.0), of_full), *((Cell("random", 0.5, i), p) for i, p in enumerate(drawn))):
        found = [
            {"logprobs": [[[math.log(p), math.log(1 - p)]]], "right": [[0]], "kv_bytes": 100.0 * p, "tokens": 7}
            for p in likely
        ]
        path = tmp_path / "cells" / "needles-16" / f"{cell.name}.json"
        cell.write(path, {"task": "needles", "length": 16, "seconds": 2.0, "found": found})
    of = {(r["variant"], r["metric"]): r for r in collect()}
    assert of["full", "accuracy"]["value"] == 0.5 and of["random", "accuracy"]["value"] == 0.75
    assert (of["random", "accuracy_min"]["value"], of["random", "accuracy_max"]["value"]) == (0.5, 1.0)
    samples = [0, 1, 0, 1]  # a sample's draws go together
    for metric, values in (("accuracy", [1.0, 0.0, 1.0, 1.0]), ("agreement", [1.0, 1.0, 1.0, 0.0])):
        mean, stderr = clustered_mean(values, samples)
        assert (of["random", metric]["value"], of["random", metric]["stderr"]) == pytest.approx((mean, stderr))
        assert of["random", metric]["n"] == 4
    pairs = [(p, q) for draw in drawn for p, q in zip(of_full, draw, strict=True)]
    kl = [p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)) for p, q in pairs]
    mean, stderr = clustered_mean(kl, samples)
    assert (of["random", "kl"]["value"], of["random", "kl"]["stderr"]) == pytest.approx((mean, stderr))
    assert of["full", "kv_bytes"]["value"] == pytest.approx(60.0) and of["random", "kl"]["seconds"] == 4.0


class _Speaks(torch.nn.Module):
    """A model of which the language alone is there."""

    def __init__(self, language: SmolLM2) -> None:
        super().__init__()
        self.language = language
