"""Merging: the functions against readable references, and every merger of the folder against what mergers promise."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from _tiny import ASKED, Case, Variant, batch_of, chat, clip, model, per_row, side, two_clips, variants
from torch import Tensor

from hvlm import assembly, merging
from hvlm.errors import UserError
from hvlm.evaluation.generate import generate
from hvlm.functional import attend
from hvlm.gaze import CachedKV, merge_kv
from hvlm.io.checkpoint import load_into
from hvlm.merger import MotionAwareTokenMerge, SaliencyMerge, adaptive
from hvlm.merger._scores import View, feature_motion
from hvlm.merging import Assignment, best_of_clip, bipartite, bipartite_down_to
from hvlm.rebuild import with_own
from hvlm.types import Patches, Tokens, Wants

MERGERS = [v for v in variants("merger") if v.name != "none"]
KEEPS = (1.0, 0.5, 0.25, 0.125, 0.0625)
CONTENT = ("motion", "saliency", "adaptive")  # whose budgets follow what is seen
GRID, DIM = (4, 4), 16


def each(*names: str) -> list:
    return [pytest.param(v, id=v.id) for v in MERGERS if not names or v.name in names]


def room(variant: Variant, **settings):
    needs_frames = settings.pop("needs_frames", False)
    return assembly.room(variant.settings | settings, needs_frames=needs_frames).eval()


def patches(frames: tuple[int, ...] = (6, 3), seed: int = 0, x: Tensor | None = None) -> Patches:
    """Clips of so many frames, padded to the longest, with random features, saliency and motion."""
    b, t, n = len(frames), max(frames), GRID[0] * GRID[1]
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(b, t, n, DIM, generator=g) if x is None else x
    mask = torch.arange(t)[None] < torch.tensor(frames)[:, None]
    time = ((torch.arange(t) + 0.5) / 4).expand(b, t)
    tokens = Tokens.of_frames(x, time, mask, GRID)
    scores = {"saliency_BS": torch.rand(b, t * n, generator=g), "motion_BS": torch.rand(b, t * n, generator=g)}
    return Patches(tokens._replace(**scores), time, mask)


# ------------------------------------------------------------------------------------------------------ pure functions


def published(metric: Tensor, x: Tensor, size: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """ToMe as its paper describes it, one row at a time: merged features and sizes, [unmerged ‖ destinations]."""
    rows = []
    for m, features, sizes in zip(F.normalize(metric, dim=-1), x, size, strict=True):
        a, b = list(range(0, len(m), 2)), list(range(1, len(m), 2))
        score = {i: max((float(m[i] @ m[j]), -j) for j in b) for i in a}
        order = sorted(a, key=lambda i: -score[i][0])
        groups = {j: [j] for j in b}
        for i in order[:r]:
            groups[-score[i][1]].append(i)
        everyone = [[i] for i in sorted(order[r:])] + [groups[j] for j in b]
        weight = [sizes[g] for g in everyone]
        means = [(features[g] * w[:, None]).sum(0) / w.sum() for g, w in zip(everyone, weight, strict=True)]
        rows.append((torch.stack(means), torch.stack([w.sum() for w in weight])))
    return torch.stack([x for x, _ in rows]), torch.stack([s for _, s in rows])


@pytest.mark.parametrize("s", [16, 33])
@pytest.mark.parametrize("r", [0, 1, 5, 8])
def test_bipartite_is_the_published_algorithm(s: int, r: int) -> None:
    g = torch.Generator().manual_seed(0)
    x, size = torch.randn(3, s, 8, generator=g), torch.randint(1, 5, (3, s), generator=g).float()
    to = Assignment.of_roots(bipartite(x, r), torch.ones(3, s, dtype=torch.bool), size)
    expected, sizes = published(x, x, size, r)
    ours, own = to.merge(x), to.sum(size)
    kept = bipartite(x, r) == torch.arange(s)
    for row in range(3):
        # Theirs stand as [unmerged, destinations]: even places before odd ones; ours in the order of the places.
        places = kept[row].nonzero().flatten()
        rank = torch.cat([places[places % 2 == 0], places[places % 2 == 1]]).argsort()
        torch.testing.assert_close(ours[row], expected[row][rank])
        torch.testing.assert_close(own[row], sizes[row][rank])


def test_blocks_of_scores_change_nothing(monkeypatch) -> None:
    x = torch.randn(2, 41, 8, generator=torch.Generator().manual_seed(0))
    whole = bipartite(x, 13)
    monkeypatch.setattr(merging, "_BLOCK", 100)
    assert torch.equal(bipartite(x, 13), whole)


def test_rows_have_their_own_number_of_merges_and_padding_is_left_alone() -> None:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(3, 24, 8, generator=g)
    count = torch.tensor([24, 17, 9])
    mask = torch.arange(24) < count[:, None]
    target = torch.tensor([3, 17, 4])
    roots = bipartite_down_to(x, torch.ones(3, 24), mask, target)
    to = Assignment.of_roots(roots, mask, torch.ones(3, 24))
    assert to.mask_BM.sum(1).tolist() == target.tolist()
    assert torch.equal(to.sum(mask.float()).sum(1), count.float())
    for row, n in enumerate(count.tolist()):
        alone = bipartite_down_to(
            x[row : row + 1, :n], torch.ones(1, n), mask[row : row + 1, :n], target[row : row + 1]
        )
        assert torch.equal(alone[0], roots[row, :n])


def test_roots_of_several_rounds_say_what_the_rounds_did() -> None:
    """128 to 5 tokens: every token's root is itself a root, and means over roots are the means that the rounds made."""
    x = torch.randn(1, 128, 8, generator=torch.Generator().manual_seed(2))
    roots = bipartite_down_to(x, torch.ones(1, 128), torch.ones(1, 128, dtype=torch.bool), torch.tensor([5]))
    assert torch.equal(roots.gather(1, roots), roots) and len(roots.unique()) == 5
    y, size = x, torch.ones(1, 128)
    for r in (64, 32, 16, 8, 3):
        step = Assignment.of_roots(bipartite(y, r), torch.ones(y.shape[:2], dtype=torch.bool), size)
        y, size = step.merge(y), step.sum(size)
    to = Assignment.of_roots(roots, torch.ones(1, 128, dtype=torch.bool), torch.ones(1, 128))
    torch.testing.assert_close(to.merge(x), y)
    assert torch.equal(to.sum(torch.ones(1, 128)), size)


