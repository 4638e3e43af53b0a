"""The sets of needles whose clips tell a story: questions of each domain, events in long clips, captions in pairs."""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import av
import numpy as np
import pytest
from test_needles import RECIPE, decoded, haystack, samples, small  # noqa: F401  (haystack is a fixture)

from hvlm.data.sample_json import parse
from hvlm.data.sampling import is_shown
from hvlm.dataset import _needles_binding as binding
from hvlm.dataset import _needles_domains as domains
from hvlm.dataset import _needles_pairs as pairs
from hvlm.dataset._needles_draw import PALETTE
from hvlm.dataset._needles_labels import LABELS
from hvlm.dataset._needles_scene import DOMAINS, SHAPES
from hvlm.dataset._needles_sets import STORIES, vocabulary
from hvlm.dataset._needles_story import Story
from hvlm.dataset.needles import Needles
from hvlm.errors import UserError

EVENTS = {"fps": 2.0, "num_frames": 24, "min_seconds": 30.0, "max_seconds": 45.0}


@pytest.fixture(scope="module")
def sets(shared, haystack) -> dict[str, Needles]:  # noqa: F811
    few = {"train_clips": 8, "val_clips": 0, "test_clips": 8, "text_chats": 0}
    return {
        name: small(shared / "stories", haystack, set=name, **few, **(EVENTS if name == "events" else {}))
        for name in STORIES
    }


def uniform(counts: dict[str, Counter], at_least: int) -> None:
    """Each of the counts that are large enough is, by chi-squared, and there are more than so many of these."""
    tested = 0
    for key, found in counts.items():
        total, free = sum(found.values()), len(found) - 1
        if total < 30 * len(found):
            continue
        tested += 1
        chi = sum((n - total / len(found)) ** 2 / (total / len(found)) for n in found.values())
        assert chi < free + 5 * np.sqrt(2 * free), (key, found)
    assert tested > at_least


def told(name: str, count: int, **changes) -> list[Story]:
    """Stories without drawing anything."""
    changes = (EVENTS | {"num_frames": 64} if name == "events" else {}) | changes
    recipe = replace(RECIPE, set=name, **changes)
    return [STORIES[name].tell(np.random.default_rng([3, i]), recipe, "test", i) for i in range(count)]


# ------------------------------------------------------------------------------------------------------- all of them


@pytest.mark.parametrize("name", STORIES)
def test_clips_are_as_long_as_they_say_and_show_what_they_say(sets, name) -> None:
    names, colours = list(PALETTE), np.array(list(PALETTE.values()), float)
    right = total = 0
    for info, video in samples(sets[name], "test"):
        with av.open(io.BytesIO(video)) as container:
            frames = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)]).astype(float)
        assert len(frames) == info["frames"] == round(info["duration"] * info["fps"]) and info["captions"]
        for thing in info["objects"]:
            x, y, _ = thing["track"][0]
            if thing["shape"] not in ("ring",) and not hidden(info["objects"], thing):
                near = names[int(((colours - frames[thing["first"], y, x]) ** 2).sum(1).argmin())]
                right, total = right + (near == thing["colour"]), total + 1
    assert right >= 0.95 * total > 4


def hidden(things: list[dict], thing: dict) -> bool:
    """Whether another thing stands in the way when this one comes into sight."""
    (x, y, _), frame = thing["track"][0], thing["first"]
    others = [
        o["track"][frame - o["first"]] for o in things if o is not thing and 0 <= frame - o["first"] < len(o["track"])
    ]
    return any(np.hypot(x - ox, y - oy) < r + 3 for ox, oy, r in others)


@pytest.mark.parametrize("name", STORIES)
def test_labels_of_patches_know_when_a_thing_is_in_sight(sets, name) -> None:
    for info, _ in samples(sets[name], "test"):
        if not info["objects"]:
            continue
        thing = info["objects"][-1]
        last = thing["first"] + len(thing["track"]) - 1
        times = np.array([thing["first"], last]) / info["fps"]
        labels = Needles.patch_labels(info, times, (8, 8))
        assert all(LABELS["shape"].index(thing["shape"]) in labels["shape"][t] for t in (0, 1))
        if len(info["objects"]) == 1 and last + 1 < info["frames"]:
            gone = Needles.patch_labels(info, np.array([(last + 1) / info["fps"]]), (8, 8))
            assert not gone["shape"].any()


