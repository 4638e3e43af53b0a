"""From a checkpoint alone back to a model that answers, with all that belongs to it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from hvlm import assembly
from hvlm.config.rooms import ROOMS
from hvlm.config.settings import SECTIONS
from hvlm.errors import UserError
from hvlm.io.checkpoint import load_into, load_weights, read_checkpoint
from hvlm.model import VLM
from hvlm.precision import choose_precision
from hvlm.router import Router
from hvlm.text.chat import Chat
from hvlm.types import InputSpec

if TYPE_CHECKING:
    from hvlm.data.datamodule import DataModule

AUTO, OFF = "auto", "off"  # domain.adapter: the router's choice; none
NEEDED = ("vision", "connector", "language", "dataset")  # of every version's configuration

ROOM = 10_000_000  # numbers that a command line may add to what is stored: another cache, a new adapter

log = logging.getLogger(__name__)


class Loaded(NamedTuple):
    """A trained model that can be asked.

    model: on the device that it is to run on. chat: its tokenizer and template. data: the dataset of the configuration;
    ``data.prepare()`` makes or indexes it. inputs: how the model wants its clips. precision: what to compute in,
    one of ``hvlm.precision.DTYPES``. config: the resolved configuration, with what the command line put on top.
    """

    model: VLM
    chat: Chat
    data: Any
    inputs: InputSpec
    precision: str
    config: Mapping[str, Any]

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def variant(self) -> str:
        """The word for what is compared: the connector's mode where it has one (coarse_fine), else the connector."""
        connector = self.config["connector"]
        return connector.get("mode") or connector["_target_"].split(".")[2]

    def benchmark(self, **changes: Any) -> Any:
        """The configured benchmark, with ``changes`` of its settings."""
        return assembly.room({**self.config["benchmark"], **changes}).of(self.model.head)

    def reader(self, quarantine: Path | None = None) -> DataModule:
        """Reads clips as the model wants them, with ``loader`` and ``read``; quarantine: file that names bad ones."""
        return assembly.reader(self.config, self.inputs, self.data, self.chat, quarantine)


def load(path: str | Path, cfg: Mapping[str, Any]) -> Loaded:
    """The model that ``cfg`` describes with the checkpoint's weights and the checkpoint's tokenizer, on the device that
    ``cfg`` asks for.

    Raises UserError for a checkpoint without a language model, and for weights that do not fit.
    """
    precision, why = choose_precision(cfg["trainer"]["precision"], cfg["trainer"]["accelerator"])
    model, chat = rebuild(path, cfg)
    model.head = model.head.asked()
    log.info(f"{path}: computing in {precision}: {why}")
    return Loaded(
        model.to(device_of(cfg)), chat, assembly.dataset(cfg), assembly.input_spec(cfg, model), precision, cfg
    )


def device_of(cfg: Mapping[str, Any]) -> torch.device:
    """Where a single process evaluates: on the GPU if there is one and the trainer is not ``cpu``."""
    return torch.device("cuda" if cfg["trainer"]["accelerator"] != "cpu" and torch.cuda.is_available() else "cpu")


def metadata_of(path: str | Path) -> dict[str, Any]:
    """What a checkpoint (or the run folder that holds it) says of itself: config, chat (JSON or None) and stage."""
    metadata = read_checkpoint(path).get("hvlm")
    if metadata is None:
        raise UserError(f"{path}: holds no configuration; expected a checkpoint that training wrote")
    for name, kind in {"config": Mapping, "chat": str | None, "source_configs": Mapping}.items():
        found = metadata.get(name, {} if name == "source_configs" else ...) if isinstance(metadata, Mapping) else ...
        if not isinstance(found, kind):
            raise UserError(f"{path}: its {name} is damaged; expected a checkpoint that training wrote")
    config = metadata["config"]
    odd = [key for key in (*ROOMS, *SECTIONS) if key in config and not isinstance(config[key], Mapping)]
    if odd := odd or [room for room in NEEDED if room not in config]:
        raise UserError(f"{path}: its config holds no settings of {odd[0]}; expected a checkpoint that training wrote")
    return metadata


def stored_config(path: str | Path) -> dict[str, Any]:
    """The resolved configuration that a checkpoint was trained with."""
    return metadata_of(path)["config"]


