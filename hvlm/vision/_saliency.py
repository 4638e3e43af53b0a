"""How much a patch stands out: by the encoder's own attention, or, without a model, by the frame's spectrum."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hvlm.functional import attention_weights

KINDS = ("attention", "sharpness", "spectral")
_SIDE = 64  # pixels: the scale at which Hou & Zhang look for what stands out
_BLUR = 2.5 / 64 * _SIDE


@torch.no_grad()
def saliency_of(kind: str, pixels_FCHW: Tensor | None, q_FHNd: Tensor, k_FHNd: Tensor, grid: tuple[int, int]) -> Tensor:
    """Float32 [F, rows * columns], not negative, mean 1 in every frame (all 1 where nothing stands out).

    kind: "attention", weight of CLS on each patch in this layer, mean over heads; without CLS the mean weight that a
        patch receives from all. "sharpness", minus the entropy of a patch's own attention (vid-TLDR, Choi et al. 2024),
        above the frame's lowest. "spectral", see ``spectral_residual``.
    pixels: normalised, for "spectral" alone. q, k: queries and keys of the layer, CLS first where there is one.
    ValueError for another kind.
    """
    if kind == "spectral":
        return _mean_one(spectral_residual(pixels_FCHW, grid).flatten(1))
    if kind not in KINDS:
        raise ValueError(f"saliency={kind!r}: expected one of {', '.join(KINDS)}")
    patches = grid[0] * grid[1]
    cls = q_FHNd.shape[2] - patches
    with torch.autocast(q_FHNd.device.type, enabled=False):
        if kind == "attention":
            q = q_FHNd[:, :, :1] if cls else q_FHNd
            return _mean_one(attention_weights(q.float(), k_FHNd.float()).mean((1, 2))[:, cls:])
        entropy = torch.special.entr(attention_weights(q_FHNd[:, :, cls:].float(), k_FHNd.float())).sum(-1).mean(1)
        return _mean_one(entropy.amax(1, keepdim=True) - entropy)


@torch.no_grad()
def spectral_residual(pixels_FCHW: Tensor, grid: tuple[int, int]) -> Tensor:
    """Hou & Zhang 2007: what the log amplitude spectrum holds beyond its local average, back among the pixels, squared,
    smoothed and averaged over each patch. float32 [F, rows, columns]."""
    grey = F.interpolate(pixels_FCHW.float().mean(1, keepdim=True), (_SIDE, _SIDE), mode="bilinear", antialias=True)
    spectrum = torch.fft.fft2(grey)
    log_amplitude = spectrum.abs().clamp(min=1e-8).log()
    around = F.pad(log_amplitude, (1, 1, 1, 1), mode="circular")
    residual = log_amplitude - F.avg_pool2d(around, 3, stride=1)
    stands_out = torch.fft.ifft2(torch.polar(residual.exp(), spectrum.angle())).abs() ** 2
    reach = torch.arange(-7, 8, dtype=torch.float32, device=grey.device)
    blur = torch.exp(-0.5 * (reach / _BLUR) ** 2)
    blur = blur / blur.sum()
    for kernel in (blur.view(1, 1, 1, -1), blur.view(1, 1, -1, 1)):
        pad = (7, 7, 0, 0) if kernel.shape[-1] > 1 else (0, 0, 7, 7)
        stands_out = F.conv2d(F.pad(stands_out, pad, mode="reflect"), kernel)
    return F.adaptive_avg_pool2d(stands_out, grid)[:, 0]


def _mean_one(score_FN: Tensor) -> Tensor:
    mean = score_FN.mean(1, keepdim=True)
    return torch.where(mean > 1e-12, score_FN / mean.clamp(min=1e-12), 1.0)
