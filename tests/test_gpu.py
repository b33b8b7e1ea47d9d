"""Both stages on a GPU: equal to the CPU, killed and resumed, two processes on one device.

The same tests run on the CPU as slow ones, so that none of them is first tried on a GPU.
"""

import json
import os
import runpy
import signal
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from helpers import extracting
from helpers import fake_store as fake
from helpers.places import TESTS
from helpers.processes import bieff, wait_for
from safetensors.torch import load_file

from bieff import clip as clips
from bieff.features.store import FeatureStore
from bieff.train.config import load
from bieff.train.fit.step import prepare
from bieff.train.runs.checkpoint import LAST, RESUME

DEVICES = [
    pytest.param("cpu", marks=pytest.mark.slow),
    pytest.param("cuda", marks=pytest.mark.gpu),
]
SETTINGS = ("batch_size=11", "warmup_epochs=1", "precision=float32")

on_devices = pytest.mark.parametrize("device", DEVICES)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu")
    return fake.write_store(folder / "store", fake.load_clip(folder / "clip"))


def prepared(store, device, *settings):
    clip = clips.load(fake.named(store), device=torch.device(device))
    return prepare(store, clip, load(overrides=[*SETTINGS, "epochs=8", *settings]))


def losses(store, device, count=6):
    trainer = prepared(store, device)
    with trainer.batches:
        taken = torch.stack([trainer.step(step) for step in range(count)])
    return trainer, taken.cpu()


@on_devices
def test_steps_are_those_of_the_cpu(store, device):
    """Float32 rounds otherwise in other kernels; a mistake shows in the first digits."""
    _, want = losses(store, "cpu")
    trainer, got = losses(store, device)
    assert trainer.features.place == ("memory" if device == "cpu" else "device")
    assert want.diff().abs().min() > 1e-3  # they do learn
    torch.testing.assert_close(got, want, rtol=2e-3, atol=2e-3)


@on_devices
@pytest.mark.parametrize(("gigabytes", "place"), [(None, "memory"), (1e-9, "disk")])
def test_batches_arrive_whole_from_memory_and_disk(
    store, device, gigabytes, place, monkeypatch
):
    """They are gathered ahead by a thread, and on a GPU cross over from pinned memory."""
    if gigabytes is None:
        monkeypatch.setattr("bieff.train.data.DEVICE_SHARE", 0.0)
    own = [] if gigabytes is None else [f"feature_memory={gigabytes}"]
    trainer = prepared(store, device, *own)
    assert trainer.features.place == place
    every = store.partitions["train"].read(trainer.features.rows)
    with trainer.batches:
        for step in range(20):
            index, batch = trainer.batches.at(step)
            assert batch.frames.device.type == device
            picked = torch.from_numpy(every)[index.videos, index.views]
            want = picked.gather(1, index.frames[:, :, None].expand(-1, -1, picked.shape[2]))
            assert torch.equal(batch.frames.cpu(), want.float())


def train_command(store, out, device, *settings):
    words = ["train", "--features", store.path, "--out", out, "--device", device]
    for setting in (*SETTINGS, *settings):
        words += ["--set", setting]
    return [*words, *fake.named(store).words]


def ended(process):
    said = process.communicate(timeout=600)[0]
    assert process.returncode == 0, said
    return said


def epochs(out):
    """Lines of metrics at the ends of epochs."""
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "epoch" in line]


@on_devices
def test_a_training_that_was_killed_goes_on(store, tmp_path, device):
    options = ("epochs=12", "eval_every=6")
    ended(bieff(*train_command(store, tmp_path / "straight", device, *options)))
    out = tmp_path / "killed"
    process = bieff(*train_command(store, out, device, *options, "save_seconds=0.05"))
    wait_for((out / RESUME).exists, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    words = ["train", "--resume", "--out", out, "--device", device, *fake.named(store).words]
    assert "going on after" in ended(bieff(*words))
    want, got = (load_file(tmp_path / name / LAST) for name in ("straight", "killed"))
    if device == "cpu":
        assert all(torch.equal(got[name], value) for name, value in want.items())
    # a GPU's attention adds up its gradients in an order of its own
    for first, second in zip(epochs(tmp_path / "straight"), epochs(out), strict=True):
        assert second == pytest.approx(first, abs=6.0 if device == "cuda" else 0)


@on_devices
def test_two_processes_train_on_one_device(store, tmp_path, device):
    out = tmp_path / "two"
    words = train_command(store, out, device, "epochs=4", "eval_every=4")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, "--nproc-per-node", "2", "-m", "bieff.cli", *words]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    ended(bieff(*train_command(store, tmp_path / "one", device, "epochs=4", "eval_every=4")))
    record = json.loads((out / "run.json").read_text())
    assert record["processes"] == 2
    assert record["device"].startswith(device)
    one = json.loads((tmp_path / "one" / "run.json").read_text())
    assert record["evaluation"] == pytest.approx(one["evaluation"], abs=6.0)


def extraction(folder, out, device):
    """A program of its own, with decoders that take their time."""
    words = [folder, out, "helpers.extracting_slow:slow", device]
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "helpers.extracting", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
    )


@on_devices
def test_an_extraction_that_was_killed_goes_on(tmp_path, device):
    folder = extracting.write_clips(tmp_path / "clips")
    assert "24 ok" in ended(extraction(folder, tmp_path / "whole", device))
    want = FeatureStore.open(tmp_path / "whole").partitions["all"]
    process = extraction(folder, tmp_path / "store", device)
    wait_for((tmp_path / "store" / "zarr.json").exists, process)
    got = FeatureStore.open(tmp_path / "store").partitions["all"]
    wait_for(lambda: got.done().any(), process)
    process.kill()
    process.communicate()
    assert not got.done().all()
    assert "24 ok" in ended(extraction(folder, tmp_path / "store", device))
    rows = slice(None)
    assert got.frames(rows).tolist() == want.frames(rows).tolist()
    near, far = (torch.from_numpy(part.read(rows)).float() for part in (got, want))
    assert F.cosine_similarity(near, far, dim=-1).min() > 0.9999


@pytest.mark.long
def test_the_bench_prints_every_line(tmp_path):
    """All benches of `make gpu`, tiny, on whatever is here."""
    out = tmp_path / "lines.jsonl"
    command = [sys.executable, TESTS / "bench_gpu.py", "--tiny", "--slack", "5", "--out", out]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    lines = list(map(json.loads, out.read_text().splitlines()))
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"')]
    assert all(line in said for line in lines)
    parts = runpy.run_path(str(TESTS / "bench_gpu.py"))["PARTS"]
    assert [line["bench"] for line in lines] == list(parts)
    for line in lines:
        assert line["torch"] == torch.__version__
        assert line["device"]
        assert line["peak_bytes"] > 0


def test_a_part_that_fails_is_said_and_does_not_stop_the_others(tmp_path):
    bench = runpy.run_path(str(TESTS / "bench_gpu.py"))
    line = bench["run"]("cosines", tiny=True, slack=1e-6)
    assert line == {"bench": "cosines", "failed": "not done after 0 s"}
