"""Temporal detection: which moment learns which segment, the losses, soft-NMS, streams, and files of one's own."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _tiny import Case, Variant, model, side

from hvlm import assembly
from hvlm.checks.heads import OTHER, SAMPLE, clip_of, close, read, samples
from hvlm.checks.models import shared_model
from hvlm.data.quarantine import SampleError
from hvlm.data.video_folder import VideoFolder
from hvlm.errors import UserError
from hvlm.evaluation.heads import scored
from hvlm.evaluation.results import Label
from hvlm.head._boundaries import TridentEnds, focal
from hvlm.head._grid import assign, points_of, to_grid, to_seconds
from hvlm.head._pool import Frames
from hvlm.head._segments import diou_loss, giou_loss, soft_nms
from hvlm.head.detect import Detect
from hvlm.model import VLM

CPU = torch.device("cpu")


def detector(**settings: Any) -> Detect:
    torch.manual_seed(0)
    return assembly.room(Variant("head", "detect").settings | {"dropout": 0.0} | settings, text_dim=8).eval()


def noise(*counts: int, dim: int = 8) -> Frames:
    """Rows of so many frames, two a second."""
    t = max(counts)
    g = torch.Generator().manual_seed(3)
    time = ((torch.arange(t) + 0.5) / 2).expand(len(counts), -1)
    mask = torch.arange(t) < torch.tensor(counts).unsqueeze(1)
    return Frames(torch.randn(len(counts), t, dim, generator=g), time, mask)


# ---------------------------------------------------------------------------------------------------- grid, assignment


def test_seconds_and_grid_are_inverse_also_beyond_the_frames_and_between_uneven_ones() -> None:
    time = torch.tensor([[0.5, 1.0, 2.0, 0.0], [0.25, 0.75, 1.25, 1.75]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]], dtype=torch.bool)
    seconds = torch.tensor([[0.0, 0.75, 1.5, 3.0], [0.0, 0.5, 1.75, 2.25]])
    place = to_grid(seconds, time, mask)
    torch.testing.assert_close(place, torch.tensor([[-1.0, 0.5, 1.5, 3.0], [-0.5, 0.5, 3.0, 4.0]]))
    torch.testing.assert_close(to_seconds(place, time, mask), seconds)
    one = torch.ones(1, 1, dtype=torch.bool)
    torch.testing.assert_close(to_grid(torch.tensor([[2.5]]), torch.tensor([[2.0]]), one), torch.tensor([[0.5]]))


def test_a_moment_learns_the_shortest_segment_around_it_that_is_of_its_level() -> None:
    """By hand: 16 frames, two levels, whose ranges are 0 to 4 and 4 upwards."""
    points = points_of(16, 2, 4.0, 0, CPU)
    assert points.sizes == (16, 8) and points.place_P[16:].tolist() == [0, 2, 4, 6, 8, 10, 12, 14]
    segments = torch.tensor([[[1.0, 5.0], [2.0, 4.0], [3.0, 13.0], [0.0, 0.0]]])
    labels = torch.tensor([[0, 1, 2, -1]])
    got = assign(points, segments, labels, torch.ones(1, 24, dtype=torch.bool), 3, 1.5)
    learned = {(p, c) for _, p, c in got.classes_KPC.nonzero().tolist()}
    # Level 0: 2 and 4 lie on the ends of [2, 4], so only 3 learns it; these two learn [1, 5], whose middle is 3.
    # Level 1 (stride 2, so up to 3 from the middle, 8): 6, 8, 10 have a distance of 5 or more to an end of [3, 13].
    assert learned == {(2, 0), (4, 0), (3, 1), (16 + 3, 2), (16 + 4, 2), (16 + 5, 2)}
    torch.testing.assert_close(got.offsets_KP2[0, 3], torch.tensor([1.0, 1.0]))
    torch.testing.assert_close(got.offsets_KP2[0, 16 + 3], torch.tensor([1.5, 3.5]))
    assert got.positive_KP.sum() == 6


def test_ranges_hold_both_ends_and_equal_lengths_are_learned_together() -> None:
    points = points_of(16, 2, 4.0, 0, CPU)
    both = torch.tensor([[[0.0, 8.0], [0.0, 8.0005]]])
    got = assign(points, both, torch.tensor([[0, 1]]), torch.ones(1, 24, dtype=torch.bool), 2, 1.5)
    learned = {(p, c) for _, p, c in got.classes_KPC.nonzero().tolist()}
    # Place 4 has exactly 4 to its ends: level 0 holds it (4 is its last), and level 1 (4 is its first), which has 2, 6.
    assert {(4, 0), (16 + 2, 0), (16 + 1, 0), (16 + 3, 0)} <= learned
    assert {(16 + 2, 1), (16 + 1, 1), (16 + 3, 1)} <= learned, "as long, within 1e-3"


def test_what_is_padded_learns_nothing() -> None:
    points = points_of(8, 1, 4.0, 0, CPU)
    valid = torch.arange(8) < 3
    got = assign(points, torch.tensor([[[0.5, 6.0]]]), torch.tensor([[0]]), valid[None], 1, 3.0)
    assert got.positive_KP.nonzero()[:, 1].max() < 3


# ---------------------------------------------------------------------------------------------------- losses


def test_distances_between_segments_by_hand() -> None:
    found, right = (
        torch.tensor([[2.0, 2.0], [1.0, 3.0], [0.0, 0.0]]),
        torch.tensor([[2.0, 2.0], [3.0, 1.0], [1.0, 1.0]]),
    )
    # The second: 2 of 6 shared; the middles are 1 and -1; the third has no length.
    expected = torch.tensor([0.0, 1 - 2 / 6 + (2 / 6) ** 2, 1.0])
    torch.testing.assert_close(diou_loss(found, right), expected)
    torch.testing.assert_close(giou_loss(found, right), torch.tensor([0.0, 1 - 2 / 6, 1.0]))


def test_the_focal_loss_is_small_where_the_model_is_sure_and_right() -> None:
    logits = torch.tensor([0.0, 3.0, -3.0])
    right = torch.tensor([1.0, 1.0, 0.0])
    p = logits.sigmoid()
    expected = [0.25 * 0.25 * math.log(2), 0.25 * (1 - p[1]) ** 2 * -p[1].log(), 0.75 * p[2] ** 2 * -(1 - p[2]).log()]
    torch.testing.assert_close(focal(logits, right, 0.25, 2.0), torch.tensor([float(e) for e in expected]))


def test_a_trident_end_is_the_expected_distance_over_start_and_end_logits() -> None:
    torch.manual_seed(0)
    ends = TridentEnds(4, 2, 1, 3).eval()
    x, mask = torch.randn(1, 5, 4), torch.ones(1, 5, dtype=torch.bool)
    got = ends([(x, mask)])[0]  # [5, 2, 2]
    own = torch.relu(ends.tower(x, mask))[0]
    start, end = ends.start(x, mask)[0], ends.end(x, mask)[0]
    for t, c in ((0, 0), (2, 1), (4, 0)):
        left = [(start[t - b, c].item() if t >= b else 0.0) + own[t, 3 - b].item() for b in range(4)]
        right = [(end[t + b, c].item() if t + b < 5 else 0.0) + own[t, 4 + b].item() for b in range(4)]
        for side_, scores in enumerate((left, right)):
            weight = np.exp(scores) / np.exp(scores).sum()
            assert abs(got[t, side_, c].item() - (weight * np.arange(4)).sum()) < 1e-5


def test_what_the_loss_is_divided_by_moves_with_the_positives() -> None:
    head = detector(positives=100.0)
    assert float(head.divisor("detect", torch.tensor(20.0))) == pytest.approx(92.0)
    assert float(head.divisor("detect", torch.tensor(0.0))) == pytest.approx(82.9), "no positives count as one"
    assert "running" in head.state_dict(), "a resumed run goes on with it"
    assert float(detector(momentum=0.0).divisor("detect", torch.tensor(7.0))) == 7.0


# ---------------------------------------------------------------------------------------------------- soft-NMS


def test_soft_nms_by_hand() -> None:
    segments = [[0.0, 10.0], [0.0, 10.0], [5.0, 15.0], [20.0, 30.0]]
    got = soft_nms(segments, [0.9, 0.8, 0.7, 0.1], sigma=0.5, min_score=1e-3, most=10)
    # Of [0, 10]: its double keeps exp(-1 / .5) of .8; [5, 15] has an IoU of 1/3 with both.
    third = 0.7 * math.exp(-2 / 9)
    double = 0.8 * math.exp(-2) * math.exp(-2 / 9)
    assert [i for i, _ in got] == [0, 2, 3, 1]
    np.testing.assert_allclose([s for _, s in got], [0.9, third, 0.1, double], rtol=1e-5)


def test_soft_nms_takes_equal_scores_in_their_order_and_drops_small_ones_at_once() -> None:
    far = [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
    assert [i for i, _ in soft_nms(far, [0.5, 0.5, 0.5], sigma=0.5, min_score=0.1, most=2)] == [0, 1]
    twice = soft_nms([[0.0, 1.0], [0.0, 1.0]], [0.5, 0.4], sigma=0.5, min_score=0.1, most=9)
    assert twice == [(0, 0.5)], ".4 becomes .054"
    # No threshold of overlap: the slightest overlap lowers the score.
    near = soft_nms([[0.0, 10.0], [9.0, 19.0]], [0.9, 0.8], sigma=0.5, min_score=0.0, most=9)
    assert near[1][1] == pytest.approx(0.8 * math.exp(-((1 / 19) ** 2) / 0.5), rel=1e-6)
    assert soft_nms([], [], sigma=0.5, min_score=0.0, most=9) == []


# ---------------------------------------------------------------------------------------------------- the head


@pytest.mark.parametrize(
    "settings", [{}, {"boundary": "trident", "bins": 3}, {"causal": True}, {"levels": 4, "stem": 2}]
)
@torch.no_grad()
def test_a_short_clip_beside_a_long_one_is_as_alone(settings: dict[str, Any]) -> None:
    head = detector(**settings)
    together, alone = head.of_frames(noise(13, 5)), head.of_frames(Frames(*(x[1:, :5] for x in noise(13, 5))))
    a = together.logits_KPC[1][together.valid_KP[1]]
    b = alone.logits_KPC[0][alone.valid_KP[0]]
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    for whole, part in zip(
        head.ends.segments(together.ends, together.points), head.ends.segments(alone.ends, alone.points), strict=True
    ):
        torch.testing.assert_close(whole[1][together.valid_KP[1]], part[0][alone.valid_KP[0]], rtol=0, atol=1e-4)


@pytest.mark.parametrize("look_ahead", [0, 1, 3, 4])
@pytest.mark.parametrize("levels", [1, 3])
@torch.no_grad()
def test_a_stream_is_the_whole_pass_within_its_look_ahead(look_ahead: int, levels: int) -> None:
    head = detector(causal=True, look_ahead=look_ahead, levels=levels, stem=2, window=3)
    frames = noise(21)
    whole, stream = head.of_frames(frames), head.stream()
    said: dict[tuple[int, int], dict[str, Any]] = {}
    for i, (x, seconds) in enumerate(zip(frames.x_KTD[0], frames.time_KT[0].tolist(), strict=True)):
        for one in stream.read(x, seconds):
            assert one["place"] == i - look_ahead, "as soon as the frames that it may see are there"
            said[one["level"], one["place"]] = one
    said |= {(one["level"], one["place"]): one for one in stream.end()}
    begin = 0
    for level, size in enumerate(whole.points.sizes):
        for p in range(begin, begin + size):
            if whole.valid_KP[0, p]:
                one = said.pop((level, int(whole.points.place_P[p])))
                torch.testing.assert_close(one["logits"], whole.logits_KPC[0, p], rtol=0, atol=1e-5)
                torch.testing.assert_close(one["offsets"], whole.ends[0, p], rtol=0, atol=1e-5)
        begin += size
    assert not said, "and of nothing else"


@torch.no_grad()
def test_the_segments_of_a_stream_are_those_of_the_clip_and_its_state_does_not_grow() -> None:
    head = detector(causal=True, look_ahead=2, levels=3)
    frames = noise(40)
    batch_rows = [{"key": "a", "uid": "a", "events": []}]
    whole = head.predict(head.of_frames(frames), type("Rows", (), {"rows": batch_rows})())[0]["segments"]

    def size(state: Any) -> int:
        return sum(size(x) if isinstance(x, dict) else x.numel() for x in state.values())

    stream, sizes = head.stream(), []
    for x, seconds in zip(frames.x_KTD[0], frames.time_KT[0].tolist(), strict=True):
        stream.read(x, seconds)
        sizes.append(size(stream.state))
    stream.end()
    close(stream.segments(), whole)
    assert len(whole) > 3 and sizes[-1] == sizes[-5], "its state does not grow"


@torch.no_grad()
def test_the_whole_model_is_causal_where_its_rooms_are() -> None:
    """What is said of a moment of a clip's beginning is what the whole clip has said of it."""
    causal = Variant("head", "detect", (("causal", True), ("look_ahead", 2)))
    vlm = shared_model(Case("question_first", (causal, Variant("connector", "mean"))))
    clip = clip_of(1, 12, side(vlm), SAMPLE)
    batch = read(vlm, clip)
    part = batch._replace(**{n: getattr(batch, n)[:, :7] for n in ("frames_BTCHW", "frame_time_BT", "frame_mask_BT")})
    whole, begun = vlm.output(batch), vlm.output(part)
    seen = 0
    for p, (place, stride) in enumerate(
        zip(begun.points.place_P.tolist(), begun.points.stride_P.tolist(), strict=True)
    ):
        (same,) = ((whole.points.place_P == place) & (whole.points.stride_P == stride)).nonzero(as_tuple=True)
        if 0 <= place and place + 2 < 7:
            torch.testing.assert_close(begun.logits_KPC[0, p], whole.logits_KPC[0, same[0]], rtol=0, atol=1e-5)
            seen += 1
    assert seen >= 5


