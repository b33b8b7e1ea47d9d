import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from helpers import fake_store as fake
from helpers.places import TESTS
from helpers.processes import wait_for
from safetensors.torch import load_file

from bieff.features.errors import ConfigError
from bieff.train.distributed import Group, current, sharers
from bieff.train.runs.checkpoint import LAST, RESUME
from bieff.train.runs.metrics import read_metrics
from bieff.train.runs.run import open_run

SCRIPT = TESTS / "helpers" / "parallel_steps.py"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parallel")
    clip = fake.load_clip(folder / "clip")
    return fake.write_store(folder / "store", clip, bad={"train": [3]}, patches=(5, 7))


def torchrun(count, *arguments):
    """Start real processes, which find each other over gloo."""
    launcher = [sys.executable, "-m", "torch.distributed.run"]
    command = [*launcher, "--standalone", "--nproc-per-node", count, *arguments]
    return subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def finish(process):
    said = process.communicate(timeout=240)[0]
    assert process.returncode == 0, said
    return said


def test_shares_cover_the_batch_and_differ_by_one():
    for count in (2, 7, 11):
        for size in range(1, count + 1):
            parts = [Group(rank, size).part(count) for rank in range(size)]
            rows = [row for part in parts for row in range(count)[part]]
            assert rows == list(range(count))
            sizes = [part.stop - part.start for part in parts]
            assert max(sizes) - min(sizes) <= 1


def test_more_processes_than_videos_are_refused():
    with pytest.raises(ConfigError, match="a batch of 2 videos for 3 processes; expected at"):
        Group(0, 3).part(2)


def test_one_process_alone_sends_nothing():
    alone = current()
    assert alone == Group(0, 1)
    assert alone.writes
    assert sharers() == 1
    rows = torch.randn(3, 5)
    assert alone.gather(rows, 3) is rows
    kept = rows.clone()
    alone.add_up([rows])
    alone.wait()
    assert torch.equal(rows, kept)
    assert alone.any(True)
    assert not alone.any(False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "options"),
    [
        (2, []),
        (2, ["accumulate=2", "targets=multi-hot", "clip_grad=0.1"]),
        (3, ["prompts_see=patches", "learn_temperature=true", "feature_memory=1e-9"]),
    ],
)
def test_several_processes_are_one(store, tmp_path, count, options):
    """Losses and weights after six steps; batches of 11 do not divide evenly."""
    settings = ["batch_size=11", "epochs=7", "warmup_epochs=1", *options]
    one = subprocess.run(
        [sys.executable, str(SCRIPT), str(store.path), str(tmp_path / "one"), *settings],
        check=False,
        capture_output=True,
        text=True,
    )
    assert one.returncode == 0, one.stderr
    finish(torchrun(count, SCRIPT, store.path, tmp_path / "several", *settings))
    want, got = (load_file(tmp_path / name) for name in ("one", "several"))
    assert want["losses"].dtype == torch.float64
    assert (want["losses"].diff().abs() > 1e-3).all()  # they do learn
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_the_command_under_torchrun_trains_the_same_run(store, tmp_path):
    """As a user starts it, in float32, with evaluation; one folder, written by one process."""
    arguments = ["train", "--features", store.path, "--device", "cpu"]
    arguments += fake.named(store).words
    for setting in ("batch_size=11", "epochs=4", "warmup_epochs=1", "eval_every=2"):
        arguments += ["--set", setting]
    cli = ["-m", "bieff.cli", *arguments, "--out"]
    one = [sys.executable, *map(str, cli), str(tmp_path / "one")]
    subprocess.run(one, check=True, capture_output=True)
    said = finish(torchrun(2, *cli, tmp_path / "two"))
    assert said.count("trained 16 steps on 52 videos") == 1
    want, got = (read_metrics(tmp_path / name) for name in ("one", "two"))
    for expected, line in zip(want, got, strict=True):
        assert line.keys() == expected.keys()
        # divided by tau = 0.01, the rounding of a cosine is 1e-5 of a logit
        assert line == pytest.approx(expected, rel=5e-6, abs=2e-6)
    want, got = (load_file(tmp_path / name / LAST) for name in ("one", "two"))
    for name, value in want.items():
        # a key's offset changes no softmax, and at the start alpha no cosine: their gradients
        # are rounding, of which AdamW makes steps
        if not name.endswith(("key.bias", "alpha")):
            torch.testing.assert_close(got[name], value, rtol=1e-6, atol=1e-6)
    record = open_run(tmp_path / "two").record
    assert record["processes"] == 2
    assert record["evaluation"] == open_run(tmp_path / "one").record["evaluation"]


@pytest.mark.slow
def test_several_processes_start_from_a_run_as_one_does(store, tmp_path):
    arguments = ["-m", "bieff.cli", "train", "--features", store.path, "--device", "cpu"]
    arguments += fake.named(store).words
    for setting in ("batch_size=11", "epochs=2", "warmup_epochs=1", "eval_every=0"):
        arguments += ["--set", setting]
    python = [sys.executable, *map(str, arguments), "--out"]
    subprocess.run([*python, tmp_path / "parent"], check=True, capture_output=True)
    started = ("--from", tmp_path / "parent", "--set", "lr=1e-5")
    subprocess.run([*python, tmp_path / "one", *started], check=True, capture_output=True)
    finish(torchrun(2, *arguments, "--out", tmp_path / "two", *started))
    want, got = (open_run(tmp_path / name) for name in ("one", "two"))
    assert want.ancestors == got.ancestors == open_run(tmp_path / "parent").lineage()
    assert want.record["start"] == got.record["start"]
    want, got = (load_file(tmp_path / name / LAST) for name in ("one", "two"))
    for name, value in want.items():
        if not name.endswith("key.bias"):  # as above
            torch.testing.assert_close(got[name], value, rtol=1e-6, atol=2e-6)


@pytest.mark.slow
def test_several_processes_stop_together_and_go_on(store, tmp_path):
    out = tmp_path / "run"
    arguments = ["-m", "bieff.cli", "train", "--features", store.path, "--device", "cpu"]
    arguments += fake.named(store).words
    settings = ("batch_size=11", "epochs=30", "warmup_epochs=1", "save_seconds=0.05")
    for setting in settings:
        arguments += ["--set", setting]
    process = torchrun(2, *arguments, "--out", out)
    wait_for((out / RESUME).exists, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    said = process.communicate(timeout=120)[0]
    assert process.returncode != 0
    assert "goes on" in said
    stopped = open_run(out)
    assert not stopped.record["finished"]
    resume = ["train", "--resume", "--out", out, "--device", "cpu", *fake.named(store).words]
    finish(torchrun(2, "-m", "bieff.cli", *resume))
    finish(torchrun(2, *arguments, "--out", tmp_path / "straight"))
    first, second = (load_file(path / LAST) for path in (tmp_path / "straight", out))
    assert all(torch.equal(first[name], second[name]) for name in first)
    lines = [(path / "metrics.jsonl").read_text() for path in (tmp_path / "straight", out)]
    assert lines[0] == lines[1]
    assert json.loads(lines[0].splitlines()[-1])["epoch"] == 30
