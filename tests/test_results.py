"""Records of results, their merging over seeds, the report, and what a run shows while it runs."""

import json
import math
import os
import shutil

import lightning
import numpy as np
import pytest
import torch

from hvlm.errors import UserError
from hvlm.evaluation import results
from hvlm.evaluation.report import read_curves, sparkline, table, write_report
from hvlm.training.callbacks import Norms, PlainProgress, Throughput, duration
from hvlm.training.file_logger import FileLogger
from hvlm.types import Batch
from hvlm.viz.media import contact_sheet, keep_wandb_media_in, write_mp4


def record(value=0.9, metric="accuracy_mean", variant="coarse_fine", seed=1, stderr=0.03, **columns):
    return results.make(
        "demo", variant, metric, value, stderr=stderr, n=400, chance=0.25, seeds=[seed], seconds=2.0, columns=columns,
        command="python eval.py",
    )  # fmt: skip


def test_a_record_says_where_it_comes_from():
    made = record(keep=0.5)
    assert set(results.FIXED) | {"keep"} == set(made)
    assert made["torch"] == torch.__version__ and "CPUs" in made["cpu"]
    assert 10 < made["peak_rss_mb"] < 100_000, "megabytes"
    assert made["commit"] is None or len(made["commit"]) == 40
    assert (results._ROOT / "conf").is_dir(), "whether code and configuration are as committed is asked of this folder"
    assert results.make("q", "v", "m", 1, stderr=None, n=1, chance=None, seeds=[], seconds=0)["command"].startswith(
        "python"
    )


def test_bad_records_are_refused():
    with pytest.raises(ValueError, match="value is nan"):
        record(math.nan)
    with pytest.raises(ValueError, match="columns .'commit'."):
        record(commit="abc")


def test_write_read_update(tmp_path):
    path = tmp_path / "sub" / "results.json"
    results.write(path, [record(0.5), record(0.6, keep=0.5)])
    assert [r["value"] for r in results.read(path)] == [0.5, 0.6]
    assert len(path.read_text().splitlines()) == 4, "one line per record"
    results.update(path, [record(0.7), record(0.8, variant="mean")])
    assert sorted(r["value"] for r in results.read(path)) == [0.6, 0.7, 0.8]
    path.write_text("[{}]")
    with pytest.raises(UserError, match="record 0 lacks question"):
        results.read(path)
    with pytest.raises(UserError, match="cannot be read"):
        results.read(tmp_path / "none.json")


def test_merge_seeds():
    runs = [[record(v, seed=s, stderr=e), record(0.1, "samples_per_s", seed=s, stderr=None)]
            for v, s, e in ((0.8, 1, 0.03), (0.9, 2, 0.04), (1.0, 3, 0.05))]  # fmt: skip
    accuracy, speed = results.merge_seeds(runs)
    assert accuracy["value"] == pytest.approx(0.9) and accuracy["seeds"] == [1, 2, 3] and accuracy["n"] == 400
    within = (0.03**2 + 0.04**2 + 0.05**2) / 3  # the same clips for every seed: not divided by three
    assert accuracy["stderr"] == pytest.approx(math.sqrt(within + 0.01 / 3))
    assert speed["stderr"] == pytest.approx(0.0), "only between seeds"
    (alone,) = results.merge_seeds([[record(0.8, stderr=0.03)]])
    assert alone["stderr"] == pytest.approx(0.03)
    assert len(results.merge_seeds([[record(keep=0.5), record(keep=1.0)]])) == 2, "further columns keep records apart"
    with pytest.raises(UserError, match="repeat"):
        results.merge_seeds([[record()], [record()]])
    with pytest.raises(UserError, match="only some"):
        results.merge_seeds([[record()], [record(seed=2, stderr=None)]])


# ----------------------------------------------------------------------------------------------------------- report


