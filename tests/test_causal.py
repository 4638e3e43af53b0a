"""``language=causal`` over tiny random models of every family, in folders as they are published: states, caches and
text as transformers' own, and what is refused by name."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from _tiny import Case, Variant
from safetensors.torch import load_file, save_file
from test_language import SETTINGS, bpe
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, Dinov2Config, Dinov2Model

import eval as evaluation
from hvlm import assembly
from hvlm.caching import PastKV
from hvlm.config.compose import compose
from hvlm.data.collate import Item, collate
from hvlm.errors import UserError
from hvlm.evaluation import generate as generating
from hvlm.evaluation.generate import generate, generate_ids
from hvlm.io.checkpoint import load_weights
from hvlm.language._architecture import config_from
from hvlm.language.causal import Causal
from hvlm.text.chat import Chat
from hvlm.training.chain import run

TINY = {"vocab_size": 420, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0,
        "max_position_embeddings": 512, "initializer_range": 0.1}  # fmt: skip
TIMES = ("latency_ms", "decode_tokens_per_s")
FACTORS = [1.0, 1.5, 2.0, 3.0]
FAMILIES = {
    "llama": {},
    "llama3": {"model_type": "llama", "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 64}, "tie_word_embeddings": True},
    "qwen2": {"tie_word_embeddings": True},
    "qwen2_sliding": {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
    "qwen3": {"head_dim": 16},
    "smollm3": {"num_hidden_layers": 4, "no_rope_layer_interval": 2, "tie_word_embeddings": True},
    "gemma2": {"head_dim": 16, "sliding_window": 3, "query_pre_attn_scalar": 24, "attn_logit_softcapping": 2.0,
               "final_logit_softcapping": 1.5},
    "gemma3_text": {"head_dim": 16, "sliding_window": 3, "num_hidden_layers": 3, "sliding_window_pattern": 3,
                    "query_pre_attn_scalar": 24},
    "phi3": {"sliding_window": 3},
    "phi3_longrope": {"model_type": "phi3", "rope_scaling": {"type": "longrope", "short_factor": FACTORS,
                      "long_factor": [4.0] * 4}, "original_max_position_embeddings": 64},
    "olmo2": {},
    "mistral": {"sliding_window": 6},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
             "num_key_value_heads": 4},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0, "num_key_value_heads": 4},
    "granite": {"embedding_multiplier": 3.0, "logits_scaling": 4.0, "residual_multiplier": 0.5},
}  # fmt: skip
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
WINDOWS = ("qwen2_sliding", "gemma2", "gemma3_text", "phi3", "mistral")
JINJA = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder a family, with the weights in several files for one of them."""
    made = {}
    tokenizer = bpe()
    tokenizer.chat_template = JINJA
    for name, changes in FAMILIES.items():
        torch.manual_seed(0)
        values = {"model_type": name, **TINY, **changes}
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**values))
        for parameter in model.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        folder = made[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(folder, max_shard_size="20KB" if name == "qwen2" else "5GB")
        tokenizer.save_pretrained(folder)
    assert len(list(made["qwen2"].glob("model-*.safetensors"))) > 2
    return made


@pytest.fixture
def room(folders):
    def load(name: str, **settings) -> Causal:
        return of(folders[name], **settings).eval()

    return load


def of(folder: Path, **settings) -> Causal:
    named = {"source": str(folder), "revision": None, "template": "own", "system": None}
    return Causal(Causal.chat_for(named, lambda: []), **(named | settings))


def theirs(folder: Path, **how):
    how = {"dtype": torch.float32, "attn_implementation": "eager"} | how
    return AutoModelForCausalLM.from_pretrained(folder, **how).eval()


def ids_and_mask(rows: int = 3, length: int = 9) -> tuple[Tensor, Tensor]:
    """Rows of 9, 6 and 4 valid tokens; padding on the left, so that counting agrees with transformers' own places."""
    ids = torch.randint(3, 400, (rows, length), generator=torch.Generator().manual_seed(3))
    return ids, torch.arange(length) >= torch.tensor([0, 3, 5])[:, None]


@pytest.mark.parametrize("name", FAMILIES)
def test_text_is_the_model_alone(name: str, folders, room) -> None:
    """States and logits, in a batch with padding, and piece by piece with a cache."""
    ours, reference = room(name), theirs(folders[name])
    assert ours.model.config._attn_implementation == "hvlm" and type(ours.model) is type(reference)
    ids, mask = ids_and_mask()
    with torch.no_grad():
        position = (mask.cumsum(1) - 1).clamp(min=0)
        found = reference(ids, attention_mask=mask.long(), position_ids=position, output_hidden_states=True)
        states, logits = found.hidden_states[-1][mask], found.logits[mask]
        x = ours.embed(ids)
        whole = ours.hidden(x, mask)
        torch.testing.assert_close(whole[mask], states, **CLOSE)
        torch.testing.assert_close(ours.logits(whole)[mask], logits, **CLOSE)
        torch.testing.assert_close(ours.hidden(x[:1]), whole[:1], **CLOSE)
        cache, pieces = PastKV(), []
        for piece in (slice(0, 5), slice(5, 8), slice(8, 9)):
            pieces.append(ours.hidden(x[:, piece], mask[:, piece], cache=cache))
        torch.testing.assert_close(torch.cat(pieces, 1)[mask], states, **CLOSE)
    assert ours.cache_sizes["num_layers"] == len(cache.layers)
    assert cache.nbytes == 4 * 2 * ours.num_layers * ours.num_kv_heads * ours.head_dim * ids.numel()


def pieces_of(room: Causal, x: Tensor, *rest: Tensor | None) -> Tensor:
    """States read in three pieces, with a cache."""
    cache = PastKV()
    out = []
    for cut in (slice(0, 4), slice(4, 9), slice(9, x.shape[1])):
        mask, position, size = (None if one is None else one[:, cut] for one in rest)
        out.append(room.hidden(x[:, cut], mask, position, cache, size))
    return torch.cat(out, 1)


@pytest.mark.parametrize("attention", ["auto", "eager", "sdpa"])
@pytest.mark.parametrize("name", ["llama", *WINDOWS])
def test_padding_positions_sizes_and_caches_agree(name: str, attention: str, room, folders) -> None:
    """Padding inside rows, positions that leap and sizes: every attention gives what the readable one gives with the
    mask written out, at once and piece by piece."""
    if name == "gemma2" and attention == "sdpa":
        pytest.skip("refused: test_combinations_that_cannot_be_served_are_refused_by_name")
    ours, reference = room(name, attention=attention), theirs(folders[name]).model
    g = torch.Generator().manual_seed(5)
    x = torch.randn(2, 12, ours.dim, generator=g)
    mask = torch.tensor([[1, 1, 0, 1, 1, 1, 0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 0]]).bool()
    position = (2 * mask.cumsum(1)).clamp(min=1) - 1 + torch.tensor([[0], [3]])
    size = torch.randint(1, 30, mask.shape, generator=g).float().log()

    def by_hand(where: Tensor, sizes: Tensor) -> Tensor:
        seen = mask[:, None, :] & torch.ones(12, 12, dtype=torch.bool).tril() | torch.eye(12, dtype=torch.bool)
        config, masks = reference.config, {}
        for window in (None, config.sliding_window if ours.windows else None):
            near = seen if window is None else seen & (where[:, :, None] - where[:, None, :] < window)
            scores = torch.where(near, sizes[:, None, :], torch.finfo(torch.float32).min)[:, None]
            masks["full_attention" if window is None else "sliding_attention"] = scores
        given = masks if hasattr(config, "layer_types") else masks[max(masks)]
        if hasattr(config, "layer_types"):
            given = {kind: masks[kind] for kind in set(config.layer_types)}
        return reference(inputs_embeds=x, attention_mask=given, position_ids=where).last_hidden_state[mask]

    counted = (mask.cumsum(1) - 1).clamp(min=0)
    for where, sizes in ((None, None), (position, None), (None, size), (position, size)):
        with torch.no_grad():
            wanted = by_hand(counted if where is None else where, torch.zeros_like(size) if sizes is None else sizes)
            found = ours.hidden(x, mask, where, log_size_KS=sizes)[mask]
            torch.testing.assert_close(found, wanted, **CLOSE)
            torch.testing.assert_close(pieces_of(ours, x, mask, where, sizes)[mask], wanted, **CLOSE)
    if ours.windows:
        with torch.no_grad():
            assert (ours.hidden(x, mask)[mask] - ours.hidden(x, mask, position)[mask]).abs().max() > 1e-3


@pytest.mark.parametrize("attention", ["auto", "sdpa", "eager"])
def test_a_window_is_of_positions_however_few_places_there_are(attention: str, room) -> None:
    """After a leap longer than the window nothing before it is seen."""
    ours, x = room("mistral", attention=attention), torch.randn(1, 4, 32)
    position = torch.tensor([[0, 1, 8, 9]])
    with torch.no_grad():
        alone = ours.hidden(x[:, 2:], None, position[:, 2:])
        torch.testing.assert_close(ours.hidden(x, None, position)[:, 2:], alone, **CLOSE)
        cache = PastKV()
        ours.hidden(x[:, :2], None, position[:, :2], cache)
        torch.testing.assert_close(ours.hidden(x[:, 2:], None, position[:, 2:], cache), alone, **CLOSE)
        assert (ours.hidden(x)[:, 2:] - alone).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["qwen2", "gemma2"])
