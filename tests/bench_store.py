"""Random batches of 32 videos: a np.memmap a shard, one of all the same bytes, zarr.

    python tests/bench_store.py [--videos N] [--folder DIR]

Prints a line for each shape of a row, and last one JSON object with the lowest ratios.
"""

import argparse
import json
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import zarr

from bieff.features.schema import PartitionPlan, ShardData, Video
from bieff.features.store import FeatureStore, Partition

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


def seconds_a_video(
    read: Callable[[np.ndarray], np.ndarray], batches: list[np.ndarray]
) -> float:
    begin = time.perf_counter()
    for rows in batches:
        read(rows)
    return (time.perf_counter() - begin) / sum(map(len, batches))


def measure(folder: Path, num: int, shape: tuple[int, int, int]) -> tuple[float, float]:
    """Speed of the store's maps as a multiple of one large map's and of zarr's."""
    partition, raw = fill(folder, num, shape)
    array = zarr.open_array(partition.path / "embeddings", mode="r")
    rng = np.random.default_rng(1)
    batches = [rng.integers(0, num, BATCH) for _ in range(BATCHES)]
    for rows in batches:  # everything mapped, and equal
        assert partition.read(rows).tobytes() == raw[rows].tobytes()
    assert array.oindex[batches[0]].tobytes() == raw[batches[0]].tobytes()
    mapped, plain, fancy = [], [], []
    for _ in range(ROUNDS):  # by turns, so that a busy machine slows all alike
        mapped.append(seconds_a_video(partition.read, batches))
        plain.append(seconds_a_video(lambda rows: raw[rows], batches))
        fancy.append(seconds_a_video(lambda rows: array.oindex[rows], batches[:2]))
    ratios = [b / a for a, b in zip(mapped, plain, strict=True)]
    medians = [statistics.median(values) for values in (mapped, plain, fancy)]
    print(
        f"{commit()} store (V, T, D)={shape} N={num} batch={BATCH} float16"
        f" | {platform.machine()} numpy {np.__version__} zarr {zarr.__version__}"
        f" | median {', '.join(f'{1 / median:,.0f}' for median in medians)} videos/s"
        " (a map a shard, one map, zarr)"
        f" | shards/one {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}"
        f" | shards/zarr {medians[2] / medians[0]:.0f}"
    )
    return statistics.median(ratios), medians[2] / medians[0]


def commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "no commit"


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
    print(
        json.dumps(
            {"bench": "store", "vs_memmap": round(memmap, 3), "vs_zarr": round(fancy, 1)}
        )
    )


if __name__ == "__main__":
    main()
