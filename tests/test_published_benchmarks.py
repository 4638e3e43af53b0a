"""Public benchmarks whose questions are tables: fixtures in the published layouts, and scores by hand."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from _tiny import CONF

from hvlm.benchmark import _subtitles, _table
from hvlm.benchmark._parsers import PARSERS
from hvlm.benchmark._published import PublishedTable
from hvlm.benchmark.mvbench import MVBench
from hvlm.benchmark.published import Published
from hvlm.benchmark.videomme_v2 import POINTS, VideoMMEv2, _chance, points
from hvlm.config.check import check_files
from hvlm.config.compose import compose
from hvlm.data import samples
from hvlm.errors import UserError
from hvlm.evaluation.evaluate import _stated
from hvlm.evaluation.journal import Answer, Journal
from hvlm.evaluation.predictions import read_predictions, write_predictions
from hvlm.evaluation.results import Label
from hvlm.evaluation.scores import Prediction, Question

ALL = (
    "egoschema", "longvideobench", "lvbench", "mlvu", "mvbench", "nextqa", "scienceqa", "tempcompass", "timescope",
    "videomme", "videomme_v2",
)  # fmt: skip
parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow reads the published tables")


def made(name: str, path: Path | str | None, **changes: Any) -> Any:
    settings = yaml.safe_load((CONF / "benchmark" / f"{name}.yaml").read_text())
    kinds = {kind.__name__: kind for kind in (MVBench, Published, VideoMMEv2)}
    return kinds[settings.pop("_target_").rpartition(".")[2]](**{**settings, "path": path and str(path), **changes})


def write(file: Path, rows: list[dict]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".parquet":
        import pyarrow

        parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    elif file.suffix == ".csv":
        with open(file, "w", newline="") as out:
            writer = csv.DictWriter(out, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        file.write_text(json.dumps(rows))


def videos(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"opened by the decoder alone")


def asked(benchmark: Any) -> list[tuple[str, Question]]:
    """(video, question) of all that would be asked."""
    source = benchmark.source(None)
    out = []
    for i, key in enumerate(source.keys):
        sample = samples.parse(source.read(i), key, "general", source.uid(i))
        out += [(source.shards[i], q) for q in benchmark.questions(sample)]
    return out


def prompts(benchmark: Any) -> list[str]:
    return [q.tries[0].prompt for _, q in asked(benchmark)]


def test_mlvu(tmp_path: Path) -> None:
    inside = "What is cut?\n(A) bread\n(B) wood\n(C) cloth\n(D) paper"
    write(tmp_path / "mlvu" / "test.parquet", [
        {"video_name": "x/1.mp4", "question": inside, "task_type": "TR", "answer": "B"},
        {"video_name": "2.mp4", "question": inside, "task_type": "AO", "answer": "D"},
    ])  # fmt: skip
    videos(tmp_path / "video" / "1.mp4", tmp_path / "video" / "2.mp4")
    (first, one), (_, two) = asked(made("mlvu", tmp_path))
    assert first == "1.mp4" and (one.task, two.task) == ("TR", "AO")
    assert one.tries[0].options == ("bread", "wood", "cloth", "paper") and one.tries[0].gold == 1
    assert one.tries[0].prompt == inside + "\nOnly give the best option.\nBest option: ("
    original = {"video": "1.mp4", "question": "What is cut?", "candidates": ["bread", "wood"], "answer": "wood"}
    write(tmp_path / "b" / "json" / "1_plotQA.json", [{**original, "question_type": "plotQA", "duration": 480.0}])
    videos(tmp_path / "b" / "video" / "1_plotQA" / "1.mp4")
    ((video, q),) = asked(made("mlvu", tmp_path / "b"))
    assert (video, q.task, q.tries[0].gold) == ("1_plotQA/1.mp4", "plotQA", 1)


def test_longvideobench(tmp_path: Path) -> None:
    shared = {"video_path": "v.mp4", "question": "Who?", "question_category": "T2E", "duration_group": 15}
    options = {f"option{i}": text for i, text in enumerate(["a cat", "a dog", "a cow", "N/A", "N/A"])}
    write(tmp_path / "validation-0.parquet", [{**shared, **options, "correct_choice": 2}])
    write(tmp_path / "b" / "lvb_val.json", [{**shared, "candidates": ["a cat", "a dog"], "correct_choice": 1}])
    videos(tmp_path / "videos" / "v.mp4", tmp_path / "b" / "videos" / "v.mp4")
    ((_, q),) = asked(one := made("longvideobench", tmp_path))
    assert q.tries[0].options == ("a cat", "a dog", "a cow") and q.tries[0].gold == 2
    assert q.tries[0].prompt == (
        "Who?\nA. a cat\nB. a dog\nC. a cow\nAnswer with the option's letter from the given choices directly.\n"
    )
    ((_, q),) = asked(made("longvideobench", tmp_path / "b"))
    assert q.tries[0].gold == 1
    right = Prediction("u/1", "v", "T2E", 0, ("a", "b", "c"), 2, 2, None, "m")
    assert {r["metric"]: r["value"] for r in one.score([right])}["accuracy/duration_group=15"] == 1


def test_longvideobenchs_subtitles_stand_between_the_frames(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By hand: which lines a frame falls into, and before which frame each stands."""
    shared = {"question": "Who?", "question_category": "T2E", "duration_group": 15, "correct_choice": 0}
    shared |= {"candidates": ["a cat", "a dog"], "duration": 20.0}
    write(tmp_path / "lvb_val.json", [
        {**shared, "video_path": "v.mp4", "subtitle_path": "v_en.json", "starting_timestamp_for_subtitles": 10.0},
        {**shared, "video_path": "w.mp4", "subtitle_path": "w_en.json", "starting_timestamp_for_subtitles": 0},
        {**shared, "video_path": "x.mp4", "subtitle_path": "x_en.json", "starting_timestamp_for_subtitles": 0},
    ])  # fmt: skip
    videos(*(tmp_path / "videos" / f"{name}.mp4" for name in "vwx"))
    (tmp_path / "subtitles").mkdir()
    write(tmp_path / "subtitles" / "v_en.json", [
        {"start": "00:00:10.100", "end": "00:00:12.000", "line": "<i>from one</i> to two"},  # no frame in it
        {"start": "00:00:14.000", "end": "00:00:17.000", "line": "around five"},
        {"start": "00:00:19.900", "end": "00:00:20.000", "line": "short, about ten"},  # taken for a second
    ])  # fmt: skip
    write(tmp_path / "subtitles" / "w_en.json", [
        {"timestamp": [1.0, 4.0], "text": "early"}, {"timestamp": [4.5, None], "text": "to the end"},
    ])  # fmt: skip
    benchmark = made("longvideobench", tmp_path, subtitles="subtitles")
    plain = prompts(made("longvideobench", tmp_path))[0]
    source = benchmark.source(None)

    def said(index: int, of: Any = benchmark) -> str:
        sample = samples.parse(source.read(index), source.keys[index], "general", source.uid(index))
        (question,) = of.questions(sample | {"times": np.array([0.0, 5.0, 10.0])})
        return str(question.tries[0].prompt).removesuffix(plain)

    assert said(0) == "Frame 1\nFrame 2\naround five\nshort, about ten\nFrame 3\n"
    assert said(1) == "Frame 1\nFrame 2\nFrame 3\nto the end\n"
    assert said(2) == "", "no file: as without"
    every = made("longvideobench", tmp_path, subtitles="subtitles", subtitle_lines="all")
    assert said(1, every) == "early\nto the end\n"
    benchmark.check(None)
    assert "1 of 3 videos have none (x.mp4)" in caplog.text
    assert benchmark.protocol()["subtitles"] == "lines between marks of frames"
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="none: holds the subtitles of none of 3 videos, e.g. v.srt"):
        made("longvideobench", tmp_path, subtitles="none").check(None)
    with pytest.raises(UserError, match="gone: no such folder"):
        made("longvideobench", tmp_path, subtitles="gone").check(None)
    write(tmp_path / "subtitles" / "v_en.json", [{"start": "10.1", "end": "11", "line": "no clock"}])
    with pytest.raises(ValueError, match="the subtitles v_en.json cannot be read"):
        said(0)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.json", '[{"timestamp": [NaN, 2], "text": "x"}]', "'x' is shown from nan to 2.0 s"),
        ("a.json", '[{"timestamp": [0, 1e999], "text": "x"}]', "'x' is shown from 0.0 to inf s"),
        ("a.json", f'[{{"timestamp": [{"9" * 400}, 2], "text": "x"}}]', "too large"),
        ("a.json", f'[{{"start": "{"9" * 400}:0:0", "end": "0:0:1", "line": "x"}}]', "too large"),
        ("a.json", "[" * 100_000, "recursion"),
        ("a.jsonl", '{"text": "x", "start_time": "nan", "end_time": 1}', "'x' is shown from nan to 1.0 s"),
        ("a.srt", "1\n" * 100, "at most 99 are read"),
    ],
)
def test_hostile_subtitles_are_refused_by_name(
    name: str, text: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_text(text)
    if name.endswith("srt"):
        monkeypatch.setattr(_subtitles, "LARGEST", 99)
    with pytest.raises(ValueError, match=f"the subtitles {name} cannot be read .*{says}"):
        _subtitles.read_subtitles(tmp_path / name)


def test_subtitles_of_half_a_character_or_a_name_too_long_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"timestamp": [0, 1], "text": "a\\ud800b"}]')
    assert _subtitles.read_subtitles(tmp_path / "a.json") == [_subtitles.Line(0.0, 1.0, "a?b")]
    assert _subtitles.find(tmp_path, "v.mp4", _subtitles.Where(file="x" * 300)) is None
    assert _subtitles.find(tmp_path, "x" * 300, _subtitles.ALONE) is None


