"""Statistics over a whole store, with Dask, that show a broken extraction.

A healthy store has norms within a narrow band (about 10 for ViT-B/16), neighbouring frames
that are alike but not equal, and videos that are less alike than frames.  Letters as in
`schema`: n videos, V views, T frames, D width.
"""

from dataclasses import dataclass

import dask.array as da
import numpy as np
from jaxtyping import Bool, Float16, Float32, Int32

from bieff.features.errors import StoreError
from bieff.features.partition import Partition
from bieff.features.shard import usable

_COLUMNS = ("norm", "frame_cosine", "video_cosine", "dead", "frozen")
_ALIKE = 0.999
"""Mean cosine between different videos from which on something must be wrong."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Of a number over videos."""

    minimum: float
    mean: float
    maximum: float
    deviation: float

    @classmethod
    def of(cls, values: np.ndarray) -> "Spread":
        """Of the values that are numbers; NaN where there are none."""
        real = values[~np.isnan(values)].astype(np.float64)
        if not real.size:
            return cls(np.nan, np.nan, np.nan, np.nan)
        return cls(float(real.min()), float(real.mean()), float(real.max()), float(real.std()))

    def __str__(self) -> str:
        return (
            f"{self.mean:.4g} +- {self.deviation:.3g}, {self.minimum:.4g} to {self.maximum:.4g}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Statistics:
    """Of the usable videos of a partition."""

    partition: str
    num_usable: int
    norm: Spread
    """Of a frame's embedding, mean over a video."""

    frame_cosine: Spread
    """Between neighbouring frames, mean over a video; NaN with one frame."""

    video_cosine: Spread
    """Between the mean embeddings of a video and the next usable one of its shard."""

    dead: tuple[int, ...]
    """Rows with a frame whose embedding is all zeros."""

    frozen: tuple[int, ...]
    """Rows with a view whose frames differ in number and are all equal as embeddings."""

    def findings(self) -> list[str]:
        """What looks broken, a sentence each; empty for a healthy partition."""
        found = []
        for rows, what in ((self.dead, "hold zeros"), (self.frozen, "repeat one frame")):
            if rows:
                some = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
                found.append(
                    f"{len(rows)} of {self.num_usable} videos {what} (rows {some}); "
                    "look at their files"
                )
        if self.video_cosine.mean > _ALIKE:
            found.append(
                f"all videos are nearly the same: mean cosine {self.video_cosine.mean:.5f} "
                "between different ones; check decoding, preprocessing and weights"
            )
        return found


def statistics(partition: Partition, *, scheduler: str = "threads") -> Statistics:
    """Read all usable rows of a partition, shard by shard.

    Args:
        partition: Finished or not.
        scheduler: Dask's.

    Raises:
        StoreError: If a row's checksum differs.
    """
    status = partition.status()
    padded = np.zeros(partition.num_rows, dtype=bool)
    padded[: partition.num_videos] = usable(status)
    rows = partition.rows_per_shard
    geometry = partition.geometry
    embeddings, frames = (
        da.from_zarr(
            str(partition.path / name), chunks=(rows, *geometry.arrays[name].row_shape)
        )
        for name in ("embeddings", "frames")
    )
    table = da.blockwise(
        row_statistics,
        "nk",
        embeddings,
        "nvtd",
        frames,
        "nvt",
        da.from_array(padded, chunks=rows),
        "n",
        new_axes={"k": len(_COLUMNS)},
        concatenate=True,
        dtype=np.float32,
        meta=np.empty((0, 0), np.float32),
    )
    try:
        values = table.compute(scheduler=scheduler)
    except ValueError as error:
        raise StoreError(f"{partition.path}: {error}; run `bieff store verify`") from error
    norm, frame_cosine, video_cosine, dead, frozen = values.T
    return Statistics(
        partition=partition.name,
        num_usable=int(padded.sum()),
        norm=Spread.of(norm),
        frame_cosine=Spread.of(frame_cosine),
        video_cosine=Spread.of(video_cosine),
        dead=tuple(np.flatnonzero(dead == 1).tolist()),
        frozen=tuple(np.flatnonzero(frozen == 1).tolist()),
    )


def row_statistics(
    embeddings: Float16[np.ndarray, "n V T D"],
    frames: Int32[np.ndarray, "n V T"],
    is_usable: Bool[np.ndarray, " n"],
) -> Float32[np.ndarray, "n 5"]:
    """Norm, cosine between frames and between videos, dead, frozen; NaN for unusable rows."""
    table = np.full((len(embeddings), len(_COLUMNS)), np.nan, np.float32)
    rows = np.flatnonzero(is_usable)
    if not rows.size:
        return table
    values = embeddings[rows].astype(np.float32)
    norms = np.linalg.norm(values, axis=-1)  # (n, V, T)
    table[rows, 0] = norms.mean(axis=(1, 2))
    if values.shape[2] > 1:
        cosines = _cosine(values[:, :, 1:], values[:, :, :-1])
        table[rows, 1] = cosines.mean(axis=(1, 2))
    means = values.mean(axis=(1, 2))
    table[rows[:-1], 2] = _cosine(means[1:], means[:-1])
    table[rows, 3] = (norms == 0).any(axis=(1, 2))
    moves = (frames[rows] != frames[rows][:, :, :1]).any(axis=2)
    same = (values == values[:, :, :1]).all(axis=(2, 3))
    table[rows, 4] = (moves & same).any(axis=1)
    return table


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Over the last dimension; 0 where one is zero."""
    product = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    cosine: np.ndarray = np.sum(a * b, axis=-1) / np.maximum(product, 1e-12)
    return cosine
