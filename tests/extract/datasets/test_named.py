"""Data sets whose official lists the user has, in the form in which their owners give them."""

import json
import re
import shutil

import pytest
from click.testing import CliRunner
from helpers.stamped import Clip, write

from bieff.cli import main
from bieff.extract.catalogue import check, load, table
from bieff.extract.datasets import official
from bieff.features.class_names import has_sides
from bieff.features.errors import InputError
from bieff.features.store import FeatureStore

SSV2 = [name for name, _ in official.class_names("ssv2")]


def put(root, **files):
    """Files by path, with `__` for `/` and `_dot_` for a dot; what is no text becomes JSON."""
    for name, content in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return root


def record(id_, name):
    """A line of Something-Something's lists: placeholders in brackets, and what they were."""
    template = re.sub(r"\b(something|number of)\b", r"[\1]", name)
    return {"id": str(id_), "label": "a red bag", "template": template, "placeholders": ["bag"]}


def ssv2_files(root, train, val):
    """The lists of these (id, label) pairs, and the official label file."""
    return put(
        root,
        labels__train_dot_json=[record(id_, SSV2[label]) for id_, label in train],
        labels__validation_dot_json=[record(id_, SSV2[label]) for id_, label in val],
        labels__labels_dot_json={name: str(label) for label, name in enumerate(SSV2)},
    )


def test_the_names_are_all_there():
    assert len(SSV2) == len(set(SSV2)) == 174
    assert sum("," in name for name in SSV2) == 12
    assert SSV2[120] == "Putting something, something and something on the table"
    assert has_sides(SSV2)  # "from left to right": no view is mirrored
    k700 = [name for name, _ in official.class_names("k700")]
    assert len(set(k700)) == 700
    assert k700 == sorted(k700)
    k600 = {name for name, _ in official.class_names("k600")}
    assert len(k600 & set(k700)) == 596


@pytest.mark.parametrize("with_labels", [True, False])
def test_something_something(tmp_path, with_labels):
    """Each of the 174 templates finds its class, with the label file or the shipped names."""
    train = [(100 + label, label) for label in range(174)]
    ssv2_files(tmp_path, train, [(7, 24), (8, 120)])
    for id_, _ in [*train, (7, 24)]:
        put(tmp_path, **{f"20bn-something-something-v2__{id_}_dot_webm": ""})
    if not with_labels:
        (tmp_path / "labels" / "labels.json").unlink()
    data = load("ssv2", videos=tmp_path)
    assert data.name == "ssv2"
    assert data.class_names == tuple(SSV2)
    assert [(v.id, v.label) for v in data.partitions["train"]] == [
        (str(id_), label) for id_, label in train
    ]
    assert [v.label for v in data.partitions["val"]] == [24, 120]
    assert data.missing == {"8"}
    assert data.notes[0] == "read: train.json, validation.json, " + (
        "labels.json" if with_labels else "ssv2_names.txt"
    )
    assert not data.mirror
    assert [c[1:] for c in check("ssv2", videos=tmp_path).counts()][:1] == [(174, 174, 0)]


def test_the_owners_older_names_and_lists_elsewhere(tmp_path):
    ssv2_files(tmp_path / "lists", [(3, 0)], [(4, 1)])
    put(tmp_path / "videos", **{"3_dot_webm": "", "4_dot_webm": ""})
    with pytest.raises(InputError, match="expected something-something-v2-train"):
        load("ssv2", videos=tmp_path / "videos")
    with pytest.raises(
        InputError, match=r"expected activity_net\.v1-3\.min\.json in .*; put the "
    ):
        load("activitynet", videos=tmp_path / "videos")
    lists = {"train": tmp_path / "lists" / "labels" / "train.json"}
    assert list(load("ssv2", videos=tmp_path / "videos", lists=lists).partitions) == ["train"]
    for part in ("train", "validation"):
        name = f"something-something-v2-{part}.json"
        shutil.copy(tmp_path / "lists" / "labels" / f"{part}.json", tmp_path / "videos" / name)
    assert set(load("ssv2", videos=tmp_path / "videos").partitions) == {"train", "val"}
    labels = put(tmp_path, few_dot_txt=f"{SSV2[0]}\n{SSV2[1]}\n") / "few.txt"
    with pytest.raises(InputError, match=r"expected 174 classes in .*few.txt, got 2"):
        load("ssv2", videos=tmp_path / "videos", labels=labels)


