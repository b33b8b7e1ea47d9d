"""Random batches of 32 videos: a np.memmap a shard, one of all the same bytes, zarr.

    python tests/bench_store.py [--videos N] [--folder DIR]

Prints a line for each shape of a row, and last one JSON object with the lowest ratios.
"""

import argparse
import json
import platform
import statistics
import tempfile
from pathlib import Path

import numpy as np
import zarr

from bieff.apps.bench.timing import once
from bieff.features.schema import PartitionPlan, ShardData, Video
from bieff.features.store import FeatureStore, Partition
from bieff.train.runs.run import commit

BATCH, BATCHES, ROUNDS = 32, 100, 7
SHAPES = ((1, 8, 512), (1, 32, 512), (3, 32, 512))
"""(V, T, D): a view of 8 or 32 frames, and the three views of the paper's evaluation."""


def fill(folder: Path, num: int, shape: tuple[int, int, int]) -> tuple[Partition, np.memmap]:
    """A finished store, and the same rows in one plain file."""
    views, frames, dim = shape
    videos = [Video(id=str(i), path=f"{i}.mp4", label=0) for i in range(num)]
    partition = FeatureStore.create(
        folder / "store",
        recipe={"frames": frames, "dim": dim},
        class_names=["a"],
        partitions={"train": PartitionPlan(videos=videos, num_views=views)},
        versions={},
    ).partitions["train"]
    raw = np.memmap(folder / "raw", np.float16, mode="w+", shape=(num, *shape))
    rng = np.random.default_rng(0)
    for shard in range(partition.num_shards):
        rows = partition.geometry.rows(shard)
        values = rng.standard_normal((len(rows), *shape), dtype=np.float32).astype(np.float16)
        numbers = np.zeros(values.shape[:3], np.int32)
        data = ShardData(values, numbers, np.ones(len(rows), np.uint8))
        partition.write_shard(shard, data, errors=[], seconds={})
        raw[rows.start : rows.stop] = values
    raw.flush()
    return partition, np.memmap(folder / "raw", np.float16, mode="r", shape=(num, *shape))


def measure(folder: Path, num: int, shape: tuple[int, int, int]) -> tuple[float, float]:
    """Speed of the store's maps as a multiple of one large map's and of zarr's."""
    partition, raw = fill(folder, num, shape)
    array = zarr.open_array(partition.path / "embeddings", mode="r")
    rng = np.random.default_rng(1)
    batches = [rng.integers(0, num, BATCH) for _ in range(BATCHES)]
    for rows in batches:  # everything mapped, and equal
        assert partition.read(rows).tobytes() == raw[rows].tobytes()
    assert array.oindex[batches[0]].tobytes() == raw[batches[0]].tobytes()
    ways = {
        "shards": (partition.read, batches),
        "one map": (raw.__getitem__, batches),
        "zarr": (array.oindex.__getitem__, batches[:2]),
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(ROUNDS):  # by turns, so that a busy machine slows all alike
        for way, (read, some) in ways.items():
            taken = once(lambda read=read, some=some: [read(rows) for rows in some])
            times[way].append(taken / sum(map(len, some)))
    ratios = [b / a for a, b in zip(times["shards"], times["one map"], strict=True)]
    mapped, plain, fancy = (statistics.median(values) for values in times.values())
    print(
        f"{commit()} store (V, T, D)={shape} N={num} batch={BATCH} float16"
        f" | {platform.machine()} numpy {np.__version__} zarr {zarr.__version__}"
        f" | median {1 / mapped:,.0f}, {1 / plain:,.0f}, {1 / fancy:,.0f} videos/s"
        f" ({', '.join(ways)})"
        f" | shards/one {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}"
        f" | shards/zarr {fancy / mapped:.0f}"
    )
    return statistics.median(ratios), fancy / mapped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=2048)
    parser.add_argument("--folder", type=Path, help="where to write some 800 MB; default: /tmp")
    options = parser.parse_args()
    results = []
    for shape in SHAPES:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            results.append(measure(Path(folder), options.videos, shape))
    memmap, fancy = (min(values) for values in zip(*results, strict=True))
    figures = {"vs_memmap": round(memmap, 3), "vs_zarr": round(fancy, 1)}
    print(json.dumps({"bench": "store", **figures}))


if __name__ == "__main__":
    main()
