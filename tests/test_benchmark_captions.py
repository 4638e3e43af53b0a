"""benchmark=captions: figures by hand and of COCO's evaluation, files of captions, and a tiny model that writes some by
beams and by chance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _tiny import Case, Variant, batch_of, chat, model, side, two_clips
from test_benchmark_choices import LABEL, ask, write_rows
from test_metrics import CANDIDATES, REFERENCES
from transformers.utils.logging import warning_once

from hvlm.benchmark.captions import Captions
from hvlm.benchmark.open import Open
from hvlm.data import samples
from hvlm.data.caption_file import read_captions
from hvlm.errors import UserError
from hvlm.evaluation.caption_scores import score_captions
from hvlm.evaluation.evaluate import score_predictions, way_of
from hvlm.evaluation.generate import generate_ids
from hvlm.evaluation.predictions import write_predictions
from hvlm.evaluation.sampling import Sampling
from hvlm.evaluation.scores import Prediction
from hvlm.evaluation.stats import clustered_mean
from hvlm.prompts import DESCRIBE
from hvlm.viz.media import write_mp4

TASKS, VIDEOS = ["news", "news", "sports"], ["v", "v", "w"]
MADE = [
    Prediction(str(i), VIDEOS[i], TASKS[i], 0, (), None, None, None, "m", text, tuple(REFERENCES[i]))
    for i, text in enumerate(CANDIDATES)
]


def test_figures_are_cocos_with_errors_clustered_by_video(tmp_path: Path) -> None:
    rows = {r["metric"]: r for r in score_captions(MADE)}
    items = [3.7651321139, 6.2678328239, 0]
    assert rows["cider_d_micro"]["value"] == pytest.approx(3.3443216459, abs=1e-9)
    assert rows["cider_d_micro"]["stderr"] == pytest.approx(clustered_mean(items, VIDEOS)[1], abs=1e-9)
    assert rows["cider_d_macro"]["value"] == pytest.approx((items[0] + items[1]) / 4, abs=1e-9)
    assert rows["cider_d/news"]["value"] == pytest.approx((items[0] + items[1]) / 2), "words weigh as among all"
    assert rows["rouge_l_micro"]["value"] == pytest.approx(0.6)
    assert rows["bleu_4_corpus"]["value"] == pytest.approx(0.5405779132, abs=1e-9)
    assert rows["bleu_4_corpus"]["stderr"] is None and rows["bleu_4_corpus"]["n"] == 3
    assert {"bleu_1/sports", "meteor_exact_stem_micro", "rouge_l/news"} <= set(rows)
    without = {r["metric"] for r in Captions(apart=["news"]).score(MADE)}
    assert {"cider_d_micro_without_news", "bleu_2_corpus_without_news", "bleu_2/news"} <= without

    write_predictions(tmp_path / "p.jsonl", MADE)
    records = {r["metric"]: r["value"] for r in score_predictions(tmp_path / "p.jsonl", LABEL, tmp_path, Captions())}
    assert records["cider_d_micro"] == pytest.approx(3.3443216459, abs=1e-9)
    silent = {r["metric"]: r["value"] for r in score_captions([MADE[0], MADE[1]._replace(text="", problem="missing")])}
    assert silent["rouge_l_micro"] == pytest.approx(0.4) and silent["answers_missing"] == 1


def test_captions_of_one_prompt_are_references_of_one() -> None:
    captions: list[Any] = [
        {"text": "a red ball", "references": ["a red ball", "the ball is red"], "evidence": [[0, 1]]},
        {"text": "two words", "prompt": "say it in two words"},
        "red ball",
    ]
    sample = samples.parse({"json": json.dumps({"captions": captions}).encode()}, "k", "sports")
    one, other = Captions().all_questions(sample)
    assert one.tries[0] == (DESCRIBE, (), ("a red ball", "the ball is red", "red ball"), 0) and one.task == "sports"
    assert one.evidence == ((0.0, 1.0),) and other.tries[0].answers == ("two words",)
    assert [q.id for q in (one, other)] == ["k/caption0", "k/caption1"]
    assert Captions(tasks=["news"]).questions(sample, True) == []


def test_a_file_of_captions_is_written_about(tmp_path: Path) -> None:
    for name in "ab":
        write_mp4(np.full((8, 3, 32, 32), 90, np.uint8), tmp_path / f"{name}.mp4", fps=4.0, scale=1)
    rows: list[dict] = [
        {"video": "a.mp4", "captions": ["a red ball", "one red ball"]},
        {"video": "a", "caption": "the ball"},
        {"video": "b.mp4", "caption": "nothing happens"},
    ]
    benchmark = Captions(questions=str(write_rows(tmp_path / "c.jsonl", rows)), max_new_tokens=3, num_beams=2)
    records, lines = ask(benchmark, tmp_path / "out")
    assert [line["answer"] for line in lines] == [["a red ball", "one red ball", "the ball"], "nothing happens"] * 2
    assert [line["variant"] for line in lines] == ["tiny", "tiny", "blind", "blind"]
    assert records["tiny", "cider_d_micro"]["n"] == records["blind", "bleu_4_corpus"]["n"] == 2
    (tmp_path / "c.csv").write_text('video,captions,prompt\na.mp4,a red ball|"the ball",\nb.mp4,it,what ?\n')
    first, second = read_captions(tmp_path / "c.csv", "benchmark.questions")
    assert first.question == {"id": "row2", "question": DESCRIBE, "answers": ["a red ball", '"the ball"']}
    assert second.question and second.question["question"] == "what ?"
    for wrong, said in (
        ({"video": "a.mp4", "caption": " "}, "row 1 has caption ' ', expected text"),
        ({"video": "a.mp4", "captions": []}, "row 1 has no caption in captions"),
        ({"video": "a.mp4", "text": "x"}, "row 1 lacks caption; it has video, text"),
        ({"caption": "x", "start": 2, "end": 1, "video": "a.mp4"}, "row 1 ends at 1 s, before it starts at 2 s"),
    ):
        with pytest.raises(UserError, match=f"^benchmark.questions=.*{said}"):
            read_captions(write_rows(tmp_path / "w.jsonl", [wrong]), "benchmark.questions")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("c.jsonl", '{"video": "a.mp4", "caption": "\\ud800"}', "row 1 has half a character"),
        ("c.jsonl", '{"video": "a.mp4", "caption": NaN}', "row 1 has caption nan, expected text"),
        ("c.jsonl", '{"video": "a.mp4", "caption": "a", "caption": "b"}', "'caption' stands twice"),
        ("c.jsonl", "[" * 100_000, "row 1: not valid JSON"),
        ("c.csv", 'video,caption\na.mp4,"' + "a" * 200_000 + '"\n', r"is no CSV \(field larger"),
        ("c.csv", 'video,caption\na.mp4,"b\n', "is no CSV"),
        ("c.csv", "video,captions\n" + "a" * 5000 + ".mp4," + "[" * 60_000, "none of the 1 videos is there"),
        ("c.csv", "video,captions\na\0.mp4,b\0|c\n", "none of the 1 videos is there"),
    ],
)
def test_a_file_of_anybody_is_one_line(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=said) as error:
        Captions(questions=str(tmp_path / name)).source(None)
    assert "\n" not in str(error.value)


def test_how_words_are_chosen_is_a_setting() -> None:
    way = way_of(Captions(num_beams=3, max_new_tokens=5), 7)
    assert (way.max_new_tokens, way.choose.num_beams, way.choose.temperature) == (5, 3, 0)  # type: ignore[attr-defined]
    drawn = way_of(Open(temperature=0.5, top_p=0.9), 7).choose  # type: ignore[attr-defined]
    assert (drawn.temperature, drawn.top_p, drawn.seed) == (0.5, 0.9, 7)
    with pytest.raises(UserError, match="^benchmark.num_beams=2: .* benchmark.temperature=1 draws by chance"):
        way_of(Captions(num_beams=2, temperature=1.0))
    with pytest.raises(UserError, match=r"^benchmark.top_p=0.5: with benchmark.temperature=0"):
        way_of(Captions(top_p=0.5))


CACHES = ["full", "streaming", "duo", "snapkv"]
MERGED = (Variant("connector", "patches"), Variant("merger", "tome", (("proportional", True),)))  # with a bias on keys


@pytest.mark.parametrize("name, merged", [*((name, ()) for name in CACHES), ("duo", MERGED), ("streaming", MERGED)])
@torch.no_grad()
def test_beams_find_a_likelier_answer_through_every_cache(name: str, merged: tuple[Variant, ...]) -> None:
    """By hand: as many beams as there are ways for two words are the search through all of them, one row at a time."""
    vlm = model(Case("question_first", (Variant("kvcache", name), *merged)), seed=3).eval()
    for parameter in vlm.language.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    long, short = two_clips(vlm)
    batch = batch_of(long, short, size=side(vlm))
    beams = len(chat().tokenizer.get_vocab()) if hasattr(chat(), "tokenizer") else chat().vocab_size
    found = generate_ids(vlm, chat(), batch, 2, Sampling(num_beams=beams))
    for row, ids in enumerate(found.tolist()):
        assert ids == best_of_all(vlm, batch, row), f"row {row}"
    one = generate_ids(vlm, chat(), batch, 2)
    assert merged or one.tolist() != found.tolist(), (
        "the likeliest answer must not begin with the likeliest word everywhere"
    )


@torch.no_grad()
def test_beams_weigh_an_answer_by_the_mean_of_its_words(caplog: pytest.LogCaptureFixture) -> None:
    """With the answer's end made likelier until it alone, a word, is likelier than any two together but not in the
    mean."""
    vlm = model(Case("question_first", ()), seed=3).eval()
    batch = batch_of(two_clips(vlm)[0], size=side(vlm))
    plain, ends = vlm.head.logits, torch.zeros(chat().vocab_size)
    vlm.head.logits = lambda h: plain(h) + ends
    warning_once.cache_clear()
    for more in range(40):
        ends[sorted(chat().end_ids)] = more / 4
        mean, total = (best_of_all(vlm, batch, 0, penalty) for penalty in (1, 0))
        if mean != total:
            break
    assert total[0] in chat().end_ids and mean[0] not in chat().end_ids
    found = generate_ids(vlm, chat(), batch, 2, Sampling(num_beams=chat().vocab_size)).tolist()
    assert found == [mean, best_of_all(vlm, batch, 1)]
    assert "deprecated" not in caplog.text, "nothing that a user could do something about"


def best_of_all(vlm: Any, batch: Any, row: int, penalty: int = 1) -> list[int]:
    """The answer of at most two words with the highest mean log-probability; penalty=0: with the highest sum."""
    from hvlm.functional import last_true

    asked = batch.attention_mask_KS & (batch.loss_mask_KS.cumsum(1) == 0)
    sequence = vlm.sequence(batch._replace(attention_mask_KS=asked, loss_mask_KS=asked & False))
    cache = vlm.kvcache.new()
    h = vlm.hidden(sequence, cache)
    newest = h[torch.arange(len(h)), last_true(sequence.mask_KL)]
    first = vlm.head.logits(newest)[row].log_softmax(-1)
    words = len(first)
    cache.batch_select_indices(torch.tensor([row]))
    cache.batch_repeat_interleave(words)
    state = vlm.language.hidden(vlm.language.embed(torch.arange(words)[:, None]), cache=cache)[:, -1]
    both = (first[:, None] + vlm.head.logits(state).log_softmax(-1)) / 2**penalty
    ends = sorted(chat().end_ids)
    both[ends] = -torch.inf
    best = divmod(int(both.argmax()), words)
    end = max(ends, key=lambda i: first[i].item())
    return [end, chat().end_id] if first[end] > both.max() else list(best)
