"""Needles benchmark: statistics against a bootstrap and by hand, scoring rules, the fast path, the files."""

import json
import logging
import math
import pickle
import uuid
from pathlib import Path

import numpy as np
import pytest
import torch

from hvlm import assembly
from hvlm.benchmark.needles import Needles
from hvlm.data import reader, samples
from hvlm.data.quarantine import SampleError
from hvlm.data.sample_json import parse
from hvlm.errors import UserError
from hvlm.evaluation.ask import blind_batches
from hvlm.evaluation.asking import Query
from hvlm.evaluation.evaluate import evaluate, score_predictions
from hvlm.evaluation.likelihood import answer_likelihoods, check_answers
from hvlm.evaluation.predictions import read_predictions, write_predictions
from hvlm.evaluation.results import Label
from hvlm.evaluation.scores import Prediction, Question, Try, choose, score
from hvlm.evaluation.stats import clustered_mean, group_mean
from hvlm.prompts import lettered_prompt
from hvlm.rebuild import Loaded
from hvlm.text.chat import Chat
from hvlm.text.tokenizer import train_word_tokenizer
from hvlm.types import Batch, InputSpec

# ------------------------------------------------------------------------------------------------------- statistics


def test_clustered_stderr_by_hand():
    # Videos a: 1, 1; b: 0; c: 1, 0. Mean 3/5; residual sums 0.8, -0.6, -0.2; var = 3/2 * (0.64 + 0.36 + 0.04) / 25.
    mean, stderr = clustered_mean([1, 1, 0, 1, 0], ["a", "a", "b", "c", "c"])
    assert mean == pytest.approx(0.6)
    assert stderr == pytest.approx(math.sqrt(1.5 * 1.04 / 25))


def test_one_question_per_video_is_the_usual_standard_error():
    y = np.random.default_rng(0).integers(0, 2, 50).astype(float)
    mean, stderr = clustered_mean(y, range(50))
    assert mean == pytest.approx(y.mean())
    assert stderr == pytest.approx(y.std(ddof=1) / math.sqrt(50))


def test_tasks_weigh_the_same_and_one_video_has_no_error():
    mean, stderr = clustered_mean([1, 1, 1, 0], ["v"] * 4, ["x", "x", "x", "y"])
    assert mean == pytest.approx(0.5)
    assert stderr is None
    assert group_mean([0.25, 0.25, 0.5], ["x", "x", "y"]) == pytest.approx(0.375)
    with pytest.raises(ValueError):
        clustered_mean([], [])


def test_clustered_stderr_agrees_with_a_bootstrap_over_videos():
    rng = np.random.default_rng(1)
    videos, tasks = 120, ("x", "y", "z")
    ease = rng.beta(0.6, 0.6, videos)  # what the answers of one video share
    rows = [
        (video, task, float(rng.random() < ease[video]))
        for video in range(videos)
        for task in tasks
        if task != "z" or video % 3 == 0
    ]
    cluster, group, y = zip(*rows, strict=True)
    _, stderr = clustered_mean(y, cluster, group)

    y_of = np.array(y)
    onehot_v = np.array(cluster)[:, None] == np.arange(videos)
    draws = []
    for _ in range(3000):
        times = np.bincount(rng.integers(0, videos, videos), minlength=videos)  # how often each video was drawn
        weight = onehot_v @ times
        in_task = [np.array([g == t for g in group]) * weight for t in tasks]
        draws.append(np.mean([(w * y_of).sum() / w.sum() for w in in_task]))
    assert stderr == pytest.approx(np.std(draws), rel=0.08)
    naive = math.sqrt(sum(np.var([v for v, g in zip(y, group, strict=True) if g == t]) / group.count(t) for t in tasks))
    assert stderr > 1.15 * naive / 3  # ignoring the videos would claim too much


# ----------------------------------------------------------------------------------------------------- scoring rules


def prediction(question, attempt, pred, task="shape", key=None, gold=1, options=("a", "b", "c", "d"), variant="m"):
    return Prediction(question, key or question, task, attempt, options, gold, pred, None, variant)


def by_metric(rows):
    return {row["metric"]: row for row in rows}


