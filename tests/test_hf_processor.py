"""An export is used as other models of transformers are: processor, generate, save_pretrained, push_to_hub."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from _small import once
from _tiny import ROOT
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, TextIteratorStreamer
from transformers.generation import BaseStreamer
from transformers.processing_utils import ProcessorMixin

import hvlm
from hvlm import tasks
from hvlm.commands import eval as evaluation
from hvlm.data.collate import Item, collate
from hvlm.data.decode import decode
from hvlm.errors import UserError
from hvlm.evaluation.asking import clips_of, queries
from hvlm.interop.hf_export import HvlmModel
from hvlm.interop.hf_processor import HvlmProcessor
from hvlm.io.json_lines import read_lines
from hvlm.rebuild import load as load_for_evaluation
from hvlm.rebuild import stored_config
from hvlm.training.chain import run as train

QUESTION = "what color is the object ?"
TEXTS = [QUESTION, "red", "blue", "green", "what shape is it ?"]
VISION = {"name": "convvit", "dim": 32, "num_layers": 1, "num_heads": 2, "image_size": 32}
SIZE = {"hidden_size": 32, "intermediate_size": 64}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 1}
LANGUAGES = {
    "smollm2": {"name": "smollm2_tiny", **SIZE, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2},
    "qwen3": {
        "name": "causal",
        "source": "scratch",
        "template": "tiny",
        "config": {"model_type": "qwen3", "head_dim": 16, **SIZE, **HEADS},
    },
}
ADAPTERS = {"none": {"name": "none"}, "lora": {"name": "lora"}}


@pytest.fixture(scope="module")
def run(trained: tuple[Path, list[str]]) -> Path:
    return trained[0] / "runs" / "tiny"


@pytest.fixture(scope="module")
def video(trained: tuple[Path, list[str]]) -> Path:
    return Path(next(o.split("=", 1)[1] for o in trained[1] if o.startswith("dataset.haystack="))) / "a.mp4"


@pytest.fixture(scope="module")
def exported(run: Path, shared: Path) -> Path:
    return once(shared / "exported", lambda folder: tasks.export(run, stored_config(run), folder))


def logits(vlm, chat, order: str) -> torch.Tensor:
    """Of every token of an answer to a question about random frames."""
    frames = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    row = (*chat.encode(QUESTION, "red", order=order), {})
    item = Item(frames.numpy(), torch.arange(4.0).numpy(), [row])
    with torch.inference_mode():
        return vlm.eval().targets(collate([item], pad_id=chat.pad_id, size=(32, 32))).logits_MV


@pytest.mark.parametrize("connector", ["foveated", "mean", "patches"])
@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_logits_of_an_export_are_those_of_the_model(
    connector: str, language: str, adapter: str, tmp_path: Path
) -> None:
    model = hvlm.build(
        vision=VISION, connector=connector, language=LANGUAGES[language], adapter=ADAPTERS[adapter], texts=TEXTS
    )
    with torch.no_grad():  # an untrained LoRA changes nothing
        for p in model.vlm.adapter.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.5)
    assert bool(list(model.vlm.adapter.parameters())) == (adapter == "lora")
    model.save(tmp_path / "hf")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "hf")
    before, after = (logits(m.vlm, m.chat, m.vlm.order) for m in (model, again))
    assert before.shape == after.shape and (before - after).abs().max() <= 1e-5
    if adapter == "lora":
        assert (before - logits(model.use_adapter(None).vlm, model.chat, model.vlm.order)).abs().max() > 1e-3


WORDS = {
    "smollm2": [],
    "qwen3": [
        "language=causal", "language.source=scratch", "language.template=tiny",
        "+language.config={model_type: qwen3, head_dim: 16, hidden_size: 32, intermediate_size: 64, "
        "num_attention_heads: 2, num_key_value_heads: 2, num_hidden_layers: 1}",
    ],
}  # fmt: skip
LEARNING = {"none": [], "lora": ["adapter=lora", "adapter.rank=2", "adapter.rate=0.05", "domain=general",
                                 "domain.mixture=null"]}  # fmt: skip


@pytest.mark.parametrize("connector", ["foveated", "mean", "patches"])
@pytest.mark.parametrize("language", WORDS)
@pytest.mark.parametrize("adapter", LEARNING)
def test_logits_of_task_export_are_those_of_the_trained_run(
    connector: str, language: str, adapter: str, needles: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the checkpoint that training wrote, and not from a model that a program holds."""
    monkeypatch.chdir(tmp_path)
    small = [o for o in needles if language == "smollm2" or not o.startswith("language.")]
    train(["run=one", "stage=sft", "stage.steps=2", "stage.batch_size=2", "evaluate=false", *small,
           f"connector={connector}", *WORDS[language], *LEARNING[adapter]])  # fmt: skip
    out = evaluation.evaluate(["task=export", "checkpoint=runs/one", "out=hf"])
    learned, again = hvlm.load("runs/one"), AutoModelForImageTextToText.from_pretrained(out)
    before, after = (logits(m.vlm, m.chat, m.vlm.order) for m in (learned, again))
    assert before.shape == after.shape and (before - after).abs().max() <= 1e-5
    assert bool(list(again.vlm.adapter.parameters())) == (adapter == "lora")
    if adapter == "lora":
        assert (before - logits(learned.use_adapter(None).vlm, learned.chat, learned.vlm.order)).abs().max() > 1e-4


