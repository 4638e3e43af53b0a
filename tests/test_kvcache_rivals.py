"""Caches that choose places by a score keep what the score's definition says, written out over the whole attention
matrix, and decoding through them is attention over the places that are left."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from _tiny import Case, Variant, batch_of, chat, model, side, two_clips
from torch import Tensor
from transformers import DynamicCache

from hvlm.caching import PastKV
from hvlm.errors import UserError
from hvlm.evaluation.generate import generate
from hvlm.kvcache.expected import ExpectedAttention
from hvlm.kvcache.infinipot import InfiniPot
from hvlm.kvcache.snapkv import SnapKV
from hvlm.language.smollm2 import SmolLM2

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
LENGTH, AFTER = 24, 4
# Rows of different length, with padding on the left, inside and on the right.
MASK = torch.ones(3, LENGTH, dtype=torch.bool)
MASK[1, :5], MASK[1, 9], MASK[2, 17:], MASK[2, 3] = False, False, False, False
# Two tokens of text, then frames of three places, then text.
FRAME = torch.tensor([-1, -1, *[i // 3 for i in range(18)], *[-1] * 4]).expand(3, -1)
SLOT = torch.tensor([-1, -1, *[i % 3 for i in range(18)], *[-1] * 4]).expand(3, -1)

SIZES = {"num_layers": 2, "num_kv_heads": 2, "head_dim": 8}
ROOMS: dict[str, Callable[..., object]] = {
    "snapkv": lambda **more: SnapKV(window=3, kernel=3, **more, **SIZES),
    "snapkv-max": lambda **more: SnapKV(window=2, kernel=5, pooling="max", **more, **SIZES),
    "expected": lambda **more: ExpectedAttention(sink=2, future=9, epsilon=0.01, **more, **SIZES),
    "infinipot": lambda **more: InfiniPot(**more, **SIZES),
    "infinipot-pooled": lambda **more: InfiniPot(temporal=0.3, recent=0.5, kernel=3, **more, **SIZES),
}
BUDGETS = [{"budget": 9}, {"share": 0.5, "budget": 100}, {"budget": 16}]


def language(attention: str = "auto") -> SmolLM2:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2}
    made = SmolLM2(None, vocab_size=20, attention=attention, **sizes)
    for parameter in made.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    return made.eval()


def embeddings(length: int, seed: int = 2) -> Tensor:
    return torch.randn(3, length, 32, generator=torch.Generator().manual_seed(seed))


def read(lm: SmolLM2, cache: PastKV, x: Tensor, mask: Tensor | None = None, rows: slice = slice(None)) -> Tensor:
    """States of the context, of whose places the cache is told what they are."""
    length = x.shape[1]
    cache.tell(FRAME[rows, :length], SLOT[rows, :length])
    return lm.hidden(x, mask, cache=cache)


def places(cache: PastKV, layer: int, row: int, head: int) -> list[int]:
    """Which places of the context a head has left."""
    if layer not in cache._index:  # nothing had to go
        return list(range(cache.length))
    return [i for i in cache._index[layer][row, head].tolist() if 0 <= i < LENGTH]


# ------------------------------------------------------------------------------------- the definitions, written out


def goal(valid: list[int], budget: dict) -> int:
    return math.ceil(budget["share"] * len(valid)) if "share" in budget else min(budget["budget"], len(valid))


def highest(score: dict[int, float], many: int) -> set[int]:
    return set(sorted(score, key=lambda j: (-score[j], j))[:many])


class Whole:
    """What the library's own model computes over the whole context."""

    def __init__(self, x: Tensor, mask: Tensor) -> None:
        self.lm, self.mask, self.queries = language("eager"), mask, []
        taken = [
            layer.self_attn.q_proj.register_forward_hook(lambda _, __, out: self.queries.append(out))
            for layer in self.lm.model.model.layers
        ]
        position = (mask.cumsum(1) - 1).clamp(min=0)
        seen = (mask[:, None, None] & torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()) | torch.eye(LENGTH).bool()
        added = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
        self.weights = self.lm.model.model(
            inputs_embeds=x, attention_mask=added, position_ids=position, output_attentions=True
        ).attentions
        for hook in taken:
            hook.remove()
        self.kept = PastKV()
        self.lm.hidden(x, mask, cache=self.kept)

    def key(self, layer: int, row: int, head: int, place: int) -> Tensor:
        return self.kept.layers[layer].keys[row, head, place].double()

    def length(self, layer: int, row: int, head: int, place: int) -> float:
        return float(self.kept.layers[layer].values[row, head, place].double().norm())


