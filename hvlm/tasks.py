"""What can be done with a checkpoint: benchmark it, let it write, watch and be looked into, hand it on."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

from hvlm import build
from hvlm.chat import Chat
from hvlm.data.batches import clip_frames, one_row
from hvlm.data.decode import frames_of
from hvlm.errors import UserError
from hvlm.evaluation import results
from hvlm.evaluation.cost import cost_of
from hvlm.evaluation.evaluate import RESULTS, evaluate
from hvlm.evaluation.generate import generate
from hvlm.evaluation.preference import reward_accuracy
from hvlm.evaluation.report import table, write_report
from hvlm.evaluation.streaming import StreamingReader
from hvlm.interop.fvlm_weights import is_release, load_release, save_release
from hvlm.model import VLM
from hvlm.precision import choose_precision
from hvlm.rebuild import metadata_of, rebuild
from hvlm.viz.gaze_maps import gaze_maps, write_maps
from hvlm.viz.merge_maps import merge_maps, write_merging

log = logging.getLogger(__name__)

BEFORE = "before_dpo"


def run_benchmark(
    path: str | Path, cfg: Mapping[str, Any], out: Path, command: str | None = None
) -> list[results.Record]:
    """Evaluate a checkpoint on ``cfg``'s benchmark and dataset; results, predictions and report go into ``out``."""
    model, chat = rebuild(path, cfg)
    precision, why = choose_precision(cfg["trainer"]["precision"], cfg["trainer"]["accelerator"])
    log.info(f"evaluating {path} in {precision}: {why}")
    data = build.dataset(cfg)
    data.prepare()
    records = evaluate(
        model.to(device_of(cfg)),
        chat,
        data,
        build.room(cfg["benchmark"]),
        order=cfg["order"],
        num_frames=cfg["dataset"]["num_frames"],
        image_size=model.vision.image_size,
        precision=precision,
        out_dir=out,
        question=out.name,
        variant=variant_name(cfg),
        seed=cfg["seed"],
        command=command,
        motion=build.motion_grid(model),
    )
    records += costs(model, chat, data, cfg, precision, question=out.name, command=command)
    results.write(out / RESULTS, records)
    write_report(out)
    log.info("\n".join(table(records)))
    log.info(f"results: {out / RESULTS}; report: {out / 'report.md'}")
    return records


def costs(
    model: VLM, chat: Chat, data: Any, cfg: Mapping[str, Any], precision: str, *, question: str, command: str | None
) -> list[results.Record]:
    """``hvlm.evaluation.cost`` of the first question about the first clip of the benchmark's split, as records."""
    started = time.monotonic()
    reading = build.reader(cfg, model, data, chat)
    batch = next(iter(reading.loader(cfg["benchmark"]["split"], "questions", None, 1, 1)))
    on = one_row(batch, 0).to(next(model.parameters()).device)
    found = cost_of(model, build.kvcache(cfg, model), on, precision)
    shared = {"stderr": None, "n": 1, "chance": None, "seeds": [cfg["seed"]], "command": command}
    seconds = time.monotonic() - started
    return [
        results.make(question, variant_name(cfg), metric, value, seconds=seconds, **shared)
        for metric, value in found._asdict().items()
    ]


def run_cost(path: str | Path, cfg: Mapping[str, Any], out: Path) -> list[results.Record]:
    """The cost of an answer alone, in ``out/results.json``."""
    model, chat = rebuild(path, cfg)
    precision, _ = choose_precision(cfg["trainer"]["precision"], cfg["trainer"]["accelerator"])
    data = build.dataset(cfg)
    data.prepare()
    records = costs(model.to(device_of(cfg)), chat, data, cfg, precision, question=out.name, command=None)
    results.update(out / RESULTS, records)
    log.info("\n".join(table(records)))
    return records


