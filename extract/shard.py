"""Shards of a store, from files to rows: decode, cut, encode, write.

n videos of the shard, V views, T frames a view, D joint width, P patches of width U.
"""

import contextlib
import math
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from bieff.clip import Clip, Preprocessing
from bieff.extract.config import ExtractConfig
from bieff.extract.decode.pool import DecodePool, Job, Outcome
from bieff.extract.decode.segments import Segment
from bieff.extract.plan import versions_here
from bieff.extract.sources.tars import member_at
from bieff.extract.sources.urls import url_of
from bieff.extract.tasks import Done, Task, Update
from bieff.extract.tower import CropStream, VisualTower, cut
from bieff.extract.views import View, ViewPlan, crop_of
from bieff.features.files import ShardLocks
from bieff.features.schema import ShardData, Status, Video, VideoError
from bieff.features.shard import read_errors
from bieff.features.store import FeatureStore, Partition

BATCH = {"cuda": 512, "cpu": 64}
"""Crops a batch of the tower, by kind of device."""

DECODE = "bieff.extract.decode.reader:decode_video"

EARLY_BYTES = 128 * 2**20
"""Frames held, for each decoder, while a video before them is still being decoded."""


CUT_BYTES = 256 * 2**20
"""Most that the frames which are resized at once take; ordinary videos stay below it."""


class ShardExtractor:
    """A visual tower and a pool of decoders, kept alive from shard to shard.

    Use as a context manager; the decoders are killed at its end.
    """

    def __init__(
        self, clip: Clip, config: ExtractConfig, *, device: torch.device, decode: str = DECODE
    ) -> None:
        self.tower = VisualTower(
            clip,
            device=device,
            batch_size=config.batch_size or BATCH.get(device.type, 64),
            wants_patches=config.context == "patches",
        )
        decoders = config.decoders or len(os.sched_getaffinity(0))
        self._early_bytes = EARLY_BYTES * max(decoders, 2)
        self._pool = DecodePool(decoders, deadline=config.deadline, decode=decode)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="shard writer")

    def __enter__(self) -> "ShardExtractor":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill the decoders; a shard that is being written is finished first."""
        self._pool.close()
        self._writer.shutdown()

    def extract(
        self, store: FeatureStore, tasks: Iterable[Task], *, report: Callable[[Update], None]
    ) -> Generator[Done, None, None]:
        """Write shards; yields each when its marker is on the disk.

        Decoding goes on across the end of a shard, and a shard is written while the next is
        encoded.

        Args:
            store: The caller holds the right to write it, or works for somebody who does.
            tasks: Drawn as there is room for them.
            report: Called after every video; what it raises ends the run.

        Raises:
            StoreError: If the disk is full, or did not keep what was written.
        """
        with _UnderWay(self.tower, store, self._writer, report) as run:
            outcomes: Any = self._pool.decode(run.jobs(tasks))
            with contextlib.closing(outcomes):
                yield from run.take_all(in_order(outcomes, most_bytes=self._early_bytes))


class _UnderWay:
    """The shards under way in one call."""

    def __init__(
        self,
        tower: VisualTower,
        store: FeatureStore,
        writer: ThreadPoolExecutor,
        report: Callable[[Update], None],
    ) -> None:
        self._tower = tower
        self._store = store
        self._writer = writer
        self._report = report
        self._locks = ShardLocks(store.path, tuple(store.partitions))
        self._at: dict[int, tuple[ShardWork, int]] = {}
        """The shard of each job by its number, and the video's place there."""
        self._finished: deque[ShardWork] = deque()
        """Encoded, and to be written."""
        self._done: deque[Done] = deque()
        """Found written already."""
        self._writing: Future[Done] | None = None

    def __enter__(self) -> "_UnderWay":
        return self

    def __exit__(self, *error: object) -> None:
        try:
            if self._writing is not None:
                self._writing.exception()  # wait; an error is on its way already
        finally:
            self._locks.close()

    def jobs(self, tasks: Iterable[Task]) -> Iterator[Job]:
        """The videos of all shards, numbered from 0."""
        number = 0
        for task in tasks:
            self._locks.acquire(task.partition, task.shard)
            marker = self._store.partitions[task.partition].marker(task.shard)
            if marker is not None and not task.retry_failed:
                # the worker of a killed run has finished it meanwhile
                self._locks.release(task.partition, task.shard)
                self._done.append(Done(task=task, counts=marker.counts))
                continue
            work = ShardWork.begin(self._store, task, self._tower)
            if not work.wanted:
                self._finished.append(work)
            for places in work.files():
                self._at.update((number + k, (work, i)) for k, i in enumerate(places))
                yield work.job(number, places)
                number += len(places)

    def take_all(self, outcomes: Iterable[Outcome]) -> Iterator[Done]:
        """Encode what was decoded; yields the shards that are written."""
        before = time.monotonic()
        for outcome in outcomes:
            came = time.monotonic()
            work, i = self._at.pop(outcome.row)
            if not work.num_taken:
                work.began = before
            work.take(i, outcome)
            work.waiting += came - before
            work.busy += time.monotonic() - came
            self._report(work.update)
            if work.num_taken == len(work.wanted):
                self._finished.append(work)
            yield from self._write(wait=False)
            before = time.monotonic()
        yield from self._write(wait=True)

    def _write(self, *, wait: bool) -> Iterator[Done]:
        """Have the finished shards written, one at a time while the next is encoded."""
        while self._done:
            yield self._done.popleft()
        while True:
            if self._writing is not None and (wait or self._finished or self._writing.done()):
                done, self._writing = self._writing.result(), None
                yield done
            if not self._finished:
                return
            work = self._finished.popleft()
            work.stream.close()
            self._writing = self._writer.submit(self._write_one, work)
            if not wait and not self._finished:
                return

    def _write_one(self, work: "ShardWork") -> Done:
        counts = work.write()
        self._locks.release(work.task.partition, work.task.shard)
        return Done(task=work.task, counts=counts)


