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
from bieff.features.schema import PartitionPlan, Video, counted
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

    def __str__(self) -> str:
        text = (
            f"{self.name}: {counted(self.num_videos, 'video')} x "
            f"{counted(self.num_views, 'view')}, {counted(self.num_shards, 'shard')}, "
            f"{_size(self.num_bytes)}, from {_size(self.video_bytes)} of videos"
        )
        return f"{text}; {self.num_done:,} videos are done" if self.num_done else text

    @property
    def hours(self) -> float:
        """To do what is left."""
        return (self.num_videos - self.num_done) * (self.seconds_per_video or 0.0) / 3600


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
            sizes = [
                array.file_bytes(geometry.rows_per_shard) for array in geometry.arrays.values()
            ]
            found.append(
                PartEstimate(
                    name=name,
                    num_videos=len(plan.videos),
                    num_views=plan.num_views,
                    num_shards=geometry.num_shards,
                    num_bytes=sum(sizes) * geometry.num_shards,
                    video_bytes=sum(video.size for video in plan.videos),
                    num_done=done.get(name, 0),
                    seconds_per_video=seconds / tried if tried else None,
                    num_tried=tried,
                )
            )
    return found


def estimate_lines(parts: Sequence[PartEstimate], out: Path, device: torch.device) -> list[str]:
    """The lines of `--dry-run` on one data set."""
    tried = sum(part.num_tried for part in parts)
    hours = sum(part.hours for part in parts)
    duration = (
        f"{hours:,.1f} hours" if hours >= 1 else counted(max(1, round(60 * hours)), "minute")
    )
    how = (
        f"about {duration} on {device} of this machine, from {counted(tried, 'video')} tried "
        "now"
        if tried
        else "no estimate of hours: none of the videos tried can be used"
        if any(part.video_bytes for part in parts)
        else "no estimate of hours: no video is there to try"
    )
    return [f"{out}: nothing written", *(f"  {part}" for part in parts), f"  {how}"]


def _trial(planned: StorePlan, name: str, extractor: ShardExtractor) -> tuple[int, float]:
    """Videos that were timed, and the seconds they took."""
    plan = planned.partitions[name]
    videos = _spread([video for video in plan.videos if video.size], WARM_UP + TIMED)
    if len(videos) < 2:
        return 0, 0.0
    warm_up = min(WARM_UP, len(videos) // 2)
    trial = replace(
        planned,
        partitions={
            name: PartitionPlan(videos=videos, num_views=plan.num_views, rows_per_shard=warm_up)
        },
    )
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


def _spread(videos: Sequence[Video], count: int) -> list[Video]:
    """Some of the videos, evenly over the list."""
    count = min(count, len(videos))
    return [videos[i * len(videos) // count] for i in range(count)]


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
