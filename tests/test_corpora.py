"""Public corpora, as they are published → shards: files, nesting, broken rows; what is not taken is said."""

from __future__ import annotations

import json
import socket
import zipfile
from pathlib import Path

import pytest
from _corpora import bad, captioned, corpus, said, table, video
from _tables import contents, distinct, left_out, made, read_all, still, together, write_json
from _tiny import ROOT

from hvlm.data.views import Captions, Pairs, Questions
from hvlm.errors import UserError
from hvlm.prepare import command
from hvlm.prepare.corpora import OPTIONS, corpora
from hvlm.prepare.settings import ROLES

# ------------------------------------------------------------------------------------------------------ each corpus


OPENVID = "video,caption,aesthetic score,motion score,temporal consistency score,camera motion,frame,fps,seconds\n"


def test_openvid_from_its_csv_and_its_zips_without_extracting_them(tmp_path: Path) -> None:
    src = tmp_path / "OpenVid-1M"
    (src / "data" / "train").mkdir(parents=True)
    rows = ['a_0_0to120.mp4,"In the video, a man stands.",5.2,3.1,0.99,pan_left,120,30.0,4.0',
            "b.mp4,A dog runs.,5,3,0.9,static,50,25,2", "a_0_0to120.mp4,Again.,5,3,0.9,static,50,25,2",
            "gone.mp4,Nothing.,5,3,0.9,static,50,25,2", "b2.mp4,,5,3,0.9,static,50,25,2",
            "../out.mp4,Outside.,5,3,0.9,static,50,25,2", "empty.mp4,Empty.,5,3,0.9,static,50,25,2",
            "noise.mp4,Noise.,5,3,0.9,static,50,25,2"]  # fmt: skip
    (src / "data" / "train" / "OpenVid-1M.csv").write_text(OPENVID + "\n".join(rows))
    (src / "data" / "train" / "OpenVidHD.csv").write_text(OPENVID + rows[0])
    (src / "data" / "train" / "odd.csv").write_text("x,y\n1,2\n")
    video(src / "video" / "b.mp4", 1)
    with zipfile.ZipFile(src / "OpenVid_part0.zip", "w") as archive:
        archive.writestr("a_0_0to120.mp4", distinct(0))
        archive.writestr("noise.mp4", b"\0" * 999)
        archive.writestr("empty.mp4", b"")
    (src / "OpenVid_part73_partaa").write_bytes(b"PK")
    (src / "OpenVid_part74.zip").write_bytes(b"<html>not found</html>")
    out = corpus("openvid", src)
    prompt = "Write a brief caption for this video."
    assert said(out) == {
        "a_0_0to120": captioned("In the video, a man stands.", prompt),
        "video/b": captioned("A dog runs.", prompt),
    }
    kinds = {3: "the id again", 4: "missing file", 5: "not a row", 6: "path leads out", 7: "empty file"}
    kinds |= {8: "cannot be decoded"}
    assert dict(bad(out)) == kinds
    assert set(contents(out)) == {"train"} and {s["domain"] for s in together(contents(out)).values()} == {"openvid"}
    assert len(read_all(out, Captions())) == len(read_all(out, Questions())) == 2, "for both stages"


