"""The demo, small: real clips, both stages, all three evaluations."""

import json
import shutil

import pytest

from bieff.apps.demo import demo
from bieff.extract.shapes.clips import Edition
from bieff.features.errors import InputError
from bieff.features.store import FeatureStore
from bieff.train.config import TrainConfig
from bieff.train.evaluate.results import load_results
from bieff.train.runs.run import open_run

FIELDS = {
    "protocol",
    "dataset",
    "model",
    "top1",
    "top1_std",
    "top5",
    "n_evaluated",
    "n_listed",
    "n_undecodable",
    "frames",
    "clips",
    "crops",
    "template",
    "store",
    "run",
    "top1_all",
    "top1_all_std",
    "weights",
    "mix",
    "blend",
    "shots",
    "after",
    "names",
    "names_hash",
    "lists",
    "classes",
    "confusions",
}


def test_results_say_what_they_are(world):
    records = json.loads((world / "results.json").read_text())
    assert all(set(record) == FIELDS for record in records)
    assert [(r["protocol"], r["dataset"], r["model"]) for r in records] == [
        (protocol, name, model)
        for protocol, name in (
            ("closed", "shapes"),
            ("splits3", "shapes-combinations"),
            ("splits3", "shapes-unseen"),
        )
        for model in ("bieff", "frozen")
    ]
    for record in records:
        assert 0 <= record["top1"] <= record["top5"] <= 100
        assert (record["top1_std"] is None) == (record["protocol"] == "closed")
        assert record["n_evaluated"] == record["n_listed"]
        assert record["n_undecodable"] == 0
        assert (record["frames"], record["clips"], record["crops"]) == (8, 3, 1)
        assert (record["run"] is None) == (record["model"] == "frozen")
        store = FeatureStore.open(world / "features" / record["dataset"])
        assert record["store"] == store.recipe_hash
    assert [r.n_listed for r in load_results(world / "results.json")[::2]] == [31, 45, 72]


def test_the_run_says_what_it_was_trained_with(world):
    run = open_run(world / "runs" / "shapes")
    assert run.config == TrainConfig(seed=1, epochs=2, warmup_epochs=1, temporal_layers=1)
    assert run.record["finished"]
    assert run.record["videos"] == 62
    assert run.record["versions"]["torch"]
    store = FeatureStore.open(world / "features" / "shapes")
    assert run.record["store_recipe_hash"] == store.recipe_hash


def test_again_in_the_same_folder_changes_nothing(world):
    before = (world / "results.json").read_bytes()
    weights = (world / "runs" / "shapes" / "last.safetensors").stat().st_mtime_ns
    edition = Edition(seed=1, train_clips=2, val_clips=1, zero_shot_clips=3)
    config = TrainConfig(seed=1, epochs=2, warmup_epochs=1, temporal_layers=1)
    demo(world, seed=1, edition=edition, config=config)
    assert (world / "results.json").read_bytes() == before
    assert (world / "runs" / "shapes" / "last.safetensors").stat().st_mtime_ns == weights


@pytest.mark.slow
def test_the_same_seed_gives_the_same_figures(world, tmp_path):
    edition = Edition(seed=1, train_clips=2, val_clips=1, zero_shot_clips=3)
    config = TrainConfig(seed=1, epochs=2, warmup_epochs=1, temporal_layers=1)
    demo(tmp_path / "again", seed=1, edition=edition, config=config)
    assert (tmp_path / "again" / "results.json").read_bytes() == (
        world / "results.json"
    ).read_bytes()


def test_another_seed_in_the_same_folder_is_refused(world, tmp_path):
    shutil.copytree(world / "data", tmp_path / "data")
    with pytest.raises(InputError, match="holds another edition of shapes"):
        demo(tmp_path, seed=2)
