"""What a feature store holds: its version, the status of a video, and the records that go in.

Letters: N videos of a partition, n videos of a shard, V views of a video, T frames of a view,
D width of the joint space, P patches of a frame, W width of the visual tower.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from jaxtyping import Float16, Int32, UInt8

SCHEMA_VERSION = 1
"""Raised when a store of an older version can no longer be read as it lies."""

UNLABELLED = -1
"""Label of a video whose class nobody said."""


class Status(IntEnum):
    """What became of a video; the numbers are what `status` arrays hold."""

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
        """Whether the row carries embeddings."""
        return self in (Status.OK, Status.SALVAGED)

    @property
    def failed(self) -> bool:
        """Whether the video was tried and has no embeddings; `--retry-failed` tries it again.

        A missing file counts as failed: only the user knows whether it lies there by now, and
        looking costs nothing.
        """
        return self in (Status.MISSING, Status.CORRUPT, Status.TIMEOUT, Status.CRASHED)


@dataclass(frozen=True, kw_only=True, slots=True)
class Video:
    """One video of a data set's list."""

    id: str
    """Names the video; unique in its partition, the same on every machine."""

    path: str
    """Relative to the store's `root`, or absolute."""

    label: int
    """Index into the class names, or `UNLABELLED`."""

    size: int = 0
    """Of the file, bytes; 0 where the file was not found."""

    splits: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Official split -> role, such as {"1": "train", "2": "test"}."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoError:
    """Why a video is not `Status.OK`; a line of an error file."""

    row: int
    """Of the partition, not of the shard."""

    id: str
    path: str
    status: Status
    stage: str
    """"find", "decode" or "encode"."""

    decoder: str
    message: str
    attempt: int
    """Counted from 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PartitionPlan:
    """What a partition will hold: a row for each video, in this order."""

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
    """As the visual tower projects them, not normalised."""

    frames: Int32[np.ndarray, "n V T"]
    """Numbers of the frames really decoded."""

    status: UInt8[np.ndarray, " n"]
    patches: Float16[np.ndarray, "n V P W"] | None = None
    """Mean over time of the normalised patch tokens."""