def in_order(outcomes: Iterable[Outcome], *, most_bytes: int) -> Iterator[Outcome]:
    """Outcomes by number from 0, whatever order they come in.

    A video that hangs would make the others pile up: when the frames that are held exceed
    `most_bytes`, its turn is given up, and it comes when it comes.
    """
    early: dict[int, Outcome] = {}
    held, turn = 0, 0
    for outcome in outcomes:
        if outcome.row < turn:
            yield outcome
            continue
        early[outcome.row] = outcome
        held += _num_bytes(outcome)
        del outcome  # its frames are to be free as soon as they are used
        while early and (turn in early or held > most_bytes):
            if turn in early:
                held -= _num_bytes(early[turn])
                yield early.pop(turn)
            turn += 1
    for number in sorted(early):
        yield early.pop(number)


def _num_bytes(outcome: Outcome) -> int:
    return 0 if outcome.frames is None else outcome.frames.nbytes


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
    """Places in the shard of the videos to decode; all, unless bad ones are retried."""

    plans: Mapping[int, ViewPlan]
    tower: VisualTower
    looks: Preprocessing
    stream: CropStream
    errors: list[VideoError]
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
            _, file = partition.shard_files(task.shard)
            # a salvaged file may be mended at the same size; if it is gone its frames are kept
            status = [Status(int(value)) for value in data.status]
            there = [_is_there(store.root, video) for video in videos]
            wanted = [
                i
                for i in wanted
                if status[i].failed or (status[i] == Status.SALVAGED and there[i])
            ]
            first = partition.geometry.rows(task.shard).start
            errors = [error for error in read_errors(file) if error.row - first not in wanted]
            data.embeddings[wanted], data.frames[wanted] = np.nan, -1
            if data.patches is not None:
                data.patches[wanted] = np.nan
        views = tuple(View.from_json(v) for v in store.views(partition.name))
        return cls(
            task=task,
            partition=partition,
            root=store.root,
            videos=videos,
            views=views,
            data=data,
            wanted=wanted,
            plans={i: ViewPlan(views, partition.num_frames, videos[i].id) for i in wanted},
            tower=tower,
            looks=tower.preprocessing.going_on(store.attributes["recipe"].get("preprocessing")),
            stream=CropStream(tower, partition.num_frames),
            errors=errors,
        )

    def path(self, i: int) -> str:
        """Path of a video of the shard."""
        path = Path(self.root, self.videos[i].path)
        return os.fspath(path if url_of(self.root) else path.absolute())

    def files(self) -> list[list[int]]:
        """The places wanted, those of one file's parts together, by their ends."""
        files: dict[str | int, list[int]] = {}
        for i in self.wanted:
            video = self.videos[i]
            files.setdefault(i if video.start is None else video.path, []).append(i)
        return [
            sorted(places, key=lambda i: self.videos[i].end or 0) for places in files.values()
        ]

    def job(self, number: int, places: Sequence[int]) -> Job:
        """What to decode of a file."""
        path, plans = self.path(places[0]), self.plans
        segments = tuple(
            Segment(start=video.start, end=video.end, choose=plans[i])
            for i in places
            if (video := self.videos[i]).start is not None and video.end is not None
        )
        choose = None if segments else plans[places[0]]
        return Job(row=number, path=path, choose=choose, segments=segments)

    def take(self, i: int, outcome: Outcome) -> None:
        """Cut and encode a video, and write down what became of it."""
        if outcome.status.usable:
            numbers = self.plans[i](outcome.num_frames)
            video_id = self.videos[i].id
            try:
                crops = cut_views(
                    outcome, numbers, self.views, self.tower, self.looks, video_id=video_id
                )
            except (MemoryError, RuntimeError) as error:
                outcome = _without_memory(outcome, error)
            else:
                self.data.frames[i] = outcome.first_frame + numbers
                self.stream.add(i, crops)
                self.num_images += len(crops)
        if outcome.status is not Status.OK:
            self._note(
                i,
                stage="find" if outcome.status is Status.MISSING else "decode",
                status=outcome.status,
                message=outcome.message,
                decoder=outcome.decoder,
                attempt=outcome.attempt,
            )
        self.data.status[i] = outcome.status
        self.num_taken += 1
        self.num_bad += outcome.status.failed

    @property
    def update(self) -> Update:
        """Progress until now."""
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
            versions=versions_here(),
        )
        return dict(Counter(Status(int(value)).name.lower() for value in self.data.status))

    def _refuse_overflow(self) -> None:
        """Mark videos whose embeddings do not fit float16 as corrupt, and say so."""
        data = self.data
        for i in self.wanted:
            rows = [data.embeddings[i], *([] if data.patches is None else [data.patches[i]])]
            usable = Status(int(data.status[i])).usable
            if usable and not all(np.isfinite(row).all() for row in rows):
                message = "its embeddings are not finite in float16"
                self._note(i, stage="encode", status=Status.CORRUPT, message=message)
                data.status[i] = Status.CORRUPT

    def _note(
        self,
        i: int,
        *,
        stage: str,
        status: Status,
        message: str,
        decoder: str = "",
        attempt: int = 1,
    ) -> None:
        error = VideoError(
            row=self.partition.geometry.rows(self.task.shard).start + i,
            id=self.videos[i].id,
            path=self.videos[i].place,
            status=status,
            stage=stage,
            decoder=decoder,
            message=message,
            attempt=attempt,
        )
        self.errors.append(error)