def window_average(values: list[float], at: int, kernel: int, how: str = "avg") -> float:
    half = kernel // 2
    near = [values[i] if 0 <= i < len(values) else 0.0 for i in range(at - half, at + half + 1)]
    return max(near) if how == "max" else sum(near) / kernel


def snapkv(whole: Whole, valid: list[int], many: int, layer: int, row: int, head: int, room: SnapKV) -> set[int]:
    observing, earlier = valid[-room.window :], valid[: -room.window]
    score = dict.fromkeys(earlier, 0.0)
    for query_head in (2 * head, 2 * head + 1):
        seen = [whole.weights[layer][row, query_head, observing, j].double().mean().item() for j in earlier]
        for i, j in enumerate(earlier):
            score[j] += window_average(seen, i, room.kernel, room.pooling) / 2
    return {*observing, *highest(score, many - len(observing))}


def rotation(position: int, width: int = 8, theta: float = 10000.0) -> Tensor:
    """The matrix by which a query or a key at a position is multiplied."""
    found, half = torch.zeros(width, width, dtype=torch.float64), width // 2
    for i in range(half):
        angle = position * theta ** (-2 * i / width)
        found[i, i] = found[i + half, i + half] = math.cos(angle)
        found[i, i + half], found[i + half, i] = -math.sin(angle), math.sin(angle)
    return found


def expected(whole: Whole, valid: list[int], many: int, layer: int, row: int, head: int, room) -> set[int]:
    sinks, rest = valid[: room.sink], valid[room.sink :]
    ahead = range(len(valid), len(valid) + room.future)
    theta = whole.lm.model.config.rope_parameters["rope_theta"]
    average = torch.stack([rotation(i, theta=theta) for i in ahead]).mean(0)
    score = dict.fromkeys(rest, 0.0)
    for query_head in (2 * head, 2 * head + 1):
        asked = whole.queries[layer][row, rest, 8 * query_head : 8 * query_head + 8].double()
        mean, covariance = average @ asked.mean(0), average @ asked.T.cov(correction=0) @ average.T
        keys = [whole.key(layer, row, head, j) for j in rest]
        value = [math.exp(mean @ k / math.sqrt(8) + k @ covariance @ k / 16) for k in keys]
        for j, v in zip(rest, value, strict=True):
            score[j] += v / sum(value) / 2
    score = {j: (s + room.epsilon) * whole.length(layer, row, head, j) for j, s in score.items()}
    return {*sinks, *highest(score, many - len(sinks))}


def infinipot(whole: Whole, valid: list[int], many: int, layer: int, row: int, head: int, room: InfiniPot) -> set[int]:
    text = [j for j in valid if FRAME[row, j] < 0]
    video = [j for j in valid if FRAME[row, j] >= 0]
    left = many - len(text)
    in_time = left - round((1 - room.temporal) * left)
    now: list[int] = []
    for frame in sorted({int(FRAME[row, j]) for j in video}, reverse=True):
        of_frame = [j for j in video if FRAME[row, j] == frame]
        if now and len(now) + len(of_frame) > min(in_time, int(room.recent * len(video))):
            break
        now = (of_frame + now)[-in_time:] if in_time else []
    cosine = {}
    for j in video:
        like = [i for i in now if SLOT[row, i] == SLOT[row, j]]
        each = [F.cosine_similarity(*(whole.key(layer, row, head, p) for p in (i, j)), dim=0).item() for i in like]
        cosine[j] = sum(each) / len(each) if each else 0.0
    kept = {*now, *highest({j: -cosine[j] for j in video if j not in now}, in_time - len(now))}
    lengths = [whole.length(layer, row, head, j) for j in video]
    pooled = {j: window_average(lengths, i, room.kernel) for i, j in enumerate(video)}
    return {*text, *kept, *highest({j: p for j, p in pooled.items() if j not in kept}, left - len(kept))}