def test_lvbench_timescope_and_their_options_in_the_question(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [
        {"video_path": "a.mp4", "question": "When?", "options": ["one", "two"], "answer": "B", "question_type": ["er"]},
    ])  # fmt: skip
    videos(tmp_path / "videos" / "a.mp4")
    ((_, q),) = asked(made("lvbench", tmp_path))
    assert (
        q.tries[0].prompt == "When?\n(A) one\n(B) two\nAnswer the question with the option letter." and q.task == "er"
    )
    row = {"id": 1, "video": "v/b.mp4", "length": 60, "type": "QA", "answer": "C"}
    write(tmp_path / "t" / "x.json", [{**row, "question": "Which?\nA. one\nB. two\nC. 3"}])
    videos(tmp_path / "t" / "v" / "b.mp4")
    ((video, q),) = asked(made("timescope", tmp_path / "t"))
    assert (video, q.tries[0].options, q.tries[0].gold) == ("v/b.mp4", ("one", "two", "3"), 2)


def test_egoschema_asks_what_has_a_public_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    option = [
        f"{letter}. C {verb}s." for letter, verb in zip("ABCDE", ("cut", "wash", "run", "eat", "read"), strict=True)
    ]
    write(tmp_path / "Subset" / "test.parquet", [
        {"video_idx": "abc", "question": "What does C do?", "option": option, "answer": "3"},
        {"video_idx": "abd", "question": "What does C do?", "option": option, "answer": None},
    ])  # fmt: skip
    videos(tmp_path / "videos" / "abc.mp4")
    benchmark = made("egoschema", tmp_path)
    ((video, q),) = asked(benchmark)
    assert (video, q.tries[0].options[3], q.tries[0].gold) == ("abc.mp4", "C eats.", 3)
    benchmark.check(None)
    assert "1 questions have no public answer and are not asked" in caplog.text
    assert benchmark.protocol()["without_public_answer"] == 1


