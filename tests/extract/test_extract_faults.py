"""What kills, full disks and torn files do to an extraction, with real processes and files."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import psutil
import pytest
from helpers import extracting
from helpers.places import TESTS
from helpers.processes import bieff, wait_for

from bieff.apps.store import verify_store
from bieff.extract.plan import plan
from bieff.extract.shapes.clips import load_shapes
from bieff.features.errors import StoreError, StoreMismatchError
from bieff.features.schema import Status
from bieff.features.store import FeatureStore

CONFIG = extracting.CONFIG
FAULTY = "helpers.faulty_decoders:faulty"


@pytest.fixture(autouse=True)
def _workers_find_the_faulty_decoders(monkeypatch):
    monkeypatch.syspath_prepend(str(TESTS))


def renamed(clips, folder, names):
    """The clips under one folder, some of them under names that order faults."""
    data = load_shapes(extracting.SET, clips)
    folder.mkdir()
    videos = []
    for i, video in enumerate(data.partitions["all"]):
        name = f"{i:02d} {names.get(i, 'fine')}.mp4"
        shutil.copyfile(clips / video.path, folder / name)
        videos.append(replace(video, path=name))
    return replace(data, root=folder, partitions={"all": videos})


def start(folder, out, decode=None, **options):
    """The same extraction as a program of its own; returns when all is loaded."""
    command = [sys.executable, "-P", "-m", "helpers.extracting", str(folder), str(out)]
    process = subprocess.Popen(
        command + ([decode] if decode else []),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)},
        **options,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def count_files(folder):
    return sum(len(files) for _, _, files in os.walk(folder))


def is_dead(process):
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
def test_a_hang_and_a_crash_cost_only_themselves(whole, clips, tmp_path):
    """Native code that never returns, twice, and an access of address 0, twice."""
    data = renamed(clips, tmp_path / "clips", {3: "hang", 14: "segfault", 20: "segfault once"})
    config = replace(CONFIG, deadline=2.0)
    store = extracting.plan_data(data, tmp_path / "store")
    summary = extracting.extract_small(store, config=config, decode=FAULTY)
    assert summary.counts == {"ok": 22, "timeout": 1, "crashed": 1}
    part, want = store.partitions["all"], whole.partitions["all"]
    assert [(e.row, e.status) for e in part.errors()] == [
        (3, Status.TIMEOUT),
        (14, Status.CRASHED),
    ]
    fine = [row for row in range(24) if row not in (3, 14)]
    assert (part.frames(fine) == want.frames(fine)).all()
    # two whole shards, where nothing was moved to another place of a batch: bit for bit
    same = [*range(4, 12), *range(16, 24)]
    assert part.read(same).tobytes() == want.read(same).tobytes()

    (tmp_path / "clips" / "03 hang.mp4").rename(tmp_path / "clips" / "03 fine.mp4")
    (tmp_path / "clips" / "14 segfault.mp4").rename(tmp_path / "clips" / "14 fine.mp4")
    videos = [
        replace(v, path=v.path.replace("hang", "fine").replace("segfault.", "fine."))
        for v in data.partitions["all"]
    ]
    mended = extracting.plan_data(replace(data, partitions={"all": videos}), tmp_path / "store")
    summary = extracting.extract_small(mended, decode=FAULTY, retry_failed=True)
    assert summary.shards_written == 2
    assert summary.is_whole


@pytest.mark.slow
def test_torn_empty_and_flipped_shards_are_found_and_redone(whole, clips, tmp_path):
    store = extracting.plan_small(clips, tmp_path / "store")
    extracting.extract_small(store)
    part = store.partitions["all"]
    embeddings = part.geometry.arrays["embeddings"]
    torn, empty, flipped = (embeddings.file(part.path, shard) for shard in (0, 2, 5))
    os.truncate(torn, torn.stat().st_size // 3)
    os.truncate(empty, 0)
    content = bytearray(flipped.read_bytes())
    content[777] ^= 4
    flipped.write_bytes(content)

    # sizes show the first two at once; a flipped bit is for `bieff store verify`
    assert extracting.extract_small(FeatureStore.open(store.path)).shards_written == 2
    said = []
    assert not verify_store(store.path, said.append, drop=True)
    assert "all shard 5: " in said[0]
    assert "crc32c differs" in said[0]
    assert extracting.extract_small(FeatureStore.open(store.path)).shards_written == 1
    assert verify_store(store.path, said.append, drop=False)
    extracting.assert_same(FeatureStore.open(store.path), whole)


def test_another_recipe_is_refused_with_the_difference(whole, clips):
    data = load_shapes(extracting.SET, clips)
    config = replace(CONFIG, frames=5, crops=3)
    with pytest.raises(StoreMismatchError) as caught:
        plan(data, config, extracting.tinyclip(), whole.path)
    assert "another recipe; choose another --out, or ask for the same:" in str(caught.value)
    assert "\n  frames: store has 3, asked for 5\n" in str(caught.value)


@pytest.mark.slow
def test_a_second_extraction_of_a_store_is_refused(clips, tmp_path):
    first = start(clips, tmp_path / "store", "helpers.extracting_slow:slow")
    try:
        wait_for(lambda: (tmp_path / "store" / "zarr.json").exists())
        store = FeatureStore.open(tmp_path / "store")
        # planning takes the lock too, for a moment; this is there once shards are begun
        wait_for((store.path / ".shards").exists)
        with pytest.raises(StoreError) as caught:
            extracting.extract_small(store)
        assert f"is being written by process {first.pid} on " in str(caught.value)
        assert str(caught.value).endswith("; wait for it or stop it")
    finally:
        first.kill()
        first.communicate()


@pytest.fixture
def small_disk(tmp_path):
    """A file system with room for the plan and a few shards."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("only root may mount a small file system, where mounting is allowed at all")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_is_said_clearly_and_the_rerun_completes(clips, tmp_path, small_disk):
    config = replace(CONFIG, frames=8, clips=8)  # 16 kB a video
    want = extracting.plan_small(clips, tmp_path / "store", config=config)
    extracting.extract_small(want, config=config)
    store = extracting.plan_small(clips, small_disk / "store", config=config)
    with pytest.raises(StoreError, match=r"no space to write .* make room and run the same co"):
        extracting.extract_small(store, config=config)
    done = int(store.partitions["all"].done().sum())
    assert 0 < done < 6
    resize = ["mount", "-o", "remount,size=8m", str(small_disk)]
    subprocess.run(resize, check=True)
    assert extracting.extract_small(store, config=config).shards_written == 6 - done
    extracting.assert_same(store, want)


