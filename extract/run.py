"""Stage one, once a store is planned: write the shards that are missing.

A shard is written once and for all; a run that was stopped, however it was stopped, goes on
with the next one.
"""

import contextlib
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Protocol, runtime_checkable

import torch

from bieff.clip import Clip
from bieff.extract.config import ExtractConfig
from bieff.extract.plan import DECODERS, versions_here
from bieff.extract.shard import DECODE, ShardExtractor
from bieff.extract.tasks import Done, RunCount, Summary, Task, Watch, summary_of
from bieff.features.errors import StoreMismatchError
from bieff.features.store import FeatureStore


@runtime_checkable
class Runner(Protocol):
    """Writer of the shards: this process (`InProcess`), or Dask workers (`cluster`)."""

    def run(
        self,
        store: FeatureStore,
        clip: Clip,
        config: ExtractConfig,
        tasks: Iterable[Task],
        count: RunCount,
    ) -> Generator[Done, None, None]:
        """Write shards; yields those that are written, and counts the videos on the way."""


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

    def __exit__(self, *error: object) -> None:
        if self._extractor is not None:
            self._extractor.close()

    def run(
        self,
        store: FeatureStore,
        clip: Clip,
        config: ExtractConfig,
        tasks: Iterable[Task],
        count: RunCount,
    ) -> Generator[Done, None, None]:
        """Write shards, one after the other, each decoded while the one before is written."""
        extractor = self._extractor
        if extractor is None or self._made_for != (clip, config):
            if extractor is not None:
                extractor.close()
            extractor = ShardExtractor(clip, config, device=self._device, decode=self._decode)
            self._extractor, self._made_for = extractor, (clip, config)
        if extractor.tower.precision != "float32":
            count.say(f"{self._device}: {extractor.tower.precision}")
        with contextlib.closing(extractor.extract(store, tasks, report=count.add)) as done:
            yield from done


def extract(
    store: FeatureStore,
    clip: Clip,
    config: ExtractConfig,
    *,
    device: torch.device,
    retry_failed: bool = False,
    max_bad: float | None = None,
    runner: Runner | None = None,
    watch: Watch = lambda _: None,
) -> Summary:
    """Write the shards that are missing.

    Args:
        store: As `plan` gives it.
        clip: The one that the store was planned with.
        config: The same.
        device: Where the tower runs, in this process.
        retry_failed: Also try again the videos that failed or were salvaged.
        max_bad: Share of unusable videos, 0 to 1, beyond which it is given up; None: none.
        runner: Who writes; None: this process, on `device`.
        watch: Told how far it is.

    Raises:
        InputError: If more videos are unusable than `max_bad` allows.
        StoreError: If another run is writing the store, the disk is full, or other versions of
            the decoders have written some of it and `config.mixed_decoders` is off.
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
        count = RunCount(store, pending, max_bad=max_bad, watch=watch)
        if tasks := [task for part in pending.values() for task in part]:
            require_same_decoders(store, versions_here(), config, say=count.say)
            if runner is None:
                runner = stack.enter_context(InProcess(device=device))
            writing = runner.run(store, clip, config, tasks, count)
            for done in stack.enter_context(contextlib.closing(writing)):
                written += 1
                count.shard_done(done)
    return summary_of(
        store, shards_written=written, seconds=time.monotonic() - start, max_bad=max_bad
    )


def require_same_decoders(
    store: FeatureStore,
    here: Mapping[str, str],
    config: ExtractConfig,
    *,
    say: Callable[[str], None],
) -> None:
    """Refuse to mix pixels of two decoders in one store; a note on another torch.

    Raises:
        StoreMismatchError: If other versions have decoded a finished shard.
    """
    others: dict[str, str] = {}
    for part in store.partitions.values():
        for marker in filter(None, map(part.marker, range(part.num_shards))):
            versions = marker.versions or store.versions
            others |= {k: v for k, v in versions.items() if here.get(k, v) != v}
    if decoders := [name for name in DECODERS if name in others]:
        theirs = ", ".join(f"{name} {others[name]}" for name in decoders)
        ours = ", ".join(f"{name} {here[name]}" for name in decoders)
        if not config.mixed_decoders:
            raise StoreMismatchError(
                f"{store.path}: its shards were decoded with {theirs}, here is {ours}, whose "
                "pixels may differ; install that, extract anew with another --out, or go on "
                "with --set mixed_decoders=true"
            )
        say(f"{store.path}: shards decoded with {theirs} are kept, others follow with {ours}")
    if "torch" in others:
        say(
            f"{store.path}: its shards were encoded with torch {others['torch']}, here is "
            f"{here['torch']}; last digits may differ"
        )
