"""Heads that keep everything beside heads that keep sink and recent: the same as attention with that mask."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from _tiny import Case, Variant, batch_of, chat, clip, model, side
from torch import Tensor
from transformers import DynamicCache

from hvlm import assembly
from hvlm import rebuild as rebuilding
from hvlm.caching import PastKV
from hvlm.checks.tiny import CONFIGS
from hvlm.errors import UserError
from hvlm.evaluation.generate import generate
from hvlm.interop import hf_export
from hvlm.io.head_patterns import write_pattern
from hvlm.kvcache import _heads
from hvlm.kvcache._heads import HeadsKV
from hvlm.kvcache._store import BLOCK, EightBits
from hvlm.kvcache.duo import Duo
from hvlm.kvcache.full import FullCache
from hvlm.kvcache.streaming import Streaming
from hvlm.language.causal import Causal
from hvlm.language.smollm2 import SmolLM2
from hvlm.rebuild import with_own

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
LENGTH = 14
# Rows of different length: padding on the left, inside and on the right, and none; one begins late.
MASK = torch.tensor(
    [list(map(int, row)) for row in ("11011101111011", "00111111111111", "11111111000000", "1" * 14, "00000000011111")]
).bool()
PIECES = [(14,), (1,) * 14, (6, 4, 1, 1, 2), (3, 11)]
# Layers with some, no and only retrieval heads.
HEADS = {
    "mixed": [[True, False, False], [False, False, False], [True, True, True], [True, False, True]],
    "all": [[True] * 3] * 4,
    "none": [[False] * 3] * 4,
}


def language(attention: str = "auto", **changes) -> SmolLM2:
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 48, "num_layers": 4, "num_heads": 6, "num_kv_heads": 3}
    made = SmolLM2(None, vocab_size=20, attention=attention, **sizes, **changes)
    for parameter in made.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return made.eval()


LM, PLAIN = language(), language("sdpa")


def embeddings(rows: int = len(MASK), length: int = LENGTH) -> Tensor:
    return torch.randn(rows, length, LM.dim, generator=torch.Generator().manual_seed(2))


def read(lm, cache: PastKV, pieces: tuple[int, ...], x: Tensor, mask: Tensor | None = None, size=None) -> Tensor:
    states, start = [], 0
    for length in pieces:
        cut = slice(start, start + length)
        states.append(lm.hidden(x[:, cut], *(None if t is None else t[:, cut] for t in (mask, None)), cache,
                                None if size is None else size[:, cut]))  # fmt: skip
        start += length
    return torch.cat(states, 1)


def sight(mask: Tensor, sink: int, recent: int, pieces: tuple[int, ...] | None = None) -> Tensor:
    """[K, 1, L, L] of a streaming head, from first principles. pieces: what is seen within each is everything."""
    seen = torch.eye(mask.shape[1], dtype=torch.bool).repeat(len(mask), 1, 1)
    starts = [sum(pieces[:i]) for i in range(len(pieces))] if pieces else []
    for row, valid_L in enumerate(mask.tolist()):
        valid = [j for j, there in enumerate(valid_L) if there]
        for nth, i in enumerate(valid):
            start = max((s for s in starts if s <= i), default=i)
            long = bool(pieces) and pieces[starts.index(start)] > 1
            before = [j for j in valid if j < start] if long else valid[: nth + 1]
            kept = set(before[:sink]) | set(before[max(0, len(before) - recent) :])
            if long:
                kept |= {j for j in valid if start <= j <= i}
            for j in kept:
                seen[row, i, j] = True
    return seen.unsqueeze(1)


def expected(heads: list[list[bool]], x: Tensor, mask: Tensor, near: Tensor, size: Tensor | None = None) -> Tensor:
    """The library's own attention with each layer's mask spelt out."""
    whole = torch.eye(x.shape[1], dtype=torch.bool) | (mask[:, None] & torch.ones(x.shape[1], x.shape[1]).tril().bool())
    bias = torch.zeros(mask.shape) if size is None else size
    masks = []
    for layer in heads:
        seen = torch.stack([whole if keeps else near[:, 0] for keeps in layer], 1).repeat_interleave(2, 1)
        masks.append(torch.where(seen, bias[:, None, None, :], torch.finfo(torch.float32).min))
    hooks = [
        layer.self_attn.register_forward_pre_hook(
            lambda _, args, kwargs, m=m: (args, kwargs | {"attention_mask": m}), with_kwargs=True
        )
        for layer, m in zip(PLAIN.model.model.layers, masks, strict=True)
    ]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    found = PLAIN.model.model(inputs_embeds=x, position_ids=positions, attention_mask=masks[0]).last_hidden_state
    for hook in hooks:
        hook.remove()
    return found


# ---------------------------------------------------------------------------------------- every position, every way


@pytest.mark.parametrize("pieces", PIECES, ids=str)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize(("sink", "recent"), [(1, 3), (0, 1), (2, 2), (30, 30)])
@torch.no_grad()
def test_reading_is_attention_with_the_mask_at_every_position(pieces, heads, sink, recent, monkeypatch) -> None:
    monkeypatch.setattr(_heads, "QUERIES", 4)
    x, size = embeddings(), torch.arange(5 * LENGTH).view(5, LENGTH).remainder(7).add(1).log()
    for mask, sizes in ((None, None), (MASK, None), (MASK, size), (None, size)):
        there = torch.ones_like(MASK) if mask is None else mask
        cache = HeadsKV(HEADS[heads], sink, recent)
        found = read(LM, cache, pieces, x, mask, sizes)
        right = expected(HEADS[heads], x, there, sight(there, sink, recent), sizes)
        torch.testing.assert_close(found[there], right[there], **CLOSE)
        assert found.isfinite().all() and cache.get_seq_length() == LENGTH
    if heads != "all" and sink < 30:
        assert (LM.hidden(x, MASK) - expected(HEADS[heads], x, MASK, sight(MASK, sink, recent)))[
            MASK
        ].abs().max() > 1e-2


@pytest.mark.parametrize("pieces", PIECES, ids=str)
@torch.no_grad()
def test_by_piece_a_streaming_head_sees_all_of_the_piece(pieces, monkeypatch) -> None:
    monkeypatch.setattr(_heads, "QUERIES", 4)
    x, size = embeddings(), torch.arange(5 * LENGTH).view(5, LENGTH).remainder(7).add(1).log()
    for mask, sizes in ((None, None), (MASK, size)):
        there = torch.ones_like(MASK) if mask is None else mask
        found = read(LM, HeadsKV(HEADS["mixed"], 1, 3, by_piece=True), pieces, x, mask, sizes)
        right = expected(HEADS["mixed"], x, there, sight(there, 1, 3, pieces), sizes)
        torch.testing.assert_close(found[there], right[there], **CLOSE)
    if pieces == (14,):
        torch.testing.assert_close(found[MASK], LM.hidden(x, MASK, None, None, size)[MASK], **CLOSE)


@torch.no_grad()
def test_a_batch_is_its_rows_alone() -> None:
    x = embeddings()
    together = read(LM, HeadsKV(HEADS["mixed"], 1, 3), (6, 5, 1, 1, 1), x, MASK)
    for row, valid in enumerate(MASK):
        alone = read(LM, HeadsKV(HEADS["mixed"], 1, 3), (int(valid.sum()) - 1, 1), x[row : row + 1, valid])
        torch.testing.assert_close(together[row, valid], alone[0], **CLOSE)


@torch.no_grad()
def test_layers_with_a_window_look_back_by_it_in_every_head() -> None:
    def made(attention: str) -> Causal:
        torch.manual_seed(1)
        return Causal(None, source="scratch", config=CONFIGS["language"], vocab_size=20, attention=attention).eval()

    ours, plain = made("auto"), made("eager")
    x = torch.randn(5, LENGTH, ours.dim)
    for heads in ([[True], [False]], [[False], [True]]):
        for mask in (None, MASK):
            there = torch.ones_like(MASK) if mask is None else mask
            order = there.cumsum(1) - 1
            within = ((order[:, :, None] - order[:, None, :]) < ours.windows[0])[:, None]
            eye = torch.eye(LENGTH, dtype=torch.bool)
            by_kind = {}
            for kind, keeps in zip(plain.model.config.layer_types, heads, strict=True):
                seen = sight(there, 1, 6) if not keeps[0] else sight(there, LENGTH, LENGTH)
                seen = (seen & within) | eye if kind == "sliding_attention" else seen
                by_kind[kind] = torch.where(seen, 0.0, torch.finfo(torch.float32).min)
            right = plain.model.model(
                inputs_embeds=x, attention_mask=by_kind, position_ids=order.clamp(min=0)
            ).last_hidden_state
            for pieces in ((6, 4, 1, 1, 2), (14,)):
                found = read(ours, HeadsKV(heads, 1, 6), pieces, x, mask)
                torch.testing.assert_close(found[there], right[there], **CLOSE)
    with pytest.raises(UserError, match="cannot count positions that were given"):
        ours.hidden(x, None, 2 * torch.arange(LENGTH).expand(5, -1), HeadsKV([[False], [False]], 1, 6))


# ----------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("bits", [None, 16, 8])
@torch.no_grad()
def test_bytes_are_the_formula_and_what_is_allocated(bits, monkeypatch) -> None:
    sizes = {"num_layers": 4, "num_kv_heads": 3, "head_dim": 8}
    value = {None: 8 * 4, 16: 8 * 2, 8: 8 + 4}[bits]
    for room, whole in (
        (Duo(retrieval=0.25, sink=2, recent=300, bits=bits, **sizes), 3),
        (Streaming(sink=2, recent=300, bits=bits, **sizes), 0),
        (Duo(retrieval=1, bits=bits, **sizes), 12),
    ):
        cache, x = room.new(), embeddings(2, 700)
        for length, piece in ((7, 7), (260, 253), (261, 1), (700, 439)):
            LM.hidden(x[:, :piece], cache=cache)
            blocks = -(-length // BLOCK) * BLOCK
            places = whole * blocks + (12 - whole) * min(blocks, 302)
            assert cache.nbytes == room.bytes(length, rows=2) == 2 * 2 * places * value


@torch.no_grad()
def test_storage_is_written_in_place() -> None:
    cache, x = HeadsKV(HEADS["mixed"], 1, 3), embeddings(2)
    LM.hidden(x[:, :8], cache=cache)
    before = [part.data_ptr() for store in cache._stores for part in (*store.keys, *store.values)]
    for _ in range(20):
        LM.hidden(x[:, :1], cache=cache)
    assert [part.data_ptr() for store in cache._stores for part in (*store.keys, *store.values)] == before
    with torch.enable_grad(), pytest.raises(ValueError, match="reads without gradients"):
        LM.hidden(x, cache=cache)


@torch.no_grad()
def test_under_autocast_numbers_take_two_bytes_and_blocks_of_inference_may_end_in_between() -> None:
    room, x = Duo(retrieval=0.5, sink=1, recent=3, num_layers=4, num_kv_heads=3, head_dim=8), embeddings()
    cache, exact = room.new(), room.new()
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        first = LM.hidden(x[:, :9], MASK[:, :9], None, cache)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.cat(
            [first, *(LM.hidden(x[:, i : i + 1], MASK[:, i : i + 1], None, cache) for i in range(9, 14))], 1
        )
    assert cache.nbytes == room.bytes(LENGTH, rows=5, bytes_per_value=2)
    right = read(LM, exact, (14,), x, MASK)
    assert (found.float() - right)[MASK].abs().mean() < 0.02 * right[MASK].abs().mean()


@torch.no_grad()
def test_eight_bits_are_off_by_half_a_step_and_pieces_do_not_matter(monkeypatch) -> None:
    monkeypatch.setattr(_heads, "QUERIES", 4)
    kept, values = EightBits(), torch.randn(2, 3, 5, 64) * torch.tensor([1e-3, 1.0, 1e3]).view(1, 3, 1, 1)
    off = (kept.whole(kept.parts(values), torch.float32) - values).abs()
    assert (off <= values.abs().amax(-1, keepdim=True) / 254 * 1.001).all()
    assert kept.whole(kept.parts(torch.zeros(1, 1, 1, 4)), torch.float32).eq(0).all()
    x = embeddings()
    exact = read(LM, HeadsKV(HEADS["mixed"], 1, 3), (14,), x, MASK)
    found = [read(LM, HeadsKV(HEADS["mixed"], 1, 3, bits=8), pieces, x, MASK) for pieces in PIECES]
    for other in found[1:]:
        torch.testing.assert_close(other[MASK], found[0][MASK], **CLOSE)
    assert 0 < (found[0] - exact)[MASK].norm() < 0.02 * exact[MASK].norm()


@torch.no_grad()
def test_rows_copies_and_ends() -> None:
    """What transformers' caches can do to their rows and ends, in the middle of reading."""
    x, new = embeddings(), embeddings(6, 3) - 1

    def after(rows: list[int], change, mask=MASK, pieces=(8, 1, 1)) -> None:
        cache, other = HeadsKV(HEADS["mixed"], 1, 3), HeadsKV(HEADS["mixed"], 1, 3)
        read(LM, cache, pieces, x, mask)
        read(LM, other, pieces, x[rows], None if mask is None else mask[rows])
        change(cache)
        mine, right = (read(LM, c, (1, 2), new[: len(rows)]) for c in (cache, other))
        torch.testing.assert_close(mine, right, **CLOSE)

    for mask in (MASK, None):
        after([2, 0, 0, 1, 4], lambda cache: cache.reorder_cache(torch.tensor([2, 0, 0, 1, 4])), mask)
        after([1, 3], lambda cache: cache.batch_select_indices(torch.tensor([1, 3])), mask)
    cache, other = HeadsKV(HEADS["mixed"], 1, 3), HeadsKV(HEADS["mixed"], 1, 3)
    read(LM, cache, (8,), x[:3], MASK[:3])
    read(LM, other, (8,), x[[0, 0, 1, 1, 2, 2]], MASK[[0, 0, 1, 1, 2, 2]])
    cache.batch_repeat_interleave(2)
    torch.testing.assert_close(read(LM, cache, (2, 1), new), read(LM, other, (2, 1), new), **CLOSE)

    cache = HeadsKV(HEADS["mixed"], 1, 3)
    read(LM, cache, (8,), x, MASK)
    twin, memory = cache.copy(), cache.nbytes
    first = read(LM, twin, (1, 2), new[:5])
    second = read(LM, cache, (1, 2), new[:5])
    third = twin.copy()
    assert torch.equal(first, second) and cache.nbytes == memory and third.get_seq_length() == 11
    read(LM, cache, (3,), new[:5] + 2)
    torch.testing.assert_close(read(LM, twin, (2,), new[:5, :2]), read(LM, third, (1, 1), new[:5, :2]), **CLOSE)

    with pytest.raises(ValueError, match="cannot take tokens back"):
        cache.crop(-1)
    long, other = HeadsKV(HEADS["mixed"], 10, 10), HeadsKV(HEADS["mixed"], 10, 10)
    read(LM, long, (8, 4), x, MASK)
    read(LM, other, (10,), x, MASK)
    long.crop(-2)
    assert long.get_seq_length() == 10 and long.nbytes == other.nbytes
    torch.testing.assert_close(read(LM, long, (1, 2), new[:5]), read(LM, other, (3,), new[:5]), **CLOSE)
    long.reset()
    assert long.nbytes == long.get_seq_length() == 0
    torch.testing.assert_close(read(LM, long, (14,), x), LM.hidden(x), **CLOSE)


