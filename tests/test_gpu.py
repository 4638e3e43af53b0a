"""What runs on GPUs against what is tested on CPUs: FlexAttention, fused kernels, NCCL, bfloat16, torch.compile.

The bodies that need no kernel run on the CPU as well, so that the tests themselves are exercised everywhere. Tolerances
are for float32 without TF32 unless a test says otherwise.
"""

from __future__ import annotations

import copy
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from _layers import run
from _tiny import ROOT, Case, Variant, batch_of, model, side, two_clips
from torch import Tensor, nn

from hvlm.attention import (
    FullAttention,
    LocalGlobalAttention,
    Mamba2Layer,
    MambaLayer,
    PerformerAttention,
    StridedAttention,
    _gpu,
)
from hvlm.attention._flex import flex_attend, strided_mask, window_mask
from hvlm.attention._scan import selective_scan_reference
from hvlm.attention._softmax import attend_window
from hvlm.attention.mamba import BidirectionalMamba
from hvlm.attention.mamba2 import ssd_reference

GPUS = torch.cuda.device_count()
ON_A_GPU = (pytest.mark.gpu, pytest.mark.skipif(not GPUS, reason="needs CUDA: torch sees no GPU here"))
GPU = pytest.param("cuda", marks=ON_A_GPU)

D, H = 64, 4  # FlexAttention's kernel wants heads of at least 16 channels
LAYERS = {
    "full": lambda causal: FullAttention(D, H, causal),
    "strided": lambda causal: StridedAttention(4, D, H, phase=1, causal=causal),
    "local_global": lambda causal: LocalGlobalAttention(5, 3, D, H, causal),
    "favor": lambda causal: PerformerAttention(D, H, 24, "softmax", causal=causal),
    "relu": lambda causal: PerformerAttention(D, H, 24, "relu", causal=causal),
    "elu": lambda causal: PerformerAttention(D, H, kernel="elu", causal=causal),
    "mamba": lambda causal: MambaLayer(D, 16) if causal else BidirectionalMamba(D, 16),
    "mamba2": lambda causal: Mamba2Layer(D, 16, 16, chunk=16) if causal else None,
}
CASES = [(name, causal) for name, make in LAYERS.items() for causal in (False, True) if make(causal) is not None]


