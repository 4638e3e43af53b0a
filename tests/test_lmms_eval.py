"""Our model in lmms-eval, found by its entry point: a task of each kind, offline."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from _small import write_haystack
from _tiny import ROOT

import hvlm
from hvlm.evaluation.predictions import read_predictions
from hvlm.interop.convert import convert

PYTHON = ROOT / ".venv-lmms" / "bin" / "python"
OPTIONS = ["red", "blue", "green"]
QUESTIONS = ["what color is the object ?", "what shape is it ?", "is it red ?"]
TASKS = {
    "tiny_words": "output_type: generate_until\ndoc_to_target: answer\nprocess_results: !function utils.scored\n"
    "generation_kwargs: {max_new_tokens: 4}\n"
    "metric_list: [{metric: exact, aggregation: mean, higher_is_better: true}]\n",
    "tiny_choice": "output_type: multiple_choice\ndoc_to_target: gold\ndoc_to_choice: options\n"
    "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n",
}
COMMON = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
doc_to_visual: !function utils.visual
doc_to_text: !function utils.text
"""


@pytest.mark.skipif(not PYTHON.exists(), reason="lmms-eval has an environment of its own: make test-lmms")
def test_lmms_eval_scores_what_the_model_says(tmp_path: Path) -> None:
    """The document's answers are the model's own, so that every score must be 1."""
    write_haystack(tmp_path)
    video = str(tmp_path / "a.mp4")
    model = hvlm.build(
        vision={"name": "convvit", "dim": 32, "num_layers": 1, "num_heads": 2, "image_size": 32}, connector="mean",
        language={
            "name": "smollm2_tiny", "hidden_size": 32, "intermediate_size": 64, "num_layers": 1, "num_heads": 2,
            "num_kv_heads": 2,
        },
        texts=[*QUESTIONS, *OPTIONS], num_frames=4,
    )  # fmt: skip
    model.save(tmp_path / "hf")
    shutil.copy(ROOT / "tests" / "data" / "lmms" / "utils.py", tmp_path)
    rows = []
    for question in QUESTIONS:
        said, chosen = model.answer(video, question, max_new_tokens=4), model.choose(video, question, OPTIONS)
        rows.append({"video": video, "question": question, "answer": said, "options": OPTIONS, "gold": chosen.index})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in TASKS.items():
        (tmp_path / f"{name}.yaml").write_text(COMMON.format(name=name, rows=tmp_path / "rows.jsonl") + text)
    command = [
        PYTHON, "-m", "lmms_eval", "--model", "hvlm", "--model_args", f"checkpoint={tmp_path / 'hf'},device=cpu",
        "--include_path", tmp_path, "--tasks", ",".join(TASKS), "--batch_size", "1", "--output_path", tmp_path / "out",
        "--log_samples",
    ]  # fmt: skip
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    paths = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=os.environ | offline | paths, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = (tmp_path / "out").rglob("*_results.json")
    found = json.loads(results.read_text())["results"]
    assert found["tiny_words"]["exact,none"] == 1.0 and found["tiny_choice"]["acc,none"] == 1.0, found
    for task, wanted in (("choice", [row["gold"] for row in rows]), ("words", [row["answer"] for row in rows])):
        (samples,) = (tmp_path / "out").rglob(f"*_samples_tiny_{task}.jsonl")
        read = read_predictions(convert(samples, "hvlm", tmp_path / "rows.jsonl")[0])
        assert [p.pred if task == "choice" else p.text for p in read] == wanted
        assert [p.question for p in read] == QUESTIONS