@pytest.mark.slow
def test_killed_at_four_moments_it_becomes_the_same_store(whole, clips, tmp_path):
    """SIGKILL: no handler, no clean-up; decoders must go by themselves."""
    straight = start(clips, tmp_path / "straight")
    assert "24 ok" in straight.communicate()[0]
    num_files = count_files(tmp_path / "straight")
    extracting.assert_same(FeatureStore.open(tmp_path / "straight"), whole)

    moments = random.Random(7)
    finished = 0
    for _ in range(4):
        process = start(clips, tmp_path / "store")
        moment = moments.randrange(num_files)
        come = lambda: count_files(tmp_path / "store") >= moment  # noqa: B023, E731
        wait_for(lambda: come() or process.poll() is not None)  # noqa: B023
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.communicate()
        wait_for(lambda: all(map(is_dead, children)))  # noqa: B023
        if (tmp_path / "store" / "zarr.json").exists():
            store = FeatureStore.open(tmp_path / "store")
            assert store.partitions["all"].done().sum() >= finished
            finished = int(store.partitions["all"].done().sum())
    last = start(clips, tmp_path / "store")
    assert "24 ok" in last.communicate()[0]
    extracting.assert_same(FeatureStore.open(tmp_path / "store"), whole)


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["sync", "local"])
def test_ctrl_c_ends_with_one_sentence_and_leaves_nobody(whole, clips, tmp_path, scheduler):
    process = bieff(
        *("extract", "--dataset", extracting.SET, "--videos", clips, "--frames", 64),
        *("--out", tmp_path / "store", "--clips", 20, "--device", "cpu"),
        *("--scheduler", scheduler),
        stderr=subprocess.PIPE,
        start_new_session=True,  # a group of its own, as a terminal would interrupt it
    )
    try:
        interrupt(process, tmp_path / "store")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def interrupt(process, store):
    me = psutil.Process(process.pid)
    wait_for((store / ".shards").exists)
    wait_for(lambda: any("decode.worker" in " ".join(p.cmdline()) for p in family(me)))
    children = family(me)
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors
    assert output == ""
    last = errors.strip().splitlines()[-1]
    assert last == "Error: interrupted; run the same command again to go on"
    assert "Traceback" not in errors
    wait_for(lambda: all(map(is_dead, children)))
    with FeatureStore.open(store).exclusive():
        pass


def family(process):
    return process.children(recursive=True)
