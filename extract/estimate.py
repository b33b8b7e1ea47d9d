"""Cost of an extraction, from a few videos extracted for the trial: `--dry-run`."""

import contextlib
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from bieff.clip import Clip
from bieff.extract.config import ExtractConfig
from bieff.extract.datasets.dataset import DataSet
from bieff.extract.plan import StorePlan
from bieff.extract.shard import ShardExtractor
from bieff.extract.tasks import Task
from bieff.features.check import size
from bieff.features.schema import Geometry, PartitionPlan, counted
from bieff.features.store import FeatureStore

WARM_UP = 8
"""Videos of a partition that are not timed: processes start, kernels are compiled."""

TIMED = 24
SECONDS = 30.0
"""After so many seconds no further video of the trial is begun."""


def estimate_lines(
    data: DataSet, config: ExtractConfig, clip: Clip, out: Path, *, device: torch.device
) -> list[str]:
    """The lines of `--dry-run`: what would be written, its size and the hours.

    A few videos of each partition are extracted into a trial store, which lies in the system's
    folder for temporary files and is removed.
    """
    planned = StorePlan.of(data, config, clip).going_on(out)
    num_done = _num_done(planned, out)
    geometries = planned.geometries()
    lines, tried, hours = [], 0, 0.0
    with ShardExtractor(clip, config, device=device) as extractor:
        for name, plan in planned.partitions.items():
            done = num_done.get(name, 0)
            timed, seconds = _trial(planned, name, extractor)
            tried += timed
            hours += (len(plan.videos) - done) * seconds / max(timed, 1) / 3600
            lines.append(f"  {name}: {_part_line(plan, geometries[name], done)}")
    minutes = counted(max(1, round(60 * hours)), "minute")
    duration = f"{hours:,.1f} hours" if hours >= 1 else minutes
    if tried:
        videos = counted(tried, "video")
        how = f"about {duration} on {device} of this machine, from {videos} tried now"
    elif any(video.size for plan in planned.partitions.values() for video in plan.videos):
        how = "no estimate of hours: none of the videos tried can be used"
    else:
        how = "no estimate of hours: no video is there to try"
    return [f"{out}: nothing written", *lines, f"  {how}"]


def _part_line(plan: PartitionPlan, geometry: Geometry, num_done: int) -> str:
    arrays = geometry.arrays.values()
    shard_bytes = sum(array.file_bytes(geometry.rows_per_shard) for array in arrays)
    text = (
        f"{counted(len(plan.videos), 'video')} x {counted(plan.num_views, 'view')}, "
        f"{counted(geometry.num_shards, 'shard')}, {size(shard_bytes * geometry.num_shards)}, "
        f"from {size(sum(video.size for video in plan.videos))} of videos"
    )
    return f"{text}; {num_done:,} videos are done" if num_done else text


def _trial(planned: StorePlan, name: str, extractor: ShardExtractor) -> tuple[int, float]:
    plan = planned.partitions[name]
    there = [video for video in plan.videos if video.size]
    count = min(WARM_UP + TIMED, len(there))
    if count < 2:
        return 0, 0.0
    spread = [there[i * len(there) // count] for i in range(count)]
    few = PartitionPlan(
        videos=spread, num_views=plan.num_views, rows_per_shard=min(WARM_UP, count // 2)
    )
    trial = replace(planned, partitions={name: few})
    with tempfile.TemporaryDirectory(prefix="bieff-trial-") as folder:
        store = trial.write(Path(folder) / "store")
        start = time.monotonic()
        tasks = (
            Task(partition=name, shard=shard)
            for shard in range(store.partitions[name].num_shards)
            if time.monotonic() - start < SECONDS
        )
        timed, began, ended = 0, start, start
        with contextlib.closing(extractor.extract(store, tasks, report=lambda _: None)) as done:
            for shard in done:
                ended = time.monotonic()
                if shard.task.shard == 0:
                    began = ended
                else:
                    timed += sum(shard.counts.values())
    return timed, ended - began


def _num_done(planned: StorePlan, out: Path) -> dict[str, int]:
    """Videos in finished shards of a store that lies there already.

    Raises:
        StoreMismatchError: If another store lies there; shows the differences.
    """
    if not (out / "zarr.json").is_file():
        return {}
    store = FeatureStore.open(out, expect=planned.recipe)
    return {
        name: sum(len(part.geometry.rows(shard)) for shard in part.done().nonzero()[0].tolist())
        for name, part in store.partitions.items()
    }
