"""Stores whose rows are parts of videos: from lists, from Kinetics' csv, from windows."""

import json
import os
import re

import av
import h5py
import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from helpers import stamped

from bieff.cli import NOT_WHOLE, main
from bieff.extract import lengths
from bieff.extract.catalogue import load
from bieff.extract.datasets.lists import read_list
from bieff.extract.lengths import Windows, seconds_of, windowed
from bieff.features.check import verify
from bieff.features.errors import ConfigError, InputError
from bieff.features.store import FeatureStore

SMALL = ("--frames", "2", "--clips", "1", "--device", "cpu", "--set", "decoders=1")
MODEL = ("--model", "tinyclip")


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)


def write(folder, *names, seconds=30):
    """Clips of two frames a second, keyframes every five seconds."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        clip = stamped.Clip(num_frames=2 * seconds, fps=2, gop=10, size=(96, 64))
        stamped.write(folder / name, clip)
    return folder


def copy(source, path, start, end):
    """Copy what is shown from `start` to `end`, both at keyframes, without encoding again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = old.streams.video[0]
        copied = new.add_stream_from_template(stream)
        packets = [packet for packet in old.demux(stream) if packet.size]
        packets = [p for p in packets if start <= p.pts * p.time_base < end]
        for packet in packets:
            packet.pts, packet.dts = packet.pts - packets[0].pts, packet.dts - packets[0].pts
            packet.stream = copied
            new.mux(packet)


# --- lists


@pytest.mark.parametrize(
    ("name", "text", "times"),
    [
        ("l.csv", "path,start,end,label\na.mp4,1.5,3,x\n", (1.5, 3.0)),
        ("kinetics.csv", "label,path,time_start,time_end,split\nx,a.mp4,12,22,val\n", (12, 22)),
        ("anet.csv", "video-id,t-start,t-end,label\na,0.25,10.5,x\n", (0.25, 10.5)),
        (
            "epic.csv",
            "narration_id,video_id,start_timestamp,stop_timestamp,start_frame,stop_frame,label\n"
            "P01_1,a,00:01:02.50,01:00:03.00,3750,216180,x\n",
            (62.5, 3603.0),
        ),
        ("l.tsv", "video\tbegin_sec\tend_sec\tlabel\na\t1\t2\tx\n", (1.0, 2.0)),
        ("l.json", '[{"path": "a.mp4", "start": 1, "end": 2.5, "label": "x"}]', (1.0, 2.5)),
        ("l.csv", "path,start,end,label\na.mp4,,,x\n", None),
    ],
)  # fmt: skip
def test_forms_of_times(tmp_path, name, text, times):
    (tmp_path / name).write_text(text)
    (row,) = read_list(tmp_path / name)
    assert (row.times, row.label) == (times, "x")


CHARADES = '46GP8,HR43,Kitchen,6,7,Yes,"One cooks, and smiles.",food,"a, b",{},24.83\n'
CHARADES_HEADER = (
    "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length\n"
)


def test_charades_has_several_classes_for_the_same_seconds(tmp_path):
    """Its own csv, or a line a part and class, whatever their order; label files name them."""
    write(tmp_path, "46GP8.mp4", seconds=25)
    (tmp_path / "names.csv").write_text("class,readable\nc092,wash\nc147,take\nc148,eat\n")
    actions = "c092 11.90 21.20;c147 0.00 12.60;c148 0.00 12.60"
    own = CHARADES_HEADER + CHARADES.format(actions) + CHARADES.format("").replace("46", "no")
    lines = ["46GP8,c092,11.90,21.20", "46GP8,c148,0,12.60", "46GP8,c147,0.0,12.6"]
    rows = "id,class,start,end\n" + "\n".join(lines)
    for text in (own, rows):
        (tmp_path / "l.csv").write_text(text)
        lists, names = {"all": tmp_path / "l.csv"}, tmp_path / "names.csv"
        data = load("list", videos=tmp_path, lists=lists, labels=names)
        videos = sorted(data.partitions["all"], key=lambda v: v.label)
        assert data.class_names == ("wash", "take", "eat")
        assert [(v.id, v.label, v.start, v.end) for v in videos] == [
            ("46GP8@11.9-21.2", 0, 11.9, 21.2),
            ("46GP8@0.0-12.6:c147", 1, 0, 12.6),
            ("46GP8@0.0-12.6:c148", 2, 0, 12.6),
        ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            CHARADES_HEADER + CHARADES.format("c092 11.90"),
            "line 2: expected actions such as 'c092 11.90 21.20', got 'c092 11.90'",
        ),
        (
            "id,labels,start,end\na,c1;c2,0,1\n",
            "line 1: expected a column of one class, such as label, got 'labels'; write a line "
            "for each class and the part that shows it: id,class,start,end",
        ),
        (
            "path,label\na.mp4,x\na.mp4,y\n",
            "line 3: 'a.mp4' was listed before with another label; a whole video has one class",
        ),
    ],
)
def test_several_classes_of_one_line_or_video_are_a_sentence(tmp_path, text, message):
    (tmp_path / "l.csv").write_text(text)
    (tmp_path / "a.mp4").write_bytes(b"x")
    with pytest.raises(InputError, match=re.escape(message)):
        load("list", videos=tmp_path, lists={"all": tmp_path / "l.csv"})


