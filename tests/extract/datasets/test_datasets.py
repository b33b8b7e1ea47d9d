"""Official lists to the byte, folders as people have them, labels held against folders."""

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from helpers.places import TESTS

from bieff.extract.catalogue import NAMES, check, load, table
from bieff.extract.datasets import official
from bieff.extract.shapes.clips import Edition, clips_of
from bieff.features.errors import InputError
from bieff.features.schema import UNLABELLED

# SHA-256 of the files as their owners publish them; for HMDB-51 of its 153 files one behind
# the other in the order of their names
UCF101 = {
    "trainlist01.txt": "f7a4d7abc05147b921c17fc227d731197c3583f29945d1f1d46bce830d1b9f12",
    "testlist01.txt": "81be4765084d72739dca4d11658f7ec369c441ad9e227f11d9468fe2a1c14890",
    "trainlist02.txt": "3ea7145317098bdb4a999f69fb3b53ca3d3831d692602fc5dc8cd5c5e3eb8ca9",
    "testlist02.txt": "c9eec18f3f312153cda441f93e30bc9cffef1941367ebc06996e40c9cd056c91",
    "trainlist03.txt": "c75af0148b3b0e70d5d881ad71b0a5fbb685bf2d3278908278658435c3f1bf0f",
    "testlist03.txt": "f9cc029b0598c63f5cc07d070ae1fa4666d1d3901cc79a93490ea0742ca097db",
    "classInd.txt": "d7abbb76074d04e80c62ad8a61529bb8eec32ef978569601b2890edec3af0359",
}
HMDB51 = "6696f01180e0c83eea381a3f0a239a72893062bd1a0c10551beab49199725bc2"
AS_THEY_ARE = {
    "k400_val.csv": "358eaf47e7f80ebf9b17d49eb0635ad5e0fdab98a9cbd75ffdd2ee5d5e5b6944",
    "k400_names.txt": "e9f2806fe9109b851a80a74841244f6f8c9d10917fa0229cd82bab67f2f8e28f",
    "k600_names.txt": "8dfca4202520ea8291ce0242ef33b006d0a0772b409663c090a2876bc1978dcf",
    "k700_names.txt": "2f265d35aa76060219f7e83aff12f5aaba9d1fe27360aa83f11aad7a3648fc51",
    "ssv2_names.txt": "c9c5a86ece619e1ab2e7ca0614c85377a534873e17108b13243e5d22089a0a85",
    "k600_zero_shot_1.csv": "5350f8c28f5883af6995361c397c34192b290696eb5469723575615325420c81",
    "k600_zero_shot_2.csv": "15fc9f8289532c581c21018f14947c636bbce07f02065214c098f1636c1151e5",
    "k600_zero_shot_3.csv": "51a2bf921a38422c18463efbc252cb4f4e526fbf77818751d249f73df816ad96",
}


def sha256(text):
    return hashlib.sha256(text if isinstance(text, bytes) else text.encode()).hexdigest()


def touch(root, *paths):
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return root


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def rows(data, partition):
    return [(video.id, video.path, video.label) for video in data.partitions[partition]]


# ---- the official lists


def test_ucf101_is_official_to_the_byte():
    number = {name: k for k, (name, _) in enumerate(official.class_names("ucf101"), start=1)}
    assert (
        sha256("".join(f"{k} {name}\r\n" for name, k in number.items()))
        == UCF101["classInd.txt"]
    )
    for split in "123":
        for role in ("train", "test"):
            text = ""
            for path, roles in official.splits("ucf101"):
                label = f" {number[path.split('/')[0]]}" if role == "train" else ""
                text += f"{path}.avi{label}\r\n" if roles[split] == role else ""
            assert sha256(text) == UCF101[f"{role}list0{split}.txt"]


def test_hmdb51_is_official_to_the_byte():
    files = {}
    for path, roles in official.splits("hmdb51"):
        action, name = path.split("/")
        for split in "123":
            code = {"train": 1, "test": 2}.get(roles.get(split), 0)
            file = f"{action}_test_split{split}.txt"
            files[file] = files.get(file, "") + f"{name}.avi {code} \n"
    assert len(files) == 153
    assert sha256("".join(files[file] for file in sorted(files))) == HMDB51