DEFINITIONS = {"snapkv": snapkv, "expected": expected, "infinipot": infinipot}


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
@pytest.mark.parametrize("name", ROOMS)
@torch.no_grad()
def test_what_is_kept_is_what_the_definition_says(name: str, budget: dict) -> None:
    """In every layer, head and row, whatever padding stands where; and a row alone keeps the same."""
    lm, x, room = language(), embeddings(LENGTH), ROOMS[name](**budget)
    whole, cache = Whole(x, MASK), room.new()
    states = read(lm, cache, x, MASK)
    torch.testing.assert_close(states[MASK], lm.hidden(x, MASK)[MASK], **CLOSE)  # the pass itself sees everything
    differ = set()
    for row in range(3):
        valid = MASK[row].nonzero().flatten().tolist()
        many = goal(valid, budget)
        alone = room.new()
        alone.tell(FRAME[row : row + 1, valid], SLOT[row : row + 1, valid])
        lm.hidden(x[row : row + 1, valid], cache=alone)
        for layer in range(2):
            for head in range(2):
                found = places(cache, layer, row, head)
                wanted = DEFINITIONS[name.split("-")[0]](whole, valid, many, layer, row, head, room)
                assert found == sorted(wanted) and len(found) == many
                assert found == [valid[i] for i in places(alone, layer, 0, head)]
                differ.add(tuple(found))
    assert len(differ) > 6, "heads must choose for themselves, or this sees little"


@pytest.mark.parametrize("name", ["snapkv", "expected", "infinipot"])
@torch.no_grad()
def test_a_row_in_pieces_keeps_what_it_keeps_alone(name: str) -> None:
    """A last piece shorter than what observes, and one that has nothing of a row, too."""
    mask = MASK.clone()
    mask[1, 20:22] = False
    lm, x, room = language(), embeddings(LENGTH), ROOMS[name](budget=12)
    cache, cuts = room.new(), (slice(0, 20), slice(20, LENGTH))
    cache.tell(FRAME, SLOT)
    for cut in cuts:
        lm.hidden(x[:, cut], mask[:, cut], cache=cache)
    for row in range(3):
        alone, valid = room.new(), mask[row].nonzero().flatten().tolist()
        alone.tell(FRAME[row : row + 1, valid], SLOT[row : row + 1, valid])
        for cut in cuts:
            if mask[row, cut].any():
                lm.hidden(x[row : row + 1, cut][:, mask[row, cut]], cache=alone)
        for layer in range(2):
            for head in range(2):
                found = places(cache, layer, row, head)
                assert found == [valid[i] for i in places(alone, layer, 0, head)]


# ------------------------------------------------------------------------------------------------ what comes after


class Masked(PastKV):
    """Keeps everything and attends with each head's own mask."""

    def __init__(self, left: dict[int, Tensor], context: int) -> None:
        super().__init__()
        self.left, self.context = left, context  # of each layer, bool [K, G, context]

    def attend(self, layer_idx, query, key, value, how):
        seen = self.mask_KL[:, None].expand(-1, 2, -1).clone()
        seen[..., : self.context] &= self.left[layer_idx]
        new, total = query.shape[2], key.shape[2]
        seen = seen[:, :, None] & torch.ones(new, total, dtype=torch.bool).tril(total - new)
        seen = seen | torch.eye(total, dtype=torch.bool)[total - new :]
        bias = torch.zeros(len(key), total) if self.bias_KL is None else self.bias_KL
        added = torch.where(seen, bias[:, None, None], -torch.inf).repeat_interleave(2, 1)
        key, value = (x.repeat_interleave(2, 1) for x in (key, value))
        return F.scaled_dot_product_attention(query, key, value, added, scale=how.scale)