@pytest.mark.parametrize("name", STORIES)
def test_tries_hold_one_right_answer_and_the_words_are_known(name) -> None:
    words = {word for line in vocabulary() for word in line.split()}
    for story in told(name, 120):
        times = story.recipe.shown / story.recipe.fps
        for q in story.fields["questions"]:
            assert is_shown(q["evidence"], times)
            right = q.get("answers", {q["answer"]: 1.0})
            assert right[q["answer"]] == 1.0 and all(0 < weight <= 1 for weight in right.values())
            assert q["rejected"] not in right
            for one in q["tries"]:
                assert len(set(one["options"])) == 4 and one["options"][one["gold"]] == q["answer"]
                assert not {o for o in one["options"] if o != q["answer"]} & set(right)
            assert {w for text in (q["question"], q["answer"], q["rejected"]) for w in text.split()} <= words
        for caption in story.fields["captions"]:
            assert caption["text"] in caption["references"]
            assert len(set(caption["references"])) == len(caption["references"])
            assert {w for text in (caption["prompt"], *caption["references"]) for w in text.split()} <= words
        for pair in story.fields.get("pairs", []):
            assert {w for text in (pair["text"], *pair["negatives"]) for w in text.split()} <= words


def test_captions_have_several_references() -> None:
    for name in STORIES:
        counts = [len(c["references"]) for s in told(name, 40) if s.domain != "general" for c in s.fields["captions"]]
        assert counts and min(counts) == 3


def test_sets_of_before_keep_their_folders() -> None:
    settings = {"min_seconds": 10.0, "max_seconds": 20.0}
    assert Needles(set="easy").folder == Needles(set="easy", **settings).folder
    assert not {"min_seconds", "max_seconds"} & Needles(set="easy").spec.keys()
    assert Needles(set="events").folder != Needles(set="events", **settings).folder
    assert Needles(set="events", frames=99).folder == Needles(set="events").folder


def test_what_cannot_be_shown_is_one_line() -> None:
    with pytest.raises(UserError, match="dataset.num_frames=3: set=domains shows 4 things one after the other"):
        Needles(set="domains", num_frames=3)
    with pytest.raises(UserError, match="dataset.min_seconds=60: above dataset.max_seconds=30"):
        Needles(set="events", min_seconds=60, max_seconds=30)


# ----------------------------------------------------------------------------------------------------------- domains


def test_each_domain_asks_its_own_questions_in_turn() -> None:
    asked: dict[str, set[str]] = {name: set() for name in DOMAINS}
    for i, story in enumerate(told("domains", 80)):
        assert story.domain == DOMAINS[i % 4]
        asked[story.domain] |= {q["task"] for q in story.fields["questions"]}
    assert asked["sports"] == {"run_first", "run_last", "run_when", "run_way"}
    assert asked["tutorials"] == {"step_first", "step_last", "step_next", "step_number"}
    assert asked["news"] == {"headline_first", "headline_last", "headline_which"}
    assert asked["general"] == {"shape", "colour", "flash_colour", "flash_order"}
    assert sum(map(len, asked.values())) == len(set().union(*asked.values()))


def test_who_sees_nothing_of_a_domain_is_at_chance() -> None:
    """Answers are uniform for every question as it is worded, and so are their ranks among the options."""
    counts: dict[str, Counter] = {}
    for story in told("domains", 4000):
        for q in story.fields["questions"]:
            if q["task"].partition("_")[0] in ("run", "step", "headline"):
                counts.setdefault(q["question"], Counter())[q["answer"]] += 1
                rank = sorted(q["tries"][0]["options"]).index(q["answer"])
                counts.setdefault(f"{q['task']} rank", Counter())[str(rank)] += 1
    uniform(counts, at_least=20)


def test_answers_follow_from_what_is_shown() -> None:
    for story in told("domains", 200):
        answers = {q["task"]: q["answer"] for q in story.fields["questions"]}
        texts = {q["task"]: q["question"] for q in story.fields["questions"]}
        if story.domain == "sports":
            first, last = story.things
            assert answers["run_first"] == first.colour and answers["run_last"] == last.colour
            dx, dy = first.track[-1] - first.track[0]
            ways = {"left": -dx, "right": dx, "up": -dy, "down": dy}
            assert max(ways, key=lambda way: ways[way]) == answers["run_way"]
            asked = texts["run_when"].split()[3]
            runs = (first.colour == asked, last.colour == asked)
            of = {(True, True): "always", (True, False): "early", (False, True): "late", (False, False): "never"}
            assert answers["run_when"] == of[runs]
        if story.domain == "tutorials":
            shapes = [thing.shape for thing in story.things]
            assert (answers["step_first"], answers["step_last"]) == (shapes[0], shapes[3])
            assert shapes[shapes.index(texts["step_next"].split()[-2]) + 1] == answers["step_next"]
            number = domains.NUMBERS.index(answers["step_number"])
            assert shapes[number] == texts["step_number"].split()[-2]
            assert all(a.last + 1 == b.first for a, b in pairwise(story.things))
        if story.domain == "news":
            assert [h.word for h in story.headlines] == [answers["headline_first"], answers["headline_last"]]