def run_preference(
    path: str | Path, start: str | Path, cfg: Mapping[str, Any], out: Path, command: str | None = None
) -> list[results.Record]:
    """What a stage of preferences changed: reward accuracy on held-out pairs before (0.5 by definition) and after, and
    the benchmark before, as the variant ``before_dpo``. Added to ``out``'s results and report.

    path: the checkpoint after the stage; start: the one before, which is the reference.
    """
    policy, chat = rebuild(path, cfg)
    if is_release(start):
        reference = build.model(cfg, chat, weights=False)
        load_release(reference, start)
    else:
        reference, _ = rebuild(start, cfg)
    device = device_of(cfg)
    policy, reference = policy.to(device), reference.to(device)
    precision, _ = choose_precision(cfg["trainer"]["precision"], cfg["trainer"]["accelerator"])
    data = build.dataset(cfg)
    data.prepare()
    asked = build.room({**cfg["benchmark"], "blind": False})
    shared = {"question": out.name, "seed": cfg["seed"], "command": command}
    before = out / BEFORE
    records = evaluate(
        reference, chat, data, asked, order=cfg["order"], num_frames=cfg["dataset"]["num_frames"],
        image_size=reference.vision.image_size, precision=precision, out_dir=before, variant=BEFORE, contact_sheets=0,
        motion=build.motion_grid(reference), **shared,
    )  # fmt: skip
    reading = build.reader(cfg, policy, data, chat)
    for variant, model in ((BEFORE, reference), (variant_name(cfg), policy)):
        started = time.monotonic()
        pairs = reading.loader(asked.split, "pairs", None, asked.batch_size, asked.limit)
        value, stderr, n = reward_accuracy(model, reference, pairs, precision)
        records.append(
            results.make(
                out.name,
                variant,
                "reward_accuracy",
                value,
                stderr=stderr,
                n=n,
                chance=0.5,
                seeds=[cfg["seed"]],
                seconds=time.monotonic() - started,
                command=command,
            )  # fmt: skip
        )
    merged = results.update(out / RESULTS, records)
    write_report(out)
    log.info("\n".join(table([r for r in records if r["metric"] in ("accuracy_mean", "reward_accuracy")])))
    return merged


def device_of(cfg: Mapping[str, Any]) -> torch.device:
    """Where a single process evaluates: on the GPU if there is one and the trainer is not ``cpu``."""
    return torch.device("cuda" if cfg["trainer"]["accelerator"] != "cpu" and torch.cuda.is_available() else "cpu")


def variant_name(cfg: Mapping[str, Any]) -> str:
    """The word for what is compared: the connector's mode where it has one (coarse_fine), else the connector."""
    connector = cfg["connector"]
    return connector.get("mode") or connector["_target_"].split(".")[2]


def export(path: str | Path, cfg: Mapping[str, Any], out: Path) -> Path:
    """The checkpoint as a Hugging Face folder; see ``hvlm.interop.hf_export``."""
    from hvlm.interop import hf_export  # registers an architecture with transformers: only where that is wanted

    chat = metadata_of(path)["chat"]
    if chat is None:
        raise UserError(
            f"{path}: is of stage {metadata_of(path)['stage']}, which has no language model; name a later one"
        )
    hf_export.export(path, cfg, chat, out)
    log.info(f"{out}: load it with `import hvlm.interop.hf_export` and transformers' AutoModel.from_pretrained")
    return out


def release(path: str | Path, cfg: Mapping[str, Any], out: Path) -> Path:
    """The checkpoint in fVLM's own layout, as one file; see ``hvlm.interop.fvlm_weights``."""
    out = out if out.suffix == ".safetensors" else out / "fvlm.safetensors"
    save_release(rebuild(path, cfg)[0], out)
    log.info(f"{out}: fVLM's release layout; FoveatedVLM(...).load_release and init_from= take it")
    return out


def watch(path: str | Path, cfg: Mapping[str, Any], out: Path) -> list[dict[str, Any]]:
    """Watch ``ask.video`` frame by frame and answer ``ask.question`` at the moments asked for: lines with ``seconds``,
    ``frames`` seen and ``answer``, printed and written to ``out/asked.jsonl``."""
    asked = cfg["ask"]
    for name in ("video", "question"):
        if asked[name] is None:
            raise UserError(f"task=ask needs ask.{name}=...")
    if not Path(asked["video"]).is_file():
        raise UserError(f"ask.video={asked['video']}: no such file")
    if asked["fps"] <= 0:
        raise UserError(f"ask.fps={asked['fps']:g}: expected frames a second, above 0")
    model, chat = rebuild(path, cfg)
    first = asked["question"] if cfg["order"] == "question_first" else None
    later = None if first else asked["question"]
    watcher = StreamingReader(model.to(device_of(cfg)), chat, build.kvcache(cfg, model), first)
    moments, lines = sorted(asked["at"] or []), []

    def say(seconds: float) -> None:
        lines.append({"seconds": seconds, "frames": watcher.frames, "answer": watcher.answer(later)})
        log.info(f"{seconds:8.2f} s, {watcher.frames} frames: {lines[-1]['answer']}")

    seconds = 0.0
    for frame, seconds in frames_of(Path(asked["video"]), asked["fps"], (model.vision.image_size,) * 2):
        while moments and moments[0] < seconds and watcher.frames:
            say(moments.pop(0))
        watcher.read_frame(torch.from_numpy(np.ascontiguousarray(frame)))
    if not watcher.frames:
        raise UserError(f"ask.video={asked['video']}: shorter than half a frame at ask.fps={asked['fps']:g}; raise it")
    for moment in moments or ([] if asked["at"] else [seconds]):
        say(moment)
    out.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps({"question": asked["question"], **line}, ensure_ascii=False) + "\n" for line in lines)
    (out / "asked.jsonl").write_text(text, encoding="utf-8")
    return lines