def test_trident_is_not_causal_and_only_a_causal_head_streams() -> None:
    with pytest.raises(UserError, match="head.causal=true: head.boundary=trident looks for the end among later"):
        detector(causal=True, boundary="trident")
    with pytest.raises(UserError, match="head.causal=false: all moments see the whole clip"):
        detector().stream()
    with pytest.raises(UserError, match="head.dim=30: expected a multiple of head.num_heads=4"):
        detector(dim=30, num_heads=4)


@pytest.mark.parametrize("settings", [(), (("boundary", "trident"), ("bins", 4)), (("causal", True),)])
def test_it_learns_where_events_begin_and_end(settings: tuple) -> None:
    vlm = model(
        Case("question_first", (Variant("head", "detect", (*settings, ("dropout", 0.0))), Variant("connector", "mean")))
    )
    batch = read(vlm, *samples(vlm))
    optimizer = torch.optim.Adam(vlm.parameters(), lr=5e-3)
    vlm.train()
    for _ in range(60):
        total, count, _ = vlm.head.loss(vlm.output(batch), batch)
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
    vlm.eval()
    with torch.no_grad():
        lines = vlm.head.predict(vlm.output(batch), batch)
    scores = {row["metric"]: row["value"] for row in vlm.head.score(lines)}
    assert scores["map/mean"] > 0.7, scores