@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize("pieces", [(1, 1, 1, 1), (4,), (2, 1, 1)], ids=str)
@pytest.mark.parametrize("name", ["snapkv", "expected", "infinipot"])
@torch.no_grad()
def test_decoding_is_attention_over_the_places_that_are_left(name: str, pieces: tuple[int, ...], sized: bool) -> None:
    lm, x, more = language(), embeddings(LENGTH), embeddings(AFTER, 3)
    size = torch.arange(3 * LENGTH).view(3, LENGTH).remainder(5).add(1).log() if sized else None
    cache = ROOMS[name](budget=9).new()
    cache.tell(FRAME, SLOT)
    lm.hidden(x, MASK, None, cache, size)
    cache.question()
    left = {layer: torch.zeros(3, 2, LENGTH, dtype=torch.bool) for layer in range(2)}
    for layer, kept in left.items():
        for row in range(3):
            for head in range(2):
                kept[row, head, places(cache, layer, row, head)] = True
    reference = PastKV()
    lm.hidden(x, MASK, None, reference, size)
    masked = Masked(left, LENGTH)
    for attribute in ("mask_KL", "position_KL", "bias_KL", "next_K1", "length", "layers", "_padded"):
        setattr(masked, attribute, getattr(reference, attribute))
    new = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 1], [0, 1, 1, 1]]).bool()
    start, whole = 0, reference.copy()
    for piece in pieces:
        cut = slice(start, start + piece)
        found, wanted = (lm.hidden(more[:, cut], new[:, cut], cache=c) for c in (cache, masked))
        everything = lm.hidden(more[:, cut], new[:, cut], cache=whole)
        torch.testing.assert_close(found[new[:, cut]], wanted[new[:, cut]], **CLOSE)
        start += piece
    assert (everything - found)[new[:, cut]].abs().max() > 1e-3, "what went must matter, or this sees nothing"
    assert cache.get_seq_length() == LENGTH + AFTER and torch.equal(cache.next_K1, masked.next_K1)


@pytest.mark.parametrize("pieces", [(LENGTH,), (10, 9, 5), (1,) * LENGTH], ids=lambda p: str(len(p)))
@pytest.mark.parametrize("name", ["snapkv", "expected", "infinipot"])
@torch.no_grad()
def test_with_room_for_everything_it_is_the_cache_of_everything(name: str, pieces: tuple[int, ...]) -> None:
    lm, x = language(), embeddings(LENGTH)
    for budget in ({"budget": LENGTH}, {"budget": 1000}, {"share": 1.0, "budget": 5}):
        cache, full, start = ROOMS[name](**budget).new(), PastKV(), 0
        for piece in pieces:
            cut = slice(start, start + piece)
            found, wanted = (lm.hidden(x[:, cut], MASK[:, cut], cache=c) for c in (cache, full))
            assert torch.equal(found, wanted)
            start += piece
        assert cache.nbytes == full.nbytes


@pytest.mark.parametrize("name", ["snapkv", "expected", "infinipot"])
@torch.no_grad()
def test_bytes_are_what_is_allocated_in_whatever_pieces_a_context_comes(name: str) -> None:
    lm, x = language(), embeddings(LENGTH)
    for budget in BUDGETS:
        room = ROOMS[name](**budget)
        for pieces in ((LENGTH,), (10, 9, 5), (5, 19)):
            cache, start = room.new(), 0
            cache.tell(FRAME, SLOT)
            for piece in pieces:
                lm.hidden(x[:, start : start + piece], cache=cache)
                start += piece
            assert cache.nbytes == room.bytes(LENGTH, 3) < bytes_of_everything(LENGTH)
            lm.hidden(x[:, :1], cache=cache)
            assert cache.nbytes == room.bytes(LENGTH, 3) + bytes_of_everything(1)


