"""Parts of videos, what errors are clustered by, names of conversations, and tables and paths that are odd."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest
from _tables import distinct, left_out, made, together, videos, write_csv, write_json

from hvlm.data.sample_json import parse
from hvlm.errors import UserError
from hvlm.prepare.formats.delimited import Table
from hvlm.prepare.seconds import as_seconds


def test_start_and_end_name_a_part_and_source_what_errors_are_clustered_by(tmp_path: Path) -> None:
    """The parts of a video share its split; where no source is said, they share the video as their cluster."""
    rows = [
        {"video": "v0.mp4", "question": "q0", "answer": "a", "start": "0", "end": "0:00.1", "film": "x"},
        {"video": "v0.mp4", "question": "q1", "answer": "a", "start": "0.1", "end": "0.3", "film": "x"},
        {"video": "v0.mp4", "question": "q2", "answer": "a", "start": "0.1", "end": "0.3", "film": "x"},
        {"video": "v1.mp4", "question": "q3", "answer": "a", "start": "", "end": "", "film": "y"},
        {"video": "v2.mp4", "question": "q4", "answer": "a", "start": "2", "end": "1", "film": "z"},
        {"video": "v2.mp4", "question": "q5", "answer": "a", "start": "7", "end": "9", "film": "z"},
    ]
    src = write_csv(videos(tmp_path / "src", 3) / "t.csv", rows)
    out = tmp_path / "out"
    splits = made(src, out)
    found = together(splits)
    assert {key: value.get("section") for key, value in found.items()} == {
        "v0_0-0_1": [0.0, 0.1], "v0_0_1-0_3": [0.1, 0.3], "v1": None,
    }  # fmt: skip
    assert [q["question"] for q in found["v0_0_1-0_3"]["questions"]] == ["q1", "q2"]
    assert {key: value.get("cluster") for key, value in found.items()} == {
        "v0_0-0_1": "v0.mp4", "v0_0_1-0_3": "v0.mp4", "v1": None,
    }  # fmt: skip
    assert any({"v0_0-0_1", "v0_0_1-0_3"} <= set(split) for split in splits.values())
    assert [(b["row"], b["file"], b["kind"]) for b in left_out(out)] == [
        (5, "v2.mp4", "wrong part"), (6, "v2.mp4", "wrong part"),
    ]  # fmt: skip
    named = together(made(src, tmp_path / "named", "source=film", "max_bad=1"))
    assert {key: value["cluster"] for key, value in named.items()} == {"v0_0-0_1": "x", "v0_0_1-0_3": "x", "v1": "y"}
    whole = together(made(src, tmp_path / "whole", "start=none"))
    assert set(whole) == {"v0", "v1", "v2"} and not any("section" in value for value in whole.values())
    with pytest.raises(UserError, match="start=start: a part of a video has both; say end="):
        made(src, tmp_path / "half", "start=start", "end=none")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("1:02:03.5", 3723.5), ("02:03", 123.0), ("2,5", None), (7, 7.0), ("-1", None), ("nan", None), (True, None)],
)
def test_times_are_seconds_or_of_a_clock(value: object, seconds: float | None) -> None:
    assert as_seconds(value) == seconds


def test_a_conversation_keeps_the_name_and_the_task_of_its_row(tmp_path: Path) -> None:
    """Both as a question and as a caption, beside other rows of its video."""
    turns = [{"from": who, "value": text} for who, text in zip(["human", "gpt"] * 2, "abcd", strict=True)]
    rows = [{"id": name, "video": "v0.mp4", "task": "talk", "conversations": turns} for name in ("one", "two")]
    src = write_json(videos(tmp_path / "src", 1) / "t.json", rows)
    (value,) = together(made(src, tmp_path / "out")).values()
    found = parse({"json": json.dumps(value).encode()}, "v0", "general")
    assert [(q["id"], q["task"], len(q["turns"])) for q in found["questions"]] == [
        ("one", "talk", 1),
        ("two", "talk", 1),
    ]
    assert [caption["prompt"] for caption in found["captions"]] == ["c", "c"]


def test_accents_taken_apart_and_links_to_nothing_end_no_work(tmp_path: Path) -> None:
    """Names of a Mac are found in the table's form and the other way round; a row that is left out names its file."""
    folder = videos(tmp_path / "src", 1)
    (folder / "e\u0301.mp4").write_bytes(distinct(1))
    (folder / "sub").mkdir()
    (folder / "sub" / "v.mp4").write_bytes(distinct(2))
    os.symlink("nowhere.mp4", folder / "gone.mp4")
    names = ["v0.mp4", "\u00e9.mp4", "sub\\v.mp4", "gone.mp4", "v0.mp4"]
    rows = [{"video": name, "question": "q", "answer": "a" if i < 4 else ""} for i, name in enumerate(names)]
    out = tmp_path / "out"
    found = together(made(write_csv(folder / "t.csv", rows), out))
    assert {value["file"] for value in found.values()} == {"v0.mp4", "e\u0301.mp4", "sub/v.mp4"}
    assert [(b["file"], b["kind"]) for b in left_out(out)] == [("gone.mp4", "cannot be read"), ("v0.mp4", "empty text")]


def test_the_mark_between_cells_is_the_one_by_which_rows_fit_the_first_line(tmp_path: Path) -> None:
    folder = videos(tmp_path / "src", 1)
    (folder / "t.csv").write_text(
        "video;what is asked (who, where, when, why);answer\nv0.mp4;q, r;a\n", encoding="utf-8"
    )
    words = ["question=what is asked (who, where, when, why)"]
    (value,) = together(made(folder / "t.csv", tmp_path / "out", *words)).values()
    assert value["questions"] == [{"question": "q, r", "answer": "a"}]


def test_long_cells_of_a_table_leave_the_limit_of_other_readers_as_it_was(tmp_path: Path) -> None:
    before, text = csv.field_size_limit(), "a" * 200_000
    write_csv(tmp_path / "t.csv", [{"video": "v0.mp4", "question": text}, {"video": "v1.mp4", "question": text}])
    table = Table(tmp_path / "t.csv")
    assert csv.field_size_limit() == before
    for _, _, row in table.rows():
        assert row["question"] == text and csv.field_size_limit() == before < len(text)
