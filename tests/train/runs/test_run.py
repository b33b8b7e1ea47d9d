import json
import signal
import subprocess

import pytest
import torch
from helpers import fake_store as fake
from helpers.places import ROOT
from helpers.training import interrupt_at, quiet

from bieff.apps.train import free, train_run
from bieff.features.errors import ConfigError, InputError, StoreMismatchError
from bieff.train.config import TrainConfig, load
from bieff.train.fit.loop import train
from bieff.train.runs.checkpoint import LAST, StoppedError
from bieff.train.runs.run import (
    RECORD,
    Run,
    clip_of,
    commit,
    load_model,
    newest_run,
    open_run,
    write_record,
)

SHORT = ["epochs=2", "warmup_epochs=1", "batch_size=11"]


@pytest.fixture(scope="module")
def run(clip, store, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "first"
    command = ["bieff", "train", "--features", "store"]
    return train(store, clip, load(overrides=SHORT), out, watch=quiet, command=command)


def test_the_record_says_where_the_numbers_come_from(clip, store, run):
    record = json.loads((run.path / RECORD).read_text())
    assert record == run.record
    assert TrainConfig.from_dict(record["config"]) == run.config == load(overrides=SHORT)
    assert record["command"] == ["bieff", "train", "--features", "store"]
    assert record["store_recipe_hash"] == store.recipe_hash
    assert record["clip"]["fingerprint"] == clip.fingerprint
    assert record["clip"]["name"]["model"] == clip.name.model
    assert record["commit"] == commit()
    # wheels of CUDA call themselves 2.6.0, and torch in them 2.6.0+cu124
    assert torch.__version__.startswith(record["versions"]["torch"])
    assert set(record["versions"]) >= {"python", "bieff", "open_clip_torch", "numpy", "zarr"}
    assert record["device"].startswith("cpu, ")
    assert (record["precision"], record["processes"]) == ("float32", 1)
    assert record["seconds"] > 0
    assert 5e7 < record["peak_memory_bytes"] < 1e10
    model = load_model(run, clip)
    tunable = sum(p.numel() for p in model.parameters())
    assert record["parameters"]["total"] == tunable
    frozen = sum(p.numel() for p in clip.model.parameters())
    assert record["parameters_with_clip"] == tunable + frozen
    assert record["started"] < record["finished"]
    assert record["resumed"] == []
    assert record["features"]["place"] == "memory"


def test_the_commit_is_that_of_the_checkout():
    here = ROOT
    if not (here / ".git").exists():
        assert commit() is None
        return
    head = subprocess.run(
        ["git", "-C", str(here), "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert commit().rstrip("+") == head


def test_a_model_comes_back_as_it_was_trained(clip, run):
    first, second = (load_model(run, clip) for _ in range(2))
    assert not first.training
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_run_that_is_not_there_or_damaged_is_named(clip, run, tmp_path):
    with pytest.raises(InputError, match=r"no run at .*none; make one with `bieff train`"):
        open_run(tmp_path / "none")
    (tmp_path / RECORD).write_text("{")
    with pytest.raises(InputError, match=r"cannot read .*run\.json"):
        open_run(tmp_path)
    write_record(tmp_path, run.record)
    with pytest.raises(InputError, match=r"cannot read the weights .*last.safetensors"):
        load_model(open_run(tmp_path), clip)
    (tmp_path / LAST).write_bytes((run.path / LAST).read_bytes()[:-5])
    with pytest.raises(InputError, match=r"cannot read the weights .*; train again"):
        load_model(open_run(tmp_path), clip)


def test_another_clip_is_refused(store, run, tmp_path):
    other = fake.load_clip(tmp_path / "clip", seed=1)
    with pytest.raises(StoreMismatchError, match="take features and a run of the same CLIP"):
        load_model(run, other)


def test_weights_that_changed_since_are_refused(tmp_path):
    clip = fake.load_clip(tmp_path / "clip")
    store = fake.write_store(tmp_path / "store", clip)
    assert (
        clip_of(store, device=torch.device("cpu"), named=fake.named(store)).fingerprint
        == clip.fingerprint
    )
    (tmp_path / "clip").rename(tmp_path / "old")
    fake.write_clip(tmp_path / "clip", seed=1)
    with pytest.raises(
        StoreMismatchError, match=r"was made with CLIP 'local-dir:.*, fingerprint"
    ):
        clip_of(store, device=torch.device("cpu"), named=fake.named(store))


def test_the_newest_run_is_the_one_that_finished_last(run, tmp_path):
    with pytest.raises(InputError, match="no finished run in"):
        newest_run(tmp_path)
    for name, started, finished in (("a", "1", "3"), ("b", "2", "2"), ("c", "3", None)):
        (tmp_path / name).mkdir()
        record = {**run.record, "started": started, "finished": finished}
        write_record(tmp_path / name, record)
    assert newest_run(tmp_path).id == "a"
    assert newest_run(tmp_path, finished=False).id == "c"
    (tmp_path / "c" / RECORD).unlink()
    with pytest.raises(InputError, match=r"no unfinished run in .*; name one with --out"):
        newest_run(tmp_path, finished=False)


def test_a_folder_that_is_taken_gets_a_number(tmp_path):
    assert free(tmp_path / "run") == tmp_path / "run"
    for name in ("run", "run-2"):
        (tmp_path / name).mkdir()
    assert free(tmp_path / "run") == tmp_path / "run-3"


def test_the_command_trains_and_says_so(store, tmp_path):
    out = tmp_path / "run"
    said = train_run(
        features=store.path,
        out=out,
        overrides=SHORT,
        frames=3,
        model=fake.named(store).model,
        device="cpu",
    )
    assert said.startswith("trained 8 steps on 53 videos in ")
    assert "val top-1 " in said
    assert said.endswith(f"run: {out}")
    assert open_run(out).record["frames"] == 3


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(store, tmp_path):
    out = tmp_path / "run"
    said = train_run(
        features=store.path,
        out=out,
        overrides=SHORT,
        dry_run=True,
        model=fake.named(store).model,
        device="cpu",
    )
    assert said.startswith("53 videos, 5 classes, 6 frames, 8 steps\nfeatures: 53 videos, ")
    assert "tunable parameters: " in said
    assert not out.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "no store is named; add --features, such as features/k400"),
        ({"resume": True, "dry_run": True}, "--resume and --dry-run contradict each other"),
        (
            {"frames": 3, "overrides": ["frames = 2"]},
            "frames are given by --frames and by --set; leave one out",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ConfigError) as caught:
        train_run(**changes)
    assert str(caught.value).startswith(message)


def test_resuming_takes_the_runs_own_settings_or_the_same(store, clip, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(StoppedError):
        train(store, clip, load(overrides=SHORT), out, watch=interrupt_at(3, signal.SIGTERM))
    own = {"out": out, "resume": True, "model": fake.named(store).model, "device": "cpu"}
    with pytest.raises(ConfigError) as caught:  # what is asked is laid over the run's own
        train_run(**{**own, "overrides": [*SHORT[:2], "seed=4"]})
    assert str(caught.value).endswith("folder:\n  seed: the run has 0, asked for 4")
    with pytest.raises(ConfigError, match="  batch_size: the run has 11, asked for 32"):
        train_run(**{**own, "preset": "paper"})
    said = train_run(**{**own, "command": ["bieff", "train"]})
    assert said.startswith("trained 8 steps")
    [resumed] = open_run(out).record["resumed"]
    assert (resumed["step"], resumed["command"]) == (3, ["bieff", "train"])


def test_a_run_of_before_may_name_a_setting_that_is_gone(run):
    """Where it had the value that all runs have now; another was another method."""
    record = {**run.record, "config": {**run.record["config"], "temporal_weight": 1.0}}
    assert Run(run.path, record).config == run.config
    record["config"]["temporal_weight"] = 0.3
    with pytest.raises(ConfigError, match="unknown setting 'temporal_weight'"):
        assert Run(run.path, record).config