def test_four_of_four():
    all_right = [prediction("p", t, 1) for t in range(4)]
    three = [prediction("q", t, 1 if t else 0) for t in range(4)]
    rows = by_metric(score(all_right + three))
    assert rows["accuracy/shape"]["value"] == pytest.approx(7 / 8)
    assert rows["accuracy_4of4"]["value"] == pytest.approx(0.5)
    assert rows["accuracy_4of4"]["chance"] == pytest.approx(0.25**4)
    assert rows["accuracy_mean"]["n"] == 2 and rows["accuracy_mean"]["videos"] == 2
    assert "accuracy_4of4" not in by_metric(score(three[:3])), "three tries are no four"


def test_direction_stands_beside_the_mean_and_chance_follows_the_options():
    rows = by_metric(
        score(
            [
                prediction("p", 0, 1),
                prediction("q", 0, 0, task="direction"),
                prediction("r", 0, 1, task="count", options=("a", "b")),
            ],
            apart=["direction"],
        )
    )
    assert rows["accuracy_mean"]["value"] == 1.0
    assert rows["accuracy_mean"]["chance"] == pytest.approx((0.25 + 0.5) / 2)
    assert rows["accuracy/direction"]["value"] == 0.0
    alone = score([prediction("q", 0, 0, task="direction")], apart=["direction"])
    assert list(by_metric(alone)) == ["accuracy/direction"]
    assert rows["accuracy_mean"]["left_out"] == "direction" and "left_out" not in rows["accuracy/direction"]


def test_a_task_is_left_out_of_the_means_only_where_a_benchmark_says_so():
    """Somebody's own questions about directions count like all others."""
    rows = by_metric(score([prediction("p", 0, 1), prediction("q", 0, 0, task="direction")]))
    assert rows["accuracy_mean"]["value"] == 0.5 and "left_out" not in rows["accuracy_mean"]
    own = by_metric(Needles(apart=["shape"]).score([prediction("p", 0, 1), prediction("q", 0, 0, task="direction")]))
    assert (own["accuracy_mean"]["value"], own["accuracy_mean"]["left_out"]) == (0.0, "shape")


def test_no_answer_is_wrong_and_variants_stay_apart():
    rows = score([prediction("p", 0, None), prediction("p", 0, 1, variant="other")])
    assert [(r["variant"], r["value"]) for r in rows if r["metric"] == "accuracy_mean"] == [("m", 0.0), ("other", 1.0)]


def test_choose():
    assert choose([-2.0, -1.0, -3.0]) == 1
    assert choose([-1.0, -1.0]) == 0, "the first of equals"
    assert choose([-1.0, math.nan]) is None


# --------------------------------------------------------------------------------------------------------- the file


def test_predictions_file_round_trip(tmp_path):
    made = [prediction("p", t, t % 2)._replace(scores=(-1.0, -2.0, -0.5, -0.25)) for t in range(4)]
    made.append(prediction("q", 0, None)._replace(scores=(math.nan, 0.0, 0.0, 0.0)))
    write_predictions(tmp_path / "p.jsonl", made)
    back = read_predictions(tmp_path / "p.jsonl")
    assert back[:4] == made[:4]
    assert back[4].pred is None and math.isnan(back[4].scores[0])
    assert json.loads((tmp_path / "p.jsonl").read_text().splitlines()[3])["try"] == 3


def foreign(**changes):
    line = {"question_id": "p", "key": "p", "task": "shape", "try": 0, "options": ["red", "blue"], "gold": 1, "pred": 1}
    return line | changes


@pytest.mark.parametrize(
    ("pred", "expected"),
    [(1, 1), ("blue", 1), ("Blue", 1), ("B", 1), ("B.", 1), ("b", 1), ("Because", None), ("", None), (None, None)],
)
def test_foreign_predictions(tmp_path, pred, expected):
    (tmp_path / "p.jsonl").write_text(json.dumps(foreign(pred=pred)) + "\n")
    (found,) = read_predictions(tmp_path / "p.jsonl", "theirs")
    assert (found.pred, found.variant) == (expected, "theirs")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([foreign(pred=2)], "line 1: pred is 2"),
        ([foreign(gold=None)], "gold is None"),
        ([{k: v for k, v in foreign().items() if k != "options"}], "options missing"),
        ([foreign(), foreign()], "line 2: question 'p', try 0 stands here twice"),
        ([foreign(), foreign(**{"try": 2})], r"tries \[0, 2\]"),
        ([], "holds no predictions"),
    ],
)
def test_bad_predictions_are_named(tmp_path, lines, message):
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match=message):
        read_predictions(tmp_path / "p.jsonl")


