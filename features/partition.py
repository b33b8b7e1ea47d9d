"""A partition of a store: the rows of one list of videos, written by shards, read by rows.

Letters as in `schema`: N videos, n of them asked for, V views, T frames, D width.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float16, Int32, Int64, Shaped, UInt8

from bieff.features import shard as shard_files
from bieff.features.errors import StoreError
from bieff.features.files import disk_errors
from bieff.features.rows import RowReader, Rows
from bieff.features.schema import CRC_BYTES, Geometry, ShardData, Status, Video, VideoError
from bieff.features.shard import (
    Ledger,
    Marker,
    is_whole,
    read_errors,
    require_reasons,
    write_errors,
)
from bieff.features.videos import VideoTable, table_file


class Partition:
    """The rows of one list of videos.

    Two tasks must never write one shard at the same time: `FeatureStore.exclusive` keeps
    other runs out, and a run gives each shard to one task.
    """

    def __init__(self, store: Path, name: str, geometry: Geometry, recipe_hash: str) -> None:
        self.name = name
        self.path = store / name
        self.recipe_hash = recipe_hash
        self.geometry = geometry
        self.num_videos = geometry.num_videos
        self.num_rows = geometry.num_rows
        """Videos and padding."""
        self.num_shards = geometry.num_shards
        self.rows_per_shard = geometry.rows_per_shard
        self.num_views = geometry.num_views
        self.num_frames = geometry.num_frames
        self.dim = geometry.dim
        self._errors = store / "errors"
        self._ledger = Ledger(store / "ledger")
        self._table = VideoTable(table_file(store, name))
        self._reader = RowReader(self.path, geometry, check=self._require_done)

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        """A copy in another process opens its own map."""
        return (Partition, (self.path.parent, self.name, self.geometry, self.recipe_hash))

    @cached_property
    def videos(self) -> list[Video]:
        """All videos, by row; read when first asked for, some 400 bytes of memory each."""
        return self._table.read(0, self.num_videos)

    def shard_videos(self, shard: int) -> list[Video]:
        """The videos of one shard, without reading the others."""
        rows = self.geometry.rows(shard)
        return self._table.read(rows.start, rows.stop)

    @cached_property
    def labels(self) -> Int64[np.ndarray, " N"]:
        """Index into the class names, by row.

        Raises:
            StoreError: If their file is not there, or its size or checksum differs.
        """
        return self.column("labels", "<i4").astype(np.int64)

    def column(self, name: str, dtype: str) -> Shaped[np.ndarray, " N"]:
        """One of `schema.columns_of`, by row.

        Raises:
            StoreError: If its file is not there, or its size or checksum differs.
        """
        num_bytes = np.dtype(dtype).itemsize * self.num_rows + CRC_BYTES
        data = self._read_file(self.path / name / "c" / "0", num_bytes)
        return data[:-CRC_BYTES].view(dtype)[: self.num_videos]

    def _read_file(self, file: Path, num_bytes: int) -> np.ndarray:
        try:
            data = np.fromfile(file, np.uint8)
        except OSError as error:
            raise StoreError(f"cannot read {file}: {error.strerror}") from None
        if data.size != num_bytes or not is_whole(data):
            raise StoreError(f"{file}: its checksum differs; run `bieff store verify`")
        return data

    # --- writing

    def write_shard(
        self,
        shard: int,
        data: ShardData,
        *,
        errors: Sequence[VideoError],
        seconds: Mapping[str, float],
        expected: Marker | None = None,
        versions: Mapping[str, str] | None = None,
    ) -> None:
        """Write a shard, or write it again; its marker comes last.

        Whatever happens on the way, the shard is either finished or has no marker.

        Args:
            shard: Number of the shard.
            data: The rows of its videos, without padding.
            errors: At least one for every video without embeddings.
            seconds: Where the time went, for the marker.
            expected: The marker of the same shard elsewhere, of which this is a copy.
            versions: The libraries at work, for the marker.

        Raises:
            ValueError: If the data do not fit the store, or an error is missing.
            StoreError: If the disk is full, did not keep what was written, or the data are
                not those of the expected marker.
        """
        rows = self.geometry.rows(shard)
        shard_files.check(data, self.geometry, shard)
        require_reasons(data.status, errors, rows)
        with disk_errors(self.path):
            self._ledger.remove(self.name, shard)
            self._reader.forget(shard)
            files = {}
            for name, array in self.geometry.arrays.items():
                files[name] = shard_files.write(
                    self.path, array, shard, data, self.rows_per_shard
                )
            write_errors(self._error_file(shard), errors)
            counts = Counter(Status(value).name.lower() for value in data.status.tolist())
            marker = Marker(
                partition=self.name,
                shard=shard,
                start=rows.start,
                stop=rows.stop,
                recipe_hash=self.recipe_hash,
                files=files,
                counts=dict(counts),
                seconds=dict(seconds),
                versions=dict(versions or {}),
            )
            if expected is not None and marker != expected:
                other = [name for name in files if files[name] != expected.files.get(name)]
                raise StoreError(
                    f"{', '.join(other) or 'the marker'} of {self.name} shard {shard} is not "
                    "what was exported; export it again"
                )
            self._ledger.write(marker)

    def drop(self, shard: int) -> bool:
        """Remove a shard's marker, so that the next `bieff extract` writes it again.

        Returns:
            Whether there was one.
        """
        self._reader.forget(shard)
        return self._ledger.remove(self.name, shard)

    # --- what is done

    def marker(self, shard: int) -> Marker | None:
        """The marker of a finished shard, None otherwise.

        Finished: the marker is of this recipe and the files have its sizes.  Checksums are
        for `bieff store verify`.
        """
        marker = self.claim(shard)
        if marker is None:
            return None
        for name, array in self.geometry.arrays.items():
            size = array.file_bytes(self.rows_per_shard)
            file = array.file(self.path, shard)
            known = marker.files.get(name)
            if known is None or known.size != size:
                return None
            if not file.is_file() or file.stat().st_size != size:
                return None
        return marker

    def claim(self, shard: int) -> Marker | None:
        """The marker of this recipe, whatever became of the files."""
        marker = self._ledger.read(self.name, shard)
        if marker is None or marker.recipe_hash != self.recipe_hash:
            return None
        return marker

    def done(self) -> Bool[np.ndarray, " shards"]:
        """True for each finished shard."""
        finished = [self.marker(shard) is not None for shard in range(self.num_shards)]
        return np.array(finished, dtype=bool)

    def pending(self, *, retry_failed: bool = False) -> list[int]:
        """Shards to be written, in order.

        Args:
            retry_failed: Also the finished ones that hold a video that is not whole: failed,
                missing or salvaged.
        """
        pending = []
        for shard in range(self.num_shards):
            marker = self.marker(shard)
            if marker is None or (retry_failed and marker.has_bad):
                pending.append(shard)
        return pending

    def status(self) -> UInt8[np.ndarray, " N"]:
        """Status of each video; `Status.PENDING` in shards that are not finished.

        Raises:
            StoreError: If the checksum of a shard's statuses differs.
        """
        status = np.full(self.num_videos, int(Status.PENDING), np.uint8)
        array = self.geometry.arrays["status"]
        for shard in np.flatnonzero(self.done()).tolist():
            rows = self.geometry.rows(shard)
            size = array.file_bytes(self.rows_per_shard)
            data = self._read_file(array.file(self.path, shard), size)
            status[rows.start : rows.stop] = data[: len(rows)]
        return status

    def errors(self) -> list[VideoError]:
        """Errors of the finished shards, by row."""
        found = []
        for shard in np.flatnonzero(self.done()).tolist():
            found += read_errors(self._error_file(shard))
        return found

    # --- reading

    def read(
        self,
        rows: Rows,
        views: slice | None = None,
        *,
        frames: slice | None = None,
        out: Float16[np.ndarray, "n V T D"] | None = None,
    ) -> Float16[np.ndarray, "n V T D"]:
        """Embeddings of some rows, through the map; NaN where a video is not usable.

        Args:
            rows: Which videos.
            views: Which views; None takes all.
            frames: Which frames, such as `slice(None, None, 4)`; None takes all.
            out: Where to put them; None makes an array.

        Raises:
            StoreError: If a row's shard is not finished.
        """
        return self._reader.take("embeddings", rows, (views, frames), out)

    def read_patches(
        self, rows: Rows, views: slice | None = None
    ) -> Float16[np.ndarray, "n V P W"]:
        """Patch tokens of some rows, averaged over time, through the map.

        Raises:
            StoreError: If the store has none, or a row's shard is not finished.
        """
        if self.geometry.patches is None:
            raise StoreError(
                f"{self.path} has no patches; extract again with `--context patches`"
            )
        return self._reader.take("patches", rows, (views,))

    def frames(self, rows: Rows) -> Int32[np.ndarray, "n V T"]:
        """Numbers of the frames really decoded; -1 where a video is not usable."""
        return self._reader.take("frames", rows)

    def read_shard(self, shard: int) -> ShardData:
        """All rows of a finished shard, to be written again with some of them redone."""
        rows = self.geometry.rows(shard)
        arrays = {name: self._reader.take(name, rows) for name in self.geometry.arrays}
        return ShardData(**arrays)

    def _require_done(self, shard: int) -> None:
        if self.marker(shard) is None:
            rows = self.geometry.rows(shard)
            raise StoreError(
                f"{self.path}: rows {rows.start} to {rows.stop - 1} are not extracted; run "
                "`bieff extract` again to finish"
            )

    def shard_files(self, shard: int) -> tuple[Path, Path]:
        """Files of a shard's marker and of its errors, there or not."""
        return self._ledger.file(self.name, shard), self._error_file(shard)

    def _error_file(self, shard: int) -> Path:
        return self._errors / f"{self.name}-{shard:05d}.jsonl"