def test_nextqa_has_nothing_after_its_options_and_places_for_answers(tmp_path: Path) -> None:
    row = {"video": "4010069381", "frame_count": 369, "question": "how many cats ", "qid": 6, "type": "DC"}
    options = {f"a{i}": text for i, text in enumerate(["1", "0", "3", "2", "4"])}
    equal = {f"a{i}": text for i, text in enumerate(["1", "1", "3", "2", "4"])}
    write(tmp_path / "val.csv", [{**row, "answer": 0, **options}, {**row, "answer": 1, **equal}])
    videos(tmp_path / "NExTVideo" / "1164" / "4010069381.mp4")
    ((video, q),) = asked(one := made("nextqa", tmp_path))
    assert video == "1164/4010069381.mp4" and q.tries[0].gold == 0, "a place, though 0 is the text of another option"
    assert q.tries[0].prompt == "how many cats\nA. 1\nB. 0\nC. 3\nD. 2\nE. 4"
    assert one.table().unclear == 1, "two equal options cannot be told apart"


def test_tempcompass_in_three_formats(tmp_path: Path) -> None:
    shared = {"video_id": "v1", "dim": "action"}
    choice = {"question": "What happens?\nA. a fall\nB. a jump", "answer": "B. a jump"}
    match = {"question": "Which fits?\nOption 1: He falls.\nOption 2: He jumps.", "answer": "Option 1: He falls."}
    for folder, row in {"multi-choice": choice, "yes_no": {"question": "Does he jump?", "answer": "no"}}.items():
        write(tmp_path / folder / "test-0.parquet", [{**shared, **row}])
    write(tmp_path / "caption_matching" / "test-0.parquet", [{**shared, **match}])
    write(tmp_path / "captioning" / "test-0.parquet", [{**shared, "question": "Describe.", "answer": "x"}])
    videos(tmp_path / "videos" / "v1.mp4")
    benchmark = made("tempcompass", tmp_path)
    found = [(q.tries[0].options, q.tries[0].gold) for _, q in asked(benchmark)]
    assert found == [(("a fall", "a jump"), 1), (("yes", "no"), 1), (("He falls.", "He jumps."), 0)]
    parts = [about["_part"] for about in benchmark.table().about.values()]
    assert parts == ["multi-choice", "yes_no", "caption_matching"]


