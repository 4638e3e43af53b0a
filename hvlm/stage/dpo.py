"""Stage 3, direct preference optimisation (Rafailov et al. 2023).

r = β (log π(y|x) − log π_ref(y|x)), sums over answer tokens; loss = −log σ(r_chosen − r_rejected) + w · NLL(chosen).

The NLL anchor keeps the chosen answer's probability from falling while the margin grows. Policy and reference both run
in evaluation mode: no dropout, and running statistics stay as they are, so that at the start they are the same function
and the loss is ln 2.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hvlm.config.ranges import NonNegativeFloat, PositiveFloat
from hvlm.data.views import Pairs
from hvlm.model import VLM
from hvlm.stage._base import Losses, Stage
from hvlm.stage._sharding import shard
from hvlm.types import Batch


class DPO(Stage):
    """reference: ``copy`` holds a frozen copy of the starting weights; ``precomputed`` reads the reference's log-probs
    from a table made once before training (half the memory, one pass more); ``adapter_off`` is the model without its
    adapter, where nothing but the adapter trains (half the memory, no table)."""

    view = Pairs()
    words = True

    def __init__(
        self,
        *,
        beta: PositiveFloat = 0.1,
        nll_weight: NonNegativeFloat = 0.0,
        reference: Literal["copy", "precomputed", "adapter_off"] = "copy",
        **stage: Any,
    ):
        super().__init__(**stage)
        if reference not in ("copy", "precomputed", "adapter_off"):
            raise ValueError(f"stage.reference={reference!r}: expected copy, precomputed or adapter_off")
        self.beta, self.nll_weight, self.reference_kind = beta, nll_weight, reference
        # In a tuple, so that it is neither trained nor stored: resuming makes it again from the same starting weights.
        self._reference: tuple[VLM, ...] = ()
        self.table: dict[str, float] = {}

    def freeze(self) -> None:
        super().freeze()
        if self.reference_kind != "adapter_off":
            return
        if not self.model.adapter.names:
            raise ValueError(
                "stage.reference=adapter_off: there is no adapter to switch off; choose one (adapter=lora), or use "
                "stage.reference=copy"
            )
        if others := sorted(set(self.trainable) - {"adapter"}):
            raise ValueError(
                f"stage.reference=adapter_off: {', '.join(others)} trains as well, and the reference would move with "
                "it; use adapter.alone=true, or stage.reference=copy"
            )

    def train(self, mode: bool = True) -> Stage:
        """The policy never leaves evaluation mode: see above."""
        super().train(mode)
        self.model.eval()
        return self

    def configure_model(self) -> None:
        """Make the reference, once, of the weights that the model then has: those that the stage starts from. Called by
        the trainer before a checkpoint is put back and before weights are sharded."""
        if self.reference_kind == "copy" and not self._reference:
            features, self.model.features = self.model.features, None  # many gigabytes, and shared below
            self._reference = (copy.deepcopy(self.model).requires_grad_(False).eval(),)
            self.model.features = features
            if self.device_mesh is not None:
                reference = self._reference[0]
                shard(reference, reference, ("token_logprobs",), self.device_mesh["data_parallel"])
        super().configure_model()

    def prepare(self, every_pair: Any) -> None:
        """Fill the table for ``reference=precomputed``. ``every_pair`` makes an iterable of batches with all pairs of
        the training and validation splits. Call before ``fit``, with the starting weights in the model."""
        if self.reference_kind != "precomputed":
            return
        self.model.eval()
        with torch.no_grad():
            for batch in every_pair():
                for row, value in zip(batch.rows, self._sums(self.model, batch).tolist(), strict=True):
                    self.table[pair_key(row)] = value

    @staticmethod
    def _sums(model: torch.nn.Module, batch: Batch) -> Tensor:
        """Σ log p over the answer tokens of every row, [K]."""
        return model.token_logprobs(batch).sum(1)

    def _reference_sums(self, batch: Batch, like: Tensor) -> Tensor:
        if self.reference_kind == "adapter_off":
            with torch.no_grad(), self.model.adapter.off():
                return self._sums(self.model, batch._replace(adapter_K=None))
        if self._reference:
            reference = self._reference[0].to(like.device)
            # Kept features are rounded, and the encoder is frozen: both read the same, or neither does.
            reference.features = self.model.features
            with torch.no_grad():
                return self._sums(reference, batch)
        if self.reference_kind == "copy":
            raise RuntimeError("the reference is made in configure_model(): call it while the weights are the start's")
        missing = [pair_key(row) for row in batch.rows if pair_key(row) not in self.table]
        if missing:
            raise KeyError(f"stage.reference=precomputed: no reference log-prob for {missing[0]}; run prepare() first")
        return like.new_tensor([self.table[pair_key(row)] for row in batch.rows])

    def units(self, batch: Batch) -> dict[str, float]:
        return {"pairs": len(batch.input_ids_KS) // 2}

    def losses(self, batch: Batch) -> Losses:
        """Rows come in pairs: chosen, rejected, chosen, rejected, ..."""
        logp = self._sums(self.model, batch)
        reward_w, reward_l = (self.beta * (logp - self._reference_sums(batch, logp))).reshape(-1, 2).unbind(1)
        margin = reward_w - reward_l
        tokens = (batch.loss_mask_KS & batch.attention_mask_KS).sum(1)
        nll = -(logp / tokens).reshape(-1, 2)[:, 0]
        loss = -F.logsigmoid(margin) + self.nll_weight * nll
        # A tie counts half: before the first step policy and reference are the same function.
        wins = (margin > 0).float() + 0.5 * (margin == 0).float()
        extras = {
            "reward_accuracy": wins.sum(),
            "reward_margin": margin.sum(),
            "reward_chosen": reward_w.sum(),
            "reward_rejected": reward_l.sum(),
            "logp_chosen": logp.reshape(-1, 2)[:, 0].sum(),
            "logp_rejected": logp.reshape(-1, 2)[:, 1].sum(),
            "answer_tokens_chosen": tokens.reshape(-1, 2)[:, 0].sum().float(),
            "answer_tokens_rejected": tokens.reshape(-1, 2)[:, 1].sum().float(),
        }
        count = torch.tensor(len(margin), device=logp.device)
        return Losses.of("pairs", loss.sum(), count, extras)


def pair_key(row: dict[str, Any]) -> str:
    """Names one side of one pair of one clip of all splits, the same in every epoch."""
    return f"{row['uid']}/{row['question_id']}/{row['role']}"
