"""fVLM's release layout: the names under which its published weights are stored, read and written.

encoder.dino.*                 the Dinov2 encoder (attention projections under their old or new names)
encoder.query_input_proj.*     W_in, the query's way into the encoder
encoder.output_proj.*          W_out, its way out
dino_to_llm.*  llm_to_query.*  the two linear maps between encoder and language model
q_static  q_init               the queries of the coarse pass and of the first frame
llm.*                          the language model; lm_head, tied to the embeddings, may be stored or not
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hvlm.errors import UserError
from hvlm.io.checkpoint import refuse_exported, refuse_unsafe_loading
from hvlm.io.dinov2_weights import new_names

# In the model -> in the release; the first prefix that fits counts.
PREFIXES = {
    "vision.model.": "encoder.dino.",
    "vision.query.query_in.": "encoder.query_input_proj.",
    "vision.query.query_out.": "encoder.output_proj.",
    "connector.project.layers.": "dino_to_llm.",
    "connector.llm_to_query.": "llm_to_query.",
    "connector.q_static": "q_static",
    "connector.q_init": "q_init",
    "language.model.": "llm.",
}
HEAD, EMBEDDING = "llm.lm_head.weight", "llm.model.embed_tokens.weight"
DINO = PREFIXES["vision.model."]
WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
INSIDE = ("model_state_dict", "state_dict", "model")  # where training checkpoints keep the weights
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


class Report(NamedTuple):
    """Names in the release's layout: copied; in the model only; in the file only."""

    matched: list[str]
    missing: list[str]
    unexpected: list[str]


def release_name(name: str) -> str | None:
    """The name in the release of one of the model's tensors; None for what fVLM does not have."""
    for ours, theirs in PREFIXES.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return None


def is_release(path: str | Path) -> bool:
    """Whether ``path`` (a file, or a folder with one) looks like weights in this layout rather than one of our runs."""
    try:
        path = _file(Path(path))
    except UserError:
        return False
    return path.suffix in SUFFIXES


def read_release(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a release by their names there, the encoder's under transformers' current names.

    path: a ``.safetensors`` file, a ``.pt``/``.pth``/``.bin`` file (read with ``weights_only=True``; a training
    checkpoint's weights are found), or a folder with one such file. Raises UserError for anything else.
    """
    refuse_exported(Path(path))
    path = _file(Path(path))
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        found: Any = load_file(path)
    else:
        refuse_unsafe_loading()
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # unpickling raises whatever the bytes lead to
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"{path} is not a readable file of tensors: {reason}") from error
        for key in INSIDE:
            if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
                found = found[key]
    state: dict[str, Tensor] = {}
    for name, tensor in found.items() if isinstance(found, Mapping) else ():
        if isinstance(tensor, Tensor):
            for wrapper in WRAPPERS:
                name = name.removeprefix(wrapper)
            state[name] = tensor
    if not any(name.startswith(tuple(PREFIXES.values())) for name in state):
        some = ", ".join(list(state)[:3]) or "no tensors"
        raise UserError(f"{path}: found {some}; expected fVLM's layout (encoder.dino.*, dino_to_llm.*, llm.*, ...)")
    encoder = new_names({n.removeprefix(DINO): t for n, t in state.items() if n.startswith(DINO)})
    state = {n: t for n, t in state.items() if not n.startswith(DINO)}
    return state | {DINO + name: tensor for name, tensor in encoder.items()}


def load_release(model: nn.Module, path: str | Path) -> Report:
    """Copy a release's weights into a model, in place, in the model's own dtype.

    Raises UserError for a tensor of another shape (the sizes are the model's own: choose them to fit) and for an output
    layer that differs from the embeddings it is tied to. What is missing or left over is reported, not raised.
    """
    stored = read_release(path)
    own: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        own[release_name(name) or name] = tensor.data
    if HEAD in stored and own.get(HEAD) is not None and EMBEDDING in stored:
        if own[HEAD].data_ptr() == own[EMBEDDING].data_ptr() and not torch.equal(stored[HEAD], stored[EMBEDDING]):
            raise UserError(f"{path}: {HEAD} differs from {EMBEDDING}, but this language model ties the two")
    elif HEAD not in stored and EMBEDDING in stored:
        stored[HEAD] = stored[EMBEDDING]
    matched = [name for name in own if name in stored]
    wrong = [n for n in matched if own[n].shape != stored[n].shape]
    if wrong:
        n = wrong[0]
        raise UserError(
            f"{path}: {n} is {tuple(stored[n].shape)} there and {tuple(own[n].shape)} here ({len(wrong)} tensors "
            "differ); choose the llm_name, dino_name and query_dim (language=, vision=) that it was trained with"
        )
    for name in matched:
        own[name].copy_(stored[name])
    missing = sorted(name for name in own if name not in stored)
    return Report(sorted(matched), missing, sorted(name for name in stored if name not in own))


def release_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors under the release's names, without the tied output layer. UserError for what has no name."""
    state, foreign = {}, []
    for name, tensor in model.state_dict().items():
        there = release_name(name)
        if there is None:
            foreign.append(name)
        elif there != HEAD:
            state[there] = tensor.detach().cpu().contiguous().clone()
    if foreign:
        raise UserError(
            f"fVLM's layout has no place for {', '.join(foreign[:3])}{' ...' if len(foreign) > 3 else ''}; it holds "
            "vision=dinov2_*, connector=foveated with projector=linear and standardise=false, and a language model"
        )
    return state


def save_release(model: nn.Module, path: str | Path) -> None:
    """Write ``release_state`` as one safetensors file."""
    from safetensors.torch import save_file

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(release_state(model), path, metadata={"format": "pt"})


def _file(path: Path) -> Path:
    if path.is_dir():
        found = [file for suffix in SUFFIXES for file in sorted(path.glob(f"*{suffix}"))]
        if len(found) != 1:
            names = ", ".join(file.name for file in found) or "none"
            raise UserError(f"{path}: expected one file of weights ({', '.join(SUFFIXES)}), found {names}")
        return found[0]
    if not path.is_file():
        raise UserError(f"{path}: no such file or folder of weights")
    return path