def test_score_predictions_writes_results(tmp_path):
    (tmp_path / "p.jsonl").write_text(json.dumps(foreign(pred=None)) + "\n")
    records = score_predictions(tmp_path / "p.jsonl", Label("demo", "theirs", 0), tmp_path)
    assert records[0]["metric"] == "accuracy_mean" and records[0]["value"] == 0.0 and records[0]["chance"] == 0.5
    assert json.loads((tmp_path / "results.json").read_text()) == records


# --------------------------------------------------------------------------------------- asking, with a fake model

WORDS = "what color is the ring ? where does it stand red blue green pink top left right bottom A . B C D"


def make_chat():
    return Chat(
        train_word_tokenizer([WORDS, "Answer with the option's letter from the given choices directly ."]), "tiny"
    )


class FakeModel(torch.nn.Module):
    """log p(token) from everything before it: a fixed random function of the ids so far, and of the frames' colour."""

    def __init__(self, vocabulary):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(64, vocabulary, generator=torch.Generator().manual_seed(0)))
        self.calls = []
        self.vision, self.router = torch.nn.Module(), None
        self.vision.encode = lambda *frames: frames  # called by nobody: the frames' colour is seen as it is

    def distribution(self, batch: Batch, row: int, place: int):
        clip = int(batch.clip_K[row])
        state = sum((i + 1) * int(token) for i, token in enumerate(batch.input_ids_KS[row, :place].tolist()))
        seen = batch.frames_BTCHW[clip][batch.frame_mask_BT[clip]]
        state += int(seen.float().mean()) if len(seen) else 0
        return self.weight[state % 64].log_softmax(-1)

    def forgetful(self):
        return None

    def next_token_logprobs(self, batch, cache=None):
        self.calls.append("next")
        first = [int(mask.nonzero()[0]) for mask in batch.loss_mask_KS]
        return torch.stack([self.distribution(batch, row, place) for row, place in enumerate(first)])

    def token_logprobs(self, batch, cache=None):
        self.calls.append("whole")
        out = torch.zeros(batch.input_ids_KS.shape)
        for row, place in batch.loss_mask_KS.nonzero().tolist():
            out[row, place] = self.distribution(batch, row, place)[batch.input_ids_KS[row, place]]
        return out


def ask(model, chat, clips, **changes):
    settings = {"inputs": InputSpec("question_first", 2, 4), "precision": "32-true"} | changes
    return answer_likelihoods(model, chat, clips, **settings)


def about(answers):
    """{prompt: answers} as questions."""
    return [Question(p, "k", "t", (Try(p, tuple(given), tuple(given), 0),), ()) for p, given in answers.items()]


def clip(value, answers):
    return Query(np.full((2, 3, 4, 4), value, np.uint8), np.array([0.5, 1.5], np.float32), about(answers))


def test_one_row_per_question_equals_one_row_per_answer():
    chat = make_chat()
    model = FakeModel(chat.vocab_size)
    prompt = "what color is the ring ?"
    colours = ["red", "blue", "green", "pink"]
    fast = ask(model, chat, [clip(9, {prompt: colours}), clip(90, {prompt: colours})])
    assert model.calls == ["next"]
    # An option of two words sends the same question down the other way; the others must score as before.
    slow = ask(model, chat, [clip(9, {prompt: [*colours, "top left"]}), clip(90, {prompt: [*colours, "top left"]})])
    assert model.calls == ["next", "whole"]
    for a, b in zip(fast, slow, strict=True):
        for colour in colours:
            assert a[prompt, colour].logp == pytest.approx(b[prompt, colour].logp, abs=1e-6)
            assert a[prompt, colour].tokens == b[prompt, colour].tokens == 1
        assert b[prompt, "top left"].tokens == 2, "the end token is not counted"
    assert fast[0] != fast[1], "the clip makes a difference"