def rebuild(path: str | Path, cfg: Mapping[str, Any]) -> tuple[VLM, Chat]:
    """The model that ``cfg`` describes with the checkpoint's weights, and the checkpoint's tokenizer."""
    metadata = metadata_of(path)
    if metadata["chat"] is None:
        raise UserError(
            f"{path}: is of stage {metadata.get('stage')}, which has no language model; name a later stage's"
        )
    chat = Chat.from_json(metadata["chat"]).asking(cfg["domain"].get("prompt"))
    chosen, routed = cfg["domain"]["adapter"], metadata.get("router")
    if chosen == AUTO:  # of nobody's weights as long as nobody picks
        if routed is None and not cfg.get("adapters"):
            raise UserError(
                f"domain=auto: {path} holds no router; name a domain, or runs of specialists with adapters=[...]"
            )
        cfg = {**cfg, "domain": {**cfg["domain"], "adapter": OFF}}
    held = load_weights(path)
    if lost := next((n for n, value in held.items() if value.is_floating_point() and value.isnan().any()), None):
        raise UserError(f"{path}: {lost} holds NaN, so every answer would; name an earlier checkpoint, or train again")
    _check_name(held, cfg, path)
    cfg = with_sets_of(held, cfg)
    _check_size(held, lambda: assembly.model(cfg, chat, weights=False, stored=metadata), path)
    model = assembly.model(cfg, chat, weights=False, stored=metadata)
    weights = with_own(held, model)
    if lacking := [name for name in model.kvcache.state_dict() if f"kvcache.{name}" not in weights]:
        raise UserError(
            f"{path}: holds no kvcache.{lacking[0]}: it was trained without this cache; train gates from it (stage=duo "
            "kvcache=duo init_from=...), name a pattern (kvcache.pattern=DIR), or use kvcache=full"
        )
    load_into(model, weights, path)
    model.adapter.fill()
    if chosen == AUTO and routed is not None:
        model.router = Router.from_plain(routed, path)
        model.router.check(2 * model.vision.dim, model.adapter.names, path)
    return model, chat


def _check_size(weights: Mapping[str, Tensor], build: Callable[[], VLM], path: str | Path) -> None:
    """``UserError`` where the configuration describes far more than the weights fill, before memory is taken for it."""
    with torch.device("meta"):
        described = sum(value.numel() for value in build().state_dict().values())
    held = sum(value.numel() for value in weights.values())
    if described > 2 * held + ROOM:
        raise UserError(
            f"{path}: its configuration describes a model of {described:,} numbers, and its weights are {held:,}; "
            "expected a checkpoint that training wrote"
        )


def _check_name(weights: Mapping[str, Tensor], cfg: Mapping[str, Any], path: str | Path) -> None:
    """UserError where sets of adapter weights come from files, and none of any source has the name that is used."""
    name, load = cfg["domain"]["adapter"], cfg["adapter"].get("load") or {}
    sets = [*sets_of(weights), *load]
    if load and name not in (*sets, OFF):
        raise UserError(
            f"domain.adapter={name}: neither {path} nor adapter.load holds weights of this name; name those that are "
            f"to be used, domain.adapter={next(iter(load))} (there are {', '.join(sets)}), or off"
        )


def sets_of(weights: Mapping[str, Tensor]) -> list[str]:
    """The names of the sets of adapter weights that a checkpoint holds."""
    return list(dict.fromkeys(n.split(".")[1] for n in weights if n.startswith("adapter.")))


def with_sets_of(weights: Mapping[str, Tensor], cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with the names of the sets of adapter weights that a checkpoint holds, where ``adapter.names``
    leaves them open, before those that files bring."""
    node, sets = cfg["adapter"], sets_of(weights)
    if not sets or node.get("names", ...) is not None:  # named, or an adapter that has no such setting
        return dict(cfg)
    return {**cfg, "adapter": {**node, "names": [*sets, *(n for n in node.get("load") or {} if n not in sets)]}}


def with_own(weights: Mapping[str, Tensor], model: VLM) -> dict[str, Tensor]:
    """The checkpoint's weights, but of merger and cache those that this model has, where they differ.

    Mergers learn nothing: any of them may stand before any model, and what little they remember starts anew. Any cache
    may keep what a model has read, but what it has learnt must come from the checkpoint, or with its settings
    (``KVCache.given``). Sets of adapter weights that files bring (``Adapter.reads``) are filled in later.
    """
    rooms = {"merger": (model.merger, True), "kvcache": (model.kvcache, model.kvcache.given)}
    own: dict[str, Tensor] = {}
    names: set[str] = set()
    for room, (module, brings) in rooms.items():
        state = {f"{room}.{name}": value for name, value in module.state_dict().items()}
        names |= set(state)
        own |= state if brings else {}
    read = tuple(f"adapter.{name}." for name in model.adapter.reads)
    if read:
        own |= {name: value for name, value in model.state_dict().items() if name.startswith(read)}
        weights = {name: value for name, value in weights.items() if not name.startswith(read)}
    others = {n: value for n, value in weights.items() if n in names or n.partition(".")[0] not in rooms}
    return own | others
