"""Stores and exported files from somebody else: nothing is written or read elsewhere."""

import hashlib
import json
import shutil

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from helpers.places import SHARED
from helpers.stores import content, write_all

from bieff.cli import main
from bieff.features.errors import BieffError
from bieff.features.hdf5 import export_hdf5, look
from bieff.features.plan import recipe_hash
from bieff.features.store import FeatureStore


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    write_all(folder / "store")
    export_hdf5(FeatureStore.open(folder / "store"), folder / "sound.h5")
    return folder / "sound.h5"


@pytest.fixture
def world(tmp_path, exported):
    """A folder with a store of one's own, and the file that came from somebody."""
    shutil.copytree(exported.parent / "store", tmp_path / "mine")
    shutil.copyfile(exported, tmp_path / "got.h5")
    return tmp_path


def edit_attributes(file, change):
    """Change what an exported file says of its store, and keep the hash of the recipe right."""
    with h5py.File(file, "r+") as opened:
        metadata = json.loads(opened["files/zarr.json"][()].tobytes())
        change(metadata["attributes"])
        put(opened, "files/zarr.json", json.dumps(metadata).encode())


def put(opened, name, data):
    if name in opened:
        del opened[name]
    opened[name] = np.frombuffer(data, np.uint8)


def edit_videos(file, change):
    """Change the list of videos, and keep its hash right."""
    with h5py.File(file, "r+") as opened:
        lines = opened["files/videos/train.jsonl"][()].tobytes().splitlines()
        videos = [json.loads(line) for line in lines]
        change(videos)
        put(
            opened,
            "files/videos/train.jsonl",
            b"".join(json.dumps(video).encode() + b"\n" for video in videos),
        )
    digest = hashlib.sha256()
    for video in videos:
        text = json.dumps([video["id"], video["label"], sorted(video["splits"].items())])
        digest.update(f"{text}\n".encode())
    edit_attributes(
        file, lambda held: held["partitions"]["train"].update(videos=digest.hexdigest())
    )


def refused(world, *arguments):
    """The one sentence with which a command ends; nothing in the world has changed."""
    before = content(world)
    result = CliRunner().invoke(main, ["store", *map(str, arguments)])
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.output.count("\n") == 1
    assert content(world) == before
    return result.output


def damage_of(file):
    """The sentence that an import's first look at a file ends with.

    In this process; the tests say for one of each kind that the command says the same.
    """
    with pytest.raises(BieffError) as caught:
        look(str(file))
    return str(caught.value)


def test_a_sound_file_is_taken(world):
    result = CliRunner().invoke(
        main, ["store", "import", str(world / "got.h5"), "--to", str(world / "new")]
    )
    assert result.exit_code == 0, result.output
    assert content(world / "new") == content(world / "mine")


@pytest.mark.parametrize(
    "name",
    ["{world}/mine/train", "../mine", "a/b", "..", ".", "", "ledger", "Train", "a\n", 65 * "a"],
)
def test_a_partition_is_a_folder_of_the_store(world, name):
    name = name.format(world=world)

    def rename(attributes):
        attributes["partitions"][name] = attributes["partitions"].pop("train")

    edit_attributes(world / "got.h5", rename)
    said = damage_of(world / "got.h5")
    assert "expected partition names of small letters and digits, got " in said
    if name == "../mine":
        assert said in refused(world, "import", world / "got.h5", "--to", world / "new")
        assert not (world / "new").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda held: held["recipe"].update(frames=4), "a recipe that agrees with its hash"),
        (lambda held: held.update(class_names="ab"), "class_names that are a list of texts"),
        (lambda held: held.update(root="http://host/"), "a root that is a path"),
        (lambda held: held.update(root=["x"]), "a root that is a path"),
        (lambda held: held["partitions"]["train"].update(num_videos=10**12), "counts of"),
        (lambda held: held["partitions"]["train"].update(rows_per_shard=2.5), "counts of"),
        (lambda held: held["partitions"]["train"].update(num_views=2**27), "fit into memory"),
        (lambda held: held.update(class_subsets={"a": [7]}), "labels in class subset 'a'"),
        (lambda held: held.update(schema_version=2), "version 1, got schema version 2"),
        (dict.clear, "got no feature store"),
    ],
)
def test_attributes_that_no_store_can_have(world, change, expected):
    edit_attributes(world / "got.h5", change)
    said = damage_of(world / "got.h5")
    assert expected in said
    if change is dict.clear:
        assert said in refused(world, "import", world / "got.h5", "--to", world / "new")
        assert not (world / "new").exists()
    # the same where they lie in a folder
    file = world / "mine" / "zarr.json"
    metadata = json.loads(file.read_text())
    change(metadata["attributes"])
    file.write_text(json.dumps(metadata))
    for command in ("info", "verify", "export"):
        assert expected in refused(world, command, world / "mine")


def test_a_recipe_with_its_own_hash_may_still_not_be_one(world):
    def change(held):
        held["recipe"]["dim"] = "101"
        held["recipe_hash"] = recipe_hash(held["recipe"])

    edit_attributes(world / "got.h5", change)
    assert "expected counts of frames, dim and patches" in damage_of(world / "got.h5")


