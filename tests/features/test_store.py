"""The feature store: planning, writing, reading, and what a stranger sees."""

import json
import re
import subprocess
import sys
import threading
import warnings
from dataclasses import replace

import numpy as np
import pytest
import zarr
from helpers.places import TESTS
from helpers.stores import through_zarr

from bieff.features.check import describe, summarise
from bieff.features.errors import InputError, StoreError, StoreMismatchError, StoreMissingError
from bieff.features.schema import PartitionPlan, ShardData, Status, Video, VideoError
from bieff.features.store import FeatureStore

V, T, D, P, W = 3, 5, 7, 2, 11
ROWS = 4  # of a shard
RECIPE = {
    "clip": {"model": "tinyclip", "fingerprint": "ab12"},
    "frames": T,
    "dim": D,
    "patches": None,
    "views": {"clips": 3, "crops": 1},
}
NAMES = ["star moving left", "ring growing"]


def some_videos(num, *, root="clips"):
    return [
        Video(
            id=f"v{i}",
            path=f"{root}/ä {i}.mp4",
            label=i % 2,
            size=100 + i,
            splits={"1": "train" if i % 3 else "test"},
        )
        for i in range(num)
    ]


def plan_store(path, *, recipe=RECIPE, names=NAMES, num=10, **changes):
    plans = {
        "train": PartitionPlan(videos=some_videos(num), num_views=V, rows_per_shard=ROWS),
        "val": PartitionPlan(videos=some_videos(3), num_views=V, rows_per_shard=ROWS),
    }
    arguments = {"partitions": plans, "versions": {"zarr": zarr.__version__}, **changes}
    return FeatureStore.create(path, recipe=recipe, class_names=names, **arguments)


def shard_data(partition, shard, *, seed=0, status=None):
    """Random rows; `status` gives those that are not ok, {place: Status}."""
    rng = np.random.default_rng([seed, shard])
    n = len(partition.geometry.rows(shard))
    sizes = (n, partition.num_views)
    statuses = np.full(n, int(Status.OK), np.uint8)
    for place, value in (status or {}).items():
        statuses[place] = value
    patches = partition.geometry.patches
    return ShardData(
        embeddings=rng.normal(size=(*sizes, partition.num_frames, partition.dim)).astype("f2"),
        frames=rng.integers(0, 300, (*sizes, partition.num_frames), dtype=np.int32),
        status=statuses,
        patches=rng.normal(size=(*sizes, *patches)).astype("f2") if patches else None,
    )


def explain(partition, shard, data):
    rows = partition.geometry.rows(shard)
    return [
        VideoError(
            row=row,
            id=f"v{row}",
            path=f"clips/{row}.mp4",
            status=Status(value),
            stage="decode",
            decoder="pyav",
            message="moov atom not found ✗",
            attempt=2,
        )
        for row, value in zip(rows, data.status.tolist(), strict=True)
        if value != Status.OK
    ]


def fill(partition, *, shards=None, status=None):
    """Write shards of random rows; returns what went in, by shard."""
    written = {}
    for shard in range(partition.num_shards) if shards is None else shards:
        data = shard_data(partition, shard, status=status)
        errors = explain(partition, shard, data)
        partition.write_shard(shard, data, errors=errors, seconds={"decode": 0.5})
        written[shard] = data
    return written


@pytest.fixture
def store(tmp_path):
    return plan_store(tmp_path / "store")


@pytest.fixture
def train(store):
    return store.partitions["train"]


def test_a_planned_store_is_all_pending(store, train):
    assert (train.num_videos, train.num_rows, train.num_shards) == (10, 12, 3)
    assert train.pending() == [0, 1, 2]
    assert not train.done().any()
    assert (train.status() == Status.PENDING).all()
    assert train.labels.dtype == np.int64
    assert train.labels.tolist() == [0, 1] * 5
    assert train.errors() == []
    assert train.videos == some_videos(10)
    assert train.shard_videos(2) == some_videos(10)[8:]
    assert store.class_names == NAMES


