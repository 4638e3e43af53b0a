"""hvlm.load and hvlm.build: a model in a program answers as eval.py does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _tiny import ROOT
from hydra.core.global_hydra import GlobalHydra
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

import hvlm
from hvlm.commands import eval as evaluation
from hvlm.data.given import frames_given, streamed_frames
from hvlm.errors import UserError
from hvlm.evaluation.asking import clips_of, queries
from hvlm.interop.hf_export import HvlmModel
from hvlm.io.checkpoint import find_checkpoint
from hvlm.io.json_lines import read_lines
from hvlm.rebuild import load as load_for_evaluation
from hvlm.rebuild import stored_config

QUESTION = "what color is the object ?"
WEIGHTS = "model.safetensors"
TEXTS = [QUESTION, "red", "blue", "green", "what shape is it ?"]
TINY = {
    "vision": {"name": "convvit", "dim": 32, "num_layers": 1, "num_heads": 2, "image_size": 32},
    "language": {
        "name": "smollm2_tiny", "hidden_size": 32, "intermediate_size": 64, "num_layers": 1, "num_heads": 2,
        "num_kv_heads": 2,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def run(trained: tuple[Path, list[str]]) -> Path:
    return trained[0] / "runs" / "tiny"


@pytest.fixture(scope="module")
def video(trained: tuple[Path, list[str]]) -> Path:
    return Path(next(o.split("=", 1)[1] for o in trained[1] if o.startswith("dataset.haystack="))) / "a.mp4"


@pytest.fixture(scope="module")
def model(run: Path) -> hvlm.Model:
    return hvlm.load(run, device="cpu")


@pytest.mark.fault(113)
def test_answers_and_choices_are_those_of_eval(
    model: hvlm.Model, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """task=generate and the benchmark's likelihoods, clip by clip, from the frames that the reader gave."""
    monkeypatch.chdir(run.parent.parent)
    evaluation.evaluate([f"checkpoint={run}", "task=generate", f"out={tmp_path}", "benchmark.limit=1"])
    written = {(line["question_id"], line["try"]): line["text"] for line in read_lines(tmp_path / "answers.jsonl")}
    loaded = load_for_evaluation(run, stored_config(run))
    benchmark = loaded.benchmark()
    seen = 0
    for batch in clips_of(loaded, benchmark, limit=1):
        for clip in queries(batch):
            for question in clip.questions:
                for attempt, one in enumerate(question.tries):
                    if (question.id, attempt) in written:
                        assert model.answer(clip.frames_TCHW, one.prompt) == written[question.id, attempt]
                        seen += 1
                if question.tries[0].options:
                    one = question.tries[0]
                    chosen = model.choose(clip.frames_TCHW, one.prompt, one.answers)
                    assert chosen.option == one.answers[chosen.index] and len(chosen.scores) == len(one.answers)
                    assert chosen.index == int(np.argmax(chosen.scores))
    assert seen > 1


def test_a_stream_answers_as_task_ask_does(model: hvlm.Model, run: Path, video: Path, tmp_path: Path) -> None:
    asked = [f"checkpoint={run}", "task=ask", f"ask.video={video}", f"ask.question={QUESTION}", f"out={tmp_path}"]
    lines = evaluation.evaluate([*asked, "ask.at=[1,2.5]", "ask.fps=2"])
    stream, found = model.stream(video, QUESTION, fps=2.0), {}
    for _ in stream:
        found[stream.frames] = stream.answer()
    assert [(line["frames"], line["answer"]) for line in lines] == [(n, found[n]) for n in (2, 5)]
    fed = model.stream(question=QUESTION, fps=2.0)
    for frame, _ in streamed_frames(video, model.inputs.size, 2.0):
        fed.feed(torch.from_numpy(frame[None]))
    assert fed.answer() == found[12] and fed.frames == 12 and fed.seconds == pytest.approx(12 * 0.25)
    with pytest.raises(UserError, match="begin a new stream"):
        stream.answer("another ?")
    with pytest.raises(UserError, match="give question="):
        model.stream(video)


