import numpy as np
import pytest
import torch
from helpers import fake_store as fake
from helpers.stores import through_zarr

from bieff.features.errors import ConfigError, StoreError
from bieff.features.store import FeatureStore
from bieff.train.data import (
    RUN,
    Batches,
    Budget,
    budget,
    draw_batch,
    epoch_order,
    free_memory,
    load_features,
)
from bieff.train.evaluate.scoring import probabilities

CPU = torch.device("cpu")
BAD = {"train": [0, 17, 52]}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    clip = fake.load_clip(folder / "clip")
    return fake.write_store(folder / "store", clip, frames=6, views=3, patches=(5, 7), bad=BAD)


@pytest.fixture(scope="module")
def resident(store):
    return load_features(store.partitions["train"], device=CPU, wants_patches=True)


@pytest.fixture(scope="module")
def mapped(store):
    return load_features(
        store.partitions["train"], device=CPU, wants_patches=True, gigabytes=1e-9
    )


def draw(features, step, **changes):
    settings = {"batch_size": 11, "num_frames": 3, "seed": 5, **changes}
    return draw_batch(features, step, **settings)


def test_only_usable_videos_are_held(store, resident):
    assert len(resident) == 50
    assert resident.num_listed == 53
    assert not set(BAD["train"]) & set(resident.rows.tolist())
    assert np.array_equal(resident.labels, store.partitions["train"].labels[resident.rows])
    assert resident.embeddings.isfinite().all()


def test_a_batch_depends_on_step_and_seed_alone(resident):
    again = [draw(resident, step) for step in (9, 2, 9)]
    for name in ("videos", "views", "frames", "labels"):
        first, other, same = (getattr(batch, name) for batch in again)
        assert torch.equal(first, same)
        assert not torch.equal(first, other)
    assert not torch.equal(draw(resident, 9).videos, draw(resident, 9, seed=6).videos)


def test_an_epoch_shows_no_video_twice(resident):
    epochs = []
    for epoch in range(2):
        seen = torch.cat([draw(resident, 4 * epoch + i).videos for i in range(4)])
        assert len(seen.unique()) == 44
        epochs.append(seen)
    assert not torch.equal(*epochs)


