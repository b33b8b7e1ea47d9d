"""Videos whose file has become another one since their features were extracted."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from bieff.features.errors import StoreMismatchError
from bieff.features.partition import Partition
from bieff.features.schema import PartitionPlan, Status, Video
from bieff.features.video_table import is_up_to_date


def drop_replaced(partition: Partition, rows: Sequence[int]) -> None:
    """Remove the markers of the shards that hold these rows."""
    for shard in sorted({row // partition.rows_per_shard for row in rows}):
        partition.drop(shard)


def find_replaced(
    partitions: Mapping[str, Partition], plans: Mapping[str, PartitionPlan], table: Path
) -> dict[str, list[int]]:
    """Rows with features of a file of another size than the one that lies there now.

    A file that is not there (size 0) is no other file: its features stay.

    Args:
        partitions: Of the store.
        plans: What is asked for, the same videos in the same order.
        table: Folder of the lists of videos.
    """
    found = {}
    for name, plan in plans.items():
        if not is_up_to_date(table / f"{name}.jsonl", plan.videos):
            rows = _replaced_rows(partitions[name], plan.videos)
            found.update({name: rows} if rows else {})
    return found


def require_unreplaced(
    partitions: Mapping[str, Partition],
    plans: Mapping[str, PartitionPlan],
    replaced: Mapping[str, Sequence[int]],
) -> None:
    """Refuse to take features of one file for those of another.

    Raises:
        StoreMismatchError: If there are any; names the first.
    """
    for name, rows in replaced.items():
        old, new = partitions[name].videos[rows[0]], plans[name].videos[rows[0]]
        raise StoreMismatchError(
            f"{partitions[name].path}: {len(rows):,} of the videos extracted are other files "
            f"now, the first is {old.id!r}: it had {old.size:,} bytes, {new.path!r} has "
            f"{new.size:,}; choose another --out, or say --retry-failed to extract them again"
        )


def _replaced_rows(partition: Partition, videos: Sequence[Video]) -> list[int]:
    rows = [
        row
        for row, (old, new) in enumerate(zip(partition.videos, videos, strict=True))
        if old.size and new.size and old.size != new.size
    ]
    status = partition.status() if rows else ()
    return [row for row in rows if Status(int(status[row])).usable]
