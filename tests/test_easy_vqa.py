"""dataset=easy_vqa: the package's questions as shards, the controls, and what is refused."""

from __future__ import annotations

import io
import json
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.easy_vqa.__main__ import counted
from hvlm import assembly
from hvlm.config.compose import compose
from hvlm.data.sample_fields import FieldError
from hvlm.data.samples import parse
from hvlm.dataset._easy_vqa_labels import said
from hvlm.dataset.easy_vqa import ANSWERS, ANYTHING, EasyVQA
from hvlm.errors import UserError
from hvlm.training import chain


def package(folder: Path) -> Path:
    """In the form of the package: files, names and nesting."""
    for split, count in (("train", 6), ("test", 3)):
        (folder / "data" / split / "images").mkdir(parents=True)
        asked = []
        for i in range(count):
            colour = ("red", "blue")[i % 2]
            asked += [["what color is the shape?", colour, i], ["is there a circle?", "yes", i]]
            asked += [["is there a red shape?", "yes" if colour == "red" else "no", i]]
            Image.new("RGB", (64, 64), colour).save(folder / "data" / split / "images" / f"{i}.png")
        (folder / "data" / split / "questions.json").write_text(json.dumps(asked))
    (folder / "data" / "answers.txt").write_text("\n".join(ANSWERS) + "\n")
    return folder


def with_shapes(source: Path, *pictures: int) -> Path:
    """With a question about the shape in those pictures of the training split."""
    path = source / "data" / "train" / "questions.json"
    asked = [["what shape is present?", "circle", i] for i in pictures]
    path.write_text(json.dumps(json.loads(path.read_text()) + asked))
    return source


def made(source: Path, root: Path, **more) -> EasyVQA:
    data = EasyVQA(str(source), str(root), val_pictures=2, **more)
    data.prepare()
    return data


def samples(data: EasyVQA, split: str) -> list[tuple[dict, np.ndarray]]:
    rows = data.manifest().split(split)
    found = []
    for i in range(len(rows)):
        members = rows.read(i)
        found.append((json.loads(members["json"]), np.array(Image.open(io.BytesIO(members["png"])))))
    return found


def test_the_published_splits_become_shards_with_some_of_train_held_out(tmp_path: Path) -> None:
    data = made(package(tmp_path / "easy_vqa"), tmp_path / "data")
    assert data.counts == {"train": 4, "val": 2, "test": 3} and data.names("answers") == list(ANSWERS)
    found = samples(data, "test")
    assert [info["key"] for info, _ in found] == [f"easy_vqa-test-00000{i}" for i in range(3)]
    info, picture = found[1]
    assert picture[0, 0].tolist() == [0, 0, 255]
    asked = [(q["task"], q["question"], q["answer"]) for q in info["questions"]]
    assert asked == [
        ("colour", "what color is the shape?", "blue"),
        ("yes_no", "is there a circle?", "yes"),
        ("yes_no", "is there a red shape?", "no"),
    ]
    assert {"what color is the shape?", *ANSWERS} <= set(data.texts())
    parse({"json": json.dumps(info).encode()}, "k", "general")


def test_a_wheel_is_read_as_it_is(tmp_path: Path) -> None:
    folder = package(tmp_path / "easy_vqa")
    with zipfile.ZipFile(tmp_path / "easy_vqa-1.0-py3-none-any.whl", "w") as wheel:
        for file in sorted(folder.rglob("*")):
            wheel.write(file, file.relative_to(tmp_path))
    first, second = (made(source, tmp_path / name) for source, name in
                     ((folder, "a"), (tmp_path / "easy_vqa-1.0-py3-none-any.whl", "b")))  # fmt: skip
    assert first.folder.name == second.folder.name
    sums = [{name: one["sha256"] for name, one in data.manifest().shards.items()} for data in (first, second)]
    assert sums[0] == sums[1]


