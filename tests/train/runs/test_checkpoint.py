import json
import re
import shutil
import signal

import pytest
import torch
from click.testing import CliRunner
from helpers import fake_store as fake
from helpers.processes import bieff, wait_for
from helpers.training import interrupt_at, quiet
from safetensors.torch import load_file

from bieff.cli import main
from bieff.features.errors import BieffError, ConfigError, InputError, StoreMismatchError
from bieff.train.config import DEFAULT_PRESET, load
from bieff.train.fit.loop import train
from bieff.train.fit.step import prepare
from bieff.train.runs.checkpoint import (
    BEST,
    LAST,
    RESUME,
    Progress,
    StoppedError,
    load_checkpoint,
    save_checkpoint,
)
from bieff.train.runs.metrics import METRICS
from bieff.train.runs.run import RECORD, open_run

SHORT = ["epochs=4", "warmup_epochs=1", "batch_size=11", "eval_every=2", "temporal_layers=1"]


def assert_same_run(first, second):
    for name in (LAST, BEST):
        a, b = load_file(first / name), load_file(second / name)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert (first / METRICS).read_text() == (second / METRICS).read_text()
    records = [open_run(path).record for path in (first, second)]
    for key in ("evaluation", "best", "steps", "config"):
        assert records[0][key] == records[1][key]


@pytest.fixture(scope="module")
def straight(clip, store, tmp_path_factory):
    """The run of `SHORT` that nobody stops."""
    out = tmp_path_factory.mktemp("runs") / "straight"
    return train(store, clip, load(overrides=SHORT), out, watch=quiet).path


def test_steps_after_the_checkpoint_are_taken_again(clip, store, straight, tmp_path):
    """As after a SIGKILL: metrics run ahead of the last checkpoint."""
    config = load(overrides=SHORT)
    out = tmp_path / "killed"
    with pytest.raises(StoppedError):
        train(store, clip, config, out, watch=interrupt_at(6))
    shutil.copy(out / RESUME, tmp_path / "kept")
    with pytest.raises(StoppedError):
        train(store, clip, config, out, watch=interrupt_at(12), resume=open_run(out))
    shutil.copy(tmp_path / "kept", out / RESUME)
    train(store, clip, config, out, watch=quiet, resume=open_run(out))
    assert_same_run(straight, out)


def test_a_run_killed_before_its_first_checkpoint_begins_again(clip, store, straight, tmp_path):
    config = load(overrides=SHORT)
    out = tmp_path / "run"
    with pytest.raises(StoppedError):
        train(store, clip, config, out, watch=interrupt_at(3))
    (out / RESUME).unlink()
    train(store, clip, config, out, watch=quiet, resume=open_run(out))
    assert_same_run(straight, out)