def test_what_is_written_is_read_by_both_paths(store, train):
    data = fill(train)
    opened = FeatureStore.open(store.path).partitions["train"]
    rows = [9, 0, 4, 4, 7]
    whole = np.concatenate([data[shard].embeddings for shard in range(3)])
    assert opened.read(rows).tobytes() == whole[rows].tobytes()
    assert through_zarr(opened, rows).tobytes() == whole[rows].tobytes()
    assert opened.read(slice(2, 9, 3)).tobytes() == whole[2:9:3].tobytes()
    numbers = np.concatenate([data[shard].frames for shard in range(3)])
    assert np.array_equal(opened.frames(rows), numbers[rows])
    assert opened.done().all()
    assert opened.pending() == []


def test_views_and_frames_are_cut_before_they_are_copied(train):
    data = fill(train)
    whole = np.concatenate([data[shard].embeddings for shard in range(3)])
    part = train.read([3, 8], slice(1, None), frames=slice(None, None, 2))
    assert part.shape == (2, 2, 3, D)
    assert np.array_equal(part, whole[[3, 8], 1:, ::2])
    plain = through_zarr(train, [3, 8], slice(1, None), frames=slice(None, None, 2))
    assert np.array_equal(part, plain)
    out = np.empty((2, V, T, D), np.float16)
    assert train.read([3, 8], out=out) is out
    assert np.array_equal(out, whole[[3, 8]])


def test_patches_are_stored_beside_the_embeddings(tmp_path):
    store = plan_store(tmp_path / "s", recipe={**RECIPE, "patches": [P, W]})
    partition = store.partitions["train"]
    data = fill(partition)
    rows = [8, 1]
    whole = np.concatenate([data[shard].patches for shard in range(3)])
    assert np.array_equal(partition.read_patches(rows), whole[rows])
    assert np.array_equal(partition.read_shard(2).patches, data[2].patches)


def test_a_store_without_patches_says_so(train):
    with pytest.raises(StoreError, match=r"has no patches; extract again with `--context"):
        train.read_patches([0])


def test_unusable_rows_carry_nothing(train):
    status = {1: Status.CORRUPT, 2: Status.SALVAGED, 3: Status.MISSING}
    data = fill(train, shards=[0], status=status)[0]
    read = train.read(range(4))
    assert np.isnan(read[[1, 3]]).all()
    assert np.array_equal(read[[0, 2]], data.embeddings[[0, 2]])
    assert (train.frames([1, 3]) == -1).all()
    assert train.status().tolist() == [1, 4, 2, 3] + [0] * 6
    assert [error.row for error in train.errors()] == [1, 2, 3]
    assert train.errors() == explain(train, 0, data)


def test_rows_of_zeros_and_of_nothing_keep_their_place(train):
    """zarr leaves out chunks that are all fill value, which would break the stride."""
    data = shard_data(train, 0, status=dict.fromkeys(range(3), Status.CORRUPT))
    data.embeddings[3] = 0
    train.write_shard(0, data, errors=explain(train, 0, data), seconds={})
    assert np.array_equal(train.read([3]), np.zeros((1, V, T, D), np.float16))
    assert np.array_equal(train.read([3]), through_zarr(train, [3]))
    everything = shard_data(train, 1, status=dict.fromkeys(range(4), Status.CORRUPT))
    train.write_shard(1, everything, errors=explain(train, 1, everything), seconds={})
    assert np.isnan(through_zarr(train, range(4, 8))).all()
    assert (train.frames(range(4, 8)) == -1).all()


def test_reading_what_is_pending_is_refused(train):
    fill(train, shards=[0])
    for read in (train.read, train.frames):
        with pytest.raises(StoreError, match=r"rows 4 to 7 are not extracted; run `bieff extr"):
            read([0, 5])


@pytest.mark.parametrize("rows", [[-1], [10], [0, 11]])
def test_rows_that_are_not_videos_are_refused(train, rows):
    fill(train)
    with pytest.raises(IndexError, match=r"expected rows in 0\.\.9"):
        train.read(rows)