# ---------------------------------------------------------------------------------------------------- samples, files


def tiny() -> VLM:
    return shared_model(Case("question_first", (Variant("head", "detect"),)))


def test_a_label_that_is_not_in_the_list_makes_a_bad_sample() -> None:
    vlm = tiny()
    clip = clip_of(1, 3, side(vlm), SAMPLE | {"events": [{"start": 0, "end": 1, "label": "cirle"}]})
    with pytest.raises(SampleError, match=r"events\[0\].label: label 'cirle' is none of the 7.*did you mean 'circle'"):
        vlm.head.view.rows(clip.sample, clip.times, np.random.default_rng(0), None)
    with pytest.raises(SampleError, match=r"events\[0\] ends at 1, not after its start at 2"):
        clip_of(1, 3, side(vlm), SAMPLE | {"events": [{"start": 2, "end": 1, "label": "circle"}]})


def test_targets_are_seconds_and_places_in_the_list_padded() -> None:
    vlm = tiny()
    batch = read(vlm, clip_of(1, 3, side(vlm), OTHER), clip_of(2, 3, side(vlm), SAMPLE))
    assert batch.targets["classes"].tolist() == [[4, -1], [5, 6]]
    torch.testing.assert_close(batch.targets["segments"][1], torch.tensor([[0.1, 0.6], [0.1, 2.9]]))
    nothing = read(vlm, clip_of(1, 3, side(vlm), SAMPLE | {"events": []}))
    assert nothing.targets["classes"].tolist() == [[-1]] and vlm.head.units(nothing) == 0


