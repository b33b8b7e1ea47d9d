"""Reading rows of a partition: each shard is one `np.memmap`, opened when first asked for."""

import resource
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64, Shaped

from bieff.features.errors import StoreError
from bieff.features.schema import CRC_BYTES, ArrayLayout, Geometry

Rows = Sequence[int] | np.ndarray | slice
"""Row numbers from 0, in any order, or a slice of all rows."""

Slices = tuple[slice | None, ...]
"""Parts to take of the dimensions after the first; None, or nothing, takes all."""


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
    strides = (array.stride, *np.empty(array.row_shape, array.dtype).strides)
    return np.ndarray((rows, *array.row_shape), array.dtype, data, 0, strides)


def _check_index(file: Path, array: ArrayLayout, index: np.ndarray) -> None:
    offsets, lengths = index.view("<u8").reshape(-1, 2).T
    expected = np.arange(len(offsets), dtype=np.uint64) * np.uint64(array.stride)
    if not np.array_equal(offsets, expected) or (lengths != array.stride).any():
        raise StoreError(
            f"{file}: rows do not lie at a fixed stride; it was not written by bieff, or is "
            "damaged: run `bieff store verify`"
        )


class RowReader:
    """Rows of all arrays of a partition, through the maps."""

    def __init__(
        self, partition: Path, geometry: Geometry, *, check: Callable[[int], None]
    ) -> None:
        """Nothing is opened yet; `check` raises if a shard may not be read."""
        self._partition = partition
        self._geometry = geometry
        self._arrays = geometry.arrays
        self._check = check
        self._maps: dict[tuple[str, int], np.ndarray] = {}
        # each map holds a descriptor: leave some to another partition, and to everything else
        self._most_maps = max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 3)

    def take(
        self, name: str, rows: Rows, slices: Slices = (), out: np.ndarray | None = None
    ) -> Shaped[np.ndarray, "n ..."]:
        """Copy rows out of the maps.

        Raises:
            IndexError: If a row is not a video.
            StoreError: If its shard is not finished.
        """
        array = self._arrays[name]
        numbers = self._numbers(rows)
        inner = tuple(part or slice(None) for part in slices)
        cut = (
            len(range(size)[part]) for size, part in zip(array.row_shape, inner, strict=False)
        )
        shape = (len(numbers), *cut, *array.row_shape[len(inner) :])
        if out is None:
            out = np.empty(shape, array.dtype)
        elif out.shape != shape or out.dtype != array.dtype:
            raise ValueError(
                f"out: expected {array.dtype} {shape}, got {out.dtype} {out.shape}"
            )
        shards, places = np.divmod(numbers, self._geometry.rows_per_shard)
        for to, (shard, place) in enumerate(zip(shards.tolist(), places.tolist(), strict=True)):
            shard_rows = self._maps.get((name, shard))
            if shard_rows is None:
                shard_rows = self._open(array, shard)
            out[to] = shard_rows[(place, *inner)]
        return out

    def forget(self, shard: int) -> None:
        """Map the shard anew at the next read; its files have changed."""
        for name in self._arrays:
            self._maps.pop((name, shard), None)

    def _open(self, array: ArrayLayout, shard: int) -> np.ndarray:
        self._check(shard)
        if len(self._maps) >= self._most_maps:
            del self._maps[next(iter(self._maps))]
        file = array.file(self._partition, shard)
        mapped = map_shard(file, array, self._geometry.rows_per_shard)
        self._maps[array.name, shard] = mapped
        return mapped

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
