"""What goes from the scheduler to whoever writes a shard, and what comes back."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bieff.features.check import summarize
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
    """Of a finished shard: decode again only the videos that failed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Update:
    """How far a shard is; each update replaces the one before."""

    partition: str
    shard: int
    videos: int
    bad: int
    """Of the videos, those that have failed."""

    images: int
    """Squares given to the tower."""

    seconds: float
    waiting: float
    """Of the seconds, those in which the tower had nothing to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """A shard that is written."""

    task: Task
    counts: Mapping[str, int]
    """All its videos by status, in lower case."""


Watch = Callable[[Update], None]


SHOWN = 20
"""Reasons a summary lists."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What became of a data set."""

    store: Path
    counts: Mapping[str, int]
    """Videos by status, over the whole store."""

    shards_written: int
    """By this run; the others were there."""

    seconds: float
    bad: Sequence[VideoError] = ()
    """Why a video is not ok, by partition and row; the first `SHOWN`."""

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
        return sum(n for name, n in self.counts.items() if Status[name.upper()].failed)

    @property
    def is_whole(self) -> bool:
        """Whether every video gave every frame, or enough of them did for `max_bad`."""
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
        """What there is to say of it."""
        counts = ", ".join(f"{count:,} {name}" for name, count in self.counts.items())
        videos = counted(self.num_videos, "video")
        line = f"{self.store}: {videos} ({counts}) in {self.seconds:.0f} s"
        return "\n".join([line, *reasons(self.bad, self.num_bad, self.store)])


def summary_of(
    store: FeatureStore, *, shards_written: int, seconds: float, max_bad: float | None
) -> Summary:
    """What the markers and error files of a store say."""
    return Summary(
        store=store.path,
        counts=counts_of(store),
        shards_written=shards_written,
        seconds=seconds,
        bad=list(itertools.islice(errors_of(store), SHOWN)),
        max_bad=max_bad,
    )


def status_lines(store: FeatureStore) -> list[str]:
    """What is done, bad and pending: the lines of `bieff extract --status`."""
    parts = [summarize(partition) for partition in store.partitions.values()]
    bad = sum(
        count
        for part in parts
        for status, count in part.counts.items()
        if status not in (Status.OK, Status.PENDING)
    )
    some = list(itertools.islice(errors_of(store), SHOWN)) if bad else []
    lines = [f"{store.path}:", *(f"  {part}" for part in parts)]
    return [*lines, *reasons(some, bad, store.path)]


def reasons(shown: Sequence[VideoError], num_bad: int, store: Path) -> list[str]:
    """A line for each of the videos that are not ok, as far as they are shown."""
    lines = [f"  {e.status.name.lower()} {e.path}: {e.message}" for e in shown]
    if num_bad > len(shown):
        lines.append(f"  and {num_bad - len(shown):,} more, see {store / 'errors'}")
    return lines


def counts_of(store: FeatureStore) -> dict[str, int]:
    """Videos of the whole store by status, the failed ones last."""
    counts: Counter[Status] = Counter()
    for partition in store.partitions.values():
        counts.update(summarize(partition).counts)
    return {status.name.lower(): count for status, count in sorted(counts.items())}


def errors_of(store: FeatureStore) -> Iterator[VideoError]:
    """Why a video is not ok, by partition and row; one error file in memory at a time."""
    for partition in store.partitions.values():
        for shard in range(partition.num_shards):
            _, file = partition.shard_files(shard)
            if file.is_file() and partition.claim(shard) is not None:
                yield from read_errors(file)