def test_headlines_can_be_read(sets) -> None:
    """The pixels of a word are alike in all clips that show it, and unlike other words."""
    seen: dict[str, list[np.ndarray]] = {}
    for split in ("train", "test"):
        for info, video in samples(sets["domains"], split):
            if info["domain"] == "news":
                answers = {q["task"]: q["answer"] for q in info["questions"]}
                frames = decoded(video).astype(float)
                for name, frame in (("headline_first", 0), ("headline_last", -1)):
                    seen.setdefault(answers[name], []).append(frames[frame][37:59, 4:60].mean(-1))
    first = {word: pictures[0] for word, pictures in seen.items()}
    for word, pictures in seen.items():
        for picture in pictures:
            nearest = min(first, key=lambda other: float(((first[other] - picture) ** 2).mean()))
            assert nearest == word


# ------------------------------------------------------------------------------------------------------------ events


def test_events_differ_in_length_overlap_and_never_with_their_own_class() -> None:
    stories = told("events", 150, max_seconds=120.0)
    events = [story.fields["events"] for story in stories]
    seconds = [event["end"] - event["start"] for one in events for event in one]
    assert {len(one) for one in events} == {2, 3, 4, 5, 6} and min(seconds) >= 3.5 and max(seconds) > 25
    assert {event["label"] for one in events for event in one} == set(SHAPES)
    overlaps = 0
    for story, one in zip(stories, events, strict=True):
        assert 29.5 <= story.recipe.duration <= 120.5 and one == sorted(one, key=lambda e: (e["start"], e["end"]))
        for i, a in enumerate(one):
            assert 0 <= a["start"] < a["end"] <= story.recipe.duration
            for b in one[i + 1 :]:
                meet = a["start"] < b["end"] and b["start"] < a["end"]
                overlaps += meet
                assert not (meet and a["label"] == b["label"])
    assert overlaps > 50


def test_events_are_the_frames_that_show_them(sets) -> None:
    for info, _ in samples(sets["events"], "test"):
        at = [
            (o["first"] / info["fps"], (o["first"] + len(o["track"])) / info["fps"], o["shape"])
            for o in info["objects"]
        ]
        assert [(e["start"], e["end"], e["label"]) for e in info["events"]] == at


def test_longest_is_half_right_for_whoever_is_nearly_as_long() -> None:
    weights = Counter()
    for story in told("events", 120):
        seconds: dict[str, int] = {}
        for thing in story.things:
            seconds[thing.shape] = max(seconds.get(thing.shape, 0), len(thing.track))
        (q,) = (q for q in story.fields["questions"] if q["task"] == "event_longest")
        for answer, weight in q["answers"].items():
            weights[weight] += 1
            assert weight == 1.0 or 0.8 * max(seconds.values()) <= seconds[answer]
        assert seconds[q["answer"]] == max(seconds.values())
    assert weights[1.0] == 120 and weights[0.5] > 10


# ------------------------------------------------------------------------------------------------------------- pairs


def test_no_two_clips_of_a_split_share_a_caption_and_no_two_splits_do() -> None:
    captions = {
        split: [tuple(pairs.caption_of(split, i)) for i in range(count)] for split, count in pairs.PER_SPLIT.items()
    }
    assert pairs.PER_SPLIT["test"] >= 1000
    assert all(len(set(of)) == len(of) for of in captions.values())
    assert len(set().union(*map(set, captions.values()))) == sum(map(len, captions.values()))
    assert pairs.caption_of("test", pairs.PER_SPLIT["test"]) == pairs.caption_of("test", 0)


def test_negatives_have_the_same_words_and_are_wrong() -> None:
    for story in told("pairs", 60):
        (pair,) = story.fields["pairs"]
        assert len(pair["negatives"]) == len(set(pair["negatives"])) == 9
        for negative in pair["negatives"]:
            assert sorted(negative.split()) == sorted(pair["text"].split()) and negative != pair["text"]
        shown = " then ".join(f"a {thing.colour} {thing.shape}" for thing in story.things)
        assert pair["text"] == f"{shown} ."


def test_samples_are_read_as_they_were_written(sets) -> None:
    for name, made in sets.items():
        for info, _ in samples(made, "train"):
            read = parse({"json": json.dumps(info).encode()}, info["key"], "general")
            assert read["domain"] == info["domain"]
            assert [c["references"] for c in read["captions"]] == [c["references"] for c in info["captions"]]
            assert read.get("events") == info.get("events") and read.get("pairs") == info.get("pairs")
            for q, written in zip(read["questions"], info["questions"], strict=True):
                assert q["answer"] == written["answer"] and q["tries"] == written["tries"]
            if name == "events":
                assert read["events"] and all(event["label"] in SHAPES for event in read["events"])