def test_a_list_that_names_no_class_says_so(tmp_path):
    """As EPIC's own, where verb, noun and narration are classes."""
    (tmp_path / "l.csv").write_text("video_id,start_timestamp,stop_timestamp,verb\na,1,2,cut\n")
    (tmp_path / "a.mp4").write_bytes(b"x")
    data = load("list", videos=tmp_path, lists={"all": tmp_path / "l.csv"})
    assert data.notes == (
        "videos without a label: 1, as neither a column nor the folders say one",
    )


def test_json_of_activitynet(tmp_path):
    """One file holds both lists; files are called v_<id>, or by the id alone."""
    notes = [{"segment": [0.5, 9.0], "label": "run"}, {"segment": [20, 28.5], "label": "jump"}]
    database = {
        "aaaaaaaaaaa": {"subset": "training", "annotations": notes, "duration": 30.0},
        "bbbbbbbbbbb": {"subset": "validation", "annotations": notes[:1]},
        "ccccccccccc": {"subset": "testing", "annotations": []},
    }
    file = tmp_path / "activity_net.json"
    file.write_text(json.dumps({"version": "1.3", "database": database}))
    for name in ("v_aaaaaaaaaaa.mp4", "bbbbbbbbbbb.mkv"):
        (tmp_path / "videos" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "videos" / name).write_bytes(b"x")
    data = load("list", videos=tmp_path / "videos", lists={"train": file, "val": file})
    assert [(v.path, v.start, v.end) for v in data.partitions["train"]] == [
        ("v_aaaaaaaaaaa.mp4", 0.5, 9.0),
        ("v_aaaaaaaaaaa.mp4", 20.0, 28.5),
    ]
    assert [v.path for v in data.partitions["val"]] == ["bbbbbbbbbbb.mkv"]
    assert data.class_names == ("jump", "run")


def test_json_of_kinetics(tmp_path):
    file = tmp_path / "train.json"
    entry = {"annotations": {"label": "yoga", "segment": [12.0, 22.0]}, "subset": "train"}
    file.write_text(json.dumps({"abcdefghijk": entry}))
    assert [row.path for row in read_list(file)] == ["abcdefghijk_000012_000022"]
    assert [(r.path, r.times) for r in read_list(file, trim=True)] == [
        ("abcdefghijk", (12.0, 22.0))
    ]


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    """A list of five parts of two videos; one lies behind the end. Extracted."""
    folder = tmp_path_factory.mktemp("listed")
    write(folder / "videos", "a.mp4", "b.mkv")
    (folder / "all.csv").write_text(
        "path,start,end,label\n"
        "a.mp4,12.0,22.0,x\nb.mp4,3,4.25,y\na.mp4,0,30,y\na.mp4,40,50,x\nb.mp4,2.5,20,x\n"
    )
    command = (
        *("extract", "--dataset", "list", "--videos", folder / "videos"),
        *("--list", f"all={folder / 'all.csv'}", *MODEL, *SMALL, "--out", folder / "store"),
    )
    return folder, command, run(*command)


def test_rows_are_parts_and_a_bad_one_costs_itself(listed):
    folder, command, result = listed
    assert result.exit_code == NOT_WHOLE
    assert "5 videos (4 ok, 1 corrupt)" in result.stdout
    assert re.search(r"corrupt a.mp4@40.0-50.0: no frame in 40-50 s of video", result.stdout)
    store = FeatureStore.open(folder / "store")
    part = store.partitions["all"]
    assert [video.id for video in part.videos] == [
        *("a@0.0-30.0", "a@12.0-22.0", "a@40.0-50.0"),
        *("b@2.5-20.0", "b@3.0-4.25"),
    ]
    frames = part.frames(slice(None))[:, 0].tolist()
    assert frames == [[0, 30], [24, 34], [-1, -1], [5, 22], [6, 7]]
    group = zarr.open(folder / "store", mode="r")["all"]
    assert group["start"][:5].tolist() == [0, 12, 40, 2.5, 3]
    assert group["end"][:5].tolist() == [30, 22, 50, 20, 4.25]
    assert np.isnan(group["start"][5:]).all()
    assert verify(store).is_sound
    said = run("extract", "--dataset", "list", "--status", "--out", folder / "store")
    assert "corrupt a.mp4@40.0-50.0" in said.stdout
    again = run(*command)
    assert "5 videos (4 ok, 1 corrupt) in 0 s" in again.stdout


