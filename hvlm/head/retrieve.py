"""Which video belongs to which text: a dual encoder, whose embeddings of the two know nothing of each other.

The language model reads the video alone (after a fixed prompt) and the text alone; the state of the last place of each
becomes an embedding. Learned with the symmetric contrastive loss of CLIP (Radford et al. 2021) over the clips of all
processes, with a learned temperature; wrong texts that come with a clip are further candidates for its video.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric

from hvlm.config.ranges import NonNegativeInt, PositiveFloat, PositiveInt
from hvlm.contracts import Head
from hvlm.data.question_file import Row as FileRow
from hvlm.data.sample_fields import FieldError, as_text
from hvlm.errors import UserError
from hvlm.head._contrast import gathered
from hvlm.head._errors import with_errors
from hvlm.head._lines import check_each, clip_of, listed, vector
from hvlm.head._pairs import PairsOfTexts, read_pairs
from hvlm.head._pool import last_state, video_states
from hvlm.head._processes import sharing
from hvlm.metrics.retrieval import KS, RankedRetrieval
from hvlm.prompts import DESCRIBE
from hvlm.types import Alone, Batch, Sequence, Term


class Embedded(NamedTuple):
    """Of unit length: video_KE, and text_KNE, the right text's first."""

    video_KE: Tensor
    text_KNE: Tensor


