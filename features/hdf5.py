"""One HDF5 file for people and clusters that want one, and the same store out of it again.

    /train/embeddings, frames, status, labels, patches    rows of the videos, no padding
    /train/ids                                            names of the videos, by row
    /files/zarr.json, videos, ledger, errors              files of the store, as they are

Shards that were not finished are left out; their rows hold fill values and status 0.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from bieff.features.check import check_shard
from bieff.features.errors import BieffError, InputError, StoreError, StoreMismatchError
from bieff.features.files import PARTIAL, disk_errors, exclusive, require_space, sync
from bieff.features.partition import Partition
from bieff.features.plan import (
    FOLDERS,
    METADATA_NAME,
    is_planned,
    parse_attributes,
    write_plan,
)
from bieff.features.schema import SCHEMA_VERSION, PartitionPlan, ShardData, VideoError
from bieff.features.shard import Marker, parse_errors, parse_marker
from bieff.features.store import FeatureStore
from bieff.features.videos import VideoTable, identity, is_up_to_date, table_file

_FORMAT = "bieff feature store"
_FILTERS = {1, 2, 3}
"""Filters of HDF5 itself: deflate, shuffle, checksums."""

LOOK_SECONDS = 120.0
"""Least time for another process to read what a file says of itself."""


def export_hdf5(store: FeatureStore, target: Path) -> int:
    """Write all finished shards of a store to one HDF5 file.

    Args:
        store: The store; it is only read.
        target: The file; must not exist.

    Returns:
        How many shards were written.

    Raises:
        StoreError: If the file exists, a shard is damaged or the disk is full.
    """
    if target.exists():
        raise StoreError(f"{target} exists; remove it or choose another name")
    # on a full disk the HDF5 library ends the whole process (seen with h5py 3.16)
    require_space(target, _num_bytes(store))
    partial = target.with_name(target.name + PARTIAL)
    with disk_errors(target.parent):
        with h5py.File(partial, "w") as file:
            file.attrs["format"] = _FORMAT
            file.attrs["schema_version"] = SCHEMA_VERSION
            num_shards = sum(
                _export_partition(file, partition) for partition in store.partitions.values()
            )
            for path in _plan_files(store):
                _put_file(file, store.path, path)
        sync(partial)
        partial.replace(target)
    return num_shards


def import_hdf5(source: Path, path: Path) -> int:
    """Make a store from a file that `export_hdf5` wrote, byte for byte.

    May be killed and run again: shards that are finished by then are kept.

    Args:
        source: The HDF5 file.
        path: Folder of the store; empty, not there, or the rest of an earlier import.

    Returns:
        How many shards were written.

    Raises:
        InputError: If the file is not an exported store.
        StoreMismatchError: If another store lies at `path`.
        StoreError: If a shard of the file is damaged, or `path` holds something else.
    """
    try:
        file = h5py.File(source, "r")
    except OSError as error:
        raise InputError(f"cannot read {source} as HDF5: {error}") from None
    with file:
        _require_readable(source)
        with _reading(source):
            attributes, plans = _read_plan(file)
        if path.is_dir():
            _require_no_links(path)
        with disk_errors(path.parent):
            path.mkdir(parents=True, exist_ok=True)
        with exclusive(path), disk_errors(path):
            if not is_planned(path):
                write_plan(path, attributes, plans)
            store = FeatureStore.open(path)
            if store.attributes != attributes or not all(
                is_up_to_date(table_file(path, name), plan.videos)
                for name, plan in plans.items()
            ):
                raise StoreMismatchError(f"{path} is another store; choose another folder")
            return sum(
                _import_partition(file, partition) for partition in store.partitions.values()
            )


def _num_bytes(store: FeatureStore) -> int:
    """Bytes that the file will need, a little more rather than less."""
    tables = sum(file.stat().st_size for file in _plan_files(store))
    shards = sum(
        array.file_bytes(partition.rows_per_shard) * int(partition.done().sum())
        for partition in store.partitions.values()
        for array in partition.geometry.arrays.values()
    )
    videos = sum(partition.num_videos for partition in store.partitions.values())
    return 2**20 + 2 * tables + shards + shards // 50 + 200 * videos


def _export_partition(file: h5py.File, partition: Partition) -> int:
    group = file.create_group(partition.name)
    for name, array in partition.geometry.arrays.items():
        chunk = (1 if array.is_sharded else partition.rows_per_shard, *array.row_shape)
        shape = (partition.num_videos, *array.row_shape)
        dataset = group.create_dataset(
            name,
            shape,
            array.dtype,
            chunks=tuple(min(sizes) for sizes in zip(chunk, shape, strict=True)),
            fillvalue=array.fill,
            fletcher32=True,
        )
        for dimension, label in zip(dataset.dims, ("video", *array.dims), strict=True):
            dimension.label = label
    group.create_dataset("labels", data=partition.labels.astype(np.int32))
    ids = [video.id for video in partition.videos]
    group.create_dataset("ids", data=ids, dtype=h5py.string_dtype())
    finished = np.flatnonzero(partition.done()).tolist()
    for shard in finished:
        if bad := check_shard(partition, shard):
            raise StoreError(f"{bad}; run `bieff store verify`")
        rows = partition.geometry.rows(shard)
        data = partition.read_shard(shard)
        for name in partition.geometry.arrays:
            group[name][rows.start : rows.stop] = getattr(data, name)
        for path in partition.shard_files(shard):
            if path.exists():
                _put_file(file, partition.path.parent, path)
    return len(finished)


@contextmanager
def _reading(source: Path) -> Iterator[None]:
    """Turn what the HDF5 library, or JSON, cannot read in a file into one sentence."""
    try:
        yield
    except BieffError:
        raise
    except (OSError, RuntimeError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{source} is damaged: {error}; export it again") from None


def look(source: str) -> None:
    """Read what an import reads of a file before it writes anything."""
    with h5py.File(source, "r") as file:
        _read_plan(file)


def _require_readable(source: Path) -> None:
    """Have another process look first: of some damaged files the HDF5 library never returns.

    What that process can say in a sentence is found again, and said, in this one.
    """
    code = "import sys; from bieff.features.hdf5 import look; look(sys.argv[1])"
    command = [sys.executable, "-P", "-c", code, str(source.absolute())]
    seconds = LOOK_SECONDS + source.stat().st_size / 1e7
    try:
        ended = subprocess.run(command, capture_output=True, timeout=seconds).returncode
    except subprocess.TimeoutExpired:
        ended = -1
    if ended < 0:  # by a signal, ours or its own
        raise InputError(
            f"{source} is damaged: the HDF5 library does not come back from reading it; export "
            "it again"
        )


def _read_plan(file: h5py.File) -> tuple[dict[str, Any], dict[str, PartitionPlan]]:
    """The attributes and the videos, checked like those of a store that lies there.

    No more is taken of a file than these, rows, markers and errors: the metadata of groups
    and arrays is made anew, and nothing is written under a name that comes from the file.
    """
    source = Path(file.filename)
    if file.attrs.get("format") != _FORMAT:
        raise InputError(f"{source} is not an exported feature store")
    require_own(file)
    if (version := file.attrs["schema_version"]) != SCHEMA_VERSION:
        raise InputError(f"{source}: expected schema version {SCHEMA_VERSION}, got {version}")
    attributes = parse_attributes(
        source / "files" / METADATA_NAME, _get_file(file, METADATA_NAME) or b""
    )
    known = {METADATA_NAME, *FOLDERS, *attributes["partitions"]}
    if strange := set(file["files"]) - known:
        raise InputError(f"{source} holds a file outside the store: {min(strange)!r}")
    plans = {}
    for name, sizes in attributes["partitions"].items():
        table = table_file(Path(), name)
        lines = (_get_file(file, table.as_posix()) or b"").splitlines()
        reader = VideoTable(source / "files" / table)
        videos = [reader.parse(line, row) for row, line in enumerate(lines)]
        top = max((video.label for video in videos), default=0)
        if (
            len(videos) != sizes["num_videos"]
            or identity(videos) != sizes["videos"]
            or top >= len(attributes["class_names"])
        ):
            raise InputError(
                f"{source}: {table} is not the list of videos that was planned; export it again"
            )
        plans[name] = PartitionPlan(videos=videos, num_views=sizes["num_views"])
    return attributes, plans


def _require_no_links(path: Path) -> None:
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            if (Path(folder) / name).is_symlink():
                raise StoreError(
                    f"{Path(folder) / name} is a link, which an import does not follow; choose "
                    "another folder"
                )


def _import_partition(file: h5py.File, partition: Partition) -> int:
    """Write the shards that the file has and the store has not."""
    num_written = 0
    for shard in partition.pending():
        with _reading(Path(file.filename)):
            exported = _read_shard(file, partition, shard)
        if exported is None:
            continue
        marker, errors, data = exported
        try:
            partition.write_shard(
                shard,
                data,
                errors=errors,
                seconds=marker.seconds,
                versions=marker.versions,
                expected=marker,
            )
        except ValueError as error:
            raise InputError(f"{file.filename}: {error}; export it again") from None
        num_written += 1
    return num_written


def _read_shard(
    file: h5py.File, partition: Partition, shard: int
) -> tuple[Marker, list[VideoError], ShardData] | None:
    store = partition.path.parent
    content, lines = (
        _get_file(file, path.relative_to(store).as_posix())
        for path in partition.shard_files(shard)
    )
    if content is None:
        return None
    marker = parse_marker(content, partition.name, shard)
    if marker is None or marker.recipe_hash != partition.recipe_hash:
        raise ValueError(f"the marker of {partition.name} shard {shard} is none")
    rows = partition.geometry.rows(shard)
    arrays = {}
    for name, array in partition.geometry.arrays.items():
        dataset = file.get(f"{partition.name}/{name}")
        shape = (partition.num_videos, *array.row_shape)
        if not isinstance(dataset, h5py.Dataset) or dataset.shape != shape:
            raise ValueError(f"expected {name} of {partition.name} to be of shape {shape}")
        arrays[name] = dataset[rows.start : rows.stop]
    return marker, parse_errors(lines or b""), ShardData(**arrays)


def _plan_files(store: FeatureStore) -> list[Path]:
    """Files of the plan, of which an import makes all others but shards, markers and errors."""
    tables = [table_file(store.path, name) for name in store.partitions]
    return [*tables, store.path / METADATA_NAME]


def _put_file(file: h5py.File, store: Path, path: Path) -> None:
    data = np.frombuffer(path.read_bytes(), np.uint8)
    file.create_dataset(f"files/{path.relative_to(store).as_posix()}", data=data)


def _get_file(file: h5py.File, name: str) -> bytes | None:
    item = file.get(f"files/{name}")
    if item is None:
        return None
    # data that were never written, or are compressed, may claim any size
    if not isinstance(item, h5py.Dataset) or item.nbytes != item.id.get_storage_size():
        raise ValueError(f"expected plain bytes at files/{name}")
    return bytes(item[()].tobytes())


def require_own(file: h5py.File) -> None:
    """Refuse a file with anything that leads out of it.

    Raises:
        ValueError: If it holds a link that is not hard, data that lie in other files or pass
            through filters that are not HDF5's own, or what is neither a group nor data.
    """
    groups, seen = [file], set()
    while groups:
        group = groups.pop()
        for name in group:
            where = f"{group.name}/{name}".lstrip("/")
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise ValueError(f"{where} is a link, which is not followed")
            item = group[name]
            place = h5py.h5o.get_info(item.id).addr
            if place not in seen:  # a group may hold itself
                seen.add(place)
                groups += [item] if isinstance(item, h5py.Group) else []
                _require_here(item, where)


def _require_here(item: Any, where: str) -> None:
    if isinstance(item, h5py.Group):
        return
    if not isinstance(item, h5py.Dataset):
        raise ValueError(f"{where} is neither a group nor data")
    created = item.id.get_create_plist()
    filters = {created.get_filter(i)[0] for i in range(created.get_nfilters())}
    if item.is_virtual or item.external or not filters <= _FILTERS:
        raise ValueError(f"the data of {where} do not lie in the file as they should")