def test_a_frame_comes_from_each_group_and_every_view_is_used(resident):
    draws = [draw(resident, step) for step in range(40)]
    frames = torch.cat([d.frames for d in draws])
    assert torch.equal(frames // 2, torch.arange(3).expand(len(frames), -1))
    assert set(frames.flatten().tolist()) == set(range(6))
    assert set(torch.cat([d.views for d in draws]).tolist()) == {0, 1, 2}


def test_frames_must_divide_the_stores(resident):
    with pytest.raises(ConfigError, match=r"expected a divisor of the store's 6 \(1, 2, 3, 6"):
        draw(resident, 0, num_frames=4)


def test_what_is_picked_is_what_was_drawn(store, resident):
    batch = draw(resident, 3)
    picked = batch.pick(resident, slice(2, 9)).to(CPU)
    whole = through_zarr(store.partitions["train"], resident.rows)
    for i in range(7):
        video, view = int(batch.videos[2 + i]), int(batch.views[2 + i])
        want = whole[video, view][batch.frames[2 + i]].astype(np.float32)
        assert np.array_equal(picked.frames[i], want)
        patches = store.partitions["train"].read_patches(resident.rows[video : video + 1])[
            0, view
        ]
        assert np.array_equal(picked.patches[i], patches.astype(np.float32))


def test_disk_and_memory_hold_the_same(resident, mapped):
    assert (resident.place, mapped.place) == ("memory", "disk")
    assert mapped.embeddings is None
    for step in range(5):
        picks = [draw(f, step).pick(f, slice(None)).to(CPU) for f in (resident, mapped)]
        assert torch.equal(picks[0].frames, picks[1].frames)
        assert torch.equal(picks[0].patches, picks[1].patches)
    chunks = [
        f.chunk(torch.arange(7, 19), 1, torch.tensor([0, 2, 5])) for f in (resident, mapped)
    ]
    assert torch.equal(chunks[0].frames, chunks[1].frames)
    assert torch.equal(chunks[0].frames, resident.embeddings[7:19, 1][:, [0, 2, 5]].float())


def test_evaluation_is_the_same_from_disk_and_in_parts(resident, mapped):
    matrix = torch.randn(13, 5, generator=torch.Generator().manual_seed(0))

    def score(frames, patches):
        return frames.mean(1) @ matrix + patches.sum((1, 2))[:, None]

    want = np.concatenate(list(probabilities(resident, score, num_frames=3, clips=3)))
    got = np.concatenate(list(probabilities(mapped, score, num_frames=3, clips=3)))
    part = np.concatenate(
        list(
            probabilities(
                mapped, score, num_frames=3, clips=3, batch_size=4, videos=range(13, 31)
            )
        )
    )
    assert np.array_equal(got, want)
    # other sizes of a matrix product round differently
    np.testing.assert_allclose(part, want[13:31], rtol=1e-5)


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_batches_gathered_ahead_are_those_of_their_step(resident, mapped, place):
    features = resident if place == "memory" else mapped
    order = [0, 1, 2, 7, 8, 3]  # a run may go on anywhere
    with Batches(features, lambda s: draw(features, s), slice(2, 9), last=9) as batches:
        for step in order:
            got, picked = batches.at(step)
            want = draw(features, step)
            assert torch.equal(got.videos, want.videos)
            assert torch.equal(picked.frames, want.pick(features, slice(2, 9)).to(CPU).frames)


def test_a_window_keeps_reading_local_and_every_video_in():
    count, window = 20 * RUN + 7, 3 * RUN
    order = epoch_order(count, epoch=2, seed=1, window=window)
    assert torch.equal(order.sort().values, torch.arange(count))
    for part in order.split(window):
        assert len((part // RUN).unique()) <= 3 + 2  # the last, short run shifts the others
        assert not torch.equal(part, part.sort().values)
    assert not torch.equal(order, epoch_order(count, epoch=3, seed=1, window=window))
    whole = epoch_order(count, epoch=2, seed=1)
    assert torch.equal(whole, epoch_order(count, epoch=2, seed=1, window=count))


def test_a_small_budget_shuffles_in_blocks_and_says_so(resident, mapped):
    assert resident.window is None
    assert mapped.window == RUN
    assert "50 videos, 0.0 MB, in memory" in resident.text()
    assert "stay on disk, they are more than the memory set aside" in mapped.text()
    assert "shuffled 64 at a time" in mapped.text()
    assert resident.num_bytes == mapped.num_bytes == 50 * 3 * 2 * (6 * 13 + 5 * 7)


def test_features_go_where_they_fit():
    limits = Budget(device=100, memory=1000)
    assert [limits.place(size) for size in (100, 101, 1000, 1001)] == [
        "device",
        "memory",
        "memory",
        "disk",
    ]
    assert budget(CPU, 0.5) == Budget(device=0, memory=5e8)
    free = free_memory()
    assert free > 1e8
    assert budget(CPU, None, sharers=3).memory == pytest.approx(free / 6, rel=0.2)


def test_an_unfinished_store_is_refused(store, tmp_path):
    import shutil

    shutil.copytree(store.path, tmp_path / "store")
    unfinished = FeatureStore.open(tmp_path / "store").partitions["train"]
    unfinished.drop(1)
    with pytest.raises(StoreError, match="16 of 53 videos are not extracted yet"):
        load_features(unfinished, device=CPU)


def test_a_store_without_patches_says_what_to_do(tmp_path):
    clip = fake.load_clip(tmp_path / "clip")
    partition = fake.write_store(tmp_path / "store", clip).partitions["val"]
    with pytest.raises(StoreError, match="extract again with `--context patches`"):
        load_features(partition, device=CPU, wants_patches=True)


def test_a_store_without_a_usable_video_is_refused(tmp_path):
    clip = fake.load_clip(tmp_path / "clip")
    counts, bad = {"train": 3}, {"train": [0, 1, 2]}
    partition = fake.write_store(tmp_path / "s", clip, counts=counts, bad=bad).partitions
    with pytest.raises(StoreError, match="none of its 3 videos is usable"):
        load_features(partition["train"], device=CPU)