@pytest.mark.parametrize("file", AS_THEY_ARE)
def test_lists_are_those_of_their_sources_to_the_byte(file):
    assert sha256((official.DATA / file).read_bytes()) == AS_THEY_ARE[file]


@pytest.mark.parametrize(
    ("name", "videos", "counts"),
    [
        ("ucf101", 13320, {"1": (9537, 3783), "2": (9586, 3734), "3": (9624, 3696)}),
        ("hmdb51", 6766, dict.fromkeys("123", (3570, 1530))),
    ],
)
def test_official_counts(name, videos, counts):
    listed = official.splits(name)
    assert len({path for path, _ in listed}) == len(listed) == videos
    assert len({id(roles) for _, roles in listed}) <= 27  # shared, so that lists stay small
    for split, (train, test) in counts.items():
        roles = Counter(roles.get(split) for _, roles in listed)
        assert (roles["train"], roles["test"]) == (train, test)
    per_class = Counter(path.split("/")[0] for path, _ in listed)
    assert set(per_class) == {raw for raw, _ in official.class_names(name)}


def test_hmdb51_is_numbered_alphabetically():
    """Some repositories put kick_ball before kick, and score 120 test videos wrongly."""
    raw = [name for name, _ in official.class_names("hmdb51")]
    assert raw == sorted(raw)
    assert [raw.index(name) for name in ("kick", "kick_ball", "sword", "sword_exercise")] == [
        *(20, 21),
        *(44, 45),
    ]


def test_zero_shot_classes_are_160_of_the_220_new_in_kinetics_600():
    k400 = {name for name, _ in official.class_names("k400")}
    k600 = [name for name, _ in official.class_names("k600")]
    splits = official.zero_shot_splits()
    assert list(splits) == ["1", "2", "3"]
    for labels in splits.values():
        assert len(set(labels)) == len(labels) == 160
        assert k400.isdisjoint(k600[label] for label in labels)
    assert len({splits[k] for k in splits}) == 3


# ---- ucf101 and hmdb51 on disk

EYE = "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01"
PUSH = "HandstandPushups/v_HandStandPushups_g01_c01"


@pytest.mark.parametrize(
    ("prefix", "suffix"), [("", ".avi"), ("UCF-101/", ".mp4"), ("videos/UCF-101/", ".AVI")]
)
def test_ucf101_at_any_depth_in_any_container(tmp_path, prefix, suffix):
    touch(tmp_path, f"{prefix}{EYE}{suffix}", f"{prefix}{PUSH}{suffix}")
    data = load("ucf101", videos=tmp_path)
    found = {v.id: v for v in data.partitions["all"] if v.id not in data.missing}
    assert {id_: video.path for id_, video in found.items()} == {
        EYE: f"{prefix}{EYE}{suffix}",
        PUSH: f"{prefix}{PUSH}{suffix}",
    }
    assert [data.class_names[v.label] for v in found.values()] == [
        "Apply Eye Makeup",
        "Hand Stand Pushups",
    ]
    assert found[EYE].splits == {"1": "test", "2": "train", "3": "train"}
    assert not data.unlisted
    assert not data.mislabelled


def test_missing_videos_stay_in_the_list_in_order(tmp_path):
    (touch(tmp_path, f"{EYE}.avi") / f"{EYE}.avi").write_bytes(b"12345")
    videos = load("ucf101", videos=tmp_path).partitions["all"]
    assert len(videos) == 13320
    assert [(v.id, v.size) for v in videos[:2]] == [(EYE, 5), (f"{EYE[:-1]}2", 0)]
    assert videos[1].path == f"{EYE[:-1]}2.avi"


def test_a_flat_folder_and_another_spelling_are_found(tmp_path):
    """UCF-101 writes HandStandPushups in the files, HandstandPushups on the folder."""
    touch(tmp_path, "v_HandstandPushups_g01_c01.avi", "v_ApplyEyeMakeup_g01_c01.avi")
    data = load("ucf101", videos=tmp_path)
    assert {v.id for v in data.partitions["all"]} - data.missing == {EYE, PUSH}


def test_the_copy_in_its_class_folder_wins(tmp_path):
    data = load(
        "ucf101", videos=touch(tmp_path, f"{EYE}.avi", f"A copy/{EYE.split('/')[1]}.avi")
    )
    assert data.partitions["all"][0].path == f"{EYE}.avi"
    assert data.unlisted == (f"A copy/{EYE.split('/')[1]}.avi",)


