"""Where pretrained weights come from: a folder, the Hugging Face hub, or an installed Python package.

Weights inside a package are in somebody else's format; they are converted once and kept as a Hugging Face folder
(``config.json``, ``model.safetensors``, ...) under the user's cache folder: ``$HVLM_CACHE``, else ``~/.cache/hvlm``.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import logging
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hvlm.errors import UserError

log = logging.getLogger(__name__)


class Package(NamedTuple):
    """Weights that an installed package carries.

    name: as pip knows it. module: as Python knows it; it is located, never imported. needs: further modules that
    ``convert`` imports. install: the command that gets everything. convert(package folder, target folder) writes the
    Hugging Face folder.
    """

    name: str
    module: str
    needs: tuple[str, ...]
    install: str
    convert: Callable[[Path, Path], None]


def fetch(
    source: str, *, key: str, files: Collection[str], packages: Mapping[str, Package], revision: str | None = None
) -> Path:
    """The folder with the files of ``source``.

    source: ``package:<name>`` with a name from ``packages``, a folder, or a hub id such as ``facebook/dinov2-small``
    (at ``revision``, by default the newest; what the hub's own cache holds is used offline).
    Several sources joined by commas: the first package or folder among them that is here, else the last; the log says
    which.
    key: the configuration key that the errors name. files: patterns to download from the hub; the first must be there.
    Errors: ``UserError`` for an unknown or absent package, no such folder, an unreachable hub, a hub id that does not
    exist, a folder without the first file. Nothing is ever replaced by something else.
    """
    *preferred, source = source.split(",")
    for choice in preferred:
        module = packages[choice.removeprefix("package:")].module if choice.startswith("package:") else None
        if importlib.util.find_spec(module) if module else Path(choice).expanduser().is_dir():
            source = choice
            break
    if preferred:
        log.info(f"{key}: {source} (the first that is here)")
    if source.startswith("package:"):
        return _from_package(source, key, packages)
    options = f"a folder ({key}=DIR)"
    options += "".join(f" or {key}=package:{name} (`{package.install}`)" for name, package in packages.items())
    folder = Path(source).expanduser()
    if not folder.is_dir():
        if source.startswith(("/", ".", "~")) or source.count("/") != 1:
            raise UserError(f"{key}={source}: no such folder; expected a hub id such as owner/name, or {options}")
        folder = _from_hub(source, revision, key, files, options)
    first = next(iter(files))
    if not any(folder.glob(first)):
        raise UserError(f"{key}={source}: {folder} has no {first}; expected a Hugging Face model folder")
    return folder


def json_of(path: Path, key: str) -> dict[str, Any]:
    """A JSON file of a Hugging Face folder.

    Args:
        path: of the file.
        key: what the user wrote to name the folder, for the message.

    Raises:
        UserError: it cannot be read, or is another value than an object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{key}: {path} cannot be read: {one_line(error)}") from error
    if not isinstance(found, dict):
        raise UserError(f"{key}: {path} holds no mapping; expected that of a Hugging Face folder")
    return found


def one_line(error: Exception) -> str:
    """What another library says, short."""
    if isinstance(error, pickle.UnpicklingError):
        return "what torch.save wrote is damaged, or holds more than tensors, which could run code"
    said = " ".join(str(error).split())
    return said[:200] if said and not isinstance(error, KeyError) else f"{type(error).__name__} {said[:200]}".strip()


def cache_folder() -> Path:
    """``$HVLM_CACHE``, else ``~/.cache/hvlm``; made when something is kept in it."""
    return Path(os.environ.get("HVLM_CACHE") or Path.home() / ".cache" / "hvlm").expanduser()


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """The folder ``name`` in the cache, filled by ``make(folder)`` if it is not there yet.

    It appears complete or not at all: two processes that make it at once, or one that is killed, do no harm.
    """
    target = cache_folder() / name
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=target.parent))
    try:
        make(draft)
        draft.chmod(0o755)
        try:
            draft.rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another process was faster, with the same content
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def _from_package(source: str, key: str, packages: Mapping[str, Package]) -> Path:
    name = source.removeprefix("package:")
    if name not in packages:
        known = ", ".join(f"package:{n}" for n in packages) or "none for this size"
        raise UserError(f"{key}={source}: no such package of weights; known: {known}")
    package = packages[name]
    spec = importlib.util.find_spec(package.module)
    absent = [m for m in package.needs if importlib.util.find_spec(m) is None]
    if spec is None or spec.origin is None or absent:
        missing = ", ".join([package.name] if spec is None else absent)
        raise UserError(f"{key}={source}: {missing} is not installed; run `{package.install}`")
    version = importlib.metadata.version(package.name)
    here = Path(spec.origin).parent
    return made_once(f"{package.name}-{version}", lambda target: package.convert(here, target))


def _from_hub(repo: str, revision: str | None, key: str, files: Collection[str], options: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(files)))
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"{key}={repo}: the Hugging Face hub cannot be reached and its cache does not hold this model; "
            f"go online, or give {options}"
        ) from error
    except (HfHubHTTPError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[-1]
        at = f" at revision {revision}" if revision else ""
        raise UserError(f"{key}={repo}{at}: {reason}; expected a hub id, or {options}") from error
