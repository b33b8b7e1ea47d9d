"""Lists, label files and folders as people write them: the right value, or one sentence."""

import os
import unicodedata

import pytest
from click.testing import CliRunner

from bieff.cli import main
from bieff.extract.catalogue import check, load
from bieff.extract.datasets.lists import read_list
from bieff.features.class_names import LabelIndex, has_sides, read_class_names, readable
from bieff.features.errors import InputError


@pytest.fixture
def write(tmp_path):
    def write_file(name, text):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write_file


@pytest.fixture
def put(tmp_path):
    """Empty files below a folder `videos`, for what is never decoded."""

    def put_files(*paths):
        for path in paths:
            file = tmp_path / "videos" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        return tmp_path / "videos"

    return put_files


def labelled(data):
    """Class by path, of all partitions."""
    return {
        video.path: data.class_names[video.label] if video.label >= 0 else None
        for videos in data.partitions.values()
        for video in videos
    }


# ---- label files

BOTH = ("abseiling", "archery")
LONG = "Putting something, something and something on the table"


@pytest.mark.parametrize(
    ("name", "text", "names"),
    [
        ("l.csv", "id;name\n0;abseiling\n1;archery\n", BOTH),
        ("l.tsv", "id\tname\n0\tabseiling\n1\tarchery\n", BOTH),
        ("l.csv", ",name\n0,abseiling\n1,archery\n", BOTH),
        ("l.csv", ",label,name\n0,0,abseiling\n1,1,archery\n", BOTH),
        ("l.csv", "Class ID,Class Name\n0,abseiling\n1,archery\n", BOTH),
        ("l.csv", "foo|bar\n0|abseiling\n1|archery\n", BOTH),
        ("l.csv", "Action,Index\nabseiling,0\narchery,1\n", BOTH),
        ("l.tsv", "class_id\tclass\tvideos\n0\tabseiling\t9\n1\tarchery\t7\n", BOTH),
        ("l.txt", "id name\n0 abseiling\n1 archery\n", BOTH),
        ("l.txt", "# classes\n0 abseiling\n1 archery\n", BOTH),
        ("l.txt", "name\nabseiling\narchery\n", BOTH),
        ("l.txt", "1. abseiling\n2. archery\n", BOTH),
        ("l.txt", "0: abseiling\n1: archery\n", BOTH),
        ("l.csv", f"id,name\n0,{LONG}\n1,archery\n", (LONG, "archery")),
        ("l.csv", f"name,id\n{LONG},0\narchery,1\n", (LONG, "archery")),
        ("l.csv", f"0,{LONG}\n1,archery\n", (LONG, "archery")),
        ("l.csv", "0,abseiling,\n1,archery,\n", BOTH),
        ("l.csv", "id;name;\n0;abseiling;\n1;archery;\n", BOTH),
        ("l.csv", "id,name,\n0,abseiling,\n1,archery\n", BOTH),
        ("l.csv", "id,name\n0,abseiling,\n1,archery,,\n", BOTH),
        ("l.csv", "abseiling;\narchery;\n", BOTH),
        ("l.csv", "abseiling, 0\narchery, 1\n", BOTH),
        ("l.txt", "abseiling: 0\narchery: 1\n", BOTH),
        ("l.txt", "0=abseiling\n1 = archery\n", BOTH),
        ("l.txt", "0 -> abseiling\n1 => archery\n", BOTH),
        ("l.txt", "0 - abseiling\n1 - archery\n", BOTH),
        ("l.txt", "\ufeff0 abseiling\r\n1 archery\r\n", BOTH),
        ("l.csv", "Unnamed: 0,id,name\n0,1,archery\n1,0,abseiling\n", BOTH),
        ("l.txt", "C\nC++\nC#\n", ("C", "C++", "C#")),
        ("l.txt", "100 metres\n200 metres\n", ("100 metres", "200 metres")),
        ("l.json", '{"abseiling": "0", "archery": "1"}', BOTH),
        ("l.txt", '{"abseiling": "0", "archery": 1}', BOTH),
        ("l.json", '[{"id": "1", "class": "archery"}, {"id": 0, "class": "abseiling"}]', BOTH),
        ("l.json", '[["Back", "15som"], ["In", "2Twis"]]', ("Back 15som", "In 2Twis")),
    ],
)  # fmt: skip
def test_forms_of_label_files(write, name, text, names):
    assert read_class_names(write(name, text)).names == names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0,abseiling\n1,archery\nzumba\n", "line 3: expected a number and a name.*'zumba'"),
        ("of all\n0 abseiling\n1 archery\nzumba\n", "line 1: expected a number and a name"),
        ("one,two,three\n0,run,x\n1,jump,y\n", "line 1: expected a header such as id,name"),
        (
            "id,name,readable\n0,a,b, c\n1,d,e\n",
            "line 2: expected 3 columns.*put quotes around",
        ),
        ("id,name\n", "expected a class a line, got an empty file"),
        ("id,name\n0,a\n1,\n", "line 3: expected a number and a name, got '1' and ''"),
        ('id,name\n0,"a\nb"\n1,c\n', "line 3: expected a number and a name"),
        (f"id,name\n{'9' * 5000},a\n", "line 2: expected a number and a name, got '999"),
    ],
)
def test_label_files_that_can_be_read_in_two_ways(write, text, message):
    with pytest.raises(InputError, match=message):
        read_class_names(write("l.csv", text))


