"""The hub: what model and processor are loaded from and pushed to."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypedDict

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from hvlm.errors import UserError

LOG_IN = "log in with `hf auth login`, set HF_TOKEN, or give token="
ADVICE = {401: f"; {LOG_IN}", 403: "; give a token= that may write there, or another repo_id"}


class FromHub(TypedDict, total=False):
    """What every ``from_pretrained`` takes to find a folder of the hub; see ``transformers``.

    revision: branch, tag or commit, for all files alike. trust_remote_code, _from_auto: the Auto classes pass these on.
    No code of a folder is ever run, whatever the first says.
    """

    revision: str | None
    subfolder: str
    cache_dir: str | Path | None
    force_download: bool
    local_files_only: bool
    token: str | bool | None
    trust_remote_code: bool | None
    _from_auto: bool


def hub_arguments(given: FromHub) -> dict[str, Any]:
    """What transformers' own loaders are to be called with. TypeError for an argument that is none of ``FromHub``."""
    if unknown := given.keys() - FromHub.__annotations__.keys():
        raise TypeError(f"from_pretrained() got an unexpected keyword argument {min(unknown)!r}")
    return {name: value for name, value in given.items() if name not in ("trust_remote_code", "_from_auto")}


@contextmanager
def found(path: str | Path) -> Iterator[None]:
    """UserError, in one line, where what the block reads of ``path`` is neither a folder here nor on the hub."""
    try:
        yield
    except (OSError, HFValidationError) as error:
        if Path(path).exists():
            raise
        answer = _answer_of(error)
        why = " ".join(str(error).split(".\n")[0].split()) if answer is None else f"{answer.response.status_code}"
        hint = "" if answer is None else f"; check the name and revision=, and where it is private {LOG_IN}"
        raise UserError(
            f"{path}: no such file or folder here, and no export of hvlm on the hub ({why}){hint}"
        ) from error


def _answer_of(error: BaseException | None) -> HfHubHTTPError | None:
    """What the hub said, of an error that was made of it."""
    while error is not None and not isinstance(error, HfHubHTTPError):
        error = error.__cause__ or error.__context__
    return error


class OnTheHub(ABC):
    """``push_to_hub`` for what has a ``save_pretrained``.

    It is not transformers' ``PushToHubMixin``, which writes the hub's card over the one that was saved, nor
    huggingface_hub's ``ModelHubMixin``, which pushes to no branch that is not there yet.
    """

    pushed = "model"

    @abstractmethod
    def save_pretrained(self, folder: str | Path) -> None:
        """Write all that is pushed into a folder."""

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        endpoint: str | None = None,
    ) -> str:
        """Upload what ``save_pretrained`` writes, as one commit. Returns its address.

        Args:
            repo_id: OWNER/NAME; made if it is not there.
            private, token: see ``huggingface_hub``.
            revision: a branch; made if it is not there.
            commit_message: None: what is uploaded.
            endpoint: another hub than Hugging Face's own, or than HF_ENDPOINT names.

        Raises:
            UserError: the hub refuses, or ``repo_id`` is no name of its.
        """
        hub, message = HfApi(endpoint=endpoint, token=token), commit_message or f"Upload {self.pushed}"
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / (repo_id.split("/")[-1] or "model")  # after which a card is named
            self.save_pretrained(folder)
            try:
                with suppress(ValueError):  # from parsing another hub's address, where it is there and may not be made
                    hub.create_repo(repo_id, private=private, exist_ok=True)
                if revision is not None:
                    hub.create_branch(repo_id, branch=revision, exist_ok=True)
                info = hub.upload_folder(repo_id=repo_id, folder_path=folder, revision=revision, commit_message=message)
            except HFValidationError as error:
                raise UserError(f"repo_id={repo_id}: {' '.join(str(error).split())}; expected OWNER/NAME") from error
            except HfHubHTTPError as error:
                status, said = error.response.status_code, " ".join((error.server_message or "").split())
                why = f"{status}: {said}" if said else str(status)
                raise UserError(f"{repo_id}: {hub.endpoint} refuses it ({why}){ADVICE.get(status, '')}") from error
        return str(info.commit_url)
