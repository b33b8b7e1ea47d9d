"""Shards of a store, from files to rows: decode, cut, encode, write.

n videos of the shard, V views, T frames a view, D joint width, P patches of width U.
"""

import contextlib
import os
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from bieff.clip import Clip
from bieff.extract.config import ExtractConfig
from bieff.extract.preprocess import cut
from bieff.extract.shard_lock import ShardLocks
from bieff.extract.shard_work import ShardWork
from bieff.extract.tasks import Done, Task, Watch
from bieff.extract.tower import VisualTower
from bieff.extract.views import View, crop_of
from bieff.extract.workers import DecodePool, Job, Outcome
from bieff.features.store import FeatureStore

BATCH = {"cuda": 512, "cpu": 64}
"""Squares a batch of the tower, by kind of device."""

DECODE = "bieff.extract.decode:decode_video"

_EARLY_BYTES = 128 * 2**20
"""Frames held, for each decoder, while a video before them is still being decoded."""


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
        self._early_bytes = _EARLY_BYTES * max(decoders, 2)
        self._pool = DecodePool(decoders, deadline=config.deadline, decode=decode)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="shard writer")

    def __enter__(self) -> "ShardExtractor":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill the decoders; a shard that is being written is finished first."""
        self._pool.close()
        self._writer.shutdown()

    def extract(
        self, store: FeatureStore, tasks: Iterable[Task], *, watch: Watch
    ) -> Generator[Done, None, None]:
        """Write shards; yields each when its marker is on the disk.

        Decoding goes on across the end of a shard, and a shard is written while the next is
        encoded.

        Args:
            store: The caller holds the right to write it, or works for somebody who does.
            tasks: Drawn as there is room for them.
            watch: Called after every video; what it raises ends the run.

        Raises:
            StoreError: If the disk is full, or did not keep what was written.
        """
        with _Run(self.tower, store, self._writer, watch) as run:
            outcomes: Any = self._pool.decode(run.jobs(tasks))
            with contextlib.closing(outcomes):
                yield from run.take_all(in_order(outcomes, most_bytes=self._early_bytes))


class _Run:
    """The shards under way in one call."""

    def __init__(
        self, tower: VisualTower, store: FeatureStore, writer: ThreadPoolExecutor, watch: Watch
    ) -> None:
        self._tower = tower
        self._store = store
        self._writer = writer
        self._watch = watch
        self._locks = ShardLocks(store.path, tuple(store.partitions))
        self._at: dict[int, tuple[ShardWork, int]] = {}
        self._finished: deque[ShardWork] = deque()
        self._done: deque[Done] = deque()
        self._writing: Future[Done] | None = None

    def __enter__(self) -> "_Run":
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
            if done := _done_meanwhile(self._store, task):
                self._locks.release(task.partition, task.shard)
                self._done.append(done)
                continue
            work = ShardWork.begin(self._store, task, self._tower)
            if not work.wanted:
                self._finished.append(work)
            for i in work.wanted:
                self._at[number] = (work, i)
                yield Job(row=number, path=work.path(i), choose=work.plans[i])
                number += 1

    def take_all(self, outcomes: Iterable[Outcome]) -> Iterator[Done]:
        """Encode what was decoded; yields the shards that are written."""
        before = time.monotonic()
        for outcome in outcomes:
            waiting = time.monotonic() - before
            work, i = self._at.pop(outcome.row)
            if outcome.status.usable:
                numbers = work.plans[i](outcome.num_frames)
                work.data.frames[i] = numbers
                video_id = work.videos[i].id
                squares = squares_of(
                    outcome, numbers, work.views, self._tower, video_id=video_id
                )
                work.stream.add(i, squares)
            work.note(i, outcome)
            busy = time.monotonic() - before - waiting
            work.count(outcome.status, waiting=waiting, busy=busy)
            self._watch(work.update)
            if work.is_taken:
                self._finished.append(work)
            yield from self._write(wait=False)
            before = time.monotonic()
        yield from self._write(wait=True)

    def _write(self, *, wait: bool) -> Iterator[Done]:
        """Have the finished shards written, one at a time beside the encoding of the next."""
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

    def _write_one(self, work: ShardWork) -> Done:
        counts = work.write()
        self._locks.release(work.task.partition, work.task.shard)
        return Done(task=work.task, counts=counts)


def squares_of(
    outcome: Outcome,
    numbers: np.ndarray,
    views: Sequence[View],
    tower: VisualTower,
    *,
    video_id: str,
) -> UInt8[Tensor, "VT 3 size size"]:
    """The squares of all views of a video, view by view, on the tower's device."""
    assert outcome.frames is not None
    frames = tower.upload(torch.from_numpy(outcome.frames))
    height, width = frames.shape[1:3]
    parts = []
    for view, shown in zip(views, numbers, strict=True):
        places = torch.from_numpy(outcome.places(shown)).to(frames.device)
        crop = crop_of(view, height, width, tower.preprocessing.size, video_id=video_id)
        parts.append(cut(frames[places], crop))
    return torch.cat(parts)


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


def _done_meanwhile(store: FeatureStore, task: Task) -> Done | None:
    """What there is to say of a shard that the worker of a killed run has finished."""
    marker = store.partitions[task.partition].marker(task.shard)
    if marker is None or task.retry_failed:
        return None
    return Done(task=task, counts=marker.counts)
