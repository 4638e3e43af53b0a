"""DuoAttention's pattern files, and which heads a pattern lets keep everything."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hvlm.errors import UserError
from hvlm.io.head_patterns import CONFIG, GATES, choose_heads, read_pattern, write_pattern

# As DuoAttention's training leaves them: numpy's text dump of the raw parameters, and the script's whole namespace.
PUBLISHED = (
    "9.960937500000000000e-01\t-1.403808593750000000e-03\t1.000000000000000000e+00\n"
    "2.373046875000000000e-01\t1.000000000000000000e+00\t0.000000000000000000e+00\n"
)
NAMESPACE = {"model_name": "some/model", "sink_size": 128, "recent_size": 256, "lr": 0.02, "reg_weight": 0.05}


def published(folder: Path) -> Path:
    folder.mkdir()
    (folder / GATES).write_text(PUBLISHED)
    (folder / CONFIG).write_text(json.dumps(NAMESPACE))
    return folder


def test_a_published_pattern_is_read_and_written_again_to_the_letter(tmp_path: Path) -> None:
    folder = published(tmp_path / "theirs")
    found = read_pattern(folder, 2, 3)
    assert found.gates.dtype == torch.float32 and (found.sink, found.recent) == (128, 256)
    expected = torch.tensor([[0.99609375, 0.0, 1.0], [0.2373046875, 1.0, 0.0]])
    assert torch.equal(found.gates, expected), "clipped to [0, 1]"
    assert torch.equal(read_pattern(folder / GATES, 2, 3).gates, expected), "the file itself may be named"
    raw = torch.from_numpy(np.loadtxt(folder / GATES))  # as DuoAttention's own loader reads it
    write_pattern(tmp_path / "ours", raw, 128, 256, {"lr": 0.02})
    assert (tmp_path / "ours" / GATES).read_text() == PUBLISHED
    assert json.loads((tmp_path / "ours" / CONFIG).read_text()) == {"sink_size": 128, "recent_size": 256, "lr": 0.02}
    assert read_pattern(tmp_path / "ours", 2, 3)[1:] == (128, 256)
    (folder / CONFIG).unlink()
    assert read_pattern(folder, 2, 3)[1:] == (None, None)


def test_the_highest_gates_keep_everything_and_ties_go_to_the_earlier_head() -> None:
    gates = torch.tensor([[0.5, 1.0, 1.0], [1.0, 1.0, 0.2]])
    for share, heads, ties in (
        (0.5, [[0, 1, 1], [1, 0, 0]], 1),
        (1 / 3, [[0, 1, 1], [0, 0, 0]], 2),
        (2 / 3, [[0, 1, 1], [1, 1, 0]], 0),
        (0.0, [[0, 0, 0], [0, 0, 0]], 0),
        (1.0, [[1, 1, 1], [1, 1, 1]], 0),
        (0.75, [[1, 1, 1], [1, 1, 0]], 0),  # 4.5 heads: a half is rounded up
    ):
        found = choose_heads(gates, share)
        assert (found.heads.int().tolist(), found.ties) == (heads, ties), share
    many = torch.linspace(0, 1, 90).view(30, 3)
    assert [int(choose_heads(many, s).heads.sum()) for s in (0.5, 0.25, 0.125, 0.1)] == [45, 23, 11, 9]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: (f / GATES).unlink(), "no such pattern; expected a folder with full_attention_heads.tsv"),
        (lambda f: (f / GATES).write_text("1\t2\n"), "1 layers x 2 KV heads, but the language model has 2 layers x 3"),
        (lambda f: (f / GATES).write_text("1\t2\t3\n1\t2\n"), "2 layers x 2 or 3 KV heads, but"),
        (lambda f: (f / GATES).write_text(""), "0 layers x no KV heads"),
        (lambda f: (f / GATES).write_text("1\t2\tx\n1\t2\t3\n"), "line 1: could not convert string to float: 'x'"),
        (lambda f: (f / GATES).write_text("1\t2\t3\n1\tnan\t3\n"), "line 2: a gate that is not finite"),
        (lambda f: (f / CONFIG).write_text("{"), "config.json cannot be read: Expecting property"),
        (lambda f: (f / CONFIG).write_text("[]"), "config.json holds no mapping"),
        (lambda f: (f / CONFIG).write_text('{"recent_size": 0}'), "recent_size=0; expected a whole number of 1"),
        (lambda f: (f / CONFIG).write_text("[" * 100_000), "config.json cannot be read: maximum recursion depth"),
        (lambda f: (f / CONFIG).write_text('{"recent_size": 1' + "0" * 50 + "}"), "expected a whole number of 1"),
        (lambda f: (f / GATES).write_text("0\t" * 10**6), "has 2000000 bytes, but the gates of 2 layers x 3 KV heads"),
    ],
)
def test_what_is_no_pattern_of_this_model_is_one_line(tmp_path: Path, change, said: str) -> None:
    folder = published(tmp_path / "p")
    change(folder)
    with pytest.raises(UserError) as error:
        read_pattern(folder, 2, 3)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("path", ["~nobody_of_this_name/gates", "a" * 5000, "a\0b"])
def test_a_path_that_cannot_be_is_one_line(path: str) -> None:
    with pytest.raises(UserError, match="no such pattern") as error:
        read_pattern(path, 2, 3)
    assert len(str(error.value)) < 600