def test_hostile_names_of_hmdb51_are_found(tmp_path):
    hostile = [p for p, _ in official.splits("hmdb51") if any(c in p for c in "#()[]!&;+~@")]
    assert len(hostile) == 536
    touch(tmp_path, *(f"{path}.avi" for path in hostile))
    data = load("hmdb51", videos=tmp_path)
    assert {v.id for v in data.partitions["all"]} - data.missing == set(hostile)


def test_check_counts_by_split(tmp_path):
    kick = [path for path, _ in official.splits("hmdb51") if path.startswith("kick/")]
    touch(tmp_path, *(f"{path}.avi" for path in kick[1:]), "kick/holiday.avi")
    moved = kick[0].replace("kick/", "kick_ball/")
    touch(tmp_path, f"{moved}.avi")
    report = check("hmdb51", videos=tmp_path)
    counts = {count.name: count for count in report.counts()}
    assert (counts["all"].listed, counts["all"].found) == (6766, len(kick))
    assert (counts["split 2 train"].found, counts["split 2 test"].found) == (70, 30)
    assert counts["split 1 test"].missing == 1500
    assert report.data.unlisted == ("kick/holiday.avi",)
    (wrong,) = report.data.mislabelled
    assert (wrong.path, wrong.label, wrong.folder) == (f"{moved}.avi", "kick", "kick ball")
    assert (
        "videos in the folder of another class than the official list says: 1,"
        in report.data.notes[0]
    )
    lines = report.lines(limit=1)
    assert "1 unlisted" in lines
    assert f"    {moved}.avi: labelled kick, lies in kick ball" in lines
    assert f"{6766 - len(kick):,} missing" in lines
    assert not report.is_clean


# ---- Kinetics

CLIP = "0wR5jVB-WPk"  # abseiling, 417 s
OTHER = "3caPS4FHFF8"  # abseiling, 36 s


def test_k400_validation_videos_as_people_have_them(tmp_path):
    """The first six of the official list, each called in another way."""
    paths = [
        f"val/abseiling/{CLIP}_000417_000427.mp4",
        f"val_256/abseiling/{OTHER}.webm",
        "k400/Kinetics_val/abseiling/3yaoNwz99xM_000062_000072.mkv",
        "abseiling/6IbvOJxXnOo.mp4",
        "6_4kjPiQr7w_000191_000201.mp4",
        "9EnSwbXxu5g.mp4",
    ]
    data = load("k400", videos=touch(tmp_path, *paths))
    assert set(data.partitions) == {"val"}
    assert len(data.partitions["val"]) == 19906
    assert len(data.missing) == 19900
    assert [path for _, path, _ in rows(data, "val")[:6]] == paths
    assert rows(data, "val")[0] == (CLIP, paths[0], 0)
    assert data.partitions["val"][0].splits == {"val": "val"}
    assert data.notes[0].startswith("train: 0 of 0 videos found")
    assert data.notes[1] == "val: 6 of 19,906 videos found, listed by the official list"


def test_k400_another_segment_of_the_same_video_is_not_the_clip(tmp_path):
    touch(tmp_path, f"abseiling/{CLIP}_000123_000133.mp4", f"abseiling/{OTHER}.mp4")
    data = load("k400", videos=tmp_path)
    assert CLIP in data.missing
    assert data.unlisted == (f"abseiling/{CLIP}_000123_000133.mp4",)


def test_k400_training_list_from_the_class_folders(tmp_path):
    touch(
        tmp_path,
        f"val/abseiling/{CLIP}.mp4",
        "train/petting_animal_(not_cat)/abcdefghij0_000001_000011.mp4",
        "train/massaging persons head/abcdefghij_.mp4",
        "train/massaging persons head/-_cdefghij_.mp4",
        "train/massaging persons head/renamed by hand.mp4",
        "train/no such class/abcdefghij1.mp4",
        "val/abseiling/abcdefghij2.mp4",
        "test/abseiling/abcdefghij3.mp4",
    )
    data = load("k400", videos=tmp_path)
    head = data.class_names.index("massaging person's head")
    assert sorted((video.id, video.label) for video in data.partitions["train"]) == [
        ("-_cdefghij_", head),
        ("abcdefghij0", data.class_names.index("petting animal (not cat)")),
        ("abcdefghij_", head),
        ("train/massaging persons head/renamed by hand", head),
    ]
    assert data.unlisted == (
        "test/abseiling/abcdefghij3.mp4",
        "train/no such class/abcdefghij1.mp4",
        "val/abseiling/abcdefghij2.mp4",
    )
    assert "train: 4 of 4 videos found, listed by the class folders" in data.notes[0]


