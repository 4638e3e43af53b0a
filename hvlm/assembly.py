"""How rooms meet: the only place that turns a configuration into modules and passes on the widths they share."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hvlm.config.check import check_room, group_of, room_class
from hvlm.config.compose import stage_name
from hvlm.config.schema import parameters
from hvlm.data.views import Questions, View
from hvlm.errors import UserError
from hvlm.feature_cache import FrozenFeatures, plan
from hvlm.io.checkpoint import weights_hash
from hvlm.model import VLM, Encoder
from hvlm.text.chat import Chat
from hvlm.text.tokenizer import train_word_tokenizer
from hvlm.types import InputSpec, Wants

if TYPE_CHECKING:  # seconds of imports, which a model that only answers does without
    from hvlm.data.datamodule import DataModule
    from hvlm.stage._base import Stage

log = logging.getLogger(__name__)


def room(node: Mapping[str, Any], **shared: Any) -> Any:
    """Build a room: call ``_target_`` with the node's values and those of the shared keywords that it names.

    The node is checked first, wherever it comes from: a checkpoint and an exported folder are files that anybody can
    write. A ValueError from a constructor is about a value that the configuration gave, so it goes to the person who
    gave it.

    Raises:
        UserError: a target that is no room, a setting that is unknown, of a wrong type or out of range.
    """
    group = group_of(node)
    cls = room_class(group, node)
    wanted = parameters(cls)
    if unknown := sorted(set(node) - set(wanted) - {"_target_"}):
        raise UserError(
            f"{node['_target_']} has no setting {', '.join(unknown)}: the configuration was written by another version "
            "of hvlm; use that one, or train again"
        )
    arguments = check_room(group, node, shared)
    del arguments["_target_"]
    try:
        return cls(**arguments, **{key: value for key, value in shared.items() if key in wanted})
    except ValueError as error:
        raise UserError(str(error)) from error


def dataset(cfg: Mapping[str, Any]) -> Any:
    """The configured dataset, not prepared yet. UserError about its settings."""
    return room(cfg["dataset"])


def chat(cfg: Mapping[str, Any], data: Any) -> Chat:
    """The tokenizer and template: the language model's own, or one trained on the dataset's text when it has none."""
    settings = check_room("language", cfg["language"])
    return room_class("language", settings).chat_for(settings, data.texts)


def source_config(cfg: Mapping[str, Any], group: str, stored: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """What the source of the configured vision or language room says of the model; None where its settings say all.

    Args:
        cfg: the resolved configuration.
        group: ``vision`` or ``language``.
        stored: the metadata of a checkpoint that brings the weights. What it keeps of a room of the same class is taken
            in place of the source, which need not be there any more.
    """
    kept = {} if stored is None else stored.get("source_configs", {})
    if group in kept and stored["config"][group]["_target_"] == cfg[group]["_target_"]:
        return kept[group]
    settings = check_room(group, cfg[group])
    return room_class(group, settings).read_source_config(settings)


def source_configs(model: VLM | Encoder) -> dict[str, dict[str, Any] | None]:
    """{group: what its source said} of a model's rooms, for a checkpoint to keep."""
    rooms = {"vision": model.vision}
    if isinstance(model, VLM):
        rooms |= {"language": model.language, "adapter": model.adapter}
    return {group: one.source_config for group, one in rooms.items()}


def encoder(cfg: Mapping[str, Any], stored: Mapping[str, Any] | None = None, weights: bool = True) -> Encoder:
    """What stage 0 trains: no language model is built, loaded or stored for it. stored, weights: as in ``model``."""
    return Encoder(room(cfg["vision"], weights=weights, source_config=source_config(cfg, "vision", stored)))


