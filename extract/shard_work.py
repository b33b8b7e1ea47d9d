"""A shard under way: which of its videos are wanted, what has come of them, and its rows.

n videos of the shard, V views, T frames a view, D joint width, P patches of width U.
"""

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bieff.extract.jobs import Outcome
from bieff.extract.stream import SquareStream
from bieff.extract.tasks import Task, Update
from bieff.extract.tower import VisualTower
from bieff.extract.views import View, ViewPlan
from bieff.features.error_log import read_errors
from bieff.features.schema import ShardData, Status, Video, VideoError
from bieff.features.store import FeatureStore, Partition


@dataclass(kw_only=True, slots=True, eq=False)
class ShardWork:
    """One shard, from its first video to its marker."""

    task: Task
    partition: Partition
    root: str
    videos: Sequence[Video]
    views: tuple[View, ...]
    data: ShardData
    wanted: Sequence[int]
    """Places in the shard of the videos to decode; all, unless failed ones are retried."""

    plans: Mapping[int, ViewPlan]
    stream: SquareStream
    errors: list[VideoError] = field(default_factory=list)
    num_taken: int = 0
    num_bad: int = 0
    num_images: int = 0
    waiting: float = 0.0
    """Seconds in which the tower had nothing to do."""

    busy: float = 0.0
    """Seconds of cutting and encoding."""

    began: float = field(default_factory=time.monotonic)

    @classmethod
    def begin(cls, store: FeatureStore, task: Task, tower: VisualTower) -> "ShardWork":
        """Read what is asked of the shard; retried, also what it holds."""
        partition = store.partitions[task.partition]
        videos = partition.shard_videos(task.shard)
        wanted: list[int] = list(range(len(videos)))
        data, errors = _empty(partition, len(videos)), []
        if task.retry_failed and partition.marker(task.shard) is not None:
            data = partition.read_shard(task.shard)
            wanted = [i for i in wanted if Status(int(data.status[i])).failed]
            _, file = partition.shard_files(task.shard)
            errors = [error for error in read_errors(file) if not error.status.failed]
        views = tuple(View.from_json(v) for v in store.recipe["views"][partition.name])
        return cls(
            task=task,
            partition=partition,
            root=store.root,
            videos=videos,
            views=views,
            data=data,
            wanted=wanted,
            plans={i: ViewPlan(views, partition.num_frames, videos[i].id) for i in wanted},
            stream=SquareStream(tower, partition.num_frames),
            errors=errors,
        )

    def path(self, i: int) -> str:
        """Where a video of the shard lies."""
        return os.fspath(Path(self.root) / self.videos[i].path)

    def note(self, i: int, outcome: Outcome) -> None:
        """Write down what became of a video."""
        self.data.status[i] = outcome.status
        if outcome.status is not Status.OK:
            stage = "find" if outcome.status is Status.MISSING else "decode"
            self.errors.append(
                self._error(
                    i,
                    outcome.status,
                    stage,
                    outcome.message,
                    decoder=outcome.decoder,
                    attempt=outcome.attempt,
                )
            )

    def count(self, status: Status, *, waiting: float, busy: float) -> None:
        """Count a video that was dealt with, and the seconds it took."""
        if not self.num_taken:
            self.began = time.monotonic() - waiting - busy
        self.num_taken += 1
        self.num_bad += status.failed
        if status.usable:
            self.num_images += len(self.views) * self.partition.num_frames
        self.waiting += waiting
        self.busy += busy

    @property
    def is_taken(self) -> bool:
        """Whether every wanted video was dealt with."""
        return self.num_taken == len(self.wanted)

    @property
    def update(self) -> Update:
        """How far it is."""
        return Update(
            partition=self.task.partition,
            shard=self.task.shard,
            videos=self.num_taken,
            bad=self.num_bad,
            images=self.num_images,
            seconds=self.waiting + self.busy,
            waiting=self.waiting,
        )

    def write(self) -> dict[str, int]:
        """Write all rows, then the marker; returns the shard's videos by status.

        Raises:
            StoreError: If the disk is full, or did not keep what was written.
        """
        self.stream.fill(self.data)
        self._refuse_overflow()
        seconds = {
            "total": time.monotonic() - self.began,
            "waiting for decoders": self.waiting,
            "cutting and encoding": self.busy,
        }
        self.partition.write_shard(
            self.task.shard,
            self.data,
            errors=sorted(self.errors, key=lambda error: error.row),
            seconds={name: round(value, 3) for name, value in seconds.items()},
        )
        counts = Counter(Status(int(value)).name.lower() for value in self.data.status)
        return dict(counts)

    def _refuse_overflow(self) -> None:
        """Mark videos whose embeddings do not fit float16 as corrupt, and say so."""
        for i in self.wanted:
            if not Status(int(self.data.status[i])).usable:
                continue
            rows = [self.data.embeddings[i]]
            if self.data.patches is not None:
                rows.append(self.data.patches[i])
            if not all(np.isfinite(row).all() for row in rows):
                self.data.status[i] = Status.CORRUPT
                message = "its embeddings are not finite in float16"
                self.errors.append(self._error(i, Status.CORRUPT, "encode", message))

    def _error(
        self,
        i: int,
        status: Status,
        stage: str,
        message: str,
        *,
        decoder: str = "",
        attempt: int = 1,
    ) -> VideoError:
        return VideoError(
            row=self.partition.geometry.rows(self.task.shard).start + i,
            id=self.videos[i].id,
            path=self.videos[i].path,
            status=status,
            stage=stage,
            decoder=decoder,
            message=message,
            attempt=attempt,
        )


def _empty(partition: Partition, count: int) -> ShardData:
    views, frames = partition.num_views, partition.num_frames
    patches = partition.geometry.patches
    return ShardData(
        embeddings=np.full((count, views, frames, partition.dim), np.nan, np.float16),
        frames=np.full((count, views, frames), -1, np.int32),
        status=np.zeros(count, np.uint8),
        patches=None
        if patches is None
        else np.full((count, views, *patches), np.nan, np.float16),
    )
