"""What an extraction will cost, from a few videos extracted for the trial: `--dry-run`."""

import contextlib
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bieff.clip import Clip
from bieff.extract.config import ExtractConfig
from bieff.extract.datasets.dataset import DataSet
from bieff.extract.plan import StorePlan
from bieff.extract.shard import ShardExtractor
from bieff.extract.tasks import Task
from bieff.features.schema import PartitionPlan, counted
from bieff.features.store import FeatureStore

WARM_UP = 8
"""Videos of a partition that are not timed: processes start, kernels are compiled."""

TIMED = 24
SECONDS = 30.0
"""After so many seconds no further video of the trial is begun."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PartEstimate:
    """Of one partition."""

    name: str
    num_videos: int
    num_views: int
    num_shards: int
    num_bytes: int
    """Of the store on the disk."""

    video_bytes: int
    """Of the videos that were found."""

    num_done: int
    """Videos in shards that a store there has finished."""

    seconds_per_video: float | None
    """Of the trial; None where no video was found."""

    num_tried: int

    @property
    def hours(self) -> float:
        """To do what is left."""
        return (self.num_videos - self.num_done) * (self.seconds_per_video or 0.0) / 3600

    def __str__(self) -> str:
        text = (
            f"{self.name}: {counted(self.num_videos, 'video')} x "
            f"{counted(self.num_views, 'view')}, {counted(self.num_shards, 'shard')}, "
            f"{_size(self.num_bytes)}, from {_size(self.video_bytes)} of videos"
        )
        return f"{text}; {self.num_done:,} videos are done" if self.num_done else text


def _size(num_bytes: int) -> str:
    if num_bytes < 10**9:
        return f"{num_bytes / 1e6:,.1f} MB"
    return f"{num_bytes / 1e9:,.1f} GB"


def estimate(
    data: DataSet, config: ExtractConfig, clip: Clip, out: Path, *, device: torch.device
) -> list[PartEstimate]:
    """Plan without writing, and extract a few videos of each partition into a trial store.

    The trial store lies in the system's folder for temporary files and is removed.
    """
    planned = StorePlan.of(data, config, clip)
    geometries = planned.geometries()
    done = _num_done(planned, out)
    found = []
    with ShardExtractor(clip, config, device=device) as extractor:
        for name, plan in planned.partitions.items():
            tried, seconds = _trial(planned, name, extractor)
            geometry = geometries[name]
            shard_bytes = sum(
                array.file_bytes(geometry.rows_per_shard) for array in geometry.arrays.values()
            )
            part = PartEstimate(
                name=name,
                num_videos=len(plan.videos),
                num_views=plan.num_views,
                num_shards=geometry.num_shards,
                num_bytes=shard_bytes * geometry.num_shards,
                video_bytes=sum(video.size for video in plan.videos),
                num_done=done.get(name, 0),
                seconds_per_video=seconds / tried if tried else None,
                num_tried=tried,
            )
            found.append(part)
    return found


def estimate_lines(parts: Sequence[PartEstimate], out: Path, device: torch.device) -> list[str]:
    """The lines of `--dry-run` on one data set."""
    tried = sum(part.num_tried for part in parts)
    hours = sum(part.hours for part in parts)
    minutes = counted(max(1, round(60 * hours)), "minute")
    duration = f"{hours:,.1f} hours" if hours >= 1 else minutes
    if tried:
        videos = counted(tried, "video")
        how = f"about {duration} on {device} of this machine, from {videos} tried now"
    elif any(part.video_bytes for part in parts):
        how = "no estimate of hours: none of the videos tried can be used"
    else:
        how = "no estimate of hours: no video is there to try"
    return [f"{out}: nothing written", *(f"  {part}" for part in parts), f"  {how}"]


def _trial(planned: StorePlan, name: str, extractor: ShardExtractor) -> tuple[int, float]:
    """Videos that were timed, and the seconds they took."""
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
