"""The crc32c that zarr keeps beside every row, checked without zarr."""

from pathlib import Path
from typing import Any

import numpy as np
from google_crc32c import value as crc32c

from bieff.features.layout import CRC_BYTES, ArrayLayout


def is_whole(data: np.ndarray) -> bool:
    """Whether bytes agree with the crc32c at their end."""
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