def test_every_form_of_a_video_is_the_same_video(model: hvlm.Model, video: Path, tmp_path: Path) -> None:
    frames, seconds = frames_given(video, 4, (32, 32))
    assert frames.shape == (4, 3, 32, 32) and frames.dtype == np.uint8 and seconds.dtype == np.float32
    pictures = [Image.fromarray(frame) for frame in frames.transpose(0, 2, 3, 1)]
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / f"{i + 7}.PNG")  # 7, 8, 9, 10: in the order of numbers
    forms = [pictures, [np.asarray(p) for p in pictures], sorted(tmp_path.iterdir(), key=lambda p: int(p.stem)),
             frames, torch.from_numpy(frames), frames.transpose(0, 2, 3, 1), tmp_path, str(tmp_path)]  # fmt: skip
    for form in forms:
        again, at = frames_given(form, 4, (32, 32), fps=2.0)
        assert np.array_equal(again, frames) and at.tolist() == [0.0, 0.5, 1.0, 1.5]
    assert frames_given(pictures * 3, 4, (32, 32))[0].shape[0] == 4, "sampled over the time"
    assert frames_given(pictures[:1], 20, (32, 32))[0].shape[0] == 8 and frames_given(tmp_path / "7.PNG", 2, (32, 32))
    late = frames_given(video, 4, (32, 32), section=(3.0, 6.0))[0]
    assert not np.array_equal(late, frames)
    assert model.answer(video, [QUESTION, "what shape is it ?"])[0] == model.answer(frames, QUESTION)
    for wrong, words in (
        (tmp_path / "nothing.mp4", "no such file or folder"), ([], "no picture"), (3, "int; expected a video file"),
        (frames.astype(np.float32), "expected uint8"), (frames[0], "array of shape"),
        (tmp_path.parent, "without stills"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            model.answer(wrong, QUESTION)
    for how in (
        {"fps": 0}, {"fps": "2"}, {"num_frames": 0}, {"max_new_tokens": 0}, {"temperature": -1}, {"top_p": 0.5},
        {"section": (3, 1)}, {"section": (1,)}, {"section": (float("nan"), 2)}, {"section": 3}, {"section": (None, 2)},
        {"temperature": float("inf")}, {"temperature": "hot"}, {"temperature": 1, "seed": "x"},
    ):  # fmt: skip
        with pytest.raises(UserError, match=[*how][-1]):
            model.answer(frames, QUESTION, **how)
    for nothing in (" ", None, 5, [], [None]):
        with pytest.raises(UserError, match="expected a question"):
            model.answer(frames, nothing)
    for odd in ("", None, [QUESTION]):
        with pytest.raises(UserError, match="expected a question"):
            model.choose(frames, odd, ["red", "blue"])
    for odd in (["red", "red"], [1, 2]):
        with pytest.raises(UserError, match="expected texts, each another one"):
            model.choose(frames, QUESTION, odd)
    for how in ({"max_new_tokens": 0}, {"temperature": -2}, {"temperature": 1, "top_p": 0}):
        with pytest.raises(UserError, match="expected"):
            model.stream(None, QUESTION).feed(frames).answer(**how)
    for place in ("alien", "cuda9"):
        with pytest.raises(UserError, match=f"device={place}"):
            model.to(place)
    with pytest.raises(UserError, match="2 or more"):
        model.choose(frames, QUESTION, ["red"])


def test_a_hub_id_is_the_export_that_lies_there_at_its_revision(
    model: hvlm.Model, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's cache without a net; the weights of v1 are halved, those of main are the model's."""
    repository = tmp_path / "models--me--demo"
    (repository / "refs").mkdir(parents=True)
    for ref, commit, scale in (("main", "a" * 40, 1.0), ("v1", "b" * 40, 0.5)):
        snapshot = repository / "snapshots" / commit
        model.save(snapshot)
        state = {k: v * scale if v.is_floating_point() else v for k, v in load_file(snapshot / WEIGHTS).items()}
        save_file(state, snapshot / WEIGHTS, metadata={"format": "pt"})
        (repository / "refs" / ref).write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found, halved = hvlm.load("me/demo", device="cpu"), hvlm.load("me/demo", device="cpu", revision="v1")
    assert found.answer(video, QUESTION) == model.answer(video, QUESTION)
    for (name, whole), half in zip(found.vlm.named_parameters(), halved.vlm.parameters(), strict=True):
        assert torch.equal(half, whole * 0.5), name
    with pytest.raises(UserError, match="me/gone: no such file or folder here, and no export of hvlm on the hub"):
        hvlm.load("me/gone")
    with pytest.raises(UserError, match="me/demo: .* no export of hvlm on the hub"):
        hvlm.load("me/demo", revision="v2")


@pytest.mark.fault(113, 116)
def test_an_export_is_loaded_saved_and_asked(
    model: hvlm.Model, run: Path, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model.save("saved")
    again = hvlm.load("saved", device="cpu")
    assert again.num_parameters == model.num_parameters and repr(again) == repr(model)
    assert again.answer(video, QUESTION) == model.answer(video, QUESTION)
    with pytest.raises(UserError, match="holds model.safetensors already"):
        model.save("saved")
    with pytest.raises(UserError, match="holds model.safetensors already"):
        evaluation.evaluate([f"checkpoint={run}", "task=export", f"out={tmp_path / 'saved'}"])
    (tmp_path / "file").touch()
    for place in ("file", "file/below", "/proc/nowhere/saved"):
        with pytest.raises(UserError, match="is a file|cannot be written"):
            model.save(place)
    with pytest.raises(UserError, match="is an export, whose rooms stand"):
        hvlm.load("saved", "merger=tome")
    for nowhere in ("nowhere", "./no/where", "no/such/thing"):
        with pytest.raises(UserError, match="no such file or folder"):
            hvlm.load(nowhere)

    exported = HvlmModel.from_pretrained("saved")
    assert exported.answer(video, QUESTION) == again.answer(video, QUESTION)
    tokenizer = AutoTokenizer.from_pretrained("saved")
    turns = [[{"role": "user", "content": text}] for text in (QUESTION, "what shape is it ?")]
    ids = [tokenizer.apply_chat_template(t, add_generation_prompt=True, return_dict=False) for t in turns]
    longest = max(map(len, ids))
    padded = torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
    said = exported.generate(padded, mask, video=video)
    assert [exported.chat.decode(row) for row in said.tolist()] == model.answer(video, [t[0]["content"] for t in turns])
    with pytest.raises(ValueError, match="header of an answer"):
        exported.generate(padded[:1, :-2], video=video)


def test_dtype_and_settings_are_what_was_asked_for(run: Path, video: Path) -> None:
    half = hvlm.load(run, device="cpu", dtype="bfloat16")
    assert half.dtype == torch.bfloat16 and half.device.type == "cpu" and half.precision == "bf16-mixed"
    assert isinstance(half.answer(video, QUESTION), str) and half.choose(video, QUESTION, ["red", "blue"]).option
    assert isinstance(half.stream(question=QUESTION).feed(video).answer(), str)
    assert half.to(torch.float32).dtype == torch.float32 and half.precision in ("32-true", "bf16-mixed")
    with pytest.raises(UserError, match="dtype=int8"):
        half.to(dtype="int8")
    counted = hvlm.load(run, device="meta")
    assert counted.num_parameters == half.num_parameters, "a weight of two layers counts once"
    for ask in (lambda: counted.answer(video, QUESTION), lambda: counted.stream(video, QUESTION)):
        with pytest.raises(UserError, match="device=meta: a model without weights cannot answer"):
            ask()
    merged = hvlm.load(run, "merger=tome", "connector.mode=coarse", device="cpu")
    assert merged.config["merger"]["_target_"].endswith("ToMe") and merged.config["connector"]["mode"] == "coarse"
    assert isinstance(merged.answer(video, QUESTION, num_frames=2), str)
    with pytest.raises(UserError, match="cannot watch frame by frame"):
        merged.stream(video, QUESTION)


def test_what_is_no_model_or_changes_none_is_refused_in_one_line(run: Path, tmp_path: Path) -> None:
    file = find_checkpoint(run)
    whole = torch.load(file, weights_only=True)

    def refused(said: str, path: Any, *how: str) -> None:
        with pytest.raises(UserError, match=said) as error:
            hvlm.load(path, *how)
        assert "\n" not in str(error.value)

    refused("expected a run folder", "")
    refused("out=x: belongs to a command", run, "out=x")
    refused("ask.at=3: belongs to a command", run, "ask.at=3")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "config.json").write_text('{"model_type": "llama"}')
    refused("no model that hvlm trained, but a source of one", tmp_path / "source")
    chat = json.loads(whole["hvlm"]["chat"])
    for i, (changes, said) in enumerate((
        ({"hvlm": "x"}, "its config is damaged"),
        ({"hvlm": whole["hvlm"] | {"config": None}}, "its config is damaged"),
        ({"hvlm": whole["hvlm"] | {"source_configs": None}}, "its source_configs is damaged"),
        ({"hvlm": whole["hvlm"] | {"chat": 5}}, "its chat is damaged"),
        ({"hvlm": whole["hvlm"] | {"chat": "{"}}, "the stored tokenizer is damaged"),
        ({"hvlm": whole["hvlm"] | {"chat": json.dumps(chat | {"tokenizer": "{"})}}, "the stored tokenizer is damaged"),
        ({"hvlm": whole["hvlm"] | {"chat": json.dumps(chat | {"ends": ["x"]})}}, "the stored tokenizer is damaged"),
        ({"hvlm": whole["hvlm"] | {"config": whole["hvlm"]["config"] | {"trainer": None}}}, "no settings of trainer"),
        ({"hvlm": whole["hvlm"] | {"config": {**whole["hvlm"]["config"], "vision": 3}}}, "no settings of vision"),
        ({"hvlm": whole["hvlm"] | {"config": {"language": {}}}}, "no settings of vision"),
        ({"state_dict": {name: 1 for name in whole["state_dict"]}}, "is no tensor"),
    )):  # fmt: skip
        torch.save(whole | changes, tmp_path / f"{i}.ckpt")
        refused(said, tmp_path / f"{i}.ckpt")
    torch.save([1], tmp_path / "list.ckpt")
    refused("holds no mapping", tmp_path / "list.ckpt")


@pytest.mark.fault(113)
def test_a_model_is_built_in_one_call(video: Path) -> None:
    state = torch.random.get_rng_state()
    made = hvlm.build(**TINY, connector="mean", attention={"name": "mamba", "state_size": 8}, texts=TEXTS, num_frames=3)
    assert torch.equal(torch.random.get_rng_state(), state), "the program's own random numbers go on as ever"
    assert GlobalHydra.instance().hydra is None
    assert isinstance(made.answer(video, QUESTION), str) and made.inputs.num_frames == 3
    assert made.config["attention"]["state_size"] == 8
    assert 0 <= made.choose(video, QUESTION, ["red", "blue", "green"]).index < 3
    same = hvlm.build("connector=mean", "attention=mamba", "attention.state_size=8", **TINY, texts=TEXTS, num_frames=3)
    assert repr(same) == repr(made)
    assert all(torch.equal(a, b) for a, b in zip(same.vlm.parameters(), made.vlm.parameters(), strict=True))
    counted = hvlm.build(
        **TINY, connector="mean", attention={"name": "mamba", "state_size": 8}, texts=TEXTS, device="meta"
    )
    assert counted.num_parameters == made.num_parameters and counted.device.type == "meta"
    for wrong, words in (
        ({"connector": "maen"}, "did you mean 'mean'"), ({"conector": "mean"}, "did you mean 'connector'"),
        ({"connector": {"name": "mean", "projectr": "mlp"}}, "did you mean 'connector.projector'"),
        ({"connector": {"mode": "coarse"}}, "a dict with its name"), ({"texts": None}, "starts from nothing"),
        ({"texts": [1]}, "texts: 1 is no text"), ({"texts": 1}, "texts=1: expected a list"),
        ({"connector": {"name": "foveated", "mode": "corse"}}, "connector.mode"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            hvlm.build(**{**TINY, "texts": TEXTS, **wrong})


def test_the_page_runs(run: Path, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(run)
    (tmp_path / "clip.mp4").symlink_to(video)
    page = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    exec(compile(script, "docs/library.md", "exec"), {})
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("Model(vision=convvit") and any(line.startswith("1.75 ") for line in shown)


def test_importing_the_package_imports_little(tmp_path: Path) -> None:
    code = (
        "import sys, hvlm; print(sorted({'torch','hydra','numpy','yaml'} & set(sys.modules)), 'load' in hvlm.__all__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.stdout == "[] True\n", done.stderr


@pytest.mark.fault(114)
def test_loading_and_asking_need_no_trainer(run: Path, video: Path, tmp_path: Path) -> None:
    """Lightning takes as long to import as everything else together."""
    code = (
        "import sys, hvlm; hvlm.load(sys.argv[1]).answer(sys.argv[2], 'what color ?')\n"
        "from hvlm.commands import eval\n"
        "eval.evaluate([f'checkpoint={sys.argv[1]}', 'task=ask', f'ask.video={sys.argv[2]}', 'ask.question=what ?',\n"
        "               f'out={sys.argv[3]}'])\n"
        "print(sorted({'lightning', 'torchmetrics', 'wandb'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(run), str(video), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.endswith("[]\n"), done.stdout[-300:] + done.stderr[-2000:]
