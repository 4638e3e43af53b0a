"""Published sets of questions and captions, in exactly the form of their files: read, prepared, scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from _tables import left_out, made, still, together, write_json
from _tiny import Case, Variant

from hvlm.checks.models import shared_model
from hvlm.data import published
from hvlm.data.published import Entry
from hvlm.data.sample_json import parse
from hvlm.errors import UserError
from hvlm.metrics.vqa import vqa_accuracy
from hvlm.prepare.formats.published import Table


def ten(*answers: str, ids: bool = True) -> list[dict[str, Any]]:
    said = [answers[i % len(answers)] for i in range(10)]
    return [
        {"answer": one, "answer_confidence": "yes"} | ({"answer_id": i} if ids else {})
        for i, one in enumerate(said, start=1)
    ]


def pictures(folder: Path, *names: str) -> None:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(still(i))


def vqav2(folder: Path) -> Path:
    """Two questions about one picture of train2014, one about a picture of val2014, and test questions alone."""
    head = {"info": {"version": "2.0"}, "license": {"name": "CC BY 4.0"}}
    item = {"question_type": "what is this", "answer_type": "other", "multiple_choice_answer": "net"}
    for subset, items in {
        "train2014": [
            item | {"image_id": 458752, "question_id": 458752000, "answers": ten("net", "net", "net", "netting", "")},
            item | {"image_id": 458752, "question_id": 458752001, "answers": ten("yes"), "answer_type": "yes/no"}
            | {"multiple_choice_answer": "yes", "question_type": "is the"},
        ],
        "val2014": [
            item | {"image_id": 262148, "question_id": 262148000, "answers": ten("down"), "answer_type": "number"}
            | {"multiple_choice_answer": "down"}
        ],
    }.items():  # fmt: skip
        write_json(
            folder / f"v2_mscoco_{subset}_annotations.json",
            head | {"data_subtype": subset, "annotations": items, "data_type": "mscoco"},
        )
        asked = [
            {k: one[k] for k in ("image_id", "question_id")} | {"question": f"{one['question_id']}?"} for one in items
        ]
        more = {"task_type": "Open-Ended", "data_type": "mscoco", "data_subtype": subset, "questions": asked}
        write_json(folder / f"v2_OpenEnded_mscoco_{subset}_questions.json", head | more)
    write_json(folder / "v2_OpenEnded_mscoco_test2015_questions.json", head | {"questions": [{"question_id": 1}]})
    pictures(folder, "train2014/COCO_train2014_000000458752.jpg", "val2014/COCO_val2014_000000262148.jpg")
    return folder


def gqa_item(question: str, answer: str, structural: str, entailed: list[str], balanced: bool = True) -> dict[str, Any]:
    return {
        "semantic": [{"operation": "select", "dependencies": [], "argument": "wall (10)"}], "entailed": entailed,
        "equivalent": entailed, "question": question, "imageId": "n161313", "isBalanced": balanced,
        "groups": {"global": None, "local": "10-wall_color"}, "answer": answer, "semanticStr": "select: wall (10)",
        "annotations": {"answer": {}, "question": {}, "fullAnswer": {}},
        "types": {"detailed": "existAttrC", "semantic": "attr", "structural": structural}, "fullAnswer": "Yes.",
    }  # fmt: skip


def gqa(folder: Path) -> Path:
    every = {
        "201": gqa_item("Is it red?", "yes", "verify", ["201", "202"]),
        "202": gqa_item("Which color?", "red", "query", ["201", "203"]),
        "203": gqa_item("Is it blue?", "no", "verify", [], balanced=False),
    }
    write_json(folder / "testdev_all_questions.json", every)
    write_json(folder / "testdev_balanced_questions.json", {k: v for k, v in every.items() if v["isBalanced"]})
    write_json(folder / "test_all_questions.json", {"1": {"question": "?", "imageId": "n1", "isBalanced": True}})
    pictures(folder, "images/n161313.jpg")
    return folder


def vizwiz(folder: Path) -> Path:
    items = [
        {"image": "VizWiz_val_00000000.jpg", "question": "Ok. There is another picture I hope it is a better one.",
         "answers": ten("unanswerable", ids=False), "answer_type": "unanswerable", "answerable": 0},
        {"image": "VizWiz_val_00000001.jpg", "question": "What is this?", "answers": ten("The Can", "soup", ids=False),
         "answer_type": "other", "answerable": 1},
    ]  # fmt: skip
    write_json(folder / "Annotations" / "val.json", items)
    write_json(folder / "Annotations" / "test.json", [{"image": "VizWiz_test_00000000.jpg", "question": "?"}])
    pictures(folder, "val/VizWiz_val_00000000.jpg", "val/VizWiz_val_00000001.jpg")
    return folder


def textvqa(folder: Path) -> Path:
    item = {
        "question": "what does it say?", "image_id": "003a8ae2ef43b901", "image_classes": ["Poster"],
        "flickr_original_url": "https://farm4.staticflickr.com/a_o.jpg", "flickr_300k_url": "https://c8.staticflickr.com/a_z.jpg",
        "image_width": 1024, "image_height": 664, "question_tokens": ["what", "does", "it", "say"],
        "question_id": 34602, "set_name": "val",
    }  # fmt: skip
    answers = ["nous les gosses"] * 7 + ["Nous, les gosses!"] * 2 + [""]
    head = {"dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "0.5.1"}
    write_json(folder / "TextVQA_0.5.1_val.json", head | {"data": [item | {"answers": answers}]})
    write_json(folder / "TextVQA_0.5.1_test.json", head | {"data": [item | {"set_name": "test"}]})
    pictures(folder, "train_images/003a8ae2ef43b901.jpg")
    return folder


NAMES = ("1000092795.jpg", "10002456.jpg", "1000268201.jpg")


def captions(i: int) -> list[str]:
    return [f"Picture {i} , caption {n} ." for n in range(5)]


def karpathy(folder: Path) -> Path:
    images = [
        {"sentids": list(range(5 * i, 5 * i + 5)), "imgid": i, "split": split, "filename": name,
         "sentences": [{"tokens": text.split(), "raw": text, "imgid": i, "sentid": 5 * i + n}
                       for n, text in enumerate(captions(i))]}
        for i, (name, split) in enumerate(zip(NAMES, ("train", "val", "test"), strict=True))
    ]  # fmt: skip
    write_json(folder / "dataset_flickr30k.json", {"images": images, "dataset": "flickr30k"})
    pictures(folder, *(f"flickr30k-images/{name}" for name in NAMES))
    return folder


def token(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    lines = [f"{name}#{n}\t{text}" for i, name in enumerate(NAMES) for n, text in enumerate(captions(i))]
    (folder / "results_20130124.token").write_text("\n".join(lines) + "\n")
    pictures(folder, *NAMES)
    return folder


def kaggle(folder: Path) -> Path:
    """With the one row of the published file in which a mark is missing."""
    folder.mkdir(exist_ok=True)
    lines = [f"{name}| {n}| {text}" for i, name in enumerate(NAMES) for n, text in enumerate(captions(i))]
    lines[-1] = lines[-1].replace("| 4| ", "| 4   ")
    (folder / "results.csv").write_text("\n".join(["image_name| comment_number| comment", *lines]) + "\n")
    pictures(folder / "flickr30k_images", *NAMES)
    return folder


# ------------------------------------------------------------------------------------------------------------ shards


def asked(splits: dict[str, dict[str, Any]]) -> dict[str, list[tuple[str, str]]]:
    return {
        split: [(q["question"], q["answer"]) for sample in found.values() for q in sample["questions"]]
        for split, found in splits.items()
        if found
    }


def test_a_folder_of_vqav2_becomes_shards_with_its_splits(tmp_path: Path) -> None:
    found = made(vqav2(tmp_path / "src"), tmp_path / "out")
    assert asked(found) == {"train": [("458752000?", "net"), ("458752001?", "yes")], "val": [("262148000?", "down")]}
    sample = found["train"]["train2014/COCO_train2014_000000458752"]
    first, second = parse({"json": json.dumps(sample).encode()}, "k", "general")["questions"]
    assert first["weights"] == pytest.approx({"net": 1.0, "netting": 2 / 3}), "nothing said is no answer"
    assert first["people"].count("") == 2 and first["published"] == {"set": "vqav2", "kind": "other"}
    assert second["task"] == "is the" and left_out(tmp_path / "out") == []


def test_folders_of_the_other_sets_become_shards(tmp_path: Path) -> None:
    found = asked(made(gqa(tmp_path / "gqa"), tmp_path / "a"))
    assert found == {"test": [("Is it red?", "yes"), ("Which color?", "red")]}, "the balanced questions alone"
    found = asked(made(vizwiz(tmp_path / "vizwiz"), tmp_path / "b"))
    assert [answer for _, answer in found["val"]] == ["unanswerable", "The Can"] and set(found) == {"val"}
    found = asked(made(textvqa(tmp_path / "textvqa"), tmp_path / "c"))
    assert found == {"val": [("what does it say?", "nous les gosses")]}


@pytest.mark.parametrize("form", [karpathy, token, kaggle])
def test_every_form_of_flickr30k_has_five_captions_of_each_picture(tmp_path: Path, form: Any) -> None:
    found = made(form(tmp_path / "src"), tmp_path / "out")
    by_name = {Path(key).name: [c["text"] for c in sample["captions"]] for key, sample in together(found).items()}
    assert by_name == {Path(name).stem: captions(i) for i, name in enumerate(NAMES)}
    if form is karpathy:
        names = {split: [Path(key).name for key in of] for split, of in found.items() if of}
        assert names == {"train": ["1000092795"], "val": ["10002456"], "test": ["1000268201"]}


def test_rows_that_are_malformed_are_left_out_and_named(tmp_path: Path) -> None:
    src = vizwiz(tmp_path / "src")
    file = src / "Annotations" / "val.json"
    items = json.loads(file.read_text())
    bad = [items[0] | {"answers": []}, items[0] | {"answerable": 2}, items[0] | {"image": "gone.jpg"}]
    write_json(file, [*items, *bad])
    made(src, tmp_path / "out", "max_bad=1")
    reasons = {line["row"]: line["reason"] for line in left_out(tmp_path / "out")}
    assert reasons[3].startswith("[2].answers is a list of 0") and "[3].answerable is 2, expected 0 or 1" in reasons[4]
    assert "not below" in reasons[5]


def test_a_file_is_known_by_what_stands_in_it_and_others_stay_tables(tmp_path: Path) -> None:
    sets = {"vqav2": vqav2, "gqa": gqa, "vizwiz": vizwiz, "textvqa": textvqa, "flickr30k": karpathy}
    for name, make in sets.items():
        for file in published.files_in(make(tmp_path / name)):
            assert published.set_of(file) == name
            assert published.sets()[name].TITLE in Table(file).about
    assert set(published.sets()) == set(sets)
    assert published.files_in(write_json(tmp_path / "t" / "t.json", [{"video": "a", "answers": ["b"]}]).parent) == []
    with pytest.raises(UserError, match=r"files of several sets: .*\(GQA\).*; name one of them with table="):
        gqa(textvqa(tmp_path / "both"))
        published.files_in(tmp_path / "both")
    (tmp_path / "gqa" / "testdev_balanced_questions.json").unlink()
    assert [path.name for path in published.files_in(tmp_path / "gqa")] == ["testdev_all_questions.json"]


# ------------------------------------------------------------------------------------------------- official scoring


def lines_of(path: Path, answers: dict[str, str], **more: Any) -> list[dict[str, Any]]:
    """As ``head=classify`` writes them."""
    head = shared_model(Case("question_first", (Variant("head", "classify"),))).head
    lines = []
    for row in head.read(path, "benchmark.annotations"):
        sample = json.dumps({"questions": [row.question]}).encode()
        (q,) = parse({"json": sample}, row.video, "general")["questions"]
        line = {"question_id": f"{row.video}/{q['id']}", "answer": answers.get(q["id"], "?"), "cluster": row.video}
        weights = q.get("weights") or dict.fromkeys(q["answers"], 1.0)
        line |= {"weights": weights, "people": q.get("people", []), "published": q["published"]}
        lines.append(line | {name: value[q["id"]] for name, value in more.items()})
    return lines


def figures(lines: list[dict[str, Any]]) -> dict[str, float]:
    rows = shared_model(Case("question_first", (Variant("head", "classify"),))).head.score(lines)
    return {row["metric"]: row["value"] for row in rows}


def test_vqav2s_figures_are_those_of_all_questions_and_of_each_answer_type(tmp_path: Path) -> None:
    folder = vqav2(tmp_path / "src")
    file = folder / "v2_mscoco_train2014_annotations.json"
    found = figures(lines_of(file, {"458752000": "netting", "458752001": "yes"}))
    # Two of ten say netting: 8 leave-one-out groups with 2 of 3 and 2 with 1 of 3.
    assert found["vqav2/other"] == pytest.approx((8 * 2 / 3 + 2 * 1 / 3) / 10) and found["vqav2/yes_no"] == 1
    assert found["vqav2/accuracy"] == pytest.approx((found["vqav2/other"] + 1) / 2) == found["vqa_official"]


def test_gqas_accuracy_is_of_balanced_questions_and_consistency_of_what_right_answers_entail(tmp_path: Path) -> None:
    file = gqa(tmp_path / "src") / "testdev_all_questions.json"
    found = figures(lines_of(file, {"201": "yes", "202": "red", "203": "yes"}))
    assert (found["gqa/accuracy"], found["gqa/binary"], found["gqa/open"]) == (1, 1, 1), "203 is not balanced"
    assert found["gqa/consistency"] == pytest.approx((1 + 1 / 2) / 2), "201 entails 202; 202 entails 201 and 203"
    found = figures(lines_of(file, {"201": "no", "202": "Red", "203": "no"}))
    assert found["gqa/accuracy"] == 0 and "gqa/consistency" not in found, "letter by letter"


def test_vizwiz_normalises_the_answer_alone_and_scores_what_cannot_be_answered(tmp_path: Path) -> None:
    file = vizwiz(tmp_path / "src") / "Annotations" / "val.json"
    ids = ("VizWiz_val_00000000", "VizWiz_val_00000001")
    lines = lines_of(file, {ids[0]: "unanswerable", ids[1]: "The Can"}, unanswerable={ids[0]: 0.9, ids[1]: 0.6})
    found = figures(lines)
    assert found["vizwiz/unanswerable"] == 1 and found["vizwiz/accuracy"] == 0.5
    assert found["vizwiz/other"] == 0, "said is 'can', and what people said stays 'The Can'"
    assert found["vizwiz/unanswerable_ap"] == 1 and found["vizwiz/unanswerable_f1"] == pytest.approx(2 / 3)
    assert vqa_accuracy("The Can", ["The Can", "soup"] * 5, "always_normalised") == 1


def test_textvqa_is_always_normalised(tmp_path: Path) -> None:
    file = textvqa(tmp_path / "src") / "TextVQA_0.5.1_val.json"
    assert figures(lines_of(file, {"34602": "nous les gosses"}))["textvqa/accuracy"] == 1
    assert figures(lines_of(file, {"34602": "nous"}))["textvqa/accuracy"] == 0


def test_flickr30k_is_scored_on_karpathys_test_pictures_with_any_of_five_captions(tmp_path: Path) -> None:
    head = shared_model(Case("question_first", (Variant("head", "retrieve"),))).head
    file = karpathy(tmp_path / "src") / "dataset_flickr30k.json"
    (row,) = head.read(file, "benchmark.annotations")
    assert row.video == NAMES[2] and [pair["text"] for pair in row.about["pairs"]] == captions(2)
    every = head.read(token(tmp_path / "token") / "results_20130124.token", "benchmark.annotations")
    assert [row.video for row in every] == list(NAMES), "a file that says no splits is scored whole"
    near, far, b = [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]
    lines = [
        {
            "key": name,
            "uid": name,
            "texts": [f"{name} {n}"],
            "video": video,
            "embeddings": [text],
        }
        for name, video, texts in (("a", near, [far, far, far, near, far]), ("b", b, [b] * 5))
        for n, text in enumerate(texts)
    ]
    found = figures_of(head, lines)
    assert found["video_to_text/r@1"] == 1, "one of a picture's captions is nearest"
    assert found["text_to_video/r@1"] == pytest.approx(6 / 10), "four captions of a are nearer to b"


def figures_of(head: Any, lines: list[dict[str, Any]]) -> dict[str, float]:
    return {row["metric"]: row["value"] for row in head.score(lines)}


def test_a_broken_file_is_one_line(tmp_path: Path) -> None:
    head = shared_model(Case("question_first", (Variant("head", "classify"),))).head
    file = vqav2(tmp_path / "src") / "v2_mscoco_val2014_annotations.json"
    (tmp_path / "src" / "v2_OpenEnded_mscoco_val2014_questions.json").unlink()
    with pytest.raises(UserError, match="no file of questions beside it has the id 262148000") as error:
        head.read(file, "benchmark.annotations")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="is a caption; head=classify is scored on questions"):
        head.read(karpathy(tmp_path / "f") / "dataset_flickr30k.json", "benchmark.annotations")
    assert all(
        isinstance(entry, Entry) for _, entry in published.read(tmp_path / "f/dataset_flickr30k.json", "flickr30k")
    )
