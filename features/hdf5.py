"""One HDF5 file for people and clusters that want one, and the same store out of it again.

    /train/embeddings, frames, status, labels, patches    rows of the videos, no padding
    /train/ids                                            names of the videos, by row
    /files/...                                            the store's other files, as they are

Shards that were not finished are left out; their rows hold fill values and status 0.
"""

import json
from pathlib import Path

import h5py
import numpy as np

from bieff.features.check import check_shard
from bieff.features.errors import InputError, StoreError, StoreMismatchError
from bieff.features.files import (
    PARTIAL,
    disk_errors,
    exclusive,
    require_space,
    sync,
    write_atomically,
)
from bieff.features.partition import Partition
from bieff.features.plan import FOLDERS, METADATA_NAME, is_planned, require_vacant
from bieff.features.schema import SCHEMA_VERSION, ShardData
from bieff.features.shard import write
from bieff.features.store import FeatureStore
from bieff.features.videos import table_file

_FORMAT = "bieff feature store"
_PER_SHARD = ("ledger", "errors")


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
        if file.attrs.get("format") != _FORMAT:
            raise InputError(f"{source} is not an exported feature store")
        if file.attrs["schema_version"] != SCHEMA_VERSION:
            raise InputError(
                f"{source}: expected schema version {SCHEMA_VERSION}, got "
                f"{file.attrs['schema_version']}"
            )
        with disk_errors(path.parent):
            path.mkdir(parents=True, exist_ok=True)
        with exclusive(path), disk_errors(path):
            _import_plan(file, path)
            store = FeatureStore.open(path)
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


def _import_partition(file: h5py.File, partition: Partition) -> int:
    """Write the shards that the file has and the store has not."""
    num_written = 0
    for shard in partition.pending():
        marker, errors = partition.shard_files(shard)
        content = _get_file(file, partition.path.parent, marker)
        if content is None:
            continue
        known = json.loads(content)["files"]
        rows = partition.geometry.rows(shard)
        group = file[partition.name]
        data = ShardData(
            **{name: group[name][rows.start : rows.stop] for name in partition.geometry.arrays}
        )
        marker.unlink(missing_ok=True)
        for name, array in partition.geometry.arrays.items():
            written = write(partition.path, array, shard, data, partition.rows_per_shard)
            if written.sha256 != known[name]["sha256"]:
                raise StoreError(
                    f"{file.filename}: {name} of {partition.name} shard {shard} is not what "
                    "was exported; export it again"
                )
        explained = _get_file(file, partition.path.parent, errors)
        if explained is not None:
            write_atomically(errors, explained)
        write_atomically(marker, content)
        num_written += 1
    return num_written


def _plan_files(store: FeatureStore) -> list[Path]:
    """Everything but shards, markers and errors; the root's metadata last."""
    files = [table_file(store.path, name) for name in store.partitions]
    for partition in store.partitions.values():
        files.append(partition.path / METADATA_NAME)
        files += [
            partition.path / name / METADATA_NAME
            for name in (*partition.geometry.arrays, "labels")
        ]
        files.append(partition.path / "labels" / "c" / "0")
    return [*files, store.path / METADATA_NAME]


def _import_plan(file: h5py.File, path: Path) -> None:
    """Write the metadata as it was, unless a killed import did so."""
    content: dict[str, bytes] = {}

    def collect(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and name.split("/")[0] not in _PER_SHARD:
            content[name] = item[()].tobytes()

    file["files"].visititems(collect)
    if is_planned(path):
        if any((path / name).read_bytes() != data for name, data in content.items()):
            raise StoreMismatchError(f"{path} is another store; choose another folder")
        return
    require_vacant(path, [name for name in file if name != "files"])
    for folder in FOLDERS:
        (path / folder).mkdir(exist_ok=True)
    root = content.pop(METADATA_NAME)
    for name, data in content.items():
        if ".." in name.split("/"):
            raise InputError(f"{file.filename} holds a file outside the store: {name!r}")
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path / name, data)
    write_atomically(path / METADATA_NAME, root)


def _put_file(file: h5py.File, store: Path, path: Path) -> None:
    data = np.frombuffer(path.read_bytes(), np.uint8)
    file.create_dataset(f"files/{path.relative_to(store).as_posix()}", data=data)


def _get_file(file: h5py.File, store: Path, path: Path) -> bytes | None:
    item = file.get(f"files/{path.relative_to(store).as_posix()}")
    return None if item is None else bytes(item[()].tobytes())
