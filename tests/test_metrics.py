"""Metrics of captions, answers, rankings and segments: figures by hand or of the published programs, and two processes
that compute what one does."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.retrieval import RetrievalHitRate

from hvlm.metrics.captions import bleu, bleu_counts, cider_d, rouge_l
from hvlm.metrics.domains import DomainMeans
from hvlm.metrics.meteor import MeteorCounts, meteor, meteor_counts
from hvlm.metrics.retrieval import PairRetrieval, RankedRetrieval, ranks
from hvlm.metrics.segments import DRAWS
from hvlm.metrics.stem import stem
from hvlm.metrics.temporal import ACTIVITYNET, TemporalMAP, TemporalRecall
from hvlm.metrics.text import BLEU, ROUGEL, CIDErD, METEORExactStem, SoftVQAAccuracy
from hvlm.metrics.vqa import normalised, vqa_accuracy
from hvlm.metrics.words import words

# What COCO's evaluation (pycocoevalcap 1.2) gives for these: its figures stand in the tests below.
CANDIDATES = ["a red ball moves left", "a blue square blinks twice", "a green circle appears"]
REFERENCES = [
    ["a red ball rolls left", "the red ball moves to the left"],
    ["a blue square blinks twice", "a square blinks"],
    ["nothing happens in the video"],
]
PEOPLE = ["2"] * 3 + ["3"] * 6 + ["a few"]


def updated(metric: Metric, *args: Any) -> Any:
    """What the metric computes of one update."""
    metric.update(*args)
    return metric.compute()


# ----------------------------------------------------------------------------------------------------------- captions


def test_cider_d_is_cocos() -> None:
    metric = CIDErD()
    assert updated(metric, CANDIDATES, REFERENCES).item() == pytest.approx(3.3443216459, abs=1e-6)
    assert metric.items() == pytest.approx([3.7651321139, 6.2678328239, 0], abs=1e-9)
    alone = [(["a", "b", "c", "d"], [["a", "b", "c", "d"]]), (["e"], [["f"]])]
    assert cider_d(alone)[0] == pytest.approx(10), "what is its only reference, word for word"
    assert cider_d(alone[:1]) == [0], "of one item alone every word is in every item"
    assert cider_d([([], [["a"]]), (["b"], [[]])]) == [0, 0]


def test_bleu_is_cocos() -> None:
    found = updated(BLEU(), CANDIDATES, REFERENCES)
    expected = [0.6650448426, 0.6277223979, 0.6120657497, 0.5405779132]
    assert [found[f"bleu_{n}"].item() for n in range(1, 5)] == pytest.approx(expected, abs=1e-6)
    assert bleu_counts((["a"] * 4, [["b"] * 5, ["a"] * 3])).reference == 3, "of two as near the shorter one"
    assert bleu_counts((["a"] * 4, [["a", "b"], ["a", "a"]])).matched == (2, 1, 0, 0), "no more than one reference has"
    assert bleu(bleu_counts(([], [["a"]]))) == [0] * 4


def test_rouge_l_is_cocos() -> None:
    assert updated(ROUGEL(), CANDIDATES, REFERENCES).item() == pytest.approx(0.6, abs=1e-6)
    items = [(c.split(), [r.split() for r in of_one]) for c, of_one in zip(CANDIDATES, REFERENCES, strict=True)]
    assert [rouge_l(item) for item in items] == pytest.approx([0.8, 1, 0], abs=1e-9)
    # Precision 2/4 from the first, recall 1/1 from the second.
    assert rouge_l((list("abcd"), [list("abxyz"), ["a"]])) == pytest.approx(2.44 * 0.5 / (1 + 1.44 * 0.5))


METEOR = [  # of METEOR 1.5's own program with -m "exact stem"
    ("a cat is sitting on the mats", "a cat sat on the mat", 0.32128814727236493),
    ("the dogs quickly ran home", "the dog runs home quickly", 0.29347830310483985),
    ("a red ball moves left", "a red ball rolls left", 0.367438201555635),
    ("the the cat", "the cat", 0.46040449351549445),
    ("red ball", "red ball", 1.0),
    ("the red ball rolls to the left side", "to the left rolls a red ball", 0.43283982319175124),
]


def test_meteor_of_words_and_stems_is_its_programs() -> None:
    counts = [meteor_counts((c.split(), [r.split()])) for c, r, _ in METEOR]
    assert [meteor(one) for one in counts] == pytest.approx([score for *_, score in METEOR], abs=1e-12)
    summed = MeteorCounts(*map(sum, zip(*counts, strict=True)))
    assert meteor(summed) == pytest.approx(0.38280807467060096, abs=1e-12)
    texts, references = [c for c, *_ in METEOR], [[r] for _, r, _ in METEOR]
    assert updated(METEORExactStem("corpus"), texts, references).item() == pytest.approx(0.38280807467, abs=1e-6)
    mean = sum(score for *_, score in METEOR) / len(METEOR)
    assert updated(METEORExactStem(), texts, references).item() == pytest.approx(mean, abs=1e-6)
    assert meteor(meteor_counts((["cat"], [["dog"], ["cats"], ["a", "cat"]]))) == pytest.approx(0.6), "the best one"
    assert meteor(meteor_counts(([], [["a"]]))) == 0


def test_stems_are_porters_second() -> None:
    pairs = (
        "caresses caress; ties tie; cries cri; gas gas; gaps gap; agreed agre; hoping hope; hopping hop; luxuriated "
        "luxuri; falling fall; cry cri; by by; say say; relational relat; conditional condit; rationally ration; "
        "generalization general; communism communism; arsenal arsenal; happily happili; hopefully hope; goodness good; "
        "formative format; adoption adopt; skies sky; dying die; news news; inning inning; exceeded exceed; "
        "boyish boyish; rate rate; controlled control; bass bass; moved move; rolls roll; moving move; sitting sit; "
        "sky sky; bowling bowl; knightly knight; consisting consist; beauty beauti; john's john"
    )
    for pair in pairs.split("; "):
        word, expected = pair.split()
        assert stem(word) == expected, word


def test_words_are_lower_case_and_without_marks() -> None:
    assert words("The Red-hot ball, it's 2.5 m away!") == ["the", "red-hot", "ball", "it", "'s", "2.5", "m", "away"]
    assert words("I don’t (know)...") == ["i", "do", "n't", "know"]
    assert words("…") == []


def test_references_that_are_none_are_refused() -> None:
    for metric in (CIDErD(), BLEU(), ROUGEL(), METEORExactStem()):
        with pytest.raises(ValueError, match=r"references\[0\] is 'a red ball': expected one reference or more"):
            metric.update(["a"], ["a red ball"])
        with pytest.raises(ValueError, match="2 candidates and 1 sets"):
            metric.update(["a", "b"], [["a"]])


# ------------------------------------------------------------------------------------------------------------ answers


@pytest.mark.parametrize(("matches", "worth"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_vqa_accuracy_counts_people(matches: int, worth: float) -> None:
    people = ["blue"] * matches + [f"other {i}" for i in range(10 - matches)]
    for variant in ("official", "always_normalised"):
        assert vqa_accuracy("blue", people, variant) == pytest.approx(worth)


def test_vqa_variants_differ_where_all_people_agree() -> None:
    assert vqa_accuracy("Two", ["2"] * 10, "official") == 0
    assert vqa_accuracy("Two", ["2"] * 10, "always_normalised") == 1
    assert vqa_accuracy("two", PEOPLE) == vqa_accuracy("two", PEOPLE, "always_normalised") == pytest.approx(0.9)
    assert vqa_accuracy("two\n", ["two"] * 10) == 1, "a line's end counts in neither"
    assert updated(SoftVQAAccuracy(), ["two", "Two"], [PEOPLE, ["2"] * 10]).item() == pytest.approx(0.45)
    assert updated(SoftVQAAccuracy("always_normalised"), ["two", "Two"], [PEOPLE, ["2"] * 10]).item() == pytest.approx(
        0.95
    )
    with pytest.raises(ValueError, match="variant='lenient'"):
        SoftVQAAccuracy("lenient")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Red Ball", "red ball"),
        ("none", "0"),
        ("1,000", "1000"),
        ("T-shirt", "t shirt"),
        ("yes, sir", "yes sir"),
        ("2.5", "2.5"),
        ("end.", "end"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("hes", "he's"),
        ("'ow'sat", "'ow's'at"),
    ],
)
def test_vqa_normalisation(text: str, expected: str) -> None:
    assert normalised(text) == expected


# ---------------------------------------------------------------------------------------------------------- retrieval


def test_ranks_count_any_right_candidate_and_ties_against_it() -> None:
    scores = torch.tensor([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1], [0.2, 0.2, 0.2], [0.1, 0.9, 0.9]])
    right = torch.tensor([[1, 0, 0], [0, 1, 1], [0, 1, 0], [0, 1, 1]]).bool()
    assert ranks(scores, right).tolist() == [1, 2, 3, 1]
    found = updated(RankedRetrieval((1, 2)), scores, right)
    assert {name: round(value.item(), 6) for name, value in found.items()} == {
        "r@1": 0.5,
        "r@2": 0.75,
        "median_rank": 1.5,
    }
    with pytest.raises(ValueError, match="query 1 has no right candidate"):
        ranks(scores[:2], torch.tensor([[True, False, False], [False, False, False]]))
    with pytest.raises(ValueError, match="NaN"):
        ranks(scores[:1] * float("nan"), right[:1])


def test_recall_at_k_is_torchmetrics_hit_rate_where_no_scores_are_equal() -> None:
    draw = torch.Generator().manual_seed(0)
    scores, right = torch.rand(40, 30, generator=draw), torch.rand(40, 30, generator=draw) < 0.1
    right[:, 0] |= ~right.any(1)
    found = updated(RankedRetrieval(), scores, right)
    rows = torch.arange(40)[:, None].expand(40, 30)
    for k in (1, 5, 10):
        assert found[f"r@{k}"] == pytest.approx(RetrievalHitRate(top_k=k)(scores, right, rows).item())


def test_pairs_are_found_both_ways() -> None:
    video = torch.eye(3)
    text = torch.tensor([[2.0, 0, 0], [0, 3, 0], [0, 1, 0.1], [0, 1, 0.5]])
    found = updated(PairRetrieval(3, (1, 2)), video, text, torch.tensor([0, 1, 2]), torch.tensor([0, 1, 1, 2]))
    assert found["video_to_text/r@1"] == 1 and found["video_to_text/median_rank"] == 1
    assert found["text_to_video/r@1"] == 0.75 and found["text_to_video/r@2"] == 1, "the last is nearer to video 1"
    same = updated(PairRetrieval(2), torch.ones(50, 2), torch.ones(50, 2), torch.arange(50))
    assert same["video_to_text/r@10"] == 0, "embeddings that are all the same find nothing"


# ----------------------------------------------------------------------------------------------------------- segments


def mean_ap(*videos: tuple[list, list], thresholds: tuple[float, ...] = (0.5,)) -> float:
    """videos: ([(start, end, class, score)], [(start, end, class)])."""
    metric = TemporalMAP(thresholds)
    metric.update(*in_parts({f"v{i}": video for i, video in enumerate(videos)}))
    return metric.compute()["mean"].item()


def in_parts(videos: dict[str, tuple[list, list]]) -> tuple[list, list, list]:
    """As ``update`` takes them."""
    predicted = [
        ([p[:2] for p in guesses], [p[2] for p in guesses], [p[3] for p in guesses]) for guesses, _ in videos.values()
    ]
    return list(videos), predicted, [([t[:2] for t in true], [t[2] for t in true]) for _, true in videos.values()]


def test_average_precision_by_hand() -> None:
    one, two = (0.0, 4.0, 0), (6.0, 10.0, 0)
    right, other = (*one, 0.9), (*two, 0.8)
    assert mean_ap(([right, other], [one, two]), thresholds=ACTIVITYNET) == 1, "perfect"
    # A duplicate is false: precision 1, 1/2, 2/3; from the right 2/3 stands at recall 1, 1 at recall 1/2.
    assert mean_ap(([right, (0.0, 4.0, 0, 0.85), other], [one, two])) == pytest.approx(0.5 + 0.5 * 2 / 3)
    # Precision 0, 1/2, 2/3: the envelope is 2/3 from the start.
    assert mean_ap(([(20.0, 30.0, 0, 0.95), right, other], [one, two])) == pytest.approx(2 / 3)
    assert mean_ap(([right], [one, two])) == 0.5, "what is missed ends the curve"
    assert mean_ap(([], [one])) == 0 and mean_ap(([right], [one]), ([], [one])) == 0.5
    assert mean_ap(([(0.0, 4.0, 0, 0.1)], [(20.0, 24.0, 0)]), ([], [one])) == 0, "the right time in another video"
    # 2 of 4 s: exactly the threshold, which counts.
    assert mean_ap(([(0.0, 2.0, 0, 0.9)], [one])) == 1 and mean_ap(([(0.0, 1.99, 0, 0.9)], [one])) == 0


def test_average_precision_takes_the_best_free_segment() -> None:
    overlapping = [(0.0, 4.0, 0), (1.0, 5.0, 0)]
    # Both predictions fit the second segment best; the second of them is left the first (3 of 5 s).
    assert mean_ap(([(1.0, 5.0, 0, 0.9), (1.0, 5.0, 0, 0.8)], overlapping)) == 1
    assert mean_ap(([(1.0, 5.0, 0, 0.9), (1.0, 5.0, 0, 0.8)], overlapping), thresholds=(0.7,)) == pytest.approx(0.5)


def test_ties_are_settled_by_the_order_of_the_data() -> None:
    truth = [(0.0, 4.0, 0)]
    wrong, right = (20.0, 24.0, 0, 0.5), (0.0, 4.0, 0, 0.5)
    assert mean_ap(([right, wrong], truth)) == 1 and mean_ap(([wrong, right], truth)) == 0.5
    assert mean_ap(([right], truth), ([wrong], [])) == 1 and mean_ap(([wrong], []), ([right], truth)) == 0.5


def test_classes_are_those_of_the_ground_truth() -> None:
    one, two = (0.0, 4.0, 0), (6.0, 10.0, 1)
    assert mean_ap(([(*one, 0.9), (0.0, 4.0, 7, 0.99)], [one])) == 1, "a class without ground truth does not count"
    assert mean_ap(([(*one, 0.9)], [one, two])) == 0.5, "a class without predictions is 0"
    assert mean_ap(([(*one, 0.9)], [one, (0.0005, 4.0005, 0), (3.0, 3.0, 1)])) == 1, "repeated and empty ground truth"
    assert torch.isnan(updated(TemporalMAP(), [], [], [])["mean"])
    named = TemporalMAP((0.5,))
    named.update(["v"], [([(0, 4), (6, 8)], ["jump", "run"], [0.9, 0.8])], [([(0, 4), (0, 9)], ["jump", "fall"])])
    assert named.classes() == {"jump": [1.0], "fall": [0.0]} and named.compute()["0.50"] == 0.5
    with pytest.raises(ValueError, match="v0: a segment of truth ends at 1 s, before it starts at 2 s"):
        mean_ap(([], [(2.0, 1.0, 0)]))
    with pytest.raises(ValueError, match="no finite number"):
        mean_ap(([(0.0, 1.0, 0, float("nan"))], []))


def test_recall_at_kx_by_hand() -> None:
    truth = [(0.0, 4.0, 0), (6.0, 10.0, 0)]
    guesses = [(20.0, 24.0, 0, 0.9), (0.0, 4.0, 0, 0.8), (6.0, 10.0, 0, 0.7), (0.0, 2.0, 0, 0.1)]
    metric = TemporalRecall((0.5,), (1, 2))
    found = updated(metric, *in_parts({"v": (guesses, truth), "w": ([], [(0.0, 1.0, 0)])}))
    # Of three segments: two guesses (1x) find one, four (2x) find two; one at exactly the threshold would not.
    assert found["1x/0.50"] == pytest.approx(1 / 3) and found["2x/0.50"] == pytest.approx(2 / 3)
    assert updated(TemporalRecall((0.5,), (1,)), *in_parts({"v": (guesses[3:], truth[:1])}))["1x/0.50"] == 0


# ------------------------------------------------------------------------------------------------------------ domains


def test_every_domain_weighs_the_same() -> None:
    found = updated(
        DomainMeans(("news", "sports", "idle")), [1.0, 0.0, 0.0, 0.0], ["news", "sports", "sports", "sports"]
    )
    assert {name: value.item() for name, value in found.items()} == {
        "news": 1,
        "sports": 0,
        "macro": 0.5,
        "micro": 0.25,
    }
    with pytest.raises(ValueError, match="domain 'sport': expected one of news"):
        DomainMeans(("news",)).update([1.0], ["sport"])
    with pytest.raises(ValueError, match="none of them macro"):
        DomainMeans(("macro",))


# ----------------------------------------------------------------------------------------------------- two processes

VIDEOS = {  # equal scores in several of them
    "v": ([(0.0, 4.0, 0, 0.5), (20.0, 24.0, 0, 0.5)], [(0.0, 4.0, 0)]),
    "w": ([(7.0, 8.0, 0, 0.5), (1.0, 3.0, 1, 0.2)], [(1.0, 3.0, 1)]),
    "x": ([(2.0, 5.0, 0, 0.5)], [(2.0, 5.0, 0), (6.0, 9.0, 1)]),
}
DRAW = torch.Generator().manual_seed(3)
EMBEDDED = torch.randn(5, 4, generator=DRAW), torch.randn(5, 4, generator=DRAW)


def every() -> dict[str, tuple[Metric, Callable[[slice], tuple]]]:
    """{name: (fresh metric, what it is updated with for a slice of the items)}."""
    segments = in_parts(VIDEOS)
    captions = lambda part: (CANDIDATES[part], REFERENCES[part])  # noqa: E731
    groups = torch.tensor([0, 1, 1, 2, 3])
    return {
        "cider": (CIDErD(), captions),
        "bleu": (BLEU(), captions),
        "rouge": (ROUGEL(), captions),
        "meteor": (METEORExactStem(), captions),
        "meteor_corpus": (METEORExactStem("corpus"), captions),
        "vqa": (SoftVQAAccuracy(), lambda part: (["two", "Two", "3"][part], [PEOPLE, ["2"] * 10, PEOPLE][part])),
        "map": (TemporalMAP(), lambda part: tuple(of[part] for of in segments)),
        "recall": (TemporalRecall(), lambda part: tuple(of[part] for of in segments)),
        "ranked": (
            RankedRetrieval((1, 2)),
            lambda part: (EMBEDDED[0][part] @ EMBEDDED[1].T, torch.eye(5).bool()[part]),
        ),
        "pairs": (PairRetrieval(4, (1, 2)), lambda part: (*(x[part] for x in EMBEDDED), groups[part])),
        "domains": (
            DomainMeans(("a", "b")),
            lambda part: (torch.tensor([1.0, 0.25, 0.5])[part], ["a", "b", "a"][part]),
        ),
    }


def flat(value: Any) -> dict[str, float]:
    return {k: v.item() for k, v in value.items()} if isinstance(value, dict) else {"": value.item()}


def in_a_process(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    found = {}
    for name, (metric, items) in every().items():
        metric.update(*items(slice(rank, None, 2)))
        found[name] = flat(metric.compute())
        metric.reset()
        if rank == 0:  # and once with nothing at all in the other process
            metric.update(*items(slice(None)))
        found[f"{name}, all in one"] = flat(metric.compute())
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_compute_what_one_does(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=in_a_process, args=(rank, tmp_path)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        if process.is_alive():
            process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for name, (metric, items) in every().items():
        expected = flat(updated(metric, *items(slice(None))))
        for found in (one, other):
            assert found[name] == pytest.approx(expected, abs=1e-6), name
            assert found[f"{name}, all in one"] == pytest.approx(expected, abs=1e-6), name


def test_items_that_came_in_batches_are_those_that_came_at_once() -> None:
    for name, (metric, items) in every().items():
        for i in range(5):
            if any(len(part) for part in items(slice(i, i + 1)) if not isinstance(part, Tensor) or len(part)):
                metric.update(*items(slice(i, i + 1)))
        whole, _ = every()[name]
        assert flat(metric.compute()) == pytest.approx(flat(updated(whole, *items(slice(None)))), abs=1e-6), name


def test_the_error_of_map_is_how_it_varies_when_videos_are_drawn_anew() -> None:
    rng = np.random.default_rng(1)
    videos = []
    for _ in range(6):
        starts, guesses = rng.uniform(0, 20, 3), rng.uniform(0, 20, 5)
        right = (np.stack([starts, starts + 4], 1), ["ab"[i % 2] for i in range(3)])
        found = (np.stack([guesses, guesses + 4], 1), ["ab"[i % 2] for i in range(5)], rng.uniform(size=5))
        videos.append((found, right))
    metric = TemporalMAP((0.1, 0.5))
    metric.update(list("abcdef"), *map(list, zip(*videos, strict=True)))
    held = metric.held("truth").video
    order = np.argsort([held[3 * i] for i in range(6)])  # in which videos are drawn
    drawn = np.random.default_rng(0)
    values = []
    for _ in range(DRAWS):
        again = TemporalMAP((0.1, 0.5))
        for i, place in enumerate(order[drawn.integers(6, size=6)]):
            again.update([str(i)], [videos[place][0]], [videos[place][1]])
        values.append([float(value) for value in again.compute().values()])
    expected = np.std(values, axis=0, ddof=1)
    assert list(metric.errors()) == ["mean", "0.10", "0.50"]
    np.testing.assert_allclose(list(metric.errors().values()), expected, rtol=1e-5)
    alone = TemporalMAP()
    alone.update(["a"], [videos[0][0]], [videos[0][1]])
    assert all(np.isnan(list(alone.errors().values()))), "one video says nothing of others"
