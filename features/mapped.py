"""Reading at memory speed: a shard's file is mapped, and rows lie at a fixed stride.

zarr's fancy indexing gives hundreds of videos a second whatever the layout; a map gives what
the memory gives.  Checksums are not looked at here; `bieff store verify` does.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from bieff.features.errors import StoreError
from bieff.features.layout import CRC_BYTES, ArrayLayout


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
    inner = np.empty(array.row_shape, array.dtype).strides
    return np.ndarray(
        (rows, *array.row_shape), array.dtype, buffer=data, strides=(array.stride, *inner)
    )


def _check_index(file: Path, array: ArrayLayout, index: np.ndarray) -> None:
    offsets, lengths = index.view("<u8").reshape(-1, 2).T
    expected = np.arange(len(offsets), dtype=np.uint64) * np.uint64(array.stride)
    if not np.array_equal(offsets, expected) or (lengths != array.stride).any():
        raise StoreError(
            f"{file}: rows do not lie at a fixed stride; it was not written by bieff, or is "
            "damaged: run `bieff store verify`"
        )


class MappedArray:
    """One array of a partition, mapped shard by shard as rows are asked for."""

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
        self._views: list[np.ndarray | None] = [None] * num_shards

    def shard(self, shard: int) -> Shaped[np.ndarray, "rows ..."]:
        """A read-only view of one shard, padding included."""
        view = self._views[shard]
        if view is None:
            self._check(shard)
            file = self.array.file(self._partition, shard)
            view = self._views[shard] = map_shard(file, self.array, self._rows_per_shard)
        return view

    def forget(self, shard: int) -> None:
        """Map the shard anew at the next read; its file has changed."""
        self._views[shard] = None

    def take(
        self,
        rows: np.ndarray,
        inner: tuple[slice, ...],
        out: np.ndarray,
    ) -> None:
        """Copy rows to `out`.

        Args:
            rows: Row numbers of the partition, in any order.
            inner: What to take of each row, a slice for each leading dimension.
            out: As many rows, of the shape that `inner` leaves.
        """
        shards, places = np.divmod(rows, self._rows_per_shard)
        views = self._views
        pairs = zip(shards.tolist(), places.tolist(), strict=True)
        whole = all(part == slice(None) for part in inner)
        for i, (shard, place) in enumerate(pairs):
            view = views[shard]
            if view is None:
                view = self.shard(shard)
            out[i] = view[place] if whole else view[place][inner]
