"""An export is called as other models of transformers are: ids, pixels and labels in, loss and logits out."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from _templates import byte_pairs
from test_hf_export import chatml
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from transformers.modeling_outputs import ModelOutput

import hvlm
from hvlm.data.collate import Item, collate
from hvlm.interop.hf_config import HvlmConfig
from hvlm.interop.hf_export import HvlmModel
from hvlm.interop.hf_inputs import Places
from hvlm.interop.hf_processor import HvlmProcessor
from hvlm.interop.hf_template import tokenizer_with_template
from hvlm.text.chat import ORDERS, Chat

QUESTION, ANSWER = "what color is the object ?", "red red"
ROOMS = {
    "vision": {"name": "convvit", "dim": 32, "num_layers": 1, "num_heads": 2, "image_size": 32},
    "language": {"name": "smollm2_tiny", "hidden_size": 32, "intermediate_size": 64, "num_layers": 1, "num_heads": 2,
                 "num_kv_heads": 2},
}  # fmt: skip
FUSIONS = {"none": "none", "reading": {"name": "single_stream", "layers": 1, "write_text": True}}


@cache
def exported(order: str = "question_first", fusion: str = "none") -> tuple[HvlmModel, HvlmProcessor]:
    made = hvlm.build(
        **ROOMS, fusion=FUSIONS[fusion], order=order, num_frames=4, texts=[QUESTION, ANSWER, "blue", "and the other ?"]
    )
    rooms = {name: made.config[name] for name in made.config if isinstance(made.config[name], dict)}
    config = HvlmConfig(rooms, made.chat.to_json(), order, 4, architectures=["HvlmModel"])
    return HvlmModel(config, made.vlm).eval(), HvlmProcessor(config, tokenizer_with_template(made.chat))


def video(seed: int, frames: int = 6) -> Tensor:
    return torch.randint(0, 256, (frames, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def said(shown: Tensor, *texts: str) -> list[dict]:
    """Turns about a video, the user's first."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    turns[0]["content"] = [{"type": "video", "video": shown}, {"type": "text", "text": texts[0]}]
    return turns


def learned(model: HvlmModel, inputs: dict[str, Tensor]) -> Tensor:
    """Labels: everything after the first header."""
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    for row, at in zip(labels, inputs["answer_at"].tolist(), strict=True):
        row[: at + len(model.places.header)] = -100
    return labels


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("order", ORDERS)
def test_loss_and_logits_are_those_of_training(order: str, fusion: str) -> None:
    """For two clips of different length, padded at either side."""
    model, processor = exported(order, fusion)
    clips, answers = [video(0), video(1, 3)], [ANSWER, "blue"]
    turns = [said(clip, QUESTION, answer) for clip, answer in zip(clips, answers, strict=True)]
    inputs = processor.apply_chat_template(turns, add_generation_prompt=False)
    assert inputs["pixel_values_videos"].shape[:2] == (2, 4) and inputs["video_mask"].sum(1).tolist() == [4, 3]
    labels = learned(model, inputs)
    out = model(**inputs, labels=labels)
    assert isinstance(out, ModelOutput) and out.logits.shape == (*inputs["input_ids"].shape, model.chat.vocab_size)

    items = []
    for i, answer in enumerate(answers):
        frames, seconds, shown = (
            inputs[f"{name}"][i] for name in ("pixel_values_videos", "video_seconds", "video_mask")
        )
        row = (*model.chat.encode(QUESTION, answer, order=order), {})
        items.append(Item(frames[shown].numpy(), seconds[shown].numpy(), [row]))
    batch = collate(items, pad_id=model.chat.pad_id, size=(32, 32))
    targets = model.vlm.targets(batch)
    total, count, _ = model.vlm.head.loss(targets, batch)
    assert out.loss.item() == pytest.approx((total / count).item(), abs=1e-5)
    found = out.logits[targets.row_M, targets.place_M - 1]
    assert (found - targets.logits_MV).abs().max() <= 1e-5

    width = inputs["input_ids"].shape[1]
    n = int(inputs["attention_mask"][1].sum())
    assert n < width
    left = {name: inputs[name].clone() for name in ("input_ids", "attention_mask")}
    for name, row in {**left, "labels": labels}.items():
        left[name] = torch.stack([row[0], row[1].roll(width - n)])
    again = model(**{**inputs, **left})
    assert again.loss.item() == pytest.approx(out.loss.item(), abs=1e-5)
    assert (again.logits[1, width - n :] - out.logits[1, :n]).abs().max() <= 1e-5


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("order", ORDERS)
def test_logits_know_nothing_of_what_comes_after_them(order: str, fusion: str) -> None:
    """Without labels, too, no answer reaches the visual tokens that stand before it; and generate goes on from them."""
    model, processor = exported(order, fusion)
    asked = processor.apply_chat_template(said(video(0), QUESTION))
    width = asked["input_ids"].shape[1]
    with torch.inference_mode():
        first = model(**asked).logits[:, -1]
        for answer in ("red", "blue"):
            whole = processor.apply_chat_template(said(video(0), QUESTION, answer), add_generation_prompt=False)
            assert (model(**whole).logits[:, width - 1] - first).abs().max() <= 1e-5
            assert whole["input_ids"].shape[1] > width
    assert model.generate(**asked, max_new_tokens=1).item() == first.argmax().item()
    other = processor.apply_chat_template(said(video(1), QUESTION))
    assert (model(**other).logits[:, -1] - first).abs().max() > 1e-4, "the video is seen"