def test_gradients_are_those_of_the_model_alone(name: str, folders, room) -> None:
    ours, reference = room(name, gradient_checkpointing=True).train(), theirs(folders[name]).train()
    ids, mask = ids_and_mask()
    weight = torch.randn(3, 9, 420, generator=torch.Generator().manual_seed(6)) * mask.unsqueeze(-1)
    position = (mask.cumsum(1) - 1).clamp(min=0)
    (reference(ids, attention_mask=mask.long(), position_ids=position).logits * weight).sum().backward()
    (ours.logits(ours.hidden(ours.embed(ids), mask)) * weight).sum().backward()
    for (found, a), (wanted, b) in zip(ours.model.named_parameters(), reference.named_parameters(), strict=True):
        assert found == wanted
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_writing_is_transformers_own(name: str, folders) -> None:
    """Greedy, past the windows, several prompts of different lengths at once."""
    cfg = Case("question_first", ()).config
    cfg["language"] = {"_target_": "hvlm.language.causal.Causal", "source": str(folders[name])}
    chat = of(folders[name]).chat
    vlm, reference = assembly.model(cfg, chat).eval(), theirs(folders[name])
    prompts = ["what color is the ring ?", "3", "top left red"]
    rows = [Item(None, None, [(*chat.encode(prompt, ""), {"key": prompt})], uid=prompt) for prompt in prompts]
    found = generate(vlm, chat, collate(rows, pad_id=chat.pad_id, size=(32, 32)), 12)
    wanted = []
    for prompt in prompts:
        ids = torch.tensor([chat.encode_prompt(prompt)[0]])
        how = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": chat.end_id, "pad_token_id": chat.pad_id}
        written = reference.generate(ids, attention_mask=torch.ones_like(ids), **how)[0, ids.shape[1] :]
        wanted.append(chat.decode(written[written != chat.end_id].tolist()))
    assert found == wanted
    # All of this Phi-3's layers look back by three tokens: they see the end of the template and not the prompt.
    assert len(set(found)) > 1 or name == "phi3"