# ------------------------------------------------------------------------------------------- transformers' generate


def asked(left: int = 3) -> dict[str, Tensor]:
    """Two prompts of different length, padded on the left."""
    ids = torch.randint(1, 20, (2, 9), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    mask[1, :left] = 0
    return {"input_ids": ids, "attention_mask": mask}


WAYS = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "temperature": 2.0},
    "beams": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
}


@pytest.mark.parametrize("way", WAYS)
@torch.no_grad()
def test_transformers_own_generate_reads_through_it(way: str) -> None:
    """Where nothing is forgotten it writes what its own cache writes; where something is, what the mask says."""
    more = {**WAYS[way], "max_new_tokens": 12, "eos_token_id": None, "pad_token_id": 0}

    def written(cache, **other):
        torch.manual_seed(3)
        return LM.model.generate(**asked(), **{LM._cache: cache}, use_cache=True, **more, **other)

    assert torch.equal(written(HeadsKV(HEADS["mixed"], 10, 20)), written(DynamicCache()))
    cache = HeadsKV(HEADS["mixed"], 1, 3)
    out = written(cache, return_dict_in_generate=True, output_scores=True, output_logits=True)
    assert cache.get_seq_length() == 9 + 11
    assert not torch.equal(out.sequences, written(DynamicCache())), "something must be forgotten, or this sees nothing"
    rows = out.sequences
    mask = torch.ones_like(rows).bool()
    mask[len(rows) // 2 :, :3] = False
    right = expected(HEADS["mixed"], LM.embed(rows), mask, sight(mask, 1, 3))
    logp = LM.logits(right)[:, 8:-1].log_softmax(-1).gather(2, rows[:, 9:, None])[..., 0]
    if way == "beams":
        torch.testing.assert_close(out.sequences_scores, logp.sum(1) / 12, **CLOSE)
    else:
        logits = torch.stack(out.logits, 1).log_softmax(-1).gather(2, rows[:, 9:, None])[..., 0]
        torch.testing.assert_close(logits, logp, **CLOSE)


def test_attention_that_does_not_ask_the_cache_is_refused() -> None:
    with pytest.raises(UserError, match="use language.attention=auto, or kvcache=full"), torch.no_grad():
        PLAIN.hidden(embeddings(), cache=HeadsKV(HEADS["mixed"], 1, 3))
    case = Case(
        "question_first", (Variant("kvcache", "duo"), Variant("language", "smollm2_tiny", (("attention", "sdpa"),)))
    )
    with pytest.raises(UserError, match="kvcache=.*language.attention=auto"):
        assembly.model(case.config, chat())


# ----------------------------------------------------------------------------------------------------- a whole model


def louder(vlm):
    for parameter in vlm.language.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    return vlm


ROWS = [("what color is the ring ?", "red"), ("where ?", "top left")]


@pytest.mark.parametrize("order", ["question_first", "video_first"])
def test_a_model_writes_the_same_in_pieces_of_any_size_and_each_row_alone(order: str) -> None:
    vlm = louder(model(Case(order, (Variant("connector", "patches"),)), seed=3))
    clips = [clip(1, 4, ROWS, order, side(vlm)), clip(2, 2, ROWS[:1], order, side(vlm))]
    batch = batch_of(*clips, size=side(vlm))
    whole = generate(vlm, chat(), batch, 8)
    found = []
    ways = [(None, "mask", None), (3, "mask", None), (1, "chunk", None), (1, "mask", None)]
    for chunk, prefill, bits in [*ways, (None, "mask", 8), (3, "mask", 8)]:
        vlm.kvcache = Streaming(sink=1, recent=3, chunk=chunk, prefill=prefill, bits=bits, **vlm.language.cache_sizes)
        found.append(generate(vlm, chat(), batch, 8))
    assert found[0] == found[1] == found[2] == found[3] != whole and found[4] == found[5]
    alone = [generate(vlm, chat(), batch_of(c._replace(rows=[r]), size=side(vlm)), 8)[0] for c in clips for r in c.rows]
    assert found[0] == alone
    by_piece = Streaming(sink=1, recent=3, prefill="chunk", **vlm.language.cache_sizes)
    with torch.no_grad():
        sequence = vlm.sequence(batch)
        masked = vlm.hidden(sequence, vlm.kvcache.new())
        vlm.kvcache = by_piece
        freely = vlm.hidden(sequence, vlm.kvcache.new())
    assert (masked - freely).abs().max() > 1e-3, "in a single piece the context is seen whole"


@torch.no_grad()
def test_likelihoods_are_read_through_the_cache() -> None:
    """So an answer is as likely as what the cache keeps makes it; training reads whole sequences."""
    vlm = louder(model(Case("video_first", (Variant("connector", "patches"),)), seed=3))
    batch = batch_of(clip(1, 4, ROWS, "video_first", side(vlm)), size=side(vlm))
    plainly = vlm.token_logprobs(batch)
    for kept, same in ((200, True), (3, False)):
        vlm.kvcache = Streaming(sink=1, recent=kept, **vlm.language.cache_sizes)
        found = vlm.token_logprobs(batch, vlm.kvcache.new())
        assert torch.allclose(found, plainly, atol=1e-5) == same
        assert torch.equal(vlm.token_logprobs(batch), plainly)


def test_gates_come_from_the_checkpoint_or_from_a_file(tmp_path: Path, caplog) -> None:
    sizes = {"num_layers": 2, "num_kv_heads": 3, "head_dim": 8}
    gates = torch.tensor([[0.1, 0.9, 0.5], [1.0, 0.2, 0.3]])
    write_pattern(tmp_path / "p", gates, 16, 32)
    room = Duo(pattern=str(tmp_path / "p"), sink=4, recent=8, **sizes)
    with caplog.at_level(logging.INFO):
        room.new()
        room.new()
    assert caplog.text.count("3 of 6 KV heads keep everything, the others 4 first and 8 recent tokens") == 1
    assert "learnt with 16 and 32" in caplog.text and "0 heads stream with the gate" in caplog.text
    assert room.gates.dtype == torch.float32 and torch.equal(room.gates, gates)
    assert room.chosen().heads.tolist() == [[False, True, True], [True, False, False]]
    room.load_state_dict({"gates": torch.zeros(2, 3)})
    assert torch.equal(room.gates, gates), "a file that is named goes before the checkpoint"
    trained = Duo(**sizes)
    trained.load_state_dict({"gates": 1 - gates})
    assert trained.chosen().heads.tolist() == [[True, False, False], [False, True, True]]
    with caplog.at_level(logging.WARNING):
        Duo(**sizes).new()
    assert "the gates were never trained" in caplog.text
    with pytest.raises(
        UserError, match=r"kvcache.pattern=.*2 layers x 3 KV heads, but the language model has 5 layers"
    ):
        Duo(pattern=str(tmp_path / "p"), **{**sizes, "num_layers": 5})


def test_a_model_may_decode_with_another_cache_than_it_was_trained_with(tmp_path: Path, monkeypatch) -> None:
    plain = model(Case("question_first", ()))
    lm = plain.language
    write_pattern(tmp_path, torch.ones(lm.num_layers, lm.num_kv_heads), 4, 8)
    trained = model(Case("question_first", (Variant("kvcache", "duo"),)))
    given = model(Case("question_first", (Variant("kvcache", "duo", (("pattern", str(tmp_path)),)),)))
    assert "kvcache.gates" not in with_own(trained.state_dict(), plain)
    assert torch.equal(with_own(plain.state_dict(), given)["kvcache.gates"], given.kvcache.gates)
    assert "kvcache.gates" not in with_own(plain.state_dict(), trained), "gates that nobody trained are not made up"
    monkeypatch.setattr(rebuilding, "metadata_of", lambda _: {"chat": chat().to_json(), "stage": "sft"})
    monkeypatch.setattr(rebuilding, "load_weights", lambda _: plain.state_dict())
    case = Case("question_first", (Variant("kvcache", "duo"),))
    with pytest.raises(UserError, match="x.ckpt: holds no kvcache.gates: .*stage=duo.*kvcache.pattern=DIR"):
        rebuilding.rebuild("x.ckpt", case.config)


def test_an_exported_model_brings_its_gates_and_reads_through_its_cache(tmp_path: Path) -> None:
    lm = model(Case("question_first", ())).language
    write_pattern(tmp_path / "p", torch.rand(lm.num_layers, lm.num_kv_heads), 1, 3)
    changes = (("pattern", str(tmp_path / "p")), ("sink", 1), ("recent", 3), ("chunk", 5))
    rooms = (Variant("connector", "patches"), Variant("kvcache", "duo", changes))
    case = Case("video_first", rooms)
    vlm = louder(model(case, seed=3))
    batch = batch_of(clip(1, 4, ROWS, "video_first", side(vlm)), size=side(vlm))
    written = generate(vlm, chat(), batch, 8)
    settings = {k: v for k, v in case.config.items() if k not in ("order", "domain")}
    folder = hf_export.save(vlm, chat(), settings, 4, "all", tmp_path / "hf")
    (tmp_path / "p" / "full_attention_heads.tsv").unlink()
    loaded = hf_export.HvlmModel.from_pretrained(folder).vlm
    assert generate(loaded, chat(), batch, 8) == written
    assert torch.equal(loaded.kvcache.chosen().heads, vlm.kvcache.chosen().heads)
    vlm.kvcache = FullCache(**lm.cache_sizes)
    assert generate(vlm, chat(), batch, 8) != written, "something must be forgotten, or this sees nothing"
