"""Writing one shard and its marker: check, remove the old, one assignment, sync, read back."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from google_crc32c import value as crc32c
from jaxtyping import Shaped, UInt8

from bieff.features.errors import StoreError
from bieff.features.files import PARTIAL, parse_json, sync, write_atomically
from bieff.features.rows import map_shard
from bieff.features.schema import (
    CRC_BYTES,
    SCHEMA_VERSION,
    ArrayLayout,
    Geometry,
    ShardData,
    Status,
    VideoError,
)


@dataclass(frozen=True, slots=True)
class FileSum:
    """A finished file."""

    size: int
    """Bytes."""

    sha256: str
    """SHA-256 of the whole file.

    Not its crc32c: a row followed by its own crc32c leaves the checksum of the file at the
    same value whatever the row holds, so that two shards of equal length would pass for
    each other.
    """


@dataclass(frozen=True, kw_only=True, slots=True)
class Marker:
    """Mark of a finished shard, with what its files must be."""

    partition: str
    shard: int
    start: int
    """First row."""

    stop: int
    """Row after the last one that is a video."""

    recipe_hash: str
    files: Mapping[str, FileSum]
    """Files by array."""

    counts: Mapping[str, int]
    """Videos by status."""

    seconds: Mapping[str, float]
    """Seconds by what took them."""

    versions: Mapping[str, str] = field(default_factory=dict)
    """The libraries that decoded and encoded it; empty in stores of before."""

    @property
    def has_bad(self) -> bool:
        """True if a video of the shard has failed, or was salvaged from a damaged file."""
        bad = (
            Status[name.upper()] is not Status.OK for name, num in self.counts.items() if num
        )
        return any(bad)


def parse_marker(content: bytes, partition: str, shard: int) -> Marker | None:
    """The marker of that shard; None if it is torn, of another one, or of another version."""
    try:
        values = parse_json(content)
        if values.pop("schema_version") != SCHEMA_VERSION:
            return None
        files = {name: FileSum(**file) for name, file in values.pop("files").items()}
        marker = Marker(files=files, **values)
        is_sound = (
            (marker.partition, marker.shard) == (partition, shard)
            and all(name.upper() in Status.__members__ for name in marker.counts)
            and all(type(number) is int for number in marker.counts.values())
            and all(type(took) in (int, float) for took in marker.seconds.values())
            and all(isinstance(version, str) for version in marker.versions.values())
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return marker if is_sound else None


class Ledger:
    """The markers of a store, `ledger/<partition>-<shard>.json`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def file(self, partition: str, shard: int) -> Path:
        """The file of a shard's marker."""
        return self._folder / f"{partition}-{shard:05d}.json"

    def write(self, marker: Marker) -> None:
        """Finish a shard."""
        values = {"schema_version": SCHEMA_VERSION, **asdict(marker)}
        text = json.dumps(values, indent=1, sort_keys=True) + "\n"
        write_atomically(self.file(marker.partition, marker.shard), text.encode())

    def read(self, partition: str, shard: int) -> Marker | None:
        """The marker of a shard; None where there is none that can be read."""
        try:
            return parse_marker(self.file(partition, shard).read_bytes(), partition, shard)
        except OSError:
            return None

    def remove(self, partition: str, shard: int) -> bool:
        """Make a shard unfinished.  False where it was."""
        try:
            self.file(partition, shard).unlink()
        except FileNotFoundError:
            return False
        sync(self._folder)
        return True


def write_errors(path: Path, errors: Sequence[VideoError]) -> None:
    """Replace the error file of a shard; without errors there is none."""
    if errors:
        write_atomically(path, "".join(_line(error) for error in errors).encode())
    elif path.exists():
        path.unlink()
        sync(path.parent)


def read_errors(path: Path) -> list[VideoError]:
    """The errors of a shard, in the order in which they were written.

    Raises:
        StoreError: If a line is none.
    """
    try:
        return parse_errors(path.read_bytes())
    except FileNotFoundError:
        return []
    except ValueError:
        raise StoreError(
            f"{path} is damaged; remove the file of the same name in ledger/ and run the same "
            "`bieff extract` again"
        ) from None


def parse_errors(content: bytes) -> list[VideoError]:
    """The errors of the lines of a file.

    Raises:
        ValueError: If a line is none.
    """
    try:
        return [_parse(line) for line in content.splitlines()]
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(str(error)) from error