def test_controls_show_the_question_or_the_picture_alone(tmp_path: Path) -> None:
    source = package(tmp_path / "easy_vqa")
    both, question, picture = (made(source, tmp_path / "data", show=show) for show in ("both", "question", "picture"))
    assert len({data.folder for data in (both, question, picture)}) == 3
    assert all(not image.any() for split in ("train", "test") for _, image in samples(question, split))
    asked = Counter(q["question"] for split in ("train", "test") for info, _ in samples(picture, split)
                    for q in info["questions"])  # fmt: skip
    assert set(asked) == {ANYTHING}
    for a, b in zip(samples(both, "test"), samples(picture, "test"), strict=True):
        assert np.array_equal(a[1], b[1]) and [q["answer"] for q in a[0]["questions"]] == [
            q["answer"] for q in b[0]["questions"]
        ]


def test_some_kinds_of_questions_can_be_trained_on_and_all_are_tested(tmp_path: Path) -> None:
    source = package(tmp_path / "easy_vqa")
    whole = made(source, tmp_path / "data")
    with pytest.raises(UserError, match=r"dataset.tasks=\['shape'\]: no picture of the training split is asked about"):
        EasyVQA(str(source), str(tmp_path), val_pictures=2, tasks=["shape"]).prepare()
    with_shapes(source, 3)
    data = made(source, tmp_path / "data", tasks=["shape"])
    assert data.counts == {"train": 1, "val": 0, "test": 3} and data.folder != whole.folder
    ((info, _),) = samples(data, "train")
    assert [(q["task"], q["question"]) for q in info["questions"]] == [("shape", "what shape is present?")]
    assert [info["questions"] for info, _ in samples(data, "test")] == [
        info["questions"] for info, _ in samples(whole, "test")
    ]
    assert set(whole.texts()) < set(data.texts()), "the words of all kinds"
    with pytest.raises(UserError, match="dataset.tasks=.*expected some of shape, colour, yes_no"):
        EasyVQA(str(source), str(tmp_path), tasks=[])


@pytest.mark.parametrize(
    "asked, seen",
    [
        (
            [("what shape is present?", "circle"), ("what color is the shape?", "teal")],
            {"shape": "circle", "colour": "teal"},
        ),
        ([("what is the color of the triangle?", "red")], {"shape": "triangle", "colour": "red"}),
        ([("what is the blue shape?", "rectangle")], {"shape": "rectangle", "colour": "blue"}),
        ([("is there a circle?", "yes"), ("is there not a gray shape?", "no")], {"shape": "circle", "colour": "gray"}),
        ([("is there a circle?", "no"), ("is there not a gray shape?", "yes")], {}),
        ([("is no black shape present?", "no"), ("does the image not contain a circle?", "yes")], {"colour": "black"}),
    ],
)
def test_shape_and_colour_are_what_the_questions_say_or_suppose(asked: list, seen: dict) -> None:
    assert said(asked) == seen


def test_stage_0_learns_from_what_stands_where_in_pictures_of_which_it_is_known(tmp_path: Path) -> None:
    source = with_shapes(package(tmp_path / "easy_vqa"), 0, 3)
    square = Image.new("RGB", (64, 64), (248, 240, 235))
    square.paste((255, 0, 0), (16, 32, 40, 48))  # columns, then rows
    square.save(source / "data" / "train" / "images" / "0.png")
    path = source / "data" / "train" / "questions.json"  # "yes" to a circle would say it, too
    path.write_text(json.dumps([one for one in json.loads(path.read_text()) if one[1] != "yes"]))
    data = made(source, tmp_path / "data")
    found = {info["key"][-1]: info.get("seen") for info, _ in samples(data, "train")}
    assert [key for key, seen in found.items() if seen] == ["0", "3"], "of 1 and 2 nobody says the shape"
    assert found["0"] == {"shape": "circle", "colour": "red", "where": [0] * 8 + [0b0000111111000000] * 4 + [0] * 4}
    labels = data.patch_labels({"seen": found["0"]}, np.zeros(2), (8, 8))
    assert labels["shape"].shape == (2, 8, 8) and set(np.unique(labels["shape"])) == {0, 1}
    assert np.argwhere(labels["shape"][1]).min(0).tolist() == [4, 2]
    assert np.argwhere(labels["shape"][1]).max(0).tolist() == [5, 4]
    assert (labels["colour"][labels["shape"] == 1] == 0).all() and (
        labels["colour"][labels["shape"] == 0] == -100
    ).all()
    assert data.label_counts() == {"shape": 4, "colour": 8, "domain": 1}
    assert not any("seen" in info for info, _ in samples(data, "test")), "its questions are for the score alone"
    assert data.patch_labels({}, np.zeros(1), (8, 8)) is None
    for broken, message in (
        ({"where": [1]}, "expected 16 numbers of 16 bits"),
        ({"shape": "star"}, "seen.shape is none"),
    ):
        with pytest.raises(FieldError, match=message):
            data.patch_labels({"seen": found["0"] | broken}, np.zeros(1), (8, 8))
    assert not any("seen" in info for info, _ in samples(made(source, tmp_path / "data", show="question"), "train"))


