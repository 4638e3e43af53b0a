"""Fuzz: tables of every kind and files of public corpora through ``hvlm prepare``, planned (``dry_run``) and made."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import zipfile
from pathlib import Path
from typing import Any

from _fuzz import folder, target
from _fuzz_files import broken, csv_files, json_files, line_files
from _fuzz_values import changed, dumped
from _tables import distinct, still
from hypothesis import strategies as st
from test_fuzz_questions import as_parquet
from test_fuzz_shards import archives

from hvlm.prepare.command import prepare

TURNS = [{"from": "human", "value": "<video>\nwhat?"}, {"from": "gpt", "value": "a dog"}]
ROWS: list[dict[str, Any]] = [
    {
        "id": str(i),
        "video": f"v{i}.mp4",
        "question": f"what {i}?",
        "answer": "B" if i else "A",
        "options": ["red", "blue"],
        "caption": f"a dog {i}",
        "split": "train",
        "source": f"s{i}",
        "start": 0,
        "end": "0:01",
        "fps": 2,
        "domain": "d",
    }
    for i in range(3)
]
SHORT: list[dict[str, Any]] = [
    {"video": f"v{i}.mp4", "caption": f"a dog {i}", "fps": "25", "start": "1", "end": "2"} for i in range(3)
]
CHOICES = [{"image": "p.jpg", "question": "q", "A": "x", "B": "y", "answer": i, "rejected": "no"} for i in range(2)]
LLAVA = [{"id": i, "video": f"v{i}.mp4", "conversations": TURNS} for i in range(2)]
MESSAGES = [
    {
        "messages": [
            {"role": "user", "content": [{"type": "video", "video": "v0.mp4"}, {"type": "text", "text": "q"}]},
            {"role": "assistant", "content": "a"},
        ]
    }
]
INSIDE = [{"video": {"bytes": b"\xff\xd8\xff pixels", "path": f"v{i}.jpg"}, "caption": f"a dog {i}"} for i in range(2)]
BY_NAME = {"a": {"video": "v0.mp4", "caption": "x"}, "b": {"video": "v1.mp4", "caption": "y"}}


@functools.cache
def _media() -> dict[str, bytes]:
    return {**{f"v{i}.mp4": distinct(i) for i in range(3)}, "p.jpg": still(0)}


def _archive(name: str = "v0.mp4") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(name, b"pixels" * 100)
    return out.getvalue()


def _arrow(rows: Any) -> bytes:
    import pyarrow

    out = io.BytesIO()
    try:
        table = pyarrow.Table.from_pylist([row if isinstance(row, dict) else {"a": row} for row in rows])
        with pyarrow.ipc.new_stream(out, table.schema) as writer:
            writer.write_table(table)
    except (pyarrow.ArrowException, TypeError, ValueError, AttributeError, OverflowError, UnicodeError):
        return b"\xff\xff\xff\xff" + repr(rows)[:40].encode("utf-8", "replace")
    return out.getvalue()


def _of(name: str, files: st.SearchStrategy[bytes]) -> st.SearchStrategy[list[Any]]:
    """[[file, bytes]]"""
    return files.map(lambda data: [[name, data]])


def _parquet(rows: Any) -> st.SearchStrategy[bytes]:
    return st.one_of(changed(rows, 2).map(as_parquet), broken(as_parquet(rows)))


tables = st.one_of(
    _of("t.csv", csv_files(ROWS)),
    _of("t.csv", csv_files(SHORT, ";")),
    _of("t.csv", csv_files(CHOICES)),
    _of("t.tsv", csv_files(SHORT, "\t")),
    _of("t.jsonl", line_files(ROWS)),
    _of("t.jsonl", line_files(MESSAGES)),
    _of("t.json", json_files(ROWS)),
    _of("t.json", json_files(LLAVA)),
    _of("t.json", json_files({"data": MESSAGES})),
    _of("t.json", json_files(BY_NAME)),
    _of("t.json", json_files(CHOICES)),
    _of("v0.json", json_files(ROWS[0])),
    _of("v0.json", json_files(ROWS)),
    _of("v0.txt", st.one_of(st.binary(max_size=40), st.just(b"a dog"))),
    _of("t.parquet", _parquet(INSIDE)),
    _of("t.parquet", _parquet(ROWS)),
    _of("t.arrow", broken(_arrow(INSIDE))),
    _of("t.arrow", changed(SHORT, 2).map(_arrow)),
    st.tuples(
        json_files({"_data_files": [{"filename": "data.arrow"}], "_split": "train"}), st.just(_arrow(INSIDE))
    ).map(lambda two: [["state.json", two[0]], ["data.arrow", two[1]]]),
    st.tuples(json_files({"splits": ["train"]}), json_files({"_data_files": [{"filename": "data.arrow"}]})).map(
        lambda two: [["dataset_dict.json", two[0]], ["train/state.json", two[1]], ["train/data.arrow", _arrow(INSIDE)]]
    ),
)
words = st.lists(
    st.sampled_from(
        (
            "video=video",
            "caption=caption",
            "answers=index0",
            "answers=letter",
            "lettered=true",
            "split=none",
            "id=none",
            "split=[0.5,0.25,0.25]",
            "max_bad=1",
            "max_bad=1",
            "seed=3",
            "prompt=say",
            "start=none",
            "options=none",
            "fps=fps",
        )
    ),
    max_size=3,
    unique_by=lambda word: word.partition("=")[0],
)


def written(place: Path, files: list[Any], media: bool = True) -> Path:
    for name, data in [*(_media().items() if media else ()), *files]:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    return place


def prepared(*given: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        prepare(list(given))


@target(ci=60, files=tables, given_words=words, whole=st.booleans())
def test_prepare(files: list[Any], given_words: list[str], whole: bool) -> None:
    with folder() as place:
        written(place, files)
        src = place if whole or len(files) > 1 else place / files[0][0]
        prepared(str(src), "dry_run=true", *given_words)


@target(ci=4, files=tables, given_words=words)
def test_prepare_shards(files: list[Any], given_words: list[str]) -> None:
    with folder() as place:
        written(place / "src", files)
        for _ in range(2):  # the second time it is finished, or says why not
            prepared(
                str(place / "src"),
                f"out={place / 'out'}",
                "workers=1",
                "max_bad=1",
                *(w for w in given_words if "bad" not in w),
            )
        for path in ("prepare.json", "manifest.json"):
            json.loads((place / "out" / path).read_text(encoding="utf-8"))


SAID = {"source": "webvid", "frame_count": 2, "caption": "a dog"}
FVLM = {"token_ids": [1, 2, 3], "loss_mask": [0, 1, 1], "source": "cauldron/vqav2"}
CORPORA: dict[str, list[st.SearchStrategy[list[Any]]]] = {
    "activitynet": [
        _of("train.json", json_files({"v0": {"duration": 2.0, "timestamps": [[0, 1]], "sentences": ["A dog ."]}}))
    ],
    "cauldron": [
        _of(
            "t.parquet",
            _parquet(
                [
                    {
                        "images": [{"bytes": b"\xff\xd8\xff x", "path": None}],
                        "texts": [{"user": "q", "assistant": "a", "source": "s"}],
                    }
                ]
            ),
        )
    ],
    "finevideo": [
        _of(
            "train-0.parquet",
            changed(
                {
                    "content_metadata": {"description": "d", "qAndA": [{"question": "q", "answer": "a"}]},
                    "original_video_filename": "a.mp4",
                },
                2,
            ).map(lambda v: as_parquet([{"mp4": b"\0\0\0\x18ftypmp42", "json": dumped(v).decode("utf-8", "replace")}])),
        ),
        _of(
            "train-0.parquet",
            changed([{"mp4": b"\0\0\0\x18ftypmp42", "json": {"content_metadata": {"description": "d"}}}], 2).map(
                as_parquet
            ),
        ),
    ],
    "fvlm": [_of("train-0.tar", archives())],
    "llava_video": [_of("a_cap_processed.json", json_files(LLAVA))],
    "openvid": [_of("OpenVid-1M.csv", csv_files([{"video": "v0.mp4", "caption": "c", "fps": "25"}]))],
    "rlaif_v": [
        _of(
            "t.parquet",
            _parquet(
                [
                    {
                        "image": {"bytes": b"\xff\xd8\xff x", "path": "p"},
                        "question": "q",
                        "chosen": "a",
                        "rejected": "b",
                        "idx": "1",
                        "origin_dataset": "o",
                    }
                ]
            ),
        )
    ],
    "sharegpt4video": [
        _of(
            "sharegpt4video_40k.jsonl",
            line_files(
                [
                    {
                        "video_id": "a",
                        "video_path": "panda/v0.mp4",
                        "captions": [{"idx": "-1", "content": "c"}],
                        "zip_folder": "z.zip",
                    }
                ]
            ),
        )
    ],
    "smoltalk": [
        _of(
            "train-0.parquet",
            _parquet(
                [{"messages": [{"content": "q", "role": "user"}, {"content": "a", "role": "assistant"}], "source": "s"}]
            ),
        )
    ],
    "vript": [
        _of("x_captions.jsonl", line_files([{"clip_id": "v0-Scene-001", "caption": {"content": "c"}}])),
        _of(
            "v_caption.json",
            json_files({"meta": {}, "data": {"v0-Scene-001": {"caption": {"content": "c"}, "video_id": "v"}}}),
        ),
    ],
    "webvid": [_of("results_2M_val.csv", csv_files([{"videoid": "v0", "name": "a dog", "page_dir": "x"}]))],
}
zips = st.one_of(
    st.none(), broken(_archive()), st.sampled_from(("../v0.mp4", "/v0.mp4", "v\0.mp4", "v0.mp4")).map(_archive)
)


@target(
    ci=40,
    name=st.sampled_from(sorted(CORPORA))
    .flatmap(lambda name: st.tuples(st.just(name), st.one_of(*CORPORA[name])))
    .map(list),
    packed=zips,
    moments=st.booleans(),
)
def test_corpora(name: list[Any], packed: bytes | None, moments: bool) -> None:
    corpus, files = name
    with folder() as place:
        written(place, files, media=packed is None)
        if packed is not None:
            (place / "z.zip").write_bytes(packed)
        more = ["moments=true"] if moments and corpus == "activitynet" else []
        prepared(corpus, f"src={place}", "dry_run=true", "max_bad=1", *more)