def test_k400_training_list_from_the_users_csv(tmp_path):
    touch(tmp_path, "train_256/zumba/abcdefghij0.mp4", "train_256/zumba/abcdefghij9.mp4")
    write(
        tmp_path / "annotations" / "kinetics-400_train.csv",
        "label,youtube_id,time_start,time_end,split,is_cc\n"
        "zumba,abcdefghij0,5,15,train,0\n"
        "yoga,abcdefghij1,6,16,train,0\n",
    )
    write(tmp_path / "train_links.csv", "youtube_id,url\nx,y\n")
    data = load("k400", videos=tmp_path)
    assert rows(data, "train") == [
        ("abcdefghij0", "train_256/zumba/abcdefghij0.mp4", 399),
        ("abcdefghij1", "train/yoga/abcdefghij1_000006_000016.mp4", 398),
    ]
    assert data.missing == {"abcdefghij1"}
    assert data.unlisted == ("train_256/zumba/abcdefghij9.mp4",)
    assert data.notes[0] == (
        "train: 1 of 2 videos found, listed by annotations/kinetics-400_train.csv"
    )
    assert data.notes[1].endswith("listed by the official list; left out")


def test_ids_do_not_depend_on_how_the_files_are_called(tmp_path):
    one = load("k400", videos=touch(tmp_path / "1", f"val/abseiling/{CLIP}.mp4"))
    two = load("k400", videos=touch(tmp_path / "2", f"{CLIP}_000417_000427.mkv"))
    assert [v.id for v in one.partitions["val"]] == [v.id for v in two.partitions["val"]]
    assert len({v.id for v in one.partitions["val"]}) == 19906


def test_k400_video_in_the_folder_of_another_class(tmp_path):
    """The official label is kept, and said."""
    data = load("k400", videos=touch(tmp_path, f"val/zumba/{CLIP}.mp4"))
    (wrong,) = data.mislabelled
    assert (wrong.label, wrong.folder) == ("abseiling", "zumba")
    assert rows(data, "val")[0][2] == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flapping,abcdefghij0,5,15,train\n", "unknown class 'flapping'"),
        ("zumba,abcdefghij0,five,15,train\n", "expected times in seconds for 'abcdefghij0'"),
        ("zumba\n", "expected times in seconds"),
    ],
)
def test_a_broken_kinetics_csv_is_named(tmp_path, text, message):
    touch(tmp_path, "train/zumba/abcdefghij0.mp4")
    write(tmp_path / "train.csv", "label,youtube_id,time_start,time_end,split\n" + text)
    with pytest.raises(InputError, match=message):
        load("k400", videos=tmp_path)


def test_k600_zero_shot_roles(tmp_path):
    touch(tmp_path, "arguing/abcdefghij0.mp4", "abseiling/abcdefghij1.mp4")
    data = load("k600", videos=tmp_path)
    assert data.class_subsets == official.zero_shot_splits()
    by_id = {video.id: video for video in data.partitions["val"]}
    assert by_id["abcdefghij1"].splits == {"val": "val"}
    arguing = data.class_names.index("arguing")
    assert by_id["abcdefghij0"].splits == {"val": "val"} | {
        split: "test" for split, labels in data.class_subsets.items() if arguing in labels
    }
    assert "2" in by_id["abcdefghij0"].splits
    counts = {count.name: count.listed for count in check("k600", videos=tmp_path).counts()}
    assert counts["split 2 test"] == 1


def test_k600_with_the_users_lists(tmp_path):
    touch(tmp_path, "x/abcdefghij0.mp4", "x/abcdefghij1.mp4")
    header = "label,youtube_id,time_start,time_end,split\n"
    write(tmp_path / "validate.csv", f"{header}arguing,abcdefghij0,5,15,validate\n")
    write(tmp_path / "train.csv", f"{header}zumba,abcdefghij1,5,15,train\n")
    data = load("k600", videos=tmp_path)
    assert {part: len(videos) for part, videos in data.partitions.items()} == {
        "train": 1,
        "val": 1,
    }