def test_clips_in_which_nothing_happens_cannot_be_scored() -> None:
    lines = [
        {"key": "a", "uid": "a", "segments": [{"start": 0, "end": 1, "label": "star", "score": 0.5}], "events": []}
    ]
    with pytest.raises(UserError, match=r"^head=detect: nothing .*these 1 lines.* name another split"):
        scored(tiny().head, lines, Label("q", "v", 1), 0.0)
    (mean, *_) = scored(tiny().head, [lines[0] | {"events": lines[0]["segments"]}], Label("q", "v", 1), 2.0)
    assert (mean["metric"], mean["value"], mean["n"], mean["seconds"]) == ("map/mean", 1.0, 1, 2.0)


def anet(path: Path, **videos: Any) -> Path:
    file = path / "mine.json"
    file.write_text(json.dumps({"database": videos}))
    return file


def seg(start: Any, end: Any, label: str = "star") -> dict[str, Any]:
    return {"segment": [start, end], "label": label}


def test_activitynets_json_is_read(tmp_path: Path) -> None:
    file = anet(
        tmp_path,
        a={"duration": 9.5, "subset": "validation", "annotations": [seg(1, 2.5), seg(2, 9, "ring")]},
        b={"subset": "testing", "annotations": []},
        c={"annotations": []},
    )
    found = {row.video: row.about for row in tiny().head.read(file, "benchmark.annotations")}
    assert found == {
        "a": {
            "duration": 9.5,
            "events": [{"start": 1.0, "end": 2.5, "label": "star"}, {"start": 2.0, "end": 9.0, "label": "ring"}],
        },
        "c": {"events": []},
    }


