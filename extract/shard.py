"""One shard of a store, from files to rows: decode, cut, encode, write.

n videos of the shard, V views, T frames a view, D joint width, P patches of width U.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from bieff.clip import Clip
from bieff.extract.config import ExtractConfig
from bieff.extract.preprocess import cut
from bieff.extract.tower import VisualTower
from bieff.extract.views import View, ViewPlan, crop_of
from bieff.extract.workers import DecodePool, Job, Outcome
from bieff.features.schema import ShardData, Status, Video, VideoError
from bieff.features.store import FeatureStore, Partition

Watch = Callable[[Status], None]
"""Called after every video."""

BATCH = {"cuda": 512, "cpu": 64}
"""Squares a batch of the tower, by kind of device."""


class ShardExtractor:
    """A visual tower and a pool of decoders, kept alive from shard to shard.

    Use as a context manager; the decoders are killed at its end.
    """

    def __init__(self, clip: Clip, config: ExtractConfig, *, device: torch.device) -> None:
        self.tower = VisualTower(
            clip,
            device=device,
            batch_size=config.batch_size or BATCH.get(device.type, 64),
            wants_patches=config.context == "patches",
        )
        self._pool = DecodePool(
            config.decoders or len(os.sched_getaffinity(0)), deadline=config.deadline
        )

    def __enter__(self) -> "ShardExtractor":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.close()

    def extract(
        self,
        store: FeatureStore,
        partition: Partition,
        shard: int,
        *,
        retry_failed: bool = False,
        watch: Watch,
    ) -> Mapping[Status, int]:
        """Write one shard; returns how many of its videos have which status.

        Args:
            store: The caller holds the right to write it.
            partition: Of the store.
            shard: Number of the shard.
            retry_failed: Keep the rows that are there, and try only the failed ones again.
            watch: Told of every video that is tried.
        """
        start = time.monotonic()
        videos = partition.shard_videos(shard)
        first_row = shard * partition.rows_per_shard
        data, errors = _empty(partition, len(videos)), []
        wanted = list(range(len(videos)))
        if retry_failed and partition.marker(shard) is not None:
            data = partition.read_shard(shard)
            wanted = [i for i in wanted if Status(int(data.status[i])).failed]
            rows = partition.geometry.rows(shard)
            errors = [e for e in partition.errors() if e.row in rows and not e.status.failed]
        views = tuple(View.from_json(v) for v in store.recipe["views"][partition.name])
        plans = {i: ViewPlan(views, partition.num_frames, videos[i].id) for i in wanted}
        jobs = [
            Job(row=i, path=str(Path(store.root) / videos[i].path), choose=plans[i])
            for i in wanted
        ]
        stream = _Stream(self.tower, partition.num_frames)
        waiting = 0.0
        outcomes = in_order(self._pool.decode(jobs), wanted)
        before = time.monotonic()
        for outcome in outcomes:
            waiting += time.monotonic() - before
            i, video = outcome.row, videos[outcome.row]
            data.status[i] = outcome.status
            if outcome.status.usable:
                data.frames[i] = plans[i](outcome.num_frames)
                stream.add(i, self._squares(outcome, data.frames[i], views, video.id))
            if outcome.status is not Status.OK:
                errors.append(_error(outcome, video, first_row + i))
            watch(outcome.status)
            before = time.monotonic()
        stream.finish(data)
        errors += _refuse_overflow(data, videos, first_row)
        seconds = {"total": time.monotonic() - start, "waiting_for_decoders": waiting}
        partition.write_shard(
            shard, data, errors=errors, seconds={k: round(v, 3) for k, v in seconds.items()}
        )
        return Counter(Status(int(value)) for value in data.status)

    def _squares(
        self, outcome: Outcome, numbers: np.ndarray, views: Sequence[View], video_id: str
    ) -> UInt8[Tensor, "VT 3 size size"]:
        """The squares of all views of a video, view by view, on the tower's device."""
        assert outcome.frames is not None
        frames = torch.from_numpy(outcome.frames)
        if self.tower.device.type == "cuda":
            frames = frames.pin_memory().to(self.tower.device, non_blocking=True)
        height, width = frames.shape[1:3]
        size = self.tower.preprocessing.size
        parts = []
        for view, shown in zip(views, numbers, strict=True):
            places = torch.from_numpy(outcome.places(shown)).to(frames.device)
            crop = crop_of(view, height, width, size, video_id=video_id)
            parts.append(cut(frames[places], crop))
        return torch.cat(parts)