def test_other_times_are_another_store(listed):
    folder, command, _ = listed
    text = (folder / "all.csv").read_text()
    (folder / "other.csv").write_text(text.replace("3,4.25,y", "3,4.5,y"))
    other = [str(c).replace("all.csv", "other.csv") for c in command]
    result = run(*other)
    assert result.exit_code == 1
    assert "store has 'b@3.0-4.25', asked for 'b@3.0-4.5'" in result.output
    (folder / "other.csv").write_text(text.replace("b.mp4,3,4.25,y\n", ""))
    assert "store has 5 videos and parts, asked for 4" in run(*other).output


@pytest.mark.slow
def test_parts_are_exported_and_imported(listed, tmp_path):
    folder, *_ = listed
    assert run("store", "export", folder / "store", "--to", tmp_path / "s.h5").exit_code == 0
    with h5py.File(tmp_path / "s.h5") as file:
        assert file["all/ids"][0] == b"a@0.0-30.0"
    assert run("store", "import", tmp_path / "s.h5", "--to", tmp_path / "s").exit_code == 0
    again = FeatureStore.open(tmp_path / "s")
    assert (
        again.partitions["all"].videos
        == FeatureStore.open(folder / "store").partitions["all"].videos
    )
    assert verify(again).is_sound


@pytest.mark.slow
def test_a_store_of_whole_videos_has_no_times(tmp_path):
    write(tmp_path / "videos", "x/a.mp4", seconds=3)
    command = ("extract", "--dataset", "folder", "--videos", tmp_path / "videos")
    assert run(*command, *MODEL, *SMALL, "--out", tmp_path / "store").exit_code == 0
    assert not (tmp_path / "store" / "all" / "start").exists()
    (line,) = (tmp_path / "store" / "videos" / "all.jsonl").read_text().splitlines()
    assert list(json.loads(line)) == ["id", "path", "label", "size", "splits"]


# --- Kinetics


@pytest.mark.slow
def test_trimmed_whole_videos_are_those_that_were_cut(tmp_path):
    """Of clips copied out at keyframes every number is the same."""
    csv = "label,youtube_id,time_start,time_end,split\n"
    csv += "zumba,abcdefghij0,5,15,train\nyoga,abcdefghij1,10,20,train\n"
    csv += "yoga,abcdefghij2,15,25,train\n"
    clips = [("zumba/abcdefghij0", 5), ("yoga/abcdefghij1", 10), ("yoga/abcdefghij2", 15)]
    whole = write(tmp_path / "whole", *(f"train/{name}.mp4" for name, _ in clips))
    for name, start in clips:
        cut = tmp_path / "cut" / "train" / f"{name}_{start:06d}_{start + 10:06d}.mp4"
        copy(whole / "train" / f"{name}.mp4", cut, start, start + 10)
    stores = []
    for kind, more in (("whole", ["--trim"]), ("cut", [])):
        (tmp_path / kind / "train.csv").write_text(csv)
        command = ("extract", "--dataset", "k400", "--videos", tmp_path / kind, *MODEL, *SMALL)
        result = run(*command, *more, "--out", tmp_path / f"{kind}.store")
        assert result.exit_code == 0, result.output
        assert "whole videos instead of clips" not in result.output
        stores.append(FeatureStore.open(tmp_path / f"{kind}.store").partitions["train"])
    trimmed, cut = stores
    assert [video.id for video in trimmed.videos] == [video.id for video in cut.videos]
    assert trimmed.read(slice(None)).tobytes() == cut.read(slice(None)).tobytes()
    offsets = np.array([2 * start for _, start in clips])[:, None, None]
    np.testing.assert_array_equal(
        trimmed.frames(slice(None)), cut.frames(slice(None)) + offsets
    )


