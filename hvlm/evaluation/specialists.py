"""Several specialists of one base in one model, and the router that picks among them.

Each run of ``train.py domain=... adapter=... init_from=BASE`` leaves a set of adapter weights beside its checkpoint.
``read_runs`` checks that the sets belong together, ``configuration`` describes the model that holds them all (its
adapter reads them from their folders), ``train_router`` gives that model a router, and ``write`` makes one checkpoint
of it.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hvlm.assembly import source_configs
from hvlm.data.views import Row, View
from hvlm.errors import UserError
from hvlm.io.adapter_files import ADAPTERS
from hvlm.io.checkpoint import assert_plain, find_checkpoint, load_weights, weights_hash
from hvlm.io.files import SIDECAR, is_plain_name, known_sums, write_atomically
from hvlm.rebuild import Loaded, metadata_of
from hvlm.router import Router, fit, pooled

log = logging.getLogger(__name__)

OF_TRAINING = ("_target_", "names", "load", "rate", "dropout", "merge")  # settings in which specialists may differ
CLIPS = 128  # of each domain, from which the router learns


class Specialist(NamedTuple):
    """One run. name: of its set of adapter weights, in ``folder``. domain: of the run; tags: the domains of the data
    that it learned from, None: all. start: where its base stood, with the hash of its weights."""

    run: Path
    name: str
    domain: str
    tags: tuple[str, ...] | None
    folder: Path
    start: Mapping[str, Any]
    config: Mapping[str, Any]


def read_runs(paths: Sequence[str]) -> list[Specialist]:
    """The specialists of these runs; a folder of a sweep stands for its jobs.

    Raises:
        UserError: no such run, one without adapter weights, two of one name, another base or another kind of adapter.
    """
    runs = [run for path in paths for run in _jobs(Path(path))]
    found = [_read(run) for run in runs]
    first = found[0]
    for other in found[1:]:
        if other.start["weights_sha256"] != first.start["weights_sha256"]:
            raise UserError(
                f"adapters: {other.run} was trained from {other.start['path']}, and {first.run} from "
                f"{first.start['path']}; specialists of one model have one base (init_from=)"
            )
        one, two = first.config["adapter"], other.config["adapter"]
        keys = [k for k in {**one, **two} if (k == "_target_" or k not in OF_TRAINING) and one.get(k) != two.get(k)]
        if keys:
            key = keys[0]
            raise UserError(
                f"adapters: {other.run} has adapter.{key}={two.get(key)}, and {first.run} {one.get(key)}; specialists "
                "of one model have one kind of adapter"
            )
        if twin := next((o.run for o in found if o is not other and o.name == other.name), None):
            raise UserError(
                f"adapters: {twin} and {other.run} both call their adapter {other.name!r}; train one of them with "
                "domain.adapter=NAME"
            )
    return found


def _jobs(path: Path) -> list[Path]:
    if not path.exists():
        raise UserError(f"adapters={path}: no such run; name run folders of train.py domain=... adapter=...")
    jobs = sorted(file.parent for file in path.glob("*/status.json")) if path.is_dir() else []
    return jobs or [path]


def _read(run: Path) -> Specialist:
    file = find_checkpoint(run)
    metadata = metadata_of(file)
    config, start = metadata["config"], metadata.get("start") or {}
    domain = config.get("domain")
    known = isinstance(domain, Mapping) and isinstance(start, Mapping)
    name, weights = (domain.get("adapter"), domain.get("mixture")) if known else (None, None)
    known = known and is_plain_name(name) and isinstance(domain.get("name"), str)
    known = known and all(isinstance(start.get(key, ""), str) for key in ("path", "weights_sha256"))
    if not known or not isinstance(weights, Mapping | None):
        raise UserError(f"adapters: {run} does not say what it learned, and from where; name a run of train.py")
    folder = file.parent.parent / ADAPTERS / name
    if not folder.is_dir():
        raise UserError(
            f"adapters: {run} holds no adapter weights ({folder} is not there); train it with adapter=lora, or name a "
            "run that was"
        )
    if not (start.get("weights_sha256") and start.get("path")):
        raise UserError(f"adapters: {run} began from nothing, so nothing is its base; train it with init_from=BASE")
    tags = None if weights is None else tuple(tag for tag, weight in weights.items() if weight)
    return Specialist(run, name, domain["name"], tags, folder, start, config)


def base_of(specialists: Sequence[Specialist], checkpoint: str | None) -> Path:
    """The checkpoint that all of them began with: the one that is named, or where it stood. UserError for another."""
    start = specialists[0].start
    file = find_checkpoint(checkpoint or start["path"])
    held = weights_hash(load_weights(file))
    if held != start["weights_sha256"]:
        where = f"checkpoint={checkpoint}" if checkpoint else f"{start['path']}, as it is now,"
        raise UserError(
            f"adapters: {specialists[0].run} was trained from other weights than those of {where}; name its base with "
            f"checkpoint= (it was {start['path']})"
        )
    return file


def configuration(specialists: Sequence[Specialist]) -> dict[str, Any]:
    """A stored configuration of the model that holds them all; its router picks."""
    first = specialists[0].config
    load = {one.name: str(one.folder) for one in specialists}
    domain = {**first["domain"], "name": "auto", "adapter": "auto", "mixture": None, "prompt": None}
    return {**first, "adapter": {**first["adapter"], "names": None, "load": load}, "domain": domain}


def adapters_of(specialists: Sequence[Specialist], tags: Sequence[str]) -> dict[str, str]:
    """{domain of the data: the set of weights that learned from it}. One that learned from all has what no other
    claims."""
    own = {tag: one.name for one in specialists if one.tags is not None for tag in one.tags}
    others = [one.name for one in specialists if one.tags is None]
    return {tag: own.get(tag) or (others[0] if others else "") for tag in tags if own.get(tag) or others}


# -- the router --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frames(View):
    """Frames alone."""

    name = "frames"
    has_text = False

    def rows(self, sample: dict[str, Any], times: np.ndarray, rng: np.random.Generator, n: int | None) -> list[Row]:
        return []


def features(loaded: Loaded, split: str, per_domain: int | None) -> tuple[Tensor, list[str], list[str]]:
    """What the router sees of a split's clips: (features [N, F], the clips' domains, their uids).

    per_domain: at most so many clips of each domain, evenly spread; None: all.
    """
    data = loaded.data
    data.prepare()
    clips = data.manifest().split(split)
    wanted: list[int] = []
    for tag in sorted(set(clips.domains)):
        own = [i for i, domain in enumerate(clips.domains) if domain == tag]
        count = len(own) if per_domain is None else min(per_domain, len(own))
        wanted += [own[i] for i in np.linspace(0, len(own) - 1, count).round().astype(int).tolist()]
    wanted.sort()
    domain_of = {clips.uid(i): clips.domains[i] for i in wanted}
    found, uids = [], []
    with loaded.model.adapter.using(language=-1, vision=-1):
        for batch in loaded.reader().read(clips, Frames(), None, 32, wanted):
            found.append(pooled(loaded.model.vision, batch.to(loaded.device)).cpu())
            uids += batch.uids
    return torch.cat(found), [domain_of[uid] for uid in uids], uids


def train_router(loaded: Loaded, specialists: Sequence[Specialist]) -> Router:
    """A router that has learned from the training split's tags; how often it is right on the val split is logged.

    Raises:
        UserError: the data have one domain, or none that a specialist has learned from.
    """
    loaded.model.eval()
    x, tags, _ = features(loaded, "train", CLIPS)
    domains = sorted(set(tags))
    adapters = adapters_of(specialists, domains)
    if len(domains) < 2 or not adapters:
        raise UserError(
            f"adapters: the data have the domains {', '.join(domains)}, and the specialists learned "
            f"{', '.join(one.domain for one in specialists)}: nothing to choose; name data of theirs (dataset=...)"
        )
    router = fit(x, torch.tensor([domains.index(tag) for tag in tags]), domains, adapters)
    said = {one.name: one.config["domain"].get("prompt") for one in specialists}
    router.prompts = {tag: said[name] for tag, name in adapters.items() if said[name]}
    if "val" in loaded.data.manifest().splits:
        held, expected, _ = features(loaded, "val", CLIPS)
        right = sum(r.domain == tag for r, tag in zip(router.routes(held), expected, strict=True))
        log.info(f"router: {right} of {len(expected)} held-out clips right, {len(tags)} learned from")
    return router


def write(loaded: Loaded, base: Path, router: Router, path: Path) -> Path:
    """One checkpoint with the base, all sets of adapter weights and the router. Returns ``path``."""
    cfg, model = loaded.config, loaded.model
    adapter = {**model.adapter.settled(cfg["adapter"]), "names": list(model.adapter.names)}
    metadata = {
        **metadata_of(base),
        "chat": loaded.chat.asking(None).to_json(),
        "config": {**cfg, "adapter": adapter, "adapters": None, "checkpoint": None},
        "source_configs": source_configs(model),
        "router": router.to_plain(),
    }
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    checkpoint = {"state_dict": state, "hvlm": metadata, "global_step": 0}
    assert_plain(checkpoint)
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    content = buffer.getvalue()
    sums = [hashlib.sha256(content).hexdigest(), *known_sums(path)]  # until the move, the old file is whole
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{digest}  {path.name}\n" for digest in dict.fromkeys(sums))
    write_atomically(path.with_name(path.name + SIDECAR), lambda file: file.write(text.encode()))
    write_atomically(path, lambda file: file.write(content))
    return path
