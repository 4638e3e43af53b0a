"""Fuzz: files of questions and captions of one's own, published tables of benchmarks, subtitles, VNBench."""

from __future__ import annotations

import functools
import io
from pathlib import Path
from typing import Any

import yaml
from _fuzz import folder, target
from _fuzz_files import broken, csv_files, json_files, line_files
from _fuzz_values import changed, texts
from _tiny import CONF
from hypothesis import strategies as st

from hvlm.benchmark._subtitles import read_subtitles, shown_at
from hvlm.benchmark._vnbench_annotations import read_annotations
from hvlm.benchmark.captions import Captions
from hvlm.benchmark.choices import Choices
from hvlm.benchmark.mvbench import MVBench
from hvlm.benchmark.open import Open
from hvlm.benchmark.published import Published
from hvlm.benchmark.videomme_v2 import VideoMMEv2
from hvlm.benchmark.vnbench import VNBench
from hvlm.data import samples
from hvlm.data.quarantine import SampleError
from hvlm.evaluation.predictions import read_predictions
from hvlm.evaluation.scores import Likelihood

ROWS: list[dict[str, Any]] = [
    {
        "id": "1",
        "video": "a.mp4",
        "question": "what?",
        "options": ["red", "blue"],
        "answer": "B",
        "task": "t",
        "start": 0.5,
        "end": 2,
        "fps": 2,
    },
    {
        "id": "2",
        "video": "b",
        "question": "who?",
        "options": {"A": "he", "B": "she"},
        "gold": 1,
        "answers": ["she", "her"],
    },
    {"id": "3", "video": "c.jpg", "question": "why?", "answer": "so", "captions": ["a dog", "a cat"], "prompt": "say"},
]
TABLE = [
    {
        "video": "a.mp4",
        "question": "what?",
        "options": "red|blue",
        "answer": "B",
        "start": "0.5",
        "end": "2",
        "captions": "x|y",
    },
    {
        "video": "b",
        "question": "who?",
        "options": '["he", "she"]',
        "answer": "she",
        "start": "",
        "end": "",
        "captions": "a",
    },
]
COLUMNS = [
    {"video": "a", "question": "q", "A": "x", "B": "y", "option_1": "x", "option_2": "y", "answer": "1", "caption": "c"}
]


def _named(ending: str, files: st.SearchStrategy[bytes]) -> st.SearchStrategy[list[Any]]:
    return files.map(lambda data: [f"q{ending}", data])


own_files = st.one_of(
    _named(".json", json_files(ROWS)),
    _named(".json", json_files({"questions": ROWS})),
    _named(".jsonl", line_files(ROWS)),
    _named(".csv", csv_files(TABLE)),
    _named(".csv", csv_files(TABLE, ";")),
    _named(".tsv", csv_files(TABLE, "\t")),
    _named(".csv", csv_files(COLUMNS)),
)


def with_videos(place: Path) -> Path:
    for name in ("a.mp4", "b.mp4", "c.jpg"):
        (place / name).write_bytes(b"opened by the decoder alone")
    return place


def asked(benchmark: Any) -> None:
    """Everything that is done before a model answers, and with its answers."""
    benchmark.check(None)
    source = benchmark.source(None)
    predictions = []
    for index in range(len(source)):
        source.sources(index)
        try:
            sample = samples.parse(source.read(index), source.keys[index], "general", source.uid(index))
            questions = benchmark.questions(sample, benchmark.writes)
        except (SampleError, ValueError, LookupError, TypeError):  # named and counted when it is asked about
            continue
        for question in questions:
            if benchmark.writes:
                predictions += benchmark.read(question, {one.prompt: "B. blue" for one in question.tries}, "m")
            else:
                known = {(t.prompt, a): Likelihood(-1.0, 2) for t in question.tries for a in t.answers}
                predictions += benchmark.predict(question, known, "m")
    if predictions and not isinstance(benchmark, Captions):  # these take seconds of counting words
        benchmark.score(predictions)


@target(ci=60, file=own_files, kind=st.integers(0, 4))
def test_own_questions(file: list[Any], kind: int) -> None:
    name, data = file
    with folder() as place:
        (place / name).write_bytes(data)
        with_videos(place)
        where = {"questions": str(place / name), "videos": str(place)}
        made = (
            Choices(**where),
            Choices(scoring="generate", **where),
            Open(**where),
            Captions(**where),
            Choices(scoring="pmi", **where),
        )
        asked(made[kind])