def test_narrow_weights_keep_to_themselves(room, folders) -> None:
    ours, reference = room("gemma2", dtype="bfloat16"), theirs(folders["gemma2"], dtype=torch.bfloat16)
    assert {p.dtype for p in ours.parameters()} == {torch.bfloat16}
    ids, mask = ids_and_mask()
    with torch.no_grad():
        x = ours.embed(ids)
        assert x.dtype == torch.float32
        assert torch.equal(x.bfloat16(), reference.get_input_embeddings()(ids))
        h = ours.hidden(x, mask, log_size_KS=torch.zeros(mask.shape))
        wanted = reference(ids, attention_mask=mask.long(), position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
        assert h.dtype == torch.float32
        torch.testing.assert_close(ours.logits(h)[mask], wanted[mask], rtol=0.1, atol=0.1)
        cache = PastKV()
        torch.testing.assert_close(ours.hidden(x, mask, cache=cache)[mask], h[mask], rtol=0.1, atol=0.1)
    assert cache.nbytes == 2 * 2 * ours.num_layers * ours.num_kv_heads * ours.head_dim * ids.numel()


# ---------------------------------------------------------------------------------------------------- sizes and sources


@pytest.mark.fault(104)
def test_the_words_of_the_field_exist() -> None:
    for word in (
        "qwen",
        "qwen2_5_0_5b",
        "llama3_2_1b",
        "vicuna_7b",
        "gemma3_1b",
        "mistral_7b",
        "phi3_mini",
        "olmo2_1b",
    ):
        assert compose([f"language={word}"])["language"]["_target_"] == "hvlm.language.causal.Causal"


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("qwen2_5_0_5b", 494_032_768), ("qwen3_0_6b", 596_049_920), ("vicuna_7b", 6_738_415_616),
        ("llama3_2_1b", 1_235_814_400), ("gemma2_2b", 2_614_341_888), ("gemma3_1b", 999_885_952),
        ("phi3_mini", 3_821_079_552), ("olmo2_1b", 1_484_916_736), ("mistral_7b", 7_248_023_552),
    ],
)  # fmt: skip
def test_parameter_counts_are_the_published_ones(name: str, count: int) -> None:
    settings = {key: value for key, value in SETTINGS[name].items() if key != "_target_"}
    with torch.device("meta"):
        made = Causal(None, **settings, weights=False)
    assert sum(p.numel() for p in made.parameters()) == count
    assert made.source_config is None and Causal.read_source_config(settings) is None