@pytest.mark.parametrize(
    "text", ["id;name\n0;abseiling\n1;archery\n", ",name\n0,abseiling\n1,archery\n"]
)
def test_no_header_shifts_the_labels(write, put, text):
    videos = put("abseiling/a.mp4", "archery/b.mp4")
    rows = write("list.txt", "abseiling/a.mp4 0\narchery/b.mp4 1\n")
    data = load("list", videos=videos, lists={"val": rows}, labels=write("l.csv", text))
    assert labelled(data) == {"abseiling/a.mp4": "abseiling", "archery/b.mp4": "archery"}


# ---- lists


@pytest.mark.parametrize(
    ("name", "text", "labels"),
    [
        ("l.txt", "a 1.mp4 100 metres\nb.mp4 3 pointer\nc.mp4 pointer\n",
         ["100 metres", "3 pointer", "pointer"]),
        ("l.csv", "path,label\na.mp4,kick\nb.mp4,\n", ["kick", None]),
        ("l.csv", "path,label\na.mp4,kick,\nb.mp4,run,,\n", ["kick", "run"]),
        ("l.csv", "path,label,\na.mp4,kick,\nb.mp4,run,\n", ["kick", "run"]),
        ("l.csv", ",path,labels\n0,a.mp4,kick\n1,b.mp4,run\n", ["kick", "run"]),
        ("l.csv", "a.mp4,applauding,3,0\nb.mp4,applauding,4,1\n", ["applauding"] * 2),
        ("l.csv", "path,label,votes,votes\na.mp4,applauding,3,0\n", ["applauding"]),
        ("l.csv", f"path,label\na.mp4,{LONG}\nb.mp4,run\n", [LONG, "run"]),
        ("l.csv", f"a.mp4,{LONG}\nb.mp4,run\n", [LONG, "run"]),
        ("l.csv", "34870;Drumming Fingers\n34871;Thumb Up\n", ["Drumming Fingers", "Thumb Up"]),
        ("l.csv", "34870|Drumming Fingers\n", ["Drumming Fingers"]),
        ("l.csv", f"34870;{LONG}\n34871;Thumb Up\n", [LONG, "Thumb Up"]),
        ("l.csv", "path,label\na.mp4,3.0\nb.mp4,\n", [3, None]),
        ("l.csv", "a, b/v,7\nc/w,3\n", [7, 3]),
        ("l.tsv", "File Name\tClass ID\na.mp4\t3\n", [3]),
        ("l.txt", "a.mp4 take 5\nb.mp4 take 7\n", ["take 5", "take 7"]),
        ("l.json", '[{"id": "1", "label": "a red bag", "template": "Pushing [something]"}]',
         ["Pushing something"]),
        ("l.json", '[{"vid_name": "x", "label": 12, "start_frame": 0, "end_frame": 9}]', [12]),
        ("l.json", '{"a.mp4": "kick", "b.mp4": 3}', ["kick", 3]),
        ("l.jsonl", '{"path": "a.mp4", "label": "kick"}\n{"path": "b.mp4", "label": -1}\n',
         ["kick", None]),
    ],
)  # fmt: skip
def test_forms_of_lists(write, name, text, labels):
    assert [row.label for row in read_list(write(name, text))] == labels


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.txt", "test.mp4 0 3\na.mp4 1\nb.mp4 2 0\n", "line 1: .*got '0 3'.*several classes"),
        ("l.txt", "c.mp4 1\na.mp4 4 3\n", "line 2: .*got '4 3'.*several classes"),
        ("l.txt", "a.mp4 0 3\nb.mp4 2 1\n", "line 1: .*got '0 3'.*several classes"),
        ("l.txt", "b.mp4 2\na.mp4 0,1,3\n", "line 2: .*got 3 numbers.*has one class"),
        ("l.csv", "path,start,label\na.mp4,0,run\n", "line 1: .*a column 'start'; add the"),
        ("l.csv", "clip,t_end,label\na.mp4,3,run\n", "line 1: .*a column 'tend'; add the"),
        ("l.csv", "path,start_frame,end_frame,label\na,0,9,x\n", "in seconds, got a column"),
        ("l.csv", "path,start,end\na,0,soon\n", "line 2: expected times.*h:mm:ss, got 'soon'"),
        ("l.csv", "path,start,end\na,-1,2\n", "line 2: expected times.*got '-1'"),
        ("l.csv", "path,start,end\na,0,1:0:0:2\n", "line 2: expected times.*got '1:0:0:2'"),
        ("l.csv", "a.mp4,0.0,3.5,kick\nb.mp4,0.0,3.5,run\n", "line 1: .*for parts put a head"),
        ("l.txt", "a.mp4 0.5 3.5 2\n", "line 1: .*for parts put a header above"),
        ("l.csv", "a.mp4,kick,3\nb.mp4,run\n", "line 1: .*got 'kick, 3'; put a header above"),
        ("l.csv", "path,label\na.mp4,kick,3\n", "line 2: expected 2 columns as in the header"),
        ("l.json", '[{"path": "a.mp4", "start": 1}]', "entry 1: .*a column 'start'"),
        ("l.json", '{"database": {"x": {}}}', "entry 1: expected a record such as"),
        ("l.csv", "youtube_id,time_start\nx,soon\n", "line 2: expected times.*got 'soon'"),
        ("l.json", "{", "not json"),
        ("l.json", '[{"path": "a", "label": ["x", "y"]}]', r"entry 1: .*one class, got \['x'"),
    ],
)  # fmt: skip
def test_lists_that_can_be_read_in_two_ways(write, name, text, message):
    with pytest.raises(InputError, match=message):
        read_list(write(name, text))


