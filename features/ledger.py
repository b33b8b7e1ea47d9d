"""The ledger: a marker for each finished shard, written last and at once.

A shard without a marker does not exist, whatever lies in its files: zarr reads a missing or
zero-length shard as fill values without an error, so sizes and checksums decide, not zarr.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from bieff.features.durable import sync_folder, write_atomically
from bieff.features.schema import SCHEMA_VERSION, Status


@dataclass(frozen=True, slots=True)
class FileSum:
    """A finished file."""

    size: int
    """Bytes."""

    sha256: str
    """Of the whole file.

    Not its crc32c: a row followed by its own crc32c leaves the checksum of the file at the
    same value whatever the row holds, so that two shards of equal length would pass for
    each other.
    """


@dataclass(frozen=True, kw_only=True, slots=True)
class Marker:
    """Says that a shard is finished, and what its files must be."""

    partition: str
    shard: int
    start: int
    """First row."""

    stop: int
    """After the last row that is a video."""

    recipe_hash: str
    files: Mapping[str, FileSum]
    """By array."""

    counts: Mapping[str, int]
    """Videos by status."""

    seconds: Mapping[str, float]
    """Where the time went."""

    @property
    def has_failed(self) -> bool:
        """Whether a video of the shard has failed (`Status.failed`)."""
        return any(Status[name.upper()].failed for name, num in self.counts.items() if num)


class Ledger:
    """The markers of a store, `ledger/<partition>-<shard>.json`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def file(self, partition: str, shard: int) -> Path:
        """Where the marker of a shard lies."""
        return self._folder / f"{partition}-{shard:05d}.json"

    def write(self, marker: Marker) -> None:
        """Finish a shard."""
        values = {"schema_version": SCHEMA_VERSION, **asdict(marker)}
        text = json.dumps(values, indent=1, sort_keys=True) + "\n"
        write_atomically(self.file(marker.partition, marker.shard), text.encode())

    def read(self, partition: str, shard: int) -> Marker | None:
        """The marker of a shard; None where there is none that can be read."""
        try:
            values = json.loads(self.file(partition, shard).read_bytes())
            if values.pop("schema_version") != SCHEMA_VERSION:
                return None
            files = {name: FileSum(**file) for name, file in values.pop("files").items()}
            return Marker(files=files, **values)
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def remove(self, partition: str, shard: int) -> bool:
        """Make a shard unfinished.  False where it was."""
        try:
            self.file(partition, shard).unlink()
        except FileNotFoundError:
            return False
        sync_folder(self._folder)
        return True