def missing(kernel: object, package: str) -> bool:
    if kernel is None:
        pytest.skip(f"{package} is not installed")
    return False


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def with_gradients(function, inputs: list[Tensor], device: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """[output, gradient of each input], on the CPU in float32; the gradient that comes in is the same everywhere."""
    given = [x.detach().to(device, dtype if x.is_floating_point() else x.dtype).requires_grad_() for x in inputs]
    out = function(*given)
    weight = random(*out.shape, seed=9).to(device, out.dtype)
    grads = torch.autograd.grad((out * weight).sum(), given)
    return [t.detach().float().cpu() for t in (out, *grads)]


def apart(found: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference over that of what is expected."""
    return float((found.float().cpu() - expected).square().mean().sqrt() / expected.square().mean().sqrt())


# ------------------------------------------------------------------------------------------------ attention's kernels


@pytest.mark.gpu
@pytest.mark.skipif(not GPUS, reason="needs CUDA: FlexAttention's kernels; on a CPU it runs unfused and forward only")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("pattern", ["window", "strided"])
def test_flex_attention(pattern: str, causal: bool, masked: bool) -> None:
    """Output, logarithm of the weight, and gradients through both: 1e-3 of their size in float32."""
    length = 300  # several blocks of 128, and a part of one
    mask = torch.arange(length) < torch.tensor([[length], [170]]) if masked else None
    valid = torch.ones(2, 1, length) if mask is None else mask[:, None].float()
    q, k, v = (random(2, H, length, 16, seed=i) for i in range(3))
    q = q / 4

    def flex(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        where = None if mask is None else mask.to(q.device)
        made = (
            window_mask(length, 20, causal, q.device)
            if pattern == "window"
            else strided_mask(length, 7, 2, causal, q.device)
        )
        out, lse = flex_attend(q, k, v, made, where)
        return torch.cat([out, lse.unsqueeze(-1)], -1) * valid.unsqueeze(-1).to(q.device)

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if pattern == "window":
            out, lse = attend_window(q, k, v, 20, causal, mask)
        else:
            out, lse = strided_by_hand(q, k, v, 7, 2, causal, mask)
        return torch.cat([out, lse.unsqueeze(-1)], -1) * valid.unsqueeze(-1)

    for found, expected in zip(
        with_gradients(flex, [q, k, v], "cuda"), with_gradients(ours, [q, k, v], "cpu"), strict=True
    ):
        assert apart(found, expected) < 1e-3


def strided_by_hand(
    q: Tensor, k: Tensor, v: Tensor, stride: int, phase: int, causal: bool, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    place = torch.arange(q.shape[2])
    seen = ((place - phase) % stride == 0).expand(len(place), -1)
    seen = seen & (place <= place[:, None]) if causal else seen
    seen = seen if mask is None else seen & mask[:, None, None]
    scores = (q @ k.mT).masked_fill(~(seen | torch.eye(len(place), dtype=torch.bool)), -math.inf)
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


def test_strided_by_hand_is_our_own_strided_attention() -> None:
    """The reference of the test above, where no GPU runs it."""
    q, k, v = (random(2, H, 40, 16, seed=i) for i in range(3))
    mask = torch.arange(40) < torch.tensor([[40], [23]])
    for causal in (False, True):
        layer = StridedAttention(7, D, H, phase=2, causal=causal)
        ours = layer.attend(q * 4, k, v, mask)
        valid = mask[:, None, :, None]
        torch.testing.assert_close(strided_by_hand(q, k, v, 7, 2, causal, mask)[0] * valid, ours * valid)


@pytest.mark.gpu
@pytest.mark.skipif(not GPUS, reason="needs CUDA: fused kernels of mamba_ssm, causal_conv1d and fla")
@pytest.mark.parametrize("kernel", ["selective_scan", "ssd", "causal_conv", "causal_kernel"])
def test_fused_kernels(kernel: str) -> None:
    """Through our ways to them, with gradients: 2e-3 of their size (they sum in another order, some of it in TF32)."""
    b, s = 2, 150
    delta = lambda *shape: F.softplus(random(*shape, seed=3) - 1)  # noqa: E731
    if kernel == "selective_scan":
        missing(_gpu.selective_scan_fn, "mamba_ssm")
        inputs = [random(b, s, 32), delta(b, s, 32), -random(32, 16, seed=1).exp(), random(b, s, 16, seed=4),
                  random(b, s, 16, seed=5), random(32, seed=6)]  # fmt: skip
        fused, plain = (lambda *x: _gpu.selective_scan(*x)[0]), (lambda *x: selective_scan_reference(*x)[0])
    elif kernel == "ssd":
        missing(_gpu.mamba_chunk_scan_combined, "mamba_ssm")
        inputs = [random(b, s, 4, 16), delta(b, s, 4), -random(4, seed=1).exp(), random(b, s, 16, seed=4),
                  random(b, s, 16, seed=5)]  # fmt: skip
        fused, plain = (lambda *x: _gpu.ssd(*x, 32)[0]), (lambda *x: ssd_reference(*x)[0])
    elif kernel == "causal_conv":
        missing(_gpu.causal_conv1d_fn, "causal_conv1d")
        inputs = [random(b, s, 32), random(32, 4, seed=1), random(32, seed=2)]
        fused = _gpu.causal_conv
        plain = lambda x, w, c: F.conv1d(F.pad(x.mT, (3, 0)), w.unsqueeze(1), c, groups=32).mT  # noqa: E731
    else:
        missing(_gpu.chunk_linear_attn, "fla")
        inputs = [
            random(b, H, s, 32).relu() + 0.1,
            random(b, H, s, 32, seed=1).relu() + 0.1,
            random(b, H, s, 16, seed=2),
        ]
        fused = _gpu.causal_kernel

        def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            weights = (q @ k.mT).tril()
            return weights / weights.sum(-1, keepdim=True) @ v

    for found, expected in zip(
        with_gradients(fused, inputs, "cuda"), with_gradients(plain, inputs, "cpu"), strict=True
    ):
        assert apart(found, expected) < 2e-3


# ------------------------------------------------------------------------------------------------ whole layers


def layer_and_gradients(
    layer: nn.Module, device: str, half: bool = False, masked: bool = False, compiled: str | None = None
) -> list[Tensor]:
    """[output at valid places, gradient of the input, gradient of all weights], on the CPU in float32."""
    layer = copy.deepcopy(layer).to(device)
    called = layer if compiled is None else torch.compile(layer, backend=compiled)
    x = random(2, 150, D, seed=1).to(device).requires_grad_()
    mask = (torch.arange(150) < torch.tensor([[150], [90]])).to(device)
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=half):
        out = run(called, x, mask if masked else None)
    out = out.float() * mask.unsqueeze(-1) if masked else out.float()
    (out * random(*out.shape, seed=9).to(device)).sum().backward()
    weights = torch.cat([p.grad.float().flatten() for p in layer.parameters() if p.grad is not None])
    return [t.detach().float().cpu() for t in (out, x.grad, weights)]


def made(name: str, causal: bool) -> nn.Module:
    torch.manual_seed(0)
    layer = LAYERS[name](causal)
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return layer


@pytest.mark.parametrize("device", [GPU])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("name", "causal"), CASES)
def test_layers_in_float32(name: str, causal: bool, masked: bool, device: str) -> None:
    """By whatever kernel the device has: 3e-3 of their size."""
    layer = made(name, causal)
    expected = layer_and_gradients(layer, "cpu", masked=masked)
    for found, value in zip(layer_and_gradients(layer, device, masked=masked), expected, strict=True):
        assert apart(found, value) < 3e-3


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize(("name", "causal"), CASES)
def test_layers_in_bfloat16(name: str, causal: bool, device: str) -> None:
    """Forward and backward under autocast: finite, and within 5 % of float32 on a CPU."""
    layer = made(name, causal)
    expected = layer_and_gradients(layer, "cpu", masked=True)
    for found, value in zip(layer_and_gradients(layer, device, half=True, masked=True), expected, strict=True):
        assert found.isfinite().all() and apart(found, value) < 0.05


@pytest.mark.parametrize("device", [GPU])
@pytest.mark.parametrize(("name", "causal"), CASES)
def test_layers_compiled(name: str, causal: bool, device: str) -> None:
    """Through inductor: 3e-3 of their size."""
    layer = made(name, causal)
    expected = layer_and_gradients(layer, "cpu")
    for found, value in zip(layer_and_gradients(layer, device, compiled="inductor"), expected, strict=True):
        assert apart(found, value) < 3e-3


@pytest.mark.slow  # tracing loops over blocks takes half a minute
@pytest.mark.parametrize(("name", "causal"), [("full", True), ("local_global", False)])
def test_layers_traced(name: str, causal: bool) -> None:
    """What the test above does, on a CPU and without making code from what is traced."""
    layer = made(name, causal)
    expected = layer_and_gradients(layer, "cpu")
    for found, value in zip(layer_and_gradients(layer, "cpu", compiled="eager"), expected, strict=True):
        assert apart(found, value) < 3e-3


# ------------------------------------------------------------------------------------------------ a whole model


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("connector", ["foveated", "patches"])
def test_a_model_in_bfloat16(connector: str, device: str) -> None:
    """Loss within 2 %, gradients finite and within 10 degrees of float32 on a CPU."""
    vlm = model(Case("question_first", (Variant("connector", connector),)))
    batch = batch_of(*two_clips(vlm), size=side(vlm))

    def gradients(where: str, half: bool) -> tuple[float, Tensor]:
        there = copy.deepcopy(vlm).to(where)
        with torch.autocast(torch.device(where).type, torch.bfloat16, enabled=half):
            targets = there.targets(batch.to(torch.device(where)))
            loss = F.cross_entropy(targets.logits_MV.float(), targets.ids_M)
        loss.backward()
        grads = [p.grad.float().flatten().cpu() for p in there.parameters() if p.grad is not None]
        return loss.item(), torch.cat(grads)

    loss, expected = gradients("cpu", half=False)
    found, grads = gradients(device, half=True)
    assert found == pytest.approx(loss, rel=0.02)
    assert grads.isfinite().all() and float(F.cosine_similarity(grads, expected, dim=0)) > math.cos(math.radians(10))


@pytest.mark.parametrize("device", ["cpu", GPU])
@torch.no_grad()
def test_a_model_reads_and_goes_on_from_its_cache(device: str) -> None:
    """Distributions of the first token, and states piece by piece through the cache: 1e-3 in float32."""
    vlm = model(Case("video_first", (Variant("connector", "mean"),)))
    batch = batch_of(*two_clips(vlm), size=side(vlm))
    there = copy.deepcopy(vlm).to(device)
    here, where = vlm.next_token_logprobs(batch), there.next_token_logprobs(batch.to(torch.device(device)))
    torch.testing.assert_close(where.cpu(), here, rtol=1e-3, atol=1e-3)
    x = random(3, 12, vlm.language.dim)
    mask = torch.arange(12) != torch.tensor([[3], [0], [20]])
    whole, cache = vlm.language.hidden(x, mask), there.kvcache.new()
    x, seen = x.to(device), mask.to(device)
    pieces = [
        there.language.hidden(x[:, cut], seen[:, cut], cache=cache)
        for cut in (slice(0, 7), slice(7, 11), slice(11, 12))
    ]
    torch.testing.assert_close(torch.cat(pieces, 1).cpu()[mask], whole[mask], rtol=1e-3, atol=1e-3)


# ------------------------------------------------------------------------------------------------ several processes


def sum_over_ranks(rank: int, world: int, backend: str, store: str) -> None:
    """In a process of its own: every rank's number, summed by all of them."""
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if backend == "nccl":
        torch.cuda.set_device(device)
    torch.distributed.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=world)
    try:
        mine = torch.arange(4.0, device=device) + rank
        torch.distributed.all_reduce(mine)
        assert mine.tolist() == [world * i + world * (world - 1) / 2 for i in range(4)]
        gathered = [torch.empty(1, device=device) for _ in range(world)]
        torch.distributed.all_gather(gathered, torch.tensor([float(rank)], device=device))
        assert [int(x) for x in gathered] == list(range(world))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("backend", ["gloo", pytest.param("nccl", marks=ON_A_GPU)])
def test_processes_sum_over_all_gpus(backend: str, tmp_path: Path) -> None:
    if backend == "gloo":  # one process, this one
        sum_over_ranks(0, 1, backend, str(tmp_path / "store"))
        return
    torch.multiprocessing.spawn(sum_over_ranks, (GPUS, backend, str(tmp_path / "store")), nprocs=GPUS)


@pytest.mark.gpu
@pytest.mark.skipif(not GPUS, reason="needs CUDA: training over NCCL; tests/test_ddp.py does it over gloo")
def test_two_steps_over_all_gpus(needles: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses of the demo's first stage on all GPUs are those of one CPU: 1 % in float32."""
    import json

    monkeypatch.chdir(tmp_path)
    command = [
        "experiment=demo", "stage.steps=2", f"stage.batch_size={4 * GPUS}", "evaluate=false", "dataset.val_clips=8",
        *needles,
    ]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    losses = {}
    for name, trainer in (
        ("gpus", ["trainer=ddp", "trainer.accelerator=gpu", f"trainer.devices={GPUS}"]),
        ("cpu", ["trainer=cpu"]),
    ):
        child = subprocess.run(
            [sys.executable, str(ROOT / "train.py"), *command, *trainer, "trainer.precision=32-true", f"run={name}"],
            env=environment, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert child.returncode == 0, (child.stdout + child.stderr)[-4000:]
        lines = (Path("runs") / name / "vision" / "metrics.jsonl").read_text().splitlines()
        losses[name] = [found["train/loss"] for found in map(json.loads, lines) if "train/loss" in found]
    assert len(losses["cpu"]) == 2
    assert losses["gpus"] == pytest.approx(losses["cpu"], rel=1e-2)