@pytest.mark.parametrize(
    ("rule", "right", "value"),
    [
        ("relevance", "1010", 0.25), ("relevance", "0111", 0.5625), ("relevance", "1111", 1), ("relevance", "0000", 0),
        ("[1,2,3,4]", "1011", 0.0625), ("[1,2,3,4]", "0111", 0), ("[1,2,3,4]", "1110", 0.5625),
        ("[1,[2,3],4]", "1011", 1 / 3), ("[1,[2,3],4]", "1101", 1 / 3), ("[1,[2,3],4]", "1110", 7 / 12),
        ("[[1,2],3,4]", "0111", 0.1), ("[[1,2],3,4]", "1101", 0.2), ("[[1,2],3,4]", "1110", 0.5),
    ],
)  # fmt: skip
def test_points_of_a_group_of_four(rule: str, right: str, value: float) -> None:
    assert points((rule, [c == "1" for c in right])) == pytest.approx(value)


@pytest.mark.parametrize("number", ["001-0", "001-5", "001-", " ", "first"])
def test_a_question_has_one_of_four_places_in_its_group(number: str, tmp_path: Path) -> None:
    row = {
        "video_id": "001", "question_id": number, "group_type": "relevance", "group_structure": "[1,2,3,4]", "level": 1,
        "second_head": "order", "third_head": "x", "question": "Q?", "options": "A. one\nB. two", "answer": "B",
    }  # fmt: skip
    write(tmp_path / "test.parquet", [row])
    videos(tmp_path / "videos" / "001.mp4")
    benchmark = made("videomme_v2", tmp_path)
    answers = [
        Prediction(q.id, q.key, q.task, 0, q.tries[0].options, q.tries[0].gold, 1, None, "m")
        for _, q in asked(benchmark)
    ]
    with pytest.raises(UserError, match=f"question_id '{number}' of video '001': expected a number from 1 to 4"):
        benchmark.score(answers)


