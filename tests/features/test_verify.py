"""Damage on disk is found and named, and exactly what is bad is redone."""

import json
import shutil

import numpy as np
import pytest

from bieff.features.check import check_shard, drop_bad, verify
from bieff.features.errors import StoreError
from bieff.features.schema import PartitionPlan, ShardData, Status, Video, VideoError
from bieff.features.store import FeatureStore

V, T, D, ROWS, NUM = 2, 3, 13, 5, 17


@pytest.fixture
def store(tmp_path):
    videos = [Video(id=f"v{i}", path=f"{i}.mp4", label=i % 3) for i in range(NUM)]
    store = FeatureStore.create(
        tmp_path / "store",
        recipe={"frames": T, "dim": D},
        class_names=["a", "b", "c"],
        partitions={
            "train": PartitionPlan(videos=videos, num_views=V, rows_per_shard=ROWS),
            "val": PartitionPlan(videos=videos[:4], num_views=V, rows_per_shard=ROWS),
        },
        versions={},
    )
    for partition in store.partitions.values():
        for shard in range(partition.num_shards):
            write(partition, shard)
    return store


def write(partition, shard):
    rng = np.random.default_rng(shard)
    rows = partition.geometry.rows(shard)
    status = np.full(len(rows), int(Status.OK), np.uint8)
    status[1:2] = Status.CORRUPT
    data = ShardData(
        embeddings=rng.normal(size=(len(rows), V, T, D)).astype("f2"),
        frames=rng.integers(0, 99, (len(rows), V, T), dtype=np.int32),
        status=status,
    )
    errors = [
        VideoError(
            row=rows.start + 1, id="x", path="x", status=Status.CORRUPT, stage="decode",
            decoder="decord", message="no", attempt=1,
        )
    ][: len(rows) - 1]  # fmt: skip
    partition.write_shard(shard, data, errors=errors, seconds={})


def shard_file(store, shard, array="embeddings"):
    partition = store.partitions["train"]
    return partition.geometry.arrays[array].file(partition.path, shard)


def flip(file, position):
    data = bytearray(file.read_bytes())
    data[position] ^= 0x10
    file.write_bytes(data)


def test_a_sound_store_is_sound(store):
    found = verify(store)
    assert found.is_sound
    assert (found.num_shards, found.num_pending) == (5, 0)
    on_disk = sum(
        file.stat().st_size
        for name in store.partitions
        for array in ("embeddings", "frames", "status")
        for file in (store.path / name / array).glob("c/**/*")
        if file.is_file()
    )
    assert found.num_bytes == on_disk


def test_pending_shards_are_no_damage(store):
    store.partitions["train"].drop(1)
    shutil.rmtree(store.path / "train" / "embeddings" / "c" / "1")
    found = verify(store)
    assert found.is_sound
    assert (found.num_shards, found.num_pending) == (4, 1)


def test_a_flipped_bit_is_found_with_its_row(store):
    row_bytes = V * T * D * 2 + 4
    flip(shard_file(store, 2), 3 * row_bytes + 7)
    (bad,) = verify(store).bad
    assert (bad.partition, bad.shard, bad.rows) == ("train", 2, (13,))
    assert str(bad) == f"train shard 2: {shard_file(store, 2)}: crc32c differs, rows 13"


def test_every_flipped_bit_is_found(store):
    """Also those in checksums, in zarr's index and in padding."""
    file = shard_file(store, 3)
    whole = file.read_bytes()
    for position in range(0, len(whole), 5):
        flip(file, position)
        assert check_shard(store.partitions["train"], 3) is not None, position
        file.write_bytes(whole)
    assert check_shard(store.partitions["train"], 3) is None


@pytest.mark.parametrize("array", ["frames", "status"])
def test_the_small_arrays_are_looked_at_too(store, array):
    flip(shard_file(store, 1, array), 0)
    (bad,) = verify(store).bad
    assert bad.rows == tuple(range(5, 10))
    assert bad.file == shard_file(store, 1, array)


def test_torn_and_empty_and_missing_shards_are_found(store):
    torn, empty, missing = (shard_file(store, shard) for shard in range(3))
    size = torn.stat().st_size
    torn.write_bytes(torn.read_bytes()[:-100])
    empty.write_bytes(b"")
    missing.unlink()
    assert [bad.reason for bad in verify(store).bad] == [
        f"expected {size} bytes, got {size - 100}",
        f"expected {size} bytes, got 0",
        "missing",
    ]
    assert store.partitions["train"].pending() == [0, 1, 2]


def test_a_shard_in_anothers_place_is_found(store):
    """Every row agrees with its own crc32c, and so does the crc32c of the whole file."""
    shutil.copyfile(shard_file(store, 0), shard_file(store, 1))
    (bad,) = verify(store).bad
    assert bad.reason == "sha256 differs from the marker's"


def test_what_is_bad_is_dropped_and_redone(store):
    train = store.partitions["train"]
    before = train.read(slice(None))
    flip(shard_file(store, 1), 0)
    flip(shard_file(store, 3), 0)
    assert train.pending() == []  # sizes agree
    assert drop_bad(store, verify(store).bad) == 2
    assert train.pending() == [1, 3]
    for shard in train.pending():
        write(train, shard)
    assert verify(store).is_sound
    assert train.read(slice(None)).tobytes() == before.tobytes()


def test_dropping_needs_the_store_to_itself(store):
    flip(shard_file(store, 1), 0)
    bad = verify(store).bad
    with store.exclusive(), pytest.raises(StoreError, match="already being written"):
        drop_bad(store, bad)
    assert store.partitions["train"].pending() == []


def test_a_flipped_status_is_not_believed(store):
    flip(shard_file(store, 0, "status"), 2)
    with pytest.raises(StoreError, match="its checksum differs; run `bieff store verify`"):
        store.partitions["train"].status()


def test_the_map_refuses_a_damaged_index(store):
    train = store.partitions["train"]
    index = train.rows_per_shard * (V * T * D * 2 + 4)
    flip(shard_file(store, 0), index)
    with pytest.raises(StoreError, match="rows do not lie at a fixed stride"):
        train.read([0])


def test_a_changed_list_of_videos_is_found(store):
    file = store.path / "videos" / "train.jsonl"
    lines = file.read_text().splitlines()
    lines[4], lines[5] = lines[5], lines[4]
    file.write_text("\n".join(lines) + "\n")
    assert verify(store).bad_tables == (
        "videos/train.jsonl is not the list of videos that was planned",
    )


def test_changed_labels_are_found(store):
    flip(store.path / "train" / "labels" / "c" / "0", 0)
    (line,) = verify(store).bad_tables
    assert line.startswith("train/labels cannot be read")


def test_a_marker_that_cannot_be_read_is_no_marker(store):
    train = store.partitions["train"]
    marker, _ = train.shard_files(1)
    whole = marker.read_bytes()
    for content in (b"", whole[:40], b"[]", b"{}", whole.replace(b'"sha256"', b'"sum"')):
        marker.write_bytes(content)
        assert train.pending() == [1]
    changed = {**json.loads(whole), "recipe_hash": "0" * 64}
    marker.write_text(json.dumps(changed))
    assert train.pending() == [1]
    marker.write_bytes(whole)
    assert train.pending() == []
