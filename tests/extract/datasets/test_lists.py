"""List and label files, in every form people have them."""

import codecs
import json

import pytest

from bieff.extract.datasets.lists import read_list
from bieff.features.class_names import read_class_names
from bieff.features.errors import InputError

HOSTILE = "#437_How_To_Ride_(a)_[Bike]!_&_So;On+~@'x'_ride_bike_f_cm_np1_ri_med_5.avi"
"""Every character that HMDB-51's file names hold, and then some."""


@pytest.fixture
def write(tmp_path):
    def write_file(text, name="list.txt"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write_file


def entries(path):
    return [(row.path, row.label) for row in read_list(path)]


@pytest.mark.parametrize(
    ("line", "path", "label"),
    [
        ("a/v.avi 3", "a/v.avi", 3),
        ("a/v.avi 164 3", "a/v.avi", 3),
        ("a/v.avi,3", "a/v.avi", 3),
        ("a/v.avi, 164, 3", "a/v.avi", 3),
        ("a/v.avi\t3", "a/v.avi", 3),
        ("a/v.avi 3 ", "a/v.avi", 3),
        ("a/v.avi", "a/v.avi", None),
        ("a/v.avi -1", "a/v.avi", None),
        ("a b/my clip 3.mp4 7", "a b/my clip 3.mp4", 7),
        ("a b/my clip 3.mp4 120 7", "a b/my clip 3.mp4", 7),
        ("a, b/v, 2.webm,7", "a, b/v, 2.webm", 7),
        ('"a, b/v.mp4",7', "a, b/v.mp4", 7),
        ("/abs/v.MKV 7", "/abs/v.MKV", 7),
        ("a/v.avi riding a bike", "a/v.avi", "riding a bike"),
        ("a/v.avi,riding a bike", "a/v.avi", "riding a bike"),
        ("a/v.avi 120 riding a bike", "a/v.avi", "riding a bike"),
        ("frames/of a video 7", "frames/of a video", 7),
        ("frames/v,7", "frames/v", 7),
        ("frames/v,ride bike", "frames/v", "ride bike"),
        ("frames/v", "frames/v", None),
        (f"ride_bike/{HOSTILE} 7", f"ride_bike/{HOSTILE}", 7),
        (f"ride_bike/{HOSTILE},7", f"ride_bike/{HOSTILE}", 7),
        (f"ride_bike/{HOSTILE} 99 7", f"ride_bike/{HOSTILE}", 7),
        (HOSTILE, HOSTILE, None),
    ],
)
@pytest.mark.parametrize("encode", ["plain", "crlf", "bom", "blank lines"])
def test_a_line(write, line, path, label, encode):
    text = f"{line}\n{line}\n".encode()
    if encode == "crlf":
        text = text.replace(b"\n", b"\r\n")
    if encode == "bom":
        text = codecs.BOM_UTF8 + text
    if encode == "blank lines":
        text = b"\n" + text + b"  \n\n"
    assert entries(write(text)) == [(path, label)] * 2


def test_frame_folders_with_numbers_of_frames(write):
    """Without a suffix only the whole file tells three columns from two."""
    assert entries(write("a/b 12 3\na/c 9 0\n")) == [("a/b", 3), ("a/c", 0)]
    assert entries(write("a/b 12 3\na/c 0\n")) == [("a/b 12", 3), ("a/c", 0)]


@pytest.mark.parametrize(
    "text",
    [
        "path,label\na/v.avi,3\n",
        "label,path\n3,a/v.avi\n",
        "video_name,num_frames,class_id,class\na/v.avi,164,3,ride bike\n",
        "path\tlabel\na/v.avi\t3\n",
        "path;label\na/v.avi;3\n",
        "path label\na/v.avi 3\n",
        'Path,Label\r\n"a/v.avi",3\r\n',
    ],
)
def test_a_header(write, text):
    assert entries(write(text, "list.csv")) == [("a/v.avi", 3)]


def test_a_table_with_names_and_quoted_commas(write):
    text = 'path,class\n"a, b/v.avi","ride, then fall"\n'
    assert entries(write(text)) == [("a, b/v.avi", "ride, then fall")]


def test_a_kinetics_table(write):
    text = "label,youtube_id,time_start,time_end,split\nzumba,ZVDR2od1gn8,37,47,val\n"
    assert entries(write(text)) == [("ZVDR2od1gn8_000037_000047", "zumba")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a video a line, got an empty file"),
        ("a.avi 1\nb.avi 1 2 3\n", "line 2: expected a path and a label.*got 3 numbers"),
        ("path,label\na.avi,1\nb.avi\n", "line 3: expected 2 columns as in the header"),
        (b"\xff\xfe\x00", "expected UTF-8, got byte 0xff at 0"),
    ],
)
def test_a_broken_list_is_named(write, text, message):
    with pytest.raises(InputError, match=message):
        read_list(write(text))


