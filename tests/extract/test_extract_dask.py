"""Shards on Dask: local workers, and real scheduler and worker programs over TCP."""

import contextlib
import importlib.metadata
import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import psutil
import pytest
from helpers import extracting
from helpers.places import TESTS

from bieff.extract.cluster import OnCluster, WorkerSetup, connected, what_is_wrong
from bieff.extract.plan import versions_here
from bieff.extract.run import extract
from bieff.features.errors import ConfigError, InputError, StoreError
from bieff.features.files import ShardLocks

CONFIG = extracting.CONFIG
SLOW = "helpers.extracting_slow:slow"


def on(runner, store, *, config=CONFIG, **options):
    return extract(
        store, extracting.tinyclip(), config, device=extracting.CPU, runner=runner, **options
    )


def is_at_work(process):
    """Alive, and not the tracker of resources that Python itself keeps."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE and "resource_tracker" not in " ".join(
            process.cmdline()
        )
    except psutil.Error:
        return False


def read_to_the_end(stream):
    with stream:
        stream.read()


class Cluster:
    """`dask scheduler` and some `dask worker`s, as a user starts them."""

    def __init__(self, num_workers):
        self.workers = []
        self.scheduler, self.address = self._start(
            ["scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"],
            r"Scheduler at:\s+(tcp://\S+)",
        )
        for _ in range(num_workers):
            command = ["worker", self.address, "--nthreads", "1", "--no-dashboard"]
            self.workers.append(self._start(command, r"Registered to:\s+(tcp://\S+)")[0])

    def _start(self, command, ready):
        process = subprocess.Popen(
            [sys.executable, "-m", "dask", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{TESTS}",
            },
        )
        said = []
        for line in process.stdout:
            said.append(line)
            if found := re.search(ready, line):
                # read on, or a full pipe would hold it up
                threading.Thread(target=read_to_the_end, args=[process.stdout]).start()
                return process, found.group(1)
        raise AssertionError("".join(said))

    def kill_a_worker(self):
        """A worker dies with its nanny, as when its machine goes."""
        worker = self.workers.pop()
        nanny = psutil.Process(worker.pid)
        family = [*nanny.children(recursive=True), nanny]
        for process in family:
            process.suspend()
        for process in family:
            process.send_signal(signal.SIGKILL)
        worker.wait()

    def close(self):
        for process in (*self.workers, self.scheduler):
            process.terminate()
        for process in (*self.workers, self.scheduler):
            process.wait(30)


@pytest.fixture(scope="module")
def cluster():
    started = Cluster(2)
    yield started
    started.close()


def test_a_machine_that_does_not_see_the_files_says_so(tmp_path):
    probe = tmp_path / "seen"
    assert "does not see the store" in what_is_wrong(probe, "token", tmp_path)
    probe.write_text("another")
    assert f"sees another {tmp_path} than this machine" in what_is_wrong(
        probe, "token", tmp_path
    )
    probe.write_text("token")
    missing = tmp_path / "videos"
    assert f"does not see the videos in {missing}" in what_is_wrong(probe, "token", missing)
    assert what_is_wrong(probe, "token", tmp_path) == ""


def test_a_worker_of_other_decoders_does_not_begin(clips, tmp_path):
    store = extracting.plan_small(clips, tmp_path / "store")
    clip = extracting.tinyclip()
    setup = WorkerSetup(
        store=store.path,
        recipe_hash=store.recipe_hash,
        clip=clip.name,
        fingerprint=clip.fingerprint,
        config=CONFIG,
        device="cpu",
        decode=SLOW,
        version=importlib.metadata.version("bieff"),
        libraries={**versions_here(), "av": "9.1"},
        neighbours=1,
        threads=1,
    )
    with pytest.raises(StoreError, match=r"a worker has av \S+, this machine 9\.1, whose"):
        setup.open_store()
    mixed = replace(setup, config=replace(CONFIG, mixed_decoders=True))
    assert mixed.open_store().recipe_hash == store.recipe_hash


@pytest.mark.slow
def test_a_scheduler_that_is_not_there(monkeypatch):
    monkeypatch.setattr("bieff.extract.cluster.CONNECT_SECONDS", 1)
    with (
        pytest.raises(ConfigError, match="no Dask scheduler answers"),
        connected("tcp://127.0.0.1:9", device=None),
    ):
        pass


@pytest.mark.slow
def test_local_workers_write_the_same_store(whole, clips, tmp_path):
    store = extracting.plan_small(clips, tmp_path / "store")
    before = set(psutil.Process().children(recursive=True))
    with connected("local", device=extracting.CPU) as runner:
        assert on(runner, store).shards_written == 6
        workers = set(psutil.Process().children(recursive=True)) - before
        assert workers
        # another store on the same workers, which have to start anew
        second = extracting.plan_small(clips, tmp_path / "second", rows=8)
        assert on(runner, second, config=replace(CONFIG, batch_size=48)).shards_written == 3
    extracting.assert_same(store, whole)
    assert not [process for process in workers if is_at_work(process)]
    assert not list(store.path.glob(".seen-*"))


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_changes_nothing(whole, clips, tmp_path):
    cluster = Cluster(2)
    try:
        with connected(cluster.address, device=extracting.CPU, decode=SLOW) as runner:
            store = extracting.plan_small(clips, tmp_path / "store")

            def kill_one(news):
                """When shards are written and another is under way."""
                written = 4 * getattr(news, "shards", 0)
                if len(cluster.workers) == 2 and 2 * 4 <= written < news.videos:
                    cluster.kill_a_worker()

            summary = on(runner, store, watch=kill_one)
            assert len(cluster.workers) == 1
            assert summary.shards_written == 6
            extracting.assert_same(store, whole)
    finally:
        cluster.close()


@pytest.mark.slow
def test_a_run_that_stops_leaves_nobody_writing(cluster, clips, tmp_path):
    for path in clips.glob("*/*.mp4"):
        copy = tmp_path / "clips" / path.relative_to(clips)
        copy.parent.mkdir(parents=True)
        copy.write_bytes(path.read_bytes()[:99])
    (tmp_path / "clips" / "edition.json").write_bytes((clips / "edition.json").read_bytes())
    store = extracting.plan_small(tmp_path / "clips", tmp_path / "store")
    with connected(cluster.address, device=extracting.CPU, decode=SLOW) as runner:
        with pytest.raises(InputError, match="of 24 videos are unusable already"):
            on(runner, store, max_bad=0.1)
        done = store.partitions["all"].done().sum()
        assert done < 6
        with contextlib.closing(ShardLocks(store.path, ("all",))) as locks:
            for shard in range(6):  # waits as long as anybody writes it
                locks.acquire("all", shard)
        assert store.partitions["all"].done().sum() == done
        # the same workers serve the next run
        summary = on(runner, store)
        assert summary.counts == {"corrupt": 24}
        assert summary.shards_written == 6 - done


@pytest.mark.slow
def test_an_error_of_a_worker_is_one_sentence_here(cluster, clips, tmp_path, monkeypatch):
    store = extracting.plan_small(clips, tmp_path / "store")
    with connected(cluster.address, device=extracting.CPU) as runner:
        monkeypatch.setattr(store, "root", "/nowhere")
        with pytest.raises(StoreError, match=r"Dask worker tcp://\S+ does not see the videos"):
            on(runner, store)
        monkeypatch.undo()
        other = replace(extracting.tinyclip(), fingerprint="0" * 64)
        with pytest.raises(StoreError, match="a worker has other weights of 'tinyclip'"):
            extract(store, other, CONFIG, device=extracting.CPU, runner=runner)
    assert isinstance(runner, OnCluster)