def test_clips_and_rows_stay_together_when_some_clips_have_only_one_kind():
    chat = make_chat()
    model = FakeModel(chat.vocab_size)
    one, two = {"what color is the ring ?": ["red", "blue"]}, {"where does it stand ?": ["top left", "right"]}
    together = ask(model, chat, [clip(5, one), clip(50, two), clip(100, one | two)])
    for value, answers, found in ((5, one, together[0]), (50, two, together[1]), (100, one | two, together[2])):
        assert ask(model, chat, [clip(value, answers)])[0] == found


def test_answers_that_cannot_be_scored_are_refused():
    chat = make_chat()
    model = FakeModel(chat.vocab_size)
    with pytest.raises(UserError, match="no token"):
        ask(model, chat, [clip(5, {"where ?": [""]})])
    with pytest.raises(UserError, match="cannot tell the answers 'zebra' and 'yak' apart"):
        ask(model, chat, [clip(5, {"where ?": ["red", "zebra", "yak"]})])
    with pytest.raises(UserError, match="cannot tell the answers 'zebra' and 'yak' apart"):
        check_answers(chat, about({"where ?": ["red", "zebra", "yak"]}), "question_first")
    with pytest.raises(UserError, match="precision=16-true"):
        ask(model, chat, [clip(5, {"where ?": ["red"]})], precision="16-true")


def test_lettered_prompt_is_vnbench():
    assert lettered_prompt("Which ?", ["red", "2"]) == (
        "Which ?\nA. red\nB. 2\nAnswer with the option's letter from the given choices directly."
    )


def sample_of(key="k", kind="easy", evidence=((0.0, 2.0),)):
    tries = [{"options": ["red", "blue", "green", "pink"], "gold": 0}] * 2
    tries += [{"options": ["pink", "red", "blue", "green"], "gold": 1}] * 2
    question = {"id": "q0", "task": "colour", "question": "what color is the ring ?", "answer": "red", "tries": tries}
    where = {"id": "q1", "task": "where", "question": "where does it stand ?", "answer": "top left"}
    where["tries"] = [{"options": ["top left", "top right", "bottom left", "bottom right"], "gold": 0}] * 4
    questions = [question | {"evidence": evidence}, where | {"evidence": [[0.0, 2.0]]}]
    return {"key": key, "set": kind, "questions": questions}


def parsed(**changes):
    return samples.parse({"json": json.dumps(sample_of(**changes)).encode()}, "k", "general")


def test_questions_of_each_set():
    easy, where = Needles().questions(parsed())
    assert easy.tries[0].prompt == "what color is the ring ?" and easy.tries[0].answers[0] == "red"
    assert easy.id == "k/q0" and where.task == "where"
    lettered = Needles().questions(parsed(kind="vnbench"))[0]
    assert lettered.tries[2].prompt == lettered_prompt("what color is the ring ?", ["pink", "red", "blue", "green"])
    assert lettered.tries[2].answers == ("A", "B", "C", "D") and lettered.tries[2].gold == 1
    assert [q.task for q in Needles(tasks=["where"], tries=1).questions(parsed())] == ["where"]


def test_settings_are_checked_and_clips_spread():
    with pytest.raises(UserError, match="benchmark.tries=5: expected int of 1 or more and at most 4"):
        assembly.room({"_target_": "hvlm.benchmark.needles.Needles", "tries": 5})
    with pytest.raises(UserError, match="benchmark.scoring=pmi"):
        Needles(scoring="pmi")
    assert Needles(limit=3).select(9) == [0, 4, 8]
    assert Needles(limit=20).select(3) == [0, 1, 2]
    assert pickle.loads(pickle.dumps(Needles())).split == "test"


# ---------------------------------------------------------------------------------------------------- the whole of it

LABEL = Label("demo", "fake", 3)
CONFIG = {"trainer": {"num_workers": 0, "cache_mb": 0}, "domain": {"mixture": None}, "seed": 0}