def cells(line):
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_table_puts_chance_blind_and_four_of_four_beside_the_value():
    four = record(0.9, metric="accuracy_4of4", stderr=0.01) | {"chance": 0.25**4}
    lines = table([record(0.975, stderr=0.008), four, record(0.26, variant="blind", stderr=0.02)])
    assert len(lines) == 3
    assert cells(lines[2]) == [
        "coarse_fine", "accuracy_mean", "97.5 ± 0.8 %", "25.0 %", "26.0 ± 2.0 %", "90.0 ± 1.0 % (0.39 %)", "400", "2.0",
    ]  # fmt: skip
    assert len({len(line) for line in lines}) == 1, "aligned in a terminal"
    # Without the mean the 4-of-4 score has a row of its own; a speed has neither; further columns keep rows apart.
    speed = record(120.0, metric="samples_per_s", stderr=None, keep=0.5) | {"chance": None}
    lines = table([four, speed, record(0.3, variant="blind", metric="samples_per_s")])
    assert [cells(line)[1:6] for line in lines[2:]] == [
        ["accuracy_4of4", "90.0 ± 1.0 %", "0.39 %", "", ""],
        ["samples_per_s", "120", "", "", ""],
    ]
    assert cells(lines[3])[0] == "coarse_fine keep=0.5"


def test_metrics_survive_a_resume_and_a_kill(tmp_path):
    logger = FileLogger(tmp_path)
    logger.log_metrics({"train/loss": 4.0, "epoch": 0}, 1)
    logger.log_metrics({"train/loss": 3.0, "lr/connector": 1e-3}, 2)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "train/lo')
    again = FileLogger(tmp_path)
    again.log_metrics({"train/loss": 2.0}, 2)  # the continued run does step 2 again
    again.log_metrics({"train/loss": math.nan}, 3)
    again.finalize("success")
    assert read_curves(tmp_path) == {"train/loss": [(1, 4.0), (2, 2.0)], "lr/connector": [(2, 1e-3)]}
    table = (tmp_path / "metrics.csv").read_text().splitlines()
    assert table == ["step,lr/connector,train/loss", "1,,4.0", "2,0.001,2.0", "3,,"]
    FileLogger(tmp_path, fresh=True).finalize("success")
    assert list(tmp_path.iterdir()) == [], "a run that starts anew has no history"


def test_sparkline():
    assert sparkline([(i, float(i)) for i in range(8)]) == "▁▂▃▄▅▆▇█"
    assert sparkline([(i, float(100 - i)) for i in range(100)], width=4) == "█▆▃▁"
    assert sparkline([(0, 1.0), (5, 1.0)]) == "▁▁"
    assert sparkline([]) == ""


def test_report(tmp_path):
    stage = tmp_path / "demo" / "sft"
    stage.mkdir(parents=True)
    rooms = {"connector": {"_target_": "hvlm.connector.foveated.Foveated"}, "order": "question_first", "seed": 1}
    (stage / "config.yaml").write_text(json.dumps(rooms))  # JSON is YAML
    (stage / "finished.json").write_text(json.dumps({"steps": 20, "seconds": 75.2, "weights_sha256": "ab" * 32}))
    for step in range(20):
        FileLogger(stage).log_metrics({"train/loss": 5.0 - step / 10, "samples_per_s": 100.0}, step)
    results.write(tmp_path / "demo/results.json", [record(), record(0.25, variant="blind")])
    clips = tmp_path / "demo" / "clips"
    clips.mkdir()
    line = {"sheet": "0.png", "key": "k", "question": "a|b", "answer": "red", "prediction": None}
    (clips / "clips.jsonl").write_text(json.dumps(line) + "\n")
    text = write_report(tmp_path / "demo").read_text()
    for part in ("# demo", "| coarse_fine | accuracy_mean |", "20 steps in 1:15", "connector=foveated", "5 (step 0)",
                 "3.1 (step 19)", "Median samples_per_s: 100", "a\\|b", "(clips/0.png)", "python eval.py"):  # fmt: skip
        assert part in text, part
    with pytest.raises(UserError, match="neither results.json"):
        write_report(stage)


@pytest.mark.fault(88)
def test_stages_stand_in_the_order_of_their_weights_and_of_their_chain(tmp_path):
    """Whatever the files' times and names say."""

    def stage(name, weights=None, start=None, chain=None):
        folder = tmp_path / "run" / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(json.dumps({"chain": chain}))
        if weights:
            record = {"steps": 1, "seconds": 1.0, "weights_sha256": weights, "start": {"weights_sha256": start}}
            (folder / "finished.json").write_text(json.dumps(record))

    stage("dpo", "c", "b")
    stage("sft", "b", "a")
    stage("vision", "a")
    text = write_report(tmp_path / "run").read_text()
    assert text.index("### vision") < text.index("### sft") < text.index("### dpo")
    shutil.rmtree(tmp_path / "run")
    stage("last", chain={"one": [], "two": [], "last": []})
    stage("one")
    stage("two")
    text = write_report(tmp_path / "run").read_text()
    assert text.index("### one") < text.index("### two") < text.index("### last"), "none is finished"
    shutil.rmtree(tmp_path / "run")
    stage("a", "x", "y")
    stage("b", "y", "x")
    assert write_report(tmp_path / "run").read_text().count("### ") == 2, "a circle ends"