def test_what_stands_inside_a_config_may_be_written_flat() -> None:
    flat = {"model_type": "llama", "rope_theta": 5e5, "rope_scaling.rope_type": "llama3", "rope_scaling.factor": 8.0,
            "rope_scaling.low_freq_factor": 1.0, "rope_scaling.high_freq_factor": 4.0,
            "rope_scaling.original_max_position_embeddings": 64}  # fmt: skip
    inside = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
              "original_max_position_embeddings": 64}  # fmt: skip
    nested = {"model_type": "llama", "rope_theta": 5e5, "rope_scaling": inside}
    assert config_from(flat, "a").to_dict() == config_from(nested, "b").to_dict()
    local = config_from({"model_type": "gemma3_text", "rope_theta": 1e6, "rope_local_base_freq": 1e4}, "c")
    assert {kind: rope["rope_theta"] for kind, rope in local.rope_parameters.items()} == {
        "full_attention": 1e6, "sliding_attention": 1e4}  # fmt: skip


def test_a_config_of_its_own_needs_no_source_until_weights_are_loaded(folders, tmp_path) -> None:
    config = {"model_type": "qwen2", **{key: value for key, value in TINY.items()}, "tie_word_embeddings": True}
    chat = of(folders["qwen2"]).chat
    made = Causal(chat, str(tmp_path / "absent"), config=config, weights=False)
    assert made.source_config is None
    loaded = Causal(chat, str(folders["qwen2"]), config=config)
    assert {n: p.shape for n, p in made.named_parameters()} == {n: p.shape for n, p in loaded.named_parameters()}
    with pytest.raises(UserError, match=r"num_hidden_layers=2 \(configured: 3\); use language.config=null"):
        Causal(chat, str(folders["qwen2"]), config=config | {"num_hidden_layers": 3})


def test_what_the_source_said_rebuilds_the_model_without_it(folders, tmp_path) -> None:
    settings = {"source": str(folders["phi3_longrope"]), "revision": None, "config": None}
    said = Causal.read_source_config(settings)
    original = of(folders["phi3_longrope"])
    assert original.source_config == said
    assert original.max_positions == 64, "beyond it, the rotation of all places changes at once"
    again = Causal(original.chat, str(tmp_path / "gone"), weights=False, source_config=said)
    again.load_state_dict(original.state_dict())
    x = torch.randn(1, 7, original.dim)
    torch.testing.assert_close(again.hidden(x), original.hidden(x), **CLOSE)


