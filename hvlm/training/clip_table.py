"""A few validation clips with the question, the right answer and what the model itself writes, to look at."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from hvlm.data.batches import clip_frames, one_row_per_clip
from hvlm.evaluation.generate import generate
from hvlm.model import VLM
from hvlm.text.chat import Chat
from hvlm.types import Batch
from hvlm.viz.gaze_maps import gaze_maps, write_maps
from hvlm.viz.media import contact_sheet, write_mp4
from hvlm.viz.merge_maps import merge_maps, write_merging


class ClipTable(Callback):
    """After each validation: contact sheets (PNG) and one line per clip in ``folder/clips.jsonl``.

    A run that does not validate while it trains shows clips of its last training batch at the end instead; each line
    says which split it is from. With a W&B logger the same goes into the table ``clips`` with playable videos. Those
    are files in ``folder``, given by path: they travel with the run, and W&B would need moviepy to encode arrays.
    ``clips``: how many, at most what one batch holds. ``max_new_tokens`` bounds the model's answer, ``media_mb`` what a
    table in W&B holds.
    """

    def __init__(self, folder: Path, clips: int = 8, max_new_tokens: int = 12, media_mb: float = 64.0):
        self.most_bytes = int(media_mb * 1e6)
        self.folder, self.clips, self.max_new_tokens = Path(folder), clips, max_new_tokens
        self._batch: Batch | None = None

    @rank_zero_only
    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        # The first batch is the same at every validation, so the tables of a run can be compared.
        if batch_idx == 0 and not trainer.sanity_checking:
            self._batch = batch

    @rank_zero_only
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._show(trainer, pl_module, "val")

    @rank_zero_only
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        if not trainer.enable_validation and bool(batch.frame_mask_BT.any()):
            self._batch = batch

    @rank_zero_only
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._show(trainer, pl_module, "train")

    def _show(self, trainer: Trainer, pl_module: LightningModule, split: str) -> None:
        batch, self._batch = self._batch, None
        if batch is None or batch.labels is not None:  # per-patch labels come without questions
            return
        batch = one_row_per_clip(batch, self.clips)
        if batch.num_clips == 0:
            return
        step = trainer.global_step
        rows = describe(pl_module.model, batch, self.max_new_tokens)
        names = [f"{split}-step{step:06d}-{i}" for i in range(len(rows))]
        for i, (name, row) in enumerate(zip(names, rows, strict=True)):
            row["sheet"] = contact_sheet(clip_frames(batch, i), self.folder / f"{name}.png").name
        if pl_module.model.connector.wants_gaze:
            for i, (name, maps) in enumerate(zip(names, gaze_maps(pl_module.model, batch), strict=True)):
                row, files = rows[i], write_maps(clip_frames(batch, i), maps, self.folder / f"{name}-gaze")
                row |= {"gaze": files["sheet"].name, "gaze_path": files["path"].name}
        if not pl_module.model.merger.changes_nothing:
            for i, (name, merged) in enumerate(zip(names, merge_maps(pl_module.model, batch), strict=True)):
                files = write_merging(clip_frames(batch, i), merged, self.folder / name)
                rows[i] |= {kind: file.name for kind, file in files.items()}
        with open(self.folder / "clips.jsonl", "a", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps({"step": step, "split": split, **row}, ensure_ascii=False) + "\n")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                videos = [write_mp4(clip_frames(batch, i), self.folder / f"{n}.mp4") for i, n in enumerate(names)]
                from hvlm.training import wandb_media  # imported only where its logger is already in use

                shown = wandb_media.clips(rows, videos, self.folder, self.most_bytes)
                logger.experiment.log(shown | {"trainer/global_step": step})


def describe(model: VLM, batch: Batch, max_new_tokens: int) -> list[dict[str, str]]:
    """{"question", "answer", "prediction"} of every text row; the rows' ``answer`` comes with the batch (``rows``)."""
    chat: Chat = model.language.chat
    if not model.head.writes:
        return _answered(model, chat, batch)
    answers = [row["answer"] for row in batch.rows]
    # Where the answer and its end token stand: the row's last tokens, whatever the stage's own loss mask covers.
    # (Of a text that was cut, the reader says how many.)
    lengths = [row.get("answer_tokens") or sum(chat.encode("", row["answer"]).loss_mask) for row in batch.rows]
    num_answer = torch.tensor(lengths)
    end = batch.attention_mask_KS.sum(1).cpu()
    place = torch.arange(batch.input_ids_KS.shape[1])
    is_answer = (place >= (end - num_answer).unsqueeze(1)) & (place < end.unsqueeze(1))
    asked = batch._replace(loss_mask_KS=is_answer.to(batch.loss_mask_KS.device))
    predictions = generate(model, chat, asked, max_new_tokens)
    prompts = [
        chat.decode(ids[:n].tolist()) for ids, n in zip(batch.input_ids_KS, (end - num_answer).tolist(), strict=True)
    ]
    return [
        {"question": prompt, "answer": answer, "prediction": prediction}
        for prompt, answer, prediction in zip(prompts, answers, predictions, strict=True)
    ]


@torch.no_grad()
def _answered(model: VLM, chat: Chat, batch: Batch) -> list[dict[str, str]]:
    """The same of a head that writes no text: the beginning of its line about each row."""
    lines = model.head.predict(model.output(batch), batch)
    prompts = [
        chat.decode(ids[mask].tolist()) for ids, mask in zip(batch.input_ids_KS, batch.attention_mask_KS, strict=True)
    ]
    return [
        {"question": prompt, "answer": "", "prediction": json.dumps(line, ensure_ascii=False)[:400]}
        for prompt, line in zip(prompts, lines, strict=True)
    ]