@pytest.mark.parametrize(
    "change",
    [
        {"path": "http://host/a.mp4"},
        {"path": "https://host/a.mp4"},
        {"path": 3},
        {"path": "a\0b"},
        {"path": ""},
        {"path": 5000 * "a"},
        {"size": -1},
        {"label": 2},
        {"label": -2},
        {"label": True},
        {"size": "9"},
        {"more": 1},
    ],
)
def test_a_video_is_a_file_and_a_class(world, change):
    edit_videos(world / "got.h5", lambda videos: videos[3].update(change))
    said = damage_of(world / "got.h5")
    assert "train.jsonl" in said
    if change == {"path": 3}:
        assert said in refused(world, "import", world / "got.h5", "--to", world / "new")
        assert not (world / "new").exists()


@pytest.mark.parametrize("kind", ["soft", "external", "virtual", "stored elsewhere", "type"])
@pytest.mark.parametrize(
    "name", [pytest.param("files/zarr.json", marks=pytest.mark.slow), "train/embeddings"]
)
def test_links_in_a_file_are_not_followed(world, kind, name):
    with h5py.File(world / "got.h5", "r+") as file:
        held = file[name]
        shape, dtype = held.shape, held.dtype
        whole = held[()]
        del file[name]
        if kind == "soft":
            file["other"] = whole
            file[name] = h5py.SoftLink("/other")
        elif kind == "external":
            with h5py.File(world / "other.h5", "w") as other:
                other["x"] = whole
            file[name] = h5py.ExternalLink(str(world / "other.h5"), "/x")
        elif kind == "virtual":
            with h5py.File(world / "other.h5", "w") as other:
                other["x"] = whole
            layout = h5py.VirtualLayout(shape=shape, dtype=dtype)
            layout[:] = h5py.VirtualSource(world / "other.h5", "x", shape=shape)
            file.create_virtual_dataset(name, layout)
        elif kind == "stored elsewhere":
            (world / "raw").write_bytes(whole.tobytes())
            file.create_dataset(
                name, shape, dtype, external=[(str(world / "raw"), 0, whole.nbytes)]
            )
        else:
            file[name] = np.dtype("<f2")
    said = refused(world, "import", world / "got.h5", "--to", world / "new")
    assert "got.h5 is damaged: " in said
    assert not (world / "new").exists()


@pytest.mark.parametrize("link", ["train", "train/embeddings", "ledger", "zarr.json"])
def test_links_in_the_target_are_not_followed(world, link):
    inside = world / "new" / link
    inside.parent.mkdir(parents=True)
    inside.symlink_to(world / "mine" / link)
    said = refused(world, "import", world / "got.h5", "--to", world / "new")
    assert f"{inside} is a link, which an import does not follow" in said


def test_bytes_that_were_never_written_take_no_memory(world):
    with h5py.File(world / "got.h5", "r+") as file:
        del file["files/zarr.json"]
        file.create_dataset("files/zarr.json", (2**40,), np.uint8)
    said = refused(world, "import", world / "got.h5", "--to", world / "new")
    assert "expected plain bytes at files/zarr.json" in said


def test_a_marker_and_errors_belong_to_their_shard(world):
    with h5py.File(world / "got.h5", "r+") as file:
        other = file["files/ledger/train-00001.json"][()]
        put(file, "files/ledger/train-00002.json", other.tobytes())
    command = ["store", "import", str(world / "got.h5"), "--to", str(world / "new")]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1
    assert "the marker of train shard 2 is none" in result.output
    assert FeatureStore.open(world / "new").partitions["train"].pending() == [2, 3, 4, 5, 6, 7]


def test_a_damaged_export_is_one_sentence(tmp_path):
    damaged = SHARED / "cases" / "field" / "O10_damaged_export.h5"
    if not damaged.exists():
        pytest.skip("the shared cases are not here")
    said = refused(tmp_path, "import", damaged, "--to", tmp_path / "new")
    assert "O10_damaged_export.h5 is damaged: " in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow  # a process looks at each of the files first
def test_every_damaged_byte_is_a_sentence_or_harmless(world):
    """A file with holes in it, at places of its structure and of its data."""
    whole = (world / "got.h5").read_bytes()
    expected = content(world / "mine")
    rng = np.random.default_rng(5)
    for start in rng.integers(0, len(whole) - 16, 12).tolist():
        damaged = bytearray(whole)
        damaged[start : start + 16] = rng.bytes(16)
        (world / "got.h5").write_bytes(damaged)
        command = ["store", "import", str(world / "got.h5"), "--to", str(world / "new")]
        result = CliRunner().invoke(main, command)
        if result.exit_code == 0:
            assert content(world / "new") == expected
        else:
            assert isinstance(result.exception, SystemExit), result.exception
            assert result.output.count("\n") == 1
        shutil.rmtree(world / "new", ignore_errors=True)


def test_a_store_whose_lists_are_damaged_is_named(world):
    store = world / "mine"
    videos = store / "videos" / "train.jsonl"
    whole = videos.read_bytes()
    for damaged, expected in (
        (whole[:-40], "cannot be read"),
        (whole.replace(b'"3.mp4"', b'"http://host/3.mp4"'), "line 4: expected a video"),
        (whole.replace(b'"label": 1', b'"label": "1"', 1), "line 2: expected a video"),
        (b"", "cannot be read"),
    ):
        videos.write_bytes(damaged)
        result = CliRunner().invoke(main, ["store", "verify", str(store)])
        assert result.exit_code == 1
        assert expected in result.output
    videos.unlink()
    assert "cannot be read" in CliRunner().invoke(main, ["store", "verify", str(store)]).output
