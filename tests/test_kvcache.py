"""Reading piece by piece through a cache is masked attention over the whole sequence, whatever the cache keeps."""

from __future__ import annotations

import pytest
import torch
from _tiny import Case, Variant, batch_of, chat, clip, model, side
from torch import Tensor

from hvlm.caching import PastKV
from hvlm.contracts import KVCache
from hvlm.evaluation.generate import generate
from hvlm.language.smollm2 import SmolLM2
from hvlm.types import Batch

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
# Rows of different length, with padding on the left, inside and on the right.
MASK = torch.tensor([list(map(int, row)) for row in ("1101110011", "0011111111", "1111111000")]).bool()
PIECES = [(4, 3, 1, 1, 1), (1,) * 10, (10,), (6, 4)]


def language(attention: str = "auto", **changes) -> SmolLM2:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2}
    made = SmolLM2(None, vocab_size=20, attention=attention, **sizes, **changes)
    for parameter in made.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return made.eval()


def read(lm: SmolLM2, cache: PastKV, pieces: tuple[int, ...], x: Tensor, *rest: Tensor | None) -> Tensor:
    """States of the whole sequence, read ``pieces`` tokens at a time; ``rest``: mask, positions, sizes."""
    states, start = [], 0
    for length in pieces:
        cut = slice(start, start + length)
        mask, position, size = (None if r is None else r[:, cut] for r in (*rest, *[None] * (3 - len(rest))))
        states.append(lm.hidden(x[:, cut], mask, position, cache, size))
        start += length
    return torch.cat(states, 1)


def embeddings(lm: SmolLM2, rows: int = 3, length: int = 10) -> Tensor:
    return torch.randn(rows, length, lm.dim, generator=torch.Generator().manual_seed(2))


# ----------------------------------------------------------------------------------------------- a cache of everything


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
@pytest.mark.parametrize("pieces", PIECES, ids=str)
@pytest.mark.parametrize("given", ["nothing", "padding", "positions", "sizes", "all"])
@torch.no_grad()
def test_piece_by_piece_is_the_whole(attention: str, pieces: tuple[int, ...], given: str) -> None:
    lm = language(attention)
    x = embeddings(lm)
    mask = MASK if given in ("padding", "all") else None
    position = torch.arange(10).expand(3, -1) * 2 + 3 if given in ("positions", "all") else None
    size = torch.arange(30).view(3, 10).remainder(7).add(1).log() if given in ("sizes", "all") else None
    cache = PastKV()
    found, whole = read(lm, cache, pieces, x, mask, position, size), lm.hidden(x, mask, position, None, size)
    real = torch.ones(3, 10, dtype=torch.bool) if mask is None else mask
    torch.testing.assert_close(found[real], whole[real], **CLOSE)
    assert found.isfinite().all() and cache.get_seq_length() == 10
    if given != "nothing":
        assert (lm.hidden(x) - whole)[real].abs().max() > 1e-2, "what is given must matter, or this sees nothing"


@torch.no_grad()
def test_callers_speak_of_new_tokens_alone() -> None:
    """The cache goes on counting where each row ended, and remembers padding and sizes."""
    lm, x, size = language(), embeddings(language()), torch.arange(30).view(3, 10).remainder(7).add(1).log()
    for mask, sizes in ((MASK, None), (MASK, size), (None, size)):
        cache = PastKV()
        lm.hidden(x, mask, None, cache, sizes)
        more = [lm.hidden(x[:, i : i + 1], cache=cache) for i in range(3)]  # nothing but the tokens
        long = torch.cat([x, x[:, :3]], 1)
        long_mask = None if mask is None else torch.cat([mask, mask.new_ones(3, 3)], 1)
        long_size = None if sizes is None else torch.nn.functional.pad(sizes, (0, 3))
        torch.testing.assert_close(
            torch.cat(more, 1), lm.hidden(long, long_mask, None, None, long_size)[:, -3:], **CLOSE
        )
    cache = PastKV()
    lm.hidden(x, MASK, None, cache)
    assert cache.next_K1.flatten().tolist() == MASK.sum(1).tolist()
    assert torch.equal(cache.mask_KL, MASK) and torch.equal(cache.position_KL[MASK], (MASK.cumsum(1) - 1)[MASK])
    for name, wrong in (("mask", (MASK, None, cache)), ("bias", (None, None, cache, size))):
        with pytest.raises(ValueError, match=rf"{name} \(3, 10\): expected \(3, 1\), that of the new tokens alone"):
            lm.hidden(x[:, :1], *wrong)
    with pytest.raises(ValueError, match="2 rows of new tokens, but the cache holds 3"):
        lm.hidden(x[:2, :1], cache=cache)
    assert cache.get_seq_length() == 10, "a refused pass leaves no trace"


