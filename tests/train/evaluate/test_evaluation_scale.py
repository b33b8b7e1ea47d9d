"""Evaluation of stores as large as HMDB-51 and UCF-101, by the command, as a user runs it."""

import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers import fake_store as fake
from helpers.processes import BIEFF, wait_for
from helpers.training import quiet

from bieff import clip as clips
from bieff.clip import ClipName
from bieff.extract.datasets import official
from bieff.features.schema import PartitionPlan, ShardData, Status, Video, VideoError
from bieff.features.store import FeatureStore
from bieff.train.config import load
from bieff.train.evaluate.classifier import class_embeddings
from bieff.train.evaluate.lists import half_of
from bieff.train.evaluate.results import load_results
from bieff.train.fit.loop import train

FRAMES = 8
BAD = (4, 1000, 6000)
TESTS = {"hmdb51": [1530, 1530, 1530], "ucf101": [3783, 3734, 3696]}
SIZES = {"hmdb51": 6766, "ucf101": 13320}
MEMORY = 1.5e9
"""Bytes an evaluation may take; torch and open_clip alone take 0.5e9."""

SECONDS = 1500
"""The longest evaluation takes some minutes on one core."""

# a process of its own, because the peak is that of all children a process ever had
MEASURED = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
open(sys.argv[1], "w").write(str(peak))
sys.exit(code)
"""

pytestmark = pytest.mark.long


def write_official(path, name, clip, *, limit=None):
    """The official videos, with random features, through the public API; three are bad."""
    names = [raw for raw, _ in official.class_names(name)]
    videos = [
        Video(id=listed, path=listed, label=names.index(listed.split("/")[0]), splits=roles)
        for listed, roles in official.splits(name)[:limit]
    ]
    recipe = {
        "data_set": name,
        "clip": {
            "model": clip.name.model,
            "pretrained": clip.name.pretrained,
            "fingerprint": clip.fingerprint,
        },
        "frames": FRAMES,
        "dim": clip.dim,
        "patches": None,
        "views": {"all": [{"clip": 0, "clips": 1}]},
    }
    store = FeatureStore.create(
        path,
        recipe=recipe if limit is None else recipe | {"limit": limit},
        class_names=[words for _, words in official.class_names(name)],
        partitions={"all": PartitionPlan(videos=videos, num_views=1)},
        versions={},
    )
    draw = np.random.default_rng(5)
    part = store.partitions["all"]
    for shard in part.pending():
        rows = part.geometry.rows(shard)
        failed = [row for row in BAD if row in rows]
        status = np.full(len(rows), Status.OK, np.uint8)
        status[[row - rows.start for row in failed]] = Status.CORRUPT
        shape = (len(rows), 1, FRAMES, clip.dim)
        part.write_shard(
            shard,
            ShardData(
                embeddings=draw.standard_normal(shape, np.float32).astype(np.float16),
                frames=np.zeros(shape[:3], np.int32),
                status=status,
            ),
            errors=[
                VideoError(
                    row=row,
                    id=videos[row].id,
                    path=videos[row].path,
                    status=Status.CORRUPT,
                    stage="decode",
                    decoder="pyav",
                    message="made so",
                    attempt=1,
                )
                for row in failed
            ],
            seconds={},
        )
    return store


def write_run(folder, clip):
    """A run of a few steps on a handful of videos."""
    store = fake.write_store(folder / "small", clip, counts={"train": 7}, frames=FRAMES)
    config = load(overrides=["epochs=2", "warmup_epochs=1", "batch_size=3"])
    return train(store, clip, config, folder / "run", watch=quiet)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scale")
    clip = tiny(folder)
    for name in SIZES:
        write_official(folder / name, name, clip)
    write_run(folder, clip)
    return folder


def tiny(folder):
    """A text tower of tinyclip's size that knows every word, so that no two classes tie."""
    if (folder / "clip").is_dir():
        return clips.load(ClipName(model=f"local-dir:{folder / 'clip'}", pretrained=None))
    return fake.load_clip(folder / "clip", dim=128, width=128)


def command(folder, name, protocol):
    arguments = ["zeroshot", name, "--run", folder / "run", "--features", folder / name]
    arguments += ["--protocol", protocol, "--device", "cpu", *fake.named(folder / name).words]
    return [*BIEFF, *map(str, arguments)]