def test_the_first_token_after_the_video_is_not_learned() -> None:
    model, processor = exported()
    inputs = processor.apply_chat_template(said(video(0), QUESTION, ANSWER), add_generation_prompt=False)
    labels = inputs["input_ids"].clone()
    first = model.places.row(labels[0].tolist())[2]
    assert 0 < first < labels.shape[1] - 2
    without, other = (labels.index_fill(1, torch.tensor([at]), -100) for at in (first, first + 1))
    with torch.inference_mode():
        whole, same, less = (model(**inputs, labels=each).loss.item() for each in (labels, without, other))
    assert whole == pytest.approx(same, abs=1e-6) and abs(whole - less) > 1e-4


def test_visual_tokens_read_what_stands_before_them_and_is_not_learned() -> None:
    model, processor = exported("question_first", "reading")
    inputs = processor.apply_chat_template(said(video(0), QUESTION, ANSWER), add_generation_prompt=False)
    hidden = learned(model, inputs)
    with torch.inference_mode():
        without, all_hidden, read = (
            model(**inputs, labels=labels).logits for labels in (None, hidden, torch.full_like(hidden, -100))
        )
    assert (without - all_hidden).abs().max() <= 1e-5 and (read - all_hidden).abs().max() > 1e-4


def test_a_step_of_training_lowers_the_loss() -> None:
    model, processor = exported()
    inputs = processor.apply_chat_template(said(video(0), QUESTION, ANSWER), add_generation_prompt=False)
    labels = learned(model, inputs)
    before = model(**inputs, labels=labels).loss
    before.backward()
    grads = {name: p.grad for name, p in model.vlm.named_parameters() if p.grad is not None}
    assert {name.split(".")[0] for name in grads} >= {"vision", "connector", "language"}
    kept = {name: p.detach().clone() for name, p in model.vlm.named_parameters()}
    with torch.no_grad():
        for name, p in model.vlm.named_parameters():
            p -= 0.05 * grads[name] if name in grads else 0
    assert model(**inputs, labels=labels).loss < before
    with torch.no_grad():
        for name, p in model.vlm.named_parameters():
            p.copy_(kept[name])
            p.grad = None


def test_forward_takes_texts_alone_and_gives_a_tuple_where_asked() -> None:
    model, processor = exported()
    text = processor.apply_chat_template(said(video(0), QUESTION), tokenize=False)
    assert isinstance(text, str)
    inputs = processor(text=text)
    assert inputs.keys() == {"input_ids", "attention_mask"}
    (logits,) = model(**inputs, return_dict=False)
    assert torch.equal(logits, model(**inputs).logits) and model(**inputs).loss is None
    seen = model(**inputs, **processor(videos=video(0))).logits
    assert (seen - logits)[:, -1].abs().max() > 1e-4


def test_what_does_not_fit_is_refused() -> None:
    model, processor = exported()
    inputs = processor.apply_chat_template(said(video(0), QUESTION))
    for change, message in (
        ({"labels": inputs["input_ids"][:, 1:]}, "labels of"),
        ({"attention_mask": inputs["attention_mask"][:, 1:]}, "attention_mask of"),
        ({"answer_at": torch.zeros(3)}, "answer_at of shape"),
        ({"answer_at": torch.tensor([1])}, "answer_at=1: no header"),
        ({"input_ids": inputs["input_ids"][:, :3], "attention_mask": None, "answer_at": None}, "holds no header"),
        ({"pixel_values_videos": inputs["pixel_values_videos"].expand(2, -1, -1, -1, -1)}, "one video for all 1 rows"),
        ({"video_mask": torch.ones(1, 9)}, "video_mask of shape"),
    ):
        with pytest.raises(ValueError, match=message):
            model(**{**inputs, **change})
    with pytest.raises(TypeError, match="pixel_values_of_something"):
        model(**inputs, pixel_values_of_something=1)
    answered = processor.apply_chat_template(said(video(0), QUESTION, ANSWER), add_generation_prompt=False)
    with pytest.raises(ValueError, match="does not end with the header of an answer"):
        model.generate(**answered)


def plain(template: str) -> Chat:
    tokenizer = byte_pairs(["what happens ?"], 300, ["<s>", "</s>"])
    return Chat(PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>"), template)


CHATS = {
    "tiny": lambda: exported()[0].chat,
    "chatml": lambda: chatml("You are helpful"),
    "vicuna": lambda: plain("vicuna"),
    "plain": lambda: plain("plain"),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", CHATS)
def test_the_video_of_a_longer_conversation_stands_where_training_has_it(name: str, order: str) -> None:
    """After the first question, not after the last one; said by the processor where headers are ordinary text."""
    chat = CHATS[name]()
    places = Places(chat, order)
    first = "what happens ?\nA yes\nB no ASSISTANT: what"
    config = HvlmConfig(exported()[0].config.rooms, chat.to_json(), order, 4)
    processor = HvlmProcessor(config, tokenizer_with_template(chat))
    for before in ((), [(first, "yes\nno")]):
        ids, at = chat.encode_prompt(first, order, before=before)
        turns = [turn for pair in before for turn in pair]
        inputs = processor.apply_chat_template(said(video(0), *turns, first))
        assert inputs["input_ids"].tolist() == [ids]
        assert places.row(ids, None, int(inputs["answer_at"]))[2] == at
        if before and name in ("vicuna", "plain"):
            with pytest.raises(ValueError, match="give answer_at"):
                places.row(ids)
        else:
            assert places.row(ids)[2] == at