class Split:
    """Two clips of one colour each, as a manifest's split gives them."""

    def __init__(self, samples, videos):
        self.samples, self.videos = samples, videos
        self.folder, self.name, self.identity = Path("nowhere"), "test", uuid.uuid4().hex
        self.keys = [s["key"] for s in samples]
        self.domains, self.shards = ["general"] * len(samples), ["test-000000.tar"] * len(samples)

    def __len__(self):
        return len(self.samples)

    def uid(self, index):
        return f"test/test-000000/{self.keys[index]}"

    def read(self, index, endings=()):
        return {"mp4": self.videos[index], "json": json.dumps(self.samples[index]).encode()}

    sources = read


class Dataset:
    access, splits, max_tokens, too_long, decoder, decode_timeout = "index", ["test"], 100, "refuse", "pyav", 60.0
    text_only = False

    def __init__(self, split):
        self._split = split

    def prepare(self):
        pass

    def manifest(self):
        return self

    def verify(self, full):
        pass

    def split(self, name):
        assert name == "test"
        return self._split


@pytest.fixture
def dataset(tmp_path):
    from hvlm.viz.media import write_mp4

    videos = []
    for value in (40, 200):
        frames = np.full((8, 3, 64, 64), value, np.uint8)
        videos.append(write_mp4(frames, tmp_path / f"{value}.mp4", fps=4.0, scale=1).read_bytes())
    # The second clip's colour can only be seen in a moment that two sampled frames (at 0.5 s and 1.5 s) miss.
    samples = [sample_of("one"), sample_of("two", evidence=[[0.75, 1.0]])]
    return Dataset(Split(samples, videos))


def run(dataset, out, benchmark=None, motion=None, label=LABEL, trainer=None):
    chat = make_chat()
    model = FakeModel(chat.vocab_size)
    config = CONFIG if trainer is None else {**CONFIG, "trainer": trainer}
    loaded = Loaded(model, chat, dataset, InputSpec("question_first", 2, 64, motion), "32-true", config)
    return evaluate(loaded, benchmark or Needles(batch_size=1), label, out), model


def test_evaluate(dataset, tmp_path):
    records, model = run(dataset, tmp_path / "out", label=LABEL._replace(columns={"num_frames": 2}))
    assert model.training is False
    lines = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
    asked = {variant: {x["question_id"] for x in lines if x["variant"] == variant} for variant in ("fake", "blind")}
    names = {f"test/test-000000/{name}" for name in ("one/q0", "one/q1", "two/q1")}
    assert asked["fake"] == asked["blind"] == names, "what no frame shows is not asked"
    assert len(lines) == 2 * 3 * 4
    # However the options are ordered, the same answer is chosen, since it is chosen by its text.
    chosen = {(x["question_id"], x["options"][x["pred"]]) for x in lines if x["variant"] == "fake"}
    assert len(chosen) == 3
    blind = [x["scores"] for x in lines if x["variant"] == "blind" and x["task"] == "where"]
    assert len({tuple(s) for s in blind}) == 1, "without frames all clips look the same"

    found = {(r["variant"], r["metric"]): r for r in records}
    assert {m for v, m in found if v == "blind"} == {m for v, m in found if v == "fake"}
    where = found["fake", "accuracy/where"]
    assert (where["n"], where["chance"], where["seeds"], where["num_frames"]) == (2, 0.25, [3], 2)
    assert where["value"] == np.mean([x["pred"] == x["gold"] for x in lines if x["task"] == "where"][: 2 * 4])
    assert json.loads((tmp_path / "out/results.json").read_text()) == records
    again = score_predictions(tmp_path / "out/predictions.jsonl", Label("demo", "x", 3), tmp_path)
    assert [(r["metric"], r["value"], r["stderr"]) for r in again] == [
        (r["metric"], r["value"], r["stderr"]) for r in records
    ]
    assert (tmp_path / "out/clips/0.png").exists()


def test_evaluate_does_not_depend_on_the_batch(dataset, tmp_path):
    one, _ = run(dataset, tmp_path / "a", Needles(batch_size=1, blind=False))
    two, _ = run(dataset, tmp_path / "b", Needles(batch_size=2, blind=False))
    assert (tmp_path / "a/predictions.jsonl").read_text() == (tmp_path / "b/predictions.jsonl").read_text()
    assert {r["variant"] for r in one + two} == {"fake"}


