"""A view of a store shows the chosen rows and nothing else."""

import pickle

import numpy as np
import pytest
from helpers import fake_store as fake

from bieff.features.schema import Status
from bieff.features.selection import Selection, select

ROWS = np.array([31, 2, 17, 40, 5])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("selection")
    clip = fake.load_clip(folder / "clip")
    return fake.write_store(folder / "store", clip, bad={"train": [17]}, patches=(5, 7))


def test_a_view_shows_the_chosen_rows(store):
    whole = store.partitions["train"]
    view = select(store, {"val": Selection("train", ROWS)})
    part = view.partitions["val"]
    assert list(view.partitions) == ["val"]
    assert part.num_videos == 5
    assert part.name == "val"
    assert [video.id for video in part.videos] == [f"train-{row:03}" for row in ROWS]
    assert part.labels.tolist() == whole.labels[ROWS].tolist()
    assert part.status().tolist() == [1, 1, int(Status.CORRUPT), 1, 1]
    for rows in ([3, 0], slice(0, 4, 3), np.array([1])):
        chosen = ROWS[rows]
        np.testing.assert_array_equal(part.read(rows), whole.read(chosen))
        np.testing.assert_array_equal(
            part.read(rows, slice(1, 2), frames=slice(None, None, 2)),
            whole.read(chosen, slice(1, 2), frames=slice(None, None, 2)),
        )
        np.testing.assert_array_equal(part.read_patches(rows), whole.read_patches(chosen))
    assert view.recipe_hash == store.recipe_hash
    assert view.recipe["views"] == {"val": store.recipe["views"]["train"]}
    assert store.recipe["views"].keys() == {"train", "val"}


def test_classes_are_counted_anew(store):
    labels = store.partitions["train"].labels
    rows = np.flatnonzero(np.isin(labels, [1, 4]))
    view = select(store, {"train": Selection("train", rows)}, classes=[4, 1])
    assert view.class_names == [store.class_names[4], store.class_names[1]]
    want = [{4: 0, 1: 1}[label] for label in labels[rows].tolist()]
    assert view.partitions["train"].labels.tolist() == want
    with pytest.raises(ValueError, match="partition 'train': a video has none of the classes"):
        select(store, {"train": Selection("train", rows)}, classes=[4])


def test_a_video_without_a_label_keeps_none(store, monkeypatch):
    rows = np.flatnonzero(store.partitions["train"].labels == 4)
    labels = store.partitions["train"].labels.copy()
    labels[rows[0]] = -1
    monkeypatch.setattr(store.partitions["train"], "labels", labels)
    view = select(store, {"train": Selection("train", rows)}, classes=[4])
    assert view.partitions["train"].labels.tolist() == [-1, *[0] * (len(rows) - 1)]


def test_a_copy_in_another_process_reads_the_same(store):
    part = select(store, {"val": Selection("train", ROWS)}).partitions["val"]
    copy = pickle.loads(pickle.dumps(part))
    np.testing.assert_array_equal(copy.read([0, 4]), part.read([0, 4]))
    assert copy.labels.tolist() == part.labels.tolist()
    assert copy.name == "val"
