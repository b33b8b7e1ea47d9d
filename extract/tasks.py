"""Shards to write, what is told while they are written, and what became of all."""

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bieff.features.check import summarise
from bieff.features.errors import InputError
from bieff.features.schema import Status, VideoError, counted
from bieff.features.shard import read_errors
from bieff.features.store import FeatureStore


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One shard to write."""

    partition: str
    shard: int
    retry_failed: bool = False
    """Decode again only the videos of a finished shard that failed or were salvaged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Update:
    """Progress of a shard; each update replaces the one before."""

    partition: str
    shard: int
    videos: int
    bad: int
    """Those of the videos that have failed."""

    images: int = 0
    """Crops given to the tower."""

    seconds: float = 0.0
    waiting: float = 0.0
    """Those of the seconds in which the tower had nothing to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """A shard that is written."""

    task: Task
    counts: Mapping[str, int]
    """All its videos by status, in lower case."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PartProgress:
    """Progress of a run with one partition."""

    data_set: str
    partition: str
    videos: int
    num_videos: int
    shards: int
    num_shards: int
    bad: int
    """Videos of the whole store that have failed."""

    speed: str


Watch = Callable[[PartProgress | str], None]
"""Called with the progress of a run, after every video, or with a line of its own."""


class RunCount:
    """Counts one run's videos and the store's bad ones, and tells a watcher.

    Raises:
        InputError: On making it and on every count, if more videos are unusable than `max_bad`
            allows, whatever the others turn out to be.
    """

    def __init__(
        self,
        store: FeatureStore,
        pending: Mapping[str, Sequence[Task]],
        *,
        max_bad: float | None,
        watch: Watch,
    ) -> None:
        self._store, self._max_bad, self.say = store, max_bad, watch
        self._wanted = {
            name: [len(store.partitions[name].geometry.rows(task.shard)) for task in tasks]
            for name, tasks in pending.items()
        }
        self._num_videos = sum(part.num_videos for part in store.partitions.values())
        self._bad_elsewhere = _bad_elsewhere(store, pending)
        self._shards: dict[tuple[str, int], Update] = {}
        self._written: set[tuple[str, int]] = set()
        self._speed = _Speed()
        self._require_few_bad()
        for name, tasks in pending.items():
            if tasks:
                self._tell(name)

    @property
    def bad(self) -> int:
        """Videos of the store that have failed, so far."""
        return self._bad_elsewhere + sum(update.bad for update in self._shards.values())

    def add(self, update: Update) -> None:
        """Take how far a shard is."""
        shard = (update.partition, update.shard)
        if shard in self._written:  # it was long under way
            return
        self._speed.add(self._shards.get(shard), update)
        self._take(update)

    def shard_done(self, done: Done) -> None:
        """Take a shard that is written."""
        name, shard = done.task.partition, done.task.shard
        self._written.add((name, shard))
        videos = sum(done.counts.values())
        bad = _num_failed(done.counts)
        self._take(Update(partition=name, shard=shard, videos=videos, bad=bad))

    def _take(self, update: Update) -> None:
        self._shards[update.partition, update.shard] = update
        self._tell(update.partition)
        self._require_few_bad()

    def _require_few_bad(self) -> None:
        if self._max_bad is not None and self.bad > self._max_bad * self._num_videos:
            raise InputError(
                f"{self._store.path}: {self.bad:,} of {self._num_videos:,} videos are unusable "
                f"already, more than --max-bad {self._max_bad:.3%} allows; look at the reasons "
                "with --status, mend the files or allow more, and run the same command again"
            )

    def _tell(self, name: str) -> None:
        progress = PartProgress(
            data_set=str(self._store.recipe["data_set"]),
            partition=name,
            videos=sum(u.videos for u in self._shards.values() if u.partition == name),
            num_videos=sum(self._wanted[name]),
            shards=sum(part == name for part, _ in self._written),
            num_shards=len(self._wanted[name]),
            bad=self.bad,
            speed=str(self._speed),
        )
        self.say(progress)


SPEED_SECONDS = 2.0
"""Length of the moments that rate and waiting are averaged over, about."""