def changed(folder: Path, target: Path, config: dict | None = None, drop: str = "", resize: str = "") -> Path:
    """A copy of the folder with another config or with weights that do not fit it."""
    shutil.copytree(folder, target)
    if config:
        values = json.loads((target / "config.json").read_text())
        (target / "config.json").write_text(json.dumps(values | config))
    weights = load_file(target / "model.safetensors")
    weights = {name: value for name, value in weights.items() if name != drop}
    if resize:
        weights[resize] = weights[resize][:-1].contiguous()
    save_file(weights | ({"model.extra": torch.ones(1)} if drop == "extra" else {}), target / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    return target


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"drop": "model.norm.weight"}, "do not fit the model: model.norm.weight missing"),
        ({"drop": "lm_head.weight"}, "do not fit the model: lm_head.weight missing"),
        ({"drop": "extra"}, "do not fit the model: model.extra left over"),
        ({"resize": "model.norm.weight"}, r"model.norm.weight \(31,\) there, \(32,\) here"),
        ({"config": {"quantization_config": {"quant_method": "gptq"}}}, r"are quantised \(gptq\)"),
        ({"config": {"model_type": "llava_next_of_tomorrow"}}, "model_type=llava_next_of_tomorrow: transformers knows"),
        ({"config": {"vocab_size": 100}}, "language.vocab_size=100: the tokenizer has"),
        ({"config": {"num_attention_heads": 5}}, "not a multiple of the number of attention heads"),
        ({"config": {"model_type": ["llama"]}}, r"model_type=\['llama'\]: transformers knows"),
        ({"config": {"hidden_size": -32}}, "hidden_size=-32: expected 1 or more"),
        ({"config": {"vocab_size": "420"}}, "'vocab_size' expected int"),
        ({"config": {"vocab_size": 2**50}}, "cannot be loaded: .*memory"),
        ({"config": {"hidden_act": "of_tomorrow"}}, "cannot be loaded: KeyError 'of_tomorrow'"),
        ({"config": {"hidden_size.of": 3}}, "hidden_size is 32 already"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused_by_name(how: dict, said: str, folders, tmp_path) -> None:
    with pytest.raises(UserError, match=said) as error:
        of(changed(folders["llama"], tmp_path / "changed", **how))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["mistral", "gemma2"])
def test_a_window_of_nothing_is_refused(name: str, folders, tmp_path) -> None:
    with pytest.raises(UserError, match=r"language.source: sliding_window=0: expected 1 or more"):
        of(changed(folders[name], tmp_path / "changed", {"sliding_window": 0}))


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("model.safetensors", b"", "cannot be loaded: Error while deserializing header"),
        ("pytorch_model.bin", b"no weights", "cannot be loaded: what torch.save wrote is damaged, or holds more than"),
        ("generation_config.json", b"{", "generation_config.json cannot be read"),
        ("generation_config.json", b"[]", "generation_config.json holds no mapping"),
        ("generation_config.json", b'{"eos_token_id": ["</s>"]}', r"eos_token_id=\['</s>'\]: expected a token's id"),
        ("chat_template.jinja", b"{{ 1 / 0 }}", "cannot write this conversation .division by zero"),
        (
            "chat_template.jinja",
            b"{% for i in range(1000000000) %}{% endfor %}",
            "cannot write this conversation .Range too",
        ),
        ("chat_template.jinja", b"{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "recursion depth"),
        ("chat_template.jinja", b"{{ cycler.__init__.__globals__.os.getcwd() }}", "'__init__' of 'type' .* is unsafe"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(file: str, content: bytes, said: str, folders, tmp_path) -> None:
    folder = changed(folders["llama"], tmp_path / "changed")
    if file == "pytorch_model.bin":
        (folder / "model.safetensors").unlink()
    (folder / file).write_bytes(content)
    with pytest.raises(UserError, match=said) as error:
        of(folder)
    assert "\n" not in str(error.value)


def test_an_answer_ends_at_each_of_the_models_ends(folders, tmp_path) -> None:
    """Those of generation_config.json beside the template's own, as transformers' generate has them."""
    prompt, cfg = "what color is the ring ?", Case("question_first", ()).config

    def written(folder: Path) -> tuple[list[int], Causal]:
        cfg["language"] = {"_target_": "hvlm.language.causal.Causal", "source": str(folder)}
        chat = of(folder).chat
        row = Item(None, None, [(*chat.encode(prompt, ""), {"key": prompt})], uid=prompt)
        vlm = assembly.model(cfg, chat).eval()
        return generate_ids(vlm, chat, collate([row], pad_id=chat.pad_id, size=(32, 32)), 12)[0].tolist(), chat

    freely, _ = written(folders["llama"])
    stop = next(index for index in freely[2:] if index > 2)
    folder = changed(folders["llama"], tmp_path / "ends")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [stop, 10**6]}))
    shorter, chat = written(folder)
    assert shorter == freely[: freely.index(stop) + 1] and len(shorter) < len(freely)
    ids = torch.tensor([chat.encode_prompt(prompt)[0]])
    wanted = theirs(folder).generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    assert wanted[0, ids.shape[1] :].tolist() == shorter
    assert (
        Chat.from_json(chat.to_json()).end_ids == chat.end_ids == {2, stop} and Chat.from_json(chat.to_json()) == chat
    )
    (folder / "generation_config.json").unlink()
    (folder / "config.json").write_text(
        json.dumps(json.loads((folder / "config.json").read_text()) | {"eos_token_id": 7})
    )
    assert of(folder).chat.end_ids == {2, 7}