def test_evaluate_reads_in_worker_processes_too(dataset, tmp_path, caplog):
    dataset._split.samples.append(sample_of("three"))
    dataset._split.samples.append({"user": "what is it ?", "assistant": "a red ring"})
    dataset._split.keys += ["three", "four"]
    dataset._split.domains, dataset._split.shards = ["general"] * 4, ["test-000000.tar"] * 4
    dataset._split.videos += [b"no video", b""]
    with caplog.at_level(logging.INFO):
        here, _ = run(dataset, tmp_path / "a")
        there, _ = run(dataset, tmp_path / "b", trainer={"num_workers": 2, "cache_mb": 1})
    assert (tmp_path / "a/predictions.jsonl").read_text() == (tmp_path / "b/predictions.jsonl").read_text()
    said = [m for m in caplog.messages if "questions asked" in m or "no question of this benchmark" in m]
    assert len(said) == 4 and said[:2] == said[2:] and said[1].startswith("1 of 4 clips")
    for folder in ("a", "b"):
        (line,) = (tmp_path / folder / "quarantine.jsonl").read_text().splitlines()
        assert json.loads(line)["key"] == "three"


def test_evaluate_hands_on_the_motion_that_is_asked_for(dataset, tmp_path, monkeypatch):
    seen, plain = [], FakeModel.distribution

    def remember(model, batch, row, place):
        seen.append(batch)
        return plain(model, batch, row, place)

    def brightness(frames, grid):  # in the place of motion, for these clips stand still
        return np.tile(frames.mean((1, 2, 3), dtype=np.float32)[:, None, None], (1, *grid))

    monkeypatch.setattr(FakeModel, "distribution", remember)
    monkeypatch.setattr(reader, "motion_energy", brightness)
    run(dataset, tmp_path / "a", motion=(4, 4))
    shapes = {batch.motion_BTYX.shape[1:] for batch in seen}
    assert shapes == {(2, 4, 4), (1, 4, 4)}, "clips of two frames and the blind control"
    for batch in seen:
        for frames, motion, mask in zip(batch.frames_BTCHW, batch.motion_BTYX, batch.frame_mask_BT, strict=True):
            if mask.any():
                assert np.array_equal(motion[mask].numpy(), brightness(frames[mask].numpy(), (4, 4)))
            assert not motion[~mask].any()
    seen.clear()
    run(dataset, tmp_path / "b")
    assert all(batch.motion_BTYX is None for batch in seen)


def test_evaluate_says_when_there_is_nothing_to_ask(dataset, tmp_path):
    with pytest.raises(UserError, match="nothing to ask in 2 clips"):
        run(dataset, tmp_path, Needles(tasks=["shape"]))
    with pytest.raises(ValueError, match="blind"):
        run(dataset, tmp_path, label=LABEL._replace(variant="blind"))


def test_evaluate_counts_unreadable_clips(dataset, tmp_path):
    dataset._split.videos[1] = b"no video"
    records, _ = run(dataset, tmp_path)
    assert {r["n"] for r in records if r["metric"] == "accuracy/where"} == {1}
    assert json.loads((tmp_path / "quarantine.jsonl").read_text())["key"] == "two"


def test_a_diverged_model_is_wrong_not_lucky(dataset, tmp_path, caplog):
    chat = make_chat()
    model = FakeModel(chat.vocab_size)
    model.weight.data.fill_(math.nan)
    loaded = Loaded(model, chat, dataset, InputSpec("question_first", 2, 64), "32-true", CONFIG)
    records = evaluate(loaded, Needles(blind=False), LABEL, tmp_path)
    assert {r["value"] for r in records if "accuracy" in r["metric"]} == {0.0}
    assert {r["metric"]: r["value"] for r in records}["answers_missing"] == 12
    assert "not finite" in caplog.text