# ---- any folder


def test_a_folder_of_class_folders(tmp_path):
    touch(tmp_path, "brush_hair/b.mp4", "brush_hair/deep/a.avi", "YoYo/a.mp4", "stray.mp4")
    touch(tmp_path, "YoYo/.hidden.mp4", "__MACOSX/YoYo/a.mp4", "YoYo/notes.txt")
    data = load("folder", videos=tmp_path)
    assert data.class_names == ("Yo Yo", "brush hair")
    assert rows(data, "all") == [
        ("YoYo/a", "YoYo/a.mp4", 0),
        ("brush_hair/b", "brush_hair/b.mp4", 1),
        ("brush_hair/deep/a", "brush_hair/deep/a.avi", 1),
    ]
    assert data.unlisted == ("stray.mp4",)


def test_a_flat_folder_is_one_unlabelled_set(tmp_path):
    touch(tmp_path, "b.mp4", "a.avi", "a.mp4")
    data = load("folder", videos=tmp_path)
    assert data.class_names == ()
    assert rows(data, "all") == [
        ("a.avi", "a.avi", UNLABELLED),
        ("a.mp4", "a.mp4", UNLABELLED),
        ("b", "b.mp4", UNLABELLED),
    ]


def test_a_folder_with_train_and_val(tmp_path):
    touch(tmp_path, "set/train/b/1.mp4", "set/train/a/1.mp4", "set/val/b/2.mp4")
    data = load("folder", videos=tmp_path)
    assert list(data.partitions) == ["train", "val"]
    assert data.class_names == ("a", "b")
    assert rows(data, "val") == [("set/val/b/2", "set/val/b/2.mp4", 1)]
    assert data.partitions["val"][0].splits == {"val": "val"}


def test_a_test_folder_stands_in_for_val(tmp_path):
    data = load("folder", videos=touch(tmp_path, "train/a/1.mp4", "test/a/2.mp4"))
    assert list(data.partitions) == ["train", "val"]
    assert data.notes == ("val: taken from the folder test, there is no folder val",)
    touch(tmp_path, "val/a/3.mp4")
    data = load("folder", videos=tmp_path)
    assert rows(data, "val") == [("val/a/3", "val/a/3.mp4", 0)]
    assert data.unlisted == ("test/a/2.mp4",)


def test_a_label_file_orders_a_folders_classes(tmp_path):
    touch(tmp_path / "v", "kick_ball/1.mp4", "kick/1.mp4")
    labels = write(tmp_path / "labels.csv", "id,name\n0,kick ball\n1,sword\n2,kick\n")
    data = load("folder", videos=tmp_path / "v", labels=labels)
    assert data.class_names == ("kick ball", "sword", "kick")
    assert [label for _, _, label in rows(data, "all")] == [2, 0]
    touch(tmp_path / "v", "jump/1.mp4")
    with pytest.raises(InputError, match=r"1 class folders have no name .* first is 'jump'"):
        load("folder", videos=tmp_path / "v", labels=labels)


def test_links_are_followed_once(tmp_path):
    touch(tmp_path / "far", "a/1.mp4")
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "x").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "a" / "up").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "a" / "broken.mp4").symlink_to(tmp_path / "nowhere.mp4")
    data = load("folder", videos=tmp_path / "v")
    assert len(data.partitions["all"]) <= 2
    assert ("x/a/1", "x/a/1.mp4", 0) in rows(data, "all")


def test_shared_clips(pytestconfig):
    folder = pytestconfig.rootpath.parent / "shared" / "videos"
    if not folder.is_dir():
        pytest.skip("no ../shared/videos here")
    data = load("folder", videos=folder)
    assert [video.id for video in data.partitions["all"]] == [
        "apply_eye_makeup",
        "arm_wrestling",
        "cleaning_pool",
        "corrupted",
        "flipping_a_pancake",
    ]
    assert all(v.label == UNLABELLED and v.size > 10_000 for v in data.partitions["all"])


# ---- lists of one's own


@pytest.fixture
def clips(tmp_path):
    return touch(tmp_path / "v", "kick/a.avi", "kick_ball/b.avi", "sword/c d.avi", "wave/e.avi")


