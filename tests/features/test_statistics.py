"""Statistics against Python floats, and the broken extractions they must show."""

import itertools
import math

import numpy as np
import pytest

from bieff.features.check import row_statistics, statistics
from bieff.features.errors import StoreError
from bieff.features.schema import PartitionPlan, ShardData, Status, Video, VideoError
from bieff.features.store import FeatureStore

V, T, D, ROWS, NUM = 2, 3, 5, 4, 11


def make_partition(path, embeddings, *, frames=None, failed=(), skip=()):
    num, views, length, dim = embeddings.shape
    videos = [Video(id=str(i), path=f"{i}.mp4", label=0) for i in range(num)]
    plan = PartitionPlan(videos=videos, num_views=views, rows_per_shard=ROWS)
    partition = FeatureStore.create(
        path,
        recipe={"frames": length, "dim": dim},
        class_names=["a"],
        partitions={"train": plan},
        versions={},
    ).partitions["train"]
    if frames is None:
        frames = np.broadcast_to(np.arange(length, dtype=np.int32), (num, views, length))
    status = np.array([Status.CORRUPT if i in failed else Status.OK for i in range(num)], "u1")
    for shard in range(partition.num_shards):
        if shard in skip:
            continue
        rows = partition.geometry.rows(shard)
        part = slice(rows.start, rows.stop)
        errors = [
            VideoError(
                row=row, id=str(row), path="x", status=Status.CORRUPT, stage="decode",
                decoder="pyav", message="no", attempt=1,
            )
            for row in rows
            if row in failed
        ]  # fmt: skip
        data = ShardData(embeddings[part], frames[part], status[part])
        partition.write_shard(shard, data, errors=errors, seconds={})
    return partition


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def reference(embeddings):
    """Mean norm and mean cosine between neighbouring frames of one video, in Python floats."""
    views = embeddings.astype(np.float64).tolist()
    norms = [math.sqrt(sum(x * x for x in frame)) for view in views for frame in view]
    cosines = [cosine(a, b) for view in views for a, b in itertools.pairwise(view)]
    return sum(norms) / len(norms), sum(cosines) / len(cosines)


def some_embeddings(num=NUM, seed=3):
    return np.random.default_rng(seed).normal(1, 1, (num, V, T, D)).astype("f2")


def test_statistics_match_the_reference(tmp_path):
    embeddings = some_embeddings()
    failed, skipped = (2, 9), range(4, 8)
    found = statistics(make_partition(tmp_path / "s", embeddings, failed=failed, skip=[1]))
    used = [i for i in range(NUM) if i not in failed and i not in skipped]
    norms, cosines = zip(*(reference(embeddings[i]) for i in used), strict=True)
    assert found.num_usable == len(used)
    for spread, values in ((found.norm, norms), (found.frame_cosine, cosines)):
        np.testing.assert_allclose(
            [spread.minimum, spread.mean, spread.maximum, spread.deviation],
            [min(values), np.mean(values), max(values), np.std(values)],
            rtol=1e-5,
        )
    # the next usable video of the same shard
    means = embeddings.astype(np.float64).mean(axis=(1, 2)).tolist()
    between = [cosine(means[a], means[b]) for a, b in ((0, 1), (1, 3), (8, 10))]
    assert found.video_cosine.mean == pytest.approx(np.mean(between), rel=1e-5)
    assert found.findings() == []


def test_statistics_by_hand():
    """One video, one view: (3, 4), (3, 4), (4, -3); a right angle between the last two."""
    embeddings = np.array([[[[3, 4], [3, 4], [4, -3]]]], np.float16)
    frames = np.array([[[0, 5, 9]]], np.int32)
    table = row_statistics(embeddings, frames, np.array([True]))
    np.testing.assert_array_equal(table, [[5, 0.5, np.nan, 0, 0]])


def test_dead_and_frozen_videos_are_named(tmp_path):
    embeddings = some_embeddings()
    embeddings[3, 1, 2] = 0
    embeddings[6, 0] = embeddings[6, 0, :1]
    embeddings[7, 1] = embeddings[7, 1, :1]
    frames = np.broadcast_to(np.arange(T, dtype=np.int32), (NUM, V, T)).copy()
    frames[7] = 0  # a video of one frame repeats it rightly
    found = statistics(make_partition(tmp_path / "s", embeddings, frames=frames))
    assert (found.dead, found.frozen) == ((3,), (6,))
    assert found.findings() == [
        "1 of 11 videos hold zeros (rows 3); look at their files",
        "1 of 11 videos repeat one frame (rows 6); look at their files",
    ]


def test_videos_that_are_all_alike_are_noticed(tmp_path):
    embeddings = (1 + some_embeddings() / 100).astype("f2")
    (finding,) = statistics(make_partition(tmp_path / "s", embeddings)).findings()
    assert finding.startswith("all videos are nearly the same: mean cosine 0.999")


def test_one_frame_and_no_video(tmp_path):
    one = statistics(make_partition(tmp_path / "a", some_embeddings()[:, :, :1]))
    assert math.isnan(one.frame_cosine.mean)
    assert one.frozen == ()
    none = statistics(make_partition(tmp_path / "b", some_embeddings(), skip=range(3)))
    assert none.num_usable == 0
    assert math.isnan(none.norm.mean)
    assert none.findings() == []


def test_damage_is_said(tmp_path):
    partition = make_partition(tmp_path / "s", some_embeddings())
    file = partition.geometry.arrays["embeddings"].file(partition.path, 1)
    data = bytearray(file.read_bytes())
    data[9] ^= 1
    file.write_bytes(data)
    with pytest.raises(StoreError, match=r"checksum.*; run `bieff store verify`"):
        statistics(partition)
