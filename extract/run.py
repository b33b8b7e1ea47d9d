"""Stage one, whole: plan a store for a data set, then write its shards.

A shard is written once and for all; a run that was stopped, however it was stopped, goes on
with the next one.
"""

import contextlib
import time
from collections.abc import Generator, Iterable
from types import TracebackType
from typing import Protocol, runtime_checkable

import torch

from bieff.apps.progress import Board
from bieff.clip import Clip
from bieff.extract.config import ExtractConfig
from bieff.extract.plan import plan
from bieff.extract.shard import DECODE, ShardExtractor
from bieff.extract.tasks import Done, Summary, Task, Update, summary_of
from bieff.features.store import FeatureStore

__all__ = ["InProcess", "Runner", "Summary", "extract", "plan"]


@runtime_checkable
class Runner(Protocol):
    """Who writes the shards: this process (`InProcess`), or Dask workers (`cluster`)."""

    def run(
        self,
        store: FeatureStore,
        clip: Clip,
        config: ExtractConfig,
        tasks: Iterable[Task],
        board: Board,
    ) -> Generator[Done, None, None]:
        """Write shards; yields those that are written."""


class InProcess:
    """Writes shards in this process; tower and decoders live as long as the block.

    Args:
        device: Where the tower runs.
        decode: What decodes, "module:name".
    """

    def __init__(self, *, device: torch.device, decode: str = DECODE) -> None:
        self._device = device
        self._decode = decode
        self._extractor: ShardExtractor | None = None
        self._made_for: tuple[Clip, ExtractConfig] | None = None

    def __enter__(self) -> "InProcess":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def run(
        self,
        store: FeatureStore,
        clip: Clip,
        config: ExtractConfig,
        tasks: Iterable[Task],
        board: Board,
    ) -> Generator[Done, None, None]:
        """Write shards, one after the other, each decoded while the one before is written."""
        extractor = self._extractor_for(clip, config)
        if extractor.tower.precision != "float32":
            board.say(f"{self._device}: {extractor.tower.precision}")

        def watch_and_check(update: Update) -> None:
            board.add(update)
            board.check()

        done = extractor.extract(store, tasks, watch=watch_and_check)
        with contextlib.closing(done):
            yield from done

    def _extractor_for(self, clip: Clip, config: ExtractConfig) -> ShardExtractor:
        if self._extractor is None or self._made_for != (clip, config):
            self._close()
            self._extractor = ShardExtractor(
                clip, config, device=self._device, decode=self._decode
            )
            self._made_for = (clip, config)
        return self._extractor

    def _close(self) -> None:
        if self._extractor is not None:
            self._extractor.close()
            self._extractor = None


def extract(
    store: FeatureStore,
    clip: Clip,
    config: ExtractConfig,
    *,
    device: torch.device,
    retry_failed: bool = False,
    max_bad: float | None = None,
    runner: Runner | None = None,
) -> Summary:
    """Write the shards that are missing.

    Args:
        store: As `plan` gives it.
        clip: The one that the store was planned with.
        config: The same.
        device: Where the tower runs, in this process.
        retry_failed: Also try again the videos that failed.
        max_bad: Share of unusable videos, 0 to 1, beyond which it is given up; None: none.
        runner: Who writes; None: this process, on `device`.

    Raises:
        InputError: If more videos are unusable than `max_bad` allows.
        StoreError: If another run is writing the store, or the disk is full.
    """
    start = time.monotonic()
    written = 0
    with store.exclusive(), contextlib.ExitStack() as stack:
        pending = {
            name: [
                Task(partition=name, shard=shard, retry_failed=retry_failed)
                for shard in part.pending(retry_failed=retry_failed)
            ]
            for name, part in store.partitions.items()
        }
        board = Board(store, pending, max_bad=max_bad)
        board.check()
        if tasks := [task for part in pending.values() for task in part]:
            if runner is None:
                runner = stack.enter_context(InProcess(device=device))
            stack.enter_context(board)
            writing = runner.run(store, clip, config, tasks, board)
            stack.enter_context(contextlib.closing(writing))
            for done in writing:
                written += 1
                board.shard_done(done)
                board.check()
    return summary_of(
        store, shards_written=written, seconds=time.monotonic() - start, max_bad=max_bad
    )
