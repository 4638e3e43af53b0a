"""Several heads on one backbone: each has text rows of its own, and the rows of a clip share its vision pass.

``stage=task stage.weights={detect:1,classify:0.5}`` weighs their losses; ``benchmark=head`` scores each.
"""

from __future__ import annotations

import logging
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import Metric

import hvlm.head
from hvlm.config.check import check_room, room_class
from hvlm.config.schema import did_you_mean, parameters
from hvlm.contracts import Head
from hvlm.data.batches import with_rows
from hvlm.data.question_file import Row as FileRow
from hvlm.data.sample_fields import FieldError, shown
from hvlm.data.views import Row, View
from hvlm.errors import UserError
from hvlm.head._lines import check_each
from hvlm.types import Alone, Batch, Sequence, Term

log = logging.getLogger(__name__)

Value = bool | int | float | str | list[int] | list[float] | list[str] | None
WORDS = {"text": "hvlm.head.text.TextHead"}  # whose class is not called as the word
Heads = dict[str, dict[str, Value] | None]


@dataclass(frozen=True)
class Together(View):
    """The rows of all views; ``meta["head"]`` says whose a row is. ``n`` rows of each are drawn."""

    views: tuple[tuple[str, View], ...]
    name = "rows for head.heads"

    def rows(self, sample: dict[str, Any], times: np.ndarray, rng: np.random.Generator, n: int | None) -> list[Row]:
        return [
            row._replace(meta=row.meta | {"head": name})
            for name, view in self.views
            if not view.passes_over(sample)
            for row in view.rows(sample, times, rng, n)
        ]

    def targets(self, rows: SequenceOf[Mapping[str, Any]], chat: Any) -> dict[str, Tensor]:
        """Each head's, called ``<head>/<target>``; 0 in the rows of the others."""
        found: dict[str, Tensor] = {}
        for name, view in self.views:
            index = [k for k, row in enumerate(rows) if row.get("head") == name]
            for target, value in view.targets([rows[k] for k in index], chat).items() if index else ():
                found[f"{name}/{target}"] = value.new_zeros(len(rows), *value.shape[1:]).index_copy(
                    0, torch.tensor(index), value
                )
        return found

    def alone(self, meta: Mapping[str, Any]) -> SequenceOf[str]:
        return dict(self.views)[meta["head"]].alone(meta)

    def scoring(self) -> View:
        return Together(tuple((name, view.scoring()) for name, view in self.views))

    def among(self, samples: Callable[[], Iterable[dict[str, Any]]] | None) -> View:
        return Together(tuple((name, view.among(samples)) for name, view in self.views))

    def passes_over(self, sample: dict[str, Any]) -> bool:
        return all(view.passes_over(sample) for _, view in self.views)