def test_means_of_many_in_low_precision() -> None:
    """bfloat16 cannot count beyond 256."""
    x = torch.randn(1, 400, 2, generator=torch.Generator().manual_seed(0)).add(1).bfloat16()
    to = Assignment.of_roots(
        torch.zeros(1, 400, dtype=torch.long), torch.ones(1, 400, dtype=torch.bool), torch.ones(1, 400)
    )
    merged = to.merge(x)
    assert merged.dtype == torch.bfloat16
    torch.testing.assert_close(merged.float(), x.float().mean(1, keepdim=True), rtol=0.01, atol=0)


def test_unmerge_of_what_was_alike_is_exact_and_gradients_flow() -> None:
    x = torch.randn(2, 4, 8, dtype=torch.float64).repeat_interleave(3, 1).requires_grad_()
    roots = (torch.arange(12) // 3 * 3).expand(2, 12)
    to = Assignment.of_roots(roots, torch.ones(2, 12, dtype=torch.bool), torch.rand(2, 12, dtype=torch.float64) + 0.1)
    torch.testing.assert_close(to.unmerge(to.merge(x)), x)
    assert torch.autograd.gradcheck(lambda y, w: to._replace(weight_BS=w).merge(y), (x, to.weight_BS.requires_grad_()))


def test_proportional_attention_over_merged_duplicates_is_attention_over_all() -> None:
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, n, 8, generator=g) for n in (5, 4, 4))
    copies = torch.tensor([1, 3, 2, 5])
    whole = attend(q, k.repeat_interleave(copies, 2), v.repeat_interleave(copies, 2))
    torch.testing.assert_close(attend(q, k, v, copies.float().log()[None]), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_without_keys_is_finite_beside_a_bias(dtype: torch.dtype) -> None:
    q, k, v = (torch.randn(2, 2, n, 8, dtype=dtype) for n in (5, 4, 4))
    mask = torch.tensor([[True, True, False, False], [False] * 4])
    out = attend(q, k, v, mask, key_bias=torch.rand(2, 4).to(dtype))
    assert torch.isfinite(out).all()


def test_the_budget_follows_the_scores_after_each_frame_has_its_own() -> None:
    score = torch.tensor([[[9.0, 8, 7], [1, 2, 3], [0, 0, 0]]])
    mask = torch.tensor([[True, True, False]])
    kept = best_of_clip(score, mask, torch.tensor([4]), least=1)
    assert kept.int().tolist() == [[[1, 1, 1], [0, 0, 1], [0, 0, 0]]]
    assert best_of_clip(score, mask, torch.tensor([2]), least=1).int().tolist() == [[[1, 0, 0], [0, 0, 1], [0, 0, 0]]]
    assert best_of_clip(score, mask, torch.tensor([2]), least=0).int().tolist() == [[[1, 1, 0], [0, 0, 0], [0, 0, 0]]]


# -------------------------------------------------------------------------------------------------------- every merger


@pytest.mark.parametrize("scope", ["auto", "frame"])
@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("variant", each())
def test_the_budget_is_exact(variant: Variant, keep: float, scope: str) -> None:
    came = patches()
    merger = room(variant, keep=keep, scope=scope)
    out = merger(came).tokens
    expected = [max(frames, round(keep * frames * 16)) for frames in (6, 3)]
    assert out.mask_BS.sum(1).tolist() == expected
    assert out.mask_BS[0].all() and not out.mask_BS[1, expected[1] :].any()
    if not merger.drops:
        assert out.size_BS.sum(1).tolist() == [6 * 16, 3 * 16]
    assert merger.chosen.own_BS().unflatten(1, (6, 16)).any(-1)[came.frame_mask_BT].all()
    if scope == "frame":
        seen = [out.frame_BS[row][out.mask_BS[row]].unique().tolist() for row in range(2)]
        assert seen == [list(range(6)), list(range(3))]


@pytest.mark.parametrize("variant", each())
def test_clips_of_one_frame_and_of_none(variant: Variant) -> None:
    out = room(variant)(patches((4, 1, 0))).tokens
    assert out.mask_BS.sum(1).tolist() == [16, 4, 0] and torch.isfinite(out.x_BSD).all()
    assert room(variant)(patches((1,))).tokens.mask_BS.sum() == 4


@pytest.mark.parametrize("variant", each())
def test_tokens_in_place_of_a_share(variant: Variant) -> None:
    assert room(variant, tokens=20)(patches()).tokens.mask_BS.sum(1).tolist() == [20, 20]
    assert room(variant, tokens=1)(patches()).tokens.mask_BS.sum(1).tolist() == [6, 3]


@pytest.mark.parametrize("variant", each())
def test_keeping_all_is_the_identity(variant: Variant) -> None:
    came = patches((5,))
    out = room(variant, keep=1.0)(came).tokens
    added = {"position_BS", "log_size_BS"}  # for the language model, where it is to know of them
    for name, before, after in zip(Tokens._fields, came.tokens, out, strict=True):
        if name not in added:
            torch.testing.assert_close(after, before, rtol=0, atol=1e-6, msg=name)
    assert out.log_size_BS is None or not out.log_size_BS.any()


@pytest.mark.parametrize("scope", ["auto", "frame"])
@pytest.mark.parametrize("variant", each())
def test_times_come_in_order_and_places_lie_inside(variant: Variant, scope: str) -> None:
    came = patches()
    out = room(variant, scope=scope)(came).tokens
    for row in range(2):
        time = out.time_BS[row][out.mask_BS[row]]
        assert (time.diff() >= 0).all()
        assert time.min() >= came.frame_time_BT[row, 0] and time.max() <= came.frame_time_BT[row].max()
        assert ((out.yx_BS2[row] >= 0) & (out.yx_BS2[row] <= 1)).all()


@pytest.mark.parametrize("variant", each())
def test_constant_frames_stay_constant_and_finite(variant: Variant) -> None:
    same = torch.randn(DIM, generator=torch.Generator().manual_seed(0)).expand(2, 6, 16, DIM)
    came = patches((6, 6), x=same.clone())
    out = room(variant)(came._replace(tokens=came.tokens._replace(saliency_BS=torch.ones(2, 96)))).tokens
    torch.testing.assert_close(out.x_BSD, came.tokens.x_BSD[:, :1].expand_as(out.x_BSD))
    black = patches((6, 6), x=torch.zeros(2, 6, 16, DIM))
    assert torch.isfinite(room(variant)(black).tokens.x_BSD).all()


@pytest.mark.parametrize("variant", each())
def test_gradients_reach_what_was_kept(variant: Variant) -> None:
    came = patches((4,))
    x = came.tokens.x_BSD.clone().requires_grad_()
    merger = room(variant)
    merger(came._replace(tokens=came.tokens._replace(x_BSD=x))).tokens.x_BSD.pow(2).sum().backward()
    reached = x.grad.abs().sum(-1)[0] > 0
    assert reached.all() if not merger.drops else reached.sum() == 16


@pytest.mark.parametrize("variant", each(*CONTENT))
def test_budgets_go_where_the_frames_go(variant: Variant) -> None:
    came = patches((6,))
    order = torch.tensor([3, 0, 5, 1, 4, 2])

    def shuffled(field: Tensor) -> Tensor:
        return field.unflatten(1, (6, 16))[:, order].flatten(1, 2)

    t = came.tokens
    other = came._replace(
        tokens=t._replace(x_BSD=shuffled(t.x_BSD), saliency_BS=shuffled(t.saliency_BS), motion_BS=shuffled(t.motion_BS))
    )
    a, b = room(variant, scope="frame"), room(variant, scope="frame")
    a(came), b(other)
    assert torch.equal(a.chosen.kept_BT()[:, order], b.chosen.kept_BT())


@pytest.mark.parametrize("variant", each("motion", "adaptive"))
def test_what_moves_gets_more_tokens_than_what_stands_still(variant: Variant) -> None:
    g = torch.Generator().manual_seed(0)
    still = torch.randn(1, 1, 16, DIM, generator=g).repeat(1, 8, 1, 1)
    still[:, 4:, 3:8] = torch.randn(1, 4, 5, DIM, generator=g)  # five patches change from frame to frame
    came = patches((8,), x=still + 0.01 * torch.randn(1, 8, 16, DIM, generator=g))
    merger = room(variant, keep=0.25, scope="frame")
    merger(came._replace(tokens=came.tokens._replace(saliency_BS=torch.ones(1, 128))))
    kept = merger.chosen.kept_BT()[0]
    assert kept[4:].sum() > 1.5 * kept[:4].sum()


def test_a_still_clip_is_not_kept_frame_after_frame() -> None:
    """Of equal patches in different frames the first is the remarkable one."""
    x = torch.randn(1, 1, 16, DIM, generator=torch.Generator().manual_seed(0)).repeat(1, 8, 1, 1)
    merger = room(Variant("merger", "adaptive"), keep=0.125)
    merger(patches((8,), x=x))
    kept = merger.chosen.own_BS()[0].nonzero().flatten() % 16
    assert len(kept) == 16 and len(kept.unique()) >= 8


def dycoke_by_hand(x_TND: Tensor, rate: float) -> set[int]:
    """The published rule: places [T * N] that stay of windows of four, with a share ``rate`` of compared frames."""
    t, n, _ = x_TND.shape
    kept = set()
    for start in range(0, t, 4):
        kept |= {start * n + p for p in range(n)}
        for earlier, later in ((0, 1), (2, 3), (0, 2)):
            if start + later < t:
                cosine = F.cosine_similarity(x_TND[start + earlier], x_TND[start + later], dim=-1)
                least = cosine.argsort()[: round(rate * n)]
                kept |= {(start + later) * n + int(p) for p in least}
    return kept


def test_dycoke_is_the_published_rule_and_scales_below_it() -> None:
    x = torch.randn(1, 8, 16, DIM, generator=torch.Generator().manual_seed(0))
    merger = room(Variant("merger", "dycoke"), tokens=2 * 16 + 6 * 5)
    merger(patches((8,), x=x))
    assert set(merger.chosen.own_BS()[0].nonzero().flatten().tolist()) == dycoke_by_hand(x[0], 5 / 16)
    merger = room(Variant("merger", "dycoke"), keep=0.25)
    merger(patches((8,), x=x))
    # 32 tokens: two first frames against six compared ones, 1 : 0.3
    assert merger.chosen.kept_BT()[0].tolist() == [8, 2, 3, 2, 9, 3, 2, 3]
    x[0, 4] = x[0, 0]
    x[0, 4, 3] *= -1  # the first frame of a window is compared with that of the one before
    merger = room(Variant("merger", "dycoke"), keep=0.0625)
    merger(patches((8,), x=x))
    assert merger.chosen.own_BS().unflatten(1, (8, 16))[0, 4].nonzero().flatten().tolist() == [3]


def test_fastvid_is_the_published_rule() -> None:
    g = torch.Generator().manual_seed(0)
    scenes = torch.randn(2, DIM, generator=g).repeat_interleave(4, 0)
    x = scenes[:, None] + 0.3 * torch.randn(8, 16, DIM, generator=g)
    came = patches((8,), x=x[None])
    score = came.tokens.saliency_BS.view(8, 16)
    merger = room(Variant("merger", "fastvid"), keep=0.25)
    assert merger._cut(x) == [(0, 4), (4, 8)]
    merger(came)
    own, weight = merger.chosen.own_BS().view(8, 16), merger.chosen.to.weight_BS.view(8, 16)
    attended = torch.zeros(8, 16, dtype=torch.bool)
    attended.scatter_(1, score.topk(2).indices, True)  # (1 - 0.4) of four tokens a frame
    assert (own & attended).equal(attended) and own.sum() == 32
    peaks = own & ~attended
    assert peaks.sum(1).tolist() == [8, 0, 0, 0, 8, 0, 0, 0]  # of a segment's first frame in four
    for first in (0, 4):
        flat = x[first : first + 4].flatten(0, 1)
        anchors = peaks[first : first + 4].flatten().nonzero().flatten()
        rest = (~own[first : first + 4]).flatten().nonzero().flatten()
        cosine = F.cosine_similarity(flat[rest, None], flat[None, anchors], dim=-1)
        into = anchors[cosine.argmax(1)]
        roots = merger.chosen.roots_BS[0, first * 16 : (first + 4) * 16] - first * 16
        assert torch.equal(roots[rest], into)
        for anchor in anchors.tolist():
            members = int((into == anchor).sum())
            if members:  # max(1 / (members + 1), 0.6) for the peak, the rest shared
                share = max(1 / (members + 1), 0.6)
                assert weight[first:].flatten()[anchor] == pytest.approx(share)
                assert weight[first:].flatten()[rest[into == anchor]].tolist() == pytest.approx(
                    [(1 - share) / members] * members
                )


def test_on_its_own_it_takes_features() -> None:
    x = torch.randn(2, 5, 16, DIM, generator=torch.Generator().manual_seed(0))
    tokens = MotionAwareTokenMerge().merge_frames(x, GRID)
    assert tokens.x_BSD.shape == (2, 20, DIM) and tokens.size_BS.sum(1).tolist() == [80, 80]
    flow = MotionAwareTokenMerge(keep=0.0625, motion="flow", scope="frame")
    flow.merge_frames(x, GRID, motion_BTN=(torch.arange(16) == 3) * torch.ones(2, 5, 16))
    salient = SaliencyMerge(keep=0.0625).merge_frames(
        x, GRID, saliency_BTN=(torch.arange(16) == 5) * torch.ones(2, 5, 16)
    )
    assert salient.size_BS.sum() == 160
    own = flow.chosen.roots_BS == torch.arange(80)
    assert own.nonzero()[:, 1].tolist() == [3, 19, 35, 51, 67] * 2


def test_without_motion_what_stands_out_decides() -> None:
    x = F.normalize(torch.ones(1, 4, 16, DIM), dim=-1)
    x[:, :, 5] *= torch.tensor([1.0, -1.0]).repeat(DIM // 2)
    merger = MotionAwareTokenMerge(keep=0.0625, scope="frame")
    merger(patches((4,), x=x))
    own = merger.chosen.roots_BS == torch.arange(64)
    assert own.nonzero()[:, 1].tolist() == [5, 21, 37, 53]


def test_a_flash_stands_out_in_its_own_frame_only() -> None:
    x = torch.randn(1, 1, 16, DIM, generator=torch.Generator().manual_seed(0)).repeat(1, 12, 1, 1)
    x[:, 6, 2] = -x[:, 6, 2]
    motion = feature_motion(x, torch.ones(1, 12, dtype=torch.bool))[0]
    assert motion[6, 2] > 1.9 and motion.sum() - motion[6, 2] < 1e-4


@pytest.mark.parametrize("reach", [0, 2, 9])
@pytest.mark.parametrize("scores", [1 << 22, 300])  # in one block, and frame by frame
def test_likeness_is_to_the_most_alike_that_scores_higher(reach: int, scores: int, monkeypatch) -> None:
    monkeypatch.setattr(adaptive, "_SCORES", scores)
    came = patches((6, 3))
    x, score = came.tokens.x_BSD, came.tokens.saliency_BS
    view = View(x.unflatten(1, (6, 16)), came.frame_mask_BT, None, None, torch.tensor([4, 4]), 1)
    likeness = adaptive.likeness_to_higher(view, score.unflatten(1, (6, 16)), reach).flatten(1)
    unit = F.normalize(x, dim=-1)
    for row, frames in enumerate((6, 3)):
        for i in range(16 * frames):
            near = range(16 * max(0, i // 16 - reach), 16 * min(frames, i // 16 + reach + 1))
            found = [float(unit[row, i] @ unit[row, j]) for j in near if score[row, j] > score[row, i]]
            assert likeness[row, i] == pytest.approx(max([0.0, *found]), abs=1e-6)


@pytest.mark.parametrize("near", [0, 2, 9])
def test_what_is_not_kept_joins_the_most_alike_kept_one(near: int) -> None:
    came = patches((6, 3), seed=3)
    view = View(came.tokens.x_BSD.unflatten(1, (6, 16)), came.frame_mask_BT, None, None, torch.tensor([9, 9]), 1)
    kept = best_of_clip(came.tokens.saliency_BS.unflatten(1, (6, 16)), came.frame_mask_BT, torch.tensor([14, 5]), 1)
    roots = adaptive.most_alike_kept(view, kept, near)
    unit = F.normalize(came.tokens.x_BSD, dim=-1)
    for row, frames in enumerate((6, 3)):
        own = [i for i in range(16 * frames) if kept[row].flatten()[i]]
        for i in range(16 * frames):
            candidates = [j for j in own if abs(j // 16 - i // 16) <= near]
            best = i if i in own else max(candidates, key=lambda j: float(unit[row, i] @ unit[row, j]))
            assert roots[row, i] == best


@pytest.mark.parametrize("variant", each())
def test_tokens_may_stand_where_their_roots_stood(variant: Variant) -> None:
    came = patches()
    merger = room(variant, places="root")
    out, own = merger(came).tokens, merger.chosen.own_BS()
    for row in range(2):
        place = (own[row] & came.tokens.mask_BS[row]).nonzero().flatten()
        for before, after in ((came.tokens.time_BS, out.time_BS), (came.tokens.frame_BS, out.frame_BS),
                              (came.tokens.yx_BS2, out.yx_BS2)):  # fmt: skip
            assert torch.equal(after[row, : len(place)], before[row, place])


def test_every_thing_has_a_token_before_one_has_several() -> None:
    """Four things that cover four patches each, one standing out far more than the others, and six tokens."""
    g = torch.Generator().manual_seed(0)
    things = F.normalize(torch.randn(4, DIM, generator=g), dim=-1)
    x = torch.zeros(1, 1, 16, DIM)
    x[..., 0] = 1.0
    which = torch.arange(16) // 4
    x[0, 0] += torch.tensor([9.0, 2.0, 1.6, 1.3])[which, None] * things[which]
    x += 1e-3 * torch.randn(x.shape, generator=g)

    def shown(**settings) -> set[int]:
        merger = adaptive.AdaptiveMerge(tokens=5, motion_weight=0, **settings)
        merger(patches((1,), x=x))
        return {int(which[i]) for i in merger.chosen.own_BS()[0].nonzero().flatten()}

    assert shown() == {0, 1, 2, 3} and shown(reach=None) != {0, 1, 2, 3}


# ----------------------------------------------------------------------------------------------------- among the rooms


def whole(merger: Variant, connector: str, order: str = "question_first", **settings):
    variant = Variant("merger", merger.name, (*merger.changes, *settings.items()))
    return model(Case(order, (variant, Variant("connector", connector))))


@pytest.mark.parametrize("connector", ["foveated", "mean", "patches", "longvlm"])
@pytest.mark.parametrize("variant", each())
def test_keeping_all_is_no_merger(variant: Variant, connector: str) -> None:
    merged = whole(variant, connector, keep=1.0, proportional=True)
    plain = whole(Variant("merger", "none"), connector)
    plain.load_state_dict(merged.state_dict(), strict=False)
    batch = batch_of(*two_clips(plain), size=side(plain))
    for a, b in zip(per_row(merged, batch), per_row(plain, batch), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_the_gaze_over_merged_duplicates_is_the_gaze_over_all() -> None:
    vlm = whole(Variant("merger", "none"), "foveated")
    frames = torch.randint(0, 256, (1, 3, 3, side(vlm), side(vlm)), dtype=torch.uint8)
    _, kv, *_ = vlm.vision.encode(frames, torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.bool), Wants(kv=True))
    n = kv[0][0].shape[2]
    alike = [(k[:, :, :2].repeat(1, 1, n // 2, 1), v[:, :, :2].repeat(1, 1, n // 2, 1)) for k, v in kv]
    to = Assignment.of_roots((torch.arange(n) % 2).expand(3, n), torch.ones(3, n, dtype=torch.bool), torch.ones(3, n))
    query = torch.randn(3, 2, vlm.vision.query_dim)
    expected, nats = CachedKV(vlm.vision, alike)(query, return_entropy=True)
    found, merged_nats = CachedKV(vlm.vision, alike).merged(to)(query, return_entropy=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert merge_kv(kv, to)[0][0].shape[2] == 2 and merged_nats < nats


@pytest.mark.parametrize("connector", ["foveated", "patches"])
@torch.no_grad()
def test_in_parts_and_from_memory_as_at_once(connector: str) -> None:
    from hvlm.feature_cache import FrozenFeatures

    vlm = whole(Variant("merger", "saliency"), connector, keep=0.5)
    batch = batch_of(*two_clips(vlm), size=side(vlm))
    expected = vlm.targets(batch).logits_MV
    vlm.vision.frames_at_once = 3
    torch.testing.assert_close(vlm.targets(batch).logits_MV, expected, rtol=0, atol=1e-5)
    vlm.features = FrozenFeatures(vlm.vision, vlm.wants(), vlm.wants_patches)
    close = vlm.targets(batch).logits_MV
    assert (close - expected).abs().max() < 0.05 * expected.abs().max()  # kept in bfloat16


@pytest.mark.parametrize("proportional", [True, False])
@pytest.mark.parametrize("order", ["question_first", "video_first"])
def test_decoding_goes_on_where_the_merged_clip_ends(order: str, proportional: bool) -> None:
    """A written token has the position and sees the sizes that it would have if it had been read."""
    vlm = whole(Variant("merger", "tome"), "patches", order, keep=0.5, proportional=proportional)
    item = clip(1, 4, [ASKED[2]], order, side(vlm))
    batch = batch_of(item, size=side(vlm))
    said = generate(vlm, chat(), batch, 6)[0]
    prompt = int((~batch.loss_mask_KS & batch.attention_mask_KS).sum())
    ids = batch.input_ids_KS[:, :prompt]
    written: list[int] = []
    with torch.no_grad():
        for _ in range(6):
            mask = torch.ones_like(ids, dtype=torch.bool)
            read = vlm.sequence(batch._replace(input_ids_KS=ids, attention_mask_KS=mask, loss_mask_KS=~mask))
            token = vlm.head.logits(vlm.hidden(read)[:, -1]).argmax(-1)
            if int(token) == chat().end_id:
                break
            written.append(int(token))
            ids = torch.cat([ids, token[:, None]], 1)
    assert said == chat().decode(written)


def test_positions_are_those_of_the_patches() -> None:
    vlm = whole(Variant("merger", "stride"), "patches", keep=0.25)
    batch = batch_of(*two_clips(vlm), size=side(vlm))
    read = vlm.sequence(batch)
    at, n = int(batch.visual_at_K[0]), 4
    roots = vlm.merger.chosen.roots_BS[0]
    places = (roots == torch.arange(len(roots))).nonzero().flatten()
    assert read.position_KL[0, at : at + len(places)].tolist() == (at + places).tolist()
    text = int(batch.attention_mask_KS[0].sum())
    assert read.position_KL[0, at + len(places) : text + len(places)].tolist() == [
        at + 4 * n + i for i in range(text - at)
    ]
    packed = whole(Variant("merger", "stride"), "patches", keep=0.25, positions="packed")
    assert packed.sequence(batch).position_KL is None


def test_refusals_name_the_setting() -> None:
    for settings, said in (
        ({"keep": 0.0}, "merger.keep=0.0"), ({"keep": 1.5}, "merger.keep=1.5"), ({"tokens": 0}, "merger.tokens=0"),
        ({"scope": "clip"}, "merger.scope=clip"), ({"positions": "x"}, "merger.positions=x"),
        ({"scope": "video", "needs_frames": True}, "merger.scope=video"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            room(Variant("merger", "tome"), **settings)
    with pytest.raises(UserError, match="merger.scope=video: SaliencyMerge works within frames"):
        room(Variant("merger", "saliency"), scope="video")
    shuffled = Case("question_first", (Variant("merger", "tome"), Variant("connector", "patches", (("shuffle", 2),))))
    with pytest.raises(UserError, match="connector.shuffle=2 folds the whole patch grid"):
        model(shuffled)
    bare = patches()._replace(tokens=patches().tokens._replace(saliency_BS=None, motion_BS=None))
    with pytest.raises(ValueError, match="carry no saliency"):
        room(Variant("merger", "saliency"))(bare)
    with pytest.raises(ValueError, match="merger.motion=flow: the batch carries no motion"):
        room(Variant("merger", "motion"), motion="flow")(bare)
    random = room(Variant("merger", "random")).train()
    first, second = random(patches()).tokens.x_BSD, random(patches()).tokens.x_BSD
    assert not torch.equal(first, second) and torch.equal(
        random.eval()(patches()).tokens.x_BSD, random(patches()).tokens.x_BSD
    )


def test_any_merger_may_stand_before_any_model() -> None:
    """Evaluation with another merger than the one that was trained with: what mergers remember is no weight."""
    with_random, plain = whole(Variant("merger", "random"), "patches"), whole(Variant("merger", "none"), "patches")
    with_random.merger.draws += 7
    for model_, other in ((plain, with_random), (with_random, plain)):
        load_into(model_, with_own(other.state_dict(), model_), "a checkpoint")
    load_into(with_random, with_own(with_random.state_dict(), with_random), "a checkpoint")
    assert int(with_random.merger.draws) == 7