LABELS = "id,name\n0,kick\n1,kick_ball\n2,sword\n3,wave\n"


@pytest.mark.parametrize(
    ("text", "labels", "note"),
    [
        ("kick/a.avi 0\nkick_ball/b.avi 1\nsword/c d.avi 2\n", LABELS, ()),
        ("kick/a.avi 33 0\nkick_ball/b.avi 44 1\nsword/c d.avi 5 2\n", LABELS, ()),
        (
            "kick/a.avi,1\nkick_ball/b.avi,2\nsword/c d.avi,3\nwave/e.avi,4\n",
            LABELS,
            ("labels count from 1",),
        ),
        (
            "kick_ball/b.avi 2\nsword/c d.avi 3\n",
            LABELS,
            ("labels count from 1: so they agree with the class folders",),
        ),
        (
            "kick_ball/b.avi 1\nsword/c d.avi 2\n",
            LABELS,
            ("labels count from 0: so they agree with the class folders",),
        ),
        ("kick/a.avi\nkick_ball/b.avi\nsword/c d.avi\n", LABELS, ()),
        ("path,class\nkick/a.avi,kick\nkick_ball/b.avi,kick ball\n", LABELS, ()),
        ("/home/me/hmdb/kick/a.mp4 0\nkick_ball/b 1\nc d.avi 2\n", LABELS, ()),
        ("kick/a.avi 0\nkick_ball/b.avi 1\nsword/c d.avi 2\n", None, ()),
        ("kick/a.avi 1\nkick_ball/b.avi 2\nsword/c d.avi 3\n", None, ("labels count from 1",)),
        ("kick/a.avi\nkick_ball/b.avi\nsword/c d.avi\n", None, ()),
        ("kick/a.avi kick\nkick_ball/b.avi kick_ball\nsword/c d.avi sword\n", None, ()),
    ],
)
def test_lists_of_ones_own(tmp_path, clips, text, labels, note):
    data = load(
        "list",
        videos=clips,
        lists={"val": write(tmp_path / "val.txt", text)},
        labels=write(tmp_path / "labels.csv", labels) if labels else None,
    )
    assert not data.missing
    for video in data.partitions["val"]:
        folder = Path(video.path).parent.name.replace("_", " ")
        assert data.class_names[video.label] == folder
    assert data.notes == note


@pytest.mark.slow
def test_the_wrong_order_of_hmdb51_is_found(tmp_path):
    """The error of well-known repositories: 120 of 1,530 test videos under the wrong name."""
    raw = [name for name, _ in official.class_names("hmdb51")]
    tests = [path for path, roles in official.splits("hmdb51") if roles.get("1") == "test"]
    lines = [f"{path}.avi {raw.index(path.split('/')[0])}\n" for path in tests]
    listed = write(tmp_path / "val_split_1.txt", "".join(lines))
    wrong = list(raw)
    for one, other in (("kick", "kick_ball"), ("sword", "sword_exercise")):
        i, j = raw.index(one), raw.index(other)
        wrong[i], wrong[j] = raw[j], raw[i]
    text = "".join(f"{k},{name}\n" for k, name in enumerate(wrong))
    labels = write(tmp_path / "hmdb_51_labels.csv", "id,name\n" + text)
    touch(tmp_path / "v", *(f"{path}.avi" for path in tests))
    options = {"videos": tmp_path / "v", "lists": {"val": listed}, "labels": labels}

    report = check("list", **options)
    assert len(report.data.mislabelled) == 120
    assert {(m.label, m.folder) for m in report.data.mislabelled} == {
        ("kick", "kick ball"),
        ("kick ball", "kick"),
        ("sword", "sword exercise"),
        ("sword exercise", "sword"),
    }
    with pytest.raises(InputError, match=r"120 of 1,530 videos lie in the folder of another"):
        load("list", **options)
    assert len(load("list", **options, trust_labels=True).mislabelled) == 120

    write(labels, "id,name\n" + "".join(f"{k},{name}\n" for k, name in enumerate(raw)))
    assert not load("list", **options).mislabelled


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path):
    touch(tmp_path / "v", "train/a/1.mp4", "train/b/1.mp4", "val/a/1.mp4", "c/2.mp4")
    listed = write(tmp_path / "all.txt", "b/1.mp4 b\nval/a/1.mp4 a\nd/1.mp4 d\ne/2.mp4 d\n")
    data = load("list", videos=tmp_path / "v", lists={"all": listed})
    assert [path for _, path, _ in rows(data, "all")] == [
        "train/b/1.mp4",
        "val/a/1.mp4",
        "d/1.mp4",
        "e/2.mp4",
    ]
    assert data.missing == {"d/1", "e/2"}


