"""Shards on Dask: one task a shard, a tower and decoders in every worker.

The tower lives in a worker plugin and not in an actor: an actor is lost for ever when its
worker dies.  Few tasks are sent ahead, and each is forgotten as soon as it is done: a future
that is held is run again when the worker that ran it dies.  That a shard is never written by
two tasks at once is kept by `ShardLocks`, whatever Dask believes of its workers.
"""

import contextlib
import importlib.metadata
import logging
import os
import queue
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from distributed import WorkerPlugin, get_worker

from bieff import clip as clips
from bieff.clip import Clip, ClipName
from bieff.extract.config import ExtractConfig
from bieff.extract.plan import DECODERS, versions_here
from bieff.extract.shard import DECODE, ShardExtractor
from bieff.extract.sources.urls import url_of
from bieff.extract.tasks import Done, RunCount, Task, Update
from bieff.features.errors import ConfigError, StoreError
from bieff.features.files import disk_errors
from bieff.features.store import FeatureStore

PLUGIN = "bieff-extract"
TOPIC = "bieff-extract"
UPDATE_SECONDS = 1.0
"""Least time between two updates of one worker."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerSetup:
    """All that a worker needs to write shards of one store."""

    store: Path
    recipe_hash: str
    clip: ClipName
    fingerprint: str
    config: ExtractConfig
    device: str | None
    decode: str
    version: str
    """The scheduling process's bieff."""

    libraries: Mapping[str, str]
    """The scheduling process's decoders and torch."""

    neighbours: int
    """Workers that share the cores of one machine."""

    threads: int
    """Most that torch may use in a worker: as many as in the scheduling process."""

    def open_store(self) -> FeatureStore:
        """The store, as this worker sees it."""
        version = importlib.metadata.version("bieff")
        if version != self.version:
            raise StoreError(
                f"a worker has bieff {version}, this machine {self.version}; install "
                "one version"
            )
        store = FeatureStore.open(self.store)
        if store.recipe_hash != self.recipe_hash:
            raise StoreError(
                f"a worker sees another store at {self.store}; share the file system"
            )
        for name in () if self.config.mixed_decoders else DECODERS:
            if versions_here()[name] != self.libraries[name]:
                raise StoreError(
                    f"a worker has {name} {versions_here()[name]}, this machine "
                    f"{self.libraries[name]}, whose pixels may differ; install one version, or "
                    "go on with --set mixed_decoders=true"
                )
        return store

    def start(self, worker: object) -> ShardExtractor:
        """Tower and decoders for a worker of that name."""
        device = clips.pick_device(self.device)
        if device == torch.device("cuda") and isinstance(worker, int):
            # local workers count from 0; elsewhere CUDA_VISIBLE_DEVICES decides
            device = torch.device("cuda", worker % torch.cuda.device_count())
        cores = max(1, len(os.sched_getaffinity(0)) // self.neighbours)
        # Dask has told OpenMP to use one thread
        torch.set_num_threads(min(self.threads, cores))
        config = replace(self.config, decoders=self.config.decoders or cores)
        clip = clips.load(self.clip, device=device)
        if clip.fingerprint != self.fingerprint:
            raise StoreError(
                f"a worker has other weights of {str(self.clip)!r} than this machine; give "
                "both the same file"
            )
        return ShardExtractor(clip, config, device=device, decode=self.decode)


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
        self._guard = threading.RLock()
        self._extractor: ShardExtractor | None = None
        self._store: FeatureStore | None = None
        self._last_update = 0.0
        self.is_stopping = False

    def teardown(self, worker: Any) -> None:
        """Called by Dask when the run ends, or the worker."""
        self.is_stopping = True
        # not in the event loop: a shard that is being written is finished first
        threading.Thread(target=self._close_extractor, name="extract teardown").start()

    def write_shard(self, task: Task) -> Mapping[str, int]:
        """Write one shard, after those that were sent here before it."""
        with self._guard:
            if self.is_stopping:
                raise _Stopped
            if self._extractor is None or self._store is None:
                self._store = self._setup.open_store()
                self._extractor = self._setup.start(self._worker.name)
            try:
                with contextlib.closing(
                    self._extractor.extract(self._store, [task], report=self._report)
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

    def _close_extractor(self) -> None:
        with self._guard:
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
    """Fault of this machine's view of the store and the videos; "" if it sees them."""
    try:
        if probe.read_text() != token:
            return f"sees another {probe.parent} than this machine; share the file system"
    except OSError:
        return (
            f"does not see the store {probe.parent}; keep it on a file system that all "
            "workers share, under one path"
        )
    if not videos.exists() and url_of(videos) is None:
        return f"does not see the videos in {videos}; share them with all workers"
    return ""


CONNECT_SECONDS = 20
WORKERS_SECONDS = 60
POLL_SECONDS = 1.0
"""Seconds between two looks at what has become of the run and of the cluster."""


class OnCluster:
    """Has shards written by the workers of a Dask cluster.

    Args:
        client: A `distributed.Client`; closed by the caller.
        device: What every worker's tower runs on; None: its GPU if it has one.
        decode: What decodes, "module:name".
    """

    def __init__(
        self, client: Any, *, device: torch.device | None = None, decode: str = DECODE
    ) -> None:
        self._client = client
        self._device = device
        self._decode = decode

    def run(
        self,
        store: FeatureStore,
        clip: Clip,
        config: ExtractConfig,
        tasks: Iterable[Task],
        count: RunCount,
    ) -> Generator[Done, None, None]:
        """Write shards; yields those that are written, in any order.

        Raises:
            ConfigError: If there are no workers.
            StoreError: If a worker does not see the store or the videos, or cannot write.
        """
        self._require_workers()
        self._require_shared(store)
        setup = WorkerSetup(
            store=store.path.resolve(),
            recipe_hash=store.recipe_hash,
            clip=clip.name,
            fingerprint=clip.fingerprint,
            config=config,
            device=None if self._device is None else str(self._device),
            decode=self._decode,
            version=importlib.metadata.version("bieff"),
            libraries=versions_here(),
            neighbours=max(Counter(map(_host, self._client.nthreads())).values()),
            threads=torch.get_num_threads(),
        )
        count.say(f"{self._num_workers()} Dask workers")
        updates: queue.SimpleQueue[Update] = queue.SimpleQueue()  # they come in another thread
        self._client.subscribe_topic(
            TOPIC, lambda event: updates.put(Update(**event[1]["update"]))
        )
        self._client.register_plugin(ExtractPlugin(setup))
        try:
            with self._client.as_current():
                yield from self._send_all(iter(tasks), updates, count)
        finally:
            self._client.unsubscribe_topic(TOPIC)
            with contextlib.suppress(Exception):  # a worker that has gone needs no teardown
                self._client.unregister_worker_plugin(PLUGIN)

    def _send_all(
        self, tasks: Iterator[Task], updates: "queue.SimpleQueue[Update]", count: RunCount
    ) -> Generator[Done, None, None]:
        from distributed import wait

        run = uuid.uuid4().hex[:8]
        sent: dict[Any, Task] = {}
        has_more = True
        try:
            while True:
                while has_more and len(sent) < max(1, self._num_workers()):
                    task = next(tasks, None)
                    has_more = task is not None
                    if task is not None:
                        key = f"bieff-{run}-{task.partition}-{task.shard:05d}"
                        sent[self._client.submit(write_shard, task, key=key)] = task
                if not sent:
                    return
                with contextlib.suppress(TimeoutError):
                    wait(list(sent), timeout=POLL_SECONDS, return_when="FIRST_COMPLETED")
                while not updates.empty():
                    count.add(updates.get())
                for future in [future for future in sent if future.done()]:
                    task = sent.pop(future)
                    counts = _result(future, task)
                    future.release()
                    yield Done(task=task, counts=counts)
        finally:
            if sent:
                self._stop(list(sent))

    def _stop(self, futures: list[Any]) -> None:
        """Have the workers leave their shards, and wait until they have.

        The store is not given back before: the next run must find nobody writing.
        """
        from distributed import wait

        with contextlib.suppress(Exception):  # the cluster may be what has failed
            self._client.run(stop_working)
            wait(futures, timeout=CONNECT_SECONDS)
        self._client.cancel(futures)

    def _num_workers(self) -> int:
        return len(self._client.nthreads())

    def _require_workers(self) -> None:
        try:
            self._client.wait_for_workers(1, timeout=WORKERS_SECONDS)
        except TimeoutError:
            address = self._client.scheduler.address
            raise ConfigError(
                f"--scheduler {address}: no worker has come in {WORKERS_SECONDS} s; start some "
                f"with `dask worker {address}`"
            ) from None

    def _require_shared(self, store: FeatureStore) -> None:
        """Write a file into the store's folder, and have every worker look for it."""
        token = uuid.uuid4().hex
        probe = store.path.resolve() / f".seen-{token}"
        with disk_errors(store.path):
            probe.write_text(token)
        try:
            answers = self._client.run(what_is_wrong, probe, token, Path(store.root))
        finally:
            probe.unlink(missing_ok=True)
        for worker, wrong in answers.items():
            if wrong:
                raise StoreError(f"Dask worker {worker} {wrong}")


@contextlib.contextmanager
def connected(
    scheduler: str, *, device: torch.device | None, decode: str = DECODE
) -> Iterator[OnCluster]:
    """A runner on the cluster that `--scheduler` names: "local", or the address of one.

    Local: one worker for each GPU, or one for the processor.

    Raises:
        ConfigError: If no scheduler answers at the address.
    """
    import dask
    from distributed import Client, LocalCluster

    # its reports of every connection would drown ours; tasks bring their errors back anyway
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with contextlib.ExitStack() as stack:
        # daemonic processes may not have children; only workers started here are our concern
        settings = {"distributed.worker.daemon": False}
        stack.enter_context(dask.config.set(settings))
        if scheduler == "local":
            on_gpu = torch.cuda.is_available() and (device is None or device.type == "cuda")
            with _deaf_to_ctrl_c():
                cluster = LocalCluster(
                    n_workers=torch.cuda.device_count() if on_gpu else 1,
                    threads_per_worker=1,
                    memory_limit=0,
                    dashboard_address="127.0.0.1:0",
                    host="127.0.0.1",
                )
            scheduler = stack.enter_context(cluster).scheduler_address
        try:
            client = Client(scheduler, timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"--scheduler {scheduler}: no Dask scheduler answers ({error}); start one "
                "with `dask scheduler`, and workers with `dask worker ADDRESS`"
            ) from None
        yield OnCluster(stack.enter_context(client), device=device, decode=decode)


@contextlib.contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Programs started in the block ignore Ctrl-C, which a terminal sends to them as well.

    They are stopped by us, after the video they are at.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _host(worker: str) -> str:
    return worker.rpartition(":")[0]


def _result(future: Any, task: Task) -> dict[str, int]:
    from distributed import KilledWorker
    from distributed.client import FutureCancelledError

    counts: dict[str, int] | None = None
    try:
        counts = future.result()
        what = "its worker was shut down; run the same command again to go on"
    except KilledWorker:
        what = "every worker that began it has died; look at their logs, often it is the memory"
    except FutureCancelledError as error:
        what = (
            f"Dask has given the task up ({error}); see that the scheduler is alive, and run "
            "the same command again to go on"
        )
    if counts is None:
        raise StoreError(f"{task.partition} shard {task.shard}: {what}")
    return counts
