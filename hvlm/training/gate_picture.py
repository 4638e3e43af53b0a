"""The gates of a KV cache as a picture, where a stage has learnt some."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor

from hvlm.viz.gate_map import PICTURE, gate_map


class GatePicture(Callback):
    """``<stage>/gates.png`` at the end of training, and in W&B as ``gates``. Stages without gates have none."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found = getattr(pl_module, "gates", None)
        if found is None or trainer.global_step < trainer.max_steps:
            return
        gates: Tensor = found().clamp(0, 1)  # all processes are asked, one draws
        if not trainer.is_global_zero:
            return
        picture = gate_map(gates, self.folder / PICTURE)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                import wandb  # an optional dependency: imported only where its logger is already in use

                logger.experiment.log({"gates": wandb.Image(str(picture)), "trainer/global_step": trainer.global_step})