def start(folder, name, protocol):
    """Start the command; its own children's peak memory is written when it ends."""
    return subprocess.Popen(
        [sys.executable, "-c", MEASURED, folder / "peak", *command(folder, name, protocol)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def finish(process, folder):
    """Wait for it; returns what it printed, what it said, and its peak memory in bytes."""
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, err
    return out, err, 1024 * int((folder / "peak").read_text())


def frozen_right(store, categories):
    """How many usable videos of these classes frozen CLIP names, in float64, all at once."""
    classes = (
        class_embeddings(tiny(store.path.parent), store.class_names, "one")
        .double()
        .numpy()[categories]
    )
    part = store.partitions["all"]
    rows = np.setdiff1d(np.flatnonzero(np.isin(part.labels, categories)), BAD)
    frames = part.read(rows)[:, 0].astype(np.float64)
    frames /= np.linalg.norm(frames, axis=-1, keepdims=True)
    best = (frames.mean(axis=1) @ classes.T).argmax(axis=1)
    return int((categories[best] == part.labels[rows]).sum())


@pytest.mark.parametrize("name", list(SIZES))
@pytest.mark.parametrize("protocol", ["splits3", "full", "half10"])
def test_every_video_of_the_official_lists(made, name, protocol):
    out, err, peak = finish(start(made, name, protocol), made)
    ours, beside = [
        result
        for result in load_results(made / "run" / "results.json")
        if (result.dataset, result.protocol) == (name, protocol)
    ]
    store = FeatureStore.open(made / name)
    listed = [part.n_listed for part in ours.lists]
    assert [part.n_listed for part in beside.lists] == listed
    assert sum(listed) == ours.n_listed == sum(part.n_listed for part in ours.classes)
    num_classes = len(store.class_names)
    if protocol == "splits3":
        assert listed == TESTS[name]
    elif protocol == "full":
        assert listed == [SIZES[name]]
        assert ours.n_undecodable == len(BAD)
        assert beside.lists[0].n_top1 == frozen_right(store, np.arange(num_classes))
    else:
        halves = [half_of(num_classes, draw) for draw in range(10)]
        labels = store.partitions["all"].labels
        assert listed == [int(np.isin(labels, half).sum()) for half in halves]
        assert [part.n_top1 for part in beside.lists] == [
            frozen_right(store, half) for half in halves
        ]
    assert f"{name}, {protocol} (" in out
    estimates = re.findall(r"of [\d,]+ videos, about \d+ min left", err)
    assert estimates or (name, protocol) != ("ucf101", "half10")  # the one of some minutes
    assert peak < MEMORY


def test_a_killed_evaluation_goes_on(made):
    """SIGKILL, as a cluster does it; the figures are those of one that was left alone."""
    results = made / "run" / "results.json"
    results.unlink(missing_ok=True)
    begun = time.monotonic()
    finish(start(made, "hmdb51", "full"), made)
    whole = time.monotonic() - begun
    straight = results.read_bytes()
    results.unlink()
    process = start(made, "hmdb51", "full")
    kept = made / "run" / "partial"
    wait_for(lambda: len(list(kept.rglob("*.npz"))) >= 3, process, seconds=SECONDS)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not results.exists()
    scored = sum(
        len(values) for file in kept.rglob("*.npz") for values in np.load(file).values()
    )
    assert SIZES["hmdb51"] < scored < 2 * SIZES["hmdb51"]  # frozen CLIP's, and some of ours
    finish(start(made, "hmdb51", "full"), made)
    assert results.read_bytes() == straight
    assert not kept.exists()
    print(f"{whole:.1f} s in one go, {scored:,} of {2 * SIZES['hmdb51']:,} scores were kept")


def test_a_full_size_text_tower(tmp_path):
    """ViT-B/16 of random weights, and the first 200 videos of UCF-101."""
    clip = clips.load(ClipName(model="ViT-B-16-quickgelu", pretrained="random"))
    write_official(tmp_path / "ucf101", "ucf101", clip, limit=200)
    write_run(tmp_path, clip)
    process = start(tmp_path, "ucf101", "full")
    out, _, peak = finish(process, tmp_path)
    ours, beside = load_results(tmp_path / "run" / "results.json")
    assert (ours.dataset, ours.n_listed, ours.n_evaluated) == ("ucf101-first-200", 200, 199)
    assert (ours.lists[0].n_classes, beside.n_evaluated) == (101, 199)
    assert "ucf101-first-200, full (every video, 101 classes)" in out
    # 0.6e9 of weights, and as much while they load; 1e9 of the text tower's rows
    assert peak < 4e9
