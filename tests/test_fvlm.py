"""FoveatedVLM and fVLM's release layout: logits against the published formulas, counts, loading, writing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model, LlamaConfig, LlamaForCausalLM

import hvlm
from hvlm import FoveatedVLM
from hvlm.errors import UserError
from hvlm.image import IMAGE_FRAMES, still, transform

SCALE = 0.14
CLOSE = {"rtol": 0.0, "atol": 1e-5}
OLD = {"q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value", "o_proj": "output.dense"}


class Source(torch.nn.Module):
    """The published model, written once more from its formulas around the libraries' own layers."""

    def __init__(self, dino: Dinov2Config, llm: LlamaConfig, query_dim: int):
        super().__init__()
        self.dino, self.llm = Dinov2Model(dino), LlamaForCausalLM(llm)
        d, w = dino.hidden_size, llm.hidden_size
        self.query_input_proj, self.output_proj = torch.nn.Linear(query_dim, d, bias=False), torch.nn.Linear(d, d)
        self.dino_to_llm, self.llm_to_query = torch.nn.Linear(d, w), torch.nn.Linear(w, query_dim)
        self.q_static, self.q_init = (torch.nn.Parameter(torch.randn(1, query_dim)) for _ in range(2))

    def state(self, old: bool = False) -> dict[str, Tensor]:
        """In the release's layout; ``old``: with the names that the encoder's attention had before transformers 5."""
        state = {}
        for name, tensor in self.state_dict().items():
            if name.startswith(("dino.", "query_input_proj.", "output_proj.")):
                name = f"encoder.{name}"
            for new, before in OLD.items() if old else ():
                name = name.replace(f"attention.{new}.", f"attention.{before}.")
            state[name] = tensor.clone()
        return state

    def read(self, frame: Tensor, query: Tensor) -> Tensor:
        """Visual token [1, width] of one frame [3, H, W] for one query [1, query_dim]: sections 1.2 and 1.3."""
        h = self.dino.embeddings(frame.unsqueeze(0))
        u = self.query_input_proj(query)
        heads = self.dino.config.num_attention_heads
        for layer in self.dino.encoder.layer:
            attention, y = layer.attention, layer.norm1(h)
            k, v, q = attention.k_proj(y)[0], attention.v_proj(y)[0], attention.q_proj(layer.norm1(u))[0]
            d = len(q) // heads
            parts = []
            for i in range(heads):
                at = slice(i * d, (i + 1) * d)
                parts.append((q[at] @ k[:, at].T / d**0.5).softmax(0) @ v[:, at])
            u = u + layer.layer_scale1(attention.o_proj(torch.cat(parts).unsqueeze(0)))
            u = u + layer.layer_scale2(layer.mlp(layer.norm2(u)))
            h = layer(h)
        return SCALE * self.dino_to_llm(self.output_proj(self.dino.layernorm(u)))

    def states(self, tokens: list[Tensor]) -> Tensor:
        return self.llm.model(inputs_embeds=torch.cat(tokens).unsqueeze(0)).last_hidden_state[0]

    def forward(self, frames: Tensor, ids: Tensor, mode: str) -> Tensor:
        """Logits [S, vocabulary] at the text of one clip [T, 3, H, W]."""
        if mode == "autoregressive":
            tokens, query = [], self.q_init
            for frame in frames:
                tokens.append(self.read(frame, query))
                query = self.llm_to_query(self.states(tokens)[-1:])
        else:
            tokens = [self.read(frame, self.q_static) for frame in frames]
            if mode == "coarse_fine":
                h = self.states(tokens)
                queries = [self.q_init, *(self.llm_to_query(h[t : t + 1]) for t in range(len(frames) - 1))]
                tokens = [self.read(frame, query) for frame, query in zip(frames, queries, strict=True)]
        text = self.llm.model.embed_tokens(ids)
        return self.llm.lm_head(self.states([*tokens, text]))[len(frames) :]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Tiny configurations in Hugging Face's own files, with weights beside them."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("hub")
    dino = Dinov2Config(hidden_size=24, num_hidden_layers=3, num_attention_heads=2, patch_size=14, image_size=518)
    llm = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=61, tie_word_embeddings=True, max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0}, head_dim=8,
    )  # fmt: skip
    for name, model in {"dino_name": Dinov2Model(dino), "llm_name": LlamaForCausalLM(llm)}.items():
        model.save_pretrained(root / name)
    return {name: str(root / name) for name in ("dino_name", "llm_name")}


