"""Anybody's WebDataset shards: a folder that is indexed once and then read by offset, or a list that is streamed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from braceexpand import braceexpand

from hvlm.config.ranges import PositiveFloat, PositiveInt
from hvlm.contracts import Dataset
from hvlm.data.budget import Budget
from hvlm.data.shard_folder import index_folder, manifest_of, split_of, tars_of, way_to_shards
from hvlm.data.shard_index import Manifest
from hvlm.data.stream import check_url
from hvlm.dataset._needles_labels import patch_labels
from hvlm.dataset._texts import answers_of, texts_of
from hvlm.errors import UserError

log = logging.getLogger(__name__)


class Shards(Dataset):
    """External shards; docs/data.md lists the members and the JSON that are understood.

    path: with ``access="index"`` one folder of ``*.tar``. Without a ``manifest.json`` in it, it is indexed once and the
        manifest is written beside the shards, or, where the folder is read-only, into the user's cache folder
        (``$HVLM_CACHE``). The words of a file's name say the split (``split_of``). With ``access="stream"``: a folder
        (its training shards), or a list of paths and http(s) URLs, in which ``{000..009}`` is expanded; all of these
        are train.
    num_frames: frames sampled per clip, fewer if it has fewer.
    domain: name of the domain of samples that carry none.
    max_tokens: of one text with its prompt. too_long: what becomes of a longer one: ``refuse`` makes a bad sample:
        named, counted, left out; ``cut`` leaves out the oldest exchanges of its conversation, then the answer's end.
    decoder: of videos; "decord" decodes what it is known to read rightly, and PyAV the rest.
    decode_timeout: seconds; a clip that is not decoded by then is a bad sample, and the decoder is killed.
    batch: ``{frames: N, tokens: N}`` (or one of them): a step's batch holds clips of like length, as many as fit with
        their padding, at most ``stage.batch_size``; null: ``stage.batch_size`` clips.
    allow_inexact_resume: whether a stream, which has no place to return to, may be resumed with other samples.
    """

    def __init__(
        self,
        path: str | list[str],
        access: Literal["index", "stream"] = "index",
        num_frames: PositiveInt = 16,
        domain: str = "general",
        max_tokens: PositiveInt = 2048,
        too_long: Literal["refuse", "cut"] = "refuse",
        decoder: Literal["pyav", "decord"] = "pyav",
        decode_timeout: PositiveFloat = 60.0,
        batch: dict[str, PositiveInt] | None = None,
        allow_inexact_resume: bool = False,
    ) -> None:
        if access not in ("index", "stream"):
            raise UserError(f"dataset.access={access!r}: expected index or stream")
        self.paths = [path] if isinstance(path, str) else list(path)
        self.access, self.num_frames, self.domain, self.max_tokens = access, num_frames, domain, max_tokens
        self.batch = Budget.of(batch, access)
        self.decoder, self.decode_timeout, self.too_long = decoder, decode_timeout, too_long
        self.allow_inexact_resume = allow_inexact_resume

    def prepare(self) -> None:
        """Index the folder if it has no manifest yet. UserError if there is nothing to read, or more than is listed."""
        if self.access == "stream":
            self.urls()
            return
        index_folder(self._folder(), self.domain, "dataset.path")

    def manifest(self) -> Manifest:
        if self.access == "stream":
            raise UserError("dataset.access=stream has no manifest to read by position; use dataset.access=index")
        return manifest_of(self._folder())

    def urls(self) -> list[str]:
        """The shards of a stream."""
        found: list[str] = []
        for path in self.paths:
            if "://" not in path and Path(path).is_dir():
                tars = tars_of(Path(path))
                found += [str(tar) for tar in tars if split_of(tar.name) == "train"]
                if len(found) < len(tars):
                    log.info("%s: a stream reads the training shards, not those of other splits", path)
            else:
                found += braceexpand(path)
        if not found:
            raise UserError(f"dataset.path={', '.join(self.paths)}: no *.tar of the training split there")
        return [check_url(url) for url in found]

    def texts(self) -> Iterator[str]:
        """Prompts, answers and options, for a vocabulary: of the first samples of every split, without their videos.

        Raises UserError where none of them has a text.
        """
        yield from texts_of(self.manifest(), self.domain, f"dataset.path={self._folder()}")

    def names(self, of: str) -> list[str]:
        """Of ``answers``: those of the training split that are right most often, ``MOST_ANSWERS`` at most."""
        if of != "answers":
            return super().names(of)
        return answers_of(self.manifest(), self.domain, str(self._folder()))

    patch_labels = staticmethod(patch_labels)

    def label_counts(self) -> dict[str, int]:
        raise UserError(
            "dataset=shards has no per-patch labels; stage=vision needs dataset=needles, or take pretrained vision"
        )

    def _folder(self) -> Path:
        if len(self.paths) != 1 or not Path(self.paths[0]).is_dir():
            raise UserError(
                f"dataset.path={', '.join(self.paths)}: expected one existing folder of *.tar; lists and URLs need "
                f"dataset.access=stream{way_to_shards(Path(self.paths[0])) if len(self.paths) == 1 else ''}"
            )
        return Path(self.paths[0])