def test_counting_says_what_questions_alone_are_worth(tmp_path: Path) -> None:
    data = EasyVQA(str(package(tmp_path / "easy_vqa")), str(tmp_path / "data"), val_pictures=2)
    value = {record["variant"]: record["value"] for record in counted(data)}
    # Red and blue are as common; of three pictures two are red: the first of equals is said.
    assert value["question_counted"] == pytest.approx((2 + 3 + 2) / 9)
    assert value["most_common"] == pytest.approx((3 + 2) / 9)


def test_what_is_missing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="easy-vqa is not installed; install it: pip install easy-vqa"):
        EasyVQA(root=str(tmp_path)).prepare()
    with pytest.raises(UserError, match=r"dataset.source=.*nowhere: no answers.txt of easy-vqa there"):
        EasyVQA(str(tmp_path / "nowhere"), str(tmp_path)).prepare()
    source = package(tmp_path / "easy_vqa")
    with pytest.raises(UserError, match="dataset.val_pictures=6: expected less than all 6 of train"):
        EasyVQA(str(source), str(tmp_path), val_pictures=6).prepare()
    (source / "data" / "test" / "images" / "2.png").unlink()
    with pytest.raises(UserError, match="2.png: a picture that questions are about is not there"):
        made(source, tmp_path / "data")


@pytest.mark.parametrize("show", ["both", "question"])
def test_a_damaged_picture_of_the_package_is_named(show: str, tmp_path: Path) -> None:
    source = package(tmp_path)
    for path in source.glob("**/train/images/*.png"):
        path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(UserError, match=r"\.png: no picture that can be read"):
        made(source, tmp_path / "out", show=show)


@pytest.mark.parametrize("item", ['["", "yes", 0]', '["is it?", "yes", Infinity]', "[" * 100_000])
def test_a_hostile_question_of_the_package_is_refused(item: str, tmp_path: Path) -> None:
    source = package(tmp_path)
    for path in source.glob("**/train/questions.json"):
        path.write_text(f"[{item}]")
    with pytest.raises(UserError, match=r"questions.json: expected a list of \[question, answer, picture\]"):
        made(source, tmp_path / "out")


def test_one_command_trains_and_scores_the_test_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["experiment=easy_vqa", f"dataset.source={with_shapes(package(tmp_path / 'easy_vqa'), 0, 5)}"]
    words += [
        "dataset.val_pictures=2",
        f"dataset.root={tmp_path / 'data'}",
        "trainer.max_steps=1",
        "vision.dim=16",
        "vision.num_layers=1",
    ]
    assert assembly.head_alone(compose(words)).labels.names == list(ANSWERS)
    chain.run([*words, "run=tried", "logger=csv"])
    found = {r["metric"]: r for r in json.loads((tmp_path / "runs/tried/results.json").read_text())}
    assert found["accuracy"]["n"] == 9 and found["answerable"]["value"] == 1