def changed(data, **changes):
    names = ("embeddings", "frames", "status", "patches")
    return ShardData(**{name: changes.get(name, getattr(data, name)) for name in names})


def test_what_zarr_would_let_pass_is_refused(train):
    good = shard_data(train, 0)
    long = np.zeros((4, V, T, D + 1), np.float16)
    huge = good.embeddings.copy()
    huge[2, 0, 0, 0] = np.inf
    negative = good.frames.copy()
    negative[1] = -1
    bad = {
        r"embeddings of shard 0: expected float16 \(4, 3, 5, 7\), got float16 \(4, 3, 5, 8\)": (
            changed(good, embeddings=long)
        ),
        r"embeddings of shard 0: expected .*, got float16 \(3,": (
            changed(good, embeddings=good.embeddings[:3], frames=good.frames[:3],
                    status=good.status[:3])
        ),
        r"row 2: embeddings contain NaN or infinity": changed(good, embeddings=huge),
        r"row 1: expected frame numbers from 0": changed(good, frames=negative),
        r"status of shard 0: .* got \[0\]": changed(good, status=np.zeros(4, np.uint8)),
        r"recipe has no patches": changed(good, patches=np.zeros((4, V, P, W), np.float16)),
    }  # fmt: skip
    for message, data in bad.items():
        with pytest.raises(ValueError, match=message):
            train.write_shard(0, data, errors=[], seconds={})
    assert train.pending() == [0, 1, 2]


def test_a_failure_needs_its_reason(train):
    data = shard_data(train, 1, status={2: Status.TIMEOUT})
    with pytest.raises(ValueError, match="row 6: not usable, and no error says why"):
        train.write_shard(1, data, errors=[], seconds={})
    strange = explain(train, 0, shard_data(train, 0, status={1: Status.CORRUPT}))
    with pytest.raises(ValueError, match="expected rows 4 to 7, got 1"):
        train.write_shard(1, data, errors=strange, seconds={})


def test_retry_names_the_shards_with_bad_videos(train):
    fill(train, shards=[0])
    fill(train, shards=[1], status={0: Status.SALVAGED})
    fill(train, shards=[2], status={1: Status.MISSING})
    assert train.pending() == []
    assert train.pending(retry_failed=True) == [1, 2]  # a salvaged file may be mended


def test_a_shard_can_be_redone_in_part(train):
    fill(train, status={1: Status.TIMEOUT})
    before = FeatureStore.open(train.path.parent).partitions["train"].read([4, 6, 7])
    data = train.read_shard(1)
    data.status[1] = Status.OK
    data.embeddings[1], data.frames[1] = 1, 2
    train.write_shard(1, data, errors=[], seconds={})
    assert (train.read([5]) == 1).all()
    assert np.array_equal(train.read([4, 6, 7]), before)
    assert [error.row for error in train.errors()] == [1, 9]
    assert train.pending(retry_failed=True) == [0, 2]


def test_dropping_a_marker_makes_the_shard_pending(train):
    fill(train)
    train.read([5])
    assert train.drop(1)
    assert not train.drop(1)
    assert train.pending() == [1]
    with pytest.raises(StoreError, match="rows 4 to 7 are not extracted"):
        train.read([5])


def test_shards_of_other_libraries_are_told(store, train):
    fill(train, shards=[0])
    for shard, av in ((1, "18.1.0"), (2, "17.0.1")):
        train.write_shard(
            shard,
            shard_data(train, shard),
            errors=[],
            seconds={},
            versions={"zarr": zarr.__version__, "av": av},
        )
    said = describe(store)
    assert "  1 shard of them with av 17.0.1" in said
    assert not any("18.1.0" in line for line in said)


def test_words_of_a_recipe_stay_on_their_line(tmp_path):
    recipe = {**RECIPE, "data_set": "x\ntrain: 9 videos: 9 ok\x1b[31m"}
    store = plan_store(tmp_path / "store", recipe=recipe)
    assert r"  data_set: x\ntrain: 9 videos: 9 ok\x1b[31m" in describe(store)


