"""What power cuts, full disks and torn files do to a store, with real processes and files."""

import json
import os
import pickle
import random
import resource
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers import stores
from helpers.stores import through_zarr

from bieff.features import shard as shard_files
from bieff.features.errors import StoreError
from bieff.features.schema import PartitionPlan, ShardData, Video
from bieff.features.store import FeatureStore


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The store as an uninterrupted run writes it, and how often that touches a file."""
    path = tmp_path_factory.mktemp("whole") / "store"
    code, output, errors = stores.run("count_writes", path)
    assert (code, errors) == (0, "")
    return stores.content(path), json.loads(output)


@pytest.mark.slow
def test_killed_at_ten_moments_it_becomes_the_same_store(tmp_path, whole):
    expected, (planned, total) = whole
    moments = random.Random(7)
    ends = []
    for _ in range(10):
        moment = moments.randrange(planned, planned + (total - planned) // 8)
        ends.append(stores.run("write_killed", tmp_path / "store", moment)[0])
    assert ends.count(-signal.SIGKILL) >= 5
    assert stores.run("write_all", tmp_path / "store") == (0, "", "")
    assert stores.content(tmp_path / "store") == expected


@pytest.mark.slow
def test_a_plan_killed_at_ten_moments_is_finished_by_the_next(tmp_path, whole):
    expected, (planned, _) = whole
    moments = random.Random(11)
    path = tmp_path / "store"
    for _ in range(10):
        stores.run("write_killed", path, moments.randrange(planned))
    assert stores.run("write_all", path) == (0, "", "")
    assert stores.content(path) == expected


def small_store(path, *, num=7, rows=3):
    videos = [Video(id=f"v{i}", path=f"{i}.mp4", label=0) for i in range(num)]
    store = FeatureStore.create(
        path,
        recipe={"frames": 2, "dim": 5},
        class_names=["a"],
        partitions={"train": PartitionPlan(videos=videos, num_views=1, rows_per_shard=rows)},
        versions={},
    )
    return store.partitions["train"]


def write(partition, shard, value):
    n = len(partition.geometry.rows(shard))
    data = ShardData(
        np.full((n, 1, 2, 5), value, np.float16),
        np.full((n, 1, 2), int(value), np.int32),
        np.ones(n, np.uint8),
    )
    partition.write_shard(shard, data, errors=[], seconds={})


@pytest.mark.parametrize("damage", ["torn", "zero length", "garbage", "a folder"])
def test_a_shard_is_written_over_whatever_lies_there(tmp_path, damage):
    partition = small_store(tmp_path / "store")
    write(partition, 1, 1)
    files = [array.file(partition.path, 1) for array in partition.geometry.arrays.values()]
    for file in files:
        data = file.read_bytes()
        if damage == "a folder":
            file.unlink()
            file.mkdir()
            continue
        file.write_bytes({"torn": data[:-7], "zero length": b""}.get(damage, b"x" * len(data)))
    write(partition, 1, 2)
    assert partition.done().tolist() == [False, True, False]
    assert (partition.read([3, 5]) == 2).all()
    assert (through_zarr(partition, [3, 5]) == 2).all()


def test_what_killed_writers_left_is_removed(tmp_path):
    partition = small_store(tmp_path / "store")
    for array in partition.geometry.arrays.values():
        file = array.file(partition.path, 1)
        file.parent.mkdir(parents=True, exist_ok=True)
        for shard_file in (file, array.file(partition.path, 12)):
            shard_file.parent.mkdir(parents=True, exist_ok=True)
            shard_file.with_suffix(".0123abcd.partial").write_bytes(b"half")
    write(partition, 1, 1)
    left = sorted(
        str(file.relative_to(partition.path)) for file in partition.path.rglob("*.part*")
    )
    assert left == [
        "embeddings/c/12/0/0/0.0123abcd.partial",
        "frames/c/12/0/0.0123abcd.partial",
        "status/c/12.0123abcd.partial",
    ]


def test_a_shard_written_anew_is_read_anew(tmp_path):
    partition = small_store(tmp_path / "store")
    write(partition, 0, 1)
    assert (partition.read([0, 2]) == 1).all()
    write(partition, 0, 3)
    assert (partition.read([0, 2]) == 3).all()
    assert (partition.frames([2]) == 3).all()


@pytest.mark.slow
def test_more_shards_than_files_may_be_open_are_read(tmp_path):
    partition = small_store(tmp_path / "store", num=150, rows=1)
    for shard in range(150):
        write(partition, shard, shard)
    num_open = len(list(Path("/dev/fd").iterdir()))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = num_open + num_open // 2 + 30  # a third is for maps, more than that is free
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        reopened = FeatureStore.open(tmp_path / "store").partitions["train"]
        rows = np.random.default_rng(3).permutation(150)
        assert np.array_equal(reopened.read(rows)[:, 0, 0, 0], rows)
        assert np.array_equal(reopened.frames(rows)[:, 0, 1], rows)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_an_interrupted_second_write_leaves_no_marker(tmp_path, monkeypatch):
    """Stopped with new embeddings and old frames, all of the right size."""
    partition = small_store(tmp_path / "store")
    write(partition, 0, 1)
    remove = shard_files.remove

    def stop_at_frames(folder, array, shard):
        if array.name == "frames":
            raise KeyboardInterrupt
        remove(folder, array, shard)

    monkeypatch.setattr(shard_files, "remove", stop_at_frames)
    with pytest.raises(KeyboardInterrupt):
        write(partition, 0, 2)
    assert partition.pending() == [0, 1, 2]


def test_a_disk_that_loses_a_bit_is_noticed(tmp_path, monkeypatch):
    partition = small_store(tmp_path / "store")

    def sync_and_lose_a_bit(file):
        if "embeddings" in file.parts:
            data = bytearray(file.read_bytes())
            data[5] ^= 1
            file.write_bytes(data)

    monkeypatch.setattr(shard_files, "sync", sync_and_lose_a_bit)
    with pytest.raises(StoreError, match="is not what was written; check the disk and run ag"):
        write(partition, 0, 1)
    assert partition.pending() == [0, 1, 2]


def test_no_space_is_one_sentence_and_the_next_run_finishes(tmp_path, whole):
    expected, _ = whole
    code, _, errors = stores.run("write_with_small_files", tmp_path / "store")
    assert code == 1
    last = errors.strip().splitlines()[-1]
    assert last.startswith("bieff.features.errors.StoreError: no space to write")
    assert "make room and run the same command again, what is finished is kept" in last
    assert stores.run("write_all", tmp_path / "store") == (0, "", "")
    assert stores.content(tmp_path / "store") == expected


@pytest.mark.slow
def test_a_full_disk_keeps_what_is_finished(tmp_path, whole):
    """A real one, where this machine lets us mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=132k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("cannot mount a small disk here")
    try:
        code, _, errors = stores.run("write_all", disk / "store")
        assert code == 1
        assert "no space to write" in errors.strip().splitlines()[-1]
        finished = FeatureStore.open(disk / "store").partitions["train"].done().sum()
        assert 0 < finished < 8
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        assert stores.run("write_all", disk / "store") == (0, "", "")
        assert stores.content(disk / "store") == whole[0]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_partition_goes_to_another_process(tmp_path):
    partition = small_store(tmp_path / "store")
    write(partition, 1, 5)
    partition.read([3])
    copy = pickle.loads(pickle.dumps(partition))
    assert (copy.read([3, 4]) == 5).all()
    assert copy.pending() == [0, 2]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match=r"cannot write .*; choose another --out"):
        small_store(Path(tmp_path) / "store")
