"""What can be done with a checkpoint: benchmark it, let it write, watch and be looked into, hand it on."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from hvlm import assembly
from hvlm.data.batches import clip_frames, one_row
from hvlm.data.views import Pairs
from hvlm.errors import UserError
from hvlm.evaluation import results
from hvlm.evaluation.ask import ask
from hvlm.evaluation.asking import Answer, clips_of
from hvlm.evaluation.cost import cost_of
from hvlm.evaluation.cross_table import cross_table
from hvlm.evaluation.cross_table import table as cross_lines
from hvlm.evaluation.evaluate import RESULTS, evaluate, warn_of_problems, way_of
from hvlm.evaluation.generate import InWords
from hvlm.evaluation.heads import evaluate_head
from hvlm.evaluation.journal import journal_of
from hvlm.evaluation.likelihood import check_answers, check_lengths
from hvlm.evaluation.predictions import write_predictions
from hvlm.evaluation.preference import reward_accuracy
from hvlm.evaluation.processes import ask_together
from hvlm.evaluation.report import table, write_report
from hvlm.evaluation.routing import Routed, say_routes, settle
from hvlm.evaluation.sampling import Sampling
from hvlm.evaluation.specialists import read_runs, train_router, write
from hvlm.evaluation.speed import measure
from hvlm.evaluation.watch import duration_of_asked
from hvlm.evaluation.watch import watch as watch_video
from hvlm.interop.fvlm_weights import is_release, load_release, save_release
from hvlm.io.files import safe_name
from hvlm.io.json_lines import read_lines, write_lines
from hvlm.model import VLM
from hvlm.precision import choose_precision
from hvlm.rebuild import AUTO, OFF, Loaded, load, metadata_of, rebuild
from hvlm.text.chat import Chat
from hvlm.viz.gaze_maps import gaze_maps, write_maps
from hvlm.viz.merge_maps import merge_maps, write_merging

log = logging.getLogger(__name__)

BEFORE = "before_dpo"
LOOKED_AT = 4  # clips


def load_routed(path: str | Path, cfg: Mapping[str, Any]) -> Loaded:
    """``load``; specialists that are gathered on the way (``adapters=``) get a router where no domain is given."""
    loaded = load(path, cfg)
    if cfg["adapters"] and cfg["domain"]["adapter"] == AUTO:
        loaded.model.router = train_router(loaded, read_runs(cfg["adapters"]))
    return loaded


def gather(path: str | Path, cfg: Mapping[str, Any], out: Path) -> Path:
    """Base, specialists and router as one checkpoint, ``out/specialists.ckpt``."""
    cfg = {**cfg, "domain": {**cfg["domain"], "name": AUTO, "adapter": AUTO}}
    loaded = load_routed(path, cfg)
    file = write(loaded, Path(path), loaded.model.router, out / "specialists.ckpt")
    names = ", ".join(loaded.model.adapter.names)
    log.info(f"{file}: the base with {names} and their router; eval.py checkpoint={file} asks it, domain=NAME one")
    return file


def run_domains(path: str | Path, cfg: Mapping[str, Any], out: Path) -> list[results.Record]:
    """Adapter by domain: every set of adapter weights of a checkpoint, and its base, on every domain's clips."""
    routed = bool(cfg["adapters"]) or metadata_of(path).get("router") is not None
    domain = {**cfg["domain"], "adapter": AUTO if routed else OFF}
    loaded = load_routed(path, {**cfg, "domain": domain})
    label = results.Label(out.name, loaded.variant, cfg["seed"])
    records = cross_table(loaded, asked_for(loaded), label, out)
    log.info("\n".join(cross_lines(records)))
    log.info(f"results: {out / RESULTS}; the table: {out / 'domains.md'}")
    return records