@pytest.fixture(scope="module")
def source(folders: dict[str, str]) -> Source:
    torch.manual_seed(1)
    dino = Dinov2Config.from_pretrained(folders["dino_name"])
    made = Source(dino, LlamaConfig.from_pretrained(folders["llm_name"]), query_dim=20)
    for parameter in made.parameters():  # so that what starts at 0 or 1 takes part, and queries make a difference
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return made.eval()


def model(folders: dict[str, str], **changes) -> FoveatedVLM:
    settings = {"query_dim": 20, "visual_scale": SCALE, "pretrained": False, "image_size": 28} | folders | changes
    return FoveatedVLM(**settings).eval()


def clip(frames: int = 5, seed: int = 3, words: int = 7) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(1, frames, 3, 28, 28, generator=g), torch.randint(0, 61, (1, words), generator=g)


@pytest.mark.parametrize("old", [False, True], ids=["new_names", "old_names"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@torch.no_grad()
def test_a_release_gives_the_logits_of_the_formulas(
    folders: dict[str, str], source: Source, tmp_path: Path, old: bool, suffix: str
) -> None:
    state = source.state(old)
    path = tmp_path / f"fvlm{suffix}"
    if suffix == ".pt":
        torch.save({"model_state_dict": {f"module.{n}": t for n, t in state.items()}, "step": 7}, path)
    else:
        save_file(state, path)
    ours = model(folders)
    report = ours.load_release(path)
    assert report.missing == [] and report.unexpected == [] and "q_static" in report.matched
    frames, ids = clip()
    answers = {}
    for mode in ("coarse_only", "coarse_fine", "autoregressive"):
        answers[mode] = ours(frames, ids, torch.ones_like(ids), mode=mode)["logits"][0]
        torch.testing.assert_close(answers[mode], source(frames[0], ids[0], mode), **CLOSE)
    assert (answers["coarse_fine"] - answers["autoregressive"]).abs().max() > 1e-3
    assert (answers["coarse_fine"] - answers["coarse_only"]).abs().max() > 1e-3


def test_tied_output_layer_may_be_absent_and_what_differs_is_reported(
    folders: dict[str, str], source: Source, tmp_path: Path
) -> None:
    state = source.state()
    short = {n: t for n, t in state.items() if n not in ("llm.lm_head.weight", "q_init")} | {"extra": torch.ones(1)}
    save_file(short, tmp_path / "short.safetensors")
    ours = model(folders)
    report = ours.load_release(tmp_path)
    assert report.missing == ["q_init"] and report.unexpected == ["extra"]
    embedding = ours.language.model.model.embed_tokens.weight
    assert ours.language.model.lm_head.weight is embedding
    torch.testing.assert_close(embedding.data, state["llm.model.embed_tokens.weight"])

    save_file(state | {"llm.lm_head.weight": state["llm.lm_head.weight"] + 1}, tmp_path / "untied.safetensors")
    with pytest.raises(UserError, match="ties the two"):
        ours.load_release(tmp_path / "untied.safetensors")
    with pytest.raises(UserError, match=r"encoder.query_input_proj.weight is \(24, 20\) there and \(24, 16\) here"):
        model(folders, query_dim=16).load_release(tmp_path / "short.safetensors")
    with pytest.raises(UserError, match="expected one file of weights"):
        ours.load_release(tmp_path)
    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="found a; expected fVLM's layout"):
        ours.load_release(tmp_path / "other.safetensors")


def test_a_release_is_written_as_it_was_read(folders: dict[str, str], source: Source, tmp_path: Path) -> None:
    save_file(source.state(), tmp_path / "in.safetensors")
    ours = model(folders)
    ours.load_release(tmp_path / "in.safetensors")
    ours.save_release(tmp_path / "out.safetensors")
    before, after = load_file(tmp_path / "in.safetensors"), load_file(tmp_path / "out.safetensors")
    assert set(before) - set(after) == {"llm.lm_head.weight"} and not set(after) - set(before)
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())


