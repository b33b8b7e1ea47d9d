"""The recipes of docs/slurm, with `srun` and `scontrol` that do here what Slurm would there."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import extracting
from helpers import fake_store as fake
from helpers.places import ROOT

from bieff.features.store import FeatureStore
from bieff.train.runs.checkpoint import RESUME

RECIPES = ROOT / "docs" / "slurm"
SMALL = ("--model", "tinyclip", "--frames", "3", "--clips", "1", "--device", "cpu")


@pytest.fixture
def slurm(tmp_path):
    """Starts a recipe as a job; `queued` holds what went back into the queue."""
    programs = tmp_path / "bin"
    programs.mkdir()
    queued = tmp_path / "queued"
    for name, does in (("srun", 'exec "$@"'), ("scontrol", f'echo "$@" >> {queued}')):
        (programs / name).write_text(f"#!/bin/sh\n{does}\n")
        (programs / name).chmod(0o755)
    path = os.pathsep.join(
        [str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]
    )

    def start(recipe, *arguments, **variables):
        environment = {
            **os.environ,
            "PATH": path,
            "SLURM_JOB_ID": "17",
            "CLIP": "",
            **variables,
        }
        return subprocess.Popen(
            ["bash", RECIPES / recipe, *map(str, arguments)], cwd=tmp_path, env=environment
        )

    start.queued = queued
    return start


def wait_for(process, happened):
    while not happened():
        assert process.poll() is None, "it ended before"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_training_goes_back_into_the_queue_and_goes_on(slurm, tmp_path):
    clip = fake.load_clip(tmp_path / "clip")
    store = fake.write_store(tmp_path / "store", clip)
    run = tmp_path / "run"
    settings = ("epochs=30", "warmup_epochs=0", "temporal_layers=1", "batch_size=4")
    options = [word for setting in settings for word in ("--set", setting)]
    words = {"CLIP": f"--model {clip.name.model}", "GPUS": "1"}
    job = slurm("train.sbatch", store.path, run, *options, **words)
    metrics = run / "metrics.jsonl"
    wait_for(job, lambda: metrics.exists() and metrics.stat().st_size)
    job.send_signal(signal.SIGUSR1)
    assert job.wait() == 0
    assert slurm.queued.read_text() == "requeue 17\n"
    assert json.loads((run / "run.json").read_text())["finished"] is None
    assert (run / RESUME).is_file()
    assert slurm("train.sbatch", store.path, run, *options, **words).wait() == 0
    record = json.loads((run / "run.json").read_text())
    assert record["finished"]
    assert record["resumed"][0]["step"] > 0
    assert slurm.queued.read_text() == "requeue 17\n"


@pytest.mark.slow
def test_an_extraction_goes_back_into_the_queue_and_goes_on(slurm, tmp_path):
    clips = extracting.write_clips(tmp_path / "clips")
    out = tmp_path / "store"
    words = ("--dataset", extracting.SET, "--videos", clips, "--out", out, *SMALL)
    job = slurm("extract.sbatch", *words)
    wait_for(job, lambda: (out / "zarr.json").exists())
    job.send_signal(signal.SIGUSR1)
    assert job.wait() == 0
    assert slurm.queued.read_text() == "requeue 17\n"
    assert slurm("extract.sbatch", *words).wait() == 0
    assert all(part.done().all() for part in FeatureStore.open(out).partitions.values())


@pytest.mark.slow
def test_jobs_of_dask_jobqueue_extract(slurm, tmp_path):
    """Its own cluster of local processes in place of Slurm's jobs, and the same settings."""
    pytest.importorskip("dask_jobqueue", reason="no dask-jobqueue here")
    clips = extracting.write_clips(tmp_path / "clips")
    code = """
import sys
from dask_jobqueue import SLURMCluster
from dask_jobqueue.local import LocalCluster
from extract import JOB, extract

with SLURMCluster(**JOB) as cluster:
    print(cluster.job_script())
kept = {k: v for k, v in JOB.items() if k in ("cores", "processes", "worker_extra_args")}
here = {"memory": "2GB", "scheduler_options": {"host": "127.0.0.1"}}
sys.exit(extract(LocalCluster(**kept, **here), 1, sys.argv[1:]))
"""
    out = tmp_path / "store"
    words = ("--dataset", extracting.SET, "--videos", clips, "--out", out, *SMALL)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(RECIPES), "PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for line in ("#SBATCH --requeue", "#SBATCH --gpus=1", "--nthreads 1", "--memory-limit 0"):
        assert line in done.stdout
    assert all(part.done().all() for part in FeatureStore.open(out).partitions.values())