def model(cfg: Mapping[str, Any], chat: Chat, weights: bool = True, stored: Mapping[str, Any] | None = None) -> VLM:
    """The backbone.

    Args:
        cfg: the resolved configuration.
        chat: the language model's tokenizer and template.
        weights: False leaves out pretrained weights, for a checkpoint is going to bring its own.
        stored: the metadata of that checkpoint (``hvlm.rebuild.metadata_of``).
    """
    order = cfg["order"]
    vision = room(cfg["vision"], weights=weights, source_config=source_config(cfg, "vision", stored))
    language = room(cfg["language"], chat=chat, weights=weights, source_config=source_config(cfg, "language", stored))
    widths = {"dim": vision.dim, "text_dim": language.dim}
    grid = vision.grid(vision.image_size, vision.image_size)
    text = {"dim": language.dim, "num_heads": language.num_heads}
    connector = room(cfg["connector"], **widths, query_dim=vision.query_dim, grid=grid)
    attention = room(cfg["attention"], **text)
    mixing = cfg["attention"]["_target_"]
    if connector.reads_forward and not attention.causal:
        raise UserError(
            f"{connector.reads_forward} reads frame by frame, but in {mixing} frames see later "
            "ones; use attention=none, or attention.causal=true (mamba: attention.bidirectional=false)"
        )
    kvcache = room(cfg["kvcache"], **language.cache_sizes)
    if kvcache.own_attention and not language.asks_cache:
        raise UserError(
            f"kvcache={cfg['kvcache']['_target_'].split('.')[2]}: its heads keep different lengths, which attention of "
            "transformers' own cannot read; use language.attention=auto"
        )
    merger = room(cfg["merger"], needs_frames=connector.needs_frames)
    if connector.needs_grid and not merger.changes_nothing:
        raise UserError(
            f"{connector.needs_grid} folds the whole patch grid, of which {cfg['merger']['_target_']} leaves a part; "
            "leave that setting out, or use merger=none"
        )
    fusion = room(cfg["fusion"], **text, vision_dim=vision.dim)
    head = room(cfg["head"], text_dim=language.dim, logits=language.logits)
    if head.reads_fusion and not fusion.reads_text:
        raise UserError(
            f"{head.reads_fusion}: {cfg['fusion']['_target_']} makes no state of video and text; use fusion=hivilt, or "
            "another that does"
        )
    return VLM(
        vision=vision,
        merger=merger,
        connector=connector,
        attention=attention,
        fusion=fusion,
        language=language,
        adapter=adapter(cfg, stored),
        kvcache=kvcache,
        head=head,
        order=order,
    )