def test_openvid_says_which_archives_it_could_not_look_into(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    src = tmp_path / "in"
    video(src / "a.mp4", 0)
    (src / "OpenVid-1M.csv").write_text(
        OPENVID + "a.mp4,A dog.,5,3,0.9,static,50,25,2\nb.mp4,A cat.,5,3,0.9,static,50,25,2"
    )
    (src / "OpenVid_part73_partaa").write_bytes(b"PK")
    (src / "OpenVid_part74.zip").write_bytes(b"<html>not found</html>")
    command.prepare(["openvid", f"src={src}", "dry_run=true"])
    shown = capsys.readouterr().out
    assert "OpenVid_part74.zip is not looked into" in shown and "OpenVid_part73_partaa; extract them" in shown
    assert "1 × missing file" in shown and "dry run: nothing was decoded and nothing written" in shown
    assert "OpenVid-1M, OpenVid-1M.csv: 2 rows" in shown and " kB" in shown, "what there is, and how large it becomes"


@pytest.mark.parametrize(
    ("how", "said_of_it"),
    [(zipfile.ZIP_STORED, "CRC"), (zipfile.ZIP_DEFLATED, "decompress"), (zipfile.ZIP_LZMA, "orrupt")],
)
def test_a_damaged_member_of_a_zip_is_a_bad_row(how: int, said_of_it: str, tmp_path: Path) -> None:
    src = tmp_path / "in"
    src.mkdir()
    (src / "OpenVid-1M.csv").write_text(
        OPENVID + "\n".join(f"v{i}.mp4,Says {i}.,5,3,0.9,static,50,25,2" for i in range(3))
    )
    with zipfile.ZipFile(src / "OpenVid_part0.zip", "w", how) as archive:
        for i in range(3):
            archive.writestr(f"v{i}.mp4", distinct(i))
    data = (src / "OpenVid_part0.zip").read_bytes()
    hit = data.index(b"v1.mp4") + (data.index(b"v2.mp4") - data.index(b"v1.mp4")) // 4
    (src / "OpenVid_part0.zip").write_bytes(data[:hit] + b"\xff" * 64 + data[hit + 64 :])
    out = corpus("openvid", src)
    assert bad(out) == [(2, "cannot be read")] and said_of_it in left_out(out)[0]["reason"]
    assert set(said(out)) == {"v0", "v2"}


def test_webvid_and_its_links_are_never_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    src, head = tmp_path / "webvid", "videoid,contentUrl,duration,page_dir,name\n"
    src.mkdir()
    row = "{0},https://ak.picdn.net/shutterstock/videos/{0}/preview/x.mp4,PT00H00M20S,{1},{2}\n"
    (src / "results_10M_train.csv").write_text(
        head + row.format(1001, "000001_000050", "A dog") + row.format(1002, "000001_000050", "A cat")
        + row.format(1003, "", "A bird") + row.format(1001, "000001_000050", "A dog again")
    )  # fmt: skip
    (src / "results_2M_val.csv").write_text(head + row.format(2001, "000051_000100", "A fish"))
    video(src / "videos" / "000001_000050" / "1001.mp4", 1)
    video(src / "somewhere" / "1003.mp4", 3)
    video(src / "000051_000100" / "2001.mp4", 4)
    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("the network was used"))
    out = corpus("webvid", src)
    found = contents(out)
    assert {s: set(keys) for s, keys in found.items()} == {
        "train": {"videos/000001_000050/1001", "somewhere/1003"}, "val": {"000051_000100/2001"},
    }  # fmt: skip
    assert dict(bad(out)) == {2: "missing file", 4: "the id again"}
    assert (
        found["val"]["000051_000100/2001"]["captions"][0]["prompt"]
        == "What would be the WebVid caption for this video?"
    )


def test_the_cauldron_keeps_turns_and_pictures_that_share_a_name(tmp_path: Path) -> None:
    src = tmp_path / "the_cauldron"

    def text(n):
        return [{"user": f"what {n}?", "assistant": f"thing {n}", "source": "AI2D"}]

    def picture(n, name="image.png"):
        return {"bytes": still(n, "PNG"), "path": name}

    table(src / "ai2d" / "train-00000-of-00001-2ce340398c113b79.parquet", [
        {"images": [picture(0)], "texts": text(0) + text(1)},
        {"images": [picture(1)], "texts": text(2)},
        {"images": [picture(0), picture(2)], "texts": text(3)},
        {"images": [], "texts": text(4)},
        {"images": [picture(3)], "texts": []},
        {"images": [{"bytes": b"GIF8 broken", "path": None}], "texts": text(5)},
    ])  # fmt: skip
    table(src / "nlvr2" / "train-00000-of-00001.parquet", [{"images": [picture(4, None)], "texts": text(6)}])
    out = corpus("cauldron", src, "max_bad=1")
    turns = sorted(talk for s in said(out).values() for talk in s["turns"])
    assert turns == [["what 0?", "thing 0", "what 1?", "thing 1"], ["what 4?", "thing 4"]]
    asked = sorted(q for s in said(out).values() for q in s["questions"])
    assert asked == [(f"what {n}?", f"thing {n}") for n in (2, 3, 6)], "pictures of one name are told apart"
    assert dict(bad(out)) == {5: "not a row", 6: "cannot be decoded"}
    assert set(contents(out)) == {"train", "text"}, "without a picture it is a chat"
    assert len(read_all(out, Questions())) == 4