# ---------------------------------------------------------------------------------------------------- published tables

SHARED: dict[str, Any] = {"video": "a.mp4", "question": "What is cut?", "answer": "B", "options": ["bread", "wood"]}
PUBLISHED: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "mlvu": (
        "json/1_plotQA.json",
        [{**SHARED, "candidates": ["bread", "wood"], "question_type": "plotQA", "answer": "wood"}],
    ),
    "longvideobench": (
        "lvb_val.json",
        [
            {
                "video_path": "a.mp4",
                "question": "Who?",
                "question_category": "T2E",
                "duration_group": 15,
                "candidates": ["a cat", "a dog"],
                "correct_choice": 1,
                "id": "x",
            }
        ],
    ),
    "egoschema": (
        "q.json",
        [{"q_uid": "a", "question": "Q", "option": ["a", "b", "c"], "answer": "1", "video_idx": "a"}],
    ),
    "nextqa": (
        "MC/test.csv",
        [{"video": "a", "question": "q", "a0": "x", "a1": "y", "a2": "z", "answer": "1", "qid": "0", "type": "CH"}],
    ),
    "mvbench": (
        "json/action_sequence.json",
        [{"video": "a.mp4", "question": "q", "candidates": ["x", "y"], "answer": "y", "start": 1.5, "end": 3}],
    ),
    "videomme": (
        "videomme/test.parquet",
        [
            {
                "videoID": "a",
                "question": "q",
                "options": ["A. x", "B. y"],
                "answer": "B",
                "task_type": "t",
                "duration": "short",
                "question_id": "001-1",
            }
        ],
    ),
    "videomme_v2": (
        "test.parquet",
        [
            {
                "video_id": "a",
                "question_id": "a-1",
                "group_type": "logic",
                "question": "q",
                "group_structure": "[1,[2,3],4]",
                "options": ["A. x", "B. y"],
                "answer": "B",
            }
        ],
    ),
    "scienceqa": (
        "data/test.parquet",
        [
            {
                "image": {"bytes": b"x", "path": "p"},
                "question": "q",
                "choices": ["x", "y"],
                "answer": 1,
                "hint": "h",
                "subject": "s",
                "grade": "g",
            }
        ],
    ),
    "lvbench": (
        "video_info.meta.jsonl",
        [{"video": "a.mp4", "question": "q\n(A) x\n(B) y", "answer": "A", "uid": 1, "question_type": ["t"]}],
    ),
    "tempcompass": (
        "multi-choice/test.parquet",
        [{"video_id": "a", "question": "q\nA. x\nB. y", "answer": "A. x", "dim": "d"}],
    ),
    "timescope": (
        "test.parquet",
        [
            {
                "video": "a.mp4",
                "question": "q",
                "options": "['x', 'y']",
                "answer": "A",
                "task_name": "t",
                "context_length": 60,
            }
        ],
    ),
}
KINDS = {kind.__name__: kind for kind in (MVBench, Published, VideoMMEv2)}


@functools.cache
def _settings(name: str) -> dict[str, Any]:
    return yaml.safe_load((CONF / "benchmark" / f"{name}.yaml").read_text(encoding="utf-8"))


def as_parquet(rows: Any) -> bytes:
    """A Parquet file of rows that are objects; bytes that are none where their columns have no type."""
    import pyarrow
    from pyarrow import parquet

    out = io.BytesIO()
    try:
        rows = [row if isinstance(row, dict) else {"a": row} for row in rows]
        parquet.write_table(pyarrow.Table.from_pylist(rows), out)
    except (pyarrow.ArrowException, TypeError, ValueError, AttributeError, OverflowError, UnicodeError):
        return b"PAR1" + repr(rows)[:60].encode("utf-8", "replace")
    return out.getvalue()


def _table_files(name: str) -> st.SearchStrategy[list[Any]]:
    path, rows = PUBLISHED[name]
    two = [rows[0], rows[0]]
    ways = [("t.json", json_files(rows)), ("t.jsonl", line_files(two)), ("t.csv", csv_files(rows)), (path, None)]
    found = []
    for file, files in ways:
        if file.endswith(".parquet"):
            files = st.one_of(changed(two, 2).map(as_parquet), broken(as_parquet(two)))
        elif files is None:
            files = (
                csv_files(rows) if file.endswith(".csv") else line_files(two) if "jsonl" in file else json_files(rows)
            )
        found.append(files.map(lambda data, file=file: [name, file, data]))
    return st.one_of(found)