def _is_there(root: str, video: Video) -> bool:
    path = Path(root, video.path)
    return video.size > 0 if url_of(root) else path.is_file() or member_at(path) is not None


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


def cut_views(
    outcome: Outcome,
    numbers: np.ndarray,
    views: Sequence[View],
    tower: VisualTower,
    looks: Preprocessing,
    *,
    video_id: str,
) -> UInt8[Tensor, "VT 3 size size"]:
    """The crops of all views of a video, view by view, on the tower's device."""
    assert outcome.frames is not None
    frames = tower.upload(torch.from_numpy(outcome.frames))
    height, width = frames.shape[1:3]
    parts = []
    for view, shown in zip(views, numbers, strict=True):
        places = torch.from_numpy(outcome.places(shown)).to(frames.device)
        crop = crop_of(view, height, width, looks.size, looks.resize_mode, video_id=video_id)
        # a few frames at a time where they are large: resizing takes them in float32
        frame_bytes = 12 * max(crop.box[2] * crop.box[3], math.prod(crop.resized))
        for some in places.split(max(1, CUT_BYTES // frame_bytes)):
            parts.append(cut(frames[some], crop, looks))
    return torch.cat(parts)


def _without_memory(outcome: Outcome, error: Exception) -> Outcome:
    """The outcome of a video whose frames do not fit the memory.

    Raises:
        RuntimeError: The error itself, if it is another.
    """
    is_full = isinstance(error, MemoryError | torch.OutOfMemoryError)
    if not is_full and "can't allocate memory" not in str(error):
        raise error
    assert outcome.frames is not None
    count, height, width = outcome.frames.shape[:3]
    message = f"no memory for its {count} frames of {width} x {height} pixels"
    return replace(outcome, status=Status.CRASHED, message=message, frames=None)
