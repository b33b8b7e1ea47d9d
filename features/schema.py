"""The arrays of a partition: shapes, files, and the fixed stride that lets them be mapped.

Each shard is one uncompressed file, `<partition>/<array>/c/<shard>/0/...`:

    embeddings, patches   sharded; each row followed by its crc32c, then zarr's index of
                          (offset, length) a row and the crc32c of the index
    frames, status        the rows, then one crc32c

so row r of a shard begins at r * (row bytes + 4), or at r * row bytes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float16, Float64, Int32, UInt8


def counted(number: int, noun: str) -> str:
    """A number and what it counts, plural unless it is one: "1 video", "1,240 videos"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


SCHEMA_VERSION = 1
"""Raised when a store of an older version can no longer be read as it lies."""

UNLABELLED = -1
"""Label of a video whose class nobody said."""


class Status(IntEnum):
    """Fate of a video; the numbers are what `status` arrays hold."""

    PENDING = 0
    OK = 1
    SALVAGED = 2
    """Usable, but the file is damaged: its frames come from the part that decodes."""

    MISSING = 3
    CORRUPT = 4
    TIMEOUT = 5
    CRASHED = 6
    PADDING = 255
    """Not a video: a row that fills the last shard."""

    @property
    def usable(self) -> bool:
        """True if the row carries embeddings."""
        return self in (Status.OK, Status.SALVAGED)

    @property
    def failed(self) -> bool:
        """True if the video was tried and has no embeddings; `--retry-failed` tries it again.

        A missing file counts as failed: only the user knows whether it lies there by now, and
        looking costs nothing.
        """
        return self in (Status.MISSING, Status.CORRUPT, Status.TIMEOUT, Status.CRASHED)


@dataclass(frozen=True, kw_only=True, slots=True)
class Video:
    """One video of a data set's list, or a part of one."""

    id: str
    """Names the video; unique in its partition, the same on every machine."""

    path: str
    """Relative to the store's `root`, or absolute."""

    label: int
    """Index into the class names, or `UNLABELLED`."""

    size: int = 0
    """Bytes of the file; 0 where the file was not found."""

    splits: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Official split -> role, such as {"1": "train", "2": "test"}."""

    start: float | None = None
    """Of a part: seconds from the first frame of the video; None: the whole video."""

    end: float | None = None
    """Of a part: what is shown then is no part of it any more."""

    @property
    def place(self) -> str:
        """The file, and which part of it, for people."""
        return self.path if self.start is None else f"{self.path}@{self.start}-{self.end}"


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoError:
    """Reason for which a video is not `Status.OK`; a line of an error file."""

    row: int
    """Row of the partition, not of the shard."""

    id: str
    path: str
    """The file, with its times behind an @ where a part of it is meant."""

    status: Status
    stage: str
    """"find", "decode" or "encode"."""

    decoder: str
    message: str
    attempt: int
    """Counted from 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PartitionPlan:
    """Plan of a partition: a row for each video, in this order."""

    videos: Sequence[Video]
    num_views: int
    rows_per_shard: int | None = None
    """S; None chooses one from the number of videos and the bytes of a row."""


@dataclass(frozen=True, slots=True, eq=False)
class ShardData:
    """The rows of one shard, without padding.

    Rows whose status is not usable carry nothing: whatever they hold here, the store keeps
    NaN embeddings and frame numbers -1.
    """

    embeddings: Float16[np.ndarray, "n V T D"]
    """Embeddings as the visual tower projects them, not normalised."""

    frames: Int32[np.ndarray, "n V T"]
    """Numbers of the frames really decoded."""

    status: UInt8[np.ndarray, " n"]
    patches: Float16[np.ndarray, "n V P W"] | None = None
    """Mean over time of the normalised patch tokens."""