published_files = st.sampled_from(sorted(PUBLISHED)).flatmap(_table_files)
SRT = b"1\n00:00:01,000 --> 00:00:04,500\nHello <i>you</i> &amp; me\n\n2\n00:00:05.5 --> 00:00:06,000\n{\\an8}so\n"


@target(ci=80, file=published_files, said=st.one_of(st.none(), broken(SRT), st.text(max_size=60).map(str.encode)))
def test_published_tables(file: list[Any], said: bytes | None) -> None:
    name, path, data = file
    with folder() as place:
        table = place / path
        table.parent.mkdir(parents=True, exist_ok=True)
        table.write_bytes(data)
        settings = {**_settings(name), "path": str(table if path.startswith("t.") else place), "videos": str(place)}
        if said is not None:
            (place / "a.srt").write_bytes(said)
            settings["subtitles"] = str(place)
        with_videos(place)
        asked(KINDS[settings.pop("_target_").rpartition(".")[2]](**settings))


@target(
    ci=20,
    data=st.one_of(
        broken(SRT),
        texts.map(lambda t: f"{t}\n00:00:01,000 --> {t}00:00:02,000\n{t}".encode("utf-8", "surrogatepass")),
        st.integers(0, 6000).map(lambda n: b"1" * n + b":00:00,0 --> 00:00:02,000\na"),
    ),
)
def test_subtitles(data: bytes) -> None:
    with folder() as place:
        (place / "a.srt").write_bytes(data)
        shown_at(read_subtitles(place / "a.srt"), [0.5, 1.5])


# ------------------------------------------------------------------------------------------------------------- vnbench

NAMES = ["Alice", "Bob", "Mary", "Kate"]
VNBENCH = [
    {
        "video": "./VNBench/a.mp4",
        "question": "What is the word?",
        "options": NAMES,
        "gt": "Bob",
        "gt_option": "B",
        "needle_time": [12.0],
        "length": 37.5,
        "type": "ret_edit1",
        "try": i,
    }
    for i in range(2)
]
BY_PATH = [
    {
        "video_path": "./VNBench/a.mp4",
        "prompt": "Q\nA. a\nB. b\nC. c\nD. d",
        "pred": "B",
        "gt": "B",
        "task_type": "ret_edit1",
        "try": i,
    }
    for i in range(2)
]
BY_ID = [
    {"question_id": f"a_ret_edit1_{i}", "pred": "B", "gt": i, "type": "ret_edit1", "try": i, "prompt": "Q"}
    for i in (0, 1)
]


@target(ci=40, data=json_files(VNBENCH), scoring=st.sampled_from(("generate", "loglik_letter")))
def test_vnbench(data: bytes, scoring: str) -> None:
    with folder() as place:
        (place / "q.json").write_bytes(data)
        with_videos(place)
        for video in read_annotations(place / "q.json"):
            assert video.depth is None or 0 <= video.depth <= 1
        asked(VNBench(annotations=str(place / "q.json"), scoring=scoring))


OURS = [
    {
        "question_id": "q",
        "key": "k",
        "task": "t",
        "try": 0,
        "question": "?",
        "options": ["red", "blue"],
        "gold": 0,
        "pred": "B",
        "scores": [0.5, None],
        "variant": "v",
        "text": "B",
        "problem": "unread",
        "depth": 0.5,
        "length": 9,
        "about": {"a": "b"},
    },
    {"question_id": "o", "key": "k", "task": "t", "try": 0, "answer": ["a dog", "dog"], "text": "a dog"},
]


@target(
    ci=60,
    data=st.one_of(*map(line_files, (BY_PATH, BY_ID, OURS, OURS))),
    parser=st.sampled_from(("official", "first", "strict")),
)
def test_predictions(data: bytes, parser: str) -> None:
    with folder() as place:
        path = place / "p.jsonl"
        path.write_bytes(data)
        benchmark = VNBench(parser=parser)
        found = benchmark.predictions(path, "m")
        if found is not None:
            benchmark.score(found)
            return
        found = read_predictions(path)
        choices = [p for p in found if p.options]
        if choices:
            Choices().score(choices)
        if len(choices) < len(found):
            Open().score([p for p in found if not p.options])
