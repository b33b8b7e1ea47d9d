"""Shards on Dask: one task a shard, a tower and decoders in every worker.

The tower lives in a worker plugin and not in an actor: an actor is lost for ever when its
worker dies.  Few tasks are sent ahead, and each is forgotten as soon as it is done: a future
that is held is run again when the worker that ran it dies.  That a shard is never written by
two tasks at once is kept by `shard_lock`, whatever Dask believes of its workers.
"""

import contextlib
import importlib.metadata
import logging
import signal
import threading
import uuid
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from bieff.clip import Clip
from bieff.extract.cluster_worker import (
    PLUGIN,
    TOPIC,
    ExtractPlugin,
    WorkerSetup,
    stop_working,
    what_is_wrong,
    write_shard,
)
from bieff.extract.config import ExtractConfig
from bieff.extract.progress import Board
from bieff.extract.shard import DECODE
from bieff.extract.tasks import Done, Task, Update
from bieff.features.durable import disk_errors
from bieff.features.errors import ConfigError, StoreError
from bieff.features.store import FeatureStore

CONNECT_SECONDS = 20
WORKERS_SECONDS = 60
POLL_SECONDS = 1.0
"""Between two looks at what has become of the run and of the cluster."""


class OnCluster:
    """Has shards written by the workers of a Dask cluster; use as a context manager.

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
        board: Board,
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
            neighbours=self._most_on_one_host(),
            threads=torch.get_num_threads(),
        )
        board.say(f"{self._num_workers()} Dask workers")
        self._client.subscribe_topic(
            TOPIC, lambda event: board.add(Update(**event[1]["update"]))
        )
        self._client.register_plugin(ExtractPlugin(setup))
        try:
            with self._client.as_current():
                yield from self._send_all(iter(tasks), board)
        finally:
            self._client.unsubscribe_topic(TOPIC)
            with contextlib.suppress(Exception):  # a worker that has gone needs no teardown
                self._client.unregister_worker_plugin(PLUGIN)

    def _send_all(self, tasks: Iterator[Task], board: Board) -> Generator[Done, None, None]:
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
                for future in [future for future in sent if future.done()]:
                    task = sent.pop(future)
                    counts = _result(future, task)
                    future.release()
                    yield Done(task=task, counts=counts)
                board.check()
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

    def _most_on_one_host(self) -> int:
        hosts = Counter(str(worker).rpartition(":")[0] for worker in self._client.nthreads())
        return max(hosts.values())

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
        """Write a file beside the store, and have every worker look for it."""
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


def _result(future: Any, task: Task) -> dict[str, int]:
    from distributed import KilledWorker
    from distributed.client import FutureCancelledError

    try:
        counts: dict[str, int] | None = future.result()
    except KilledWorker:
        raise StoreError(
            f"{task.partition} shard {task.shard}: every worker that began it has died; look "
            "at their logs, often it is the memory"
        ) from None
    except FutureCancelledError as error:
        raise StoreError(
            f"{task.partition} shard {task.shard}: Dask has given the task up ({error}); see "
            "that the scheduler is alive, and run the same command again to go on"
        ) from None
    if counts is None:
        raise StoreError(
            f"{task.partition} shard {task.shard}: its worker was shut down; run the same "
            "command again to go on"
        )
    return counts
