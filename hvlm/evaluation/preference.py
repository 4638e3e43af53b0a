"""Does a policy prefer the chosen answers, measured against the reference that it started from, on held-out pairs?"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from hvlm.evaluation.stats import clustered_mean
from hvlm.model import VLM
from hvlm.precision import autocast
from hvlm.types import Batch


@torch.inference_mode()
def reward_accuracy(
    policy: VLM, reference: VLM, batches: Iterable[Batch], precision: str
) -> tuple[float, float | None, int]:
    """(share of pairs whose chosen answer has the greater reward, standard error clustered by clip, number of pairs).

    The reward is log pi(y|x) - log pi_ref(y|x), summed over the answer's tokens (DPO's, up to beta). A tie counts half,
    so a policy that is its reference scores exactly 0.5. batches: of the view ``pairs``, on the CPU. Both models are
    put into evaluation mode; policy and reference may be one model.
    """
    policy.eval()
    reference.eval()
    device = next(policy.parameters()).device
    wins: list[float] = []
    clips: list[str] = []
    for batch in batches:
        rows = batch.rows
        batch = batch.to(device)
        with autocast(device, precision):
            reward = policy.token_logprobs(batch).sum(1) - reference.token_logprobs(batch).sum(1)
        chosen, rejected = reward.float().reshape(-1, 2).unbind(1)
        wins += ((chosen > rejected).float() + 0.5 * (chosen == rejected).float()).tolist()
        clips += [row["uid"] for row in rows[::2]]
    value, stderr = clustered_mean(wins, clips)
    return value, stderr, len(wins)
