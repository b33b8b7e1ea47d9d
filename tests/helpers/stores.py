"""Small stores, and what tests do to them in processes of their own.

python -m helpers.stores FUNCTION ARGUMENT...
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import zarr
from helpers.places import TESTS

from bieff.features.hdf5 import import_hdf5
from bieff.features.schema import PartitionPlan, ShardData, Status, Video, VideoError
from bieff.features.store import FeatureStore, Partition

V, T, D, NUM, ROWS = 2, 3, 101, 31, 4
MANY = 260_000


def run(function, *arguments):
    """One of the functions below in a process: its exit code, output and errors."""
    command = [sys.executable, "-m", "helpers.stores", function, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=TESTS)
    return done.returncode, done.stdout, done.stderr


def content(folder):
    """All files of a store but its lock."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != ".lock"
    }


def through_zarr(partition: Partition, rows, views=None, frames=None, *, name="embeddings"):
    """What `Partition.read` gives, through zarr, which looks at every row's checksum."""
    array = zarr.open_array(partition.path / name, mode="r", zarr_format=3)
    if isinstance(rows, slice):
        rows = range(partition.num_videos)[rows]
    index = (np.asarray(rows), views or slice(None), frames or slice(None))
    return np.asarray(array.oindex[(*index, *(slice(None),) * (array.ndim - 3))])


def plan(path):
    videos = [Video(id=f"v{i}", path=f"{i}.mp4", label=i % 2) for i in range(NUM)]
    return FeatureStore.create(
        Path(path),
        recipe={"frames": T, "dim": D},
        class_names=["a", "b"],
        partitions={"train": PartitionPlan(videos=videos, num_views=V, rows_per_shard=ROWS)},
        versions={},
    )


def write_all(path):
    """Plan the store and write all that is pending, as an extraction would."""
    store = plan(path)
    partition = store.partitions["train"]
    with store.exclusive():
        for shard in partition.pending():
            rng = np.random.default_rng(shard)
            rows = partition.geometry.rows(shard)
            status = np.full(len(rows), int(Status.OK), np.uint8)
            status[0] = Status.TIMEOUT
            data = ShardData(
                rng.normal(size=(len(rows), V, T, D)).astype("f2"),
                rng.integers(0, 99, (len(rows), V, T), dtype=np.int32),
                status,
            )
            error = VideoError(
                row=rows.start,
                id="x",
                path="x",
                status=Status.TIMEOUT,
                stage="decode",
                decoder="decord",
                message="?",
                attempt=1,
            )
            partition.write_shard(shard, data, errors=[error], seconds={})


def write_with_small_files(path):
    """A limit on the size of files fails as a full disk does."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
    write_all(path)


def hold(path):
    """Keep the right to write a store until the pipe closes."""
    with FeatureStore.open(Path(path)).exclusive():
        print("locked", flush=True)
        sys.stdin.read()


class Touches:
    """Counts what this process does to files, and kills it at one of them."""

    EVENTS = frozenset({"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"})

    def __init__(self, fatal=-1):
        self.count = 0
        self.fatal = int(fatal)
        sys.addaudithook(self)

    def __call__(self, event, arguments):
        if event in self.EVENTS:
            if self.count == self.fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            self.count += 1


def count_writes(path):
    """Print how many touches of files planning takes, and planning and writing together."""
    touches = Touches()
    plan(path)
    planned = touches.count
    write_all(path)
    print(json.dumps([planned, touches.count]))


def write_killed(path, moment):
    Touches(moment)
    plan(path)
    write_all(path)


def count_import(source, path):
    touches = Touches()
    import_hdf5(Path(source), Path(path))
    print(touches.count)


def import_killed(source, path, moment):
    Touches(moment)
    import_hdf5(Path(source), Path(path))


def measure_plan(path):
    """Plan a list of the size of Kinetics-400, twice; seconds and megabytes."""
    role = {"train": "train"}
    videos = [
        Video(
            id=f"{i:011d}",
            path=f"some class name/{i:011d}_000417_000427.mp4",
            label=i % 400,
            size=10**6 + i,
            splits=role,
        )
        for i in range(MANY)
    ]

    def create():
        FeatureStore.create(
            Path(path),
            recipe={"frames": 32, "dim": 512},
            class_names=[str(k) for k in range(400)],
            partitions={"train": PartitionPlan(num_views=5, videos=videos)},
            versions={},
        )

    print(json.dumps(measured("plan", create) | measured("plan again", create)))


def measure_report(path):
    """Open that store and look at its state, then read the list."""

    def report():
        partition = FeatureStore.open(Path(path)).partitions["train"]
        assert len(partition.pending()) == partition.num_shards == 508
        assert len(partition.status()) == MANY
        assert partition.labels[-1] == (MANY - 1) % 400
        row = 300 * partition.rows_per_shard + 3
        assert partition.shard_videos(300)[3].label == partition.labels[row]

    def read_all():
        assert len(FeatureStore.open(Path(path)).partitions["train"].videos) == MANY

    print(json.dumps(measured("report", report) | measured("videos", read_all)))


def measured(name, action):
    """Seconds of the processor, so that a busy machine does not matter, and memory."""
    begin, before = time.process_time(), _peak()
    action()
    seconds = round(time.process_time() - begin, 2)
    return {name: seconds, name + " MB": round(_peak() - before)}


def _peak():
    # of this process; getrusage's begins with that of the one that started it
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
