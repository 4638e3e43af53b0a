"""fVLM's own shards (WebDataset), whatever of the original corpora they were made of.

    {key}.json with {key}.000.jpg, {key}.001.jpg, … (a frame a second, at most 64), {key}.jpg, or {key}.mp4, {key}.txt

The JSON holds one of: token_ids and loss_mask (pre-tokenised; needs ``tokenizer=``, a folder with the tokenizer.json of
SmolLM2); user and assistant (raw); caption (legacy); user, chosen_assistant and rejected_assistant (pairs). Beside it
``source`` and ``frame_count``; with 0 frames it is a text-only chat.

Which tokens are targets is the stage's affair here. A mask that is neither of all tokens nor of the answers would be
lost, and so would the end of a text that was cut: such rows are left out and named.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from hvlm.data.sample_fields import FieldError, as_list, as_text
from hvlm.data.samples import natural
from hvlm.data.shard_folder import split_of
from hvlm.data.tar import VIDEO_FIELDS
from hvlm.errors import UserError
from hvlm.io.pretrained import fetch
from hvlm.prepare.corpora import At, messages
from hvlm.prepare.formats import Malformed, Row, _tar
from hvlm.prompts import DESCRIBE

TITLE = "fVLM's shards"
FILES = (("*.tar",),)
COLUMNS = ()
ROLES = ("video", "caption", "question", "answer", "rejected", "conversations", "domain", "task", "split")
PROMPT = None
OPTIONS = ("tokenizer",)
SYSTEM = "You are a helpful AI assistant."  # what every published text begins with; it is the language's own system
# What is asked where a shard has no prompt, by the source that it names.
PROMPTS = {
    "openvid": "Write a brief caption for this video.",
    "webvid": "What would be the WebVid caption for this video?",
    "vript": "Provide a detailed narration of what happens in this video.",
    "sharegpt4video": "Describe what happens in this video in detail.",
}
START, END = "<|im_start|>", "<|im_end|>"


class Table:
    """A shard: {"key", "shown": {field: blob}, "said": {field: bytes}} of each sample."""

    def __init__(self, path: Path) -> None:
        self.path, self.about, self.columns = path, TITLE, ["key", "shown", "said"]

    def rows(self) -> Iterator[tuple[str, int, Row]]:
        for number, (key, shown, said) in enumerate(_tar.samples(self.path), start=1):
            row: Row = {"key": key, "shown": shown, "said": said}
            yield self.path.name, number, row if said else Malformed(f"{key}: neither .json nor .txt beside it")


def rows(row: Mapping[str, Any], at: At) -> Iterator[dict[str, Any]]:
    value = _said(row["said"])
    source = str(value.get("source") or "")
    prompt = at.prompt or PROMPTS.get(source.partition("/")[0], DESCRIBE)
    out: dict[str, Any] = {"video": _shown(row["shown"], value), "task": source or None, "domain": source or "fvlm"}
    out["split"] = split_of(at.file.name)
    if "chosen_assistant" in value:
        texts = {
            role: as_text(value.get(name), name)
            for role, name in (("answer", "chosen_assistant"), ("rejected", "rejected_assistant"))
        }
        yield out | texts | {"question": value.get("user") or prompt}
        return
    system, turns = "", list[tuple[str, str]]()
    if "token_ids" in value:
        system, turns = exchanges(value["token_ids"], value.get("loss_mask"), at)
    elif value.get("user") or value.get("assistant"):
        turns = [(value.get("user") or prompt, as_text(value.get("assistant"), "assistant"))]
    else:
        turns = [(prompt, as_text(value.get("caption"), "caption").strip())]
    if out["video"] is not None and not system and len(turns) == 1:  # for stages of captions and of questions
        asked, answered = turns[0]
        more = {"task": source} if source else {}
        yield out | {
            "caption": {"text": answered, "prompt": asked},
            "question": [{"question": asked, "answer": answered, **more}],
        }
        return
    said = messages(turns, "token_ids" if "token_ids" in value else "it")
    yield out | {"conversations": [{"role": "system", "content": system}, *said] if system else said}


def _said(members: Mapping[str, bytes]) -> dict[str, Any]:
    try:
        if "json" not in members:
            return {"caption": members["txt"].decode("utf-8-sig")}
        value = json.loads(members["json"].decode("utf-8-sig"))
        if isinstance(value, dict) and "txt" in members and not {"caption", "assistant", "token_ids"} & set(value):
            value["caption"] = members["txt"].decode("utf-8-sig")
    except (ValueError, RecursionError) as error:
        raise FieldError(f"not valid JSON in UTF-8 ({error})") from error
    if not isinstance(value, dict):
        raise FieldError("the JSON is no object")
    return value


def _shown(members: Mapping[str, Any], value: Mapping[str, Any]) -> Any:
    if value.get("frame_count") == 0:
        return None  # a chat; some of them carry a black frame
    for field in VIDEO_FIELDS:
        if field in members:
            return members[field]
    return [members[field] for field in sorted(members, key=natural)] or None


# ------------------------------------------------------------------------------------------------- token ids → texts


class _Turn(NamedTuple):
    role: str
    text: str
    first: int  # of the tokens of its text
    stop: int


def exchanges(ids: Any, mask: Any, at: At) -> tuple[str, list[tuple[str, str]]]:
    """(system message if it is not the usual one, [(question, answer)]) of a pre-tokenised text. Raises FieldError."""
    ids, mask = as_list(ids, "token_ids"), as_list(mask, "loss_mask")
    if len(ids) != len(mask) or not all(type(i) is int and i >= 0 for i in ids):
        raise FieldError(f"{len(ids)} token_ids, {len(mask)} of loss_mask: expected as many, and ids from 0")
    tokenizer = _tokenizer(at.settings.tokenizer)
    turns = _turns(ids, tokenizer)
    targets = [bool(m) for m in mask]
    answers = [any(targets[t.first : t.stop]) for t in turns if t.role == "assistant"]
    others = [any(targets[t.first : t.stop]) for t in turns if t.role != "assistant"]
    if not all(answers) or (any(others) and not all(others)):
        raise FieldError("loss_mask is neither of all tokens nor of the answers")
    system = "\n\n".join(t.text for t in turns if t.role == "system")
    said = [t for t in turns if t.role != "system"]
    if [t.role for t in said] != ["user", "assistant"] * (len(said) // 2) or not said:
        raise FieldError(f"token_ids: turns of {', '.join(t.role for t in turns)}; expected user, assistant, …")
    pairs = [(asked.text, answered.text) for asked, answered in zip(said[::2], said[1::2], strict=True)]
    return "" if system == SYSTEM else system, pairs


def _turns(ids: Sequence[int], tokenizer: Any) -> list[_Turn]:
    start, end = tokenizer.token_to_id(START), tokenizer.token_to_id(END)
    turns, place = [], 0
    while place < len(ids) and ids[place] == start:
        stop = next((i for i in range(place, len(ids)) if ids[i] == end), None)
        if stop is None:
            raise FieldError(f"token_ids: the text is cut after {len(ids)} tokens")
        role, line, text = tokenizer.decode(ids[place + 1 : stop], skip_special_tokens=False).partition("\n")
        head = next((i for i in range(place + 2, stop + 1) if "\n" in tokenizer.decode(ids[place + 1 : i])), stop)
        if not line:
            raise FieldError("token_ids: a turn without a role")
        turns.append(_Turn(role, text, head, stop))
        place = stop + 1
        while place < len(ids) and ids[place] not in (start, end) and not tokenizer.decode([ids[place]]).strip():
            place += 1
    if place < len(ids) and any(i != end for i in ids[place:]):  # it is filled up with the end token
        raise FieldError(f"token_ids: no {START} at place {place}; another tokenizer made these ids")
    return turns


@lru_cache(maxsize=2)
def _tokenizer(source: str | None) -> Any:
    if source is None:
        raise UserError(
            "tokenizer=: these shards are pre-tokenised; name the folder with the tokenizer.json that made the ids, "
            "that of SmolLM2-135M-Instruct for fVLM's own"
        )
    from tokenizers import Tokenizer

    path = Path(source).expanduser()
    path = (
        path
        if path.is_file()
        else fetch(source, key="tokenizer", files=["tokenizer.json"], packages={}) / "tokenizer.json"
    )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing more specific
        raise UserError(f"tokenizer={source}: {path} is no tokenizer ({error})") from error
    if missing := [token for token in (START, END) if tokenizer.token_to_id(token) is None]:
        raise UserError(f"tokenizer={source}: it has no {', '.join(missing)}; expected SmolLM2's")
    return tokenizer
