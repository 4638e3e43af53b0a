"""A set of adapter weights as a folder of its own: ``adapter_config.json`` and ``adapter_model.safetensors``.

LoRA and DoRA are written as peft writes them, so that peft loads ours onto the bare model of a room, and ours loads
peft's. What peft has no type for (our gated prefix, bottlenecks) is kept in the same two files, with a type of ours.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hvlm.errors import UserError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PEFT = "base_model.model."  # before every name in peft's file
OF_THE_BASE = "language.model."  # where in our model the model stands that peft's files are for, unless they say
OWN = "HVLM_"  # before our own types
# Of peft's config, what would change the base weights or compute something else, with the value that does not.
OTHERWISE = {
    "bias": "none", "modules_to_save": None, "layer_replication": None, "target_parameters": None,
    "trainable_token_indices": None, "alora_invocation_tokens": None, "use_qalora": False, "lora_bias": False,
    "arrow_config": None, "megatron_config": None,
}  # fmt: skip
CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq")  # ways to begin


class Stored(NamedTuple):
    """What a folder holds.

    kind: the word of the adapter, "lora", "dora", "prefix" or "bottleneck". tensors: {path of a module in our model:
    {name: tensor}}. alphas: {path: alpha}, as in scale = alpha / rank. settings: further ones.
    """

    kind: str
    tensors: dict[str, dict[str, Tensor]]
    alphas: dict[str, float]
    settings: dict[str, Any]


def read(folder: str | Path, key: str) -> Stored:
    """What a folder holds, ours or peft's; one that has a folder for each part of the model holds these together.

    Args:
        folder: where.
        key: the setting that names it, for the message.

    Raises:
        UserError: no such folder, damaged files, or an adapter of another kind than ours.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{key}={folder}: no such folder; expected one with {CONFIG} and {WEIGHTS}")
    if not (folder / CONFIG).is_file():
        parts = [read(inner, key) for inner in sorted(folder.iterdir()) if (inner / CONFIG).is_file()]
        if not parts:
            raise UserError(f"{key}={folder}: holds no {CONFIG}; expected a folder that adapters are saved in")
        tensors = {path: found for part in parts for path, found in part.tensors.items()}
        return parts[0]._replace(tensors=tensors, alphas={p: a for part in parts for p, a in part.alphas.items()})
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        with safe_open(folder / WEIGHTS, "pt") as file:
            said = file.metadata() or {}
            flat = {name: file.get_tensor(name) for name in file.keys()}  # it is no mapping
    except (OSError, ValueError, SafetensorError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{key}={folder}: cannot be read ({reason})") from error
    kind = config.get("peft_type") if isinstance(config, Mapping) else None
    if isinstance(kind, str) and kind.startswith(OWN):
        return Stored(kind.removeprefix(OWN).lower(), _by_path(flat), {}, dict(config.get("settings") or {}))
    if kind != "LORA":
        hint = "; peft's prefix has no gate, and so is another function" if kind == "PREFIX_TUNING" else ""
        raise UserError(f"{key}={folder}: {CONFIG} is of type {kind}; expected LORA or one of ours{hint}")
    _refuse_what_differs(config, f"{key}={folder}")
    return _of_peft(config, flat, said.get("prefix", OF_THE_BASE), f"{key}={folder}")


def _of_peft(config: Mapping[str, Any], flat: Mapping[str, Tensor], prefix: str, where: str) -> Stored:
    odd = [name for name in flat if re.search(r"\.(lora_[AB]\.weight|lora_magnitude_vector)$", name) is None]
    if odd:
        raise UserError(f"{where}: {WEIGHTS} holds {odd[0]}, which is no lora_A, lora_B or lora_magnitude_vector")
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, value in flat.items():
        path, own = re.split(r"\.(?=lora_)", name.removeprefix(PEFT), maxsplit=1)
        tensors.setdefault(prefix + path, {})[own] = value
    alphas = {}
    for path, found in tensors.items():
        if not {"lora_A.weight", "lora_B.weight"} <= set(found):
            raise UserError(f"{where}: {path} has no lora_A and lora_B")
        alpha, rank = config.get("lora_alpha", 8), len(found["lora_A.weight"])
        for pattern, value in (config.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", path.removeprefix(prefix)):
                alpha = value
                break
        alphas[path] = float(alpha) * (math.sqrt(rank) if config.get("use_rslora") else 1.0)
    return Stored("dora" if config.get("use_dora") else "lora", tensors, alphas, {})


def _refuse_what_differs(config: Mapping[str, Any], where: str) -> None:
    for name, usual in OTHERWISE.items():
        if config.get(name, usual) not in (usual, None, [], {}):
            raise UserError(f"{where}: {CONFIG} has {name}={config[name]}, which is not read here; train it without")
    begins = config.get("init_lora_weights")
    if isinstance(begins, str) and begins.lower().startswith(CHANGE_THE_BASE):
        raise UserError(
            f"{where}: {CONFIG} has init_lora_weights={begins}, which changed the base weights; save it as plain LoRA "
            "(peft: path_initial_model_for_weight_conversion)"
        )


def write(
    folder: str | Path, stored: Stored, *, base: str | None, transposed: bool = False, dropout: float = 0.0
) -> None:
    """Write ``stored``; one folder, or one a part of the model where LoRA stands in several.

    Args:
        folder: is made. stored: what it will hold.
        base: name of the model that it is for.
        transposed: the layers keep their weights [in, out], as GPT-2's do.
        dropout: of its training.
    """
    folder = Path(folder)
    config: dict[str, Any]
    if stored.kind not in ("lora", "dora"):
        config = {"peft_type": OWN + stored.kind.upper(), "base_model_name_or_path": base, "settings": stored.settings}
        flat = {f"{path}:{name}": value for path, found in stored.tensors.items() for name, value in found.items()}
        return _put(folder, config, flat, "")
    parts: dict[str, list[str]] = {}
    for path in stored.tensors:
        part = path.split(".", 1)[0]
        inner = f"{part}.model."
        parts.setdefault(inner if path.startswith(inner) else f"{part}.", []).append(path)
    for prefix, paths in parts.items():
        own = folder if len(parts) == 1 else folder / prefix.rstrip(".")
        short = {path: path.removeprefix(prefix) for path in paths}
        ranks = {short[path]: len(stored.tensors[path]["lora_A.weight"]) for path in paths}
        alphas = {short[path]: stored.alphas[path] for path in paths}
        rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
        config = {
            "peft_type": "LORA", "task_type": None, "auto_mapping": None, "base_model_name_or_path": base,
            "inference_mode": True, "r": rank, "lora_alpha": _whole(alpha), "lora_dropout": dropout, "bias": "none",
            "target_modules": sorted(short.values()), "fan_in_fan_out": transposed, "init_lora_weights": True,
            "rank_pattern": {path: r for path, r in ranks.items() if r != rank},
            "alpha_pattern": {path: _whole(a) for path, a in alphas.items() if a != alpha},
            "use_dora": stored.kind == "dora", "use_rslora": False, "modules_to_save": None,
        }  # fmt: skip
        flat = {f"{PEFT}{short[path]}.{name}": value for path in paths for name, value in stored.tensors[path].items()}
        _put(own, config, flat, prefix)


def _put(folder: Path, config: Mapping[str, Any], flat: Mapping[str, Tensor], prefix: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in flat.items()}
    # The weights first: a folder with a config is whole.
    save_file(plain, folder / WEIGHTS, metadata={"format": "pt", "prefix": prefix})
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _by_path(flat: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for name, value in flat.items():
        path, _, own = name.partition(":")
        found.setdefault(path, {})[own] = value
    return found


def _whole(number: float) -> float | int:
    return int(number) if float(number).is_integer() else number