CRC_BYTES = 4
_INDEX_BYTES = 16
_MAX_SHARD_BYTES = 128 * 2**20
"""zarr copies a shard about three times while it writes one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ArrayLayout:
    """One array of a partition; its first dimension is the video."""

    name: str
    dtype: np.dtype[Any]
    row_shape: tuple[int, ...]
    dims: tuple[str, ...]
    """Names of the dimensions after the first."""

    fill: float | int
    """Value of padding and unusable rows, which zarr gives for shards not written too."""

    is_sharded: bool
    """True if every row has its own checksum."""

    attributes: Mapping[str, Any]

    @property
    def row_bytes(self) -> int:
        """Bytes of a row's values, without its checksum."""
        return math.prod(self.row_shape) * self.dtype.itemsize

    @property
    def stride(self) -> int:
        """Bytes from the beginning of a row to that of the next."""
        return self.row_bytes + (CRC_BYTES if self.is_sharded else 0)

    def file_bytes(self, rows: int) -> int:
        """Size of a shard's file."""
        if self.is_sharded:
            return rows * (self.stride + _INDEX_BYTES) + CRC_BYTES
        return rows * self.stride + CRC_BYTES

    def file(self, partition: Path, shard: int) -> Path:
        """The file of a shard."""
        return partition.joinpath(self.name, "c", str(shard), *("0" for _ in self.row_shape))


@dataclass(frozen=True, kw_only=True, slots=True)
class Geometry:
    """Sizes of a partition."""

    num_videos: int
    num_views: int
    num_frames: int
    dim: int
    patches: tuple[int, int] | None
    """(P, W), or None without patches."""

    rows_per_shard: int

    @property
    def num_shards(self) -> int:
        """Shards that hold all videos."""
        return -(-self.num_videos // self.rows_per_shard)

    @property
    def num_rows(self) -> int:
        """Videos and padding."""
        return self.num_shards * self.rows_per_shard

    def rows(self, shard: int) -> range:
        """Rows of the shard's videos, without padding."""
        start = shard * self.rows_per_shard
        return range(start, min(start + self.rows_per_shard, self.num_videos))

    @property
    def arrays(self) -> dict[str, ArrayLayout]:
        """The arrays a shard writes, by name, embeddings first."""
        views, frames = self.num_views, self.num_frames
        arrays = [
            _rows("embeddings", (views, frames, self.dim), ("view", "frame", "embedding")),
            ArrayLayout(
                name="frames",
                dtype=np.dtype("<i4"),
                row_shape=(views, frames),
                dims=("view", "frame"),
                fill=-1,
                is_sharded=False,
                attributes={"meaning": "number of the frame in the video, -1 for none"},
            ),
            ArrayLayout(
                name="status",
                dtype=np.dtype("u1"),
                row_shape=(),
                dims=(),
                fill=int(Status.PENDING),
                is_sharded=False,
                attributes={
                    "flag_values": [int(status) for status in Status],
                    "flag_meanings": " ".join(status.name.lower() for status in Status),
                },
            ),
        ]
        if self.patches is not None:
            arrays.append(_rows("patches", (views, *self.patches), ("view", "patch", "width")))
        return {array.name: array for array in arrays}


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """An array with a number for each video, written when the store is planned."""

    values: Int32[np.ndarray, " N"] | Float64[np.ndarray, " N"]
    fill: float | int
    """Value of padding."""

    meaning: str


def columns_of(videos: Sequence[Video]) -> dict[str, Column]:
    """The labels, and where there are parts of videos their times, by name of the array."""
    labels = np.array([video.label for video in videos], np.int32)
    meaning = "index into the class names, -1 for unlabelled and for padding"
    columns = {"labels": Column(labels, -1, meaning)}
    if any(video.start is not None for video in videos):
        for name in ("start", "end"):
            values = np.array([getattr(video, name) for video in videos], np.float64)
            meaning = f"{name} of a part of a video, seconds from its first frame; else NaN"
            columns[name] = Column(values, math.nan, meaning)
    return columns


def rows_per_shard(num_videos: int, row_bytes: int) -> int:
    """S: about a 256th of the videos, a power of two in 64..1024, a shard at most 128 MiB.

    The bytes go first, so that very long rows may make it as small as 1.
    """
    wanted: int = 2 ** max(6, min(10, round(math.log2(max(1, num_videos / 256)))))
    fitting: int = 2 ** max(0, int(math.log2(max(1, _MAX_SHARD_BYTES // row_bytes))))
    return min(wanted, fitting)


def _rows(name: str, row_shape: tuple[int, ...], dims: tuple[str, ...]) -> ArrayLayout:
    return ArrayLayout(
        name=name,
        dtype=np.dtype("<f2"),
        row_shape=row_shape,
        dims=dims,
        fill=float("nan"),
        is_sharded=True,
        attributes={},
    )