@torch.no_grad()
def test_a_row_without_any_token_yet_starts_at_zero() -> None:
    lm, x = language(), embeddings(language())
    mask = MASK.clone()
    mask[0, :4] = False
    found = read(lm, PastKV(), (4, 6), x, mask)
    torch.testing.assert_close(found[mask], lm.hidden(x, mask)[mask], **CLOSE)


@torch.no_grad()
def test_a_copy_goes_its_own_way_and_costs_no_memory() -> None:
    lm, x = language(), embeddings(language())
    cache = PastKV()
    lm.hidden(x, MASK, None, cache)
    other = cache.copy()
    assert all(a.keys is b.keys and a.values is b.values for a, b in zip(cache.layers, other.layers, strict=True))
    away = read(lm, other, (2, 1), embeddings(lm, length=3) + 1)
    assert other.get_seq_length() == 13 and cache.get_seq_length() == 10 and cache.mask_KL.shape == (3, 10)
    again = read(lm, cache, (2, 1), embeddings(lm, length=3) + 1)
    assert torch.equal(away, again)


@torch.no_grad()
def test_rows_may_be_chosen_and_tokens_taken_back() -> None:
    """What transformers' caches can do to their rows and ends happens to validity, positions and sizes as well."""
    lm, x, size = language(), embeddings(language()), torch.arange(30).view(3, 10).remainder(7).add(1).log()
    new = embeddings(lm, 4, 2) - 1

    def after(rows: list[int], change) -> None:
        cache = PastKV()
        lm.hidden(x, MASK, None, cache, size)
        change(cache)
        expected = PastKV()
        lm.hidden(x[rows], MASK[rows], None, expected, size[rows])
        assert torch.equal(lm.hidden(new[: len(rows)], cache=cache), lm.hidden(new[: len(rows)], cache=expected))

    after([2, 0, 0], lambda cache: cache.reorder_cache(torch.tensor([2, 0, 0])))
    after([1], lambda cache: cache.batch_select_indices(torch.tensor([1])))
    cache, expected = PastKV(), PastKV()
    lm.hidden(x[:2], MASK[:2], None, cache)
    cache.batch_repeat_interleave(2)
    lm.hidden(x[[0, 0, 1, 1]], MASK[[0, 0, 1, 1]], None, expected)
    assert torch.equal(lm.hidden(new, cache=cache), lm.hidden(new, cache=expected))

    for left in (7, 1):
        cache, expected = PastKV(), PastKV()
        lm.hidden(x, MASK, None, cache)
        lm.hidden(x[:, :left], MASK[:, :left], None, expected)
        cache.crop(left - 10)
        assert cache.get_seq_length() == left and cache.nbytes == expected.nbytes
        torch.testing.assert_close(lm.hidden(new[:3], cache=cache), lm.hidden(new[:3], cache=expected), **CLOSE)
    with pytest.raises(ValueError, match=r"crop\(3\): expected minus a number of places"):
        cache.crop(3)
    cache.reset()
    assert cache.get_seq_length() == cache.nbytes == 0
    torch.testing.assert_close(read(lm, cache, (4, 6), x), lm.hidden(x), **CLOSE)


