"""``language=causal`` over tiny random models of every family, in folders as they are published: states, caches and
text as transformers' own, and what is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_language import SYSTEM, bpe
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from hvlm.caching import PastKV
from hvlm.language.causal import Causal

TINY = {"vocab_size": 420, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0,
        "max_position_embeddings": 512, "initializer_range": 0.1}  # fmt: skip
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
    "mistral": {"sliding_window": 3},
    "granite": {"embedding_multiplier": 3.0, "logits_scaling": 4.0, "residual_multiplier": 0.5},
}  # fmt: skip
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
MODES = {"auto": 0, "sdpa": 1, "eager": 2}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder a family, with the weights in several files for one of them."""
    made = {}
    for name, changes in FAMILIES.items():
        torch.manual_seed(0)
        values = {"model_type": name, **TINY, **changes}
        config = AutoConfig.for_model(**values)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        folder = made[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(folder, max_shard_size="20KB" if name == "qwen2" else "5GB")
        bpe().save_pretrained(folder)
    return made


@pytest.fixture
def room(folders):
    def load(name: str, **settings) -> Causal:
        found = {"source": str(folders[name]), "revision": None, "template": "chatml", "system": SYSTEM}
        return Causal(Causal.chat_for(found, lambda: []), **(found | settings)).eval()

    return load


def theirs(folder: Path):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def ids_and_mask(rows: int = 3, length: int = 9) -> tuple[Tensor, Tensor]:
    """Rows of 9, 6 and 4 valid tokens; padding on the left, so that counting agrees with transformers' own places."""
    ids = torch.randint(3, 400, (rows, length), generator=torch.Generator().manual_seed(3))
    return ids, torch.arange(length) >= torch.tensor([0, 3, 5])[:, None]


@pytest.mark.parametrize("name", FAMILIES)
def test_text_is_the_model_alone(name: str, folders, room) -> None:
    """States and logits, in a batch with padding, and piece by piece with a cache."""
    ours, reference = room(name), theirs(folders[name])
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
