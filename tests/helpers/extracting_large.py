"""Extractions of many videos, measured in a process of their own; prints the figures as JSON.

python -m helpers.extracting_large plan STORE          260,000 videos: plan, status, resume
python -m helpers.extracting_large match               260,000 files matched with a list
python -m helpers.extracting_large soak CLIPS STORE    1,024 videos, through the whole pipeline
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import torch
from helpers import extracting

from bieff.apps.extract import DataOptions, say_status
from bieff.extract.catalogue import load
from bieff.extract.config import ExtractConfig
from bieff.extract.datasets import kinetics, official
from bieff.extract.datasets.dataset import DataSet
from bieff.extract.datasets.files import Folder
from bieff.extract.plan import plan
from bieff.extract.shapes.clips import load_shapes
from bieff.extract.tasks import RunCount, Task, summary_of
from bieff.features.schema import Video
from bieff.features.shard import FileSum, Ledger, Marker

NUM = 260_000
NUM_CLASSES = 400
SOAKED = 1024


measured = {}


def measure(name, action):
    """Note the processor's seconds and the megabytes that an action takes."""
    begin, before = time.process_time(), peak_megabytes()
    result = action()
    measured[name] = round(time.process_time() - begin, 2)
    measured[f"{name} MB"] = round(peak_megabytes() - before)
    return result


def match_many():
    """Match the files of a training set of the size of Kinetics-400 with its classes."""
    raw = [name.replace(" ", "_") for name, _ in official.class_names("k400")]
    paths = [
        f"train_256/{raw[k % NUM_CLASSES]}/{k:011d}_{k % 900:06d}_000010.mp4"
        for k in range(NUM)
    ]
    folder = Folder(Path("x"), dict.fromkeys(paths, 1))
    kinetics.scan = lambda *_, **__: folder
    train = measure("match", lambda: load("k400", videos=Path("x"))).partitions["train"]
    assert len(train) == len({video.id for video in train}) == NUM
    return measured


def plan_many(out):
    """Plan a store of that size, ask for its status, go on with it."""
    clip, config, data = extracting.tinyclip(), ExtractConfig(), many_videos(out.parent)
    store = measure("plan", lambda: plan(data, config, clip, out))
    measure("plan again", lambda: plan(data, config, clip, out))
    write_sparse_shards(store)

    said = []
    options = DataOptions(names=["k400"], out=out)
    measure("status", lambda: say_status(options, said.append))
    assert "260,000 videos" in said[1], said
    assert len(said) == 2 + 20 + 1, said

    def resume():
        again = plan(data, config, clip, out)
        pending = again.partitions["train"].pending()
        assert len(pending) == 3, pending
        tasks = {"train": [Task(partition="train", shard=shard) for shard in pending]}
        RunCount(again, tasks, max_bad=0.5, watch=lambda _: None)
        done = summary_of(again, shards_written=0, seconds=0, max_bad=None)
        assert done.num_videos == NUM
        assert len(done.bad) == 20
        return again.partitions["train"].shard_videos(pending[0])

    measure("resume", resume)
    return measured


def peak_megabytes():
    """The most memory that this process has had."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def many_videos(root):
    """A training partition of the size of Kinetics-400; no file is there."""
    videos = [
        Video(
            id=f"{i:011d}",
            path=f"some class name/{i:011d}_000417_000427.mp4",
            label=i % NUM_CLASSES,
            size=10**6 + i,
            splits={"train": "train"},
        )
        for i in range(NUM)
    ]
    return DataSet(
        name="k400",
        class_names=tuple(f"class {k}" for k in range(NUM_CLASSES)),
        partitions={"train": videos},
        root=root,
    )


def write_sparse_shards(store):
    """Markers as of an extraction but for 3 shards, over files that hold no blocks."""
    part = store.partitions["train"]
    ledger = Ledger(store.path / "ledger")
    for shard in range(part.num_shards - 3):
        files = {}
        for name, array in part.geometry.arrays.items():
            file = array.file(part.path, shard)
            file.parent.mkdir(parents=True, exist_ok=True)
            size = array.file_bytes(part.rows_per_shard)
            with file.open("wb") as empty:
                empty.truncate(size)
            files[name] = FileSum(size, "0" * 64)
        rows = part.geometry.rows(shard)
        marker = Marker(
            partition="train",
            shard=shard,
            start=rows.start,
            stop=rows.stop,
            recipe_hash=store.recipe_hash,
            files=files,
            counts={"ok": len(rows) - 1, "corrupt": 1},
            seconds={},
        )
        values = {"schema_version": 1, **{f: getattr(marker, f) for f in marker.__slots__}}
        values["files"] = {n: {"size": s.size, "sha256": s.sha256} for n, s in files.items()}
        ledger.file("train", shard).write_text(json.dumps(values))
        error = {
            **{"row": rows.start, "id": "x", "path": "x.mp4", "status": "corrupt"},
            **{"stage": "decode", "decoder": "", "message": "broken", "attempt": 1},
        }
        file = store.path / "errors" / f"train-{shard:05d}.jsonl"
        file.write_text(json.dumps(error) + "\n")


def soak(folder, out):
    """Memory, threads, files and processes after every shard of a long extraction."""
    torch.set_num_threads(1)
    data = load_shapes(extracting.SET, folder)
    some = data.partitions["all"]
    videos = [replace(some[i % len(some)], id=f"v{i}") for i in range(SOAKED)]
    store = extracting.plan_data(replace(data, partitions={"all": videos}), out, rows=32)
    seen = []
    with _Looking(seen) as runner:
        summary = extracting.extract(
            store,
            extracting.tinyclip(),
            extracting.CONFIG,
            device=extracting.CPU,
            runner=runner,
        )
    assert summary.counts == {"ok": SOAKED}, summary
    return seen


class _Looking(extracting.InProcess):
    """Looks at this process and its children after every shard."""

    def __init__(self, seen):
        super().__init__(device=extracting.CPU)
        self._seen = seen

    def run(self, *arguments):
        me = psutil.Process()
        for done in super().run(*arguments):
            family = [me, *me.children(recursive=True)]
            self._seen.append(
                {
                    "MB": sum(p.memory_info().rss for p in family) / 2**20,
                    "threads": sum(p.num_threads() for p in family),
                    "files": sum(p.num_fds() for p in family),
                    "processes": len(family) - 1,
                }
            )
            yield done


if __name__ == "__main__":
    what, *paths = sys.argv[1:]
    print(
        json.dumps(
            {"match": match_many, "plan": plan_many, "soak": soak}[what](*map(Path, paths))
        )
    )