@pytest.mark.parametrize(
    ("text", "labels", "expected"),
    [
        ("a.mp4,kick;run\nb.mp4,run\n", None, "line 1: expected one class, got 'kick;run'"),
        ('path,labels\na.mp4,run\nb.mp4,"kick, run"\n', None, "line 3: expected one class"),
        ('a.mp4,"0,1"\nb.mp4,1\n', "kick\nrun\n", "label '0,1' has no name among the 2"),
        (f"a.mp4,{'9' * 5000}\n", "kick\nrun\n", "line 1: label '999"),
        ("path,kick,run\na.mp4,0,1\nb.mp4,1,0\n", None, "videos without a label: 2"),
    ],
)
def test_several_classes_are_said_by_check(write, put, text, labels, expected):
    command = ["extract", "--dataset", "list", "--videos", put("a.mp4", "b.mp4"), "--check"]
    command += ["--list", f"val={write('l.csv', text)}"]
    command += ["--labels", write("n.txt", labels)] if labels else []
    result = CliRunner().invoke(main, list(map(str, command)))
    assert expected in " ".join(result.output.replace("│", " ").split())


def test_a_number_that_is_of_the_name(write, put):
    """A label file tells; otherwise a note says how it was taken."""
    videos = put("a.mp4", "b.mp4")
    rows = write("l.txt", "a.mp4 100 metres\nb.mp4 200 metres\n")
    names = write("n.txt", "100 metres\n200 metres\n")
    data = load("list", videos=videos, lists={"val": rows}, labels=names)
    assert labelled(data) == {"a.mp4": "100 metres", "b.mp4": "200 metres"}
    assert any("numbers of frames, as in '100 metres'" in note for note in load(
        "list", videos=videos, lists={"val": rows}).notes)  # fmt: skip


def test_backslashes_in_a_list(write, put):
    videos = put("train/kick/a.avi", "train/run/b.avi")
    rows = write("l.txt", "train\\kick\\a.avi 0\nC:\\data\\train\\run\\b.avi 1\n")
    data = load("list", videos=videos, lists={"train": rows})
    assert labelled(data) == {"train/kick/a.avi": "kick", "train/run/b.avi": "run"}
    assert data.partitions["train"][0].id == "train/kick/a"
    assert not data.missing


def test_another_case_is_said_and_a_youtube_id_is_another(write, put):
    videos = put("Kick.mp4", "dQw4w9WgXcQ.mp4", "same.mp4", "SAME.mp4")
    rows = write("l.txt", "kick.mp4 a\nDQW4w9WgXcQ.mp4 a\nsame.mp4 b\n")
    data = load("list", videos=videos, lists={"val": rows})
    assert [video.path for video in data.partitions["val"] if video.id not in data.missing] == [
        "Kick.mp4",
        "same.mp4",
    ]
    (note,) = (note for note in data.notes if "another case" in note)
    assert note.endswith(": 2, the first is 'kick.mp4'")