def test_jester(tmp_path):
    names = [
        "Swiping Left",
        "Swiping Right",
        "No gesture",
        *(f"Sign {chr(65 + k)}" for k in range(24)),
    ]
    put(
        tmp_path,
        **{
            "jester-v1-train_dot_csv": "34870;Swiping Right\n56557;No gesture\n",
            "jester-v1-validation_dot_csv": "9223;Swiping Left\n",
            "jester-v1-labels_dot_csv": "\n".join(names) + "\n",
        },
    )
    put(tmp_path, **{f"videos__{id_}_dot_mp4": "" for id_ in (34870, 56557, 9223)})
    data = load("jester", videos=tmp_path)
    assert [(v.path, v.label) for v in data.partitions["train"]] == [
        ("videos/34870.mp4", 1),
        ("videos/56557.mp4", 2),
    ]
    assert data.class_names == tuple(names)
    assert not data.missing
    (tmp_path / "jester-v1-labels.csv").unlink()
    with pytest.raises(InputError, match=r"expected jester-v1-labels.csv in .* with --la"):
        load("jester", videos=tmp_path)


def test_diving48(tmp_path):
    vocab = [["Back", "15som", f"{k:02}Twis", "FREE"] for k in range(48)]
    dive = {"start_frame": 0, "end_frame": 133}
    put(
        tmp_path,
        Diving48_V2_train_dot_json=[{"vid_name": "_8Vy3dlHg2w_00000", "label": 47, **dive}],
        Diving48_V2_test_dot_json=[{"vid_name": "Bs0dKgFT6CE_00012", "label": 0, **dive}],
        Diving48_vocab_dot_json=vocab,
        rgb___8Vy3dlHg2w_00000_dot_mp4="",
        rgb__Bs0dKgFT6CE_00012_dot_mp4="",
    )
    (tmp_path / "rgb" / "_8Vy3dlHg2w_00000.mp4").touch()
    data = load("diving48", videos=tmp_path)
    assert data.class_names[47] == "Back 15som 47Twis FREE"
    assert [(v.id, v.label) for v in data.partitions["train"]] == [("_8Vy3dlHg2w_00000", 47)]
    assert [(v.id, v.label) for v in data.partitions["val"]] == [("Bs0dKgFT6CE_00012", 0)]
    assert not data.missing


def test_moments_in_time(tmp_path):
    """Behind the label stand votes, which are no label."""
    put(
        tmp_path,
        trainingSet_dot_csv="applauding/a_1.mp4,applauding,3,0\n"
        "adult+female+singing/yt-b_2.mp4,adult+female+singing,4,1\n",
        validationSet_dot_csv="applauding/c_3.mp4,applauding,2,1\n",
        moments_categories_dot_txt="adult+female+singing,0\napplauding,1\n",
        training__applauding__a_1_dot_mp4="",
        validation__applauding__c_3_dot_mp4="",
    )
    singing = tmp_path / "training" / "adult+female+singing"
    singing.mkdir()
    (singing / "yt-b_2.mp4").touch()
    data = load("mit", videos=tmp_path)
    assert data.class_names == ("adult female singing", "applauding")
    assert [v.label for v in data.partitions["train"]] == [1, 0]
    assert [v.label for v in data.partitions["val"]] == [1]
    assert not data.missing