class _Stream:
    """Squares of many videos on their way through the tower, in full batches.

    The order of the squares decides which of them share a batch, and so the last bits of
    their embeddings: callers add videos in the order of rows, whatever order they come in.
    """

    def __init__(self, tower: VisualTower, num_frames: int) -> None:
        self._tower = tower
        self._num_frames = num_frames
        self._rows: list[int] = []
        self._waiting: list[Tensor] = []
        self._embeddings: list[Tensor] = []
        self._patches: list[Tensor] = []

    def add(self, row: int, squares: UInt8[Tensor, "VT 3 size size"]) -> None:
        """Take the squares of a video's views; encode as many as fill batches."""
        self._rows.append(row)
        self._waiting.append(squares)
        # whole views of whole batches, so that patches can be averaged over time at once
        batch = self._tower.batch_size * self._num_frames
        if sum(len(part) for part in self._waiting) >= batch or not self._tower.wants_patches:
            self._encode(full_batches_only=True)

    def _encode(self, *, full_batches_only: bool) -> None:
        squares = torch.cat(self._waiting)
        size = self._tower.batch_size * (self._num_frames if self._tower.wants_patches else 1)
        count = len(squares) // size * size if full_batches_only else len(squares)
        self._waiting = [squares[count:]]
        if not count:
            return
        encoded = self._tower.encode(squares[:count])
        self._embeddings.append(encoded.embeddings.half())
        if encoded.patches is not None:
            views = encoded.patches.unflatten(0, (-1, self._num_frames))
            self._patches.append(views.mean(dim=1).half())

    def finish(self, data: ShardData) -> None:
        """Encode what is left, and put everything into the rows it belongs to."""
        if not self._rows:
            return
        self._encode(full_batches_only=False)
        shape = (len(self._rows), *data.embeddings.shape[1:])
        data.embeddings[self._rows] = torch.cat(self._embeddings).cpu().numpy().reshape(shape)
        if data.patches is not None:
            shape = (len(self._rows), *data.patches.shape[1:])
            data.patches[self._rows] = torch.cat(self._patches).cpu().numpy().reshape(shape)


def in_order(outcomes: Iterable[Outcome], rows: Iterable[int]) -> Iterator[Outcome]:
    """Outcomes in the order of `rows`, whatever order they come in."""
    early: dict[int, Outcome] = {}
    source = iter(outcomes)
    for row in rows:
        while row not in early:
            outcome = next(source)
            early[outcome.row] = outcome
        yield early.pop(row)


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


def _refuse_overflow(
    data: ShardData, videos: Sequence[Video], first_row: int
) -> list[VideoError]:
    """Mark videos whose embeddings do not fit float16 as corrupt, and say so."""
    errors = []
    for i in range(len(videos)):
        if not Status(int(data.status[i])).usable or np.isfinite(data.embeddings[i]).all():
            continue
        data.status[i] = Status.CORRUPT
        errors.append(
            VideoError(
                row=first_row + i,
                id=videos[i].id,
                path=videos[i].path,
                status=Status.CORRUPT,
                stage="encode",
                decoder="",
                message="its embeddings are not finite in float16",
                attempt=1,
            )
        )
    return errors


def _error(outcome: Outcome, video: Video, row: int) -> VideoError:
    return VideoError(
        row=row,
        id=video.id,
        path=video.path,
        status=outcome.status,
        stage="find" if outcome.status is Status.MISSING else "decode",
        decoder=outcome.decoder,
        message=outcome.message,
        attempt=outcome.attempt,
    )
