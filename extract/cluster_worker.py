"""The inside of a Dask worker: a tower and decoders that outlive their tasks."""

import contextlib
import importlib.metadata
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from distributed import WorkerPlugin, get_worker

from bieff import clip as clips
from bieff.clip import ClipName
from bieff.extract.config import ExtractConfig
from bieff.extract.shard import ShardExtractor
from bieff.extract.tasks import Task, Update
from bieff.features.errors import StoreError
from bieff.features.store import FeatureStore

PLUGIN = "bieff-extract"
TOPIC = "bieff-extract"
UPDATE_SECONDS = 1.0
"""Least time between two updates of one worker."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerSetup:
    """What a worker needs to write shards of one store."""

    store: Path
    recipe_hash: str
    clip: ClipName
    fingerprint: str
    config: ExtractConfig
    device: str | None
    decode: str
    version: str
    """Of bieff."""

    neighbours: int
    """Workers that share the cores of one machine."""

    threads: int
    """Most that torch may use in a worker: as many as in the scheduling process."""


class _Stopped(Exception):
    """The run that sent the task has ended."""


class ExtractPlugin(WorkerPlugin):  # type: ignore[misc]
    """Keeps a worker's tower and decoders from task to task, and one task at a time at work."""

    name = PLUGIN

    def __init__(self, setup: WorkerSetup) -> None:
        self._setup = setup

    def setup(self, worker: Any) -> None:
        """Called by Dask, in its event loop: the heavy part waits for the first task."""
        self._worker = worker
        self._guard = threading.Lock()
        self._extractor: ShardExtractor | None = None
        self._store: FeatureStore | None = None
        self._last_update = 0.0
        self.is_stopping = False

    def teardown(self, worker: Any) -> None:
        """Called by Dask when the run ends, or the worker."""
        self.is_stopping = True
        # not in the event loop: a shard that is being written is finished first
        threading.Thread(target=self._close, name="extract teardown").start()

    def write_shard(self, task: Task) -> Mapping[str, int]:
        """Write one shard, after those that were sent here before it."""
        with self._guard:
            if self.is_stopping:
                raise _Stopped
            if self._extractor is None or self._store is None:
                self._store = _open(self._setup)
                self._extractor = _start(self._setup, self._worker.name)
            try:
                with contextlib.closing(
                    self._extractor.extract(self._store, [task], watch=self._report)
                ) as done:
                    return next(done).counts
            except _Stopped:
                self._close_extractor()
                raise

    def _report(self, update: Update) -> None:
        if self.is_stopping:
            raise _Stopped
        if time.monotonic() - self._last_update >= UPDATE_SECONDS:
            self._last_update = time.monotonic()
            self._worker.log_event(TOPIC, {"update": asdict(update)})

    def _close(self) -> None:
        with self._guard:
            self._close_extractor()

    def _close_extractor(self) -> None:
        if self._extractor is not None:
            self._extractor.close()
            self._extractor = None


def write_shard(task: Task) -> dict[str, int] | None:
    """The task: write one shard; its videos by status, or None if the run has ended.

    An exception would do for the second, but Dask writes its traceback to the terminal.
    """
    try:
        return dict(get_worker().plugins[PLUGIN].write_shard(task))
    except _Stopped:
        return None


def stop_working(dask_worker: Any) -> None:
    """Have a worker leave its shard after the video it is at."""
    if plugin := dask_worker.plugins.get(PLUGIN):
        plugin.is_stopping = True


def what_is_wrong(probe: Path, token: str, videos: Path) -> str:
    """Whether this machine sees a file of the scheduling one, and the videos; "" if it does."""
    try:
        if probe.read_text() != token:
            return f"sees another {probe.parent} than this machine; share the file system"
    except OSError:
        return (
            f"does not see the store {probe.parent}; keep it on a file system that all "
            "workers share, under one path"
        )
    if not videos.is_dir():
        return f"does not see the videos in {videos}; share them with all workers"
    return ""


def _open(setup: WorkerSetup) -> FeatureStore:
    version = importlib.metadata.version("bieff")
    if version != setup.version:
        raise StoreError(
            f"a worker has bieff {version}, this machine {setup.version}; install one version"
        )
    store = FeatureStore.open(setup.store)
    if store.recipe_hash != setup.recipe_hash:
        raise StoreError(f"a worker sees another store at {setup.store}; share the file system")
    return store


def _start(setup: WorkerSetup, worker: object) -> ShardExtractor:
    device = clips.pick_device(setup.device)
    if device == torch.device("cuda") and isinstance(worker, int):
        # the workers of a local cluster count from 0; elsewhere CUDA_VISIBLE_DEVICES decides
        device = torch.device("cuda", worker % torch.cuda.device_count())
    cores = max(1, len(os.sched_getaffinity(0)) // setup.neighbours)
    # Dask has told OpenMP to use one thread
    torch.set_num_threads(min(setup.threads, cores))
    config = replace(setup.config, decoders=setup.config.decoders or cores)
    clip = clips.load(setup.clip, device=device)
    if clip.fingerprint != setup.fingerprint:
        raise StoreError(
            f"a worker has other weights of {str(setup.clip)!r} than this machine; give both "
            "the same file"
        )
    return ShardExtractor(clip, config, device=device, decode=setup.decode)
