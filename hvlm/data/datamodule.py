"""The reader as Lightning sees it: loaders for training, validation and evaluation, and a state that resumes exactly.

One Lightning epoch is the whole run. The state is the number of samples consumed at a finished optimiser step, which is
all that a pure order (``data/order.py``) needs: what workers have prefetched does not count, and the run may go on
with another number of workers or processes as long as the global batch stays the same.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import lightning

from hvlm.data import samples
from hvlm.data.budget import Budget, Planned, lengths_of
from hvlm.data.loader import Loader, StreamLoader, Units
from hvlm.data.notes import Notes
from hvlm.data.optical_flow import opencv
from hvlm.data.order import InOrder, Order, SampleRef, check_shares, takes_all_alike
from hvlm.data.quarantine import Quarantine, SampleError
from hvlm.data.reader import Reader, SampleSpec
from hvlm.data.shard_index import Manifest, ShardSplit
from hvlm.data.stream import Stream
from hvlm.data.tar import TEXT_FIELDS
from hvlm.data.views import View
from hvlm.errors import UserError
from hvlm.types import InputSpec

log = logging.getLogger(__name__)

INTERLEAVE = 0.14  # the usual share of text-only batches, where the data have text-only chats
HASHED = 4 << 30  # bytes: up to this much data, sha256 is compared at every start (seconds); above, sizes only


def check_stream(dataset: Any, interleave: float | None, overfit_batches: int | None, view: View) -> None:
    """What only shards with an index can do. Known from the settings: asked before any data is made.

    Args:
        dataset, interleave, overfit_batches, view: as ``DataModule`` takes them.

    Raises:
        UserError: the dataset is a stream, and it is wanted.
    """
    if dataset.access != "stream":
        return
    ratio = dataset.text_ratio if view.has_text else None
    if interleave if ratio is None else ratio:
        raise UserError("dataset.access=stream cannot interleave text-only batches; set stage.interleave=0")
    if overfit_batches is not None:
        raise UserError("trainer.overfit_batches: dataset.access=stream hands out no batch twice; use access=index")
    view.among(None)


class DataModule(lightning.LightningDataModule):
    """Batches of clips with their texts.

    dataset: has ``access``, ``prepare()`` and ``manifest()``. chat: has ``encode`` and ``pad_id``.
    inputs: how the model wants its clips; UserError at construction if OpenCV, which computes motion, is missing.
    view: what is asked of a clip (``data/views.py``). rows_per_clip: texts drawn per clip in training.
    loss: as ``chat.encode`` takes it. batch_size: clips of one optimiser step over all processes. steps: optimiser
    steps of the whole run. accumulate, units: in how many batches a step is read, and what of a batch is counted for it
    (``data/loader.py``). num_workers: reading processes. mixture: see ``Order``.
    interleave: share of text-only batches; None: ``INTERLEAVE`` where the data have text-only chats, else 0.
    grid: (rows, columns) of the patches, for a view that needs labels. val_clips: how many clips of the val split are
    used between steps.
    timeout: seconds to wait for a batch beyond those that the dataset gives its clips. max_bad_rate, quarantine: see
    ``Quarantine``. cache_mb: decoded clips kept in memory.
    overfit_batches: training hands out its first so many batches again and again.
    """

    def __init__(
        self,
        dataset: Any,
        chat: Any,
        inputs: InputSpec,
        *,
        view: View,
        rows_per_clip: int,
        loss: Literal["answer", "all"],
        batch_size: int,
        steps: int,
        num_workers: int,
        seed: int,
        interleave: float | None = 0.0,
        mixture: Mapping[str, float] | None = None,
        grid: tuple[int, int] | None = None,
        val_clips: int = 64,
        timeout: float = 120.0,
        max_bad_rate: float = 0.01,
        quarantine: Path | None = None,
        cache_mb: int = 0,
        accumulate: int = 1,
        units: Units | None = None,
        overfit_batches: int | None = None,
    ) -> None:
        super().__init__()
        if view.needs_labels != (grid is not None):
            raise ValueError(f"view {view.name}, grid={grid}: a grid belongs to a view that needs labels")
        if not view.has_text and interleave:
            raise UserError(f"stage.interleave={interleave:g}: this stage reads no text; set stage.interleave=0")
        if inputs.motion is not None:
            opencv()  # before any worker starts, so that what is missing is said at once
        self.dataset, self.chat, self.inputs = dataset, chat, inputs
        self.view, self.rows_per_clip, self.loss, self.grid = view, rows_per_clip, loss, grid
        self.batch_size, self.steps, self.num_workers, self.seed = batch_size, steps, num_workers, seed
        self._interleave, self.mixture = interleave, None if mixture is None else dict(mixture)
        self.val_clips, self.timeout = val_clips, timeout
        self.accumulate, self.units, self.overfit_batches = accumulate, units, overfit_batches
        self.max_bad_rate, self.quarantine_path = max_bad_rate, quarantine
        self.cache_bytes = cache_mb << 20
        self.notes = Notes()  # of the training data, too
        self.quarantine: Quarantine | None = None  # of the training data: counts to be logged
        self._restored: dict[str, Any] | None = None
        self._prepared = False

    @cached_property
    def interleave(self) -> float:
        """The share of text-only batches, once the data are there. UserError where stage and data say two."""
        ratio = self.dataset.text_ratio if self.view.has_text else None
        if ratio is not None:
            if self._interleave not in (None, ratio):
                raise UserError(
                    f"stage.interleave={self._interleave:g}: dataset.text_ratio={ratio:g} says another share of "
                    f"text-only batches; set dataset.text_ratio={self._interleave:g}, or null"
                )
            return ratio
        if self._interleave is not None:
            return self._interleave
        mixed_in = self.view.has_text and self.dataset.access == "index" and "text" in self._manifest.splits
        return INTERLEAVE if mixed_in else 0.0

    # -- loaders -------------------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Make or index the data, then compare the shards with their manifest. UserError if they differ."""
        self.dataset.prepare()
        if self.dataset.access == "index":
            manifest = self.dataset.manifest()
            manifest.verify(full=manifest.num_bytes <= HASHED)
        self._prepared = True

    @cached_property
    def _manifest(self) -> Manifest:
        return self.dataset.manifest()

    def train_dataloader(self) -> Loader | StreamLoader:
        rank, world = self._rank_and_world()
        self.quarantine = self._new_quarantine()
        show = replace(self._show(self._among("train"), self.rows_per_clip), notes=self.notes)
        if self.dataset.access == "stream":
            return self._stream(show, rank, world)
        clips = self._manifest.split("train")
        texts = self._manifest.split("text") if self.interleave > 0 and "text" in self._manifest.splits else None
        sampler = Order(
            clips.domains,
            batch_size=self.batch_size,
            steps=self.steps,
            seed=self.seed,
            mixture=self.mixture,
            shares=self._shares,
            texts=0 if texts is None else len(texts),
            interleave=self.interleave,
            rank=rank,
            world=world,
            start=self._start(),
            accumulate=self.accumulate,
            repeat=self.overfit_batches,
            plan=None if self.dataset.batch is None else self._plan(self.dataset.batch, show, clips, texts),
        )
        if sampler.drawn is not None and self._shares is not None:
            said = (f"{n} {self._shares[n]:.1%} ({e:.3g} epochs)" for n, e in sampler.drawn.epochs().items())
            log.info("mixture: %s; %.0f%% of the batches are text alone", ", ".join(said), 100 * self.interleave)
        reader = Reader(clips, texts, show, self.quarantine, replace=True, cache_bytes=self.cache_bytes)
        return Loader(reader, sampler, **self._loading())

    def _plan(self, budget: Budget, show: SampleSpec, clips: ShardSplit, texts: ShardSplit | None) -> Callable:
        """What ``Order`` is to cut its batches with."""
        if budget.tokens is not None and not self.view.has_text:
            log.warning("%s: this stage reads no text, so tokens limit none of its batches", budget)
        began = time.monotonic()
        shares = self.mixture if self._shares is None else self._shares
        drawn = None if shares is None else {domain for domain, share in shares.items() if share > 0}
        lengths = {False: lengths_of(clips, show, budget, domains=drawn)}
        if texts:
            lengths[True] = lengths_of(texts, show, budget, text=True)
        count = sum(len(found.frames_N) for found in lengths.values())
        log.info("%s: the lengths of %d samples took %.1f s", budget, count, time.monotonic() - began)

        def plan(nominal: Callable[[int], list[SampleRef]], *, text: bool, **how: Any) -> Planned:
            split = texts if text else clips
            name = lambda i: f"{split.folder}: {split.uid(i)}"  # noqa: E731
            return Planned(nominal, lengths=lengths[text], budget=budget, name=name, text=text, **how)

        return plan

    def val_dataloader(self) -> Loader | list:
        """The first ``val_clips`` clips of the val split in the mixture's domains; [] if there is no such split."""
        splits = self._manifest.splits if self.dataset.access == "index" else ["train"]
        if "val" not in splits or not self.val_clips:
            log.info("no validation between steps: val_clips=%d, splits: %s", self.val_clips, ", ".join(splits))
            return []
        rank, world = self._rank_and_world()
        clips = self._manifest.split("val")
        wanted = set(clips.domains) if self.mixture is None else {d for d, w in self.mixture.items() if w > 0}
        indices = [i for i, domain in enumerate(clips.domains) if domain in wanted][: self.val_clips]
        shared = len(indices) // world * world  # so that every process has as many batches as the others
        if shared < len(indices):
            log.warning(
                f"validation sees {shared} of {len(indices)} clips, as many in each of {world} processes: "
                f"all are seen of a val split (dataset.val_clips) whose size is a multiple of {world}"
            )
        sampler = InOrder(indices[:shared], batch_size=self.clips_at_once, rank=rank, world=world)
        return self._once(clips, self._show(self._among("val"), self.rows_per_clip), sampler)

    def loader(
        self, split: str, view: View, rows_per_clip: int | None, batch_size: int, limit: int | None = None
    ) -> Loader:
        """A split in its own order: each clip once; see ``read``. ``limit``: only the first so many clips."""
        if not self._prepared:
            self.prepare_data()
        clips = self._manifest.split(split)
        return self.read(clips, view, rows_per_clip, batch_size, range(len(clips))[:limit])

    def read(
        self,
        clips: ShardSplit,
        view: View,
        rows_per_clip: int | None,
        batch_size: int,
        indices: Sequence[int],
        skip: Container[int] = (),
    ) -> Loader:
        """Clips as they are, for evaluation: each of ``indices`` once, in order.

        A clip that cannot be read, or whose sampled frames answer none of its texts, is left out; ``reader.quarantine``
        of the result counts them.

        Args:
            clips: of the dataset or of anybody else.
            view: what is asked of a clip.
            rows_per_clip: texts of a clip; None: all.
            batch_size: clips of one batch.
            indices: of the clips.
            skip: some of them that are not read; the others come in the batches that they would come in.
        """
        sampler = InOrder(indices, batch_size=batch_size, skip=skip)
        return self._once(clips, self._show(view, rows_per_clip), sampler)

    def say_notes(self) -> None:
        """Say in the log what was cut of the training texts, and which words the vocabulary did not have."""
        if self.chat is not None:
            self.notes.say(self.dataset.max_tokens, self.chat.unknown_token)

    @cached_property
    def _shares(self) -> Mapping[str, float] | None:
        shares = self.dataset.shares()
        if shares is not None and self.mixture is not None:
            raise UserError(f"domain.mixture={self.mixture}: the dataset has weights of its own; set domain=all")
        return shares

    # -- state ---------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        consumed = self.trainer.global_step * self.batch_size
        return {"consumed": consumed, "accumulate": self.accumulate, **self._identity()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = dict(state_dict)

    def _identity(self) -> dict[str, Any]:
        """What the order of samples depends on; a resumed run must agree with it."""
        order = {name: getattr(self, name) for name in ("batch_size", "seed", "interleave", "mixture")}
        if self.dataset.access == "stream":
            return order
        if takes_all_alike(self._manifest.split("train").domains, self.mixture):
            order["mixture"] = None
        order["shares"] = None if self._shares is None else dict(self._shares)
        if self.dataset.batch is not None or (self._restored or {}).get("batch"):
            order["batch"] = self.dataset.batch and self.dataset.batch._asdict()
        return order | {"clips": sum(s["count"] for s in self._manifest.shards.values() if s["split"] == "train")}

    def _start(self) -> int:
        """The optimiser step to begin with: 0, or where the restored run stood."""
        if self._restored is None:
            return 0
        for name, value in self._identity().items():
            before = self._restored.get(name)
            if name == "mixture" and value is None and self.dataset.access == "index":
                before = None if takes_all_alike(self._manifest.split("train").domains, before) else before
            if before != value:
                raise UserError(
                    f"cannot resume exactly: {name} is {value}, the run of the checkpoint had {before}; use the "
                    "same value, or start a new run from these weights with init_from="
                )
        return self._restored["consumed"] // self.batch_size

    # -- parts ---------------------------------------------------------------------------------------------------------

    def _show(self, view: View, rows_per_clip: int | None) -> SampleSpec:
        return SampleSpec(
            chat=self.chat,
            view=view,
            rows_per_clip=rows_per_clip,
            loss=self.loss,
            inputs=self.inputs,
            grid=self.grid,
            seed=self.seed,
            patch_labels=self.dataset.patch_labels if view.needs_labels else None,
            max_tokens=self.dataset.max_tokens,
            too_long=self.dataset.too_long,
            decoder=self.dataset.decoder,
            decode_timeout=self.dataset.decode_timeout,
            text_only=self.dataset.text_only,
        )

    def _among(self, split: str) -> View:
        """The view with what it must know of the split's samples in the mixture's domains."""

        def every() -> Iterator[dict[str, Any]]:
            clips = self._manifest.split(split)
            for i, domain in enumerate(clips.domains):
                if self.mixture is None or self.mixture.get(domain, 0) > 0:
                    try:
                        yield samples.parse(clips.read(i, TEXT_FIELDS), clips.keys[i], domain, clips.uid(i))
                    except SampleError:
                        continue  # it is named and counted when it is drawn

        return self.view.among(every if self.dataset.access == "index" else None)

    def _once(self, clips: ShardSplit, show: SampleSpec, sampler: InOrder) -> Loader:
        """Clips as they are, none replaced by another."""
        reader = Reader(clips, None, show, self._new_quarantine(), replace=False, cache_bytes=self.cache_bytes)
        return Loader(reader, sampler, num_workers=self.num_workers, timeout=self._wait(sampler.batch_size))

    def _stream(self, show: SampleSpec, rank: int, world: int) -> StreamLoader:
        check_stream(self.dataset, self._interleave, self.overfit_batches, self.view)
        check_shares(self.batch_size, world, self.accumulate)
        start = self._start()
        if start and not self.dataset.allow_inexact_resume:
            raise UserError(
                f"dataset.access=stream cannot resume exactly: there is no place to return to, and step {start} would "
                "see other samples than in a run that was not stopped; accept that with "
                "dataset.allow_inexact_resume=true, or use dataset.access=index"
            )
        log.warning("dataset.access=stream: a resumed run sees other samples than an uninterrupted one would have seen")
        stream = Stream(
            self.dataset.urls(),
            show,
            self.quarantine,
            batch_size=self.batch_size // world // self.accumulate,
            domain=self.dataset.domain,
            seed=self.seed,
            start=start,
            rank=rank,
            world=world,
        )
        return StreamLoader(stream, steps=self.steps, start=start, **self._loading())

    def _loading(self) -> dict[str, Any]:
        """What the training loaders are told beside their data."""
        names = ("num_workers", "accumulate", "units")
        return {name: getattr(self, name) for name in names} | {"timeout": self._wait(self.clips_at_once)}

    @property
    def clips_at_once(self) -> int:
        """Clips of all processes that go through the model together."""
        return self.batch_size // self.accumulate

    def _wait(self, clips: int) -> float:
        """Seconds to wait for a batch: longer than it takes if the decoder hangs on every clip of it."""
        return self.timeout + clips * self.dataset.decode_timeout

    def _new_quarantine(self) -> Quarantine:
        return Quarantine(self.max_bad_rate, self.quarantine_path, self._rank_and_world()[0])

    def _rank_and_world(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
