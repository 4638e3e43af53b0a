"""What does merging cost, and what does it save?

    python -m experiments.merging.speed [--only tome saves trains]

tome: our bipartite matching and merging of half the tokens against a straightforward one in torch (the published
    steps one after the other), at [8, 256, 384] and [1, 4096, 384], in two settings of float32 matrix products.
saves: at 64 and 128 frames of 256 patches, a quarter of them kept: time of every merger and of the scores that it is
    given (optical flow; what the encoder takes longer for its saliency), beside the time that the language model saves
    (prefill without gradients, the demo's small model and DINOv2-small's width); adaptive's also without proportional
    attention.
trains: samples a second of training with 64 frames of 256 patches, dense connector, adaptive at a quarter against no
    merger; the encoder learns, too.

Processor seconds (what else runs on the machine counts little), medians, one thread; bfloat16 where the processor
computes in it, else float32. Adds to speed.json beside this file.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from experiments.merging._runs import MERGERS, settings
from experiments.timing import timed
from hvlm import assembly
from hvlm.config.compose import plan
from hvlm.data.optical_flow import motion_energy
from hvlm.evaluation import results
from hvlm.merging import Assignment, bipartite
from hvlm.model import VLM
from hvlm.precision import has_fast_bf16
from hvlm.text.chat import Chat
from hvlm.text.tokenizer import train_word_tokenizer
from hvlm.types import Batch, Patches, Wants

HERE = Path(__file__).parent
COMMAND = "python -m experiments.merging.speed"
QUESTION = "merging_speed"
SHAPES = ((8, 256, 384), (1, 4096, 384))
FRAMES, KEEP = (64, 128), 0.25
WORDS = "what color is the ring ? red"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts: dict[str, Callable[[], Iterator[results.Record]]] = {"tome": tome, "saves": saves, "trains": trains}
    parser.add_argument("--only", nargs="+", choices=parts, default=list(parts))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.only:
        records = []
        for record in parts[name]():
            columns = {k: v for k, v in record.items() if k not in results.FIXED}
            print(f"{record['variant']:28s} {record['metric']:20s} {record['value']:10.4g}  {columns}", flush=True)
            records.append(record)
        results.update(HERE / "speed.json", records)


def fastest() -> torch.autocast:
    """bfloat16 where the processor computes in it."""
    return torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bf16())


def record(variant: str, metric: str, value: float, **columns: object) -> results.Record:
    return results.make(QUESTION, variant, metric, value, stderr=None, n=1, chance=None, seeds=[0], seconds=0,
                        command=COMMAND, columns=columns)  # fmt: skip


def straightforward(x: Tensor, size: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Bipartite soft matching and the weighted merge as published, step by step: [unmerged, destinations] and sizes."""
    with torch.no_grad():
        metric = x / x.norm(dim=-1, keepdim=True)
        a, b = metric[..., ::2, :], metric[..., 1::2, :]
        best, index = (a @ b.transpose(-1, -2)).max(dim=-1)
        order = best.argsort(dim=-1, descending=True)[..., None]
        kept, merged = order[..., r:, :], order[..., :r, :]
        into = index[..., None].gather(-2, merged)

    def merge(y: Tensor) -> Tensor:
        source, target = y[..., ::2, :], y[..., 1::2, :]
        n, s, c = source.shape
        unmerged = source.gather(-2, kept.expand(n, s - r, c))
        target = target.scatter_reduce(-2, into.expand(n, r, c), source.gather(-2, merged.expand(n, r, c)), "sum")
        return torch.cat([unmerged, target], 1)

    weight = merge(size[..., None])
    return merge(x * size[..., None]) / weight, weight.squeeze(-1)


def ours(x: Tensor, size: Tensor, r: int) -> tuple[Tensor, Tensor]:
    to = Assignment.of_roots(bipartite(x, r), torch.ones_like(size, dtype=torch.bool), size)
    return to.merge(x), to.sum(size)


@torch.no_grad()
def tome() -> Iterator[results.Record]:
    for precision in ("highest", "medium"):
        torch.set_float32_matmul_precision(precision)
        for shape in SHAPES:
            g = torch.Generator().manual_seed(0)
            x, size = torch.randn(shape, generator=g), torch.randint(1, 4, shape[:2], generator=g).float()
            r = shape[1] // 2
            a, b = x[:, ::2], x[:, 1::2].transpose(1, 2).contiguous()
            theirs, own, floor = timed(
                lambda x=x, size=size, r=r: straightforward(x, size, r), lambda x=x, size=size, r=r: ours(x, size, r),
                lambda a=a, b=b: a @ b, budget=6.0, least=20,
            )  # fmt: skip
            columns = {"shape": str(list(shape)), "matmul_precision": precision}
            for variant, seconds in (("straightforward", theirs), ("tome", own), ("matrix_product_alone", floor)):
                yield record(variant, "latency_ms", 1e3 * seconds, **columns)
            yield record("tome", "ratio", own / theirs, **columns)
    torch.set_float32_matmul_precision("highest")