def settled(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with what the head leaves to the dataset: its labels, which the checkpoint then keeps."""
    return dict(cfg) if stage_name(cfg) == "vision" else {**cfg, "head": with_labels(cfg)}


def with_labels(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The head's settings, see ``settled``."""
    head = check_room("head", cfg["head"])
    return room_class("head", head).settle(head, lambda of: dataset(cfg).names(of))


def head_alone(cfg: Mapping[str, Any]) -> Any:
    """The configured head without a model and without memory: it can read files of what is right, and score."""
    with torch.device("meta"):
        return room(settled(cfg)["head"], text_dim=8, logits=lambda h: h).asked()


def adapter(cfg: Mapping[str, Any], stored: Mapping[str, Any] | None = None) -> Any:
    """The configured adapter. A checkpoint's weights go before files that it was once made from; files that it was not
    made from go before its weights."""
    node, name = cfg["adapter"], cfg["domain"]["adapter"]
    kept = None if stored is None else stored.get("source_configs", {}).get("adapter")
    before = {} if stored is None else stored.get("config", {}).get("adapter") or {}
    if kept is not None and (before.get("_target_"), before.get("load")) == (node["_target_"], node.get("load")):
        return room(node, name=name, weights=False, source_config=kept)
    return room(node, name=name, source_config=source_config(cfg, "adapter"))


def dry_build(cfg: Mapping[str, Any], stored: Mapping[str, Any] | None = None) -> None:
    """Build the stage on torch's meta device and without pretrained weights: takes a second and no memory.

    stored: the metadata of the checkpoint that it starts from, where there is one already.

    What the rooms have to say of their settings and of each other is a ``UserError`` before anything is made, read or
    trained.
    """
    data, language = dataset(cfg), cfg["language"]
    if stage_name(cfg) == "vision":  # needs no language model, so it must not ask for one
        with torch.device("meta"):
            _check_stream(cfg, stage(cfg, encoder(cfg, stored, weights=False), data), data)
        return
    if stored is not None and stored["chat"] is not None:
        text = Chat.from_json(stored["chat"])
    elif language["source"] == "scratch":
        text = Chat(train_word_tokenizer(["a"]), language["template"], language["system"])  # the real one needs data
    else:
        text = chat(cfg, data)
    with torch.device("meta"):
        vlm = model(cfg, text, weights=False, stored=stored)
        _check_stream(cfg, stage(cfg, vlm, data), data)
    if data.max_tokens > vlm.language.max_positions:
        raise UserError(
            f"dataset.max_tokens={data.max_tokens}: the language model reads {vlm.language.max_positions} positions, "
            "text and visual tokens together; use fewer"
        )


def _check_stream(cfg: Mapping[str, Any], built: Stage, data: Any) -> None:
    from hvlm.data.datamodule import check_stream

    check_stream(data, built.interleave, cfg["trainer"]["overfit_batches"], view_of(built, built.model))


def view_of(stage: type[Stage] | Stage, vlm: VLM | Encoder) -> View:
    """What the reader shows: the stage says it, or leaves it to the head."""
    view = vlm.head.view if stage.view is None and isinstance(vlm, VLM) else stage.view
    if view is None:
        raise UserError(
            f"{type(vlm.head).__name__} has no view, so no stage can train it: a head says what is shown to it"
        )
    return view


def stage(cfg: Mapping[str, Any], vlm: VLM | Encoder, data: Any) -> Stage:
    """The configured stage around a model, with what it does not train frozen.

    Args:
        cfg: the resolved configuration.
        vlm: what it trains.
        data: the dataset, asked for its labels where the stage needs them.

    Raises:
        UserError: a stage that cannot train this model, or rates of parts that the model does not have.
    """
    view = view_of(room_class("stage", cfg["stage"]), vlm)
    built = room(cfg["stage"], model=vlm, labels=data.label_counts() if view.needs_labels else None)
    if isinstance(vlm, VLM) and vlm.fusion.reads_text and built.scored == "all" and vlm.order == "video_first":
        raise UserError(
            f"stage={stage_name(cfg)} learns to write the question, too, so with order=video_first no visual token may "
            "know it and fusion would have nothing to read; use order=question_first, or fusion=none"
        )
    if isinstance(vlm, VLM) and vlm.fusion.writes_text and built.scored == "all":
        raise UserError(
            f"fusion.write_text=true: stage={stage_name(cfg)} learns to write the question, too, so no state of it may "
            "know what comes later; use fusion.write_text=false in this stage and all after it"
        )
    try:
        built.freeze()
    except ValueError as error:
        raise UserError(str(error)) from error
    return built


def frozen_features(cfg: Mapping[str, Any], training: Stage, data: Any) -> FrozenFeatures | None:
    """A memory for the encoder's features where ``vision.cache_gb`` allows one; UserError where it cannot serve."""
    limit = training.model.vision.cache_gb
    if not limit:
        return None
    if "vision" in training.trainable:
        raise UserError(
            f"vision.cache_gb={limit:g}: only a frozen encoder's features can be kept; freeze it with "
            "'stage.trainable={vision:0}', or set vision.cache_gb=0"
        )
    model, manifest = training.model, data.manifest()
    if isinstance(model, Encoder):  # stage 0 asks the patches and the gaze
        name = _kept_as(model.vision, manifest)
        features = FrozenFeatures(model.vision, Wants(kv=True), True, training.shallow, name)
    else:
        features = features_for(model, manifest)
    clips = sum(len(manifest.split(name)) for name in ("train", "val"))
    log.info(f"vision.cache_gb={limit:g}: {plan(features, clips, cfg['dataset']['num_frames'], limit)}")
    return features


def input_spec(cfg: Mapping[str, Any], model: VLM | Encoder) -> InputSpec:
    """How ``model``, built from ``cfg``, wants its clips."""
    return InputSpec(cfg["order"], cfg["dataset"]["num_frames"], model.vision.image_size, motion_grid(model))


def motion_grid(model: VLM | Encoder) -> tuple[int, int] | None:
    """(rows, columns) of the patches whose optical flow a room of the model wants, None where none does."""
    vision = model.vision
    wanted = isinstance(model, VLM) and model.merger.wants_flow  # stage 0 has no merger
    return vision.grid(vision.image_size, vision.image_size) if wanted else None


def features_for(model: VLM, manifest: Any) -> FrozenFeatures:
    """What the rooms of the model ask of its encoder, kept. UserError where an adapter changes the encoder: each set of
    its weights makes other features, and they move while it trains."""
    if "vision" in model.adapter.adapts:
        raise UserError(
            f"vision.cache_gb={model.vision.cache_gb:g}: the adapter changes what the encoder makes of a frame, so its "
            "features cannot be kept; set vision.cache_gb=0"
        )
    if model.fusion.wants_layers:
        raise UserError(
            f"vision.cache_gb={model.vision.cache_gb:g}: the fusion reads the encoder's layers, which are not "
            "kept; set vision.cache_gb=0, or fusion.pyramid=pooled"
        )
    name = _kept_as(model.vision, manifest)
    return FrozenFeatures(model.vision, model.wants(), model.wants_patches, model.connector.shallow, name)


def _kept_as(vision: Any, manifest: Any) -> str:
    """Equal for equal encoders on the same data: clips of two data sets may have the same names."""
    return f"{weights_hash(vision.state_dict())} {vision.image_size} {vision.beside_weights} {manifest.identity}"


def datamodule(
    cfg: Mapping[str, Any], training: Stage, data: Any, chat: Chat | None, quarantine: Path | None
) -> DataModule:
    """The reader for a stage: what it shows (captions, questions, pairs, patches) and how much of it at a time."""
    vision = training.model.vision
    grid, view = None, view_of(training, training.model)
    if view.needs_labels:
        grid = tuple(side * training.cells for side in vision.grid(vision.image_size, vision.image_size))
    from hvlm.data.datamodule import DataModule

    return DataModule(
        data,
        chat,
        input_spec(cfg, training.model),
        view=view,
        rows_per_clip=training.rows_per_clip,
        loss=training.scored,
        batch_size=training.batch_size,
        steps=training.steps,
        accumulate=cfg["trainer"]["accumulate"],
        units=training.units,
        interleave=training.interleave,
        overfit_batches=cfg["trainer"]["overfit_batches"],
        grid=grid,
        quarantine=quarantine,
        **_reading(cfg),
    )


def reader(
    cfg: Mapping[str, Any], inputs: InputSpec, data: Any, chat: Chat, quarantine: Path | None = None
) -> DataModule:
    """The reader without a stage, for its ``loader`` alone."""
    plain = {"view": Questions(), "rows_per_clip": 1, "loss": "answer", "batch_size": 1, "steps": 1}
    from hvlm.data.datamodule import DataModule

    return DataModule(data, chat, inputs, quarantine=quarantine, **plain, **_reading(cfg))


def _reading(cfg: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "num_workers": cfg["trainer"]["num_workers"],
        "seed": cfg["seed"],
        "mixture": cfg["domain"]["mixture"],
        "cache_mb": cfg["trainer"]["cache_mb"],
    }
