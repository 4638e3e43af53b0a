"""Fuzz: published sets of questions and captions about pictures, as they are and as tables of ``hvlm prepare``."""

from __future__ import annotations

import json
from typing import Any

from _fuzz import folder, target
from _fuzz_files import broken, json_files
from hypothesis import strategies as st

from hvlm.data import published
from hvlm.data.published import Entry
from hvlm.prepare.formats.published import Table

TEN = [{"answer": "net" if i % 3 else "", "answer_confidence": "yes", "answer_id": i} for i in range(1, 11)]
VQA = {
    "info": {},
    "license": {},
    "data_subtype": "train2014",
    "data_type": "mscoco",
    "annotations": [
        {
            "question_type": "what",
            "answer_type": "other",
            "multiple_choice_answer": "net",
            "image_id": 458752,
            "question_id": 458752000 + i,
            "answers": TEN,
        }
        for i in range(2)
    ]
    + [{"question_id": "x", "question": "what?", "video": "v.jpg", "answers": ["a", "b"]}],
}
ASKED = {"questions": [{"image_id": 458752, "question": f"what {i}?", "question_id": 458752000 + i} for i in range(2)]}
GQA = {
    "201": {
        "entailed": ["201", "202"],
        "question": "Is it red?",
        "imageId": "n161313",
        "isBalanced": True,
        "answer": "yes",
        "types": {"detailed": "d", "semantic": "attr", "structural": "query"},
    }
}
VIZWIZ = [
    {"image": "VizWiz_val_00000000.jpg", "question": "What?", "answers": TEN, "answer_type": "other", "answerable": 1},
    {
        "image": "VizWiz_val_00000001.jpg",
        "question": "?",
        "answers": TEN,
        "answer_type": "unanswerable",
        "answerable": 0,
    },
]
TEXTVQA = {
    "dataset_type": "val",
    "data": [
        {
            "question_id": 1,
            "question": "what is the brand?",
            "image_id": "003a8ae2ef43b901",
            "flickr_300k_url": "u",
            "answers": ["nous"] * 10,
            "set_name": "val",
        }
    ],
}
FLICKR = {
    "dataset": "flickr30k",
    "images": [
        {
            "sentids": [0, 1],
            "imgid": 0,
            "split": "train",
            "filename": "1.jpg",
            "filepath": "val2014",
            "sentences": [{"tokens": ["a"], "raw": "A dog .", "imgid": 0, "sentid": 0}],
        }
    ],
}
TOKEN = b"1000092795.jpg#0\tTwo young guys .\n1000092795.jpg#1\tTwo guys .\n2.png#0\tA dog .\n"
CSV = b"image_name| comment_number| comment\n1.jpg| 0| A dog .\n2199200615.jpg| 4   A dog runs .\n"
FILES: dict[str, Any] = {
    "v2_mscoco_train2014_annotations.json": VQA,
    "testdev_balanced_questions.json": GQA,
    "val.json": VIZWIZ,
    "TextVQA_0.5.1_val.json": TEXTVQA,
    "dataset_flickr30k.json": FLICKR,
    "results_20130124.token": TOKEN,
    "results.csv": CSV,
}


def _files() -> st.SearchStrategy[tuple[str, bytes]]:
    return st.one_of(
        st.tuples(st.just(name), broken(value) if isinstance(value, bytes) else json_files(value))
        for name, value in FILES.items()
    )


@target(ci=80, file=_files().map(list), beside=st.one_of(st.just(json.dumps(ASKED).encode()), json_files(ASKED)))
def test_published(file: list[Any], beside: bytes) -> None:
    name, data = file
    with folder() as place:
        (place / name).write_bytes(data)
        (place / "v2_OpenEnded_mscoco_train2014_questions.json").write_bytes(beside)
        found = published.set_of(place / name)
        published.files_in(place)
        for one in published.sets().values():  # whatever it was taken for
            if found is None or one.__name__.endswith(found):
                for number, entry in _rows(one, place / name, found):
                    assert isinstance(number, int) and isinstance(entry, Entry | str)
        if found is not None:
            for _, _, row in Table(place / name).rows():
                json.dumps(row, default=vars)


def _rows(one: Any, path: Any, found: str | None) -> Any:
    """Of a set that a file is none of, nothing is read."""
    return one.read(path) if found is not None else ()
