"""A store goes through one HDF5 file and comes out the same, byte for byte."""

import gzip
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import stores
from helpers.stores import content

from bieff.features.check import verify
from bieff.features.errors import InputError, StoreError, StoreMismatchError
from bieff.features.hdf5 import export_hdf5, import_hdf5
from bieff.features.schema import PartitionPlan, ShardData, Status, Video, VideoError
from bieff.features.store import FeatureStore

V, T, D, P, W, ROWS = 2, 3, 5, 4, 7, 4


def make_store(path, *, num=11, skip=(), seed=0, dim=D):
    videos = [
        Video(id=f"ß{i}", path=f"a b/{i}.mp4", label=i % 2, splits={"1": "test"})
        for i in range(num)
    ]
    store = FeatureStore.create(
        path,
        recipe={"frames": T, "dim": dim, "patches": [P, W]},
        class_names=["a", "b"],
        partitions={"all": PartitionPlan(videos=videos, num_views=V, rows_per_shard=ROWS)},
        versions={"zarr": "3"},
        root="/videos",
    )
    partition = store.partitions["all"]
    for shard in range(partition.num_shards):
        if shard in skip:
            continue
        rng = np.random.default_rng([seed, shard])
        rows = partition.geometry.rows(shard)
        status = np.full(len(rows), int(Status.OK), np.uint8)
        status[0] = Status.MISSING
        data = ShardData(
            embeddings=rng.normal(size=(len(rows), V, T, dim)).astype("f2"),
            frames=rng.integers(0, 99, (len(rows), V, T), dtype=np.int32),
            status=status,
            patches=rng.normal(size=(len(rows), V, P, W)).astype("f2"),
        )
        error = VideoError(
            row=rows.start, id="x", path="x", status=Status.MISSING, stage="find",
            decoder="", message="not there", attempt=1,
        )  # fmt: skip
        partition.write_shard(shard, data, errors=[error], seconds={"decode": shard / 7})
    return store


@pytest.mark.parametrize("skip", [(), (1,)])
def test_a_store_comes_back_byte_for_byte(tmp_path, skip):
    store = make_store(tmp_path / "store", skip=skip)
    assert export_hdf5(store, tmp_path / "store.h5") == 3 - len(skip)
    assert import_hdf5(tmp_path / "store.h5", tmp_path / "again") == 3 - len(skip)
    assert content(tmp_path / "again") == content(store.path)
    again = FeatureStore.open(tmp_path / "again")
    assert verify(again).is_sound
    assert again.partitions["all"].pending() == list(skip)


def test_a_stranger_reads_it_with_h5py(tmp_path):
    store = make_store(tmp_path / "store", skip=[2])
    export_hdf5(store, tmp_path / "store.h5")
    partition = store.partitions["all"]
    with h5py.File(tmp_path / "store.h5") as file:
        group = file["all"]
        assert group["embeddings"].shape == (11, V, T, D)
        assert [d.label for d in group["embeddings"].dims] == [
            "video", "view", "frame", "embedding",
        ]  # fmt: skip
        rows = [1, 2, 3, 5, 6, 7]
        assert np.array_equal(group["embeddings"][rows], partition.read(rows))
        assert np.array_equal(group["patches"][rows], partition.read_patches(rows))
        assert np.array_equal(group["frames"][rows], partition.frames(rows))
        assert np.array_equal(group["status"][:], partition.status())
        assert group["labels"][:].tolist() == partition.labels.tolist()
        assert group["ids"].asstr()[3] == "ß3"


def test_an_import_goes_on_where_it_was_stopped(tmp_path):
    store = make_store(tmp_path / "store")
    export_hdf5(store, tmp_path / "store.h5")
    import_hdf5(tmp_path / "store.h5", tmp_path / "again")
    FeatureStore.open(tmp_path / "again").partitions["all"].drop(1)
    assert import_hdf5(tmp_path / "store.h5", tmp_path / "again") == 1
    assert content(tmp_path / "again") == content(store.path)


@pytest.mark.slow
def test_an_import_that_is_killed_is_finished_by_the_next(tmp_path):
    store = make_store(tmp_path / "store", num=83)
    export_hdf5(store, tmp_path / "store.h5")
    code, output, errors = stores.run("count_import", tmp_path / "store.h5", tmp_path / "a")
    assert (code, errors) == (0, "")
    for quarter in range(4):
        moment = int(output) * quarter // 5
        stores.run("import_killed", tmp_path / "store.h5", tmp_path / "b", moment)
    import_hdf5(tmp_path / "store.h5", tmp_path / "b")
    assert content(tmp_path / "b") == content(store.path)