def test_the_seconds_of_the_frames_reach_the_model(
    exported: Path, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are the video's own, as the processor read them, and not the numbers of the frames; forward, generate and
    answer pass them on, to each row those of its video."""
    model, processor = HvlmModel.from_pretrained(exported), HvlmProcessor.from_pretrained(exported)
    frames = torch.zeros(1, 4, 3, 32, 32, dtype=torch.uint8)
    ids = torch.tensor([model.chat.encode_prompt(QUESTION)[0]])
    seen: list[torch.Tensor] = []
    encode = model.vlm.vision.encode
    monkeypatch.setattr(
        model.vlm.vision,
        "encode",
        lambda x, time, *more, **named: (seen.append(time), encode(x, time, *more, **named))[1],
    )
    uneven = [[0.5, 2.25, 7.0, 7.5], [0.0, 1.0, 2.0, 3.0]]
    for seconds in uneven:
        model.generate(ids, pixel_values_videos=frames, video_seconds=torch.tensor([seconds]), max_new_tokens=1)
        assert seen.pop().flatten().tolist() == seconds
    two = {"pixel_values_videos": frames.expand(2, -1, -1, -1, -1), "video_seconds": torch.tensor(uneven)}
    model(ids.expand(2, -1), **two)
    assert seen.pop().reshape(2, 4).tolist() == uneven
    turns = [{"role": "user", "content": [{"type": "video", "path": video}, {"type": "text", "text": QUESTION}]}]
    inputs = processor.apply_chat_template(turns)
    _, own = decode(Path(video), 4, name="it")
    assert own.tolist() != [0, 1, 2, 3] and inputs["video_seconds"].tolist() == [own.tolist()]
    seen.clear()
    for ask in (lambda: model(**inputs), lambda: model.generate(**inputs), lambda: model.answer(video, QUESTION)):
        ask()
        assert [time.flatten().tolist() for time in seen] == [own.tolist()]
        seen.clear()


def test_a_video_file_becomes_an_answer_in_ten_lines(exported: Path, video: Path, tmp_path: Path) -> None:
    path = tmp_path / "saved"
    HvlmModel.from_pretrained(exported).save_pretrained(path)
    processor, model = AutoProcessor.from_pretrained(path), AutoModelForImageTextToText.from_pretrained(path)
    assert isinstance(processor, HvlmProcessor)
    turns = [{"role": "user", "content": [{"type": "video", "path": video}, {"type": "text", "text": QUESTION}]}]
    inputs = processor.apply_chat_template(turns)
    assert inputs["pixel_values_videos"].shape == (1, 4, 3, 32, 32)
    assert processor.batch_decode(model.generate(**inputs)) == [model.answer(video, QUESTION)]
    other = [{"role": "user", "content": [turns[0]["content"][0], {"type": "text", "text": "what shape is it ?"}]}]
    both = processor.batch_decode(model.generate(**processor.apply_chat_template([turns, other])))
    assert both == [model.answer(video, q) for q in (QUESTION, "what shape is it ?")]
    with pytest.raises(UserError, match="0 videos; expected one"):
        processor.apply_chat_template([{"role": "user", "content": QUESTION}])
    with pytest.raises(UserError, match="expected type text, video or image"):
        processor.apply_chat_template([{"role": "user", "content": [{"type": "audio", "path": "x"}]}])
    with pytest.raises(ValueError, match="expected one of video and pixel_values_videos"):
        model.generate(inputs["input_ids"])
    with pytest.raises(ValueError, match="video_seconds of shape"):
        model.generate(**{**inputs, "video_seconds": torch.zeros(1, 9)})
    processor.save_pretrained(tmp_path / "processor")
    again = HvlmProcessor.from_pretrained(tmp_path / "processor").apply_chat_template(turns)
    assert all(torch.equal(again[name], inputs[name]) for name in inputs)


def test_what_the_documentation_shows_runs(
    exported: Path,
    video: Path,
    tmp_path: Path,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """Line for line, beside a folder runs/demo/hf and a file clip.mp4."""
    part = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8").split("## A Hugging Face folder")[1]
    ten, more = (block.split("```")[0] for block in part.split("\n## ")[0].split("```python\n")[1:])
    assert len([line for line in ten.splitlines() if line]) <= 10
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "hf").symlink_to(exported)
    (tmp_path / "clip.mp4").symlink_to(video)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    names: dict = {}
    exec(ten, names)
    model = names["model"]
    said = model.answer(video, names["about"][1]["text"])
    assert said and capsys.readouterr().out == said + "\n"
    assert HvlmModel.from_pretrained("mine").answer(video, QUESTION) == model.answer(video, QUESTION)
    card = (exported / "README.md").read_bytes()
    assert "model.safetensors" in hub.files and hub.files["README.md"] == card
    assert (tmp_path / "mine" / "README.md").read_bytes() == card
    exec(more, names)
    printed = capsys.readouterr().out.split()
    assert printed[: len(said.split())] == said.split() and float(printed[-1]) == names["out"].loss.item() > 0
    assert names["out"].logits.shape == (*names["inputs"]["input_ids"].shape, model.chat.vocab_size)


def test_the_processor_is_called_as_others_are(exported: Path, video: Path) -> None:
    """Texts that the template wrote, with videos or pictures; and several videos, one for each."""
    processor, model = HvlmProcessor.from_pretrained(exported), HvlmModel.from_pretrained(exported)
    assert isinstance(processor, ProcessorMixin)
    other = video.parent / "b.mp4"

    def about(path: Path) -> list[dict]:
        return [{"role": "user", "content": [{"type": "video", "path": path}, {"type": "text", "text": QUESTION}]}]

    whole = processor.apply_chat_template(
        about(video), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    text = processor.apply_chat_template(about(video), add_generation_prompt=True, tokenize=False)
    inputs = processor(text=text, videos=str(video), return_tensors="pt", padding=True)
    assert inputs.keys() == whole.keys() - {"answer_at"} and all(torch.equal(inputs[n], whole[n]) for n in inputs)
    assert torch.equal(processor.apply_chat_template(about(video), return_dict=False), whole["input_ids"])
    ids = model.generate(**inputs.to(model.device))
    assert processor.decode(ids[0], skip_special_tokens=True) == model.answer(video, QUESTION)
    assert processor.batch_decode(ids) == [model.answer(video, QUESTION)]

    both = processor(text=[text, text], videos=[str(video), str(other)])
    assert both["pixel_values_videos"].shape == (2, 4, 3, 32, 32)
    answers = [model.answer(path, QUESTION) for path in (video, other)]
    assert processor.batch_decode(model.generate(**both)) == answers
    again = processor.apply_chat_template([about(video), about(other)])
    assert all(torch.equal(again[name], both[name]) for name in both)
    assert torch.equal(both["pixel_values_videos"][:1], inputs["pixel_values_videos"])

    picture = Image.new("RGB", (40, 30), (200, 0, 0))
    seen = processor(images=picture, text=text)
    assert torch.equal(seen["pixel_values_videos"], processor(videos=[picture])["pixel_values_videos"])
    assert len(processor(images=[picture, picture], text=[text, text])["pixel_values_videos"]) == 2
    for wrong, message in (
        ({}, "expected text, videos or images"),
        ({"text": text, "images": picture, "videos": video}, "one of images and videos"),
        ({"text": [text] * 3, "videos": [str(video), str(other)]}, "2 videos for 3 texts"),
        ({"text": text, "return_tensors": "np"}, "expected 'pt'"),
    ):
        with pytest.raises(ValueError, match=message):
            processor(**wrong)
    with pytest.raises(UserError, match="2 videos; expected one"):
        processor.apply_chat_template([[about(video)[0], {"role": "assistant", "content": "x"}, about(other)[0]]])


def test_a_streamer_gets_the_words_as_they_come(exported: Path, video: Path) -> None:
    processor, model = HvlmProcessor.from_pretrained(exported), HvlmModel.from_pretrained(exported)
    turns = [{"role": "user", "content": [{"type": "video", "path": video}, {"type": "text", "text": QUESTION}]}]
    inputs = processor.apply_chat_template(turns)
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    ids = model.generate(**inputs, streamer=streamer, max_new_tokens=6)
    pieces = list(streamer)
    assert "".join(pieces).strip() == processor.decode(ids[0]) != ""

    class Kept(BaseStreamer):
        def __init__(self) -> None:
            self.got: list[torch.Tensor | str] = []

        def put(self, value: torch.Tensor) -> None:
            self.got.append(value)

        def end(self) -> None:
            self.got.append("end")

    kept = Kept()
    assert torch.equal(model.generate(**inputs, streamer=kept, max_new_tokens=6), ids)
    prompt, *words, end = kept.got
    assert torch.equal(prompt, inputs["input_ids"]) and end == "end"
    assert torch.equal(torch.stack(words, 1), ids) and len(words) == ids.shape[1]


def test_generated_answers_are_those_of_task_generate(
    run: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the frames that the reader gave, through processor and generate."""
    monkeypatch.chdir(run.parent.parent)
    evaluation.evaluate([f"checkpoint={run}", "task=generate", f"out={tmp_path}", "benchmark.limit=1"])
    written = {(line["question_id"], line["try"]): line["text"] for line in read_lines(tmp_path / "answers.jsonl")}
    model, processor = HvlmModel.from_pretrained(exported), HvlmProcessor.from_pretrained(exported)
    loaded, seen = load_for_evaluation(run, stored_config(run)), 0
    for batch in clips_of(loaded, loaded.benchmark(), limit=1):
        for clip in queries(batch):
            for question in clip.questions:
                for attempt, one in enumerate(question.tries):
                    said = [{"type": "video", "video": clip.frames_TCHW}, {"type": "text", "text": one.prompt}]
                    turns = [{"role": "user", "content": said}]
                    inputs = processor.apply_chat_template(turns)
                    inputs["video_seconds"] = torch.from_numpy(clip.time_T).float()[None]
                    (text,) = processor.batch_decode(model.generate(**inputs))
                    assert text == written[question.id, attempt]
                    seen += 1
    assert seen == len(written) > 0


@dataclass
class Hub:
    """A stand-in for the hub that takes one commit.

    files: that were uploaded. asked: for what, as (path, body). refuses: {part of a path: the status of its refusal}.
    """

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, bytes]] = field(default_factory=list)
    refuses: dict[str, int] = field(default_factory=dict)