@pytest.mark.parametrize("prefix", ["", "val/", "/home/me/hmdb/val/"])
def test_a_validation_list_never_means_a_training_video(tmp_path, prefix):
    """train/ and val/ may hold files of the same names; the wrong one leaks."""
    touch(tmp_path / "v", "train/a/1.mp4", "train/train/2.mp4", "val/a/1.avi", "train/a/3.mp4")
    touch(tmp_path / "v", "val/train/2.mp4")
    lines = [f"{prefix}{path}\n" for path in ("a/1.mp4", "train/2.mp4", "a/3.mp4")]
    lists = {"val": write(tmp_path / "val.txt", "".join(lines))}
    labels = write(tmp_path / "labels.csv", "0,a\n1,train\n")
    data = load("list", videos=tmp_path / "v", lists=lists, labels=labels)
    found = [video.path for video in data.partitions["val"]]
    assert found == ["val/a/1.avi", "val/train/2.mp4", f"{prefix}a/3.mp4"]
    assert len(data.missing) == 1
    train = {"train": write(tmp_path / "train.txt", "a/1.mp4\ntrain/2.mp4\na/3.mp4\n")}
    data = load("list", videos=tmp_path / "v", lists=train, labels=labels)
    found = [video.path for video in data.partitions["train"]]
    assert found == ["train/a/1.mp4", "train/train/2.mp4", "train/a/3.mp4"]


def test_a_list_of_part_of_the_training_folder_is_found(tmp_path):
    touch(tmp_path / "v", "train/a/1.mp4", "train/b/2.mp4")
    listed = write(tmp_path / "val.txt", "a/1.mp4\nb/2.mp4\n")
    data = load("list", videos=tmp_path / "v", lists={"val": listed})
    assert [video.path for video in data.partitions["val"]] == [
        "train/a/1.mp4",
        "train/b/2.mp4",
    ]


@pytest.mark.parametrize("line", ["1.mp4", "a/1.mp4", "a/1.webm"])
def test_a_line_that_may_mean_two_videos_is_named(tmp_path, line):
    touch(tmp_path / "v", "x/a/1.mp4", "y/a/1.mp4")
    listed = write(tmp_path / "all.txt", f"{line} a\n")
    with pytest.raises(
        InputError, match=rf"line 1: '{line}' may be 'x/a/1.mp4' or 'y/a/1.mp4' in .*tell them"
    ):
        load("list", videos=tmp_path / "v", lists={"all": listed})


def test_absolute_paths_need_no_folder(tmp_path, clips):
    text = f"{clips}/kick/a.avi 0\n{clips}/wave/e.avi 1\n{clips}/wave/gone.avi 1\n"
    data = load("list", lists={"all": write(tmp_path / "lists" / "all.txt", text)})
    assert [path for _, path, _ in rows(data, "all")][:2] == [
        f"{clips}/kick/a.avi",
        f"{clips}/wave/e.avi",
    ]
    assert data.missing == {f"{clips}/wave/gone"}


def test_notes_of_a_list(tmp_path, clips):
    lists = {
        "train": write(tmp_path / "train.txt", "kick/a.avi\nother/e.avi\nkick/a.avi\n"),
        "val": write(tmp_path / "val.txt", "kick/a.avi\n"),
    }
    labels = write(tmp_path / "labels.csv", LABELS)
    data = load("list", videos=clips, lists=lists, labels=labels)
    assert len(data.partitions["train"]) == 2
    assert data.notes == (
        "videos without a label: 1",
        "videos in both the train and the val list: 1",
    )


