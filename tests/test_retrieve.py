"""Retrieval: embeddings that know nothing of each other, the contrastive loss, ranks, and lists of pairs."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from _tiny import Case, Variant, chat, side

from hvlm import assembly
from hvlm.checks.heads import SAMPLE, clip_of, read, samples
from hvlm.checks.models import shared_model
from hvlm.config.compose import compose
from hvlm.data.quarantine import SampleError
from hvlm.data.reader import SampleSpec
from hvlm.errors import UserError
from hvlm.head._contrast import gathered
from hvlm.head.retrieve import Embedded, Retrieve
from hvlm.model import VLM
from hvlm.types import InputSpec

TWICE = '{"video": "a", "video": "b", "text": "x"}'


def tiny(**settings: Any) -> VLM:
    return shared_model(Case("question_first", (Variant("head", "retrieve", tuple(settings.items())),)))


@torch.no_grad()
def test_a_texts_embedding_does_not_change_with_the_video_nor_a_videos_with_the_text() -> None:
    vlm = tiny()
    one = vlm.output(read(vlm, clip_of(1, 4, side(vlm), SAMPLE)))
    other_video = vlm.output(read(vlm, clip_of(9, 3, side(vlm), SAMPLE)))
    other_text = vlm.output(read(vlm, clip_of(1, 4, side(vlm), SAMPLE | {"pairs": ["green star"]})))
    assert torch.equal(one.text_KNE, other_video.text_KNE)
    assert (one.video_KE - other_video.video_KE).abs().max() > 1e-3
    torch.testing.assert_close(one.video_KE, other_text.video_KE, rtol=0, atol=1e-6)
    assert (one.text_KNE[:, 0] - other_text.text_KNE[:, 0]).abs().max() > 1e-3
    ids = torch.tensor([chat().encode_prompt("red ring")[0]])
    alone = vlm.head.of_texts(vlm.alone(ids, torch.ones_like(ids, dtype=torch.bool)))
    torch.testing.assert_close(alone[0], one.text_KNE[0, 0], rtol=0, atol=1e-5)


def contrast(
    video: list, text: list, there: list | None = None, said: list | None = None, **settings: Any
) -> tuple[Retrieve, Any, Any]:
    head = Retrieve(text_dim=4, **settings)
    output = Embedded(torch.tensor(video), torch.tensor(text))
    k, n = output.text_KNE.shape[:2]
    mask = torch.tensor(there) if there else torch.ones(k, n, dtype=torch.bool)
    words = torch.tensor(said) if said else torch.arange(k)
    batch = type("Batch", (), {"targets": {"there": mask, "said": words}})()
    return head, output, batch


def test_the_loss_by_hand() -> None:
    video, text = [[1.0, 0.0], [0.0, 1.0]], [[[0.6, 0.8], [0.8, 0.6]], [[0.0, 1.0], [1.0, 0.0]]]
    head, output, batch = contrast(video, text, [[True, True], [True, False]], temperature=0.5)
    total, count, further = head.loss(output, batch)

    def cross(right: float, *wrong: float) -> float:
        return math.log(sum(math.exp(2 * x) for x in (right, *wrong))) - 2 * right

    expected = cross(0.6, 0.0, 0.8) + cross(1.0, 0.8) + cross(0.6, 0.8) + cross(1.0, 0.0)
    assert total.item() == pytest.approx(expected / 2, abs=1e-6) and count == 2
    total.backward()
    assert torch.isfinite(head.log_scale.grad)
    assert further["accuracy"] == 1, "the first video is nearer to its wrong text"


def test_what_says_the_same_is_no_wrong_answer_and_the_temperature_has_a_ceiling() -> None:
    video, text = [[1.0, 0.0], [0.0, 1.0]], [[[0.6, 0.8]], [[0.6, 0.8]]]
    head, output, batch = contrast(video, text, said=[7, 7])
    total, *_ = head.loss(output, batch)
    assert total.item() == pytest.approx(0.0, abs=1e-6)
    total.backward()
    assert head.log_scale.grad == 0, "nor does it move the temperature"
    with torch.no_grad():
        head.log_scale.fill_(50.0)
    assert head.scale.item() == pytest.approx(100.0)
    head.scale.backward()
    assert head.log_scale.grad > 0, "it can come down again"


def _process(rank: int, file: str, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    torch.manual_seed(0)
    every = torch.randn(5, 3)
    own = every[:3] if rank == 0 else every[3:]
    own = own.clone().requires_grad_()
    rows, begin = gathered(own)
    assert torch.equal(rows, every) and begin == 3 * rank
    weight = torch.arange(1.0, 6.0).unsqueeze(1) * (rank + 1)
    (rows * weight).sum().backward()
    # Beside other heads a process may have no rows; the others then learn as if they were alone.
    torch.manual_seed(1)
    head = Retrieve(text_dim=4, dim=3, hidden=4)
    batch = type("Batch", (), {"targets": {"there": torch.ones(2, 1, dtype=torch.bool), "said": torch.arange(2)}})()
    batch.clip_K = torch.zeros(2, dtype=torch.int64)
    sides = torch.nn.functional.normalize(torch.randn(2, 2, 3), dim=-1).requires_grad_()
    output = Embedded(sides[0], sides[1].unsqueeze(1))
    term = head.loss(output, batch) if rank == 0 else head.absent(batch)
    term[0].backward()
    with torch.no_grad():  # processes validate different numbers of batches: nobody waits for another
        alone = head.loss(output, batch)[0] if rank == 0 else None
    torch.save((own.grad, sides.grad, (term[0].detach(), alone)), f"{folder}/{rank}")
    dist.destroy_process_group()


@pytest.mark.slow
def test_gathered_rows_send_every_processs_gradient_home(tmp_path: Path) -> None:
    mp.spawn(_process, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / str(rank)) for rank in (0, 1))
    grads = torch.cat([first[0], second[0]])
    torch.testing.assert_close(grads, 3 * torch.arange(1.0, 6.0).unsqueeze(1).expand(5, 3))
    torch.testing.assert_close(*first[2])
    assert first[1].abs().sum() > 0


def line(uid: str, video: list[float], *texts: tuple[str, list[float]]) -> dict[str, Any]:
    return {"key": uid, "uid": uid, "video": video, "texts": [t for t, _ in texts], "embeddings": [e for _, e in texts]}


def test_both_ways_and_hard_negatives() -> None:
    lines = [
        line("a", [1.0, 0.0], ("x", [0.9, 0.1]), ("y", [0.95, 0.1])),
        line("a", [1.0, 0.0], ("z", [0.2, 0.05])),
        line("b", [0.0, 1.0], ("x", [0.9, 0.1]), ("y", [0.0, 0.0])),
    ]
    head = Retrieve(text_dim=4)
    found = {row["metric"]: row["value"] for row in head.score(lines)}
    assert found["hard_negatives"] == 0.5
    with warnings.catch_warnings(action="error"):
        assert "hard_negatives" not in {row["metric"] for row in head.score([lines[1]])}, "of which there are none"
    assert found["video_to_text/r@1"] == 1.0, (
        "the nearest text of each video is said of it, or of one that says the same"
    )
    assert found["text_to_video/r@1"] == 1.0, "x belongs to both videos"
    errors = {row["metric"]: row["stderr"] for row in head.score(lines)}
    assert errors["hard_negatives"] == pytest.approx(0.5) and errors["text_to_video/r@1"] == 0.0
    assert errors["text_to_video/median_rank"] is None


def test_captions_stand_for_pairs_and_texts_are_padded() -> None:
    vlm = tiny()
    sample = {name: value for name, value in SAMPLE.items() if name != "pairs"}
    batch = read(vlm, clip_of(1, 3, side(vlm), sample))
    assert batch.rows[0]["texts"] == ["the red ring"]
    batch = read(vlm, *samples(vlm))
    assert batch.targets["text_ids"].shape[:2] == (2, 2) and batch.targets["there"].all()


@pytest.mark.parametrize("word", ["retrieve", "several"])
def test_texts_that_are_read_alone_are_no_longer_than_others(word: str) -> None:
    vlm = shared_model(Case("question_first", (Variant("head", word),)))
    inputs = InputSpec(vlm.order, 12, side(vlm))
    show = SampleSpec(chat(), vlm.head.view, None, "answer", inputs, None, seed=0, max_tokens=30)
    pair = {"text": "red zebra", "negatives": ["blue ring"]}
    assert show.clip(clip_of(1, 3, side(vlm), SAMPLE | {"pairs": [pair]}), None, 0) is not None
    assert "zebra" in show.notes.unknown.examples
    pair = pair | {"negatives": ["blue " * 40]}
    with pytest.raises(SampleError, match=r"a text of \d+ tokens \('blue blue .*more than dataset.max_tokens=30"):
        show.clip(clip_of(1, 3, side(vlm), SAMPLE | {"pairs": [pair]}), None, 0)


@pytest.mark.parametrize(
    "rows, said",
    [
        ([{"video": "a.mp4", "text": ""}], "row 1 has text '', expected text"),
        ([{"video": "a.mp4", "caption": " "}], "row 1 has caption ' ', expected text"),
        ([{"text": "x"}], "row 1 lacks video; it has text, expected video, and text or caption"),
        ([{"video": "a", "text": "x", "negatives": [""]}], r"row 1 its pair.negatives\[0\] is ''"),
        ([{"video": "a", "text": "x", "negatives": ["x"]}], r"negatives\[0\] is the text itself, expected one that is"),
        ([{"video": "a", "text": "x", "start": 3, "end": 1}], "row 1 ends at 1 s, before it starts at 3 s"),
        (["a"], "row 1 is no object"),
        ([TWICE], "row 1: not valid JSON .*'video' stands twice"),
        ([], "holds no pair"),
    ],
)
def test_bad_pairs_are_one_line(tmp_path: Path, rows: list, said: str) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(row if row == TWICE else json.dumps(row) for row in rows))
    with pytest.raises(UserError, match=said) as error:
        tiny().head.read(file, "benchmark.annotations")
    assert "\n" not in str(error.value)


def test_pairs_of_one_video_come_together_from_every_form(tmp_path: Path) -> None:
    rows = [
        {"video": "a", "text": "x", "negatives": ["y"]},
        {"video": "b", "caption": "z"},
        {"video": "a", "text": "w"},
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "p.json").write_text(json.dumps(rows))
    expected = [
        ("a", {"pairs": [{"text": "x", "negatives": ["y"]}, {"text": "w", "negatives": []}]}),
        ("b", {"pairs": [{"text": "z", "negatives": []}]}),
    ]
    (tmp_path / "p.csv").write_text("video,text,negatives\na,x,y\nb,z,\na,w,\n")
    for name in ("p.jsonl", "p.json", "p.csv"):
        assert [(row.video, row.about) for row in tiny().head.read(tmp_path / name, "x")] == expected
    (tmp_path / "p.csv").write_text('video,text,negatives,start,end\na,"x, red",y|z,1,2.5\na,w,,,\n')
    part, whole = tiny().head.read(tmp_path / "p.csv", "x")
    assert part.about == {"pairs": [{"text": "x, red", "negatives": ["y", "z"]}]} and part.section == (1.0, 2.5)
    assert whole.section is None, "a part of a video is a clip of its own"
    (tmp_path / "p.csv").write_text("video,text\na,x, red\n")
    with pytest.raises(UserError, match="row 2 has more cells than the table has columns; put a text .* in quotes"):
        tiny().head.read(tmp_path / "p.csv", "x")


def test_one_video_under_two_names_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "p.jsonl").write_text('{"video": "a", "text": "x"}\n{"video": "a.mp4", "text": "y"}\n')
    benchmark = assembly.room(compose(["head=retrieve", f"benchmark.annotations={tmp_path}/p.jsonl"])["benchmark"])
    with pytest.raises(UserError, match="'a.mp4' of row 2 is 'a.mp4', of which another row says everything already"):
        benchmark.of(tiny().head).source(None)


@torch.no_grad()
def test_embeddings_that_are_no_numbers_are_refused() -> None:
    vlm = tiny()
    batch = read(vlm, *samples(vlm))
    output = vlm.output(batch)
    with pytest.raises(UserError, match="head=retrieve: embeddings are not numbers"):
        vlm.head.predict(output._replace(video_KE=output.video_KE * torch.nan), batch)
