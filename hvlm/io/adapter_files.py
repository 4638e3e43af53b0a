"""A set of adapter weights as a folder of its own: ``adapter_config.json`` and ``adapter_model.safetensors``.

LoRA and DoRA are written as peft writes them, so that peft loads ours onto the bare model of a room, and ours loads
peft's. What peft has no type for (our gated prefix, bottlenecks) is kept in the same two files, with a type of ours.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hvlm.errors import UserError
from hvlm.io.pretrained import json_of, one_line

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ADAPTERS = "adapters"  # folder of a stage that holds its sets, a folder each
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
# A pattern of layers may be anybody's: these are what matching takes exponentially or very long for.
MOST_REPEATS, LONGEST_NAME = 2, 300
MOST_WAYS = 64  # to take one of what stands between bars, in all groups: enough for the numbers of layers
MOST_SECONDS = 5.0  # of matching all patterns with all layers
_REPEATS, _NESTED = re.compile(r"[*+{]|(?<!\()\?"), re.compile(r"\)[*+?{]")


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
    where = f"{key}={folder}"
    config = json_of(folder / CONFIG, key)
    try:
        with safe_open(folder / WEIGHTS, "pt") as file:
            said = file.metadata() or {}
            flat = {name: file.get_tensor(name) for name in file.keys()}  # it is no mapping
    except FileNotFoundError:
        raise UserError(f"{where}: holds no {WEIGHTS}; expected what peft or a run here saved") from None
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{where}: {WEIGHTS} cannot be read ({one_line(error)})") from error
    _refuse_what_is_no_weight(flat, where)
    kind = config.get("peft_type")
    if isinstance(kind, str) and kind.startswith(OWN):
        settings = config.get("settings") or {}
        if not isinstance(settings, dict):
            raise UserError(f"{where}: {CONFIG} has settings={settings!r:.60}; expected a map")
        return Stored(kind.removeprefix(OWN).lower(), _by_path(flat), {}, settings)
    if kind != "LORA":
        hint = "; peft's prefix has no gate, and so is another function" if kind == "PREFIX_TUNING" else ""
        raise UserError(f"{where}: {CONFIG} is of type {kind!r:.60}; expected LORA or one of ours{hint}")
    _refuse_what_differs(config, where)
    return _of_peft(config, flat, said.get("prefix", OF_THE_BASE), where)


def _refuse_what_is_no_weight(flat: Mapping[str, Tensor], where: str) -> None:
    if not flat:
        raise UserError(f"{where}: {WEIGHTS} holds no tensors; expected what peft or a run here saved")
    for name, value in flat.items():
        if len(name) > LONGEST_NAME:
            raise UserError(f"{where}: {WEIGHTS} has a name of {len(name)} characters; expected {LONGEST_NAME} at most")
        if not value.is_floating_point():
            raise UserError(f"{where}: {name} holds {value.dtype}; expected floating-point numbers")
        if not value.float().isfinite().all():
            raise UserError(f"{where}: {name} holds numbers that are not finite; take an earlier copy of it")


def _of_peft(config: Mapping[str, Any], flat: Mapping[str, Tensor], prefix: str, where: str) -> Stored:
    odd = [name for name in flat if re.search(r"\.(lora_[AB]\.weight|lora_magnitude_vector)$", name) is None]
    if odd:
        raise UserError(f"{where}: {WEIGHTS} holds {odd[0]}, which is no lora_A, lora_B or lora_magnitude_vector")
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, value in flat.items():
        path, own = re.split(r"\.(?=lora_)", name.removeprefix(PEFT), maxsplit=1)
        tensors.setdefault(prefix + path, {})[own] = value
    alphas, default, patterns = {}, _alpha(config.get("lora_alpha", 8), "lora_alpha", where), _alphas(config, where)
    flags = {name: config.get(name, False) for name in ("use_dora", "use_rslora")}
    for name, value in flags.items():
        if value not in (True, False, None):
            raise UserError(f"{where}: {CONFIG} has {name}={value!r:.60}; expected true or false")
    end = time.thread_time() + MOST_SECONDS
    for path, found in tensors.items():
        if not {"lora_A.weight", "lora_B.weight"} <= set(found):
            raise UserError(f"{where}: {path} has no lora_A and lora_B")
        a, b = (found[f"lora_{one}.weight"] for one in "AB")
        if a.dim() != 2 or b.dim() != 2 or not len(a):
            raise UserError(
                f"{where}: {path} has lora_A {tuple(a.shape)} and lora_B {tuple(b.shape)}; expected two matrices, "
                "[rank, in] and [out, rank]"
            )
        alpha, rank = default, len(a)
        for pattern, value in patterns.items():
            if time.thread_time() > end:
                raise UserError(f"{where}: {CONFIG} has an alpha_pattern that takes too long; name the layers instead")
            if pattern.match(path.removeprefix(prefix)):
                alpha = value
                break
        alphas[path] = alpha * (math.sqrt(rank) if flags["use_rslora"] else 1.0)
    return Stored("dora" if flags["use_dora"] else "lora", tensors, alphas, {})


def _alpha(value: Any, name: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:  # nor NaN
        raise UserError(f"{where}: {CONFIG} has {name}={value!r:.60}; expected a number above 0")
    return float(value)


def _ways(pattern: str) -> int:
    """In how many ways a pattern without repeats can be gone through: groups multiply what stands between bars."""
    ways, open_groups = 1, [1]
    for sign in pattern:
        if sign == "(":
            open_groups.append(1)
        elif sign == "|":
            open_groups[-1] += 1
        elif sign == ")" and len(open_groups) > 1:
            ways = min(ways * open_groups.pop(), MOST_WAYS + 1)
    return ways * sum(open_groups)


def _may_take_for_ever(pattern: str) -> bool:
    plain = re.sub(r"\\.", "a", pattern)  # what is escaped stands for itself
    repeats = len(_REPEATS.findall(plain))
    return repeats > MOST_REPEATS or _NESTED.search(plain) is not None or _ways(plain) > MOST_WAYS


def _alphas(config: Mapping[str, Any], where: str) -> dict[re.Pattern[str], float]:
    """{what the path of a layer may end with: its alpha}. A pattern is a name, as peft writes it, or an expression."""
    given = config.get("alpha_pattern") or {}
    if not isinstance(given, dict):
        raise UserError(f"{where}: {CONFIG} has alpha_pattern={given!r:.60}; expected a map of layers to numbers")
    found = {}
    for pattern, value in given.items():
        name = f"alpha_pattern[{pattern!r:.60}]"
        if _may_take_for_ever(pattern):
            raise UserError(
                f"{where}: {CONFIG} has {name}, which could take for ever to match; name the layers instead"
            )
        try:
            compiled = re.compile(rf"(.*\.)?({pattern})$")
        except (re.error, RecursionError, OverflowError) as error:
            raise UserError(f"{where}: {CONFIG} has {name}, which is no regular expression ({error})") from error
        found[compiled] = _alpha(value, name, where)
    return found


def _refuse_what_differs(config: Mapping[str, Any], where: str) -> None:
    for name, usual in OTHERWISE.items():
        if config.get(name, usual) not in (usual, None, [], {}):
            raise UserError(
                f"{where}: {CONFIG} has {name}={config[name]!r:.60}, which is not read here; train it without"
            )
    begins = config.get("init_lora_weights")
    if isinstance(begins, str) and begins.lower().startswith(CHANGE_THE_BASE):
        raise UserError(
            f"{where}: {CONFIG} has init_lora_weights={begins:.60}, which changed the base weights; save it as plain "
            "LoRA (peft: path_initial_model_for_weight_conversion)"
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