def test_a_missing_list_is_named(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*nowhere.txt: no such file"):
        read_list(tmp_path / "nowhere.txt")


NAMES = ("abseiling", "air drumming", "petting animal (not cat)")


@pytest.mark.parametrize(
    ("name", "text", "first_id"),
    [
        ("l.csv", "id,name\n0,abseiling\n1,air drumming\n2,petting animal (not cat)\n", 0),
        ("l.csv", "0,abseiling\n2,petting animal (not cat)\n1,air drumming\n", 0),
        ("l.csv", "name,id\nabseiling,0\nair drumming,1\npetting animal (not cat),2\n", 0),
        ("l.csv", "class,label\nabseiling,0\nair drumming,1\npetting animal (not cat),2\n", 0),
        ("l.csv", "label,class\n0,abseiling\n1,air drumming\n2,petting animal (not cat)\n", 0),
        ("l.txt", "1 abseiling\r\n2 air_drumming\r\n3 petting_animal_(not_cat)\r\n", 1),
        ("l.txt", "abseiling 0\nair drumming 1\npetting animal (not cat) 2\n", 0),
        ("l.txt", "abseiling\n\nair drumming\npetting animal (not cat)\n", None),
        ("l.csv", '0,"abseiling"\n1,"air drumming"\n2,"petting animal (not cat)"\n', 0),
        ("l.json", json.dumps(NAMES), None),
        ("l.json", json.dumps({name: k for k, name in enumerate(NAMES)}), 0),
        ("l.json", json.dumps({str(k): name for k, name in enumerate(NAMES)}), 0),
        ("l.json", json.dumps({str(k): name for k, name in enumerate(NAMES, 1)}), 1),
        ("l.json", json.dumps({f'"{name}"': k for k, name in enumerate(NAMES)}), 0),
        ("l.json", json.dumps([{"id": k, "name": name} for k, name in enumerate(NAMES)]), 0),
    ],
)
@pytest.mark.parametrize("bom", [b"", codecs.BOM_UTF8])
def test_label_files(write, name, text, first_id, bom):
    classes = read_class_names(write(bom + text.encode(), name))
    assert classes.readable == NAMES
    assert classes.first_id == first_id


def test_a_label_file_may_bring_readable_names(write):
    text = "id,name,readable\n0,HandstandPushups,Hand Stand Pushups\n1,YoYo,Yo Yo\n"
    classes = read_class_names(write(text))
    assert classes.names == ("HandstandPushups", "YoYo")
    assert classes.readable == ("Hand Stand Pushups", "Yo Yo")


def test_names_that_hold_commas_or_begin_with_numbers(write):
    text = "3 men dancing\nmixing, then pouring\n"
    assert read_class_names(write(text)).names == ("3 men dancing", "mixing, then pouring")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.txt", "", "expected a class a line, got an empty file"),
        ("l.csv", "0,a\n2,b\n", r"expected numbers 0..1 or 1..2, got 2 for 'b'"),
        ("l.csv", "0,a\n0,b\n", r"expected numbers 0..1 or 1..2, got 0 for 'b'"),
        ("l.csv", "5,a\n6,b\n", r"expected numbers 0..1 or 1..2, got 5 for 'a'"),
        (
            "l.csv",
            "id,name\nx,a\n1,b\n",
            "line 2: expected a number and a name, got 'x' and 'a'",
        ),
        (
            "l.csv",
            "id,name\n0,a\n1\n",
            "line 3: expected a number and a name, got '1' and ''",
        ),
        ("l.txt", "kick\nkick ball\nKick\n", "classes 0 and 2 are both called 'Kick'"),
        ("l.json", "{", "not json"),
        ("l.json", '{"a": "b"}', "expected a name and a number, got 'a': 'b'"),
        ("l.json", '[{"id": 0}]', "expected a list of names, or of objects with id and name"),
        ("l.json", '["a", 3]', "expected a list of names, or of objects with id and name"),
        ("l.json", "3", "expected a list of names or an object of names and numbers, got int"),
    ],
)
def test_a_broken_label_file_is_named(write, name, text, message):
    with pytest.raises(InputError, match=message):
        read_class_names(write(text, name))