def test_a_csv_of_clips_and_whole_videos_lead_to_trim(tmp_path):
    lines = "label,youtube_id,time_start,time_end\nyoga,abcdefghij0,5,15\n"
    (tmp_path / "abcdefghij0.mp4").write_bytes(b"x")
    (tmp_path / "l.csv").write_text(lines)
    lists = {"all": tmp_path / "l.csv"}
    said = (
        "'abcdefghij0_000005_000015' first; as whole videos of these ids are there, say --trim"
    )
    with pytest.raises(InputError, match=said):
        load("list", videos=tmp_path, lists=lists)
    (tmp_path / "l.csv").write_text(f"{lines}yoga,abcdefghij1,0,10\n")
    (tmp_path / "abcdefghij1_000000_000010.mp4").write_bytes(b"x")
    (note,) = load("list", videos=tmp_path, lists=lists).notes
    assert note.startswith("lines that stand for clips of videos that lie there whole: 1, the")


def test_what_no_list_names_is_not_trimmed(tmp_path):
    """Folders alone do not know where in a whole video the clip is."""
    write(tmp_path, "train/yoga/abcdefghij1.mp4", seconds=20)
    data = load("k400", videos=tmp_path, trim=True)
    assert [video.start for video in data.partitions["train"]] == [None]
    assert data.uncut == ("train/yoga/abcdefghij1.mp4",)
    with pytest.raises(InputError, match="has no list of parts to trim; leave --trim out"):
        load("folder", videos=tmp_path, trim=True)


# --- windows


@pytest.mark.parametrize(
    ("seconds", "length", "every", "windows"),
    [
        (30, 10, 10, [(0, 10), (10, 20), (20, 30)]),
        (30.2, 10, 10, [(0, 10), (10, 20), (20, 30)]),
        (31, 10, 10, [(0, 10), (10, 20), (20, 30), (30, 40)]),
        (22, 10, 5, [(0, 10), (5, 15), (10, 20), (15, 25)]),
        (3, 10, 5, [(0, 10)]),
        (0.1, 10, 5, [(0, 10)]),
        (0.5, 0.2, 0.1, [(0, 0.2), (0.1, 0.3)]),
    ],
)
def test_windows_by_hand(seconds, length, every, windows):
    found = Windows(length, every).over(seconds)
    assert found == windows
    assert {type(edge) for window in found for edge in window} == {float}


def test_windows_that_leave_gaps_are_refused():
    with pytest.raises(ConfigError, match=r"at most as many, got 5 and 10"):
        Windows(5, 10)
    with pytest.raises(ConfigError, match="expected --windows beside it"):
        Windows.of(None, 5)
    with pytest.raises(ConfigError, match=r"at most 1,000,000 windows of a video"):
        Windows(1e-3, 1e-3).over(10_000)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.avi", "a.h264"])
def test_lengths_are_those_of_the_frames(tmp_path, name):
    write(tmp_path, name, seconds=7)
    assert abs(seconds_of(tmp_path / name) - 7) <= 0.5 or name == "a.h264"


@pytest.mark.slow
def test_a_file_that_hangs_costs_its_own_length(tmp_path, monkeypatch):
    """Opening a pipe that nobody writes to never ends."""
    monkeypatch.setattr(lengths, "PATIENCE", 2.0)
    write(tmp_path, "a.mp4", seconds=7)
    os.mkfifo(tmp_path / "pipe.mp4")
    paths = [tmp_path / name for name in ("pipe.mp4", "none.mp4", "a.mp4")]
    assert list(lengths.lengths_of(paths)) == [None, 0.0, 7.0]


@pytest.mark.slow
def test_windows_over_a_data_set(tmp_path):
    write(tmp_path / "v", "x/a.mp4", "y/b.mp4", seconds=20)
    (tmp_path / "v" / "y" / "c.mp4").write_bytes(b"no video")
    command = ("extract", "--dataset", "folder", "--videos", tmp_path / "v", *MODEL, *SMALL)
    command = (*command, "--windows", 10, "--every", 5, "--out", tmp_path / "store")
    result = run(*command)
    assert result.exit_code == NOT_WHOLE
    assert "7 videos (6 ok, 1 corrupt)" in result.stdout
    part = FeatureStore.open(tmp_path / "store").partitions["all"]
    assert [video.id for video in part.videos][:3] == [
        *("x/a@0.0-10.0", "x/a@5.0-15.0", "x/a@10.0-20.0")
    ]
    assert part.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert part.frames([0, 1, 2])[:, 0].tolist() == [[0, 10], [10, 20], [20, 30]]
    again = run(*command, "--retry-failed")
    assert "7 videos (6 ok, 1 corrupt)" in again.stdout


def test_parts_stay_parts_under_windows(tmp_path):
    write(tmp_path / "v", "a.mp4", seconds=20)
    (tmp_path / "l.csv").write_text("path,start,end,label\na.mp4,1,2,x\n")
    data = load("list", videos=tmp_path / "v", lists={"all": tmp_path / "l.csv"})
    assert windowed(data, Windows(5, 5)).partitions == data.partitions