@pytest.mark.parametrize(
    "options",
    [
        ["accumulate=3", "learn_temperature=true", "average_epochs=3", "distill=0.3"],
        pytest.param(
            ["feature_memory=1e-9", "precision=bfloat16", "clip_grad=1.0"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_stopping_and_going_on_changes_nothing(clip, store, tmp_path, options):
    config = load(overrides=[*SHORT, *options])
    train(store, clip, config, tmp_path / "straight", watch=quiet)
    out = tmp_path / "stopped"
    for resume, step in ((False, 5), (True, 8), (True, 13)):
        with pytest.raises(StoppedError) as caught:
            train(
                store,
                clip,
                config,
                out,
                watch=interrupt_at(step),
                resume=open_run(out) if resume else None,
            )
        assert str(caught.value) == (
            f"stopped and saved after {step} of 16 steps; "
            f"`bieff train --resume --out {out}` goes on"
        )
        assert open_run(out).record["finished"] is None
    if "average_epochs=3" in options:  # LAST holds the mean of two epochs
        last, resume = load_file(out / LAST), load_file(out / RESUME)
        assert not torch.equal(last["temporal.positions"], resume["model/temporal.positions"])
    said = []
    run = train(store, clip, config, out, watch=quiet, resume=open_run(out), say=said.append)
    assert said[1] == "going on after 13 of 16 steps"
    assert [process["step"] for process in run.record["resumed"]] == [5, 8, 13]
    assert_same_run(tmp_path / "straight", out)
    assert not (out / RESUME).exists()


def test_how_to_go_on_can_be_typed_whatever_the_folder_is_called(clip, store, tmp_path):
    out = tmp_path / "a run; of mine"
    with pytest.raises(StoppedError, match=rf"--resume --out '{out}'` goes on"):
        train(store, clip, load(overrides=SHORT), out, watch=interrupt_at(2))


def test_a_change_that_may_round_otherwise_is_said(clip, store, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(StoppedError):
        train(store, clip, load(overrides=SHORT), out, watch=interrupt_at(2))
    record = json.loads((out / RECORD).read_text())
    record["threads"], record["versions"]["torch"] = 977, "1.0"
    (out / RECORD).write_text(json.dumps(record))
    said = []
    with pytest.raises(StoppedError):
        train(
            store,
            clip,
            load(overrides=SHORT),
            out,
            watch=interrupt_at(4),
            resume=open_run(out),
            say=said.append,
        )
    assert said[2].startswith(f"threads 977 before, {torch.get_num_threads()} now, torch 1.0")
    assert said[2].endswith("need not be those of an unbroken run bit for bit")
    said = []
    train(
        store,
        clip,
        load(overrides=SHORT),
        out,
        watch=quiet,
        resume=open_run(out),
        say=said.append,
    )  # the process before was on this machine
    assert len(said) == 2


def test_a_run_goes_on_with_its_settings_and_others_that_change_nothing(clip, store, tmp_path):
    out = tmp_path / "run"
    config = load(overrides=SHORT, base="baseline")
    with pytest.raises(StoppedError):
        train(store, clip, config, out, watch=interrupt_at(2))
    named = fake.named(store).words
    resume = ["train", "--resume", "--out", str(out), *named, "--set"]
    result = CliRunner().invoke(main, [*resume, "lr=1"])
    assert result.exit_code == 1
    assert result.output.count("asked for") == 1
    assert "loss nan" not in result.output  # no bar of a run that never began
    assert "lr: the run has 0.0005, asked for 1.0" in result.output
    result = CliRunner().invoke(main, [*resume, "save_seconds=7"])
    assert result.exit_code == 0, result.output
    train(store, clip, config, tmp_path / "straight", watch=quiet)
    assert_same_run(tmp_path / "straight", out)


@pytest.mark.slow
def test_order_stays_when_features_move(clip, tmp_path):
    """A run that began from the disk goes on in memory, in the order it began with."""
    store = fake.write_store(tmp_path / "store", clip, counts={"train": 131})
    config = load(overrides=[*SHORT, "epochs=2", "feature_memory=1e-9"])
    roomy = load(overrides=[*SHORT, "epochs=2"])
    assert prepare(store, clip, config).window == 64
    train(store, clip, config, tmp_path / "straight", watch=quiet)
    with pytest.raises(StoppedError):
        train(store, clip, config, tmp_path / "moved", watch=interrupt_at(4))
    moved = open_run(tmp_path / "moved")
    train(store, clip, roomy, moved.path, watch=quiet, resume=moved)
    first, second = (load_file(tmp_path / name / LAST) for name in ("straight", "moved"))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_going_on_with_something_else_is_refused(clip, store, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(StoppedError):
        train(store, clip, load(overrides=SHORT), out, watch=interrupt_at(2))
    with pytest.raises(ConfigError) as caught:
        train(
            store,
            clip,
            load(overrides=[*SHORT, "lr=1e-3", "alpha=1", "save_seconds=7"]),
            out,
            watch=quiet,
            resume=open_run(out),
        )
    assert str(caught.value) == (
        f"run {out} has other settings; go on with its own, or train into another folder:\n"
        "  alpha: the run has 0.1, asked for 1.0\n  lr: the run has 0.0005, asked for 0.001"
    )
    other = fake.write_store(tmp_path / "other", clip, seed=1)
    with pytest.raises(StoreMismatchError, match="began with another store recipe: expected"):
        train(other, clip, load(overrides=SHORT), out, watch=quiet, resume=open_run(out))
    fewer = fake.write_store(tmp_path / "fewer", clip, bad={"train": [5]})
    with pytest.raises(
        StoreMismatchError, match="began with 53 usable videos, now there are 52"
    ):
        train(fewer, clip, load(overrides=SHORT), out, watch=quiet, resume=open_run(out))
    with pytest.raises(InputError, match=r"run is not empty; .* with --resume"):
        train(store, clip, load(overrides=SHORT), out, watch=quiet)
    train(store, clip, load(overrides=SHORT), out, watch=quiet, resume=open_run(out))
    with pytest.raises(InputError, match="is finished; train again into another folder"):
        train(store, clip, load(overrides=SHORT), out, watch=quiet, resume=open_run(out))
    result = CliRunner().invoke(main, ["train", "--resume", "--out", str(tmp_path / "nothing")])
    assert re.match(r"Error: no run at .*nothing; make one", result.output)


def test_a_damaged_checkpoint_is_refused(clip, store, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(StoppedError):
        train(store, clip, load(overrides=SHORT), out, watch=interrupt_at(2))
    data = (out / RESUME).read_bytes()
    for damaged in (data[: len(data) // 2], data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]):
        (out / RESUME).write_bytes(damaged)
        with pytest.raises(
            InputError, match=r"cannot go on from .*resume.safetensors: .*again"
        ):
            train(store, clip, load(overrides=SHORT), out, watch=quiet, resume=open_run(out))


def test_all_of_the_optimiser_comes_back(clip, store, tmp_path):
    first, second = (prepare(store, clip, load(overrides=SHORT)) for _ in range(2))
    for step in range(3):
        first.step(step)
    save_checkpoint(tmp_path, first.model, first.optimizer, Progress(step=3, best_top1=2.5))
    got = load_checkpoint(tmp_path, second.model, second.optimizer)
    assert got == Progress(step=3, best_top1=2.5)
    assert load_checkpoint(tmp_path / "none", second.model, second.optimizer) is None
    one, two = (t.optimizer.state_dict()["state"] for t in (first, second))
    assert one.keys() == two.keys()
    assert len(one) == len(list(first.model.parameters()))
    for index in one:
        assert one[index].keys() == two[index].keys()
        assert all(torch.equal(one[index][key], two[index][key]) for key in one[index])


def test_weights_that_are_no_numbers_never_replace_good_ones(clip, store, tmp_path):
    trainer = prepare(store, clip, load(overrides=SHORT))
    save_checkpoint(tmp_path, trainer.model, trainer.optimizer, Progress())
    before = (tmp_path / RESUME).read_bytes()
    with torch.no_grad():
        trainer.model.temporal.positions[0] = float("nan")
    with pytest.raises(BieffError, match=r"weight 'temporal.positions' is not finite"):
        save_checkpoint(tmp_path, trainer.model, trainer.optimizer, Progress(step=4))
    assert (tmp_path / RESUME).read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_real_process_is_stopped_and_goes_on(clip, store, tmp_path, number):
    settings = ["epochs=30", "warmup_epochs=1", "batch_size=11", "eval_every=90"]
    out = tmp_path / "run"
    named = fake.named(store).words
    arguments = ["train", "--features", store.path, "--out", out, *named]
    for setting in [*settings, "save_seconds=0.05"]:
        arguments += ["--set", setting]
    process = bieff(*arguments)
    wait_for((out / RESUME).exists, process)
    process.send_signal(number)
    said = process.communicate(timeout=120)[0]
    assert not open_run(out).record["finished"]
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 1
        assert f"steps; `bieff train --resume --out {out}` goes on" in said
    process = bieff("train", "--resume", "--out", out, *named)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    assert "trained 120 steps on 53 videos" in said
    config = load(overrides=settings, base=DEFAULT_PRESET)
    train(store, clip, config, tmp_path / "straight", watch=quiet)
    first, second = (load_file(path / LAST) for path in (tmp_path / "straight", out))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert (out / METRICS).read_text() == (tmp_path / "straight" / METRICS).read_text()
