"""What a store holds and how much of it is done, on one screen."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from bieff.features.counted import counted
from bieff.features.partition import Partition
from bieff.features.recipe import leaves
from bieff.features.schema import Status
from bieff.features.store import FeatureStore

_UNITS = ("bytes", "kB", "MB", "GB", "TB")


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """Of one partition; read from the markers alone, so in an instant."""

    name: str
    num_videos: int
    num_views: int
    num_shards: int
    num_done: int
    counts: Mapping[Status, int]
    """Videos by status; those of unfinished shards are pending."""

    num_bytes: int
    """Of the finished shards."""

    planned_bytes: int
    """Of all shards."""

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


def summarize(partition: Partition) -> Summary:
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
    return Summary(
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
    return [
        f"{store.path}: schema version {store.attributes['schema_version']}, recipe "
        f"{store.recipe_hash[:12]}, {len(store.class_names)} classes",
        *recipe,
        f"  written with {versions or 'versions unknown'}",
        f"  videos below {store.root or '.'}",
        *(str(summarize(partition)) for partition in store.partitions.values()),
    ]


def size(num_bytes: float) -> str:
    """Bytes in the unit that suits them."""
    for unit in _UNITS:
        if num_bytes < 1000 or unit == _UNITS[-1]:
            break
        num_bytes /= 1000
    return f"{num_bytes:.3g} {unit}"