def test_what_a_store_holds_fits_on_a_screen(store, train):
    fill(train, shards=[0], status={1: Status.CORRUPT, 2: Status.SALVAGED})
    fill(train, shards=[2])
    shard = 4 * (V * T * D * 2 + 4 + 16) + 4 + 4 * V * T * 4 + 4 + 4 + 4
    assert describe(store) == [
        f"{store.path}: schema version 1, recipe {store.recipe_hash[:12]}, 2 classes",
        "  clip.fingerprint: ab12",
        "  clip.model: tinyclip",
        "  dim: 7",
        "  frames: 5",
        "  patches: None",
        "  views.clips: 3",
        "  views.crops: 1",
        f"  written with zarr {zarr.__version__}",
        "  videos below .",
        "train: 10 videos x 3 views: 4 pending, 4 ok, 1 salvaged, 1 corrupt; 2 of 3 shards, "
        f"{2 * shard / 1000:.3g} kB of {3 * shard / 1000:.3g} kB; decode 1 s",
        f"val: 3 videos x 3 views: 3 pending; 0 of 1 shards, 0 bytes of {shard / 1000:.3g} kB",
    ]
    assert summarise(train).num_bytes == sum(
        array.file(train.path, 0).stat().st_size * 2 for array in train.geometry.arrays.values()
    )


# --- planning again


def test_planning_again_opens_the_same_store(store, train):
    fill(train, shards=[1])
    again = plan_store(store.path).partitions["train"]
    assert again.pending() == [0, 2]


def test_another_recipe_is_refused_with_a_diff(store):
    recipe = {**RECIPE, "views": {"clips": 1, "crops": 1}, "flip": True}
    with pytest.raises(StoreMismatchError) as caught:
        plan_store(store.path, recipe=recipe)
    assert str(caught.value) == (
        f"{store.path} was written with another recipe; choose another --out, or ask for the "
        "same:\n"
        "  flip: store has nothing, asked for true\n"
        "  views.clips: store has 3, asked for 1"
    )


def test_opening_may_expect_a_part_of_the_recipe(store):
    FeatureStore.open(store.path, expect={"clip": {"model": "tinyclip"}, "frames": T})
    with pytest.raises(
        StoreMismatchError, match=r"clip\.fingerprint: store has \"ab12\", aske"
    ):
        FeatureStore.open(store.path, expect={"clip": {"fingerprint": "cd34"}})


GRID = {"kind": "grid", "clips": 1}


@pytest.mark.parametrize(
    "views",
    [
        RECIPE["views"],
        [],
        {"val": [GRID]},
        {"val": [GRID, GRID, 1]},
        {"val": [{"clips": "3"}] * 3},
    ],
)
def test_views_are_checked_where_they_are_read(tmp_path, views):
    store = plan_store(tmp_path / "odd", recipe={**RECIPE, "views": views})
    with pytest.raises(StoreMismatchError, match="odd: expected 3 views of partition 'val'"):
        store.views("val")
    with pytest.raises(StoreMismatchError, match="odd: its recipe says nothing of 'data_set'"):
        store.recipe["data_set"]


def test_other_videos_names_or_views_are_refused(store):
    with pytest.raises(StoreMismatchError, match="store has 10 videos, asked for 11"):
        plan_store(store.path, num=11)
    with pytest.raises(StoreMismatchError, match=r'class_names\.00001: store has "ring'):
        plan_store(store.path, names=["star moving left", "ring"])
    videos = some_videos(10)
    videos[7] = Video(id="other", path="x", label=1)
    plans = {
        "train": PartitionPlan(videos=videos, num_views=V),
        "val": PartitionPlan(videos=some_videos(3), num_views=V),
    }
    with pytest.raises(
        StoreMismatchError, match="id of row 7: store has 'v7', asked for 'othe"
    ):
        plan_store(store.path, partitions=plans)
    plans["train"] = PartitionPlan(videos=some_videos(10), num_views=V + 1)
    with pytest.raises(StoreMismatchError, match="has 3 views a video, asked for 4"):
        plan_store(store.path, partitions=plans)
    with pytest.raises(
        StoreMismatchError, match=r"has partitions \['train', 'val'\], asked fo"
    ):
        plan_store(store.path, partitions={"val": plans["val"]})


