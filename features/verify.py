"""Finding what a disk did to a store: every checksum of every row, read again with Dask."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import dask

from bieff.features.checksum import bad_rows
from bieff.features.layout import ArrayLayout
from bieff.features.ledger import FileSum
from bieff.features.partition import Partition
from bieff.features.shard import file_sum
from bieff.features.store import FeatureStore
from bieff.features.video_table import identity


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
    """What `verify` found."""

    num_shards: int
    """Finished shards that were read."""

    num_pending: int
    num_bytes: int
    bad: tuple[BadShard, ...]
    bad_tables: tuple[str, ...]
    """What is wrong with lists of videos and labels; planning again repairs the lists."""

    @property
    def is_sound(self) -> bool:
        """Whether everything is as it was written."""
        return not self.bad and not self.bad_tables


def verify(store: FeatureStore, *, scheduler: str = "threads") -> Verification:
    """Read all finished shards again and compare sizes and checksums.

    Memory stays at a few shards' worth, whatever the size of the store.

    Args:
        store: The store.
        scheduler: Dask's; "threads", "processes" or "synchronous".
    """
    shards = [
        (partition, shard)
        for partition in store.partitions.values()
        for shard in range(partition.num_shards)
        if partition.claim(shard) is not None
    ]
    check = dask.delayed(check_shard, pure=False)
    found = dask.compute(*(check(*which) for which in shards), scheduler=scheduler)
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
    """What is wrong with a file, in words, and with which rows."""
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
    except (OSError, ValueError, LookupError, TypeError) as error:
        return f"{file} cannot be read: {error}"
    try:
        if partition.labels.tolist() != [video.label for video in videos]:
            return f"{partition.name}/labels differ from {file}"
    except ValueError as error:  # zarr's word for a checksum that differs
        return f"{partition.name}/labels cannot be read: {error}"
    return ""
