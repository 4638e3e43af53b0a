"""What holds of every head: of a model with it, on clips that its own view reads. Each check takes a ``Variant``."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvlm import assembly
from hvlm.checks.models import CLOSE, shared_model
from hvlm.checks.tiny import Case, Variant, chat, model, side
from hvlm.data.cache import Clip
from hvlm.data.reader import SampleSpec
from hvlm.data.samples import parse
from hvlm.data.views import Questions
from hvlm.model import VLM
from hvlm.types import Batch, InputSpec

# One sample with everything that a head may learn from; the frames are those of ``clip_of``, four a second.
SAMPLE: dict[str, Any] = {
    "captions": [{"text": "the red ring", "references": ["a red ring"]}],
    "questions": [
        {"id": "a", "question": "what color is the ring ?", "answer": "red"},
        {"id": "b", "question": "how many ?", "answers": {"two": 1.0, "three": 0.3}},
    ],
    "events": [{"start": 0.1, "end": 0.6, "label": "circle"}, {"start": 0.1, "end": 2.9, "label": "star"}],
    "pairs": [{"text": "red ring", "negatives": ["blue ring"]}],
}
OTHER = SAMPLE | {
    "questions": [{"id": "a", "question": "what shape ?", "answer": "blue"}],
    "events": [{"start": 0.2, "end": 0.45, "label": "ring"}],
    "pairs": [{"text": "blue circle star", "negatives": ["red circle"]}],
}


def clip_of(seed: int, frames: int, size: int, sample: dict[str, Any]) -> Clip:
    """Noise that is always the same for its seed, and what is said of it."""
    pixels = np.random.default_rng(seed).integers(0, 256, (frames, 3, size, size), dtype=np.uint8)
    member = json.dumps(sample).encode()
    name = f"clip{seed}"
    return Clip(parse({"json": member}, name, "general"), pixels, (np.arange(frames, dtype=np.float32) + 0.5) / 4)


def read(vlm: VLM, *clips: Clip) -> Batch:
    """A batch as the reader makes it for the model's head."""
    view = vlm.head.view or Questions()
    inputs = InputSpec(vlm.order, 12, side(vlm))
    show = SampleSpec(chat(), view, None, "answer", inputs, None, seed=0)
    items = [item for clip in clips if (item := show.clip(clip, None, 0)) is not None]
    return show.collate(items)


def samples(vlm: VLM) -> tuple[Clip, Clip]:
    """A long clip and a short one."""
    return clip_of(1, 12, side(vlm), SAMPLE), clip_of(2, 3, side(vlm), OTHER)


def _loss(vlm: VLM, batch: Batch) -> Tensor:
    terms = vlm.head.terms(vlm.output(batch), batch)
    return sum(term.total / term.count.clamp(min=1) for term in terms.values())  # type: ignore[return-value]


def _made(variant: Variant, connector: str = "mean") -> VLM:
    return shared_model(Case("question_first", (variant, Variant("connector", connector))))


def a_loss_of_its_own_view(variant: Variant) -> None:
    """Finite and in float32, also under autocast, with as many units as ``units`` counts, for every connector."""
    for connector in ("mean", "patches"):
        vlm = _made(variant, connector)
        batch = read(vlm, *samples(vlm))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            terms = vlm.head.terms(vlm.output(batch), batch)
        assert tuple(terms) == vlm.head.tasks, "tasks names other terms than there are"
        for name, (total, count, further) in terms.items():
            assert total.dtype == torch.float32 and total.shape == count.shape == (), name
            assert torch.isfinite(total) and total > 0 and count > 0, name
            assert all(value.shape == () for value in further.values()), name
            one = vlm.head.heads[name] if hasattr(vlm.head, "heads") else vlm.head
            assert tuple(further) == one.measures, "measures names other sums than the loss gives"
        assert vlm.head.units_of_terms(batch) == {name: float(term.count) for name, term in terms.items()}
        for name, target in (batch.targets or {}).items():
            assert len(target) == len(batch.input_ids_KS), f"target {name} is not of the text rows"