def test_llava_video_with_videos_in_the_folder_of_their_subset(tmp_path: Path) -> None:
    src = tmp_path / "LLaVA-Video-178K"

    def turns(mark, n):
        return [{"from": "human", "value": f"<{mark}>\nwhat {n}?"}, {"from": "gpt", "value": f"so {n}"}]

    subset = "0_30_s_academic_v0_1"

    def row(n, mark="image", **more):
        return {
            "id": f"v{n}",
            "conversations": turns(mark, n),
            "data_source": subset,
            "video": f"academic_source/Charades/v{n}.mp4",
            **more,
        }

    write_json(src / subset / f"{subset}_cap_processed.json", [row(0), row(1)])
    more = [{"from": "human", "value": "and then?"}, {"from": "gpt", "value": "this"}]
    write_json(src / subset / "0_30_s_academic_oe_v0_1_qa_processed.json",
               [row(0, "video", conversations=turns("video", 0) + more), row(7),
                row(1, conversations=None)])  # fmt: skip
    write_json(src / "other.json", [{"x": 1}])
    for n in range(2):
        video(src / subset / "academic_source" / "Charades" / f"v{n}.mp4", n)
    out = corpus("llava_video", src)
    found = said(out)
    place = f"{subset}/academic_source/Charades/v0"
    assert found[place]["questions"] == [("what 0?", "so 0")] and found[place]["turns"] == [
        ["what 0?", "so 0", "and then?", "this"]
    ]
    assert dict(bad(out)) == {2: "missing file", 3: "not a row"}
    tasks = {q["task"] for s in together(contents(out)).values() for q in s.get("questions", ())}
    assert tasks == {"caption"} and together(contents(out))[place]["conversations"][0]["task"] == "open_ended"


def test_smoltalk_is_chats_alone_and_no_test_file(tmp_path: Path) -> None:
    src = tmp_path / "smoltalk"

    def chat(n, **more):
        return {
            "messages": [{"role": "user", "content": f"hello {n}"}, {"role": "assistant", "content": f"good day {n}"}],
            "source": "everyday",
            **more,
        }

    table(src / "data" / "all" / "train-00000-of-00001.parquet", [chat(0), chat(1), chat(2, messages=[])])
    table(src / "data" / "all" / "test-00000-of-00001.parquet", [chat(8)])
    table(src / "data" / "everyday-conversations" / "train-00000-of-00001.parquet", [chat(0)])
    out = corpus("smoltalk", src)
    assert set(contents(out)) == {"text"}
    assert sorted(s["turns"][0][0] for s in said(out).values()) == ["hello 0", "hello 1"]
    assert bad(out) == [(3, "not a row")]


def test_rlaif_v_is_pairs(tmp_path: Path) -> None:
    src = tmp_path / "RLAIF-V"

    def row(n, **more):
        return {
            "ds_name": "llava15",
            "image": {"bytes": still(n), "path": None},
            "question": f"what {n}?",
            "chosen": f"good {n}",
            "rejected": f"bad {n}",
            "origin_dataset": "VQAv2",
            "origin_split": '{"model": "llava15_base"}',
            "idx": str(n),
            "image_path": "",
            **more,
        }

    table(
        src / "RLAIF-V-Dataset_000.parquet",
        [row(0), row(1), row(2, rejected="good 2"), row(3, chosen=""), row(4, idx="0")],
    )
    out = corpus("rlaif_v", src)
    asked = sorted(q for s in said(out).values() for q in s["questions"])
    assert asked == [("what 0?", "good 0", "bad 0"), ("what 1?", "good 1", "bad 1")]
    assert dict(bad(out)) == {3: "wrong answer", 4: "not a row", 5: "the id again"}
    assert len(read_all(out, Pairs())) == 2


