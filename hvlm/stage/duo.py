"""Which heads need all that was read? Gates of a KV cache, learnt by distillation (DuoAttention, Xiao et al. 2024).

Nothing else trains. The model reads every row twice: with full attention, and with each KV head's output mixed from
that and from what the head finds at the beginning and in what is recent. Where the two readings end alike at the
answers although a gate is 0, the head can do without the rest; a price on every gate pulls those down.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.distributed.tensor import DTensor

from hvlm.caching import PastKV
from hvlm.config.ranges import NonNegativeFloat, NonNegativeInt, PositiveInt
from hvlm.data.views import Questions
from hvlm.errors import UserError
from hvlm.io.head_patterns import choose_heads, write_pattern
from hvlm.stage._base import Losses, Mean, Stage
from hvlm.stage._mix import GatedMix, Recorder
from hvlm.types import Batch, Sequence

log = logging.getLogger(__name__)

PATTERN = "head_pattern"  # folder beside the checkpoints
BINS = 4  # of the histogram of a layer's gates
SHARES = (0.5, 0.25)


class Duo(Stage):
    """Mean over answer tokens of the squared difference of the two last states (mean over their width), plus
    ``l1_weight`` times the mean of the gates' absolute values. The states are those that predict the answers.

    l1_weight: the price of a head that keeps everything.
    sink, recent: what a streaming head sees while gates are learnt, in tokens; null: as many as the cache will keep.
    """

    view = Questions()
    adapts = False
    scored = "answer"
    rooms: ClassVar[Mapping[str, str]] = MappingProxyType({"kvcache": "duo"})

    def __init__(
        self,
        *,
        l1_weight: NonNegativeFloat = 0.05,
        sink: NonNegativeInt | None = None,
        recent: PositiveInt | None = None,
        **stage: Any,
    ):
        super().__init__(**stage)
        kvcache, language, head = self.model.kvcache, self.model.language, self.model.head
        if kvcache.gates is None:
            raise UserError(
                f"stage=duo: kvcache={type(kvcache).__name__} has no gates, and these are what the stage learns; add "
                "kvcache=duo"
            )
        if language.windows:
            raise UserError(
                f"stage=duo: layers of the language model look back by {language.windows[0]} positions only, so there "
                "is nothing that their heads could give up; use a model without windows (language=smollm2_135m, qwen)"
            )
        if not language.asks_cache:
            raise UserError(
                "stage=duo: language.attention is transformers' own, which does not ask the cache what a head sees; "
                "use language.attention=auto"
            )
        if not head.writes:
            raise UserError(f"stage=duo: {type(head).__name__} has no answers whose states could agree; use head=text")
        self.l1_weight = l1_weight
        self.sink = kvcache.sink if sink is None else sink
        self.recent = kvcache.recent if recent is None else recent

    def freeze(self) -> None:
        super().freeze()
        if others := set(self.trainable) - {"kvcache"}:
            raise ValueError(
                f"stage.trainable gives {', '.join(sorted(others))} a rate: stage=duo learns the gates of a model that "
                "stays as it is; use 'stage.trainable={kvcache:0.02}'"
            )

    def units(self, batch: Batch) -> dict[str, float]:
        return {"distill": float(self.model.head.units(batch)), "gates": 1.0}

    def losses(self, batch: Batch) -> Losses:
        """Terms: ``distill`` over answer tokens; ``gates``, one for each batch."""
        raw = self.model.kvcache.gates
        full = Recorder()
        with torch.no_grad():
            sequence = self.model.sequence(batch)
            wanted = self._read(sequence, full)
        found = self._read(sequence, GatedMix(raw.clamp(0, 1), full.outputs, self.sink, self.recent))
        row_M, place_M = sequence.scored()
        at_M = sequence.text_place_KS[row_M, place_M] - 1
        error = (found[row_M, at_M].float() - wanted[row_M, at_M].float()).square().mean(-1).sum()
        answers, one = torch.tensor(len(row_M), device=raw.device), torch.ones((), device=raw.device)
        price = raw.abs().mean()
        kept = (raw.detach() >= 0.5).float().mean()
        return Losses(
            {"distill": Mean(error, answers), "gates": Mean(self.l1_weight * price, one)},
            {"distill": Mean(error, answers), "gates_l1": Mean(price, one), "gates_kept": Mean(kept, one)},
        )

    def _read(self, sequence: Sequence, cache: PastKV) -> Tensor:
        """The states of the whole sequence in one pass, however the cache that is trained would read it."""
        x, mask, _, position, log_size, _, batch, *_ = sequence
        with self.model.adapter.using(language=batch.adapter_K):
            return self.model.language.hidden(x, mask, position, cache, log_size)

    # -- gates ---------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def clamp(self) -> None:
        """Back into [0, 1], where an optimiser's step may have left it."""
        self.model.kvcache.gates.clamp_(0, 1)

    def gates(self) -> Tensor:
        """As they are now, float32 [layers, KV heads] on the CPU. Of several processes all must ask."""
        gates = self.model.kvcache.gates.detach()
        return (gates.full_tensor() if isinstance(gates, DTensor) else gates).float().cpu().clone()

    def training_step(self, batch: Batch, index: int) -> Tensor:
        self.clamp()
        loss = super().training_step(batch, index)
        if (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0:
            self.log_dict(histogram(self.gates()))
        return loss

    def on_train_end(self) -> None:
        """Write the gates as DuoAttention's own files beside the checkpoints, where the stage came to its end."""
        self.clamp()
        gates = self.gates()
        if self.trainer.global_step >= self.trainer.max_steps:
            self._write(gates, Path(self.trainer.default_root_dir) / PATTERN)

    @rank_zero_only
    def _write(self, gates: Tensor, folder: Path) -> None:
        """The pattern, and what it says of the shares that are usually kept."""
        write_pattern(folder, gates, self.sink, self.recent, {"l1_weight": self.l1_weight, "steps": self.steps})
        for share in SHARES:
            heads, ties = choose_heads(gates, share)
            kept = f"{int(heads.sum())} of {gates.numel()} heads keep everything"
            log.info(f"kvcache.retrieval={share:g}: {kept}, {ties} others have the same gate as the last of them")


def histogram(gates: Tensor) -> dict[str, float]:
    """{"gates/layer_00/0.00-0.25": how many of the layer's gates lie there}; 1 counts to the last bin."""
    edges = [i / BINS for i in range(BINS + 1)]
    which = (gates.clamp(0, 1) * BINS).floor().clamp(max=BINS - 1)
    return {
        f"gates/layer_{layer:02d}/{edges[i]:.2f}-{edges[i + 1]:.2f}": float((row == i).sum())
        for layer, row in enumerate(which)
        for i in range(BINS)
    }