def run_benchmark(
    path: str | Path, cfg: Mapping[str, Any], out: Path, command: str | None = None
) -> list[results.Record]:
    """Evaluate a checkpoint on ``cfg``'s benchmark and dataset; results, predictions and report go into ``out``."""
    if cfg.get("processes", 1) > 1:
        ask_together(path, cfg, out)
        cfg = {**cfg, "resume": "auto"}
    loaded = load_routed(path, cfg)
    label = results.Label(out.name, loaded.variant, cfg["seed"], command)
    benchmark = asked_for(loaded)
    run = evaluate if benchmark.asks else evaluate_head
    how = {"answer": Routed(way_of(benchmark))} if loaded.model.router is not None and benchmark.asks else {}
    records = run(loaded, benchmark, label, out, **how)
    if loaded.model.router is not None:
        say_routes(loaded.model.router.said, out)
    records += costs(loaded, label)
    results.write(out / RESULTS, records)
    write_report(out)
    log.info("\n".join(table(records)))
    log.info(f"results: {out / RESULTS}; report: {out / 'report.html'} (and report.md)")
    return records


def asked_for(loaded: Loaded) -> Any:
    """The benchmark. UserError where it names a task that nobody asks: the others alone would be another score."""
    benchmark = loaded.benchmark()
    if benchmark.tasks:
        benchmark.check(loaded.data)
    return benchmark


def check_benchmark(cfg: Mapping[str, Any], chat: Chat) -> None:
    """What the benchmark after training would refuse, before any training; makes or indexes the data it asks about.

    Args:
        cfg: of the stage that will be evaluated.
        chat: its tokenizer.

    Raises:
        UserError: a precision that this machine does not compute in, a split or questions that are not there, answers
            that the tokenizer cannot tell apart.
    """
    choose_precision(cfg["trainer"]["precision"], cfg["trainer"]["accelerator"])
    benchmark, data = assembly.room(cfg["benchmark"]).of(assembly.head_alone(cfg)), assembly.dataset(cfg)
    questions = benchmark.check(data)
    way_of(benchmark)
    if not benchmark.asks:
        return
    check_lengths(chat, questions, cfg["order"], data.max_tokens)
    if not benchmark.writes:
        check_answers(chat, questions, cfg["order"])


def costs(loaded: Loaded, label: results.Label) -> list[results.Record]:
    """``hvlm.evaluation.cost`` of the first question about the first clip of the benchmark's split, as records."""
    started = time.monotonic()
    batch = next(iter(clips_of(loaded, loaded.benchmark(), batch_size=1)), None)
    if batch is None:
        raise UserError(
            "benchmark: there is no clip with a question that its frames can answer; nothing costs anything"
        )
    found = cost_of(loaded.model, one_row(batch, 0).to(loaded.device), loaded.precision)
    seconds = time.monotonic() - started
    known = {metric: value for metric, value in found._asdict().items() if value is not None}
    return [label.record(metric, value, n=1, seconds=seconds) for metric, value in known.items()]


def run_cost(path: str | Path, cfg: Mapping[str, Any], out: Path) -> list[results.Record]:
    """The cost of an answer alone, in ``out/results.json``."""
    loaded = load(path, cfg)
    records = costs(loaded, results.Label(out.name, loaded.variant, cfg["seed"]))
    results.update(out / RESULTS, records)
    log.info("\n".join(table(records)))
    return records


def run_speed(path: str | Path, cfg: Mapping[str, Any], out: Path) -> list[results.Record]:
    """Questions a second, and how many where each is asked alone, in ``out/results.json``."""
    loaded = load(path, cfg)
    benchmark = loaded.benchmark()
    if not benchmark.asks:
        raise UserError("task=speed asks questions, and benchmark=head has none; name another benchmark")
    speed = measure(loaded, benchmark, way_of(benchmark, cfg["seed"]))
    records = speed.records(results.Label(out.name, loaded.variant, cfg["seed"]))
    results.update(out / RESULTS, records)
    log.info("\n".join(speed.lines()))
    return records