def test_one_file_in_two_spellings_is_one_video(write, put):
    videos = put("kick/a1.mp4")
    twice = write("l.txt", "kick/a1.mp4 0\nkick/A1.avi 0\n")
    names = write("n.txt", "kick\nrun\n")
    data = load("list", videos=videos, lists={"val": twice}, labels=names)
    assert [video.id for video in data.partitions["val"]] == ["kick/a1"]
    other = write("l.txt", "kick/a1.mp4 0\nkick/A1.avi 1\n")
    with pytest.raises(
        InputError, match=r"line 2: 'kick/A1.avi' was listed before with another"
    ):
        load("list", videos=videos, lists={"val": other}, labels=names, trust_labels=True)


# ---- names


@pytest.mark.parametrize(
    "name",
    ["swipe-left", "turnRight", "counterclockwise", "moving_left", "swipeleft", "Turn2Right",
     "LEFT hook", "anti-clockwise", "rotate CCW", "leftwards", "rightmost", "thumbRight"],
)  # fmt: skip
def test_names_that_tell_left_from_right(name):
    assert has_sides(["run", name])


@pytest.mark.parametrize(
    "name",
    ["bright light", "leftovers", "copyright", "cleft lip", "playwright", "upright", "lifting"],
)
def test_names_that_do_not(name):
    assert not has_sides([name])


def test_random_views_of_turns_are_not_mirrored(put):
    assert not load("folder", videos=put("turnLeft/a.mp4", "turnRight/b.mp4")).mirror


def test_plus_between_words_is_a_space():
    assert readable("adult+female+singing") == "adult female singing"
    assert readable("C++ coding") == "C++ coding"


def test_signs_tell_classes_apart_where_nothing_else_does(put):
    data = load("folder", videos=put("C_coding/a.mp4", "C++_coding/b.mp4", "run/c.mp4"))
    assert labelled(data) == {
        "C_coding/a.mp4": "C coding",
        "C++_coding/b.mp4": "C++ coding",
        "run/c.mp4": "run",
    }
    index = LabelIndex(["petting animal (not cat)", "C", "C++"], source="x")
    assert [index.find(n) for n in ("petting_animal_not_cat", "c", "c++", "C#")] == [
        0,
        1,
        2,
        None,
    ]


# ---- folders

NFD = unicodedata.normalize("NFD", "köpfen")
NFC = unicodedata.normalize("NFC", "köpfen")


def test_accents_of_two_characters_are_the_same_letters(write, put):
    videos = put(f"{NFD}/a.mp4", f"{NFC}/b.mp4", f"run/{NFD}.mp4")
    data = load("folder", videos=videos)
    assert data.class_names == (NFC, "run")
    ids = {video.id for video in data.partitions["all"]}
    assert ids == {f"{NFC}/a", f"{NFC}/b", f"run/{NFC}"}
    rows = write("l.txt", f"{NFC}/a.mp4 0\nrun/{NFC}.mp4 1\n")
    listed = load(
        "list", videos=videos, lists={"val": rows}, labels=write("n.txt", f"{NFC}\nrun")
    )
    assert not listed.missing


@pytest.mark.parametrize(
    ("paths", "classes", "partitions"),
    [
        (("crash_test/a.mp4", "drop_test/b.mp4"), 2, ["all"]),
        (("crash_test/a.mp4",), 1, ["all"]),
        (("crash_test/a.mp4", "train/b.mp4"), 2, ["all"]),
        (("k400_train/x/a.mp4", "k400_val/x/b.mp4"), 1, ["train", "val"]),
        (("train_256/x/a.mp4", "val/x/b.mp4"), 1, ["train", "val"]),
        (("train/crash_test/a.mp4", "val/crash_test/b.mp4"), 1, ["train", "val"]),
        (("train/a.mp4", "val/b.mp4"), 0, ["train", "val"]),
    ],
)
def test_classes_that_are_called_like_partitions(put, paths, classes, partitions):
    data = load("folder", videos=put(*paths))
    assert (len(data.class_names), list(data.partitions)) == (classes, partitions)


def test_a_name_that_is_not_utf8_costs_that_video_alone(put):
    videos = put("a/fine.mp4", "b/fine.mp4")
    (videos / "b" / os.fsdecode(b"\xff\xe9.mp4")).touch()
    report = check("folder", videos=videos)
    assert report.data.class_names == ("a", "b")
    assert len(report.data.missing) == 1
    assert not report.is_clean
    result = CliRunner().invoke(
        main, ["extract", "--dataset", "folder", "--videos", str(videos), "--check"]
    )
    assert result.exit_code == 1
    assert r"not UTF-8: 1, the first is 'b/\xff\xe9.mp4'; rename them" in result.output


def test_gifs_are_videos(put):
    assert len(load("folder", videos=put("a/x.gif", "b/y.GIF")).partitions["all"]) == 2