@pytest.mark.parametrize(
    ("text", "labels", "options", "message"),
    [
        ("kick/a.avi 9\n", LABELS, {}, "line 1: label 9 has no name among the 4 classes"),
        ("kick/a.avi dance\n", LABELS, {}, "line 1: label 'dance' has no name"),
        ("kick/a.avi 0\n", LABELS, {"first_label": 1}, "label 0 has no name"),
        ("a.avi 3\nb.avi 5\n", None, {}, "the folders do not tell their names; give a label"),
        ("kick/a.avi 0\nkick/a.avi 1\n", LABELS, {}, "line 2: .* listed before with another"),
        ("dance/z.avi 0\n", LABELS, {}, "none of the 4 videos in .* is one of the 1 listed"),
    ],
)
def test_a_list_that_does_not_fit_is_named(tmp_path, clips, text, labels, options, message):
    with pytest.raises(InputError, match=message):
        load(
            "list",
            videos=clips,
            lists={"all": write(tmp_path / "all.txt", text)},
            labels=write(tmp_path / "labels.csv", labels) if labels else None,
            **options,
        )


# ---- names, folders, options


@pytest.mark.parametrize("name", ["ucf101", "hmdb51", "k400", "k600", "folder"])
def test_a_missing_or_empty_folder_says_what_is_expected(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError, match=rf"no videos' folder at data/{name}: expected .*class"
    ):
        load(name)
    (tmp_path / "data" / name).mkdir(parents=True)
    with pytest.raises(InputError, match=rf"no videos in data/{name}: expected .*class"):
        load(name)
    if name != "folder":
        touch(tmp_path / "data" / name, "holiday.mp4")
        with pytest.raises(InputError, match=r"none of the 1 videos .* expected .*class"):
            load(name)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "ucf",
            {},
            r"unknown data set 'ucf' \(did you mean 'ucf101'\?\): expected one of k400, k600",
        ),
        ("ucf101", {"lists": {"val": Path("x")}}, "'ucf101' has its own lists"),
        ("ucf101", {"labels": Path("x")}, "'ucf101' has its own class names"),
        ("folder", {"first_label": 1}, "'folder' has its own labels"),
        ("list", {"first_label": 2}, "first label: expected 0 or 1, got 2"),
        ("list", {}, "expected a list file for some of train, val, all, got none"),
        ("list", {"lists": {"test": Path("x")}}, "expected a list file .* got test"),
    ],
)
def test_options_that_do_not_fit(name, options, message):
    with pytest.raises(InputError, match=message):
        load(name, **options)


def test_the_table_names_every_data_set(tmp_path):
    (tmp_path / "hmdb51").mkdir()
    header, lines = table(tmp_path)
    assert [line[0] for line in lines] == sorted(NAMES, key=[line[0] for line in lines].index)
    assert {len(line) for line in lines} == {len(header)}
    assert [line[0] for line in lines if line[-1]] == ["hmdb51"]
    by_name = {line[0]: line for line in lines}
    for name in ("ucf101", "hmdb51"):
        sizes = (str(len(official.class_names(name))), f"{len(official.splits(name)):,}")
        assert by_name[name][2:4] == sizes
    for name, clips in clips_of(Edition()).items():
        sizes = (str(len({clip.name for clip in clips})), f"{len(clips):,}")
        assert by_name[name][2:4] == sizes


def test_mirroring_is_off_where_sides_make_the_class(tmp_path):
    touch(tmp_path, "moving left/1.mp4", "moving up/1.mp4")
    assert not load("folder", videos=tmp_path).mirror
    assert load("folder", videos=tmp_path / "moving up").mirror


# ---- scale


@pytest.mark.slow
def test_260_000_videos_are_matched_in_little_memory():
    """In a process of its own: without type checks, and on a walk that is given, not made."""
    command = [sys.executable, "-W", "error", "-m", "helpers.extracting_large", "match"]
    env = {**os.environ, "PYTHONPATH": str(TESTS)}
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    assert json.loads(printed.stdout)["match MB"] < 400  # 150 here, in 3 s on one quiet core


@pytest.mark.long  # as many files to make, and to remove
def test_260_000_files_on_disk(tmp_path):
    raw = [name for name, _ in official.class_names("k400")]
    for name in raw:
        folder = tmp_path / "train" / name
        folder.mkdir(parents=True)
        for k in range(650):
            (folder / f"{name[:3]}{len(name):02d}{k:06d}.mp4").touch()
    data = load("folder", videos=tmp_path)
    assert len(data.partitions["train"]) == 260_000
