"""Tables and folders of videos → shards: every format, which column is taken for what, what is refused before work."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from _small import SMALL
from _tables import dataset, distinct, left_out, made, read_all, together, videos, write_csv, write_json

from hvlm.data.views import Questions
from hvlm.prepare.formats import formats
from hvlm.training import chain

ROWS = [{"video": f"v{i}.mp4", "question": f"what {i}?", "answer": f"thing {i}"} for i in range(6)]


def texts_of(sample: dict[str, Any]) -> list[tuple[str, str]]:
    return [(q["question"], q["answer"]) for q in sample.get("questions", ())]


# ------------------------------------------------------------------------------------------------------- formats


def as_csv(folder: Path) -> Path:
    return write_csv(folder / "table.csv", ROWS)


def as_tsv(folder: Path) -> Path:
    lines = ["\t".join(ROWS[0]), *("\t".join(row.values()) for row in ROWS)]
    (folder / "table.tsv").write_text("\n".join(lines))
    return folder / "table.tsv"


def as_jsonl(folder: Path) -> Path:
    (folder / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder / "table.jsonl"


def as_llava(folder: Path) -> Path:
    turns = [
        [{"from": "human", "value": f"<video>\n{r['question']}"}, {"from": "gpt", "value": r["answer"]}] for r in ROWS
    ]
    rows = [
        {"id": i, "video": r["video"], "conversations": t} for i, (r, t) in enumerate(zip(ROWS, turns, strict=True))
    ]
    return write_json(folder / "table.json", rows)


def as_messages(folder: Path) -> Path:
    rows = [
        {"messages": [
            {"role": "user", "content": [
                {"type": "video", "video": r["video"]}, {"type": "text", "text": r["question"]}]},
            {"role": "assistant", "content": r["answer"]},
        ]} for r in ROWS
    ]  # fmt: skip
    return write_json(folder / "table.json", {"data": rows})


def as_sharegpt(folder: Path) -> Path:
    (folder / "table.jsonl").write_text(
        "".join(
            json.dumps({"file": r["video"], "conversations": [
                {"from": "human", "value": r["question"]}, {"from": "gpt", "value": r["answer"]}]}) + "\n"
            for r in ROWS
        )
    )  # fmt: skip
    return folder / "table.jsonl"


def as_parquet(folder: Path) -> Path:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist(ROWS), folder / "table.parquet", row_group_size=4)
    return folder


def as_parquet_with_bytes(folder: Path) -> Path:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [r | {"video": {"bytes": (folder / r["video"]).read_bytes(), "path": r["video"]}} for r in ROWS]
    (folder / "hub" / "data").mkdir(parents=True)
    parquet.write_table(
        pa.Table.from_pylist(rows[:4]), folder / "hub/data/train-00000-of-00002.parquet", row_group_size=3
    )
    parquet.write_table(pa.Table.from_pylist(rows[4:]), folder / "hub/data/train-00001-of-00002.parquet")
    return folder / "hub"


def as_datasets(folder: Path) -> Path:
    """What ``save_to_disk`` leaves, of two splits."""
    pa = pytest.importorskip("pyarrow")
    place = folder / "saved"
    for split, rows in (("train", ROWS[:4]), ("test", ROWS[4:])):
        (place / split).mkdir(parents=True)
        rows = [r | {"video": {"bytes": (folder / r["video"]).read_bytes(), "path": r["video"]}} for r in rows]
        table = pa.Table.from_pylist(rows)
        with pa.OSFile(str(place / split / "data-00000-of-00001.arrow"), "wb") as file:
            with pa.ipc.new_stream(file, table.schema) as writer:
                writer.write_table(table, max_chunksize=3)
        write_json(place / split / "state.json", {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]})
    write_json(place / "dataset_dict.json", {"splits": ["train", "test"]})
    return place


def as_beside(folder: Path) -> Path:
    for row in ROWS:
        write_json(folder / row["video"].replace(".mp4", ".json"), {k: row[k] for k in ("question", "answer")})
    return folder


WRITERS = [
    as_csv, as_tsv, as_jsonl, as_llava, as_messages, as_sharegpt, as_parquet, as_parquet_with_bytes, as_datasets,
    as_beside,
]  # fmt: skip


@pytest.mark.fault(108)
@pytest.mark.parametrize("write", WRITERS, ids=lambda w: w.__name__[3:])
def test_every_format_gives_every_row_with_its_video_and_trains(tmp_path: Path, write: Any) -> None:
    videos(tmp_path / "in", 6)
    splits = made(write(tmp_path / "in"), tmp_path / "out")
    samples = together(splits)
    assert {key: texts_of(sample) for key, sample in samples.items()} == {
        f"v{i}": [(f"what {i}?", f"thing {i}")] for i in range(6)
    }
    assert left_out(tmp_path / "out") == []
    if write is as_datasets:
        assert set(splits["test"]) == {"v4", "v5"} and set(splits["train"]) == {"v0", "v1", "v2", "v3"}
    clips = dataset(tmp_path / "out").manifest().split("train")
    for i, key in enumerate(clips.keys):
        assert clips.read(i)["mp4"] == distinct(int(key[1:])), "the bytes as they are"
    assert len(read_all(tmp_path / "out", Questions())) == 6


def test_formats_keep_their_contract() -> None:
    found = formats()
    assert set(found) >= {"beside", "datasets_folder", "delimited", "json_lines", "json_list", "parquet"}
    endings = [ending for table in found.values() for ending in table.endings]
    assert len(set(endings)) == len(endings) and all(e.startswith(".") and e == e.lower() for e in endings)
    for name, table in found.items():
        assert table.about and callable(table.rows) and not table.takes(Path("/nonexistent")), name


def test_the_process_that_decodes_does_without_torch() -> None:
    """It is started for every worker, and torch takes seconds."""
    code = "import hvlm.prepare.probe, sys; print(*{'torch', 'lightning', 'webdataset', 'rich'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


@pytest.mark.parametrize("options", [True, False])
def test_what_it_says_comes_next_does_come(
    tmp_path: Path, options: bool, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The printed command, pasted with fewer steps, on data without text-only chats and with a domain of their own."""
    videos(tmp_path / "in", 6)
    rows = [{"video": f"v{i}.mp4", "question": "what?", "answer": "a", "domain": "cooking"} for i in range(6)]
    chosen = {"options": "a|b"} if options else {}
    write_csv(tmp_path / "in" / "t.csv", [row | chosen for row in rows])
    made(tmp_path / "in" / "t.csv", tmp_path / "out", "split=[0.5,0,0.5]")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next: ")]
    words = shlex.split(line)[1:]
    assert words[:2] == ["hvlm", "train"] and f"benchmark={'choices' if options else 'open'}" in words
    monkeypatch.chdir(tmp_path)
    small = [word for word in SMALL if not word.startswith("dataset.")]
    fewer = ["stage.steps=1", "stage.batch_size=2", "dataset.num_frames=2", "callback.media=0"]
    outcome = chain.run([*words[2:], *small, *fewer])
    assert outcome.stages["sft"]["steps"] == 1 and outcome.records