@pytest.mark.fault(74)
def test_the_blind_control_goes_in_batches_as_the_rest_does(dataset, tmp_path):
    """Lettered questions have a prompt of their own each, so that nothing is shared between clips."""
    dataset._split.samples = [sample_of("one", "vnbench"), sample_of("two", "vnbench")]
    for i, sample in enumerate(dataset._split.samples):
        for question in sample["questions"]:
            question["evidence"], question["question"] = [], f"{question['question']} {'red blue'.split()[i]}"
    _, model = run(dataset, tmp_path / "small", Needles(batch_size=1))
    _, large = run(dataset, tmp_path / "large", Needles(batch_size=64))
    assert len(large.calls) == 2, "all clips, and all questions without frames"
    assert len(model.calls) > 3, "one clip at a time, and no more questions at once without frames"
    small, whole = (read_predictions(tmp_path / name / "predictions.jsonl") for name in ("small", "large"))
    assert small == whole and {p.variant for p in small} == {"fake", "blind"}


def test_batches_of_blind_questions_share_prompts():
    def question(name, prompt, options):
        return Question(name, "k", "t", (Try(prompt, options, options, 0),), ())

    shared = [question(f"s{i}", "what ?", ("x", f"{i % 3}")) for i in range(9)]
    own = [question(f"o{i}", f"what {i} ?", ("x", "y")) for i in range(6)]
    mixed = [q for pair in zip(shared, own, strict=False) for q in pair] + shared[6:]
    batches = list(blind_batches(mixed, 4))
    assert [q.id for q in batches[0]] == [q.id for q in shared], "four distinct pairs, however many questions"
    assert [len(batch) for batch in batches[1:]] == [2, 2, 2]
    assert sorted(q.id for batch in batches for q in batch) == sorted(q.id for q in mixed)
    big = question("b", "?", tuple("abcdef"))
    assert [len(batch) for batch in blind_batches([big, big], 4)] == [2], "a question is never torn apart"


# ----------------------------------------------------------------------------------------- whose questions, whose clips


FOREIGN = {"user": "what is it ?", "assistant": "a red ring", "source": "theirs"}


@pytest.mark.fault(101)
def test_samples_without_its_questions_are_not_bad(dataset, tmp_path, caplog):
    dataset._split.samples[1] = FOREIGN
    with caplog.at_level(logging.INFO):
        records, _ = run(dataset, tmp_path)
    assert {r["n"] for r in records if r["metric"] == "accuracy/where"} == {1}
    assert "1 of 2 clips have no question of this benchmark" in caplog.text
    assert not (tmp_path / "quarantine.jsonl").exists()


def test_own_questions_need_only_options_and_an_answer():
    def questions(**changes):
        asked = {"question": "what color is the ring ?", "answer": "blue"} | changes
        sample = parse({"json": json.dumps({"questions": [asked]}).encode()}, "k", "general")
        return Needles().all_questions(sample)

    (question,) = questions(options=["red", "blue"])
    assert (question.task, question.evidence, question.tries[0].gold, len(question.tries)) == ("question", (), 1, 1)
    (asked,) = questions()
    assert asked.tries == (Try("what color is the ring ?", (), ("blue",), 0),)
    with pytest.raises(SampleError, match="expected exactly one of the options"):
        questions(options=["red", "green"])


@pytest.mark.fault(85, 101)
def test_what_cannot_be_asked_is_said_by_check(dataset):
    Needles().check(dataset)
    with pytest.raises(UserError, match="benchmark.split=dev: the dataset has no such split, it has test.*evaluate="):
        Needles(split="dev").check(dataset)
    with pytest.raises(UserError, match=r"benchmark.tasks=\[color\]: the questions are of the tasks colour, where"):
        Needles(tasks=["color"]).check(dataset)
    dataset._split.samples = [FOREIGN, FOREIGN]
    with pytest.raises(UserError, match="2 clips of .test. in nowhere hold no question of Needles .the JSON"):
        Needles().check(dataset)


class Elsewhere(Needles):
    """A benchmark whose clips have nothing to do with the dataset."""

    def __init__(self, clips, **settings):
        super().__init__(**settings)
        self.clips = clips

    def source(self, dataset):
        return self.clips


def test_a_benchmark_may_own_its_clips_and_its_number_of_frames(dataset, tmp_path):
    benchmark = Elsewhere(dataset._split, num_frames=8)
    records, _ = run(dataset, tmp_path, benchmark)
    assert {r["n"] for r in records if r["metric"] == "accuracy/where"} == {2}
    assert {r["n"] for r in records if r["metric"] == "accuracy/colour"} == {2}, "more frames show the second's, too"
    benchmark.check(None)
