"""Checks of a store: a summary of it, statistics of its numbers, checksums of its files."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float16, Float32, Int32

from bieff.features.errors import StoreError
from bieff.features.partition import Partition
from bieff.features.plan import leaves
from bieff.features.rows import map_shard
from bieff.features.schema import ArrayLayout, Status, columns_of, counted
from bieff.features.shard import FileSum, bad_rows, file_sum, usable
from bieff.features.store import FeatureStore
from bieff.features.videos import identity

_UNITS = ("bytes", "kB", "MB", "GB", "TB")


@dataclass(frozen=True, kw_only=True, slots=True)
class PartitionSummary:
    """State of one partition, read from the markers alone, so in an instant."""

    name: str
    num_videos: int
    num_views: int
    num_shards: int
    num_done: int
    counts: Mapping[Status, int]
    """Videos by status; those of unfinished shards are pending."""

    num_bytes: int
    """Bytes of the finished shards."""

    planned_bytes: int
    """Bytes of all shards."""

    seconds: Mapping[str, float]
    """Sums over the finished shards, by what took them."""

    def __str__(self) -> str:
        counts = ", ".join(
            f"{count:,} {status.name.lower()}" for status, count in self.counts.items()
        )
        took = ", ".join(f"{name} {value:,.0f} s" for name, value in self.seconds.items())
        return (
            f"{self.name}: {counted(self.num_videos, 'video')} x "
            f"{counted(self.num_views, 'view')}: {counts}; "
            f"{self.num_done} of {self.num_shards} shards, {size(self.num_bytes)} of "
            f"{size(self.planned_bytes)}{'; ' if took else ''}{took}"
        )


def summarise(partition: Partition) -> PartitionSummary:
    """Count what the markers say."""
    markers = [partition.marker(shard) for shard in range(partition.num_shards)]
    done = [marker for marker in markers if marker is not None]
    counts: Counter[Status] = Counter()
    seconds: Counter[str] = Counter()
    for marker in done:
        counts.update({Status[name.upper()]: num for name, num in marker.counts.items()})
        seconds.update(marker.seconds)
    if pending := partition.num_videos - counts.total():
        counts[Status.PENDING] = pending
    shard_bytes = sum(
        array.file_bytes(partition.rows_per_shard)
        for array in partition.geometry.arrays.values()
    )
    return PartitionSummary(
        name=partition.name,
        num_videos=partition.num_videos,
        num_views=partition.num_views,
        num_shards=partition.num_shards,
        num_done=len(done),
        counts=dict(sorted(counts.items())),
        num_bytes=shard_bytes * len(done),
        planned_bytes=shard_bytes * partition.num_shards,
        seconds=dict(seconds),
    )


def describe(store: FeatureStore) -> list[str]:
    """The lines of `bieff store info`."""
    recipe = [f"  {key}: {value}" for key, value in leaves(store.recipe)]
    versions = ", ".join(f"{name} {version}" for name, version in store.versions.items())
    lines = [
        f"{store.path}: schema version {store.attributes['schema_version']}, recipe "
        f"{store.recipe_hash[:12]}, {len(store.class_names)} classes",
        *recipe,
        f"  written with {versions or 'versions unknown'}",
        *_other_versions(store),
        f"  videos below {store.root or '.'}",
        *(str(summarise(partition)) for partition in store.partitions.values()),
    ]
    # whoever made the store may have put ends of lines into its words
    return [line if line.isprintable() else repr(line)[1:-1] for line in lines]


def _other_versions(store: FeatureStore) -> Iterator[str]:
    """What shards say of their libraries that differs from what the store says."""
    known, counts = dict(store.versions), Counter[str]()
    for part in store.partitions.values():
        for marker in filter(None, map(part.marker, range(part.num_shards))):
            others = (
                f"{name} {version}"
                for name, version in marker.versions.items()
                if known.setdefault(name, version) != version
            )
            counts[", ".join(others)] += 1
    for told, count in counts.items():
        if told:
            yield f"  {counted(count, 'shard')} of them with {told}"


def size(num_bytes: float) -> str:
    """Bytes in the unit that suits them."""
    for unit in _UNITS:
        if num_bytes < 1000 or unit == _UNITS[-1]:
            break
        num_bytes /= 1000
    return f"{num_bytes:.3g} {unit}"


_COLUMNS = ("norm", "frame_cosine", "video_cosine", "dead", "frozen")
_ALIKE = 0.999
"""Mean cosine between different videos from which on something must be wrong."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Distribution of a number over videos."""

    minimum: float
    mean: float
    maximum: float
    deviation: float

    @classmethod
    def of(cls, values: np.ndarray) -> "Spread":
        """The spread of the values that are numbers; NaN where there are none."""
        real = values[~np.isnan(values)].astype(np.float64)
        if not real.size:
            return cls(np.nan, np.nan, np.nan, np.nan)
        return cls(float(real.min()), float(real.mean()), float(real.max()), float(real.std()))

    def __str__(self) -> str:
        return (
            f"{self.mean:.4g} +- {self.deviation:.3g}, {self.minimum:.4g} to {self.maximum:.4g}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Statistics:
    """Statistics over the usable videos of a partition."""

    partition: str
    num_usable: int
    norm: Spread
    """Norm of a frame's embedding, mean over a video."""

    frame_cosine: Spread
    """Cosine between neighbouring frames, mean over a video; NaN with one frame."""

    video_cosine: Spread
    """Cosine between mean embeddings of a video and the next usable one of its shard."""

    dead: tuple[int, ...]
    """Rows with a frame whose embedding is all zeros."""

    frozen: tuple[int, ...]
    """Rows with a view whose frames differ in number and are all equal as embeddings."""

    def findings(self) -> list[str]:
        """A sentence for each thing that looks broken; empty for a healthy partition."""
        found = []
        for rows, what in ((self.dead, "hold zeros"), (self.frozen, "repeat one frame")):
            if rows:
                some = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
                found.append(
                    f"{len(rows)} of {self.num_usable} videos {what} (rows {some}); "
                    "look at their files"
                )
        if self.video_cosine.mean > _ALIKE:
            found.append(
                f"all videos are nearly the same: mean cosine {self.video_cosine.mean:.5f} "
                "between different ones; check decoding, preprocessing and weights"
            )
        return found


def statistics(partition: Partition) -> Statistics:
    """Read all usable rows of a partition, shard by shard.

    Raises:
        StoreError: If a row's checksum differs.
    """
    is_usable = usable(partition.status())
    with_rows = np.unique(np.flatnonzero(is_usable) // partition.rows_per_shard).tolist()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        read = partial(_shard_statistics, partition, is_usable)
        found = list(pool.map(read, with_rows))
    values = np.full((partition.num_videos, len(_COLUMNS)), np.nan, np.float32)
    for shard, rows in zip(with_rows, found, strict=True):
        values[partition.geometry.rows(shard)] = rows
    norm, frame_cosine, video_cosine, dead, frozen = values.T
    return Statistics(
        partition=partition.name,
        num_usable=int(is_usable.sum()),
        norm=Spread.of(norm),
        frame_cosine=Spread.of(frame_cosine),
        video_cosine=Spread.of(video_cosine),
        dead=tuple(np.flatnonzero(dead == 1).tolist()),
        frozen=tuple(np.flatnonzero(frozen == 1).tolist()),
    )


def _shard_statistics(
    partition: Partition, is_usable: Bool[np.ndarray, " N"], shard: int
) -> Float32[np.ndarray, "n 5"]:
    rows, found = partition.geometry.rows(shard), []
    for name in ("embeddings", "frames"):
        array = partition.geometry.arrays[name]
        file = array.file(partition.path, shard)
        found.append(map_shard(file, array, partition.rows_per_shard)[: len(rows)])
        if bad_rows(file, array, partition.rows_per_shard):
            raise StoreError(f"{file}: its checksum differs; run `bieff store verify`")
    return row_statistics(found[0], found[1], is_usable[rows.start : rows.stop])


def row_statistics(
    embeddings: Float16[np.ndarray, "n V T D"],
    frames: Int32[np.ndarray, "n V T"],
    is_usable: Bool[np.ndarray, " n"],
) -> Float32[np.ndarray, "n 5"]:
    """Norm, cosine between frames and between videos, dead, frozen; NaN for unusable rows."""
    table = np.full((len(embeddings), len(_COLUMNS)), np.nan, np.float32)
    rows = np.flatnonzero(is_usable)
    if not rows.size:
        return table
    values = embeddings[rows].astype(np.float32)
    norms = np.linalg.norm(values, axis=-1)  # (n, V, T)
    table[rows, 0] = norms.mean(axis=(1, 2))
    if values.shape[2] > 1:
        cosines = _cosine(values[:, :, 1:], values[:, :, :-1])
        table[rows, 1] = cosines.mean(axis=(1, 2))
    means = values.mean(axis=(1, 2))
    table[rows[:-1], 2] = _cosine(means[1:], means[:-1])
    table[rows, 3] = (norms == 0).any(axis=(1, 2))
    moves = (frames[rows] != frames[rows][:, :, :1]).any(axis=2)
    same = (values == values[:, :, :1]).all(axis=(2, 3))
    table[rows, 4] = (moves & same).any(axis=1)
    return table


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine over the last dimension; 0 where one is zero."""
    product = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    cosine: np.ndarray = np.sum(a * b, axis=-1) / np.maximum(product, 1e-12)
    return cosine


@dataclass(frozen=True, kw_only=True, slots=True)
class BadShard:
    """A shard whose marker says that it is finished, and whose files say otherwise."""

    partition: str
    shard: int
    file: Path
    reason: str
    rows: tuple[int, ...] = ()
    """Rows of the partition whose own checksum differs, where that can be told."""

    def __str__(self) -> str:
        rows = f", rows {', '.join(map(str, self.rows[:8]))}" if self.rows else ""
        more = f" and {len(self.rows) - 8} more" if len(self.rows) > 8 else ""
        return f"{self.partition} shard {self.shard}: {self.file}: {self.reason}{rows}{more}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """Result of `verify`."""

    num_shards: int
    """Finished shards that were read."""

    num_pending: int
    num_bytes: int
    bad: tuple[BadShard, ...]
    bad_tables: tuple[str, ...]
    """Faults of lists of videos and labels; planning again repairs the lists."""

    @property
    def is_sound(self) -> bool:
        """True if everything is as it was written."""
        return not self.bad and not self.bad_tables


def verify(store: FeatureStore) -> Verification:
    """Read all finished shards again and compare sizes and checksums.

    Memory stays at a few shards' worth, whatever the size of the store.
    """
    shards = [
        (partition, shard)
        for partition in store.partitions.values()
        for shard in range(partition.num_shards)
        if partition.claim(shard) is not None
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(lambda claimed: check_shard(*claimed), shards))
    total = sum(partition.num_shards for partition in store.partitions.values())
    tables = [_check_tables(store, partition) for partition in store.partitions.values()]
    return Verification(
        num_shards=len(shards),
        num_pending=total - len(shards),
        num_bytes=sum(
            array.file_bytes(partition.rows_per_shard)
            for partition, _ in shards
            for array in partition.geometry.arrays.values()
        ),
        bad=tuple(bad for bad in found if bad is not None),
        bad_tables=tuple(line for line in tables if line),
    )


def drop_bad(store: FeatureStore, bad: Sequence[BadShard]) -> int:
    """Remove the markers of bad shards, so that `bieff extract` writes exactly those again.

    Returns:
        How many markers were removed.

    Raises:
        StoreError: If another run is writing the store.
    """
    with store.exclusive():
        return sum(store.partitions[shard.partition].drop(shard.shard) for shard in bad)


def check_shard(partition: Partition, shard: int) -> BadShard | None:
    """Compare one shard with its marker; None where all is well or nothing is claimed."""
    marker = partition.claim(shard)
    if marker is None:
        return None
    for name, array in partition.geometry.arrays.items():
        file = array.file(partition.path, shard)
        reason, places = _check_file(
            file, array, marker.files.get(name), partition.rows_per_shard
        )
        if reason:
            return BadShard(
                partition=partition.name,
                shard=shard,
                file=file,
                reason=reason,
                rows=tuple(marker.start + place for place in places),
            )
    return None


def _check_file(
    file: Path, array: ArrayLayout, expected: FileSum | None, rows: int
) -> tuple[str, list[int]]:
    """The fault of a file in words, and the rows that have it."""
    if expected is None:
        return "the marker does not know it", []
    if not file.is_file():
        return "missing", []
    size = file.stat().st_size
    if size != expected.size or size != array.file_bytes(rows):
        return f"expected {array.file_bytes(rows)} bytes, got {size}", []
    places = bad_rows(file, array, rows)
    if places:
        return "crc32c differs", places
    if file_sum(file) != expected:
        return "sha256 differs from the marker's", []
    return "", []


def _check_tables(store: FeatureStore, partition: Partition) -> str:
    planned = store.attributes["partitions"][partition.name]["videos"]
    file = f"videos/{partition.name}.jsonl"
    try:
        videos = partition.videos
        if len(videos) != partition.num_videos or identity(videos) != planned:
            return f"{file} is not the list of videos that was planned"
        if max(video.label for video in videos) >= len(store.class_names):
            return f"{file} has a label without a class name"
    except (OSError, StoreError) as error:
        return f"{file} cannot be read: {error}"
    for name, column in columns_of(videos).items():
        try:
            kept = partition.column(name, column.values.dtype.str)
        except StoreError as error:
            return f"{partition.name}/{name} cannot be read: {error}"
        if not np.array_equal(kept, column.values, equal_nan=name != "labels"):
            return f"{partition.name}/{name} differ from {file}"
    return ""