class _Speed:
    """Images a second, and who waits for whom, over the last moments."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._rate = self._idle = 0.0

    def add(self, before: Update | None, now: Update) -> None:
        images = now.images - (before.images if before else 0)
        seconds = now.seconds - (before.seconds if before else 0.0)
        waiting = now.waiting - (before.waiting if before else 0.0)
        moment = time.monotonic()
        passed = max(moment - self._last, 1e-6)
        self._last = moment
        weight = min(1.0, passed / SPEED_SECONDS) if self._rate else 1.0
        self._rate += weight * (images / passed - self._rate)
        if seconds > 0:
            self._idle += weight * (waiting / seconds - self._idle)

    def __str__(self) -> str:
        if not self._rate:
            return "starting"
        who = "tower waits for decoders" if self._idle > 0.5 else "decoders wait for tower"
        share = max(self._idle, 1 - self._idle)
        return f"{self._rate:,.0f} images/s, {who} {share:.0%}"


def _bad_elsewhere(store: FeatureStore, pending: Mapping[str, Sequence[Task]]) -> int:
    """Videos that have failed in the shards that this run does not touch."""
    bad = 0
    for name, partition in store.partitions.items():
        redone = {task.shard for task in pending.get(name, ())}
        for shard in set(range(partition.num_shards)) - redone:
            marker = partition.marker(shard)
            bad += _num_failed(marker.counts) if marker else 0
    return bad


def _num_failed(counts: Mapping[str, int]) -> int:
    return sum(count for name, count in counts.items() if Status[name.upper()].failed)


SHOWN = 20
"""Reasons a summary lists."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Outcome of a data set's extraction."""

    store: Path
    counts: Mapping[str, int]
    """Videos by status, over the whole store, the failed ones last."""

    shards_written: int
    """Shards that this run wrote; the others were there."""

    seconds: float
    bad: Sequence[VideoError] = ()
    """Reasons why videos are not ok, by partition and row; the first `SHOWN`."""

    max_bad: float | None = None
    """Share of unusable videos up to which the extraction counts as whole."""

    @property
    def num_videos(self) -> int:
        """Videos listed."""
        return sum(self.counts.values())

    @property
    def num_bad(self) -> int:
        """Videos without embeddings, or from a damaged file."""
        return self.num_videos - self.counts.get("ok", 0) - self.counts.get("pending", 0)

    @property
    def num_failed(self) -> int:
        """Videos that were tried and have no embeddings."""
        return _num_failed(self.counts)

    @property
    def is_whole(self) -> bool:
        """Every video gave every frame, or enough of them did for `max_bad`."""
        if self.counts.get("pending"):
            return False
        if self.max_bad is None:
            return self.num_bad == 0
        return self.num_failed <= self.max_bad * self.num_videos

    def require_usable(self) -> None:
        """Refuse a store in which not one video could be used.

        Raises:
            InputError: If every video failed; says why the first did.
        """
        if self.num_videos and self.num_failed == self.num_videos:
            first = f", the first: {self.bad[0].message}" if self.bad else ""
            raise InputError(
                f"{self.store}: none of the {self.num_videos:,} videos could be used{first}; "
                "mend them, and run again with --retry-failed"
            )

    def text(self) -> str:
        """One line of figures, then the reasons of bad videos."""
        counts = ", ".join(f"{count:,} {name}" for name, count in self.counts.items())
        videos = counted(self.num_videos, "video")
        line = f"{self.store}: {videos} ({counts}) in {self.seconds:.0f} s"
        return "\n".join([line, *_reasons(self.bad, self.num_bad, self.store)])


def summary_of(
    store: FeatureStore, *, shards_written: int, seconds: float, max_bad: float | None
) -> Summary:
    """Summary of a store, from its markers and error files."""
    counts: Counter[Status] = Counter()
    for partition in store.partitions.values():
        counts.update(summarise(partition).counts)
    return Summary(
        store=store.path,
        counts={status.name.lower(): count for status, count in sorted(counts.items())},
        shards_written=shards_written,
        seconds=seconds,
        bad=list(itertools.islice(_errors(store), SHOWN)),
        max_bad=max_bad,
    )


def status_lines(store: FeatureStore) -> list[str]:
    """The lines of `bieff extract --status`: what is done, bad and pending."""
    said = summary_of(store, shards_written=0, seconds=0.0, max_bad=None)
    parts = [f"  {summarise(partition)}" for partition in store.partitions.values()]
    return [f"{store.path}:", *parts, *_reasons(said.bad, said.num_bad, store.path)]


def _reasons(shown: Sequence[VideoError], num_bad: int, store: Path) -> list[str]:
    """A line for each of the videos that are not ok, as far as they are shown."""
    lines = [f"  {e.status.name.lower()} {e.path}: {e.message}" for e in shown]
    if num_bad > len(shown):
        lines.append(f"  and {num_bad - len(shown):,} more, see {store / 'errors'}")
    return lines


def _errors(store: FeatureStore) -> Iterator[VideoError]:
    """Reasons why videos are not ok, by partition and row; one file in memory at a time."""
    for partition in store.partitions.values():
        for shard in range(partition.num_shards):
            _, file = partition.shard_files(shard)
            if file.is_file() and partition.claim(shard) is not None:
                yield from read_errors(file)