def test_chance_of_groups_is_the_published_one() -> None:
    assert [round(100 * _chance(rule), 2) for rule in POINTS] == [4.3, 1.15, 1.83, 2.57]


def test_videomme_v2_scores_groups(tmp_path: Path) -> None:
    options = "\n".join(f"{letter}. option {i}" for i, letter in enumerate("ABCDEFGH"))
    rows = [
        {
            "video_id": video, "question_id": f"{video}-{n}", "group_type": kind, "group_structure": structure,
            "level": 1, "second_head": "order", "third_head": "x", "question": f"Q{n}?", "options": options,
            "answer": "H",
        }
        for video, kind, structure in (("001", "relevance", "[1,2,3,4]"), ("002", "logic", "[1, [2, 3], 4]"))
        for n in (1, 2, 3, 4)
    ]  # fmt: skip
    write(tmp_path / "test.parquet", rows)
    videos(tmp_path / "videos" / "001.mp4", tmp_path / "videos" / "002.mp4")
    benchmark = made("videomme_v2", tmp_path)
    found = asked(benchmark)
    prompt = found[0][1].tries[0].prompt
    assert prompt.startswith("Question: Q1?\nA. option 0\n") and prompt.endswith("G, or H) of the correct option.")
    words = [{"text": text, "start_time": i, "end_time": i + 0.4} for i, text in enumerate(["A", "red", "ball."])]
    (tmp_path / "subtitle").mkdir()
    (tmp_path / "subtitle" / "001.jsonl").write_text("".join(json.dumps(word) + "\n" for word in words))
    spoken = prompts(made("videomme_v2", tmp_path, subtitles="subtitle"))
    assert spoken[0] == f"This video's subtitles are listed below:\nA red ball.\n\n{prompt}" and spoken[4] == prompt
    assert len(found[0][1].tries[0].options) == 8 and found[0][1].tries[0].gold == 7
    # Of both groups questions 1, 3 and 4 are right, and what of the second was lost is wrong.
    answers = {q.id: 7 if q.text != "Q2?" else 0 for _, q in found}
    offered = found[0][1].tries[0].options
    made_ = [Prediction(q.id, q.key, q.task, 0, offered, 7, answers[q.id], None, "m") for _, q in found]
    rows = {r["metric"]: r for r in benchmark.score(made_)}
    assert rows["group_score/relevance"]["value"] == pytest.approx(9 / 16)
    assert rows["group_score/logic"]["value"] == pytest.approx(1 / 3)
    assert rows["group_score"]["value"] == pytest.approx((9 / 16 + 1 / 3) / 2) and rows["group_score"]["n"] == 2
    assert rows["accuracy_micro"]["value"] == 0.75 and rows["accuracy_micro"]["chance"] == 0.125
    lost = {r["metric"]: r["value"] for r in benchmark.score([p for p in made_ if not p.question_id.endswith("/1")])}
    assert lost["group_score/relevance"] == pytest.approx(0.25)


def test_what_is_wrong_is_one_line(tmp_path: Path) -> None:
    def refused(name: str, rows: list[dict] | None, **changes: Any) -> str:
        if rows is not None:
            write(tmp_path / "train.parquet", rows)
        with pytest.raises(UserError) as error:
            made(name, **{"path": tmp_path, **changes}).source(None)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "benchmark.path= is missing" in refused("mlvu", None, path=None)
    assert "no such folder" in refused("mlvu", None, path=str(tmp_path / "x"))
    assert "holds none of data/train*.parquet" in refused("lvbench", None)
    row = {"video_path": "a.mp4", "question": "Q", "options": ["x", "y"], "answer": "E", "question_type": "er"}
    assert "train.parquet row 1 has the answer 'E', which is none of 2 options" in refused("lvbench", [row])
    assert "benchmark.split=val: the tables of mlvu are of one split" in refused("mlvu", None, split="val")
    assert "row 1 has 1 options, expected 2 to 26" in refused("lvbench", [{**row, "options": ["x"], "answer": "A"}])
    nameless = {k: v for k, v in row.items() if k != "video_path"}
    assert "row 1 lacks video_path|key; it has question" in refused("lvbench", [nameless])


