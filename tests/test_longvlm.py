"""LongVLM's counts, order and merging against a slow reference of the published procedure."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hvlm import assembly
from hvlm.connector.longvlm import LongVLM, by_segment
from hvlm.errors import UserError
from hvlm.types import Patches, Tokens

DIM, TEXT = 32, 8
EXACT = {"rtol": 0.0, "atol": 1e-5}


def connector(**settings) -> LongVLM:
    torch.manual_seed(0)
    return LongVLM(**settings, dim=DIM, text_dim=TEXT).eval()


def patches(frames: tuple[int, ...], grid: tuple[int, int] = (2, 2), layers: int = 5, seed: int = 0) -> Patches:
    b, t, n = len(frames), max(frames), grid[0] * grid[1]
    g = torch.Generator().manual_seed(seed)
    x, summary = torch.randn(b, t, n, DIM, generator=g), torch.randn(b, t, layers, DIM, generator=g)
    time = ((torch.arange(t) + 0.5) / 4).expand(b, t)
    mask = torch.arange(t) < torch.tensor(frames).unsqueeze(1)
    return Patches(Tokens.of_frames(x, time, mask, grid), time, mask, None, summary)


def published(x: Tensor, left: int) -> tuple[Tensor, Tensor]:
    """LongVLM's rounds on one segment [P, D]: features and sizes, in the order that the matching leaves."""
    size = torch.ones(len(x))
    while len(x) > left:
        r = min(len(x) // 2, len(x) - left)
        metric = F.normalize(x.reshape(len(x), 16, -1).mean(1), dim=-1)
        best, target = (metric[::2] @ metric[1::2].T).max(1)
        chosen = best.argsort(descending=True)
        stays = torch.cat([2 * chosen[r:].sort().values, 2 * torch.arange(len(x) // 2) + 1])
        total, sizes = x * size[:, None], size.clone()
        total.index_add_(0, 2 * target[chosen[:r]] + 1, total[2 * chosen[:r]])
        sizes.index_add_(0, 2 * target[chosen[:r]] + 1, size[2 * chosen[:r]])
        x, size = (total / sizes[:, None])[stays], sizes[stays]
    return x, size


@torch.no_grad()
def test_a_hundred_frames_of_256_patches_become_305_tokens() -> None:
    came = patches((100,), (16, 16))
    room = connector()
    out, per_row = room(came, None, None)
    assert out.x_BSD.shape == (1, 305, TEXT) and out.mask_BS.all() and not per_row
    assert room.wants_summaries == 5
    assert (out.size_BS[0, :5] == 1).all() and out.size_BS[0, 5:].unflatten(0, (10, 30)).sum(1).tolist() == [2560] * 10
    assert (out.frame_BS[0, 5:].unflatten(0, (10, 30)) // 10 == torch.arange(10)[:, None]).all()
    assert (out.time_BS[0, 5:].diff() >= 0).all()
    assert out.frame_BS[0, :5].tolist() == [49] * 5 and out.time_BS[0, :5].tolist() == [12.5] * 5


def test_local_tokens_are_the_published_ones_in_time_order() -> None:
    came = patches((8,), (4, 4))
    local = connector(segments=2, tokens=5).local(came)
    assert local.x_BSD.shape == (1, 10, DIM)
    for segment, (x, size) in enumerate(zip(*(f.view(2, 5, -1) for f in (local.x_BSD, local.size_BS)), strict=True)):
        expected, sizes = published(came.tokens.x_BSD[0].view(2, 64, DIM)[segment], 5)
        match = torch.cdist(x, expected).argmin(1)
        assert sorted(match.tolist()) == list(range(5))
        torch.testing.assert_close(x, expected[match], **EXACT)
        assert torch.equal(size[:, 0], sizes[match])


def test_summaries_are_means_over_the_clips_own_frames() -> None:
    came = patches((7, 3), layers=3)
    whole = connector(summaries=5).whole(came)
    torch.testing.assert_close(whole.x_BSD[0], came.summary_BTLD[0].mean(0))
    torch.testing.assert_close(whole.x_BSD[1], came.summary_BTLD[1, :3].mean(0))
    assert whole.frame_BS.tolist() == [[3] * 3, [1] * 3]
    assert torch.equal(whole.time_BS[:, 0], came.frame_time_BT[[0, 1], [3, 1]])


@pytest.mark.parametrize(("frames", "blocks"), [(3, [1, 1, 1]), (4, [1, 1, 1, 1]), (10, [3, 2, 3, 2]), (12, [3] * 4)])
def test_segments_are_as_equal_as_possible(frames: int, blocks: list[int]) -> None:
    came = patches((frames, 12))  # beside a longer clip
    rows = by_segment(came.tokens, came.frame_mask_BT, 4)
    assert rows.mask_BS[:4].sum(1).tolist() == [4 * n for n in blocks] + [0] * (4 - len(blocks))
    starts = [sum(blocks[:i]) for i in range(len(blocks))]
    for row, (start, n) in enumerate(zip(starts, blocks, strict=True)):
        assert torch.equal(rows.x_BSD[row, : 4 * n], came.tokens.x_BSD[0, 4 * start : 4 * (start + n)])


def test_a_small_segment_keeps_all_and_none_of_it_is_lost_in_a_batch() -> None:
    came = patches((9, 2, 5))
    room = connector(segments=3, tokens=6, summaries=2)
    out, _ = room(came._replace(summary_BTLD=came.summary_BTLD[:, :, -2:]), None, None)
    assert out.mask_BS.sum(1).tolist() == [2 + 18, 2 + 8, 2 + 4 + 6 + 6]
    assert out.size_BS.mul(out.mask_BS)[:, 2:].sum(1).tolist() == [36, 8, 20]
    for i, frames in enumerate((9, 2, 5)):
        alone = Patches(
            came.tokens.take(torch.tensor([i])).each(slice(4 * frames)), came.frame_time_BT[i : i + 1, :frames],
            came.frame_mask_BT[i : i + 1, :frames], None, came.summary_BTLD[i : i + 1, :frames, -2:],
        )  # fmt: skip
        for a, b in zip(room(alone, None, None)[0][:6], out[:6], strict=True):
            torch.testing.assert_close(b[i][out.mask_BS[i]], a[0], **EXACT)
    assert torch.equal(out.mask_BS, out.mask_BS.sort(1, descending=True).values), "padding stands behind"


def test_without_summaries_local_tokens_alone() -> None:
    room = connector(summaries=0)
    assert room.wants_summaries == 0 and set(room.project.standardise) == {"patches"}
    out, _ = room(patches((4,))._replace(summary_BTLD=None), None, None)
    assert out.x_BSD.shape == (1, 16, TEXT)


def test_sizes_weigh_and_gradients_reach_every_patch() -> None:
    """A token of size 3 counts like three of it: merged ones stand where the plain ones would."""
    came = patches((4,))
    x = came.tokens.x_BSD.clone().requires_grad_()
    size = torch.ones(1, 16)
    size[0, 3] = 3
    tokens = came.tokens._replace(x_BSD=x, size_BS=size)
    local = connector(segments=1, tokens=1).local(came._replace(tokens=tokens))
    torch.testing.assert_close(local.x_BSD[0, 0], (x[0] * size[0, :, None]).sum(0) / 18)
    assert local.size_BS.item() == 18
    local.x_BSD.sum().backward()
    assert (x.grad != 0).all()


def test_each_kind_has_its_own_statistics() -> None:
    room = connector().train()
    came = patches((12, 4))
    room(came._replace(summary_BTLD=came.summary_BTLD + 100), None, None)
    for statistics in room.project.standardise.values():
        statistics.end_step()
    assert (room.project.standardise["summaries"].mean > 50).all()
    assert (room.project.standardise["patches"].mean < 50).all()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"segments": 0}, "connector.segments=0"), ({"tokens": 0}, "connector.tokens=0"),
        ({"summaries": -1}, "connector.summaries=-1"), ({"groups": 7}, "connector.groups=7.*width 32"),
        ({"projector": "x"}, "connector.projector=x"),
    ],
)  # fmt: skip
def test_refusals_name_the_setting(settings: dict, said: str) -> None:
    node = {"_target_": "hvlm.connector.longvlm.LongVLM", **settings}
    with pytest.raises(UserError, match=said):
        assembly.room(node, dim=32, text_dim=48)
