"""`bieff store`, from options as a user types them."""

from collections.abc import Callable
from pathlib import Path

from bieff.features.check import describe, drop_bad, size, statistics, verify
from bieff.features.errors import InputError
from bieff.features.hdf5 import export_hdf5, import_hdf5
from bieff.features.schema import counted
from bieff.features.store import FeatureStore

Say = Callable[[str], None]

HDF5 = ".h5"


def say_info(path: Path, say: Say, *, with_statistics: bool) -> None:
    """Say what a store holds; with statistics, read it all and say what looks broken."""
    store = FeatureStore.open(path)
    for line in describe(store):
        say(line)
    if not with_statistics:
        return
    for partition in store.partitions.values():
        found = statistics(partition)
        say(
            f"{found.partition}: {found.num_usable:,} usable videos; norm {found.norm}; cosine "
            f"of neighbouring frames {found.frame_cosine}; of videos {found.video_cosine}"
        )
        for finding in found.findings():
            say(f"  {finding}")


def verify_store(path: Path, say: Say, *, drop: bool) -> bool:
    """Read every checksum again and say which shards are bad; whether all is sound.

    Args:
        path: Folder of the store.
        say: Prints a line.
        drop: Remove the markers of bad shards, so that `bieff extract` writes them again.
    """
    store = FeatureStore.open(path)
    result = verify(store)
    for bad in (*result.bad, *result.bad_tables):
        say(str(bad))
    say(
        f"{path}: {counted(result.num_shards, 'shard')} read, {size(result.num_bytes)}, "
        f"{len(result.bad)} bad, {result.num_pending:,} not written yet"
    )
    if result.bad and drop:
        dropped = counted(drop_bad(store, result.bad), "marker")
        say(f"{dropped} dropped; run the same `bieff extract` again to redo them")
    elif result.bad:
        say("give --drop, then run the same `bieff extract` again to redo the bad shards")
    return result.is_sound


def export_store(path: Path, to: Path | None, say: Say) -> None:
    """Write a store to one HDF5 file, beside it unless told otherwise."""
    target = to or path.resolve().with_name(path.resolve().name + HDF5)
    shards = export_hdf5(FeatureStore.open(path), target)
    say(f"{target}: {counted(shards, 'shard')}, {size(target.stat().st_size)}")


def import_store(source: Path, to: Path | None, say: Say) -> None:
    """Make a store of an exported file, in features/ unless told otherwise.

    Raises:
        InputError: If there is no such file, or it is not an exported store.
    """
    if not source.is_file():
        raise InputError(f"no file {source}; give one that `bieff store export` wrote")
    target = to or Path("features") / source.stem
    shards = import_hdf5(source, target)
    say(f"{target}: {counted(shards, 'shard')} written")