@pytest.mark.parametrize("name", ALL)
def test_every_published_table_has_one_contract(name: str) -> None:
    assert isinstance(made(name, None), PublishedTable)
    for parser in PARSERS:
        assert made(name, None, scoring="generate", parser=parser).protocol()["parser"] == parser
    stated = made(name, None, scoring="pmi").protocol()
    assert (stated["benchmark"], stated["scoring"], stated["parser"]) == (name, "pmi", "none")


def test_what_was_shown_with_somebody_elses_answers_is_not_known(tmp_path: Path) -> None:
    label = Label("score", "theirs", 1)
    _stated(label, made("videomme", None), tmp_path)
    assert json.loads((tmp_path / "protocol.json").read_text())["subtitles"] == "unknown"
    _stated(label, made("videomme", None, subtitles="subtitle"), tmp_path)
    assert json.loads((tmp_path / "protocol.json").read_text())["subtitles"] == "lines of the sampled frames"


@pytest.mark.parametrize("name", ["mlvu", "mvbench"])
def test_a_local_copy_is_named_by_its_folder_alone(tmp_path: Path, name: str) -> None:
    """No setting of the YAML is looked for where the command was started."""
    check_files(compose([f"benchmark={name}", f"benchmark.path={tmp_path}"]))
    with pytest.raises(UserError, match="benchmark.videos=.*none: no such file or folder"):
        check_files(compose([f"benchmark={name}", f"benchmark.path={tmp_path}", f"benchmark.videos={tmp_path}/none"]))
    (tmp_path / "subtitle").mkdir()
    said = f"benchmark.subtitles=subtitles: no such file or folder, here or in {tmp_path}; did you mean 'subtitle'?"
    with pytest.raises(UserError, match=re.escape(said)):
        check_files(compose([f"benchmark={name}", f"benchmark.path={tmp_path}", "benchmark.subtitles=subtitles"]))


def test_equal_options_are_asked_where_the_right_one_is_another(tmp_path: Path) -> None:
    row = {"video_path": "a.mp4", "question": "Q", "question_type": "er"}
    write(tmp_path / "train.parquet", [
        {**row, "options": ["x", "x", "y"], "answer": "C"}, {**row, "options": ["x", "x", "y"], "answer": "B"},
    ])  # fmt: skip
    videos(tmp_path / "videos" / "a.mp4")
    ((_, q),) = asked(one := made("lvbench", tmp_path))
    assert q.tries[0].gold == 2 and one.protocol()["right_option_twice"] == 1


@pytest.mark.parametrize(
    "held", ["red\nblue", "red\n\nblue", '["red", "blue"]', "['red', 'blue']", "red|blue", ["red", "blue", None]]
)
def test_options_in_one_cell(held: Any) -> None:
    assert [text for text in _table._of_columns({"options": held}, "none|options") if text] == ["red", "blue"]


def test_an_articles_a_is_no_letter_of_an_answer() -> None:
    assert _table.place_of("a dog", ["a cat", "a dog"]) == 1
    with pytest.raises(ValueError, match="none of 2 options"):
        _table.place_of("a cow", ["a cat", "a dog"])


def test_what_rows_say_goes_through_files_of_predictions_and_journals(tmp_path: Path) -> None:
    p = Prediction("u/1", "v", "T2E", 0, ("a", "b"), 1, 1, None, "m", about=(("duration_group", "15"), ("x", "y")))
    write_predictions(tmp_path / "p.jsonl", [p])
    assert read_predictions(tmp_path / "p.jsonl") == [p]
    Journal(tmp_path, "same").add("m", [Answer("v", (), [p])])
    kept = Journal(tmp_path, "same").get("m", "v")
    assert kept is not None and kept.predictions == [p]
    (tmp_path / "q.jsonl").write_text((tmp_path / "p.jsonl").read_text().replace('"15"', "15"))
    with pytest.raises(UserError, match="line 1: about is .*expected an object of texts"):
        read_predictions(tmp_path / "q.jsonl")
