"""Reading rows of a partition: through the map, and through zarr with the same result."""

import ctypes
import mmap
import os
import weakref
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from jaxtyping import Int64, Shaped

from bieff.features.errors import StoreError
from bieff.features.schema import CRC_BYTES, ArrayLayout, Geometry

_MAP_FIXED = 0x10
"""The same number on Linux, macOS and the BSDs; Python's `mmap` has no name for it."""

_FAILED = ctypes.c_void_p(-1).value


class AddressRange:
    """Reserved addresses, in slots of whole pages; a slot holds one file, read-only."""

    def __init__(self, num_slots: int, file_bytes: int) -> None:
        """Reserve; no memory is used before a file is mapped and read.

        Args:
            num_slots: How many files fit.
            file_bytes: Size of each.
        """
        self.slot_bytes = -(-file_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self._file_bytes = file_bytes
        self._num_bytes = num_slots * self.slot_bytes
        self._libc = _libc()
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._start = self._map(None, self._num_bytes, 0, flags, -1)
        weakref.finalize(self, self._libc.munmap, self._start, self._num_bytes)

    def buffer(self) -> memoryview:
        """All addresses; touching a slot that holds no file ends the process.

        The range must outlive it.
        """
        return memoryview((ctypes.c_char * self._num_bytes).from_address(self._start))

    def map_file(self, slot: int, file: Path) -> None:
        """Put a file of the right size into a slot, in place of what is there."""
        descriptor = os.open(file, os.O_RDONLY)
        try:
            if os.fstat(descriptor).st_size != self._file_bytes:
                raise ValueError(f"{file}: expected {self._file_bytes} bytes")
            address = self._start + slot * self.slot_bytes
            flags = mmap.MAP_SHARED | _MAP_FIXED
            self._map(address, self._file_bytes, mmap.PROT_READ, flags, descriptor)
        finally:
            os.close(descriptor)

    def _map(
        self, address: int | None, num_bytes: int, protection: int, flags: int, descriptor: int
    ) -> int:
        mapped = self._libc.mmap(address, num_bytes, protection, flags, descriptor, 0)
        if mapped is None or mapped == _FAILED:
            number = ctypes.get_errno()
            raise OSError(number, f"cannot map {num_bytes:,} bytes: {os.strerror(number)}")
        return int(mapped)


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_long,
    ]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc


_BLOCK = 64
"""Rows copied at a time into a given array, by way of one that the cache holds."""


def map_shard(file: Path, array: ArrayLayout, rows: int) -> Shaped[np.ndarray, "rows ..."]:
    """A read-only view of a shard's rows, in the file itself.

    Raises:
        StoreError: If the file is missing, has another size, or zarr's index says that the
            rows do not lie one after the other.
    """
    try:
        data = np.memmap(file, np.uint8, mode="r")
    except (FileNotFoundError, ValueError):  # numpy's word for an empty file
        raise StoreError(f"{file} is missing or empty; run `bieff store verify`") from None
    if data.size != array.file_bytes(rows):
        raise StoreError(
            f"{file}: expected {array.file_bytes(rows)} bytes, got {data.size}; run "
            "`bieff store verify`"
        )
    if array.is_sharded:
        _check_index(file, array, data[rows * array.stride : -CRC_BYTES])
    return np.ndarray((rows, *array.row_shape), array.dtype, data, 0, _strides(array))


def _check_index(file: Path, array: ArrayLayout, index: np.ndarray) -> None:
    offsets, lengths = index.view("<u8").reshape(-1, 2).T
    expected = np.arange(len(offsets), dtype=np.uint64) * np.uint64(array.stride)
    if not np.array_equal(offsets, expected) or (lengths != array.stride).any():
        raise StoreError(
            f"{file}: rows do not lie at a fixed stride; it was not written by bieff, or is "
            "damaged: run `bieff store verify`"
        )