@pytest.mark.parametrize(
    "video, said",
    [
        ({"annotations": [seg(5, 3)]}, r"v: annotations\[0\].segment ends at 3, not after its start at 5"),
        (
            {"annotations": [seg(1, 2), seg(1, 2, "starr")]},
            r"v: annotations\[1\]: label 'starr' is none of the 7.*'star'",
        ),
        ({"annotations": [seg(1, "x")]}, r"annotations\[0\].segment.end is 'x', expected a number"),
        ({"annotations": [{"label": "star"}]}, r"annotations\[0\].segment is null, expected \[start, end\]"),
        ({"annotations": None}, "annotations is null, expected a list"),
        ({"duration": 3, "annotations": [seg(4, 5)]}, "starts at 4, after the video's end at 3"),
        ({"annotations": [seg(-4, 5)]}, r"annotations\[0\].segment starts at -4, before the video"),
        ({"duration": -3, "annotations": [seg(4, 5)]}, "v: duration is -3, expected seconds, above 0"),
        ({"annotations": [seg(float("nan"), 5)]}, "segment.start is NaN, expected a finite number"),
    ],
)
def test_bad_segments_are_one_line(tmp_path: Path, video: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        tiny().head.read(anet(tmp_path, v=video), "benchmark.annotations")
    assert "\n" not in str(error.value) and "benchmark.annotations=" in str(error.value)


@pytest.mark.parametrize("inside", ['"v": {"annotations": []}, "v": {}', '"v": {"annotations": [], "annotations": []}'])
def test_what_stands_twice_is_not_lost_unsaid(tmp_path: Path, inside: str) -> None:
    file = tmp_path / "x.json"
    file.write_text('{"database": {' + inside + "}}")
    with pytest.raises(UserError, match=r"benchmark.annotations=.*'(v|annotations)' stands twice in one object"):
        tiny().head.read(file, "benchmark.annotations")


@pytest.mark.parametrize("text", ["", "[]", '{"database": {}}', '{"database": [1]}', "{"])
def test_a_file_of_another_form_is_one_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(UserError, match=r"benchmark.annotations=.*(not valid JSON|expected ActivityNet's form)"):
        tiny().head.read(file, "benchmark.annotations")


def test_a_step_in_parts_moves_the_average_once_and_divides_by_it_throughout() -> None:
    """``trainer.accumulate``: the parts of a step know its positives, and sum to the large batch."""
    vlm = model(Case("question_first", (Variant("head", "detect", (("dropout", 0.0),)), Variant("connector", "mean"))))
    stage = assembly.stage({"stage": Variant("stage", "task").settings}, vlm, None).eval()
    long, short = samples(vlm)
    whole, parts = read(vlm, long, short), [read(vlm, long), read(vlm, short)]
    positives = sum(stage.units(part)["detect"] for part in parts)
    assert stage.units(whole) == {"detect": positives}
    terms = [stage.losses(part).terms["detect"] for part in parts]
    torch.testing.assert_close(sum(t.total for t in terms), stage.losses(whole).terms["detect"].total)
    divisors, before = [], float(vlm.head.running)
    for i, part in enumerate(parts):
        stage._parts_done = i
        divisors.append(stage._units_of_step(None, part._replace(step_units={"detect": positives}))["detect"])
    assert divisors[0] == divisors[1] == pytest.approx(0.9 * before + 0.1 * positives)


def test_two_processes_divide_by_the_average_that_one_has(monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = model(Case("question_first", (Variant("head", "detect"), Variant("connector", "mean"))))
    stage = assembly.stage({"stage": Variant("stage", "task").settings}, vlm, None).eval()
    half, before = {"detect": torch.tensor(15.0)}, float(vlm.head.running)
    monkeypatch.setattr(type(stage), "_world", staticmethod(lambda: 2))
    monkeypatch.setattr(type(stage), "_sum", classmethod(lambda cls, value: 2 * value))
    divisor = stage._units_of_step(half, read(vlm, *samples(vlm)))["detect"]
    assert 2 * float(divisor) == pytest.approx(0.9 * before + 0.1 * 30), "gradients are averaged over processes"


def test_activitynets_videos_are_found_by_their_ids(tmp_path: Path) -> None:
    (tmp_path / "v_abc.mp4").touch()
    rows = tiny().head.read(anet(tmp_path, abc={"annotations": []}), "benchmark.annotations")
    assert VideoFolder(tmp_path, rows, "mine", "benchmark.videos").keys == ["v_abc.mp4"]
