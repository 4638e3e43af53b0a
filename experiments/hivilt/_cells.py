"""The cells: one encoder, and behind it one small model for each way in which video and question may meet.

All have about the same number of weights behind the encoder (``SIZED``); each is trained for the same steps on the same
clips in the same order. A cell whose examination is there is not run again.
"""

from __future__ import annotations

from pathlib import Path

from hvlm.commands.eval import evaluate as eval_py
from hvlm.evaluation.evaluate import RESULTS
from hvlm.training import chain

ROOT = Path("runs/hivilt")
COMMON = ["trainer.threads=1", "callback.media=0", "trainer.cache_mb=1500", "stage.warmup=0.1", "evaluate=false"]
DATA = ["dataset.set=binding", "dataset.frames=2", "dataset.num_frames=1", "dataset.train_clips=6000"]
DATA += ["dataset.val_clips=8", "dataset.test_clips=600"]
VISION = ["stage=vision", "stage.steps=1000", "stage.rows_per_clip=1", "stage.place_weight=0.1"]
SMALL = ["language.hidden_size=64", "language.intermediate_size=128", "language.num_layers=2"]
TASK = ["stage=task", "head=classify", "connector=patches", "stage.steps=2500", "stage.batch_size=16"]
TASK += ["stage.rows_per_clip=3", "vision.cache_gb=3", *SMALL]
TASK += ["stage.trainable={vision:0,connector:2.0e-3,language:2.0e-3}"]
HIVILT = ["fusion=hivilt", "fusion.write_text=true"]
# {cell: what its command says beside TASK}; sizes are set so that all have about as many weights as hivilt
MAIN: dict[str, list[str]] = {
    "hivilt": HIVILT,
    "none": ["language.num_layers=5", "language.intermediate_size=148"],
    "no_local": [*HIVILT, "fusion.local_fusion=false", "fusion.text_layers=3", "fusion.mlp_ratio=1.3"],
    "no_global": [*HIVILT, "fusion.global_fusion=false", "fusion.mlp_ratio=2.3"],
    "single_stream": ["fusion=single_stream", "fusion.write_text=true", "fusion.layers=3", "fusion.mlp_ratio=2.2"],
    "late": ["fusion=late", "fusion.write_text=true", "fusion.mlp_ratio=4"],
    "cross_encoder": ["fusion=cross_encoder", "fusion.write_text=true", "fusion.layers=2", "fusion.mlp_ratio=2"],
    "latents": ["fusion=latents", "fusion.write_text=true", "fusion.layers=2"],
}
FURTHER: dict[str, list[str]] = {
    **{f"progressive_{n}": ["fusion=progressive", "fusion.write_text=true", f"fusion.stages={n}"] for n in range(1, 5)},
    **{f"pool_{kind}": [*HIVILT, f"fusion.pooling={kind}"] for kind in ("max", "attention", "adaptive")},
}
# Keys that are kept, of the 64 tokens of four frames; 64 keys would be all of them, and that is dense.
FRAMES = ["dataset.frames=8", "dataset.num_frames=4"]
KEYS: dict[str, list[str]] = {
    "frames_hivilt": [*HIVILT, *FRAMES],
    **{
        f"frames_sparse_{k}": ["fusion=sparse", "fusion.write_text=true", f"fusion.top_k={k}", *FRAMES] for k in (4, 16)
    },
}
CELLS = MAIN | KEYS | FURTHER
PAIRS = ["dataset.set=pairs", "dataset.frames=9", "dataset.num_frames=6", "dataset.train_clips=4000"]
PAIRS += ["dataset.val_clips=8", "dataset.test_clips=1000"]
PAIRED = ["stage=task", "head=several", "connector=mean", *HIVILT, *SMALL, "stage.batch_size=48", "vision.cache_gb=3"]
RERANK = [*PAIRED, "head.heads={retrieve:{dim:32},match:{reads:both,candidates:2}}", "stage.steps=800"]
RERANK += ["stage.trainable={vision:0,connector:2.0e-3,language:2.0e-3}"]
# Goes on from there with wrong texts out of the whole training split, which a batch of 48 hardly ever holds.
MINED = [*PAIRED, "head.heads={retrieve:{dim:32},match:{reads:both,candidates:0,mined:4}}", "stage.steps=300"]
MINED += ["stage.trainable={vision:0,connector:1.0e-3,language:1.0e-3}"]
MORE = [*PAIRED, "head.heads={retrieve:{dim:32},match:{reads:both,candidates:0,mined:8}}", "stage.steps=250"]
MORE += ["stage.trainable={vision:0,connector:1.0e-3,language:1.0e-3}"]
TWO_STEPS = {"rerank": RERANK, "rerank_mined": MINED, "rerank_mined_more": MORE}  # each goes on from the one before


def folder(seed: int, cell: str) -> Path:
    return ROOT / f"seed{seed}" / cell


def vision(name: str = "vision", data: list[str] = DATA, batch: int = 64) -> Path:
    """The encoder of all cells and seeds, from stage 0 on the set. Returns its folder."""
    run = ROOT / name
    if not (run / "vision" / "finished.json").exists():
        words = [*VISION, f"stage.batch_size={batch}", *data, *COMMON, "seed=1"]
        chain.run([*words, f"run={run.relative_to('runs')}"])
    return run / "vision"


def train(seed: int, cell: str) -> None:
    """A cell and its examination with the clips and with black frames, unless both are there."""
    run = folder(seed, cell)
    if (run / "eval" / RESULTS).exists():
        return
    given = [*TASK, *DATA, *CELLS[cell], *COMMON, f"seed={seed}", f"init_from={vision()}"]
    chain.run([*given, f"run={run.relative_to('runs')}"])
    eval_py([f"checkpoint={run}", f"out={run / 'eval'}", "trainer.threads=1", "benchmark.blind=true"])


def two_steps(seed: int, cell: str) -> Path:
    """Embeddings and matching learned together on pairs, and both steps of retrieval, unless they are there. Returns
    the run's folder."""
    run = folder(seed, cell)
    if (run / "eval" / RESULTS).exists():
        return run
    before = list(TWO_STEPS)[: list(TWO_STEPS).index(cell)]
    start = two_steps(seed, before[-1]) / "task" if before else vision("vision-pairs", PAIRS, batch=48)
    given = [*TWO_STEPS[cell], *PAIRS, *COMMON, f"seed={seed}", f"init_from={start}"]
    chain.run([*given, f"run={run.relative_to('runs')}"])
    eval_py([f"checkpoint={run}", f"out={run / 'eval'}", "trainer.threads=1", "benchmark.rerank=10"])
    return run
