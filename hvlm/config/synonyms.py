"""Other programs' words for what is called differently here: the answer to somebody who types them.

Lightning, transformers and the papers of the field have names of their own for what a setting or a room does. Whoever
types one is told ours. What is not in these tables is answered by likeness (``hvlm.config.schema.did_you_mean``).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple


class Answer(NamedTuple):
    """What is typed here instead: keys (``stage.steps``) or whole overrides (``debug=fast_dev_run``), and a remark."""

    ours: tuple[str, ...] = ()
    remark: str = ""


RATES = Answer(("stage.trainable={connector: 1e-3}",), "each part has a learning rate of its own")
STEPS = Answer(("stage.steps",), "a stage counts optimiser steps, not epochs")
BATCH = Answer(("stage.batch_size",))
ACCUMULATE = Answer(("trainer.accumulate",), "in how many parts a batch is computed; the batch itself stays")
ROOMS_OF_A_MODEL = Answer(("language=smollm2_tiny", "vision=convvit", "connector=foveated"), "each part is a word")
KEPT = Answer(("trainer.checkpoint_every",), "a run always saves; callback.keep says how many stay")
RESUME = Answer(("resume=must",), "the same command continues by itself; other weights to start from: init_from=")
START = Answer(("init_from", "checkpoint"), "weights to train from; what eval.py reads")
FOLDER = Answer(("run",), "the folder is runs/<run>; eval.py writes to out=")
VALIDATE = Answer(("trainer.val_every",), "in optimiser steps")
LOG = Answer(("trainer.log_every",), "in optimiser steps")
PRECISION = Answer(("trainer.precision",), "auto, 32-true, bf16-mixed or 16-mixed")
DEVICES = Answer(("trainer.devices",), "with trainer=ddp or fsdp for several, trainer=gpu for one GPU")
PROFILE = Answer(("trainer.profile",), "samples_per_s is always logged, and task=cost measures an answer")

# The last part of a dotted key that is not there -> what is meant.
KEYS: dict[str, Answer] = {
    # Lightning's Trainer
    "fast_dev_run": Answer(("debug=fast_dev_run",)),
    "limit_train_batches": Answer(("trainer.max_steps",), "a stage is one pass of stage.steps batches"),
    "limit_test_batches": Answer(("benchmark.limit",), "in clips"),
    "limit_predict_batches": Answer(("benchmark.limit",), "in clips"),
    "log_every_n_steps": LOG,
    "max_epochs": STEPS,
    "min_epochs": STEPS,
    "min_steps": STEPS,
    "val_check_interval": VALIDATE,
    "check_val_every_n_epoch": VALIDATE,
    "accumulate_grad_batches": ACCUMULATE,
    "gradient_clip": Answer(("trainer.gradient_clip_val",)),
    "enable_checkpointing": KEPT,
    "enable_progress_bar": Answer(("callback.progress",)),
    "enable_model_summary": Answer((), "the parts, their sizes and rates are the first lines of every stage"),
    "num_sanity_val_steps": Answer((), "nothing is validated before the first step; every setting is checked instead"),
    "default_root_dir": FOLDER,
    "callbacks": Answer(("callback.progress", "callback.media", "callback.keep")),
    "profiler": PROFILE,
    "profile": PROFILE,
    "torch_compile": Answer(("trainer.compile",), "a mapping of parts, e.g. {vision:true}"),
    "activation_checkpointing": Answer(("trainer.checkpoint_activations",), "a mapping of parts, e.g. {language:true}"),
    "benchmark": Answer((), "torch chooses its kernels by itself; trainer.deterministic=true fixes them"),
    "cudnn_benchmark": Answer((), "torch chooses its kernels by itself; trainer.deterministic=true fixes them"),
    "seed_everything": Answer(("seed",)),
    "ckpt_path": START,
    "sync_batchnorm": Answer((), "no room has batch norm over processes"),
    "use_distributed_sampler": Answer((), "every process reads its own share already"),
    "inference_mode": Answer((), "evaluation never keeps gradients"),
    "auto_lr_find": RATES,
    "auto_scale_batch_size": BATCH,
    "gpus": DEVICES,
    "num_gpus": DEVICES,
    "n_gpu": DEVICES,
    "num_processes": DEVICES,
    "nproc_per_node": DEVICES,
    "device": Answer(("trainer.accelerator",)),
    "cuda": Answer(("trainer=gpu",)),
    # transformers' TrainingArguments, and what scripts usually call things
    "lr": RATES,
    "learning_rate": RATES,
    "optimizer": Answer(("stage.trainable={connector: 1e-3}", "stage.schedule"), "the optimiser is AdamW"),
    "optim": Answer(("stage.trainable={connector: 1e-3}", "stage.schedule"), "the optimiser is AdamW"),
    "scheduler": Answer(("stage.schedule",)),
    "lr_scheduler": Answer(("stage.schedule",)),
    "lr_scheduler_type": Answer(("stage.schedule",)),
    "warmup_ratio": Answer(("stage.warmup",), "a share of the steps"),
    "warmup_steps": Answer(("stage.warmup",), "a share of the steps"),
    "epochs": STEPS,
    "num_epochs": STEPS,
    "num_train_epochs": STEPS,
    "num_steps": STEPS,
    "train_steps": STEPS,
    "iterations": STEPS,
    "max_iters": STEPS,
    "batchsize": BATCH,
    "bs": BATCH,
    "train_batch_size": BATCH,
    "per_device_train_batch_size": Answer(("stage.batch_size",), "over all processes"),
    "eval_batch_size": Answer(("benchmark.batch_size",)),
    "per_device_eval_batch_size": Answer(("benchmark.batch_size",)),
    "gradient_accumulation_steps": ACCUMULATE,
    "grad_accum": ACCUMULATE,
    "max_grad_norm": Answer(("trainer.gradient_clip_val",)),
    "grad_clip": Answer(("trainer.gradient_clip_val",)),
    "clip_grad": Answer(("trainer.gradient_clip_val",)),
    "save_steps": KEPT,
    "save_total_limit": Answer(("callback.keep",)),
    "save_every": KEPT,
    "logging_steps": LOG,
    "eval_steps": VALIDATE,
    "eval_every": VALIDATE,
    "bf16": PRECISION,
    "fp16": PRECISION,
    "amp": PRECISION,
    "dtype": PRECISION,
    "torch_dtype": PRECISION,
    "dataloader_num_workers": Answer(("trainer.num_workers",)),
    "workers": Answer(("trainer.num_workers",)),
    "output_dir": FOLDER,
    "save_dir": FOLDER,
    "run_name": FOLDER,
    "name": FOLDER,
    "exp_name": FOLDER,
    "resume_from_checkpoint": RESUME,
    "resume_from": RESUME,
    "ckpt": START,
    "weights": START,
    "pretrained": START,
    "model": ROOMS_OF_A_MODEL,
    "model_name": ROOMS_OF_A_MODEL,
    "model_name_or_path": ROOMS_OF_A_MODEL,
    "llm": Answer(("language=smollm2_tiny",), "or another word of the group language"),
    "lm": Answer(("language=smollm2_tiny",), "or another word of the group language"),
    "encoder": Answer(("vision=convvit",), "or another word of the group vision"),
    "vision_tower": Answer(("vision=convvit",), "or another word of the group vision"),
    "backbone": Answer(("vision=convvit",), "or another word of the group vision"),
    "projector": Answer(("connector.projector",)),
    "mm_projector_type": Answer(("connector.projector",)),
    "data": Answer(("dataset=shards dataset.path=FOLDER",)),
    "data_path": Answer(("dataset=shards dataset.path=FOLDER",)),
    "data_dir": Answer(("dataset=shards dataset.path=FOLDER",)),
    "train_data": Answer(("dataset=shards dataset.path=FOLDER",)),
    "eval": Answer(("evaluate", "benchmark")),
    "mode": Answer(("task",), "eval.py has benchmark, generate, ask, look, cost, score, export, gguf, release, gather"),
    "wandb": Answer(("logger=wandb",)),
    "report_to": Answer(("logger=wandb",)),
    "use_wandb": Answer(("logger=wandb",)),
    "debug_mode": Answer(("debug=fast_dev_run",)),
    "max_frames": Answer(("dataset.num_frames",)),
    "n_frames": Answer(("dataset.num_frames",)),
    "max_length": Answer(("dataset.max_tokens",)),
    "max_seq_len": Answer(("dataset.max_tokens",)),
    "model_max_length": Answer(("dataset.max_tokens",)),
    "question": Answer(("ask.question",), "with eval.py task=ask"),
    "video": Answer(("ask.video",), "with eval.py task=ask"),
    "prompt": Answer(("ask.question",), "with eval.py task=ask"),
}  # fmt: skip

# Last part of a key -> {a value that it does not take: the one that is meant}.
VALUES: dict[str, dict[str, str]] = {
    "precision": {
        **dict.fromkeys(("32", "fp32", "float32", "full", "no", "64", "64-true"), "32-true"),
        **dict.fromkeys(("bf16", "bfloat16", "bf16-true", "bf16_mixed", "amp", "mixed"), "bf16-mixed"),
        **dict.fromkeys(("16", "fp16", "float16", "half", "16-true", "16_mixed"), "16-mixed"),
    },
    "strategy": {
        **dict.fromkeys(("deepspeed", "zero", "fsdp2", "sharded", "model_parallel"), "fsdp"),
        **dict.fromkeys(("deepspeed_stage_2", "deepspeed_stage_3", "fsdp_cpu_offload"), "fsdp"),
        **dict.fromkeys(("dp", "ddp_spawn", "ddp_fork", "horovod"), "ddp_find_unused_parameters_true"),
    },
    "accelerator": dict.fromkeys(("cuda", "mps", "nvidia"), "gpu"),
    "devices": dict.fromkeys(("-1", "all"), "auto"),
    "schedule": {"linear": "cosine", "wsd": "converging"},
    "name": {"tensorboard": "csv", "wb": "wandb"},
    "task": {
        "eval": "benchmark", "evaluate": "benchmark", "test": "benchmark", "chat": "ask", "infer": "ask",
        "inference": "ask", "predict": "generate", "answer": "ask", "visualize": "look", "vis": "look",
        "attention": "look", "save": "export", "convert": "export", "flops": "cost", "profile": "cost",
        "throughput": "speed",
    },
}  # fmt: skip

# Group -> {word of the field: what serves here}. What names a file of another group or more than one override says it
# whole; a name alone is one of the group's own.
WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "language": {
        **dict.fromkeys(("qwen", "qwen2", "qwen2.5", "qwen2_5", "qwen3", "llama", "llama2", "llama3"), ("causal",)),
        **dict.fromkeys(("vicuna", "mistral", "gemma", "gemma2", "gemma3", "phi3", "olmo2"), ("causal",)),
        **dict.fromkeys(("smollm3", "hf", "auto", "transformers", "automodel", "llm", "gpt2"), ("causal",)),
        **dict.fromkeys(("smollm", "smollm2", "tiny", "scratch"), ("smollm2_tiny",)),
    },
    "vision": {
        **dict.fromkeys(("siglip", "siglip2"), ("siglip2",)),
        "so400m": ("siglip_so400m",),
        **dict.fromkeys(("openclip", "clip_vit", "eva", "eva_clip", "vit_l"), ("clip",)),
        **dict.fromkeys(("dino", "dinov2", "dino_v2"), ("dinov2_small",)),
        **dict.fromkeys(("vit", "scratch", "convnext", "resnet", "cnn"), ("convvit",)),
    },
    "connector": {
        **dict.fromkeys(("mlp", "linear", "llava"), ("connector=patches connector.projector=mlp",)),
        **dict.fromkeys(("projector", "dense", "all", "identity", "none"), ("patches",)),
        **dict.fromkeys(("pool", "avg", "average", "meanpool", "spatial_pool"), ("mean",)),
        **dict.fromkeys(("qformer", "q_former", "resampler", "perceiver", "fvlm", "gaze"), ("foveated",)),
        **dict.fromkeys(("pixel_shuffle", "pixelshuffle"), ("connector=patches connector.shuffle=2",)),
    },
    "merger": {
        **dict.fromkeys(("token_merging", "merge", "bipartite"), ("tome",)),
        **dict.fromkeys(("prune", "drop", "fastv", "attention"), ("saliency",)),
        **dict.fromkeys(("uniform", "subsample"), ("stride",)),
    },
    "attention": {
        **dict.fromkeys(("longformer", "bigbird", "sliding_window", "window", "local", "global"), ("local_global",)),
        **dict.fromkeys(("flash", "sdpa", "self", "dense"), ("full",)),
        **dict.fromkeys(("linear", "favor", "kernel"), ("performer",)),
        **dict.fromkeys(("ssm", "s6", "s4"), ("mamba",)),
        **dict.fromkeys(("ssd",), ("mamba2",)),
        **dict.fromkeys(("sparse", "dilated"), ("strided",)),
        **dict.fromkeys(("memory", "xl", "recurrent"), ("cross_memory",)),
    },
    "dataset": {
        **dict.fromkeys(("webdataset", "wds", "tar", "custom", "own", "folder", "files", "local"), ("shards",)),
        **dict.fromkeys(("llava", "sharegpt", "json", "jsonl", "csv", "parquet", "hf", "huggingface"), ("shards",)),
        **dict.fromkeys(("demo", "synthetic", "toy"), ("needles",)),
        **dict.fromkeys(("mix", "blend", "interleave", "concat", "multi"), ("mixture",)),
        **dict.fromkeys(("vnbench", "niah", "needle"), ("dataset=needles dataset.set=vnbench",)),
        **dict.fromkeys(("passkey", "passkey_retrieval", "ruler"), ("passkeys",)),
    },
    "benchmark": {
        **dict.fromkeys(("niah", "videoniah", "haystack", "vn_bench"), ("vnbench",)),
        **dict.fromkeys(("video_mme", "video-mme"), ("videomme",)),
        **dict.fromkeys(("sqa", "science_qa", "scienceqa_img"), ("scienceqa",)),
        **dict.fromkeys(("nextqa", "mcq", "mc", "multiple_choice", "own", "custom", "perceptiontest"), ("choices",)),
        **dict.fromkeys(("vqa", "qa", "open_ended", "activitynetqa", "msvd", "msrvtt", "captions"), ("open",)),
    },
    "stage": {
        **dict.fromkeys(("pretrain", "pretraining", "alignment", "stage1", "projector"), ("align",)),
        **dict.fromkeys(("finetune", "finetuning", "instruct", "instruction", "stage2", "train"), ("sft",)),
        **dict.fromkeys(("rlhf", "preference", "stage3", "orpo", "kto"), ("dpo",)),
        **dict.fromkeys(("encoder", "stage0", "classify"), ("vision",)),
        **dict.fromkeys(("duoattention", "duo_attention", "gates", "heads"), ("duo",)),
    },
    "trainer": {
        **dict.fromkeys(("cuda", "single", "default"), ("gpu",)),
        **dict.fromkeys(("fsdp2", "deepspeed"), ("fsdp",)),
        **dict.fromkeys(("multi_gpu", "distributed"), ("ddp",)),
    },
    "logger": {**dict.fromkeys(("tensorboard", "tb", "none", "jsonl"), ("csv",)), "wb": ("wandb",)},
    "debug": dict.fromkeys(("true", "default", "smoke", "dev", "overfit", "limit"), ("fast_dev_run",)),
    "adapter": {
        **dict.fromkeys(("qlora", "peft"), ("lora",)),
        **dict.fromkeys(("prefix_tuning", "llama_adapter"), ("prefix",)),
        **dict.fromkeys(("adapters", "houlsby", "pfeiffer"), ("bottleneck",)),
    },
    "kvcache": {
        **dict.fromkeys(("none", "dynamic", "default"), ("full",)),
        **dict.fromkeys(("sink", "sinks", "streamingllm"), ("streaming",)),
        **dict.fromkeys(("duoattention", "duo_attention", "heads"), ("duo",)),
    },
    "experiment": dict.fromkeys(("default", "quickstart", "tutorial", "example"), ("demo",)),
}  # fmt: skip
# Words of the field for which there is no counterpart, and how to have it.
NOT_HERE: dict[str, str] = {
    "benchmark": "anybody's questions are asked from shards (docs/data.md says the form)",
    "language": "smollm2_* take any folder of their architecture with language.source=",
}


def instead_of_key(key: str) -> str:
    """`` did you mean ...?`` for a dotted key that another program would know; "" where the tables know nothing."""
    answer = KEYS.get(key.rpartition(".")[2].lower())
    if answer is None:
        return ""
    remark = f" ({answer.remark})" if answer.ours and answer.remark else f" {answer.remark}" if answer.remark else ""
    return _asked(answer.ours) + remark


def instead_of_value(key: str, value: object, known: Collection[str]) -> str:
    """The same for a value of ``key``; ``known`` are those that it takes."""
    ours = VALUES.get(key.rpartition(".")[2], {}).get(str(value).lower())
    return _asked((ours,)) if ours is not None and ours in known else ""


def instead_of_word(group: str, word: str, known: Collection[str]) -> str:
    """The same for a word of a group of rooms (``language=qwen``): names of ``known`` that are meant, by the tables or
    because they begin with the word or hold it."""
    if word == "null":
        return _asked(("none",)) if "none" in known else f" leave {group}= out;"
    plain = word.lower().replace("-", "_").replace(".", "_")
    table = WORDS.get(group, {})
    meant = table.get(word.lower()) or table.get(plain) or ()
    found: dict[str, None] = {}
    found |= dict.fromkeys(_beginning_with(plain, known) if len(plain) > 2 else ())
    for name in meant:
        found |= dict.fromkeys([name] if "=" in name or name in known else _beginning_with(name, known))
    if not found and len(plain) > 3:
        found |= dict.fromkeys([name for name in known if plain in name][:3])
    if found:
        return _asked(tuple(found))
    return f" {NOT_HERE[group]};" if meant and group in NOT_HERE else ""


def _beginning_with(word: str, known: Collection[str]) -> list[str]:
    return [name for name in known if name.startswith(word)][:3]


def _asked(ours: tuple[str, ...]) -> str:
    return f" did you mean {' or '.join(repr(name) for name in ours)}?" if ours else ""
