"""Stores and scores as others load them: a file a video, and tables."""

import csv
import json
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from helpers.stores import D, T, V

from bieff.apps.store import export_npy, export_store, score_rows, video_rows, write_parquet
from bieff.cli import main
from bieff.features.errors import InputError, StoreError
from bieff.features.schema import PartitionPlan, ShardData, Status, Video, VideoError
from bieff.features.store import FeatureStore
from bieff.train.evaluate.lists import EvalList
from bieff.train.evaluate.scores import About, Head, ScoreTable, save_scores


def make_store(path, *paths, bad=(), splits=None):
    """A store of videos at these paths, all in one shard."""
    videos = [
        Video(id=f"v{i}", path=p, label=i % 2, size=7, splits=splits or {})
        for i, p in enumerate(paths)
    ]
    store = FeatureStore.create(
        path,
        recipe={"frames": T, "dim": D},
        class_names=["a, b", "c"],
        partitions={"train": PartitionPlan(videos=videos, num_views=V, rows_per_shard=64)},
        versions={},
    )
    shape = (len(videos), V, T)
    status = np.full(len(videos), int(Status.OK), np.uint8)
    status[list(bad)] = int(Status.CORRUPT)
    embeddings = np.random.default_rng(0).normal(size=(*shape, D)).astype("f2")
    errors = [
        VideoError(
            row=row,
            id=f"v{row}",
            path=paths[row],
            status=Status.CORRUPT,
            stage="decode",
            decoder="pyav",
            message="no frame decodes",
            attempt=1,
        )
        for row in bad
    ]
    data = ShardData(embeddings, np.zeros(shape, np.int32), status)
    store.partitions["train"].write_shard(0, data, errors=errors, seconds={})
    return FeatureStore.open(path), embeddings


def test_a_file_a_video_in_the_videos_folders(tmp_path):
    paths = ("run/a.mp4", "run/b c.avi", "b.mkv", "/data/x/d.mp4", "run/a.avi", "lost.mp4")
    store, embeddings = make_store(tmp_path / "store", *paths, bad=[5])
    out = tmp_path / "out"
    done = CliRunner().invoke(
        main, ["store", "export", str(store.path), "--format", "npy", "--to", str(out)]
    )
    assert done.exit_code == 0, done.output
    assert done.output == f"{out}: 5 videos, described by {out / 'store.json'}\n"
    files = ["run/a.mp4", "run/b c", "b", "data/x/d", "run/a.avi"]
    found = {str(f.relative_to(out / "train")) for f in out.rglob("*.npy")}
    assert found == {f"{name}.npy" for name in files}
    for row, name in enumerate(files):
        np.testing.assert_array_equal(
            np.load(out / "train" / f"{name}.npy", allow_pickle=False), embeddings[row]
        )
    about = json.loads((out / "store.json").read_text())
    assert about["recipe_hash"] == store.recipe_hash
    assert about["class_names"] == ["a, b", "c"]
    with (out / "videos.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert rows[1]["file"] == "train/run/b c.npy"
    assert (rows[0]["class"], rows[1]["class"]) == ("a, b", "c")
    assert (rows[5]["file"], rows[5]["status"]) == ("", "corrupt")
    assert rows[5]["message"] == "no frame decodes"
    with pytest.raises(StoreError, match="exists; remove it or choose another name"):
        export_npy(store, out)


@pytest.mark.parametrize(
    "path",
    ["../out.mp4", "a/../../b.mp4", "a//b.mp4", "./a.mp4", "a\\b.mp4", "x\x1b.mp4", "a/"],
)
def test_a_path_that_leads_elsewhere_is_refused(tmp_path, path):
    """Nothing is written, neither there nor here."""
    store, _ = make_store(tmp_path / "store", "good.mp4", path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StoreError, match=r"row 1 of train has path .* export as hdf5"):
        export_store(store.path, tmp_path / "out", print, kind="npy")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_that_would_be_a_folder_is_refused(tmp_path):
    store, _ = make_store(tmp_path / "store", "a.mp4", "a.npy/b.mp4")
    with pytest.raises(StoreError, match=r"'train/a.npy' would be the file of one video and"):
        export_npy(store, tmp_path / "out")


def test_what_a_killed_export_left_is_written_anew(tmp_path):
    store, embeddings = make_store(tmp_path / "store", "a.mp4", "a.mp4")
    (tmp_path / "out.partial" / "train").mkdir(parents=True)
    (tmp_path / "out.partial" / "train" / "old.npy").touch()
    export_npy(store, tmp_path / "out")
    # two rows of one file, as segments are, have a file each
    found = {f.name: np.load(f) for f in (tmp_path / "out" / "train").iterdir()}
    assert set(found) == {"a-row0.npy", "a-row1.npy"}
    np.testing.assert_array_equal(found["a-row1.npy"], embeddings[1])


def test_the_table_of_videos(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="no pyarrow here")
    paths = ("run/a.mp4", "lost.mp4")
    store, _ = make_store(tmp_path / "store", *paths, bad=[1], splits={"1": "test"})
    said = []
    export_store(store.path, None, said.append, kind="parquet")
    assert said == [f"{tmp_path / 'store.parquet'}: 2 videos"]
    table = parquet.read_table(tmp_path / "store.parquet")
    assert table.to_pylist() == [
        {**row, "splits": json.dumps(row["splits"])} for row in video_rows(store)
    ]
    assert table.to_pylist()[1]["message"] == "no frame decodes"
    about = json.loads(table.schema.metadata[b"bieff"])
    assert about == {"recipe": {"frames": T, "dim": D}, "classes": ["a, b", "c"]}
    with pytest.raises(StoreError, match="exists; remove it"):
        export_store(store.path, None, print, kind="parquet")


def scored():
    rows, classes = np.array([2, 5, 8]), np.arange(2)
    about = {"frames": 8, "names": None, "names_hash": "0", "weights": "last"}
    return ScoreTable(
        head=Head(protocol="closed", dataset="fake", store="0" * 64, clips=1, crops=1),
        class_names=("a, b", "c"),
        lists=(EvalList("val", rows, classes),),
        rows=rows,
        ids=("x", "y", "z"),
        labels=np.array([0, 1, 1]),
        usable=np.array([True, False, True]),
        models=(About(model="bieff", template="pre-prompt", run="fake", **about),),
        scores=([np.array([[0.75, 0.25], [0.5625, 0.4375]])],),
    )


def test_the_table_of_scores(tmp_path):
    first, second = score_rows(scored())
    assert first["scores"] == [0.75, 0.25]
    assert (first["id"], first["class"], first["predicted"], first["right"]) == (
        *("x", "a, b", "a, b", True),
    )
    assert (second["row"], second["class"], second["right"]) == (8, "c", False)
    parquet = pytest.importorskip("pyarrow.parquet", reason="no pyarrow here")
    save_scores(scored(), tmp_path / "s.h5")
    out = tmp_path / "s.parquet"
    done = CliRunner().invoke(main, ["scores", str(tmp_path / "s.h5"), "--parquet", str(out)])
    assert (done.exit_code, done.output) == (0, f"{out}: 2 rows\n")
    assert parquet.read_table(out).to_pylist() == [first, second]


def test_without_pyarrow_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install 'bieff\[parquet\]'"):
        write_parquet(tmp_path / "x.parquet", [], about={})
    assert not (tmp_path / "x.parquet").exists()