def what_is_answered_can_be_written_down_and_scored(variant: Variant) -> None:
    """A line for each row, plain values of which the metrics make finite numbers."""
    vlm = _made(variant)
    if vlm.head.writes:
        return
    batch = read(vlm, *samples(vlm))
    with torch.no_grad():
        lines = vlm.head.predict(vlm.output(batch), batch)
    assert len(lines) == len(batch.input_ids_KS), "as many lines as text rows"
    again = json.loads(json.dumps(lines, allow_nan=False))
    vlm.head.check_lines(dict(enumerate(again, start=1)), Path("head.jsonl"))
    rows, stored = vlm.head.score(lines), vlm.head.score(again)
    assert rows and rows == stored, "scores of lines from a file are those of the lines"
    for row in rows:
        assert set(row) == {"metric", "value", "stderr", "n", "chance"} and np.isfinite(row["value"])


def padding_changes_no_answer(variant: Variant) -> None:
    """A long and a short clip together are answered as each alone, in either order."""
    vlm = _made(variant, "patches")
    if vlm.head.writes:
        return
    long, short = samples(vlm)

    def lines(*clips: Clip) -> list[dict[str, Any]]:
        batch = read(vlm, *clips)
        with torch.no_grad():
            return vlm.head.predict(vlm.output(batch), batch)

    a, b = lines(long), lines(short)
    close(lines(long, short), a + b)
    close(lines(short, long), b + a)


def close(found: Any, expected: Any, where: str = "answers") -> None:
    """Equal plain values, but for numbers that are as good as equal."""
    if isinstance(expected, float):
        assert abs(found - expected) <= 1e-4 * max(1.0, abs(expected)), f"{where}: {found} and {expected}"
    elif isinstance(expected, dict):
        assert set(found) == set(expected), where
        for key in expected:
            close(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), f"{where}: {len(found)} and {len(expected)}"
        for i, (one, other) in enumerate(zip(found, expected, strict=True)):
            close(one, other, f"{where}[{i}]")
    else:
        assert found == expected, f"{where}: {found} and {expected}"


def gradients_reach_all_its_weights(variant: Variant) -> None:
    """No weight of it is there for nothing, and the language model and the connector learn from it, too."""
    vlm = model(Case("question_first", (variant, Variant("connector", "mean")))).train()
    _loss(vlm, read(vlm, *samples(vlm))).backward()
    without = [n for n, p in vlm.head.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without, f"no gradient reaches {', '.join(without[:4])}"
    for part in ("language", "connector", "vision"):
        assert any(p.grad is not None and p.grad.any() for p in getattr(vlm, part).parameters()), (
            f"{part} learns nothing"
        )
    assert all(torch.isfinite(p.grad).all() for p in vlm.parameters() if p.grad is not None)


def it_learns_one_batch(variant: Variant) -> None:
    """A few steps on the same clips lower the loss."""
    vlm = copy.deepcopy(_made(variant)).train()
    batch = read(vlm, *samples(vlm))
    optimizer = torch.optim.Adam(vlm.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = _loss(vlm, batch)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0], f"the loss goes from {losses[0]:.3f} to {losses[-1]:.3f}"


def its_state_travels_through_a_file(variant: Variant) -> None:
    """A head with the weights that were stored answers what the stored one answered."""
    case = Case("question_first", (variant, Variant("connector", "mean")))
    vlm, other = model(case), model(case, seed=1)
    file = io.BytesIO()
    torch.save(vlm.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    batch = read(vlm, *samples(vlm))
    with torch.no_grad():
        torch.testing.assert_close(_loss(other.eval(), batch), _loss(vlm.eval(), batch), **CLOSE)


def a_rehearsal_needs_no_storage(variant: Variant) -> None:
    """It is built on the meta device before anything else happens."""
    with torch.device("meta"):
        rehearsed = assembly.model(Case("question_first", (variant,)).config, chat(), weights=False)
    assert all(p.is_meta for p in rehearsed.head.parameters())


def text_rows_are_chosen_with_their_targets(variant: Variant) -> None:
    """A part of a batch's rows has the targets of these rows."""
    vlm = _made(variant)
    batch = read(vlm, *samples(vlm))
    last = torch.tensor([len(batch.input_ids_KS) - 1])
    part = batch.text_rows(last)
    assert part.rows == [batch.rows[-1]]  # type: ignore[index]
    assert (batch.targets is None) == (part.targets is None)
    for name, target in (part.targets or {}).items():
        assert torch.equal(target, batch.targets[name][-1:])  # type: ignore[index]


CHECKS = (
    a_loss_of_its_own_view,
    what_is_answered_can_be_written_down_and_scored,
    padding_changes_no_answer,
    gradients_reach_all_its_weights,
    it_learns_one_batch,
    its_state_travels_through_a_file,
    a_rehearsal_needs_no_storage,
    text_rows_are_chosen_with_their_targets,
)