# ----------------------------------------------------------------------------------------------------------- binding


def at(thing) -> tuple[int, int]:
    """The cell of the grid in which a thing stands."""
    x, y = thing.track.mean(0)
    return round((x - 32) / binding.CELL), round((y - 32) / binding.CELL)


def test_answers_about_things_follow_from_what_stands_where_and_those_about_the_whole_from_all() -> None:
    for story in told("binding", 200):
        asked = {q["task"]: q for q in story.fields["questions"]}
        places = {at(thing): thing for thing in story.things}
        assert len(places) == len(story.things) and set(asked) in (set(binding.LOCAL), set(binding.WHOLE))
        if "count" in asked:
            assert asked["count"]["answer"] == str(len(story.things))
            for task, of in (("twice_colour", "colour"), ("twice_shape", "shape")):
                (twice,) = (v for v, n in Counter(getattr(t, of) for t in story.things).items() if n > 1)
                assert asked[task]["answer"] == twice
            continue
        by = {"colour": {t.colour: t for t in story.things}, "shape": {t.shape: t for t in story.things}}
        assert len(by["colour"]) == len(by["shape"]) == len(story.things) >= 4
        for task, named, said in (("bind_shape", "colour", "shape"), ("bind_colour", "shape", "colour")):
            word = next(w for w in asked[task]["question"].split() if w in by[named])
            assert asked[task]["answer"] == getattr(by[named][word], said)
        for task, named, said in (("beside_shape", "colour", "shape"), ("beside_colour", "shape", "colour")):
            question = asked[task]["question"]
            anchor = by[named][next(w for w in question.split()[3:] if w in by[named])]
            (x, y), (dx, dy) = at(anchor), next(d for where, d in binding.WHERE.items() if f" {where} " in question)
            assert asked[task]["answer"] == getattr(places[x + dx, y + dy], said)
            others = [cell for d in binding.WHERE.values() if (cell := (x + d[0], y + d[1])) in places]
            assert len(others) > 1, "another thing stands beside the one that is named, too"


def test_who_sees_nothing_of_binding_is_at_chance() -> None:
    """Answers are uniform for every question as it is worded, their ranks among the options are, and who has learned
    the commonest answer to each question of one half of the clips gains nothing on the other."""
    counts: dict[str, Counter] = {}
    halves: list[list[tuple[str, str, str]]] = [[], []]
    for i, story in enumerate(told("binding", 4000)):
        for q in story.fields["questions"]:
            counts.setdefault(q["question"], Counter())[q["answer"]] += 1
            for n, one in enumerate(q["tries"]):
                counts.setdefault(f"{q['task']} rank {n}", Counter())[
                    str(sorted(one["options"]).index(q["answer"]))
                ] += 1
            halves[i // 2 % 2].append((q["task"], q["question"], q["answer"]))
    uniform(counts, at_least=30)
    learned: dict[str, Counter] = {}
    for _, question, answer in halves[0]:
        learned.setdefault(question, Counter())[answer] += 1
    for task in (*binding.LOCAL, *binding.WHOLE):
        right = [learned[q].most_common(1)[0][0] == answer for t, q, answer in halves[1] if t == task]
        chance = 1 / len(binding.COUNTS) if task == "count" else 1 / 6
        assert np.mean(right) < chance + 4 * np.sqrt(chance / len(right)), task


def test_who_knows_what_is_in_sight_and_not_what_belongs_together_guesses() -> None:
    """Of what is in sight and not named, every thing is as often the answer, in the order of the alphabet too."""
    ranks: dict[tuple[str, int], Counter] = {}
    for story in told("binding", 3000):
        for q in story.fields["questions"]:
            if q["task"].startswith("beside"):
                of = q["task"].partition("_")[2]
                there = sorted(getattr(t, of) for t in story.things)
                ranks.setdefault((q["task"], len(there)), Counter())[there.index(q["answer"])] += 1
    for (task, count), found in ranks.items():
        total = sum(found.values())
        assert max(found.values()) / total < 1 / count + 4 * np.sqrt(1 / count / total), (task, count)


def test_pairs_of_binding_are_wrong_in_one_thing() -> None:
    for story in told("binding", 60):
        (pair,) = story.fields["pairs"]
        assert pair["text"] not in pair["negatives"] and len(set(pair["negatives"])) == len(pair["negatives"]) >= 3


def test_a_still_of_binding_is_one_frame() -> None:
    assert len(Needles(set="binding", num_frames=1).recipe.shown) == 1
    with pytest.raises(UserError, match="dataset.num_frames=1: expected 2 to 100000 frames"):
        Needles(set="easy", num_frames=1)
