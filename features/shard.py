"""Writing one shard: check, remove the old, one assignment, sync, read back."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import zarr
from jaxtyping import Shaped

from bieff.features.durable import PARTIAL, sync_file
from bieff.features.errors import StoreError
from bieff.features.layout import ArrayLayout, Geometry
from bieff.features.ledger import FileSum
from bieff.features.mapped import map_shard
from bieff.features.schema import ShardData, Status


def check(data: ShardData, geometry: Geometry, shard: int) -> None:
    """Refuse what zarr would let pass: it cuts a row that is too long and spreads a scalar.

    Raises:
        ValueError: If a shape or dtype is not the store's, a usable row holds a number that
            is not finite or a negative frame number, or a status cannot be stored.
    """
    rows = geometry.rows(shard)
    for name, array in geometry.arrays.items():
        values = getattr(data, name)
        expected = (len(rows), *array.row_shape)
        if values is None or values.shape != expected or values.dtype != array.dtype:
            got = "nothing" if values is None else f"{values.dtype} {values.shape}"
            raise ValueError(
                f"{name} of shard {shard}: expected {array.dtype} {expected}, got {got}"
            )
    if data.patches is not None and geometry.patches is None:
        raise ValueError(f"shard {shard}: the store's recipe has no patches, got some")
    storable = [int(s) for s in Status if s not in (Status.PENDING, Status.PADDING)]
    if not np.isin(data.status, storable).all():
        raise ValueError(
            f"status of shard {shard}: expected values in {storable}, "
            f"got {np.unique(data.status).tolist()}"
        )
    _check_usable(data, geometry, shard)


def _check_usable(data: ShardData, geometry: Geometry, shard: int) -> None:
    start = geometry.rows(shard).start
    for i in np.flatnonzero(usable(data.status)):
        if (data.frames[i] < 0).any():
            raise ValueError(f"row {start + i}: expected frame numbers from 0, got a negative")
        for name in ("embeddings", "patches"):
            values = getattr(data, name)
            if values is not None and not np.isfinite(values[i]).all():
                raise ValueError(f"row {start + i}: {name} contain NaN or infinity")


def usable(status: np.ndarray) -> np.ndarray:
    """True where a status carries embeddings."""
    return np.isin(status, [int(s) for s in Status if s.usable])


def padded(values: np.ndarray, data: ShardData, array: ArrayLayout, rows: int) -> np.ndarray:
    """The whole shard: unusable rows emptied, padding at the end."""
    is_status = array.name == "status"
    fill = int(Status.PADDING) if is_status else array.fill
    whole = np.full((rows, *array.row_shape), fill, array.dtype)
    carried = slice(None) if is_status else usable(data.status)
    whole[: len(values)][carried] = values[carried]
    return whole


def remove(partition: Path, array: ArrayLayout, shard: int) -> None:
    """Remove a shard's file and what killed writers left beside it."""
    chunks = partition / array.name / "c"
    target = chunks / str(shard)
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)
    for left in chunks.glob(f"{shard}.*{PARTIAL}"):
        left.unlink()


def write(
    partition: Path, array: ArrayLayout, shard: int, values: Shaped[np.ndarray, "rows ..."]
) -> FileSum:
    """Write a whole shard of one array and read it back.

    The old shard must have been removed: zarr reads it first, and fails on a torn one.

    Raises:
        StoreError: If the file is not what was written.
    """
    rows = len(values)
    # without `write_empty_chunks` rows that are all fill are left out, and the stride breaks;
    # zarr.open_array has a `config` too, but heeds it only for a new array (zarr 3.1.6)
    target = zarr.open_array(partition / array.name, mode="r+", zarr_format=3)
    target = target.with_config({"write_empty_chunks": True})
    target[shard * rows : (shard + 1) * rows] = values
    file = array.file(partition, shard)
    # the bytes must be there before the marker; should a power cut take the folder's entry,
    # the file is missing and the shard is not finished
    sync_file(file)
    if not _same_bytes(map_shard(file, array, rows), values):
        raise StoreError(f"{file} is not what was written; check the disk and run again")
    return file_sum(file)


def file_sum(file: Path) -> FileSum:
    """Size and checksum of a file."""
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
        return FileSum(size=opened.tell(), sha256=digest)


def _same_bytes(a: np.ndarray, b: np.ndarray) -> bool:
    """Bit for bit, so that NaN equals NaN and 0 does not equal -0."""
    bits = np.dtype(f"u{a.dtype.itemsize}")
    return all(np.array_equal(x.view(bits), y.view(bits)) for x, y in zip(a, b, strict=True))