class Several(Head):
    """heads: {name: settings of a head, or null for its own}, e.g. {detect: {boundary: trident}, retrieve: null}. The
    name is the head's word, or ``_target_`` among its settings names its class, which need not be hvlm's. only: the one
    that an evaluation asks, as if it had been trained alone."""

    nested = ("heads",)

    def __init__(
        self,
        *,
        text_dim: int,
        logits: Callable[[Tensor], Tensor],
        heads: Heads | None = None,
        only: str | None = None,
    ):
        super().__init__()
        if not heads:
            raise UserError("head.heads is empty: name the heads, head.heads={detect:{},classify:{labels:[a,b]}}")
        made = {}
        for name, settings in heads.items():
            cls, arguments = _checked(name, settings)
            shared = {"text_dim": text_dim, "logits": logits}
            made[name] = cls(**arguments, **{key: value for key, value in shared.items() if key in parameters(cls)})
            if made[name].view is None:
                raise UserError(f"head.heads: {name} has no view of its own, so it cannot stand beside others")
        if only is not None and only not in made:
            raise UserError(f"head.only={only}: is none of head.heads, {', '.join(made)}")
        self.only = only
        self.heads = nn.ModuleDict(made)
        self.view = Together(tuple((name, head.view) for name, head in made.items()))
        self.reads_fusion = next((head.reads_fusion for head in made.values() if head.reads_fusion), "")

    @classmethod
    def settle(cls, settings: Mapping[str, Any], names: Callable[[str], list[str]]) -> dict[str, Any]:
        """See ``Head.settle``; of each of the heads."""
        settled = {}
        for name, own in (settings.get("heads") or {}).items():
            node = _node(name, own)
            with _named(name):
                settled[name] = room_class("head", node).settle(node, names)
        return {**settings, "heads": settled or None}

    def asked(self) -> Head:
        """See ``Head.asked``."""
        return self if self.only is None else self.heads[self.only]

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.heads)

    def rows_of(self, batch: Batch, name: str) -> Tensor:
        """Which text rows are a head's, int64."""
        index = [k for k, row in enumerate(batch.rows or []) if row.get("head") == name]
        return torch.tensor(index, dtype=torch.int64, device=batch.clip_K.device)

    def part(self, batch: Batch, name: str) -> Batch | None:
        """A head's rows with its own targets; None where it has none in this batch."""
        index = self.rows_of(batch, name)
        if not len(index):
            return None
        part = batch.text_rows(index)
        own = {t.removeprefix(f"{name}/"): v for t, v in (part.targets or {}).items() if t.startswith(f"{name}/")}
        return part._replace(targets=own or None)

    def further(self, batch: Batch, answer: Callable[[Batch], Any]) -> Batch:
        """See ``Head.further``; each head's own rows, at the end."""
        for name, head in self.heads.items():
            part, index = self.part(batch, name), self.rows_of(batch, name)
            if part is None:
                part = batch.text_rows(index)._replace(targets=None)

            def of_head(some: Batch, name: str = name) -> Any:
                return answer(_of(some, name))[name]

            found = head.further(part, of_head)
            if len(found.clip_K) > len(index):
                new = torch.arange(len(index), len(found.clip_K), device=index.device)
                batch = with_rows(batch, _of(found.text_rows(new), name))
        return batch

    def texts(self, batch: Batch) -> tuple[Tensor, Tensor] | None:
        """Those of all heads, one after the other."""
        found = [texts for _, texts in self._texts(batch)]
        if not found:
            return None
        longest = max(ids.shape[1] for ids, _ in found)
        filled = [tuple(nn.functional.pad(x, (0, longest - x.shape[1])) for x in (ids, mask)) for ids, mask in found]
        ids, mask = zip(*filled, strict=True)
        return torch.cat(ids), torch.cat(mask)

    def _texts(self, batch: Batch) -> list[tuple[str, tuple[Tensor, Tensor]]]:
        parts = [(name, self.part(batch, name)) for name in self.heads]
        asked = [(name, self.heads[name].texts(part)) for name, part in parts if part is not None]
        return [(name, texts) for name, texts in asked if texts is not None]

    def forward(self, hidden_KLD: Tensor, sequence: Sequence) -> dict[str, Any]:
        """{name: that head's output}, of those that have rows."""
        assert sequence.batch is not None, "a sequence that was laid out"
        batch, alone, begin = sequence.batch, {}, 0
        for name, (ids, _) in self._texts(batch) if sequence.alone is not None else ():
            assert sequence.alone is not None
            alone[name] = Alone(*(x[begin : begin + len(ids)] for x in sequence.alone))
            begin += len(ids)
        found = {}
        for name, head in self.heads.items():
            part = self.part(batch, name)
            if part is not None:
                index = self.rows_of(batch, name)
                own = sequence.text_rows(index)._replace(batch=part, alone=alone.get(name))
                found[name] = head(hidden_KLD[index], own)
        return found

    def terms(self, output: dict[str, Any], batch: Batch) -> dict[str, Term]:
        parts = {name: self.part(batch, name) for name in self.heads}
        return {
            name: head.absent(batch) if (part := parts[name]) is None else Term(*head.loss(output[name], part))
            for name, head in self.heads.items()
        }

    def units_of_terms(self, batch: Batch) -> dict[str, float]:
        parts = {name: self.part(batch, name) for name in self.heads}
        return {name: 0.0 if part is None else float(self.heads[name].units(part)) for name, part in parts.items()}

    def divisor(self, term: str, units: Tensor) -> Tensor:
        return self.heads[term].divisor(term, units)

    def loss(self, output: dict[str, Any], batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The sum of the means; where they are taken over several batches, ``terms`` is right."""
        terms = self.terms(output, batch)
        means = {name: term.total / term.count.clamp(min=1) for name, term in terms.items()}
        total = torch.stack(list(means.values())).sum()
        return total, torch.ones_like(total), {name: mean.detach() for name, mean in means.items()}

    def predict(self, output: dict[str, Any], batch: Batch) -> list[dict[str, Any]]:
        """Each head's lines with ``head``, in the order of the rows."""
        lines: dict[int, dict[str, Any]] = {}
        for name, head in self.heads.items():
            part = self.part(batch, name)
            if part is not None:
                # What a head writes in words is scored by benchmarks that ask.
                found = [{} for _ in part.rows or ()] if head.writes else head.predict(output[name], part)
                lines |= {
                    k: {**line, "head": name} for k, line in zip(self.rows_of(batch, name).tolist(), found, strict=True)
                }
        return [lines[k] for k in sorted(lines)]

    def metrics(self) -> dict[str, Metric]:
        return {f"{name}/{key}": metric for name, head in self.heads.items() for key, metric in head.metrics().items()}

    def update(self, metrics: Mapping[str, Metric], lines: SequenceOf[Mapping[str, Any]]) -> None:
        for name, head in self.heads.items():
            own = {key.removeprefix(f"{name}/"): m for key, m in metrics.items() if key.startswith(f"{name}/")}
            head.update(own, [line for line in lines if line["head"] == name])

    def score(self, lines: SequenceOf[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Each head's rows, called ``<head>/<metric>``."""
        rows = []
        for name, head in self.heads.items():
            own = [line for line in lines if line["head"] == name]
            if not own and not head.writes:
                log.warning("head=several: there is nothing for %s here, so it is not scored", name)
            scored = head.score(own) if own and not head.writes else []
            rows += [row | {"metric": f"{name}/{row['metric']}"} for row in scored]
        return rows

    def check_lines(self, lines: Mapping[int, Mapping[str, Any]], path: Path) -> None:
        """See ``Head.check_lines``; each head looks at its own."""

        def name_of(line: Mapping[str, Any]) -> None:
            if line.get("head") not in self.tasks:
                raise FieldError(f"head is {shown(line.get('head'))}, expected one of {', '.join(self.tasks)}")

        check_each(lines, path, name_of)
        for name, head in self.heads.items():
            own = {number: line for number, line in lines.items() if line["head"] == name}
            if not head.writes:
                head.check_lines(own, path)

    def read(self, path: Path, setting: str) -> list[FileRow]:
        raise UserError(
            f"{setting}={path}: several heads have no file in common; name the one that it is for, "
            f"head.only={self.tasks[0]}"
        )


def _of(rows: Batch, name: str) -> Batch:
    """A head's rows as they stand beside those of others."""
    targets = {f"{name}/{target}": value for target, value in (rows.targets or {}).items()}
    return rows._replace(rows=[row | {"head": name} for row in rows.rows or []], targets=targets)


def _node(name: str, settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """A head's settings with its class: that of the word, unless they name another."""
    if settings is not None and not isinstance(settings, Mapping):
        raise UserError(f"head.heads.{name}={settings}: expected settings, {{labels: [a, b]}}, or null")
    if "_target_" in (settings or {}):
        return dict(settings or {})
    words = {module.name for module in pkgutil.iter_modules(hvlm.head.__path__) if not module.name.startswith("_")}
    if name not in words:
        raise UserError(
            f"head.heads.{name}: no such head;{did_you_mean(name, words)} (or name its class, "
            f"head.heads={{{name}:{{_target_:...}}}})"
        )
    return {"_target_": WORDS.get(name) or _target(name), **(settings or {})}


def _target(name: str) -> str:
    return f"hvlm.head.{name}.{''.join(part.capitalize() for part in name.split('_'))}"


@contextmanager
def _named(name: str) -> Iterator[None]:
    """What is said of ``head.<setting>`` inside is said of ``head.heads.<name>.<setting>``."""
    try:
        yield
    except UserError as error:
        raise UserError(re.sub(r"(?<![\w.])head\.(?!heads\b)", f"head.heads.{name}.", str(error))) from error


def _checked(name: str, settings: Mapping[str, Any] | None) -> tuple[type[Head], dict[str, Any]]:
    node = _node(name, settings)
    with _named(name):
        cls = room_class("head", node)
        if cls is Several:
            raise UserError(f"head.heads.{name}: several heads cannot stand in several heads")
        arguments = check_room("head", node)
    del arguments["_target_"]
    return cls, arguments
