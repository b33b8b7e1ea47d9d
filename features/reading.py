"""Reading rows of a partition: through the map, and through zarr with the same result."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import zarr
from jaxtyping import Int64, Shaped

from bieff.features.layout import Geometry
from bieff.features.mapped import MappedArray

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