def bytes_of_everything(length: int) -> int:
    return 2 * 2 * 2 * 8 * 3 * length * 4


@pytest.mark.parametrize("name", ["snapkv", "expected", "infinipot"])
@torch.no_grad()
def test_rows_may_be_chosen_and_a_copy_goes_its_own_way(name: str) -> None:
    lm, x, new = language(), embeddings(LENGTH), embeddings(3, 4)

    def cache_of(rows: list[int]) -> PastKV:
        cache = ROOMS[name](budget=12).new()
        cache.tell(FRAME[rows], SLOT[rows])
        lm.hidden(x[rows], MASK[rows], cache=cache)
        return cache

    for rows, change in (
        ([2, 0, 0], lambda cache: cache.reorder_cache(torch.tensor([2, 0, 0]))),
        ([1, 2], lambda cache: cache.batch_select_indices(torch.tensor([1, 2]))),
    ):
        cache, wanted = cache_of([0, 1, 2]), cache_of(rows)
        change(cache)
        for i in range(3):
            step = new[: len(rows), i : i + 1]
            torch.testing.assert_close(lm.hidden(step, cache=cache), lm.hidden(step, cache=wanted), **CLOSE)
    cache, wanted = cache_of([1]), cache_of([1, 1])
    cache.batch_repeat_interleave(2)
    torch.testing.assert_close(lm.hidden(new[:2], cache=cache), lm.hidden(new[:2], cache=wanted), **CLOSE)

    cache = cache_of([0, 1, 2])
    other, before = cache.copy(), cache.nbytes
    away = lm.hidden(new, cache=other)
    assert cache.nbytes == before and torch.equal(lm.hidden(new, cache=cache), away)
    with pytest.raises(ValueError, match="cannot take tokens back"):
        cache.crop(-1)
    cache.reset()
    assert torch.equal(read(lm, cache, x[:, :6]), lm.hidden(x[:, :6], cache=PastKV()))


@pytest.mark.parametrize("beams", [1, 3])
@torch.no_grad()
def test_transformers_own_generate_reads_through_it(beams: int) -> None:
    """Where nothing goes it writes what its own cache writes; where something goes, what our own steps say."""
    lm = language()
    ids = torch.randint(1, 20, (2, 18), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    how = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0, "num_beams": beams}

    def written(cache, **more):
        return lm.model.generate(ids, attention_mask=mask, use_cache=True, **{lm._cache: cache}, **how, **more)

    room = ROOMS["snapkv"](budget=100)
    assert torch.equal(written(room.new()), written(DynamicCache()))
    room = ROOMS["snapkv"](budget=8)
    out = written(room.new(), return_dict_in_generate=True, output_logits=True, output_scores=True)
    assert not torch.equal(out.sequences, written(DynamicCache())), "what goes must matter, or this sees nothing"
    cache, total = room.new(), torch.zeros(2)
    newest = lm.hidden(lm.embed(ids), mask.bool(), cache=cache)[:, -1:]
    for i in range(6):
        logp = lm.logits(newest)[:, 0].log_softmax(-1)
        token = out.sequences[:, 18 + i, None]
        total += logp.gather(1, token)[:, 0]
        if beams == 1:
            torch.testing.assert_close(out.logits[i].log_softmax(-1), logp, **CLOSE)
        newest = lm.hidden(lm.embed(token), cache=cache)
    if beams > 1:
        torch.testing.assert_close(out.sequences_scores, total / 6, **CLOSE)