def test_files_that_are_there_are_not_overwritten(tmp_path):
    store = make_store(tmp_path / "store")
    (tmp_path / "store.h5").write_text("mine")
    with pytest.raises(StoreError, match=r"store\.h5 exists; remove it or choose another name"):
        export_hdf5(store, tmp_path / "store.h5")
    assert (tmp_path / "store.h5").read_text() == "mine"


def test_a_file_that_will_not_fit_is_not_begun(tmp_path, monkeypatch):
    """HDF5 ends the process when the disk fills up while it writes."""
    store = make_store(tmp_path / "store")
    export_hdf5(store, tmp_path / "store.h5")
    usage = shutil.disk_usage(tmp_path)
    size = (tmp_path / "store.h5").stat().st_size
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=size - 1))
    with pytest.raises(StoreError, match=r"no space to write .*again\.h5: .* bytes are needed"):
        export_hdf5(store, tmp_path / "again.h5")
    assert list(tmp_path.glob("again*")) == []


def test_damage_is_not_exported(tmp_path):
    store = make_store(tmp_path / "store")
    partition = store.partitions["all"]
    file = partition.geometry.arrays["patches"].file(partition.path, 1)
    data = bytearray(file.read_bytes())
    data[3] ^= 1
    file.write_bytes(data)
    with pytest.raises(StoreError, match=r"all shard 1: .*crc32c differs, rows 4; run"):
        export_hdf5(store, tmp_path / "store.h5")
    assert not (tmp_path / "store.h5").exists()


def test_damage_is_not_imported(tmp_path):
    export_hdf5(make_store(tmp_path / "store"), tmp_path / "store.h5")
    with h5py.File(tmp_path / "store.h5", "r+") as file:
        file["all/embeddings"][6, 0, 0, 0] = 7
    with pytest.raises(StoreError, match="embeddings of all shard 1 is not what was exported"):
        import_hdf5(tmp_path / "store.h5", tmp_path / "again")
    assert FeatureStore.open(tmp_path / "again").partitions["all"].pending() == [1, 2]


@pytest.mark.slow
def test_a_file_that_hdf5_never_returns_from_is_a_sentence(tmp_path, monkeypatch):
    """An export with random holes: h5py 3.16 does not come back from its first attribute."""
    packed = (Path(__file__).parent / "never_returns.h5.gz").read_bytes()
    (tmp_path / "store.h5").write_bytes(gzip.decompress(packed))
    monkeypatch.setattr("bieff.features.hdf5.LOOK_SECONDS", 3.0)
    with pytest.raises(InputError, match=r"store\.h5 is damaged: .*; export it again$"):
        import_hdf5(tmp_path / "store.h5", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_an_import_does_not_touch_another_store(tmp_path):
    export_hdf5(make_store(tmp_path / "store"), tmp_path / "store.h5")
    other = make_store(tmp_path / "other", dim=D + 1)
    before = content(other.path)
    with pytest.raises(StoreMismatchError, match="other is another store"):
        import_hdf5(tmp_path / "store.h5", other.path)
    assert content(other.path) == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("text")
    with pytest.raises(StoreError, match=r"not empty, it has notes\.txt"):
        import_hdf5(tmp_path / "store.h5", tmp_path / "full")


def test_what_was_not_exported_is_refused(tmp_path):
    (tmp_path / "text.h5").write_text("text")
    with pytest.raises(InputError, match=r"cannot read .*text\.h5 as HDF5"):
        import_hdf5(tmp_path / "text.h5", tmp_path / "again")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(InputError, match=r"other\.h5 is not an exported feature store"):
        import_hdf5(tmp_path / "other.h5", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_an_evil_file_stays_in_its_folder(tmp_path):
    export_hdf5(make_store(tmp_path / "store"), tmp_path / "store.h5")
    with h5py.File(tmp_path / "store.h5", "r+") as file:
        data = np.frombuffer(b"x", np.uint8)
        file["files"].create_group("..").create_dataset("evil", data=data)
    with pytest.raises(InputError, match=r"holds a file outside the store: '\.\.'"):
        import_hdf5(tmp_path / "store.h5", tmp_path / "again")
    assert not (tmp_path / "evil").exists()
