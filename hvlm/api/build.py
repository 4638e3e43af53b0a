"""``hvlm.build``: a model from words, in one call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from hvlm import assembly
from hvlm.api.model import Model
from hvlm.config.check import check
from hvlm.config.compose import compose
from hvlm.config.rooms import OF_A_MODEL
from hvlm.config.schema import did_you_mean
from hvlm.config.search_path import named_by
from hvlm.errors import UserError

UNUSED = ("stage", "benchmark")  # of no matter here, and a stage takes seconds to import
ROOT = ("order", "seed", "domain")


def build(
    *overrides: str,
    texts: Iterable[str] | None = None,
    weights: bool = True,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    packages: Sequence[str] = (),
    **rooms: Any,
) -> Model:
    """A model of the rooms that are named, untrained but for pretrained parts. Nothing of Hydra's stays behind.

    Args:
        overrides: settings as on the command line: ``"connector.mode=coarse"``.
        texts: what the vocabulary of a language model from scratch is made of: questions and answers.
        weights: False builds the architecture alone, without the pretrained weights that rooms name.
        device: where it goes; None: the CPU; ``"meta"``: no memory is taken, to count weights.
        dtype: of the weights; None: float32.
        packages: outside packages whose rooms may be named.
        rooms: ``vision=``, ``connector=``, ``language=``, ...: a word of conf/, or a dict of its ``name`` and settings;
            ``order=``, ``seed=``, ``domain=``, ``num_frames=`` (frames of a clip).

    Raises:
        UserError: a word or setting that does not exist, and rooms that do not fit.
    """
    words, values = _split(rooms)
    given = [*words, *overrides, *([f"packages=[{','.join(packages)}]"] if packages else [])]
    with named_by(given):
        cfg = compose(given, unused=UNUSED)
        for group, settings in values.items():
            cfg[group] |= settings
        cfg = check(cfg, UNUSED)
        cfg["head"] = assembly.with_labels(cfg)
        chat = _chat(cfg, texts)
        counted = str(device) == "meta"
        with torch.random.fork_rng(devices=[]), torch.device("meta" if counted else "cpu"):
            torch.manual_seed(
                cfg["seed"]
            )  # equal calls give equal weights, and the program's own numbers go on as ever
            vlm = assembly.model(cfg, chat, weights=weights and not counted)
            if not counted:
                vlm.adapter.fill()
    model = Model(vlm, chat, assembly.input_spec(cfg, vlm), cfg, cfg["trainer"]["precision"])
    return model.to(None if counted else device, dtype)


def _split(rooms: Mapping[str, Any]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """(words as overrides, {group: settings})."""
    words: list[str] = []
    values: dict[str, dict[str, Any]] = {}
    for group, given in rooms.items():
        if group == "num_frames":
            values.setdefault("dataset", {})["num_frames"] = given
        elif group in ROOT:
            words.append(f"{group}={given}")
        elif group not in OF_A_MODEL:
            raise UserError(f"{group}={given}: no room;{did_you_mean(group, [*OF_A_MODEL, *ROOT, 'num_frames'])}")
        elif isinstance(given, str):
            words.append(f"{group}={given}")
        elif isinstance(given, Mapping) and isinstance(given.get("name"), str):
            words.append(f"{group}={given['name']}")
            values[group] = {key: value for key, value in given.items() if key != "name"}
        else:
            raise UserError(
                f"{group}={given!r}: expected a word, or a dict with its name: {{'name': ..., setting: ...}}"
            )
    return words, values


def _chat(cfg: Mapping[str, Any], texts: Iterable[str] | None) -> Any:
    """The tokenizer and template: the language model's own, or one made of ``texts``."""
    node = cfg["language"]
    needs = node.get("source") == "scratch"
    if needs and texts is None:
        raise UserError(
            f"language={node['_target_'].split('.')[2]} starts from nothing: give texts=[...], of which its vocabulary "
            "is made"
        )
    if texts is not None and not isinstance(texts, Iterable):
        raise UserError(f"texts={texts!r:.60}: expected a list of questions and answers")
    said = [] if texts is None else [texts] if isinstance(texts, str) else list(texts)
    if odd := [text for text in said if not isinstance(text, str)]:
        raise UserError(f"texts: {odd[0]!r:.60} is no text; expected a list of questions and answers")
    settings = assembly.check_room("language", node)
    return assembly.room_class("language", settings).chat_for(settings, lambda: said)