def test_videos_that_moved_are_brought_up_to_date(store, train):
    fill(train)
    plans = {
        "train": PartitionPlan(videos=some_videos(10, root="moved"), num_views=V),
        "val": PartitionPlan(videos=some_videos(3), num_views=V),
    }
    again = plan_store(store.path, partitions=plans, root="/elsewhere")
    assert again.root == "/elsewhere"
    assert again.partitions["train"].videos == some_videos(10, root="moved")
    assert again.partitions["train"].pending() == []


@pytest.mark.parametrize("status", [Status.OK, Status.SALVAGED])
def test_features_of_a_file_that_was_replaced_are_not_kept_silently(store, train, status):
    """Another folder with the same names, or a download that is whole at last."""
    fill(train, shards=[0, 1], status={1: status})  # row 9 is pending
    videos = some_videos(10)
    videos[0], videos[9] = (replace(videos[row], size=0) for row in (0, 9))
    videos[1] = replace(videos[1], size=7_000)
    plans = {
        "train": PartitionPlan(videos=videos, num_views=V),
        "val": PartitionPlan(videos=some_videos(3), num_views=V),
    }
    message = r"train: 1 of the videos .* 'v1': it had 101 bytes, 'clips/ä 1.mp4' has 7,000; "
    with pytest.raises(StoreMismatchError, match=f"{message}.*or say --retry-failed"):
        plan_store(store.path, partitions=plans)
    pending = train.pending()
    assert train.videos[1].size == 101
    again = plan_store(store.path, partitions=plans, redo_replaced=True).partitions["train"]
    assert again.pending() == [0, *pending]
    assert again.videos == videos
    plan_store(store.path, partitions=plans)  # nothing is left to refuse


def test_a_failed_video_may_be_replaced(store, train):
    fill(train, status={1: Status.CORRUPT})
    videos = some_videos(10)
    videos[1] = replace(videos[1], size=7_000)
    plans = {
        "train": PartitionPlan(videos=videos, num_views=V),
        "val": PartitionPlan(videos=some_videos(3), num_views=V),
    }
    again = plan_store(store.path, partitions=plans).partitions["train"]
    assert again.pending() == []
    assert again.pending(retry_failed=True) == [0, 1, 2]


def test_labels_without_a_class_name_are_refused(tmp_path):
    plans = {"all": PartitionPlan(videos=[Video(id="x", path="x", label=2)], num_views=1)}
    with pytest.raises(InputError, match=r"label of video 'x': expected 0 to 1, .* got 2"):
        plan_store(tmp_path / "s", partitions=plans)
    with pytest.raises(InputError, match="partition 'all' has no videos"):
        plan_store(tmp_path / "s", partitions={"all": PartitionPlan(videos=[], num_views=1)})
    assert not (tmp_path / "s").exists()


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("text")
    with pytest.raises(
        StoreError, match=r"not a feature store and not empty, it has thesis\.tex"
    ):
        plan_store(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "thesis.tex"]


def test_a_plan_that_was_killed_is_planned_again(store):
    (store.path / "zarr.json").unlink()
    with pytest.raises(StoreMissingError):
        FeatureStore.open(store.path)
    assert plan_store(store.path, num=5).partitions["train"].num_videos == 5


def test_shards_without_metadata_are_not_planned_over(store, train):
    fill(train)
    (store.path / "zarr.json").unlink()
    with pytest.raises(StoreError, match=r"it has a ledger without zarr\.json"):
        plan_store(store.path)
    assert (train.path / "embeddings" / "c" / "0").exists()


def test_what_is_not_a_store_is_named(tmp_path):
    with pytest.raises(StoreMissingError, match=r"no feature store at .*; make one with"):
        FeatureStore.open(tmp_path / "nothing")
    zarr.create_group(tmp_path / "other")
    with pytest.raises(StoreMismatchError, match="of schema version 1, got no feature store"):
        FeatureStore.open(tmp_path / "other")


