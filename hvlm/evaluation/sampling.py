"""Which word comes next: the likeliest, one drawn by chance, or that of the likeliest whole answer."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from hvlm.errors import UserError


@dataclass
class Sampling:
    """Called with the scores of the next token, gives the token.

    Args:
        temperature: 0 takes the likeliest, always the same; 1 draws with the model's own probabilities, less makes the
            likely ones likelier.
        top_p: draws only among the likeliest tokens that together have this probability.
        seed: of what is drawn; the same seed and the same calls give the same words.
        num_beams: of beam search (``hvlm.evaluation.beams``), with temperature 0; 1: word by word.
        section: of the settings, for messages.

    Raises:
        UserError: ``top_p`` with temperature 0, where it would do nothing, or beams of words drawn by chance.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    num_beams: int = 1
    section: str = "ask"
    _generator: torch.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.temperature == 0 and self.top_p < 1:
            raise UserError(
                f"{self.section}.top_p={self.top_p:g}: with {self.section}.temperature=0 the likeliest word is taken; "
                f"set {self.section}.temperature=1, or leave {self.section}.top_p out"
            )
        if self.num_beams > 1 and self.temperature > 0:
            raise UserError(
                f"{self.section}.num_beams={self.num_beams}: beams follow the likeliest words, but "
                f"{self.section}.temperature={self.temperature:g} draws by chance; leave one of the two out"
            )
        self._generator = torch.Generator().manual_seed(self.seed)  # on the CPU: the same draws on every device

    def __call__(self, logits_KV: Tensor) -> Tensor:
        """Logits [K, vocabulary] of the next token -> its ids, int64 [K]."""
        if self.temperature == 0:
            return logits_KV.argmax(-1)
        return torch.multinomial(self.probabilities(logits_KV).cpu(), 1, generator=self._generator)[:, 0].to(
            logits_KV.device
        )

    def probabilities(self, logits_KV: Tensor) -> Tensor:
        """Of every token to be drawn, float32 [K, vocabulary], not yet divided by what was left out."""
        probability_KV = (logits_KV.float() / self.temperature).softmax(-1)
        if self.top_p == 1:
            return probability_KV
        ordered_KV, ids_KV = probability_KV.sort(descending=True)
        before_KV = ordered_KV.cumsum(-1) - ordered_KV  # of the likelier ones: the first always stays
        kept_KV = ordered_KV.masked_fill(before_KV >= self.top_p, 0.0)
        return torch.zeros_like(kept_KV).scatter(-1, ids_KV, kept_KV)


GREEDY = Sampling()