def test_a_tied_output_may_be_stored_or_not(folders, tmp_path) -> None:
    folder = changed(folders["llama3"], tmp_path / "stored")
    weights = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in weights
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    x = torch.randn(2, 32)
    torch.testing.assert_close(of(folder).logits(x), of(folders["llama3"]).logits(x))


def test_weights_of_torch_save_are_read_where_there_are_no_others(folders, tmp_path) -> None:
    shutil.copytree(folders["llama"], tmp_path / "old")
    torch.save(load_file(tmp_path / "old/model.safetensors"), tmp_path / "old/pytorch_model.bin")
    (tmp_path / "old/model.safetensors").unlink()
    x = torch.randn(1, 5, 32)
    torch.testing.assert_close(of(tmp_path / "old").hidden(x), of(folders["llama"]).hidden(x))
    (tmp_path / "old/pytorch_model.bin").unlink()
    with pytest.raises(UserError, match=r"has no model\*.safetensors"):
        of(tmp_path / "old")
    (tmp_path / "old/tokenizer.json").unlink()
    with pytest.raises(UserError, match="has no tokenizer.json, tokenizer.model"):
        of(tmp_path / "old")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "mamba"}, "mamba cannot be served: its layers keep something else than keys and values"),
        ({"model_type": "jamba"}, "jamba cannot be served: its layers keep something else"),
        ({"model_type": "t5"}, "t5 is an encoder-decoder"),
        ({"model_type": "bert"}, "bert cannot be served: its tokens see later ones"),
        ({"model_type": "gemma3"}, "gemma3 is a multi-modal wrapper"),
        ({"model_type": "qwen2_vl"}, "qwen2_vl is a multi-modal wrapper"),
        ({"model_type": "clip_vision_model"}, "clip_vision_model is no causal language model"),
        ({"model_type": "bloom"}, "bloom cannot be served: its attention cannot be given masks"),
        ({"model_type": "deepseek_v3"}, "deepseek_v3 cannot be served: keys and values are compressed"),
        ({"model_type": "llama4_text"}, "chunked_attention"),
        ({"hidden_size": 32}, "model_type=None"),
        ({"model_type": "llama", "attention_dropout": 0.1}, "use language.attention=sdpa"),
        ({"model_type": "gpt_oss"}, "gpt_oss has attention sinks"),
        ({"model_type": "nemotron", **TINY}, "do not hand on what ours needs"),
        ({"model_type": "nemotron", "num_key_value_heads": None}, "language.config: nemotron cannot be built: "),
    ],
)
def test_models_that_cannot_be_served_are_refused_by_name(config: dict, said: str) -> None:
    with pytest.raises(UserError, match=said) as error, torch.device("meta"):
        Causal(None, config=config, vocab_size=420)
    assert "\n" not in str(error.value)


def test_combinations_that_cannot_be_served_are_refused_by_name(folders) -> None:
    with pytest.raises(UserError, match=r"language.attention=sdpa: gemma2 caps attention scores"):
        of(folders["gemma2"], attention="sdpa")
    with pytest.raises(UserError, match="language.source=scratch: without language.config"):
        Causal(None, vocab_size=9)
    with pytest.raises(UserError, match="language.vocab_size=null"):
        Causal(None, config={"model_type": "llama"})
    with pytest.raises(UserError, match="language.vocab_size=7: the model of .* has 420"):
        of(folders["llama"], vocab_size=7)
    with pytest.raises(UserError, match="use language.template=tiny|but language.template=tiny"):
        Causal.chat_for({"source": "scratch", "template": "own", "system": None}, lambda: ["a"])


def test_quantised_weights_need_their_packages(monkeypatch, folders) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="language.quantize=4bit: bitsandbytes and accelerate not installed"):
        of(folders["llama"], quantize="4bit")


def stage_of(vlm, trainable: dict[str, float]):
    settings = Variant("stage", "sft").settings | {"trainable": trainable, "steps": 2, "batch_size": 2}
    return assembly.room(settings, model=vlm)