def require_reasons(
    status: UInt8[np.ndarray, " n"], errors: Sequence[VideoError], rows: range
) -> None:
    """Refuse a shard with a video that has no embeddings and no error that says why.

    Raises:
        ValueError: Naming the row; also for an error of another shard.
    """
    explained = {error.row for error in errors}
    if strange := explained - set(rows):
        raise ValueError(
            f"errors: expected rows {rows.start} to {rows.stop - 1}, got {min(strange)}"
        )
    for row, value in zip(rows, status.tolist(), strict=True):
        if not Status(value).usable and row not in explained:
            raise ValueError(f"row {row}: not usable, and no error says why")


def _line(error: VideoError) -> str:
    return json.dumps({**asdict(error), "status": error.status.name.lower()}) + "\n"


def _parse(line: bytes) -> VideoError:
    values = parse_json(line)
    values["status"] = Status[values["status"].upper()]
    return VideoError(**values)


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


def _padded(data: ShardData, array: ArrayLayout, rows: int) -> Shaped[np.ndarray, "rows ..."]:
    """The whole shard: unusable rows emptied, padding at the end."""
    is_status = array.name == "status"
    fill = int(Status.PADDING) if is_status else array.fill
    whole = np.full((rows, *array.row_shape), fill, array.dtype)
    carried = slice(None) if is_status else usable(data.status)
    values = getattr(data, array.name)
    whole[: len(values)][carried] = values[carried]
    return whole


def remove(partition: Path, array: ArrayLayout, shard: int) -> None:
    """Remove a shard's file and what killed writers left beside it."""
    chunks = partition / array.name / "c"
    target = chunks / str(shard)
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)
    for left in chunks.glob(f"{shard}.*{PARTIAL}"):
        left.unlink()


def write(
    partition: Path, array: ArrayLayout, shard: int, data: ShardData, rows: int
) -> FileSum:
    """Write a whole shard of one array in place of what lies there, and read it back.

    Args:
        partition: Folder of the partition.
        array: Which array.
        shard: Number of the shard.
        data: All arrays of the shard's videos, without padding.
        rows: S.

    Raises:
        StoreError: If the file is not what was written.
    """
    remove(partition, array, shard)  # zarr would read it first, and fails on a torn one
    values = _padded(data, array, rows)
    # without `write_empty_chunks` rows that are all fill are left out, and the stride breaks;
    # zarr.open_array has a `config` too, but heeds it only for a new array (zarr 3.1.6)
    target = zarr.open_array(partition / array.name, mode="r+", zarr_format=3)
    target = target.with_config({"write_empty_chunks": True})
    target[shard * rows : (shard + 1) * rows] = values
    file = array.file(partition, shard)
    # the bytes must be there before the marker; should a power cut take the folder's entry,
    # the file is missing and the shard is not finished
    sync(file)
    if not _same_bytes(map_shard(file, array, rows), values):
        raise StoreError(f"{file} is not what was written; check the disk and run again")
    return file_sum(file)


def is_whole(data: np.ndarray) -> bool:
    """True if bytes agree with the crc32c at their end."""
    stored = int.from_bytes(data[-CRC_BYTES:].tobytes(), "little")
    covered: Any = data[:-CRC_BYTES]  # takes arrays, and is not annotated so
    return bool(crc32c(covered) == stored)


def bad_rows(file: Path, array: ArrayLayout, rows: int) -> list[int]:
    """Rows of a shard whose crc32c differs; of an array with one checksum, all or none."""
    data = np.memmap(file, np.uint8, mode="r")
    if not array.is_sharded:
        return [] if is_whole(data) else list(range(rows))
    stride = array.stride
    return [row for row in range(rows) if not is_whole(data[row * stride : (row + 1) * stride])]


def file_sum(file: Path) -> FileSum:
    """Size and checksum of a file."""
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
        return FileSum(size=opened.tell(), sha256=digest)


def _same_bytes(a: np.ndarray, b: np.ndarray) -> bool:
    """Bit for bit, so that NaN equals NaN and 0 does not equal -0."""
    bits = np.dtype(f"u{a.dtype.itemsize}")
    return all(np.array_equal(x.view(bits), y.view(bits)) for x, y in zip(a, b, strict=True))