class Retrieve(Head):
    """dim: width of the embeddings. hidden: of the layer before them. temperature: at the start. ceiling: the factor of
    the similarities never grows beyond it. negatives: wrong texts of a clip that are drawn to train it. prompt: what
    stands before the video, the same for all.
    """

    no_weight_decay = ("log_scale",)
    measures = ("accuracy", "scale")

    def __init__(
        self,
        *,
        text_dim: int,
        dim: PositiveInt = 128,
        hidden: PositiveInt = 256,
        temperature: PositiveFloat = 0.07,
        ceiling: PositiveFloat = 100.0,
        negatives: NonNegativeInt = 3,
        prompt: str = DESCRIBE,
    ):
        super().__init__()
        self.view = PairsOfTexts(prompt, negatives)
        self.ceiling, self.text_dims = ceiling, 2 * text_dim
        self.video = _projection(2 * text_dim, hidden, dim)
        self.text = _projection(2 * text_dim, hidden, dim)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    @property
    def scale(self) -> Tensor:
        """What similarities are multiplied with: 1 / temperature, at most ``ceiling``."""
        # At the ceiling the gradient goes on, or what has once reached it could never fall again.
        above = (self.log_scale - math.log(self.ceiling)).clamp(min=0).detach()
        return (self.log_scale - above).exp()

    def texts(self, batch: Batch) -> tuple[Tensor, Tensor] | None:
        assert batch.targets is not None, "a batch of the head's own view"
        return batch.targets["text_ids"].flatten(0, 1), batch.targets["text_mask"].flatten(0, 1)

    def forward(self, hidden_KLD: Tensor, sequence: Sequence) -> Embedded:
        assert sequence.alone is not None, "texts that were read alone"
        x_KVD, mask_KV = video_states(hidden_KLD, sequence)
        video = torch.cat([last_state(hidden_KLD, sequence), _mean(x_KVD, mask_KV)], -1)
        text = self.of_texts(sequence.alone)
        return Embedded(F.normalize(self.video(video).float(), dim=-1), text.unflatten(0, (len(hidden_KLD), -1)))

    def of_texts(self, alone: Alone) -> Tensor:
        """Embeddings of texts that were read by themselves, [M, dim], of unit length."""
        states, mask = alone
        place = torch.arange(mask.shape[1], device=mask.device)
        last = states[torch.arange(len(mask), device=mask.device), (place * mask).argmax(1)]
        return F.normalize(self.text(torch.cat([last, _mean(states, mask)], -1)).float(), dim=-1)

    def units(self, batch: Batch) -> int:
        return len(batch.input_ids_KS)

    def loss(self, output: Embedded, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Half the cross-entropy of the right text among all texts and the clip's wrong ones, and half that of the
        right video among all videos, for each of this process's rows.

        What says the same as a row's own text is no wrong answer to it, wherever it comes from.
        """
        assert batch.targets is not None, "a batch of the head's own view"
        video, (own, wrong) = output.video_KE, (output.text_KNE[:, 0], output.text_KNE[:, 1:])
        every_text, begin = gathered(own)
        every_video, _ = gathered(video)
        rows = torch.arange(len(video), device=video.device)
        said = batch.targets["said"]
        same = said.unsqueeze(1) == gathered(said)[0]
        same[rows, begin + rows] = False
        # Masked after they are scaled: 0 times infinity would be the scale's gradient.
        to_text = (self.scale * (video @ every_text.T)).masked_fill(same, -torch.inf)
        to_wrong = self.scale * torch.einsum("ke,kne->kn", video, wrong)
        to_wrong = to_wrong.masked_fill(~batch.targets["there"][:, 1:], -torch.inf)
        to_video = (self.scale * (own @ every_video.T)).masked_fill(same, -torch.inf)
        found = torch.cat([to_text, to_wrong], 1)
        total = F.cross_entropy(found, begin + rows, reduction="sum")
        total = (total + F.cross_entropy(to_video, begin + rows, reduction="sum")) / 2
        right = (found.argmax(1) == begin + rows).sum().float()
        return total, total.new_tensor(len(video)), {"accuracy": right, "scale": self.scale.detach() * len(video)}

    def absent(self, batch: Batch) -> Term:
        """See ``Head.absent``; what other processes compare with is asked of all."""
        term = super().absent(batch)
        if not sharing():
            return term
        none = self.log_scale.new_zeros(0, self.text_dims)
        own, video = (F.normalize(side(none).float(), dim=-1) for side in (self.text, self.video))
        exchanged = [gathered(own)[0], gathered(video)[0], gathered(batch.clip_K[:0])[0]]
        return term._replace(total=sum(0.0 * x.sum() for x in exchanged[:2]) + 0.0 * self.log_scale)

    @torch.no_grad()
    def predict(self, output: Embedded, batch: Batch) -> list[dict[str, Any]]:
        """{key, uid, texts, video, embeddings}: the right text, its wrong ones, and the embeddings."""
        assert batch.targets is not None, "a batch of the head's own view"
        if not bool(torch.isfinite(output.video_KE).all() & torch.isfinite(output.text_KNE).all()):
            raise UserError("head=retrieve: embeddings are not numbers (NaN): training went wrong; lower its rates")
        lines = []
        for k, row in enumerate(batch.rows or []):
            texts = row.get("texts", [])
            lines.append(
                {name: row.get(name, "") for name in ("key", "uid")}
                | {"texts": texts, "video": _plain(output.video_KE[k])}
                | {"embeddings": [_plain(one) for one in output.text_KNE[k, : len(texts)]]}
            )
        return lines

    def metrics(self) -> dict[str, Metric]:
        return {"video_to_text": RankedRetrieval(), "text_to_video": RankedRetrieval(), "hard_negatives": MeanMetric()}

    def update(self, metrics: Mapping[str, Metric], lines: SequenceOf[Mapping[str, Any]]) -> None:
        """``video_to_text``: the right texts of each video among all texts; ``text_to_video``: the right video of each
        text among all; ``hard_negatives``: whether a video is nearer to its text than to all of its wrong ones."""
        names = {uid: i for i, uid in enumerate(dict.fromkeys(line["uid"] or line["key"] for line in lines))}
        of = torch.tensor([names[line["uid"] or line["key"]] for line in lines])
        first = torch.tensor([of.tolist().index(i) for i in range(len(names))])
        video = torch.tensor([line["video"] for line in lines])[first]
        text = torch.tensor([line["embeddings"][0] for line in lines])
        words = [line["texts"][0] for line in lines]
        numbers = {text: i for i, text in enumerate(dict.fromkeys(words))}
        said = torch.tensor([numbers[text] for text in words])
        belongs = torch.zeros(len(names), len(numbers), dtype=torch.bool)
        belongs[of, said] = True  # a text that is said of several clips is right for each
        scores = video @ text.T
        right = belongs[:, said]
        metrics["video_to_text"].update(scores, right)
        metrics["text_to_video"].update(scores.T, right.T)
        for right_first in _nearest(lines).values():
            metrics["hard_negatives"].update(right_first)

    def score(self, lines: SequenceOf[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """See ``Head.score``; all but the median rank are means over queries."""
        metrics = self.metrics()
        self.update(metrics, lines)
        videos = [line["uid"] or line["key"] for line in lines]
        each = {"hard_negatives": [(right, videos[place]) for place, right in _nearest(lines).items()]}
        for way, queries in (("video_to_text", list(dict.fromkeys(videos))), ("text_to_video", videos)):
            ranks = metrics[way].rows("rank").tolist()
            each |= {f"{way}/r@{k}": [(float(r <= k), q) for r, q in zip(ranks, queries, strict=True)] for k in KS}
        return with_errors(super().score(lines), each)

    def check_lines(self, lines: Mapping[int, Mapping[str, Any]], path: Path) -> None:
        """See ``Head.check_lines``."""
        width: int | None = None

        def name_of(line: Mapping[str, Any]) -> None:
            nonlocal width
            texts, embeddings = listed(line, "texts"), listed(line, "embeddings")
            if not texts or len(texts) != len(embeddings):
                raise FieldError(f"texts are {len(texts)} and embeddings {len(embeddings)}, expected one for each")
            for i, text in enumerate(texts):
                as_text(text, f"texts[{i}]")
            width = len(vector(line.get("video"), "video", width))
            for i, one in enumerate(embeddings):
                vector(one, f"embeddings[{i}]", width)
            clip_of(line)

        check_each(lines, path, name_of)

    def read(self, path: Path, setting: str) -> list[FileRow]:
        """A list of pairs; see ``read_pairs``."""
        return read_pairs(path, setting)


def _nearest(lines: SequenceOf[Mapping[str, Any]]) -> dict[int, float]:
    """{place of a line with wrong texts: 1 where its video is nearer to its own text than to all of them}."""
    found = {}
    for place, line in enumerate(lines):
        near = torch.tensor(line["embeddings"]) @ torch.tensor(line["video"])
        if len(near) > 1:
            found[place] = float(bool((near[0] > near[1:]).all()))
    return found


def _projection(into: int, hidden: int, out: int) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(into), nn.Linear(into, hidden), nn.GELU(), nn.Linear(hidden, out))


def _mean(x: Tensor, mask: Tensor) -> Tensor:
    return (x * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def _plain(x_E: Tensor) -> list[float]:
    return [round(value, 6) for value in x_E.tolist()]