def small_model(merger: str, image_size: int = 256) -> VLM:
    """The demo's model with frames of 256 patches, random weights."""
    keep = 1.0 if merger == "none" else KEEP
    (cfg,) = plan(
        ["stage=sft", "connector=patches", f"vision.image_size={image_size}", *settings(merger, keep)]
    ).values()
    torch.manual_seed(0)
    return assembly.model(cfg, Chat(train_word_tokenizer([WORDS]), cfg["language"]["template"]))


def batch_of(frames: int, side: int, chat: Chat) -> Batch:
    """One clip with one question; every frame moves a little, so that nothing is trivially the same."""
    g = torch.Generator().manual_seed(0)
    still = torch.randint(0, 256, (3, side + frames, side + frames), generator=g, dtype=torch.uint8)
    clip = torch.stack([still[:, i : i + side, i : i + side] for i in range(frames)])
    row = chat.encode("what color is the ring ?", "red")
    ids = torch.tensor([row.ids])
    return Batch(
        clip[None], torch.arange(frames)[None].float(), torch.ones(1, frames, dtype=torch.bool), ids,
        torch.ones_like(ids, dtype=torch.bool), torch.tensor([row.loss_mask]), torch.zeros(1, dtype=torch.long),
        torch.tensor([row.visual_at]),
    )  # fmt: skip


@torch.no_grad()
def saves() -> Iterator[results.Record]:
    for frames in FRAMES:
        plain = small_model("none").eval()
        batch = batch_of(frames, 256, plain.language.chat)
        with fastest():
            frames_of = (batch.frames_BTCHW, batch.frame_time_BT, batch.frame_mask_BT)
            tokens = plain.vision.encode(*frames_of, plain.wants()).tokens
            score = torch.rand(tokens.mask_BS.shape)
            seen = Patches(tokens._replace(saliency_BS=score, motion_BS=score), *frames_of[1:])

            def read(vlm: VLM, merged: Patches, batch: Batch = batch) -> Callable[[], object]:
                vlm.see = lambda _: merged
                return lambda: vlm.next_token_logprobs(batch)

            (whole,) = timed(read(plain, seen), budget=1.0, least=2)
            yield record("none", "read_ms", 1e3 * whole, frames=frames, keep=1.0)
            saliency, flow = scoring(plain, frames_of)
            for merger in (*MERGERS, "adaptive_not_proportional"):
                vlm = small_model(merger).eval()
                merged = vlm.merger(seen)
                merge = lambda vlm=vlm, seen=seen: vlm.merger(seen)  # noqa: E731
                merging, reading = timed(merge, read(vlm, merged), budget=1.0, least=2)
                columns = {"frames": frames, "keep": KEEP}
                scores = (saliency if vlm.merger.wants_saliency else 0) + (flow if vlm.merger.wants_flow else 0)
                yield record(merger, "score_ms", 1e3 * scores, **columns)
                yield record(merger, "merge_ms", 1e3 * merging, **columns)
                yield record(merger, "read_ms", 1e3 * reading, **columns)
                yield record(merger, "saves_ms", 1e3 * (whole - reading), **columns)


def scoring(vlm: VLM, frames_of: tuple[Tensor, Tensor, Tensor]) -> tuple[float, float]:
    """Seconds of (what an encoder that also says its saliency takes longer, the optical flow of the clip)."""
    clip, grid = frames_of[0][0].numpy(), vlm.vision.grid(*frames_of[0].shape[-2:])
    without, given, flow = timed(
        lambda: vlm.vision.encode(*frames_of),
        lambda: vlm.vision.encode(*frames_of, Wants(saliency="attention")),
        lambda: motion_energy(clip, grid),
        budget=1.0, least=3,
    )  # fmt: skip
    return max(0.0, given - without), flow


def trains() -> Iterator[results.Record]:
    steps: dict[str, Callable[[], object]] = {}
    for merger in ("none", "adaptive"):
        vlm = small_model(merger).train()
        batch = batch_of(64, 256, vlm.language.chat)
        optimiser = torch.optim.AdamW(vlm.parameters(), lr=1e-4)

        def step(vlm: VLM = vlm, batch: Batch = batch, optimiser: torch.optim.Optimizer = optimiser) -> None:
            with fastest():
                loss = -vlm.token_logprobs(batch).sum()
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()

        steps[merger] = step
    taken = dict(zip(steps, timed(*steps.values(), budget=20.0, least=2), strict=True))
    for merger, seconds in taken.items():
        keep = KEEP if merger != "none" else 1.0
        yield record(merger, "samples_per_s", 1 / seconds, frames=64, patches=256, keep=keep)
    yield record("adaptive", "speedup", taken["none"] / taken["adaptive"], frames=64, patches=256, keep=KEEP)


if __name__ == "__main__":
    main()