def test_gradients_flow_through_a_cache_with_checkpointed_layers_too() -> None:
    """(transformers leaves the cache out where layers compute their activations again: every piece would be alone.)"""
    gradients = []
    for pieces, on in (((10,), False), ((4, 3, 3), False), ((4, 3, 3), True)):
        lm = language(gradient_checkpointing=on).train()
        x = embeddings(lm).requires_grad_()
        read(lm, PastKV(), pieces, x, MASK)[MASK].square().sum().backward()
        gradients.append([x.grad[MASK], *(p.grad for name, p in lm.named_parameters() if "embed" not in name)])
        assert all(layer.gradient_checkpointing == on for layer in lm.model.model.layers)
    for other in gradients[1:]:
        for mine, theirs in zip(gradients[0], other, strict=True):
            torch.testing.assert_close(theirs, mine, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_under_autocast_keys_take_no_more_than_values() -> None:
    """The rotation leaves keys in float32; two bytes a value is what the room's arithmetic says."""
    lm, x = language(), embeddings(language())
    room = model(Case("question_first", ())).kvcache
    cache = PastKV()
    with torch.autocast("cpu", torch.bfloat16):
        found, whole = read(lm, cache, (6, 4), x, MASK), lm.hidden(x, MASK)
    assert all(layer.keys.dtype == layer.values.dtype == torch.bfloat16 for layer in cache.layers)
    room.num_layers, room.num_kv_heads, room.head_dim = lm.num_layers, lm.num_kv_heads, lm.head_dim
    assert cache.nbytes == room.bytes(10, rows=3, bytes_per_value=2)
    exact = lm.hidden(x, MASK)
    assert (found.float() - exact)[MASK].abs().mean() < 0.02 * exact[MASK].abs().mean()
    assert (whole.float() - exact)[MASK].abs().mean() < 0.02 * exact[MASK].abs().mean()


# ----------------------------------------------------------------------------------------------- a cache that forgets


class SinksAndRecent(PastKV):
    """Keeps each row's first ``sinks`` and last ``recent`` valid tokens: as small as a cache that forgets can be."""

    def __init__(self, sinks: int, recent: int):
        super().__init__()
        self.sinks, self.recent = sinks, recent
        self.order_KL: Tensor | None = None  # how many valid tokens of the row came before each kept one

    def keep(self) -> Tensor:
        rows, places = self.mask_KL.shape
        kept = 0 if self.order_KL is None else self.order_KL.shape[1]
        before = torch.zeros(rows, 1, dtype=torch.long) if self.order_KL is None else self.total_K1
        new = self.mask_KL[:, kept:]
        order = before + new.cumsum(1) - 1
        self.total_K1 = before + new.sum(1, keepdim=True)
        order = order if self.order_KL is None else torch.cat([self.order_KL, order], 1)
        stays = self.mask_KL & ((order < self.sinks) | (order >= self.total_K1 - self.recent))
        width = int(stays.sum(1).max())
        place = torch.where(stays, torch.arange(places), places).sort(1).values[:, :width]
        self.order_KL = order.gather(1, place.clamp(max=places - 1))
        return torch.where(place < places, place, -1)


def sight(mask: Tensor, pieces: tuple[int, ...], sinks: int, recent: int) -> Tensor:
    """[K, 1, L, L], from first principles: a token sees, of its own piece, the valid ones up to itself, and of the
    earlier ones what, at the end of each piece since, was among the first ``sinks`` or the last ``recent`` valid."""
    rows, length = mask.shape
    seen = torch.eye(length, dtype=torch.bool).repeat(rows, 1, 1)
    for row in range(rows):
        start, alive = 0, []
        for size in pieces:
            piece = range(start, start + size)
            for i in piece:
                for j in [*alive, *(j for j in piece if j < i and mask[row, j])]:
                    seen[row, i, j] = True
            valid = [j for j in range(start + size) if mask[row, j]]
            now = set(valid[:sinks]) | set(valid[len(valid) - recent :] if recent else [])
            alive = [j for j in [*alive, *(j for j in piece if mask[row, j])] if j in now]
            start += size
    return seen.unsqueeze(1)


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
@pytest.mark.parametrize("pieces", PIECES, ids=str)
@pytest.mark.parametrize("sized", [False, True])
@torch.no_grad()
def test_a_cache_that_forgets_is_attention_with_that_mask(attention: str, pieces: tuple[int, ...], sized: bool) -> None:
    """Positions stay what they were, in every row on its own; and padding costs no place in the cache."""
    lm, sinks, recent = language(attention), 1, 2
    x = embeddings(lm)
    size = torch.arange(30).view(3, 10).remainder(7).add(1).log() if sized else None
    cache = SinksAndRecent(sinks, recent)
    found = read(lm, cache, pieces, x, MASK, None, size)
    seen = sight(MASK, pieces, sinks, recent)
    bias = torch.zeros(3, 10) if size is None else size
    library = language("sdpa").model.model
    expected = library(
        inputs_embeds=x, position_ids=(MASK.cumsum(1) - 1).clamp(min=0),
        attention_mask=torch.where(seen, bias[:, None, None, :], torch.finfo(torch.float32).min),
    ).last_hidden_state  # fmt: skip
    torch.testing.assert_close(found[MASK], expected[MASK], **CLOSE)
    if pieces != (10,):
        assert (lm.hidden(x, MASK, None, None, size) - found)[MASK].abs().max() > 1e-3, "something must be forgotten"
    # What is left: each row's own sinks and recent ones, with their positions and sizes, and memory for no more.
    assert cache.get_seq_length() == 10 and cache.mask_KL.sum(1).tolist() == [3, 3, 3]
    assert cache.nbytes == 2 * lm.num_layers * lm.num_kv_heads * lm.head_dim * 3 * 3 * 4
    for row in range(3):
        valid = MASK[row].nonzero().flatten().tolist()
        left = valid[:sinks] + valid[-recent:]
        assert cache.position_KL[row].tolist() == [valid.index(j) for j in left]
        assert size is None or torch.equal(cache.bias_KL[row], size[row, left])
    with pytest.raises(ValueError, match="cannot take tokens back"):
        cache.crop(-1)


@torch.no_grad()
def test_rows_with_fewer_tokens_than_the_cache_keeps() -> None:
    lm, x = language(), embeddings(language())
    mask = torch.zeros(3, 10, dtype=torch.bool)
    mask[0], mask[1, 3:5], mask[2, 9] = True, True, True
    pieces = (4, 2, 1, 1, 1, 1)
    cache = SinksAndRecent(2, 3)
    found = read(lm, cache, pieces, x, mask)
    expected = (
        language("sdpa")
        .model.model(
            inputs_embeds=x, position_ids=(mask.cumsum(1) - 1).clamp(min=0), attention_mask=sight(mask, pieces, 2, 3)
        )
        .last_hidden_state
    )
    torch.testing.assert_close(found[mask], expected[mask], **CLOSE)
    assert cache.mask_KL.sum(1).tolist() == [5, 2, 1]
    assert cache.next_K1.flatten().tolist() == [10, 2, 1]


class Forgetful(KVCache):
    """A room as the coming ones will be."""

    def new(self) -> PastKV:
        return SinksAndRecent(2, 3)

    def bytes(self, length: int, rows: int = 1, bytes_per_value: int = 4) -> int:
        each = 2 * self.num_layers * self.num_kv_heads * self.head_dim * bytes_per_value
        return each * min(length, 5) * rows


@pytest.mark.parametrize("order", ["question_first", "video_first"])
def test_a_models_cache_is_what_its_answers_come_through(order: str) -> None:
    """Written after each other by a model whose cache forgets: the same as with the mask over the whole, row by row."""
    vlm = model(Case(order, (Variant("connector", "mean"),)), seed=3)
    for parameter in vlm.language.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    rows = [("what color is the ring ?", "red"), ("where ?", "top left")]
    batch = batch_of(clip(1, 4, rows, order, side(vlm)), clip(2, 2, rows[:1], order, side(vlm)), size=side(vlm))
    whole = generate(vlm, chat(), batch, 8)
    vlm.kvcache = Forgetful(**vlm.language.cache_sizes)
    found = generate(vlm, chat(), batch, 8)
    assert found == [written_with_the_mask(vlm, batch, row, 8) for row in range(len(found))]
    assert found != whole, "the cache must forget something that matters, or this sees nothing"


@torch.no_grad()
def written_with_the_mask(vlm, batch: Batch, row: int, length: int) -> str:
    asked = batch.attention_mask_KS & ~batch.loss_mask_KS
    sequence = vlm.sequence(batch._replace(attention_mask_KS=asked, loss_mask_KS=asked & False))
    x, mask = sequence.x_KLD[row : row + 1], sequence.mask_KL[row : row + 1]
    x, mask = x[:, mask[0]], mask[:, mask[0]]
    pieces, ids = (x.shape[1],), []
    for _ in range(length):
        seen = sight(mask, pieces, 2, 3)
        attention = vlm.language.model.model
        h = attention(inputs_embeds=x, attention_mask=seen, position_ids=torch.arange(x.shape[1])[None])[0]
        token = vlm.head.logits(h[:, -1]).argmax(-1)
        if int(token) == chat().end_id:
            break
        ids.append(int(token))
        x, mask = (
            torch.cat([x, vlm.language.embed(token[:, None])], 1),
            torch.nn.functional.pad(mask, (0, 1), value=True),
        )
        pieces = (*pieces, 1)
    return chat().decode(ids)


# ----------------------------------------------------------------------------------------------- layers that differ


class EveryOtherHead(PastKV):
    """As in DuoAttention: one of two key-value heads keeps everything, the other sinks and recent ones: two lengths in
    a layer, so the attention of the two is the cache's own matter."""

    def __init__(self) -> None:
        super().__init__()
        self.short: PastKV = SinksAndRecent(1, 2)

    def extend(self, x_KSD, mask_KS=None, position_KS=None, bias_KS=None):
        self.short.extend(x_KSD, mask_KS, position_KS, bias_KS)
        return super().extend(x_KSD, mask_KS, position_KS, bias_KS)

    def update(self, key_states, value_states, layer_idx, *_, **__):
        whole = super().update(key_states[:, :1], value_states[:, :1], layer_idx)
        short = self.short.update(key_states[:, 1:], value_states[:, 1:], layer_idx)
        return (whole[0], short[0]), (whole[1], short[1])

    def attend(self, layer_idx, query, key, value, how):
        half = query.shape[1] // 2
        whole = super().attend(layer_idx, query[:, :half], key[0], value[0], how)
        return torch.cat([whole, self.short.attend(layer_idx, query[:, half:], key[1], value[1], how)], 1)


@pytest.mark.parametrize("pieces", PIECES, ids=str)
@torch.no_grad()
def test_heads_may_keep_different_things(pieces: tuple[int, ...]) -> None:
    lm, x = language(), embeddings(language())
    cache = EveryOtherHead()
    found = read(lm, cache, pieces, x, MASK)
    whole, short = sight(MASK, (10,), 0, 0), sight(MASK, pieces, 1, 2)
    seen = torch.cat([whole.expand(-1, 2, -1, -1), short.expand(-1, 2, -1, -1)], 1)
    expected = (
        language("sdpa")
        .model.model(inputs_embeds=x, position_ids=(MASK.cumsum(1) - 1).clamp(min=0), attention_mask=seen)
        .last_hidden_state
    )
    torch.testing.assert_close(found[MASK], expected[MASK], **CLOSE)
    assert cache.nbytes + cache.short.nbytes == 2 * lm.num_layers * lm.head_dim * 3 * (10 + 3) * 4
