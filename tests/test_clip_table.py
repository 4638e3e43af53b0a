"""The table of clips: what it shows, and that its files travel with the run."""

import json

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import WandbLogger

from hvlm import assembly
from hvlm.config.compose import compose
from hvlm.data.batches import one_row_per_clip
from hvlm.data.collate import Item, collate
from hvlm.language.smollm2 import SmolLM2
from hvlm.model import VLM
from hvlm.text.chat import Chat
from hvlm.text.tokenizer import train_word_tokenizer
from hvlm.training.clip_table import ClipTable, describe
from hvlm.vision.convvit import ConvViT
from hvlm.viz.media import keep_wandb_media_in

CHAT = Chat(train_word_tokenizer(["what color is the ring ? where red blue top left"]), "tiny")


def make_model():
    """A whole backbone, untrained: what it says is nonsense that depends on what it read."""
    torch.manual_seed(0)
    vision = ConvViT(dim=32, num_layers=1, num_heads=2, image_size=64)
    language = SmolLM2(
        chat=CHAT, hidden_size=32, intermediate_size=32, num_layers=1, num_heads=2, num_kv_heads=2, template="tiny"
    )
    for parameter in language.parameters():  # small initial weights would only repeat the last token
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter)
    config = compose(["connector=mean"])
    node = {"dim": 32, "num_heads": 2}
    return VLM(
        vision=vision, merger=assembly.room(config["merger"], dim=32),
        connector=assembly.room(config["connector"], dim=32, text_dim=32, query_dim=vision.query_dim, grid=(4, 4)),
        attention=assembly.room(config["attention"], **node), fusion=assembly.room(config["fusion"], **node),
        language=language, adapter=assembly.room(config["adapter"]),
        kvcache=assembly.room(config["kvcache"], **language.cache_sizes),
        head=assembly.room(config["head"], text_dim=32, logits=language.logits), order="question_first",
    )  # fmt: skip


def make_batch(loss="answer"):
    def item(value, *rows):
        frames = None if value is None else np.full((2, 3, 64, 64), value, np.uint8)
        encoded = [(*CHAT.encode(q, a, loss), {"key": str(value), "answer": a}) for q, a in rows]
        return Item(frames, None if value is None else np.array([0.0, 1.0], np.float32), encoded)

    clips = [
        item(20, ("what color is the ring ?", "red"), ("where ?", "left")),
        item(None, ("what ?", "red")),
        item(200, ("where is the ring ?", "top left")),
    ]
    return collate(clips, pad_id=CHAT.pad_id, size=(64, 64))


def test_one_row_per_clip_leaves_out_text():
    batch = one_row_per_clip(make_batch(), clips=8)
    assert [row["key"] for row in batch.rows] == ["20", "200"] and batch.clip_K.tolist() == [0, 1]
    assert batch.frames_BTCHW[:, 0, 0, 0, 0].tolist() == [20, 200]
    assert one_row_per_clip(make_batch(), clips=1).num_clips == 1


def test_describe_cuts_the_answer_off_whatever_the_stage_scores():
    model = make_model().train()
    batch = one_row_per_clip(make_batch("answer"), 8)
    rows = describe(model, batch, max_new_tokens=5)
    assert [(row["question"], row["answer"]) for row in rows] == [
        ("what color is the ring ?", "red"),
        ("where is the ring ?", "top left"),
    ]
    assert describe(model, one_row_per_clip(make_batch("all"), 8), max_new_tokens=5) == rows
    # The answer in the batch is not seen: another one of the same length gives the same prediction.
    ids = batch.input_ids_KS.clone()
    ids[0, int(batch.attention_mask_KS[0].sum()) - 2] = CHAT.encode("", "blue").ids[2]
    other = batch._replace(input_ids_KS=ids, rows=[{"answer": "blue"}, {"answer": "top left"}])
    assert describe(model, other, 5)[0] == rows[0] | {"answer": "blue"}
    # But what comes before it is.
    assert rows[0]["prediction"] != rows[1]["prediction"] != ""
    assert len(describe(model, batch, max_new_tokens=1)[1]["prediction"].split()) == 1
    assert model.training and model.vision.training, "the model goes on training afterwards"


class Stage(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = make_model()

    def training_step(self, batch, index):
        return (
            sum(p.sum() ** 2 for p in self.model.head.parameters())
            + self.model.language.embed(batch.input_ids_KS).mean()
        )

    def validation_step(self, batch, index):
        return None

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(folder, logger=False, validate=True):
    loader = torch.utils.data.DataLoader([make_batch()] * 2, batch_size=None)
    trainer = lightning.Trainer(
        max_steps=2, logger=logger, callbacks=[ClipTable(folder, clips=4)], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, accelerator="cpu", num_sanity_val_steps=0,
        limit_val_batches=1.0 if validate else 0, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(Stage(), loader, loader if validate else None)


@pytest.mark.parametrize(("validate", "split"), [(True, "val"), (False, "train")])
def test_files_of_the_table(tmp_path, validate, split):
    fit(tmp_path, validate=validate)
    rows = [json.loads(line) for line in (tmp_path / "clips.jsonl").read_text().splitlines()]
    assert [(r["step"], r["split"], r["answer"]) for r in rows] == [(2, split, "red"), (2, split, "top left")]
    assert all((tmp_path / row["sheet"]).exists() for row in rows)
    assert not list(tmp_path.glob("*.mp4")), "videos are for W&B"


def test_wandb_table_travels_with_the_run(tmp_path, monkeypatch):
    for name in ("WANDB_DATA_DIR", "WANDB_DIR"):
        monkeypatch.setenv(name, "unset")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = keep_wandb_media_in(tmp_path / "run")
    logger = WandbLogger(project="test", offline=True, save_dir=run)
    fit(run / "clips", logger=logger)
    logger.experiment.finish()
    assert len(list((run / "wandb").glob("offline-run-*/files/media/videos/*.mp4"))) == 2
    (table,) = (run / "wandb").glob("offline-run-*/files/media/table/*.table.json")
    assert json.loads(table.read_text())["data"][1][1::2][:2] == ["where is the ring ?", "top left"]
    staged = [path.read_bytes() for path in (run / "wandb-data" / "artifacts" / "staging").iterdir()]
    for video in (run / "clips").glob("*.mp4"):
        assert video.read_bytes() in staged, "what wandb sync would upload for the table lies in the run folder"