def test_what_is_fixed_is_not_trained(folders) -> None:
    cfg = Case("question_first", ()).config
    cfg["language"] = {"_target_": "hvlm.language.causal.Causal", "source": str(folders["llama"])}
    vlm = assembly.model(cfg, of(folders["llama"]).chat)
    vlm.language.fixed = "language.quantize=4bit"  # as with the packages that pack weights
    stage = stage_of(vlm, {"connector": 1e-3, "language": 1e-3})
    with pytest.raises(ValueError, match="language.quantize=4bit: these weights cannot train; .*language:0"):
        stage.freeze()
    stage_of(vlm, {"connector": 1e-3}).freeze()


@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
def test_quantised_weights_are_their_source(quantize: str, folders, room) -> None:
    """Close to the full ones, in no checkpoint, and there again without one; gradients go through to what is read."""
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("accelerate")
    packed, full = room("llama", quantize=quantize), room("llama")
    kinds = {type(module).__name__ for module in packed.modules()}
    assert ("Linear8bitLt" if quantize == "8bit" else "Linear4bit") in kinds
    x = torch.randn(2, 7, packed.dim, requires_grad=True)
    h, wanted = packed.hidden(x), full.hidden(x)
    assert 0 < (h - wanted).abs().mean() < 0.3 * wanted.abs().mean()
    h.square().sum().backward()
    assert x.grad.abs().sum() > 0 and not packed.state_dict()
    torch.testing.assert_close(room("llama", quantize=quantize, weights=False).hidden(x), h)


# ------------------------------------------------------------------------------------------------------- a whole chain


def test_a_chain_on_another_family(folders, needles: list[str], tmp_path: Path, monkeypatch) -> None:
    """A pretrained encoder, so align, sft and dpo; then the sources are gone, and the checkpoint answers."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folders["qwen2_sliding"], tmp_path / "qwen")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(tmp_path / "dino")
    rooms = ["language=causal", "language.source=qwen", "vision=dinov2", "vision.source=dino", "vision.image_size=28"]
    small = [o for o in needles if not o.startswith(("language.", "vision."))]
    how = [
        "run=other",
        "stage.steps=2",
        "stage.batch_size=2",
        "benchmark.limit=2",
        "dataset.max_tokens=400",
        *rooms,
        *small,
    ]
    done = run(["experiment=demo", *how])
    assert list(done.stages) == ["align", "sft", "dpo"] and done.records
    before, after = (load_weights(f"runs/other/{stage}") for stage in ("align", "sft"))
    moved = [name for name in after if name.startswith("language.") and not torch.equal(before[name], after[name])]
    assert "language.model.model.layers.0.self_attn.q_proj.bias" in moved and "language.model.lm_head.weight" in moved
    shutil.rmtree("qwen")
    shutil.rmtree("dino")
    records = evaluation.evaluate(["checkpoint=runs/other", "out=again"])
    found, wanted = (
        {(r["variant"], r["metric"]): r["value"] for r in some if r["metric"] not in TIMES}
        for some in (records, done.records)
    )
    assert found == {key: value for key, value in wanted.items() if key in found} and len(found) > 4


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_an_answer_ends_where_learned_positions_do(name: str, folders, tmp_path, caplog) -> None:
    """No place beyond them has an embedding; rotary positions go on."""
    cfg = Case("question_first", ()).config
    cfg["language"] = {"_target_": "hvlm.language.causal.Causal", "source": str(folders[name])}
    chat = of(folders[name]).chat
    vlm = assembly.model(cfg, chat).eval()
    assert vlm.language.learned_positions and not of(folders["llama"]).learned_positions
    row = Item(None, None, [(*chat.encode("what color is the ring ?", ""), {})], uid="a")
    batch = collate([row], pad_id=chat.pad_id, size=(32, 32))
    read, most = int(batch.attention_mask_KS.sum()), vlm.language.max_positions
    generating._warn_of_end.cache_clear()
    ends = torch.tensor(sorted(chat.end_ids))
    vlm.head.logits = lambda h, given=vlm.head.logits: given(h).index_fill(1, ends, -1e9)

    def written(count: int) -> int:
        return generate_ids(vlm, chat, batch, count).shape[1]

    assert written(3) == 3 and not caplog.text
    full = written(most + 9)
    assert most - read < full <= most and f"learned {most} positions" in caplog.text
    with pytest.raises(UserError, match=f"learned {most} positions") as error:
        vlm.language.hidden(torch.zeros(1, most + 1, vlm.language.dim), cache=PastKV())
    assert "\n" not in str(error.value)