def test_pretrained_weights_come_from_local_folders(folders: dict[str, str]) -> None:
    ours = model(folders, pretrained=True)
    dino, llm = Dinov2Model.from_pretrained(folders["dino_name"]), LlamaForCausalLM.from_pretrained(folders["llm_name"])
    frames, ids = clip()
    with torch.no_grad():
        x = ours.vision.encode(frames, torch.zeros(1, 5), torch.ones(1, 5, dtype=torch.bool))[0].x_BSD
        torch.testing.assert_close(x.view(5, -1, 24), dino(frames[0]).last_hidden_state[:, 1:], **CLOSE)
        logits = ours.language.logits(ours.language.hidden(ours.language.embed(ids)))
        torch.testing.assert_close(logits, llm(ids).logits, **CLOSE)


@torch.no_grad()
def test_loss_counts_the_masked_tokens_and_padding_changes_nothing(folders: dict[str, str], source: Source) -> None:
    ours = model(folders)
    (frames, ids), (short, few) = clip(5), clip(3, seed=4, words=4)
    padded = torch.cat([frames, F.pad(short, (0, 0) * 3 + (0, 2))])
    text = torch.cat([ids, F.pad(few, (0, 3))])
    attention = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    loss_mask = torch.tensor([[1, 1, 0, 1, 1, 1, 1], [1, 0, 1, 1, 1, 1, 1]])
    frame_mask = torch.tensor([[1] * 5, [1, 1, 1, 0, 0]])
    for mode in ("coarse_only", "coarse_fine", "autoregressive"):
        out = ours(padded, text, attention, loss_mask, frame_mask, mode)
        assert out["logits"].shape == (2, 7, 61)
        alone = ours(short, few, torch.ones_like(few), mode=mode)["logits"]
        torch.testing.assert_close(out["logits"][1, :4], alone[0], **CLOSE)
        by_hand = [F.cross_entropy(out["logits"][r, i - 1], text[r, i])
                   for r, i in ((0, 1), (0, 3), (0, 4), (0, 5), (0, 6), (1, 2), (1, 3))]  # fmt: skip
        torch.testing.assert_close(out["loss"], torch.stack(by_hand).mean(), **CLOSE)
        other = text.clone()
        other[1, 4:] = 9  # labels that are masked out
        torch.testing.assert_close(ours(padded, other, attention, loss_mask, frame_mask, mode)["loss"], out["loss"])
    nothing = ours(padded, text, attention, torch.zeros_like(text), frame_mask)
    assert nothing["loss"] == 0
    with pytest.raises(ValueError, match="mode='fine'"):
        ours(padded, text, attention, mode="fine")


@torch.no_grad()
def test_bfloat16_and_a_still_image(folders: dict[str, str]) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    frame = transform(picture, 28)
    assert frame.shape == (3, 28, 28) and hvlm.transform is transform
    frames = still(frame)
    assert frames.shape == (IMAGE_FRAMES, 3, 28, 28) and torch.equal(frames[0], frames[-1])
    ids = torch.randint(0, 61, (1, 5))
    ours = model(folders).to(torch.bfloat16)
    logits = ours(frames.unsqueeze(0).to(torch.bfloat16), ids, torch.ones_like(ids))["logits"]
    assert logits.shape == (1, 5, 61) and logits.isfinite().all()


def test_transform_is_torchvisions() -> None:
    """Resize((h, w)) of a PIL image is PIL's own bilinear resize; ToTensor divides by 255; then mean and deviation."""
    flat = Image.new("RGB", (30, 50), (255, 0, 128))
    expected = (torch.tensor([1.0, 0.0, 128 / 255]) - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor(
        [0.229, 0.224, 0.225]
    )
    torch.testing.assert_close(transform(flat, 28), expected.view(3, 1, 1).expand(3, 28, 28))


@pytest.mark.parametrize(
    ("llm", "count"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 157_310_976),
        (
            "HuggingFaceTB/SmolLM2-360M-Instruct",
            384_912_384,
        ),
        ("HuggingFaceTB/SmolLM2-1.7B-Instruct", 1_735_304_320),
    ],
)
def test_the_published_sizes_count_as_published(llm: str, count: int) -> None:
    with torch.device("meta"):
        made = FoveatedVLM(llm_name=llm, pretrained=False)
    assert sum(p.numel() for p in made.parameters()) == count
    if "135M" in llm:
        assert abs(count / 157.6e6 - 1) < 0.005  # the published figure, rounded
        assert (made.vision.dim, made.language.dim) == (384, 576)


def test_public_names() -> None:
    assert set(hvlm.__all__) == {"FoveatedVLM", "Model", "build", "load", "transform"}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hvlm.nothing
