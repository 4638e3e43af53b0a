"""Which column is taken for what, how answers name options, who shares a split, and what is refused before work."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from _tables import TINY, distinct, left_out, made, read_all, still, together, videos, write_csv, write_json
from _videos import remuxed, video

from hvlm.data.sample_json import parse
from hvlm.data.views import Captions
from hvlm.dataset.shards import Shards
from hvlm.errors import UserError
from hvlm.prepare import command, plan, source
from hvlm.prepare.command import prepare
from hvlm.prepare.options import fitting, options_of, right, way
from hvlm.prepare.settings import read
from hvlm.prepare.splits import drawn


def planned(src: Path, *words: str) -> plan.Plan:
    settings = read([str(src), "dry_run=true", *words])
    return plan.make(source.find(settings))


def table(folder: Path, rows: list[dict[str, Any]], count: int = 4) -> Path:
    videos(folder, count)
    return write_csv(folder / "table.csv", rows)


# --------------------------------------------------------------------------------------------------- guessed columns


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"Video Path": "v0.mp4", "Caption": "a dog"}], {"video": ["Video Path"], "caption": ["Caption"]}),
        ([{"video_id": "v0", "question": "q?", "answer": "x"}], {"video": ["video_id"], "question": ["question"]}),
        ([{"name": "v0.mp4", "text": "a dog"}], {"video": ["name"], "caption": ["text"]}),
        ([{"file": "v0.mp4", "prompt": "q?", "chosen": "x", "rejected": "y"}],
         {"question": ["prompt"], "answer": ["chosen"], "rejected": ["rejected"]}),
        ([{"path": "v0", "q": "q?", "a": "x"}], {"question": ["q"], "answer": ["a"]}),
        ([{"video": "v0", "question": "q?", "A": "x", "B": "y", "correct": "B"}],
         {"options": ["A", "B"], "answer": ["correct"]}),
        ([{"video": "v0", "question": "q?", "option_1": "x", "option_2": "y", "label": "x"}],
         {"options": ["option_1", "option_2"], "answer": ["label"]}),
    ],
)  # fmt: skip
def test_columns_are_guessed_from_their_names_and_from_what_stands_in_them(
    tmp_path: Path, rows: list[dict], expected: dict[str, list[str]]
) -> None:
    taken = planned(table(tmp_path, rows)).taken.columns
    assert {role: taken[role] for role in expected} == expected


def test_an_ambiguous_guess_is_refused_with_its_candidates_and_the_advice_can_be_pasted(tmp_path: Path) -> None:
    src = table(tmp_path, [{"video": "v0", "short_caption": "a", "long_caption": "b"}])
    with pytest.raises(UserError, match="could be short_caption or long_caption") as refused:
        planned(src)
    advice = str(refused.value).split("say which with ")[1].split()[0]
    assert planned(src, advice).taken.columns["caption"] == ["short_caption"]


def test_a_column_that_is_said_counts_and_one_that_is_not_there_is_refused(tmp_path: Path) -> None:
    src = table(tmp_path, [{"video": "v0", "question": "q?", "answer": "x", "other": "v1"}])
    assert planned(src, "video=other").samples[0].medium.name == "v1.mp4"
    with pytest.raises(UserError, match="question=qustion: no such column; did you mean 'question'"):
        planned(src, "question=qustion")


def test_columns_that_would_do_harm_are_not_taken_and_that_is_said(tmp_path: Path) -> None:
    rows = [{"id": "same", "video": f"v{i}", "source": "ours", "split": f"part {i}", "caption": "x"} for i in range(4)]
    found = planned(table(tmp_path, rows)).taken
    assert not {"id", "source", "split"} & set(found.columns)
    assert len(found.notes) == 3 and all("is not taken" in note for note in found.notes)


# ---------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["['cat', 'dog']"], ["cat", "dog"]),
        (['["cat", "dog"]'], ["cat", "dog"]),
        (["cat|dog"], ["cat", "dog"]),
        (["A. cat\nB. dog"], ["cat", "dog"]),
        ([["(A) cat", "(B) dog"]], ["cat", "dog"]),
        ([{"A": "cat", "B": "dog"}], ["cat", "dog"]),
        ([{"text": ["cat", "dog"], "label": ["A", "B"]}], ["cat", "dog"]),
        (["cat", "dog", ""], ["cat", "dog"]),
    ],
)
def test_options_are_read_however_they_are_written(cells: list[Any], expected: list[str]) -> None:
    assert options_of(cells) == expected


@pytest.mark.parametrize(
    ("answers", "expected"),
    [(["cat", "dog"], "text"), (["A", "(b)", "B. dog"], "letter"), ([0, 1, 2], "index0"), (["1", "3", "2"], "index1")],
)
def test_how_answers_name_options_is_seen_over_the_whole_table(answers: list[Any], expected: str) -> None:
    options = ["cat", "dog", "fish"]
    counts: dict[Any, int] = {}
    for answer in answers:
        for name in fitting(answer, options):
            counts[name] = counts.get(name, 0) + 1
    how = way(counts)
    assert how == expected
    assert [right(a, options, how) for a in answers][0] == options[0]


def test_numbers_that_may_count_from_0_or_from_1_are_refused_with_the_way_out(tmp_path: Path) -> None:
    rows = [{"video": "v0", "question": "q?", "options": "a|b|c|d", "answer": n} for n in (1, 2, 2)]
    src = table(tmp_path, rows)
    with pytest.raises(UserError, match="answers=index0 or answers=index1"):
        planned(src)
    assert planned(src, "answers=index1").samples[0].parts[0][2].questions[0]["answer"] == "a"


def test_twenty_six_options_have_letters_and_twenty_seven_do_not(tmp_path: Path) -> None:
    rows = [{"video": f"v{n}", "question": "q?", "options": "|".join(f"o{i}" for i in range(n)), "answer": "o1"}
            for n in (2, 26, 27)]  # fmt: skip
    found = planned(table(tmp_path, rows, count=28))
    assert [s.medium.name for s in found.samples] == ["v2.mp4", "v26.mp4"]
    assert [(b.kind, b.row) for b in found.bad] == [("no options", 3)]


# ----------------------------------------------------------------------------------------------------------- splits


def test_rows_of_one_source_and_files_of_one_content_share_a_split(tmp_path: Path) -> None:
    videos(tmp_path, 120)
    (tmp_path / "copy.mp4").write_bytes(distinct(0))  # v0 under another name
    rows = [{"video": f"v{i}", "source": f"film{i // 3}", "caption": f"{i} {n}"} for i in range(120) for n in "ab"]
    rows.append({"video": "copy", "source": "film39", "caption": "again"})
    found = planned(write_csv(tmp_path / "t.csv", rows), "split=[0.6,0.2,0.2]")
    assert found.taken.columns["source"] == ["source"] and len(found.samples) == 120
    splits: dict[str, set[str]] = {}
    for sample in found.samples:
        splits.setdefault(f"film{int(sample.medium.name[1:-4]) // 3}", set()).add(sample.split)
    assert all(len(split) == 1 for split in splits.values()) and splits["film0"] == splits["film39"]
    assert {s for split in splits.values() for s in split} == {"train", "val", "test"}
    again = planned(tmp_path / "t.csv", "split=[0.6,0.2,0.2]")
    assert [s.split for s in again.samples] == [s.split for s in found.samples]


def test_the_draw_keeps_its_shares_and_its_splits_when_the_table_grows() -> None:
    names = [f"video{i}" for i in range(2000)]
    first = drawn(names, (0.9, 0.05, 0.05), 0)
    counts = {split: list(first.values()).count(split) for split in ("train", "val", "test")}
    assert abs(counts["train"] - 1800) < 60 and abs(counts["val"] - 100) < 40
    more = drawn([*names, *(f"new{i}" for i in range(500))], (0.9, 0.05, 0.05), 0)
    assert {name: more[name] for name in names} == first
    assert drawn(names, (0.9, 0.05, 0.05), 1) != first
    for few in (3, 5, 20):
        assert set(drawn(names[:few], (0.9, 0.05, 0.05), 0).values()) == {"train", "val", "test"}, "none is empty"
    assert set(drawn(names, (1.0, 0.0, 0.0), 0).values()) == {"train"}


def test_a_column_says_the_split_and_a_video_in_two_splits_is_named(tmp_path: Path) -> None:
    rows = [{"video": f"v{i}", "split": s, "caption": "x"} for i, s in enumerate(("training", "validation", "test"))]
    rows.append({"video": "v0", "split": "test", "caption": "leaks"})
    found = planned(table(tmp_path, rows))
    assert [s.split for s in found.samples] == ["train", "val", "test"]
    assert [(b.kind, b.row) for b in found.bad] == [("in two splits", 4)]


def test_tables_named_after_splits_are_taken_together(tmp_path: Path) -> None:
    videos(tmp_path, 3)
    for i, name in enumerate(("train", "val", "test")):
        write_csv(tmp_path / f"{name}.csv", [{"video": f"v{i}", "caption": name}])
    assert [(s.medium.name, s.split) for s in sorted(planned(tmp_path).samples, key=lambda s: s.key)] == [
        ("v0.mp4", "train"), ("v1.mp4", "val"), ("v2.mp4", "test"),
    ]  # fmt: skip
    write_csv(tmp_path / "other.csv", [{"video": "v0", "caption": "x"}])
    with pytest.raises(UserError, match=r"several tables .*say which with table="):
        planned(tmp_path)


# ------------------------------------------------------------------------------------------------- refused before work


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["out=o"], "nothing to prepare"),
        (["{src}"], "out= is missing"),
        (["{src}", "out=o", "vidoe=x"], "unknown key 'vidoe'; did you mean 'video'"),
        (["{src}/no.csv", "out=o"], "no such file or folder"),
        (["{src}/v0.mp4", "out=o"], "a video alone has no texts"),
        (["{src}", "out=o", "split=[0.5,0.1]"], "expected the shares of train, val and test"),
        (["{src}", "out=/proc/none/o"], "out=/proc/none/o: cannot be written"),
        (["{src}", "out=o", "workers=-1"], "workers=-1"),
        (["{src}", "out=o", "out=p"], "out is given twice"),
        (["{src}", "out=o", "videos=nowhere"], "videos=nowhere: no such folder"),
    ],
)
def test_mistakes_are_one_line_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    table(tmp_path / "in", [{"video": "v0", "caption": "x"}])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as refused:
        prepare([word.format(src=tmp_path / "in") for word in words])
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "o").exists()


def test_a_full_disk_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    src = table(tmp_path / "in", [{"video": "v0", "caption": "x"}])
    monkeypatch.setattr(command.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match="are to be written, and 1.0 kB are free"):
        prepare([str(src), f"out={tmp_path / 'o'}"])


def test_a_dry_run_says_what_would_be_made_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"video": f"v{i}", "question": f"what {i}?", "answer": "x"} for i in range(4)] + [
        {"video": "gone", "question": "q?", "answer": "x"}
    ]
    src = table(tmp_path / "in", rows)
    before = sorted(p.name for p in tmp_path.rglob("*"))
    assert prepare([str(src), "dry_run=true", f"out={tmp_path / 'o'}"]) is None
    said = capsys.readouterr().out
    assert "question (guessed)" in said and "1 × missing file" in said and "nothing written" in said
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


def test_the_same_folder_with_other_settings_or_another_table_is_refused_with_what_differs(tmp_path: Path) -> None:
    src, out = table(tmp_path / "in", [{"video": f"v{i}", "caption": "x"} for i in range(4)]), tmp_path / "o"
    made(src, out)
    before = (out / "manifest.json").read_bytes()
    made(src, out, "max_bad=0.5")  # does not change what comes out: finished already
    assert (out / "manifest.json").read_bytes() == before
    with pytest.raises(UserError, match=r"begun with seed=0 \(now 1\)"):
        made(src, out, "seed=1")
    write_csv(src, [{"video": "v0", "caption": "y"}])
    with pytest.raises(UserError, match="no longer what they were"):
        made(src, out)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/train-0.tar").write_bytes(b"")
    with pytest.raises(UserError, match="holds shards that hvlm prepare did not make"):
        made(src, tmp_path / "other")


@pytest.mark.fault(108)
def test_too_many_bad_rows_stop_the_work_with_advice_that_can_be_followed(tmp_path: Path) -> None:
    rows = [{"video": f"v{i}" if i < 10 else "gone", "caption": "x"} for i in range(40)]
    src, out = table(tmp_path / "in", rows, count=10), tmp_path / "o"
    with pytest.raises(UserError, match=r"30 of 40 rows are bad, .* 'missing file' \(30\).*max_bad=0.75") as refused:
        made(src, out)
    assert len(left_out(out)) == 30, "they are listed"
    assert len(together(made(src, out, str(refused.value).split()[-1]))) == 10


# ------------------------------------------------------------------------------------------ what a row may show and say


@pytest.mark.fault(108)
def test_videos_of_every_container_pictures_and_folders_of_stills_are_taken(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "stills").mkdir(parents=True)
    for i in range(3):
        (folder / "stills" / f"{i}.png").write_bytes(still(i, "PNG"))
    (folder / "a.avi").write_bytes(video(4, container="avi", codec="mpeg4", size=(32, 32)))
    (folder / "a.mkv").write_bytes(remuxed(TINY, "matroska"))
    (folder / "b.MOV").write_bytes(remuxed(TINY, "mov"))
    (folder / "c.jpg").write_bytes(still(1))
    (folder / "c.webp").write_bytes(still(2, "WEBP"))
    names = ["a.avi", "a.mkv", "b.MOV", "c.jpg", "c.webp", "stills"]
    rows = [{"file": name, "caption": f"of {name}", "fps": "2"} for name in names]
    found = together(made(write_csv(folder / "t.csv", rows), tmp_path / "out", "split=[1,0,0]"))
    assert {s["file"]: s["captions"][0]["text"] for s in found.values()} == {name: f"of {name}" for name in names}
    assert {key.partition("-")[0] for key in found} == {"a", "b", "c", "stills"} and left_out(tmp_path / "out") == []
    assert next(s for s in found.values() if s["file"] == "stills")["duration"] == 1.5
    items = {item.uid.rpartition("/")[2].partition("-")[0]: item for item in read_all(tmp_path / "out", Captions())}
    assert len(items["stills"].frames) == 3 and len(items["b"].frames) == 4


def test_turns_and_several_questions_of_a_clip_are_kept(tmp_path: Path) -> None:
    videos(tmp_path / "in", 1)
    chat = [("human", "<video>\nwhat?"), ("gpt", "a dog"), ("human", "where?"), ("gpt", "in a park")]
    rows = [
        {"video": "v0.mp4", "conversations": [{"from": who, "value": text} for who, text in chat]},
        {"video": "v0.mp4", "conversations": [{"from": who, "value": text} for who, text in chat[:2]]},
        {"conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hi"}]},
        {"conversations": [{"from": "human", "value": "<image> hello"}, {"from": "gpt", "value": "hi"}]},
        {"video": "v0.mp4", "conversations": [{"from": "gpt", "value": "hi"}]},
    ]
    splits = made(write_json(tmp_path / "in/chats.json", rows), tmp_path / "out")
    (sample,) = splits["train"].values()
    assert sample["questions"] == [{"question": "what?", "answer": "a dog"}]
    assert sample["conversations"] == [
        [{"role": "user" if who == "human" else "assistant", "content": text.removeprefix("<video>\n")}
         for who, text in chat]
    ]  # fmt: skip
    assert list(splits["text"].values()) == [
        {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]}
    ]
    assert [(b["row"], b["kind"]) for b in left_out(tmp_path / "out")] == [
        (4, "no file named"), (5, "not a conversation"),
    ]  # fmt: skip
    questions = parse({"json": json.dumps(sample).encode()}, "k", "general")["questions"]
    assert [(q["question"], q["answer"], q.get("turns", ())) for q in questions] == [
        ("what?", "a dog", ()), ("where?", "in a park", (("what?", "a dog"),)),
    ]  # fmt: skip


def test_chosen_and_rejected_become_pairs(tmp_path: Path) -> None:
    videos(tmp_path / "in", 1)
    asked = [{"role": "user", "content": "q?"}]
    rows = [
        {"video": "v0.mp4", "prompt": "q?", "chosen": "x", "rejected": "y"},
        {"video": "v0.mp4", "prompt": "r?", "chosen": [*asked, {"role": "assistant", "content": "x"}],
         "rejected": [*asked, {"role": "assistant", "content": "z"}]},
        {"video": "v0.mp4", "prompt": "s?", "chosen": "x", "rejected": "x"},
    ]  # fmt: skip
    (sample,) = together(made(write_json(tmp_path / "in/pairs.json", rows), tmp_path / "out")).values()
    assert [(q["question"], q["answer"], q["rejected"]) for q in sample["questions"]] == [
        ("q?", "x", "y"), ("r?", "x", "z"),
    ]  # fmt: skip
    assert [b["kind"] for b in left_out(tmp_path / "out")] == ["wrong answer"]


def test_names_without_ending_and_without_folder_are_found_where_there_is_only_one(tmp_path: Path) -> None:
    videos(tmp_path / "in" / "deep", 2)
    videos(tmp_path / "in" / "other", 1, start=1)
    rows = [{"video": name, "caption": "x"} for name in ("v0", "v1", "v1.mp4", "deep/v1", "other/v0")]
    found = planned(write_csv(tmp_path / "in/t.csv", rows))
    assert [s.medium.name for s in found.samples] == ["deep/v0.mp4", "deep/v1.mp4"]
    assert [(b.row, b.kind) for b in found.bad] == [(2, "several files"), (3, "several files"), (5, "missing file")]


@pytest.mark.parametrize("words", [["{src}"], ["{src}/t.csv"]])
@pytest.mark.fault(108)
def test_who_trains_on_raw_videos_or_a_table_is_told_the_command_that_makes_shards(
    tmp_path: Path, words: list[str]
) -> None:
    src = tmp_path / "in"
    write_csv(videos(src, 3) / "t.csv", [{"video": f"v{i}", "caption": "x"} for i in range(3)])
    given = words[0].format(src=src)
    with pytest.raises(UserError, match=r"hvlm prepare \S+ out=\S+") as refused:
        Shards(given).prepare()
    command = str(refused.value).split("hvlm prepare ")[1].split()[:2]
    prepare([command[0], command[1], "workers=1"])
    Shards(command[1].removeprefix("out=")).prepare()


def test_a_video_column_and_a_picture_column_of_which_each_row_fills_one_are_both_taken(tmp_path: Path) -> None:
    videos(tmp_path, 1)
    (tmp_path / "a.jpg").write_bytes(still(1))
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "x"}]
    rows = [{"image": "a.jpg", "conversations": turns}, {"video": "v0.mp4", "conversations": turns}]
    found = planned(write_json(tmp_path / "mix.json", rows))
    assert found.taken.columns["video"] == ["video", "image"]
    assert [s.medium.name for s in found.samples] == ["a.jpg", "v0.mp4"] and not found.bad


def test_rows_without_options_are_open_questions_where_answers_are_texts(tmp_path: Path) -> None:
    rows = [
        {"video": f"v{i}", "question": "q?", "options": o, "answer": "cat"}
        for i, o in enumerate(("cat|dog", "", "dog|cow"))
    ]
    found = planned(table(tmp_path, rows))
    assert [s.parts[0][2].questions[0].get("options") for s in found.samples] == [["cat", "dog"], None]
    assert [(b.row, b.kind) for b in found.bad] == [(3, "wrong answer")]


def test_names_and_texts_of_any_kind_end_neither_the_work_nor_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos(tmp_path / "in", 2)
    odd = "odd \udcff[red].mp4"  # a name that is no UTF-8
    (tmp_path / "in" / odd).write_bytes(distinct(7))
    rows = [
        {"video": "v0.mp4", "caption": "[/red] :smile: ünï\u2028 text"},
        {"video": odd, "caption": "x"},
        {"video": "\ud800.mp4", "caption": "x"},
        {"video": "v1.mp4", "caption": "half \ud800"},
        {"video": {"path": "v1.mp4"}, "caption": 7},
    ]
    found = together(made(write_json(tmp_path / "in/t.json", rows), tmp_path / "out"))
    assert {str(c["text"]) for s in found.values() for c in s["captions"]} == {"7", rows[0]["caption"], "x"}
    assert [(b["row"], b["kind"]) for b in left_out(tmp_path / "out")] == [(3, "missing file"), (4, "bad text")]
    assert "[/red] :smile:" in capsys.readouterr().out


def sleepy(*_: Any) -> float:
    time.sleep(60)
    raise AssertionError("it should have been killed")


def test_a_video_that_was_not_decoded_in_time_is_tried_again_with_more(tmp_path: Path, monkeypatch) -> None:
    src, out = table(tmp_path / "in", [{"video": "v0", "caption": "x"}]), tmp_path / "o"
    with monkeypatch.context() as slow:
        slow.setattr("hvlm.prepare.media.probe", sleepy)
        refused = "1 of 1 rows are bad, most often 'not decoded in time'.*raise decode_timeout"
        with pytest.raises(UserError, match=refused):
            made(src, out, "decode_timeout=0.1")
    assert set(together(made(src, out, "decode_timeout=60"))) == {"v0"}


def test_a_table_without_rows_and_shards_among_the_videos_are_refused(tmp_path: Path) -> None:
    src = table(tmp_path / "in", [{"video": "v0", "caption": "x"}])
    with pytest.raises(UserError, match="that is the folder of the videos"):
        made(src, tmp_path / "in")
    src.write_text("video,caption\n")
    with pytest.raises(UserError, match="no rows in it"):
        made(src, tmp_path / "o")


def test_damaged_pages_inside_a_whole_parquet_file_are_named(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    path = tmp_path / "t.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([{"video": "v.mp4", "text": "a red ring"}] * 9), path)
    data = bytearray(path.read_bytes())
    data[4:40] = b"\xff" * 36
    path.write_bytes(data)
    assert parquet.ParquetFile(path).num_row_groups == 1, "its index is whole"
    with pytest.raises(UserError, match="t.parquet: not a readable parquet file") as error:
        planned(path)
    assert "\n" not in str(error.value)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"pip install 'hvlm\[data\]'"):
        planned(tmp_path / "t.parquet")