def test_activitynet(tmp_path):
    """One json of both lists; a row is a part, in seconds."""
    names = [f"Sport {chr(65 + k // 26)}{chr(65 + k % 26)}" for k in range(200)]

    def entry(subset, *parts):
        found = [{"label": names[label], "segment": times} for label, *times in parts]
        return {"subset": subset, "duration": 99.5, "url": "", "annotations": found}

    database = {f"train{k:06}": entry("training", (k, 0.5, 9)) for k in range(200)}
    database["vvvvvvvvvvv"] = entry("validation", (7, 12.25, 30.5), (3, 1, 2))
    database["ttttttttttt"] = entry("testing")
    official_list = {"version": "VERSION 1.3", "taxonomy": [], "database": database}
    put(tmp_path, **{"activity_net_dot_v1-3_dot_min_dot_json": official_list})
    put(tmp_path, videos__v_vvvvvvvvvvv_dot_mp4="", videos__v_train000000_dot_mp4="")
    data = load("activitynet", videos=tmp_path)
    assert data.class_names == tuple(names)
    parts = [(v.path, v.label, v.start, v.end) for v in data.partitions["val"]]
    path = "videos/v_vvvvvvvvvvv.mp4"
    assert parts == [(path, 3, 1.0, 2.0), (path, 7, 12.25, 30.5)]
    assert len(data.partitions["train"]) == 200


def test_kinetics_700(tmp_path):
    """Lists and folders as of Kinetics-600; without a list the folders are training."""
    put(tmp_path, **{"abseiling__-0aBcDeFgHi_000012_000022_dot_mp4": ""})
    data = load("k700", videos=tmp_path)
    assert [(v.id, v.label) for v in data.partitions["train"]] == [("-0aBcDeFgHi", 0)]
    put(
        tmp_path,
        validate_dot_csv="label,youtube_id,time_start,time_end,split\n"
        "zumba,ZVDR2od1gn8,37,47,validate\n",
        val__zumba__ZVDR2od1gn8_000037_000047_dot_mp4="",
    )
    assert [v.label for v in load("k700", videos=tmp_path).partitions["val"]] == [699]


def test_they_are_listed():
    listed = {row[0]: row for row in table()[1]}
    assert listed["ssv2"][2:4] == ("174", "193,690")
    assert {"k700", "jester", "diving48", "mit", "activitynet"} <= set(listed)


@pytest.mark.slow
def test_something_something_from_webm_to_figures(tmp_path, monkeypatch):
    """Its own files, made small: extracted, four shots trained on, evaluated."""
    monkeypatch.chdir(tmp_path)
    train = [(label, label) for label in range(174)]
    train += [(1000 + 10 * label + k, label) for label in (21, 24, 120) for k in range(5)]
    val = [(5000 + label, label) for label in (21, 24, 120, 173)]
    ssv2_files(tmp_path / "ssv2", train, val)
    small = Clip(num_frames=5, size=(64, 48), codec="libvpx", fps=12)
    template = write(tmp_path / "clip.webm", small)
    videos = tmp_path / "ssv2" / "20bn-something-something-v2"
    videos.mkdir()
    for id_, _ in [*train, *val]:
        shutil.copy(template, videos / f"{id_}.webm")

    def bieff(line, *more):
        done = CliRunner().invoke(main, [*line.split(), *more])
        assert done.exit_code == 0, done.output
        return done.output

    bieff(
        "extract --dataset ssv2 --videos ssv2 --frames 4 --clips 1 --model tinyclip "
        "--device cpu --out features/ssv2"
    )
    store = FeatureStore.open(tmp_path / "features" / "ssv2")
    assert store.class_names == SSV2
    short = ("--set", "epochs=1", "--set", "warmup_epochs=0", "--set", "temporal_layers=1")
    said = bieff("train --features features/ssv2 --shots 4 --device cpu", *short)
    # the classes with six videos give four of them, the others the one that they have
    assert "4 videos a class, draw 0: 183 videos of 174 classes, 171 classes have fewer" in said
    record = json.loads((tmp_path / "runs" / "ssv2" / "run.json").read_text())
    assert record["class_names"] == SSV2
    assert len(record["shots"]["videos"][SSV2[24]]) == 4
    assert "fewshot" in bieff("eval runs/ssv2 --device cpu")
    results = json.loads((tmp_path / "runs" / "ssv2" / "results.json").read_text())
    assert [(r["dataset"], r["n_evaluated"]) for r in results] == [("ssv2", 4)] * 2
