"""Protocols on a store with undecodable videos and an odd number of the others."""

import numpy as np
import pytest
import torch

from bieff.features.errors import StoreError
from bieff.features.schema import PartitionPlan, ShardData, Status, Video, VideoError
from bieff.features.store import FeatureStore
from bieff.train.protocols import Subject, closed, splits3
from bieff.train.protocols import test_lists as lists_of

V, T, D, K = 3, 4, 5, 7
BAD = (2, 11)


def make_store(path, partition, num_videos=13):
    """Random features; two videos cannot be decoded."""
    rng = np.random.default_rng(4)
    videos = [
        Video(
            id=f"v{i}",
            path=f"v{i}.mp4",
            label=int(rng.integers(K)),
            splits={s: "test" if rng.random() < 0.4 else "train" for s in ("1", "2", "3")},
        )
        for i in range(num_videos)
    ]
    store = FeatureStore.create(
        path,
        recipe={
            "data_set": "made-up",
            "frames": T,
            "dim": D,
            "patches": None,
            "views": {
                partition: [
                    {"kind": "grid", "clip": k, "clips": V, "crop": "centre"} for k in range(V)
                ]
            },
        },
        class_names=[f"class {k}" for k in range(K)],
        partitions={partition: PartitionPlan(videos=videos, num_views=V)},
        versions={},
    )
    part = store.partitions[partition]
    for shard in part.pending():
        rows = part.geometry.rows(shard)
        status = np.full(len(rows), Status.OK, np.uint8)
        errors = []
        for row in set(BAD) & set(rows):
            status[row - rows.start] = Status.CORRUPT
            errors.append(
                VideoError(
                    row=row,
                    id=f"v{row}",
                    path=f"v{row}.mp4",
                    status=Status.CORRUPT,
                    stage="decode",
                    decoder="pyav",
                    message="made so",
                    attempt=1,
                )
            )
        data = ShardData(
            embeddings=rng.standard_normal((len(rows), V, T, D)).astype(np.float16),
            frames=np.zeros((len(rows), V, T), np.int32),
            status=status,
        )
        part.write_shard(shard, data, errors=errors, seconds={})
    return store


@pytest.fixture
def subject():
    classes = torch.randn(K, D, generator=torch.Generator().manual_seed(2))
    return Subject(
        score=lambda frames, _: frames.mean(dim=1) @ classes.T,
        num_frames=T,
        template="{}",
        run=None,
    ), classes.double().numpy()


def brute_force(store, partition, classes, rows, top):
    """Percent of rows with the label among the `top`, one video and view at a time."""
    part = store.partitions[partition]
    right = 0
    for row in rows:
        total = np.zeros(K)
        for view in part.read([row])[0].astype(np.float64):
            exps = np.exp(view.mean(axis=0) @ classes.T)
            total += exps / exps.sum()
        better = (total > total[part.labels[row]]).sum()
        right += better < top
    return 100 * right / len(rows)


def test_closed_counts_every_usable_video_once(tmp_path, subject):
    store = make_store(tmp_path / "store", "val")
    score, classes = subject
    seen = []
    (result,) = closed(store, [score], watch=lambda done, total: seen.append((done, total)))
    rows = [i for i in range(13) if i not in BAD]
    assert (result.n_listed, result.n_evaluated, result.n_undecodable) == (13, 11, 2)
    assert result.top1 == pytest.approx(brute_force(store, "val", classes, rows, 1))
    assert result.top5 == pytest.approx(brute_force(store, "val", classes, rows, 5))
    assert result.top1_std is None
    assert (result.frames, result.clips, result.crops) == (T, V, 1)
    assert result.store == store.recipe_hash
    assert seen[-1] == (11, 11)


def test_three_splits_have_a_mean_and_a_deviation(tmp_path, subject):
    store = make_store(tmp_path / "store", "all", num_videos=61)
    score, classes = subject
    (result,) = splits3(store, [score], watch=lambda done, total: None)
    videos = store.partitions["all"].videos
    accuracies, listed = [], 0
    for split in ("1", "2", "3"):
        rows = [i for i, video in enumerate(videos) if video.splits[split] == "test"]
        listed += len(rows)
        usable = [i for i in rows if i not in BAD]
        accuracies.append(brute_force(store, "all", classes, usable, 1))
    assert result.top1 == pytest.approx(np.mean(accuracies))
    assert result.top1_std == pytest.approx(np.std(accuracies))
    assert result.n_listed == listed
    assert result.n_evaluated == listed - result.n_undecodable
    assert {
        name: int(chosen.sum()) for name, chosen in lists_of(store.partitions["all"]).items()
    }


def test_a_store_without_the_partition_says_what_it_has(tmp_path, subject):
    store = make_store(tmp_path / "store", "all")
    with pytest.raises(StoreError, match="has no 'val' partition, it has all"):
        closed(store, [subject[0]], watch=lambda done, total: None)


def test_an_unfinished_store_is_not_evaluated(tmp_path, subject):
    store = make_store(tmp_path / "store", "val")
    store.partitions["val"].drop(0)
    with pytest.raises(StoreError, match="13 of 13 videos are not extracted yet"):
        closed(store, [subject[0]], watch=lambda done, total: None)
