"""Command line -> configuration, checked before any work.

``compose`` gives a configuration for a list of overrides, ``plan`` the configurations of all stages that a command
runs. Whatever is wrong comes out as one ``UserError`` line that names the key. Hydra is known here, in ``hvlm.cli`` and
in ``hvlm.sweep.launcher``, and nowhere else.
"""

from __future__ import annotations

import errno
import functools
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast, get_origin

import hydra
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hvlm.config.check import check, check_settings, room_class
from hvlm.config.packages import import_named
from hvlm.config.rooms import ROOMS
from hvlm.config.schema import did_you_mean, parameters
from hvlm.config.search_path import CONF, OF_THE_COMMAND_LINE, contents, named_by
from hvlm.config.settings import SECTIONS
from hvlm.config.synonyms import instead_of_key, instead_of_word
from hvlm.config.words import as_given, key_of
from hvlm.config.words import options as members_of
from hvlm.errors import UserError

# What Hydra raises over the command line, the files, or both.
REFUSED = (HydraException, OmegaConfBaseException, yaml.YAMLError)


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as plain dicts, lists and scalars; an interpolation that leads nowhere is a ``UserError``."""
    try:
        missing = sorted(OmegaConf.missing_keys(cfg))
        if missing:
            raise UserError(f"{missing[0]} is mandatory and has no value: set {missing[0]}=... on the command line")
        return cast("dict[str, Any]", OmegaConf.to_container(cfg, resolve=True))
    except OmegaConfBaseException as e:
        raise UserError(f"{e.full_key}: {str(e).splitlines()[0]}") from e


def compose(overrides: Sequence[str], config_name: str = "train", unused: Collection[str] = ()) -> dict[str, Any]:
    """The checked configuration for these overrides, as the command line would give it: plain values only.

    unused: rooms that will not be built, see ``hvlm.config.check.check``.
    """
    overrides = [as_given(o) for o in overrides]
    with named_by(overrides), explained(overrides, config_name):
        if "head" not in unused and _answers_in_no_words(overrides, config_name):
            overrides = [*overrides, "benchmark=head"]
        return check(resolved(_compose(tuple(overrides), config_name, contents())), unused)


def _answers_in_no_words(overrides: Sequence[str], config_name: str) -> bool:
    """Whether nobody chose how the model is scored, and the usual way asks questions in text, which its head does not
    answer."""
    if any(key_of(o) == "benchmark" for o in overrides):
        return False
    others = tuple(o for o in overrides if not key_of(o).startswith("benchmark."))
    cfg = resolved(_compose(others, config_name, contents()))
    if cfg["benchmark"]["_target_"] != ASKING or cfg["head"]["_target_"] == WRITING:
        return False
    import_named(check_settings(cfg)["packages"])
    head: Any = room_class("head", cfg["head"])
    return not head.writes


ASKING, WRITING = "hvlm.benchmark.needles.Needles", "hvlm.head.text.TextHead"


@functools.cache
def _compose(
    overrides: tuple[str, ...], config_name: str, searched: tuple[Any, ...], hydras: bool = False
) -> DictConfig:
    """What Hydra makes of the files and the overrides; a third of a second, so kept. Nobody may change it."""
    # Hydra's global state is put aside and back: compose is also called in the middle of a run.
    before, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            return hydra.compose(config_name, list(overrides), return_hydra_config=hydras)
    finally:
        GlobalHydra.instance().hydra = before


def stage_name(cfg: Mapping[str, Any]) -> str:
    """``sft`` for ``stage._target_: hvlm.stage.sft.SFT``: the word that was written on the command line."""
    return cfg["stage"]["_target_"].split(".")[2]


def plan(
    overrides: Sequence[str], composer: Callable[[list[str]], dict[str, Any]] = compose
) -> dict[str, dict[str, Any]]:
    """{label: configuration} of the stages that a command runs, in order, all checked before the first one starts.

    Without a chain that is one stage under its own name. With one, each stage is composed as
    ``[*the chain's overrides, *the command line's]``, so the user wins; ``stage=`` on the command line runs that
    stage of the chain alone.
    """
    overrides = list(overrides)
    root = composer(overrides)
    chain = root["chain"] or {}
    for step in (o for steps in chain.values() for o in steps if key_of(o) in OF_THE_COMMAND_LINE):
        raise UserError(f"chain: holds {step}; {key_of(step)} is given on the command line alone")
    alone = any(o.split("=", 1)[0] == "stage" for o in overrides)
    if alone or not chain:
        name = stage_name(root)
        return {name: composer([*chain.get(name, []), *overrides]) if chain else root}
    of_stages = _rates_for_each(overrides, chain, composer)
    return {label: composer([*steps, *of_stages[label]]) for label, steps in chain.items()}


RATES = "stage.trainable"


def _rates_for_each(
    overrides: Sequence[str], chain: Mapping[str, Sequence[str]], composer: Callable[[list[str]], dict[str, Any]]
) -> dict[str, list[str]]:
    """{label: the overrides that speak to this stage}: a learning rate of a part that only other stages of the chain
    train (``language`` has none in stage vision) is left out. What no stage knows stays, and is refused."""
    rates = [o for o in overrides if o.startswith((f"{RATES}=", f"{RATES}."))]
    if not rates:
        return {label: list(overrides) for label in chain}
    others = [o for o in overrides if o not in rates]
    known = {label: set(composer([*steps, *others])["stage"].get("trainable") or ()) for label, steps in chain.items()}
    anywhere = set().union(*known.values())
    return {
        label: [kept for o in overrides if (kept := _without(o, anywhere - parts) if o in rates else o)]
        for label, parts in known.items()
    }


def _without(rate: str, parts: Collection[str]) -> str | None:
    """An override of learning rates without these parts; None where nothing is left of it."""
    with explained([rate]):
        said = OverridesParser.create().parse_override(rate).value()
    if not isinstance(said, Mapping):
        return None if key_of(rate).removeprefix(f"{RATES}.") in parts else rate
    if not set(parts) & set(said):
        return rate
    left = {part: "null" if value is None else value for part, value in said.items() if part not in parts}
    return f"{RATES}={{{','.join(f'{part}:{value}' for part, value in left.items())}}}" if left else None


# ---------------------------------------------------------------------------------------------------- messages


@contextmanager
def explained(overrides: Sequence[str], config_name: str = "train") -> Iterator[None]:
    """Turns whatever Hydra and OmegaConf raise inside into a ``UserError`` of one line."""
    try:
        yield
    except (*REFUSED, OSError) as e:
        if not explains(e):
            raise
        raise explain(e, overrides, config_name) from e


def explains(error: Exception) -> bool:
    """Whether it is about the settings: Hydra's and OmegaConf's own, and that of a word too long to name a file."""
    return isinstance(error, REFUSED) or (isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG)


def explain(error: Exception, overrides: Sequence[str], config_name: str = "train") -> UserError:
    """One line that names the override, and the word that was probably meant."""
    text = str(error)
    if not isinstance(error, REFUSED):
        longest = max(overrides, key=len)  # a group and its word are the folder and the name of a file
        return UserError(
            f"{longest[:40]}...: {len(longest)} characters, more than the name of a setting or of an option can have; "
            "write key=value, a short word for a part (connector=mean)"
        )
    if isinstance(error, yaml.YAMLError):
        mark = getattr(error, "problem_mark", None)
        where = f"{mark.name}, line {mark.line + 1}" if mark else "a file of settings"
        return UserError(f"{where}: not valid YAML ({getattr(error, 'problem', None) or text.splitlines()[0]})")
    if isinstance(error, OverrideParseException):
        reason = text.splitlines()[-1].strip() if "=" in error.override else "settings look like connector=mean seed=2"
        return UserError(f"cannot read '{error.override}': {reason}")
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, word = error.missing_cfg_file.rpartition("/")
        options = sorted(o.rpartition("/")[2] for o in error.options)
        alike = did_you_mean(word, options) if word else ""
        near = instead_of_word(group, word, options) or (alike if "did you mean" in alike else "")
        return UserError(f"{group}={word}: no such option;{near} options: {', '.join(options)}")
    cause = error.__cause__
    if isinstance(cause, UserError):  # of a launcher's or sweeper's own constructor
        return cause
    if isinstance(cause, TypeError | ValueError) and (part := re.search(r"^full_key: (\S+)$", text, re.M)):
        given = [o for o in overrides if o.lstrip("+~").startswith(f"{part[1]}.")]
        return UserError(f"{' '.join(given) or part[1]}: a value of another kind than the setting takes ({cause})")
    for override in overrides:
        key = override.split("=", 1)[0].lstrip("+~")
        if f"'{key}'" not in text and override not in text:
            continue
        if "Ambiguous value" in text or "requires --multirun" in text:
            return UserError(f"{override} holds several values: add -m to run each, or write {key}=[...] for a list")
        if "Could not append" in text:
            return UserError(f"{override}: '{key}' exists already; write it without the +")
        if "Could not override" in text or "No match in the defaults list" in text:
            # stage.trainable={visions:1}: the unknown word is the one inside
            key = getattr(cause, "full_key", None) or key
            return UserError(f"unknown key '{key}';{_near_key(key, config_name, overrides, override)}".rstrip(";"))
    lines = [*text.splitlines(), *(str(cause).splitlines() if isinstance(cause, OmegaConfBaseException) else [])]
    return UserError(": ".join(dict.fromkeys(line.strip() for line in lines if line.strip())))


def _near_key(key: str, config_name: str, overrides: Sequence[str], bad: str) -> str:
    """The suggestion for a misspelt ``key``, from the configuration that the other overrides give."""
    cfg: Any = None
    # Where other overrides are wrong, too, the words that choose rooms still say which settings there are.
    rooms = [o for o in overrides if "." not in o.split("=", 1)[0]]
    nothing: list[str] = []
    for others in ([o for o in overrides if o != bad], rooms, nothing):
        try:
            # A sweep's own settings (hydra.sweeper.trials) stand in Hydra's part, which runs do not have.
            cfg = _compose(tuple(others), config_name, contents(), hydras=key.startswith("hydra."))
            break
        except REFUSED:
            continue
    prefix: list[str] = []
    root = cfg
    for part in key.split("."):
        if not isinstance(cfg, DictConfig):
            if cfg._is_none() and _takes_a_map(prefix, root):
                value = bad.partition("=")[2] or "..."
                return f" '{'.'.join(prefix)}' is a map and empty: write {'.'.join(prefix)}={{{part}:{value}}}"
            return f" '{'.'.join(prefix)}' is a single value" if prefix else ""
        keys = [str(k) for k in cfg if k != "_target_"]
        if not keys and prefix:
            return f" the chosen {'.'.join(prefix)} has no settings"
        if part not in keys:
            if known := instead_of_key(key) or _elsewhere(part, root):
                return known
            hint = did_you_mean(part, keys)
            # The suggestion can be pasted: the whole dotted key, not its last word.
            return hint.replace("mean '", f"mean '{'.'.join(prefix)}.") if prefix and "mean '" in hint else hint
        prefix.append(part)
        cfg = cfg._get_node(part)
    return ""


def _takes_a_map(path: Sequence[str], cfg: Any) -> bool:
    """Whether a setting of a room, or of a section, may be a map."""
    if len(path) != 2 or path[0] not in (*ROOMS, *SECTIONS):
        return False
    group, name = path
    taker = SECTIONS.get(group) or room_class(group, OmegaConf.to_container(cfg[group]))
    annotation, _ = parameters(taker).get(name, (None, False))
    return any(one is dict or get_origin(one) in (dict, Mapping) for one in members_of(annotation))


def _elsewhere(word: str, cfg: Any) -> str:
    """The dotted keys that end in ``word``, as a suggestion: ``batch_size=4`` is ``stage.batch_size`` for somebody."""
    found = [
        f"{group}.{word}" for group in cfg if group != "hydra" and OmegaConf.is_dict(cfg[group]) and word in cfg[group]
    ]
    return f" did you mean {' or '.join(map(repr, found))}?" if found else ""