def run_preference(
    path: str | Path, start: str | Path, cfg: Mapping[str, Any], out: Path, command: str | None = None
) -> list[results.Record]:
    """What a stage of preferences changed: reward accuracy on held-out pairs before (0.5 by definition) and after, and
    the benchmark before, as the variant ``before_dpo``. Added to ``out``'s results and report.

    path: the checkpoint after the stage; start: the one before, which is the reference unless that was the model
    without its adapter.
    """
    policy = load(path, cfg)
    began = reference = policy._replace(model=_start_of(policy, start))
    if cfg["stage"].get("reference") == "adapter_off":
        reference = load(path, {**cfg, "domain": {**cfg["domain"], "adapter": OFF}})
    label = results.Label(out.name, policy.variant, cfg["seed"], command)
    asked = policy.benchmark(blind=False)
    records = evaluate(began, asked, label._replace(variant=BEFORE), out / BEFORE, contact_sheets=0)
    for variant, loaded in ((BEFORE, began), (label.variant, policy)):
        started = time.monotonic()
        pairs = clips_of(policy, asked, Pairs())
        value, stderr, n = reward_accuracy(loaded.model, reference.model, pairs, policy.precision)
        seconds = time.monotonic() - started
        records.append(
            label._replace(variant=variant).record(
                "reward_accuracy", value, stderr=stderr, n=n, chance=0.5, seconds=seconds
            )
        )
    merged = results.update(out / RESULTS, records)
    write_report(out)
    means = ("accuracy_m", "normalised_m", "cider_d_m", "reward_accuracy")
    log.info("\n".join(table([r for r in records if r["metric"].startswith(means)])))
    return merged


def _start_of(policy: Loaded, start: str | Path) -> VLM:
    """The model that a stage started from: ``start`` is a checkpoint, or weights in fVLM's layout."""
    if not is_release(start):
        stored, config = metadata_of(start)["config"], policy.config
        if "adapter" in stored:  # which a stage may have added, or renamed
            domain = {**config["domain"], "adapter": stored["domain"]["adapter"]}
            config = {**config, "adapter": stored["adapter"], "domain": domain}
        return load(start, config).model
    stored = {"config": policy.config, "source_configs": assembly.source_configs(policy.model)}
    model = assembly.model(policy.config, policy.chat, weights=False, stored=stored)
    load_release(model, start)
    return model.to(policy.device)


def export(path: str | Path, cfg: Mapping[str, Any], out: Path) -> Path:
    """The checkpoint as a Hugging Face folder; see ``hvlm.interop.hf_export``."""
    from hvlm.interop import hf_export  # registers an architecture with transformers: only where that is wanted

    metadata = metadata_of(path)
    if metadata["chat"] is None:
        raise UserError(f"{path}: is of stage {metadata['stage']}, which has no language model; name a later one")
    if cfg["domain"]["adapter"] == AUTO:
        raise UserError("domain=auto: an export holds no router; say whose specialist it is to be with domain=NAME")
    hf_export.export(path, cfg, metadata, out)
    log.info(f"{out}: load it with `import hvlm.interop.hf_export` and transformers' AutoModel.from_pretrained")
    return out


def gguf(path: str | Path, cfg: Mapping[str, Any], out: Path) -> Path:
    """The checkpoint's language model alone, as one file; see ``hvlm.interop.gguf_file``."""
    from hvlm.interop import gguf_file

    out = out if out.suffix == ".gguf" else out / "language.gguf"
    if cfg["domain"]["adapter"] == AUTO:
        raise UserError("domain=auto: a GGUF holds no router; say whose specialist it is to be with domain=NAME")
    gguf_file.write(*rebuild(path, cfg), out)
    log.info(f"{out}: the language model without its video; llama.cpp and transformers (gguf_file=) read it")
    return out


def release(path: str | Path, cfg: Mapping[str, Any], out: Path) -> Path:
    """The checkpoint in fVLM's own layout, as one file; see ``hvlm.interop.fvlm_weights``."""
    out = out if out.suffix == ".safetensors" else out / "fvlm.safetensors"
    save_release(load(path, cfg).model, out)
    log.info(f"{out}: fVLM's release layout; FoveatedVLM(...).load_release and init_from= take it")
    return out


def watch(path: str | Path, cfg: Mapping[str, Any], out: Path) -> list[dict[str, Any]]:
    """Answer ``ask.question`` about ``ask.video`` at the moments ``ask.at``; see ``hvlm.evaluation.watch``. Where no
    domain is given, the router says who answers."""
    duration, choose = duration_of_asked(cfg["ask"]), sampling(cfg)
    loaded, more = load_routed(path, cfg), {}
    check_writes(loaded, "ask")
    if loaded.model.router is not None:
        loaded, more = settle(loaded, Path(cfg["ask"]["video"]), min(cfg["ask"]["at"] or [duration]))
    return watch_video(loaded, cfg["ask"], duration, choose, out, more)


