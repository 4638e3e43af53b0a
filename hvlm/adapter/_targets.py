"""Which modules of a model an adapter stands beside, whatever a family calls them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hvlm.errors import UserError

PLACES = ("language", "vision", "attention", "connector")
WORDS = ("attention", "mlp", "all")
# What is called so projects for attention where no module around it says it is one.
PROJECTIONS = frozenset({"q_proj", "k_proj", "v_proj", "kv_proj", "qkv_proj", "o_proj"})
# The layer with which attention, or an MLP, hands on what it made.
LAST_OF_ATTENTION = frozenset({"o_proj", "out_proj", "c_proj", "dense", "wo"})
LAST_OF_MLP = frozenset(
    {"down_proj", "fc2", "c_proj", "dense_4h_to_h", "weights_out", "wo", "w2", "fc_out", "output_linear"}
)


def is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def sizes(module: nn.Module) -> tuple[int, int]:
    """(what goes in, what comes out) of a linear layer; GPT-2's keeps its weight the other way round."""
    if isinstance(module, Conv1D):
        return int(module.weight.shape[0]), int(module.weight.shape[1])
    return module.in_features, module.out_features


def as_linear(weight: Tensor, module: nn.Module) -> Tensor:
    """The weight of ``module`` as [out, in], or back again."""
    return weight.T if isinstance(module, Conv1D) else weight


class Found:
    """A linear layer. part: whose it is. kind: "attention", or "mlp" for everything else."""

    def __init__(self, path: str, module: nn.Module, part: str, kind: str):
        self.path, self.module, self.part, self.kind = path, module, part, kind

    def answers(self, word: str) -> bool:
        """Whether a word of ``adapter.targets`` means it: a kind, or the end of its path."""
        if word in WORDS:
            return word in ("all", self.kind)
        return self.path == word or self.path.endswith(f".{word}")


def linears(model: nn.Module, where: Sequence[str]) -> Iterator[Found]:
    """The linear layers of the parts in ``where``, but for those whose weights others read past them: the language
    model's output, whose rows are no text rows, and what torch's own attention holds."""
    part_of, kind_of = {"": ""}, {"": "mlp"}
    for path, module in model.named_modules():
        above = path.rpartition(".")[0]
        part_of[path] = part = getattr(type(module), "part", part_of.get(above, ""))
        name, kind = path.rpartition(".")[2], kind_of.get(above, "mlp")
        if isinstance(module, nn.MultiheadAttention):
            kind = "torch"
        elif "Attention" in type(module).__name__ and kind != "torch":
            kind = "attention"
        kind_of[path] = kind
        if part not in where or not is_linear(module) or kind == "torch" or name == "lm_head":
            continue
        if part == "connector" and path.startswith("vision.") and not model.connector.wants_gaze:
            continue  # a query that nobody asks with
        yield Found(path, module, part, "attention" if name in PROJECTIONS else kind)


def chosen(model: nn.Module, where: Sequence[str], targets: Sequence[str] | None) -> list[Found]:
    """What ``adapter.where`` and ``adapter.targets`` name.

    Args:
        model: the whole model.
        where: parts.
        targets: words; None: the projections of attention in language model and encoder, every layer of the other
            rooms.

    Raises:
        UserError: a part without such layers, or a word that names none.
    """
    every = list(linears(model, where))
    if targets is None:
        found = [one for one in every if one.kind == "attention" or one.part in ("attention", "connector")]
    else:
        found = [one for one in every if any(one.answers(word) for word in targets)]
        for word in targets:
            if not any(one.answers(word) for one in every):
                names = ", ".join(sorted({one.path.rpartition(".")[2] for one in every})) or "none"
                raise UserError(
                    f"adapter.targets: {word} names no linear layer of {', '.join(where)}; there are {names}, and "
                    f"the words {', '.join(WORDS)}"
                )
    for part in where:
        if not any(one.part == part for one in found):
            raise UserError(
                f"adapter.where names {part}, and this model's {part} has no linear layer that could be adapted; "
                "leave it out"
            )
    return found


def ends(model: nn.Module, where: Sequence[str], kinds: Sequence[str]) -> list[Found]:
    """The layers with which attention and MLPs of language model and encoder hand on what they made."""
    last = {"attention": LAST_OF_ATTENTION, "mlp": LAST_OF_MLP}
    found = []
    for one in linears(model, [part for part in where if part in ("language", "vision")]):
        name, above = one.path.rpartition(".")[2], one.path.split(".")
        in_mlp = name in LAST_OF_MLP or (name.isdigit() and above[-2] == "mlp" and name == _last_of(model, above[:-1]))
        if one.kind in kinds and (in_mlp if one.kind == "mlp" else name in last[one.kind]):
            found.append(one)
    return found


def _last_of(model: nn.Module, path: list[str]) -> str:
    """The name of the last linear layer of a sequence."""
    return [name for name, child in model.get_submodule(".".join(path)).named_children() if is_linear(child)][-1]