def test_sharegpt4video_takes_the_caption_of_the_whole_video(tmp_path: Path) -> None:
    src = tmp_path / "ShareGPT4Video"
    src.mkdir()

    def row(n, captions=None):
        return json.dumps(
            {
                "video_id": f"id{n}",
                "video_path": f"panda/id{n}.mp4",
                "timestamp": ["0:00:00", "0:00:02"],
                "keyframe": [0, 60],
                "captions": captions or [{"idx": "0", "content": "first"}, {"idx": "-1", "content": f"whole {n}"}],
                "zip_folder": "panda_videos_1.zip",
            }
        )

    lines = [row(0), row(1), row(2, [{"idx": "0", "content": "first"}]), "{broken"]
    (src / "sharegpt4video_40k.jsonl").write_text("\n".join(lines))
    video(src / "zip_folder" / "panda" / "id0.mp4", 0)
    with zipfile.ZipFile(src / "zip_folder" / "panda" / "panda_videos_1.zip", "w") as archive:
        archive.writestr("id1.mp4", distinct(1))
    out = corpus("sharegpt4video", src)
    prompt = "Describe what happens in this video in detail."
    assert said(out) == {"zip_folder/panda/id0": captioned("whole 0", prompt), "id1": captioned("whole 1", prompt)}
    assert dict(bad(out)) == {3: "not a row", 4: "not a row"}


@pytest.mark.parametrize("form", ["files", "lines", "scenes"])
def test_vript_gives_a_clip_for_each_scene(tmp_path: Path, form: str) -> None:
    src = tmp_path / "Vript"

    def scene(n, **more):
        return {
            "video_id": "339dXVNQXac",
            "clip_id": f"339dXVNQXac-Scene-00{n}",
            "video_title": "t",
            "caption": {
                "shot_type": "wide",
                "camera_movement": "pan",
                "content": f"says {n}",
                "scene_title": "s",
                **more,
            },
            "voiceover": ["hi"],
        }

    whole = {"meta": {"video_id": "339dXVNQXac", "video_title": "t", "num_clips": 2, "integrity": True},
             "data": {s["clip_id"]: s for s in (scene(1), scene(2))}}  # fmt: skip
    if form == "files":
        write_json(src / "vript_captions" / "339dXVNQXac_caption.json", whole)
        (src / "vript_captions" / "broken_caption.json").write_text("{")
    else:
        lines = [whole] if form == "lines" else [scene(1), scene(2), scene(3, content=None)]
        (src / "vript_captions").mkdir(parents=True)
        path = src / "vript_captions" / "vript_long_videos_captions.jsonl"
        path.write_text("\n".join(map(json.dumps, lines)))
    clips = src / "vript_long_videos_clips" / "339dXVNQXac"
    for n in (1, 2):
        video(clips / f"339dXVNQXac-Scene-00{n}.mp4", n)
    out = corpus("vript", src)
    prompt = "Provide a detailed narration of what happens in this video."
    place = "vript_long_videos_clips/339dXVNQXac/339dXVNQXac-Scene-00"
    assert said(out) == {f"{place}{n}": captioned(f"says {n}", prompt) for n in (1, 2)}
    assert {s["cluster"] for s in together(contents(out)).values()} == {"339dXVNQXac"}
    assert bad(out) == {"files": [(1, "not a row")], "lines": [], "scenes": [(3, "not a row")]}[form]


def test_finevideo_with_videos_inside(tmp_path: Path) -> None:
    src = tmp_path / "finevideo"

    def of(n):
        return {
            "description": f"A film {n}.",
            "fps": 30.0,
            "qAndA": [{"answer": f"a {n}", "question": f"q {n}?"}],
            "scenes": [{"sceneId": 1, "title": "x"}],
            "title": "t",
        }

    def row(n, data, **more):
        return {
            "mp4": data,
            "json": {
                "content_fine_category": "Politics",
                "content_metadata": of(n),
                "content_parent_category": "News",
                "duration_seconds": 4,
                "original_video_filename": f"vid{n}.mp4",
                "youtube_title": "y",
                **more,
            },
        }

    table(src / "data" / "train-00000-of-01357.parquet", [
        row(0, distinct(0)), row(1, b"no video"), row(2, None), row(3, distinct(3), content_metadata=None),
    ])  # fmt: skip
    out = corpus("finevideo", src, "max_bad=1")
    assert said(out) == {
        "vid0": {
            "captions": ["A film 0."],
            "questions": [("Describe this video.", "A film 0."), ("q 0?", "a 0")],
            "turns": [],
        }
    }
    assert dict(bad(out)) == {2: "cannot be decoded", 3: "not a row", 4: "not a row"}