# ------------------------------------------------------------------------------------------------------------ media


def test_media_files(tmp_path):
    import av
    from PIL import Image

    frames = np.zeros((5, 3, 15, 16), np.uint8)
    frames[:, 0] = np.array([0, 60, 120, 180, 240], np.uint8)[:, None, None]
    sheet = Image.open(contact_sheet(frames, tmp_path / "a" / "sheet.png", columns=3, scale=2))
    assert sheet.size == (3 * 34 - 2, 2 * 32 - 2)
    assert sheet.getpixel((34 + 5, 5))[0] == 60 and sheet.getpixel((5, 32 + 5))[0] == 180
    with av.open(str(write_mp4(frames, tmp_path / "b" / "clip.mp4", fps=2.0, scale=1))) as file:
        decoded = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
        assert float(file.streams.video[0].average_rate) == 2.0
    assert len(decoded) == 5 and decoded[0].shape == (16, 16, 3), "odd sides are padded"
    assert abs(int(decoded[3][8, 8, 0]) - 180) < 25
    with pytest.raises(ValueError, match="expected uint8"):
        contact_sheet(frames.astype(np.float32), tmp_path / "x.png")


def test_wandb_media_stay_in_the_run_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_DATA_DIR", "before")
    monkeypatch.setenv("WANDB_DIR", "before")
    keep_wandb_media_in(tmp_path / "run")
    assert os.environ["WANDB_DATA_DIR"].startswith(str(tmp_path / "run"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="not writable"):
        keep_wandb_media_in(tmp_path / "file")


# ------------------------------------------------------------------------------------------------ while it is running


class Toy(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, index):
        loss = 100 * self.layer(batch.frame_time_BT).square().mean()
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(
            [{"params": [self.layer.weight], "lr": 1e-3, "name": "connector"},
             {"params": [self.layer.bias], "lr": 1e-3, "name": "connector"}]
        )  # fmt: skip


def batches(steps, clips=4):
    z = torch.zeros(clips, 2)
    text = torch.zeros(clips, 3, dtype=torch.int64)
    one = Batch(z, torch.ones(clips, 2), z.bool(), text, text.bool(), text.bool(), text[:, 0], text[:, 0])
    return torch.utils.data.DataLoader([one] * steps, batch_size=None)


def test_numbers_and_lines_of_a_run(tmp_path, capsys):
    trainer = lightning.Trainer(
        max_steps=6, log_every_n_steps=2, logger=[FileLogger(tmp_path)], enable_checkpointing=False, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=1e-3,
        callbacks=[Throughput(), Norms(), PlainProgress("toy", every_s=0.0)],
    )  # fmt: skip
    trainer.fit(Toy(), batches(6))
    metrics = read_curves(tmp_path)
    steps = [step for step, _ in metrics["train/loss"]]
    assert len(steps) == 3
    for name in ("samples_per_s", "grad_norm", "lr/connector"):
        assert [step for step, _ in metrics[name]] == steps, name
    assert all(value > 1e-2 for _, value in metrics["grad_norm"]), "before clipping to 1e-3"
    assert all(value > 0 for _, value in metrics["samples_per_s"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("toy: step")]
    assert lines[-1].startswith("toy: step 6/6, loss ") and "samples/s" in lines[-1] and "time left 0:00" in lines[-1]


def test_duration():
    assert [duration(s) for s in (0, 75, 4000)] == ["0:00", "1:15", "1:06:40"]


def test_a_ratio_is_measured_and_makes_no_other_record(tmp_path) -> None:
    def one(ratio: float) -> results.Record:
        return results.make("speed", "a", "tokens_per_s", 1.0, stderr=None, n=1, chance=None, seeds=[1], seconds=1.0,
                            command="x", columns={"case": "c", "ratio_to_b": ratio})  # fmt: skip

    results.write(tmp_path / "r.json", [one(1.5)])
    assert [r["ratio_to_b"] for r in results.update(tmp_path / "r.json", [one(2.0)])] == [2.0]