def test_a_newer_schema_is_refused(store):
    file = store.path / "zarr.json"
    metadata = json.loads(file.read_text())
    metadata["attributes"]["schema_version"] = 2
    file.write_text(json.dumps(metadata))
    with pytest.raises(StoreMismatchError, match="schema version 1, got schema version 2"):
        FeatureStore.open(store.path)


# --- one writer


def test_a_second_writer_is_refused_and_a_killed_one_forgotten(store):
    command = [sys.executable, "-m", "helpers.stores", "hold", str(store.path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, cwd=TESTS) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "locked\n"
            message = (
                rf"is being written by process {process.pid} on .* since 20.*; wait for it"
            )
            with pytest.raises(StoreError, match=message), store.exclusive():
                pass
        finally:
            process.kill()
    with store.exclusive():
        pass


def test_a_second_writer_of_the_same_process_is_refused(store):
    refused = []

    def write():
        try:
            with store.exclusive():
                pass
        except StoreError as error:
            refused.append(str(error))

    with store.exclusive():
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
    assert refused == [f"{store.path} is already being written by this process"]
    with store.exclusive():
        pass


# --- strangers


def test_a_stranger_opens_it_with_zarr_alone_and_without_warnings(store, train):
    data = fill(train, status={0: Status.CORRUPT})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group = zarr.open(str(store.path), mode="r")
        assert sorted(name for name, _ in group.members()) == ["train", "val"]
        arrays = {name for name, _ in group["train"].arrays()}
        assert arrays == {"embeddings", "frames", "labels", "status"}
        group.tree()
        alone = zarr.open_group(store.path / "train", mode="r")
        assert sorted(alone.keys()) == sorted(arrays)
        zarr.open_consolidated(str(store.path), mode="r")
    embeddings = group["train/embeddings"]
    assert embeddings.metadata.dimension_names == ("video", "view", "frame", "embedding")
    assert np.array_equal(embeddings[5], data[1].embeddings[1])
    assert group["train/labels"][:].tolist() == [0, 1] * 5 + [-1, -1]
    assert group["train/status"][8:].tolist() == [4, 1, 255, 255]
    meanings = group["train/status"].attrs["flag_meanings"].split()
    assert dict(zip(group["train/status"].attrs["flag_values"], meanings, strict=True)) == {
        int(status): status.name.lower() for status in Status
    }
    assert group.attrs["recipe"] == RECIPE
    assert group.attrs["class_names"] == NAMES


def test_one_chunk_is_one_video_uncompressed(train):
    fill(train)
    metadata = json.loads((train.path / "embeddings" / "zarr.json").read_text())
    assert metadata["chunk_grid"]["configuration"]["chunk_shape"] == [ROWS, V, T, D]
    (sharding,) = metadata["codecs"]
    assert sharding["name"] == "sharding_indexed"
    assert sharding["configuration"]["chunk_shape"] == [1, V, T, D]
    inner = [codec["name"] for codec in sharding["configuration"]["codecs"]]
    assert inner == ["bytes", "crc32c"]


def test_features_do_not_import_torch():
    code = (
        "import sys, bieff.features.store, bieff.features.schema;"
        "print([name for name in ('torch', 'bieff.extract', 'bieff.train', 'bieff.clip')"
        " if name in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stdout == "[]\n"


def test_shard_sizes_follow_the_design():
    from bieff.features.schema import rows_per_shard

    row = 2 * 3 * 32 * 512
    assert [rows_per_shard(n, row) for n in (1, 10_000, 40_000, 240_000, 10**7)] == [
        64, 64, 128, 1024, 1024,
    ]  # fmt: skip
    assert rows_per_shard(240_000, 10 * row) == 128  # a shard stays under 128 MiB
    assert re.fullmatch("1|2|4", str(rows_per_shard(240_000, 40 * 2**20)))