class MappedArray:
    """One array of a partition, its shards mapped as rows are asked for."""

    def __init__(
        self,
        partition: Path,
        array: ArrayLayout,
        *,
        num_shards: int,
        rows_per_shard: int,
        check: Callable[[int], None],
    ) -> None:
        """Nothing is opened yet.

        Args:
            partition: Folder of the partition.
            array: Which array.
            num_shards: Of the partition.
            rows_per_shard: S.
            check: Raises if the shard may not be read.
        """
        self.array = array
        self._partition = partition
        self._rows_per_shard = rows_per_shard
        self._check = check
        self._is_open = np.zeros(num_shards, dtype=bool)

    @cached_property
    def _range(self) -> AddressRange:
        return AddressRange(len(self._is_open), self.array.file_bytes(self._rows_per_shard))

    @cached_property
    def _rows(self) -> Shaped[np.ndarray, "shards rows ..."]:
        """All shards; rows of those that are not open must not be touched."""
        strides = (self._range.slot_bytes, *_strides(self.array))
        shape = (len(self._is_open), self._rows_per_shard, *self.array.row_shape)
        rows: np.ndarray = np.ndarray(shape, self.array.dtype, self._range.buffer(), 0, strides)
        rows.flags.writeable = False
        return rows

    def forget(self, shard: int) -> None:
        """Map the shard anew at the next read; its file has changed."""
        self._is_open[shard] = False

    def take(
        self,
        rows: Int64[np.ndarray, " n"],
        inner: tuple[slice, ...],
        out: np.ndarray | None = None,
    ) -> Shaped[np.ndarray, "n ..."]:
        """Copy rows.

        Args:
            rows: Row numbers of the partition, in any order.
            inner: What to take of each row, a slice for each leading dimension.
            out: Where to put them; None makes an array.
        """
        shards, places = np.divmod(rows, self._rows_per_shard)
        if not self._is_open[shards].all():
            for shard in np.unique(shards[~self._is_open[shards]]).tolist():
                self._open(shard)
        if out is None:
            return self._pick(shards, places, inner)
        for start in range(0, len(rows), _BLOCK):
            block = slice(start, start + _BLOCK)
            out[block] = self._pick(shards[block], places[block], inner)
        return out

    def _pick(
        self, shards: np.ndarray, places: np.ndarray, inner: tuple[slice, ...]
    ) -> np.ndarray:
        index: Any = (shards, places, *inner)
        picked: np.ndarray = self._rows[index]
        return picked

    def _open(self, shard: int) -> None:
        self._check(shard)
        file = self.array.file(self._partition, shard)
        map_shard(file, self.array, self._rows_per_shard)  # looks at its size and index
        self._range.map_file(shard, file)
        self._is_open[shard] = True


def _strides(array: ArrayLayout) -> tuple[int, ...]:
    return (array.stride, *np.empty(array.row_shape, array.dtype).strides)


Rows = Sequence[int] | np.ndarray | slice
"""Row numbers from 0, in any order, or a slice of all rows."""

Slices = tuple[slice | None, ...]
"""What to take of the dimensions after the first; None, or nothing, takes all."""


class RowReader:
    """Reads rows of all arrays of a partition."""

    def __init__(
        self, partition: Path, geometry: Geometry, *, check: Callable[[int], None]
    ) -> None:
        """Nothing is opened yet; `check` raises if a shard may not be read."""
        self._partition = partition
        self._geometry = geometry
        self._check = check
        self._mapped = {
            name: MappedArray(
                partition,
                array,
                num_shards=geometry.num_shards,
                rows_per_shard=geometry.rows_per_shard,
                check=check,
            )
            for name, array in geometry.arrays.items()
        }

    def take(
        self, name: str, rows: Rows, slices: Slices = (), out: np.ndarray | None = None
    ) -> Shaped[np.ndarray, "n ..."]:
        """Copy rows out of the map.

        Raises:
            IndexError: If a row is not a video.
            StoreError: If its shard is not finished.
        """
        mapped = self._mapped[name]
        numbers = self._numbers(rows)
        inner = tuple(part or slice(None) for part in slices)
        if out is not None:
            sizes = mapped.array.row_shape
            cut = (len(range(size)[part]) for size, part in zip(sizes, inner, strict=False))
            shape = (len(numbers), *cut, *sizes[len(inner) :])
            if out.shape != shape or out.dtype != mapped.array.dtype:
                raise ValueError(
                    f"out: expected {mapped.array.dtype} {shape}, got {out.dtype} {out.shape}"
                )
        return mapped.take(numbers, inner, out)

    def take_plain(
        self, name: str, rows: Rows, slices: Slices = ()
    ) -> Shaped[np.ndarray, "n ..."]:
        """The same rows through zarr, which looks at their checksums.

        Raises:
            IndexError: If a row is not a video.
            StoreError: If its shard is not finished.
        """
        numbers = self._numbers(rows)
        for shard in np.unique(numbers // self._geometry.rows_per_shard).tolist():
            self._check(shard)
        array = zarr.open_array(self._partition / name, mode="r", zarr_format=3)
        inner = tuple(part or slice(None) for part in slices)
        inner += (slice(None),) * (array.ndim - 1 - len(inner))
        return np.asarray(array.get_orthogonal_selection((numbers, *inner)))

    def forget(self, shard: int) -> None:
        """Map the shard anew at the next read; its files have changed."""
        for mapped in self._mapped.values():
            mapped.forget(shard)

    def _numbers(self, rows: Rows) -> Int64[np.ndarray, " n"]:
        num_videos = self._geometry.num_videos
        if isinstance(rows, slice):
            return np.arange(num_videos, dtype=np.int64)[rows]
        numbers = np.asarray(rows, dtype=np.int64)
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < num_videos:
            raise IndexError(
                f"{self._partition}: expected rows in 0..{num_videos - 1}, "
                f"got {numbers.min()}..{numbers.max()}"
            )
        return numbers