@torch.no_grad()
def test_a_stream_has_its_places_chosen_again_whenever_it_has_grown_by_the_slack() -> None:
    """Frames of one token each, one at a time, for ever: memory stays within budget and slack, the newest frames and
    the text are there, and a question on a copy changes nothing."""
    lm = language()
    room = InfiniPot(budget=12, slack=4, **SIZES)
    cache, sizes = room.new(), []
    lm.hidden(embeddings(3)[:1], cache=cache)
    for frame in range(60):
        cache.tell(torch.full((1, 1), frame), torch.zeros(1, 1, dtype=torch.long))
        lm.hidden(embeddings(1, frame)[:1], cache=cache)
        sizes.append(cache.nbytes)
        asked = cache.copy()
        asked.question()
        lm.hidden(embeddings(5, 99)[:1], cache=asked)
    a_place = room.bytes(1)
    assert max(sizes) == 16 * a_place and min(sizes[20:]) == 12 * a_place
    for layer in range(2):
        for kept in cache._index[layer][0].tolist():
            assert kept[:3] == [0, 1, 2] and kept[-1] == 62 and kept == sorted(kept)


@torch.no_grad()
def test_a_model_tells_its_cache_which_places_are_of_which_frame() -> None:
    case = Case("question_first", (Variant("connector", "patches"), Variant("vision", "dinov2_tiny")))
    vlm = model(case, seed=3)
    vlm.kvcache = InfiniPot(budget=14, **vlm.language.cache_sizes)
    batch = batch_of(*two_clips(vlm), size=side(vlm))
    sequence, cache = vlm.sequence(batch), vlm.kvcache.new()
    vlm.hidden(sequence, cache)
    where = cache._where_KL2
    a_frame = math.prod(vlm.vision.grid(side(vlm), side(vlm)))
    for row, at in enumerate(batch.visual_at_K.tolist()):
        frames = int(batch.frame_mask_BT[batch.clip_K[row]].sum())
        told = [[f, s] for f in range(frames) for s in range(a_frame)]
        assert where[row, at : at + len(told)].tolist() == told
        assert bool((where[row, :at] == -1).all() and (where[row, at + len(told) :] == -1).all())
    assert all(len(written) for written in [generate(vlm, chat(), batch, 4)])


# ------------------------------------------------------------------------------------------------------- bad input


@torch.no_grad()
def test_what_cannot_be_is_refused_by_name() -> None:
    x = embeddings(LENGTH)
    with pytest.raises(UserError, match=r"kvcache.kernel=4: expected an odd number"):
        SnapKV(kernel=4, **SIZES)
    with pytest.raises(UserError, match=r"kvcache.budget=32: expected more than kvcache.window=32"):
        SnapKV(budget=32, **SIZES)
    with pytest.raises(UserError, match=r"kvcache.budget=4: expected more than kvcache.sink=4"):
        ExpectedAttention(budget=4, **SIZES)
    with pytest.raises(UserError, match=r"kvcache.share=0.1: 3 places of a row stay, fewer than the kvcache.window=8"):
        language().hidden(x, cache=SnapKV(share=0.1, window=8, **SIZES).new())
    with pytest.raises(UserError, match=r"kvcache.share=0.1: fewer places of a row stay than its kvcache.sink=8"):
        language().hidden(x, cache=ExpectedAttention(share=0.1, sink=8, **SIZES).new())
    with pytest.raises(UserError, match=r"known to be of a frame.* use kvcache.text=values"):
        language().hidden(x, cache=InfiniPot(budget=9, **SIZES).new())
    with pytest.raises(UserError, match=r"kvcache.budget=5: 6 places of text stay in any case"):
        read(language(), InfiniPot(budget=5, **SIZES).new(), x)
    with pytest.raises(UserError, match=r"kvcache=snapkv: .* use language.attention=auto"):
        language("sdpa").hidden(x, cache=SnapKV(**SIZES).new())
    alone = InfiniPot(budget=9, text="values", **SIZES).new()
    language().hidden(x, cache=alone)
    lengths = PastKV()
    language().hidden(x, cache=lengths)
    longest = lengths.layers[1].values.norm(dim=-1).topk(9).indices.sort(-1).values
    assert torch.equal(alone._index[1], longest)
