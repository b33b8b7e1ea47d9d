"""Reading at memory speed: a shard's file is mapped, and rows lie at a fixed stride.

zarr's fancy indexing gives hundreds of videos a second whatever the layout; a map gives what
the memory gives.  Checksums are not looked at here; `bieff store verify` does.
"""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped

from bieff.features.address_range import AddressRange
from bieff.features.errors import StoreError
from bieff.features.layout import CRC_BYTES, ArrayLayout

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