def check_writes(loaded: Loaded, task: str) -> None:
    """UserError where a task wants answers in words, and the model's head writes none."""
    head = loaded.model.head
    if not head.writes:
        raise UserError(
            f"task={task}: the model answers in words, and head={head.task} writes none; benchmark=head scores what it "
            "finds, and a checkpoint with head=text answers"
        )


def sampling(cfg: Mapping[str, Any]) -> Sampling:
    """How ``cfg`` chooses words: ``ask.temperature``, ``top_p`` and ``num_beams``, with the seed of the command."""
    asked = cfg["ask"]
    return Sampling(asked["temperature"], asked["top_p"], cfg["seed"], asked["num_beams"])


def look(path: str | Path, cfg: Mapping[str, Any], out: Path) -> list[dict[str, Any]]:
    """Pictures of some of the benchmark's clips (``benchmark.limit``, 4 by default), and what they are of in
    ``out/look.jsonl``: where the model looks, a sheet, a film and a path for each question, if its connector gazes, and
    what its merger did to the clip. Without a gaze there is a line for each clip."""
    loaded = load(path, cfg)
    model = loaded.model
    gazes, merges = model.connector.wants_gaze, not model.merger.changes_nothing
    if not (gazes or merges):
        connector = cfg["connector"]["_target_"].split(".")[2]
        raise UserError(
            "task=look shows the gaze of connector=foveated and what a merger did, but here are connector="
            f"{connector} and merger=none: name a checkpoint that was trained with connector=foveated, or add a merger "
            "to this one (merger=tome)"
        )
    lines = []
    for batch in track(clips_of(loaded, loaded.benchmark(), batch_size=1, limit=LOOKED_AT), "looking"):
        batch = model.routed(batch.to(loaded.device))
        merging: dict[str, Any] = {}
        uid, key = batch.uids[0], batch.rows[0]["key"]
        if merges:
            (merged,) = merge_maps(model, batch)
            files = write_merging(clip_frames(batch, 0), merged, out / safe_name(*uid.split("/", 2)))
            merging = {name: file.name for name, file in files.items()} | {"tokens_per_frame": merged.kept_T.tolist()}
        if not gazes:
            lines.append({"key": key, **merging})
            continue
        for row in range(len(batch.clip_K)):
            one = one_row(batch, row)
            (maps,), info = gaze_maps(model, one), batch.rows[row]
            stem = out / safe_name(*uid.split("/", 2), info.get("question_id", model.head.task))
            files = write_maps(clip_frames(one, 0), maps, stem)
            question = loaded.chat.decode(batch.input_ids_KS[row][: int(batch.attention_mask_KS[row].sum())].tolist())
            line = {"key": key, "task": info.get("task", model.head.task), "question": question}
            line |= {name: file.name for name, file in files.items()}
            lines.append(line | {"entropy_nats": np.round(maps.entropy_TL, 4).tolist(), **merging})
    write_lines(out / "look.jsonl", lines)
    drawn = ["sheets, films and paths; entropies (nats, frames by layers)"] if gazes else []
    drawn += ["where patches went; tokens of each frame"] if merges else []
    log.info(f"{out}: {len(lines)} lines in look.jsonl: {'; '.join(drawn)}")
    return lines


def write_answers(path: str | Path, cfg: Mapping[str, Any], out: Path) -> list[dict[str, Any]]:
    """The model's own answers to the benchmark's questions in ``out/answers.jsonl``, a predictions file that
    ``task=score`` reads."""
    choose = sampling(cfg)
    loaded = load_routed(path, cfg)
    check_writes(loaded, "generate")
    benchmark = asked_for(loaded)
    answer: Answer = InWords(benchmark.max_new_tokens, choose)
    answer = answer if loaded.model.router is None else Routed(answer)
    journal = journal_of(loaded, benchmark, answer, out)
    asked = ask(loaded, benchmark, loaded.variant, out, answer, journal=journal)
    warn_of_problems(asked.predictions)
    target = out / "answers.jsonl"
    write_predictions(target, asked.predictions)
    journal.done()
    right = sum(p.right for p in asked.predictions)
    log.info(f"{target}: {len(asked.predictions)} answers, {right} right; task=score predictions={target} scores them")
    return read_lines(target)