def test_activitynet_as_paragraphs_or_as_moments(tmp_path: Path) -> None:
    src = tmp_path / "captions"

    def of(n, **more):
        return {
            "duration": 4.0,
            "timestamps": [[0.0, 0.15], [0.1, 0.3]],
            "sentences": [f"First {n}.", f" Then {n}."],
            **more,
        }

    rows = {
        "v_a": of(0),
        "v_b": of(1),
        "v_c": of(2, timestamps=[[0.0, 1.0]]),
        "v_d": of(3, timestamps=[[2.0, 1.0]] * 2),
    }
    write_json(src / "train.json", rows)
    write_json(src / "val_1.json", {"v_e": of(4)})
    write_json(src / "val_2.json", {"v_e": of(5)})
    write_json(src / "train_ids.json", ["v_a", "v_b"])
    for n, name in enumerate(("v_a", "v_b", "v_e")):
        video(src / "videos" / f"{name}.mp4", n)
    out = corpus("activitynet", src)
    found = contents(out)
    assert found["train"].keys() == {"videos/v_a", "videos/v_b"} and found["val"].keys() == {"videos/v_e"}
    assert said(out)["videos/v_e"]["captions"] == ["First 4. Then 4.", "First 5. Then 5."], "both paragraphs"
    assert dict(bad(out)) == {3: "not a row", 4: "not a row"}
    parts = corpus("activitynet", src.rename(tmp_path / "again"), "moments=true")
    sections = {
        tuple(s["section"]): s["captions"][0]["text"]
        for s in contents(parts)["train"].values()
        if s["file"] == "videos/v_a.mp4"
    }
    assert sections == {(0.0, 0.15): "First 0.", (0.1, 0.3): "Then 0."}


# ---------------------------------------------------------------------------------------------------- all of them


def test_every_corpus_keeps_the_contract() -> None:
    assert len(corpora()) == 11
    for name, module in corpora().items():
        assert set(module.ROLES) <= set(ROLES) and set(module.OPTIONS) <= set(OPTIONS), name
        assert module.TITLE and all(isinstance(group, tuple) for group in module.FILES), name
        assert (module.PROMPT is not None) == ("caption" in module.ROLES and name != "fvlm"), name
        page = (ROOT / "docs" / "prepare.md").read_text(encoding="utf-8")
        assert f"`{name}`" in page and module.TITLE in page, name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["opnvid", "src=."], "corpus=opnvid: no such corpus; did you mean 'openvid'"),
        (["openvid"], "hvlm prepare openvid src=FOLDER out=DIR"),
        (["openvid", "src=."], "no file of OpenVid-1M in or below it; expected OpenVid-1M.csv or OpenVidHD.csv"),
        (["openvid", "src=.", "caption=x"], "caption=: corpus openvid knows its columns"),
        (["openvid", "src=.", "split=x"], "split=x: of corpus openvid shares alone"),
        (["openvid", "src=.", "tokenizer=x"], "tokenizer=: corpus openvid has no use for it; it belongs to fvlm"),
        (["rlaif_v", "src=.", "moments=true"], "moments=: corpus rlaif_v has no use for it; it belongs to activitynet"),
        (["webvid", "src=."], "other.csv: not as WebVid publishes it: it lacks videoid, name; it has a, b"),
    ],
)
def test_mistakes_with_a_corpus_are_one_line(tmp_path: Path, monkeypatch, words: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError) as error:
        command.prepare([*words, "out=out"])
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_corpus_goes_on_where_it_was_and_shares_make_splits(tmp_path: Path) -> None:
    src = tmp_path / "in"
    for i in range(40):
        video(src / f"v{i}.mp4", i)
    (src / "OpenVid-1M.csv").write_text(
        OPENVID + "\n".join(f"v{i}.mp4,Says {i}.,5,3,0.9,static,50,25,2" for i in range(40))
    )
    out = corpus("openvid", src, "split=[0.5,0.25,0.25]", "prompt=What is it?")
    assert set(contents(out)) == {"train", "val", "test"}
    assert {c["prompt"] for s in together(contents(out)).values() for c in s["captions"]} == {"What is it?"}
    written = (out / "manifest.json").stat().st_mtime_ns
    assert corpus("openvid", src, "split=[0.5,0.25,0.25]", "prompt=What is it?") == out
    assert (out / "manifest.json").stat().st_mtime_ns == written
    with pytest.raises(UserError, match=r"out=.* was begun with corpus=openvid \(now None\)"):
        made(src, out, "split=[0.5,0.25,0.25]", "prompt=What is it?", "video=video", "caption=caption")
