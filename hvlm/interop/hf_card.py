"""The model card of an exported folder."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCardData

from hvlm.evaluation import results
from hvlm.evaluation.evaluate import RESULTS
from hvlm.evaluation.report import table
from hvlm.interop.hf_config import HvlmConfig

CARD = "README.md"
HEAD = ModelCardData(library_name="transformers", pipeline_tag="video-text-to-text", tags=["hvlm"])


def model_card(name: str, config: HvlmConfig, seed: int | None = None, figures: Path | None = None) -> str:
    """The text of README.md.

    Args:
        name: its title.
        config: of the model.
        seed: of the run that it is from.
        figures: the results file of the run that it is from; None: none is known.
    """
    rooms = " ".join(f"{room}={node['_target_'].split('.')[-2]}" for room, node in config.rooms.items())
    made = f"Made with hvlm: {rooms} order={config.order}" + ("" if seed is None else f" seed={seed}")
    side = config.rooms["vision"]["image_size"]
    lines = ["---", HEAD.to_yaml(), "---", "", f"# {name}", "", f"{made}.", ""]
    lines += ["```python", "import hvlm.interop.hf_export", "from transformers import AutoModel", ""]
    lines += ["model = AutoModel.from_pretrained(FOLDER)", "print(model.answer(VIDEO, QUESTION))", "```", ""]
    lines += [f"`frames`: uint8 [T, 3, {side}, {side}], {config.num_frames} of them evenly over the clip.", ""]
    if figures is None:
        return "\n".join([*lines, "No figures of its own are known.", ""])
    return "\n".join([*lines, "## Figures of its own run", "", *table(results.read(figures)), ""])


def figures_of(path: Path) -> Path | None:
    """The results of the run that a checkpoint is from: what eval.py wrote beside the checkpoint, its stage or its run,
    or what the training ended with. None where it was not evaluated."""
    run = path if path.is_dir() else path.parent.parent.parent
    folders = [path] if path.is_dir() else [path.parent, path.parent.parent, run]
    found = [folder / "eval" / RESULTS for folder in folders[:-1]] + [run / RESULTS, run / "eval" / RESULTS]
    return next((file for file in found if file.exists()), None)