@pytest.fixture()
def hub() -> Iterator[Hub]:
    made = Hub()
    files, asked = made.files, made.asked

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            asked.append((self.path, body))
            if self.path.endswith("/repos/create"):
                reply = {"url": f"{address}/me/demo", "id": "1"}
            elif "/preupload/" in self.path:
                paths = [file["path"] for file in json.loads(body)["files"]]
                reply = {"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]}
            elif "/commit/" in self.path:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file" and "/commit/" not in made.refuses:
                        files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                reply = {"commitUrl": f"{address}/me/demo/commit/{'a' * 40}", "commitOid": "a" * 40}
            else:
                reply = {}
            self.answer(reply)

        def do_GET(self) -> None:
            asked.append((self.path, b""))
            self.answer({"id": "me/demo", "sha": "a" * 40, "siblings": []})

        def do_HEAD(self) -> None:
            self.answer(None)

        def answer(self, reply: dict | None) -> None:
            status = next((status for part, status in made.refuses.items() if part in self.path), 200)
            self.send_response(status)
            if status != 200:
                self.send_header("X-Error-Message", "You may not.")
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            if reply is not None:
                self.wfile.write(json.dumps(reply).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.address = address = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    yield made
    server.shutdown()
    server.server_close()


def test_push_to_hub_uploads_what_save_pretrained_writes(exported: Path, video: Path, tmp_path: Path, hub: Hub) -> None:
    address, files, asked = hub.address, hub.files, hub.asked
    model = HvlmModel.from_pretrained(exported)
    said = model.push_to_hub("me/demo", endpoint=address, token="hf_x")
    assert re.fullmatch(address + "/me/demo/commit/a{40}", said)
    assert any(path.endswith("/repos/create") for path, _ in asked)
    assert any(path.endswith("/commit/main") for path, _ in asked)
    assert b"accuracy_mean" in files["README.md"], "the card has the run's own figures"
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert HvlmModel.from_pretrained(tmp_path).answer(video, QUESTION) == model.answer(video, QUESTION)
    files.clear()
    HvlmProcessor.from_pretrained(exported).push_to_hub("me/demo", endpoint=address, token="hf_x")
    assert {"config.json", "tokenizer.json"} <= files.keys() and not {"model.safetensors", "README.md"} & files.keys()


def test_push_to_hub_honours_revision_private_and_message(exported: Path, hub: Hub) -> None:
    address, files, asked = hub.address, hub.files, hub.asked
    processor = HvlmProcessor.from_pretrained(exported)
    processor.push_to_hub(
        "me/demo", endpoint=address, token="hf_x", revision="v2", private=True, commit_message="A second one"
    )
    sent = {path.rsplit("/api/", 1)[-1]: body for path, body in asked if body}
    created = json.loads(sent["repos/create"])
    assert created["name"] == "demo"
    assert created.get("visibility") == "private" or created.get("private") is True  # which one: by hub version
    assert "models/me/demo/branch/v2" in {path.rsplit("/api/", 1)[-1] for path, _ in asked}
    assert "models/me/demo/commit/main" not in sent and "config.json" in files
    header = json.loads(sent["models/me/demo/commit/v2"].splitlines()[0])
    assert header["value"]["summary"] == "A second one"


@pytest.mark.parametrize(
    ("part", "status", "said"),
    [("/repos/create", 401, "log in with `hf auth login`"), ("/preupload/", 403, "a token= that may write there"),
     ("/commit/", 403, "a token= that may write there"), ("/branch/", 400, "")],
)  # fmt: skip
def test_a_refusal_of_the_hub_is_one_line(exported: Path, hub: Hub, part: str, status: int, said: str) -> None:
    hub.refuses |= {part: status} | ({"/models/me/demo": 404} if part == "/repos/create" else {})
    processor = HvlmProcessor.from_pretrained(exported)
    with pytest.raises(UserError) as error:
        processor.push_to_hub("me/demo", endpoint=hub.address, token="hf_x", revision="v2")
    assert re.match(rf"me/demo: {hub.address} refuses it \({status}: [^\n]*You may not\.[^\n]*\)", str(error.value))
    assert said in str(error.value) and "\n" not in str(error.value) and not hub.files


def test_a_token_that_may_make_no_folder_writes_into_one_that_is_there(exported: Path, hub: Hub) -> None:
    hub.refuses["/repos/create"] = 403
    said = HvlmProcessor.from_pretrained(exported).push_to_hub("me/demo", endpoint=hub.address, token="hf_x")
    assert said.startswith(f"{hub.address}/me/demo/commit/") and "config.json" in hub.files


def test_what_is_nowhere_is_one_line(exported: Path, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the model and of the processor: refused by the hub, without a hub, and no name of one."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        hub.address + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for kind in (HvlmModel, HvlmProcessor):
        for status in (401, 403, 404):
            hub.refuses = {"/": status}
            with pytest.raises(UserError) as error:
                kind.from_pretrained("me/private", cache_dir=tmp_path)
            said = str(error.value)
            assert said.startswith("me/private: no such file or folder here, and no export of hvlm on the hub (")
            assert str(status) in said and "hf auth login" in said and "\n" not in said, said
        with pytest.raises(UserError, match="no such file or folder here") as error:
            kind.from_pretrained(str(tmp_path / "gone"), local_files_only=True)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="repo_id=a/b/c: .*expected OWNER/NAME"):
        HvlmProcessor.from_pretrained(exported).push_to_hub("a/b/c", endpoint=hub.address, token="hf_x")