def look(path: str | Path, cfg: Mapping[str, Any], out: Path) -> list[dict[str, Any]]:
    """Pictures of the first clips of the benchmark's split (``benchmark.limit``, 4 by default), and what they are of in
    ``out/look.jsonl``: where the model looks, a sheet, a film and a path for each question, if its connector gazes, and
    what its merger did to the clip. Without a gaze there is a line for each clip."""
    model, chat = rebuild(path, cfg)
    gazes, merges = model.connector.wants_gaze, not model.merger.changes_nothing
    if not (gazes or merges):
        connector = cfg["connector"]["_target_"].split(".")[2]
        raise UserError(
            "task=look shows the gaze of connector=foveated and what a merger did, but here are connector="
            f"{connector} and merger=none: name a checkpoint that was trained with connector=foveated, or add a merger "
            "to this one (merger=tome)"
        )
    data = build.dataset(cfg)
    data.prepare()
    asked = build.room(cfg["benchmark"])
    reading = build.reader(cfg, model, data, chat)
    lines = []
    for batch in track(reading.loader(asked.split, "questions", None, 1, asked.limit or 4), "looking"):
        merging: dict[str, Any] = {}
        if merges:
            (merged,) = merge_maps(model, batch)
            files = write_merging(clip_frames(batch, 0), merged, out / batch.keys[0])
            merging = {name: file.name for name, file in files.items()} | {"tokens_per_frame": merged.kept_T.tolist()}
        if not gazes:
            lines.append({"key": batch.keys[0], **merging})
            continue
        for row in range(len(batch.clip_K)):
            one = one_row(batch, row)
            (maps,), info = gaze_maps(model, one), batch.rows[row]
            files = write_maps(clip_frames(one, 0), maps, out / f"{info['key']}-{info['question_id']}")
            question = chat.decode(batch.input_ids_KS[row][: int(batch.attention_mask_KS[row].sum())].tolist())
            line = {"key": info["key"], "task": info["task"], "question": question}
            line |= {name: file.name for name, file in files.items()}
            lines.append(line | {"entropy_nats": np.round(maps.entropy_TL, 4).tolist(), **merging})
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (out / "look.jsonl").write_text(text, encoding="utf-8")
    drawn = ["sheets, films and paths; entropies (nats, frames by layers)"] if gazes else []
    drawn += ["where patches went; tokens of each frame"] if merges else []
    log.info(f"{out}: {len(lines)} lines in look.jsonl: {'; '.join(drawn)}")
    return lines


def write_answers(
    path: str | Path, cfg: Mapping[str, Any], out: Path, max_new_tokens: int = 32
) -> list[dict[str, str]]:
    """The model's own answers to the benchmark's clips, one JSON line per question, in ``out/answers.jsonl``."""
    model, chat = rebuild(path, cfg)
    data = build.dataset(cfg)
    data.prepare()
    asked = build.room(cfg["benchmark"])
    reading = build.reader(cfg, model, data, chat)
    cache = build.kvcache(cfg, model)
    lines: list[dict[str, str]] = []
    for batch in track(reading.loader(asked.split, "questions", None, asked.batch_size, asked.limit), "answering"):
        for row, text in zip(batch.rows, generate(model, chat, cache, batch, max_new_tokens), strict=True):
            names = ("key", "question_id", "task", "answer")
            lines.append({name: row[name] for name in names} | {"prediction": text})
    out.mkdir(parents=True, exist_ok=True)
    target = out / "answers.jsonl"
    target.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    same = sum(line["prediction"] == line["answer"] for line in lines)
    log.info(f"{target}: {len(lines)} answers, {same} word for word the expected ones")
    return lines
