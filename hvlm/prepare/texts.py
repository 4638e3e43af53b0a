"""A row → what it says of its video: captions, questions and conversations as the JSON of a sample holds them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from hvlm.prepare.columns import Taken
from hvlm.prepare.conversations import MARKER, messages, read
from hvlm.prepare.options import Answers, options_of, right
from hvlm.prepare.problems import Problem
from hvlm.prepare.settings import Settings


@dataclass
class Said:
    """media: files that are named inside a conversation. marked: whether a text says that something is shown."""

    captions: list[dict[str, Any]] = field(default_factory=list)
    questions: list[dict[str, Any]] = field(default_factory=list)
    conversations: list[Any] = field(default_factory=list)  # turns, or an object with them, an id and a task
    media: list[str] = field(default_factory=list)
    marked: bool = False


def said(row: dict[str, Any], taken: Taken, how: Answers | None, settings: Settings) -> Said:
    """The texts of a row, not yet checked word for word.

    how: in which way the answers of this table name an option, where there are options.
    Raises Problem.
    """
    out = Said()
    task, name = taken.one("task", row), taken.one("id", row)
    more = ({} if task is None else {"task": str(task)}) | ({} if name is None else {"id": str(name)})
    if "caption" in taken.columns and (caption := taken.one("caption", row)) is not None:
        for item in caption if isinstance(caption, list) else [caption]:
            out.captions.append(_caption(item, settings))
    if "conversations" in taken.columns and (value := taken.one("conversations", row)) is not None:
        _conversation(value, out, more)
    if "question" in taken.columns:
        _questions(row, taken, how, settings, out, more)
    if not (out.captions or out.questions or out.conversations):
        names = [c for role in ("caption", "question", "conversations") for c in taken.columns.get(role, ())]
        raise Problem("empty text", f"nothing in {', '.join(names)}")
    return out


def _caption(item: Any, settings: Settings) -> dict[str, Any]:
    value = dict(item) if isinstance(item, dict) else {"text": item}
    if isinstance(value.get("text"), str):
        value["text"] = MARKER.sub("", value["text"]).strip()
    if not value.get("text"):
        raise Problem("empty text", "a caption is empty")
    return value | ({"prompt": settings.prompt} if settings.prompt and not value.get("prompt") else {})


def _conversation(value: Any, out: Said, more: dict[str, Any]) -> None:
    one, out.media, out.marked = read(value)
    if one.turns or one.system:
        said = messages(one)
        out.conversations.append({"messages": said, **more} if more else said)
    else:
        out.questions.append({"question": one.prompt, "answer": one.answer, **more})


def _questions(
    row: dict[str, Any], taken: Taken, how: Answers | None, settings: Settings, out: Said, more: dict[str, Any]
) -> None:
    question, answer = taken.one("question", row), taken.one("answer", row)
    if isinstance(question, list):
        if not all(isinstance(item, dict) for item in question):
            raise Problem("empty text", "expected a question, or a list of objects {question, answer}")
        out.questions += question
        return
    if question is None and answer is None and (out.captions or out.conversations or out.questions):
        return
    for what, value in (("question", question), ("answer", answer)):
        if value is None:
            raise Problem("empty text", f"the {what} is empty")
    if isinstance(answer, list) and answer and isinstance(answer[-1], dict):  # chosen as messages
        answer = _last(answer)
    if isinstance(answer, list):
        if len(answer) != 1:
            raise Problem("wrong answer", f"{len(answer)} answers; expected one")
        answer = answer[0]
    asked = MARKER.sub("", str(question)).strip() if isinstance(question, str) else question
    if not asked:
        raise Problem("empty text", "the question is empty")
    out.marked = out.marked or asked != question
    item: dict[str, Any] = {"question": asked, "answer": answer, **more}
    cells = [row.get(name) for name in taken.columns.get("options", ())]
    is_open = how == "text" and all(cell in (None, "", []) for cell in cells)
    if cells and how is not None and not is_open:
        options = options_of(cells)
        chosen = right(answer, options, how)
        item |= {"options": options, "answer": chosen, "gold": options.index(chosen)}
        if settings.lettered:
            item["lettered"] = True
    if "rejected" in taken.columns:
        rejected = taken.one("rejected", row)
        rejected = _last(rejected) if isinstance(rejected, list) else rejected
        if rejected is None:
            raise Problem("empty text", "the rejected answer is empty")
        if rejected == answer:
            raise Problem("wrong answer", "the rejected answer is the chosen one")
        item["rejected"] = rejected
    out.questions.append(item)


def _last(messages: list[Any]) -> Any:
    """What is said last in messages that end with an answer."""
    last = messages[-1] if messages else None
    return last.get("content", last.get("value")) if isinstance(last, dict) else last


def sample_json(parts: list[Said], more: dict[str, Any]) -> bytes:
    """The JSON of a sample whose texts are those of several rows."""
    value: dict[str, Any] = dict(more)
    for name in ("captions", "questions", "conversations"):
        value[name] = together(parts, name)
    return _bytes({name: field for name, field in value.items() if field != []})


def together(parts: list[Said], name: str) -> list[Any]:
    """The texts of one kind of all rows of a clip.

    A table with a row for each question says the clip's caption in every row: that is one caption.
    """
    items = [item for part in parts for item in getattr(part, name)]
    if name != "captions":
        return items
    return list({json.dumps(item, sort_keys=True, default=str): item for item in items}.values())


def chat_json(part: Said) -> bytes:
    """The JSON of a text-only chat."""
    if part.conversations:
        said = part.conversations[0]
        return _bytes({"messages": said["messages"] if isinstance(said, dict) else said})
    exchange = part.questions[0]
    turns = (("user", exchange["question"]), ("assistant", exchange["answer"]))
    return _bytes({"messages": [{"role": role, "content": text} for role, text in turns]})


def _bytes(value: dict[str, Any]) -> bytes:
    # default: dates and the like in objects of a table's own, which no reader looks at
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=str)
    return text.encode("utf-8", "surrogatepass")
