"""Pictures as an encoder wants them, without torchvision."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IMAGE_FRAMES = 8  # fVLM was trained on still images shown so many times


def transform(image: Any, size: int = 224) -> Tensor:
    """A PIL image or an array [H, W, 3] uint8 -> float32 [3, size, size], normalised with ImageNet statistics.

    The same as torchvision's Resize((size, size)), ToTensor, Normalize.
    """
    if not isinstance(image, Image.Image):
        image = Image.fromarray(np.asarray(image))
    image = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels - mean) / std


def still(frame_CHW: Tensor, frames: int = IMAGE_FRAMES) -> Tensor:
    """One frame [C, H, W] -> a clip [frames, C, H, W] that shows it all the time."""
    return frame_CHW.unsqueeze(0).repeat(frames, 1, 1, 1)
