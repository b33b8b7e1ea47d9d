"""What is measured while training: metrics.jsonl for programs, events for TensorBoard."""

import json
import os
import struct
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

from google_crc32c import value as crc32c

EVENTS = "events.out.tfevents.bieff"
"""TensorBoard reads any file with "tfevents" in its name."""


class EventFile:
    """Appends scalars; TensorBoard shows them while the run goes on."""

    def __init__(self, path: Path) -> None:
        """Open for appending; a new file says its version first."""
        self._file: IO[bytes] = path.open("ab")
        if not self._file.tell():
            self._write(_text(3, b"brain.Event:2"))

    def add(self, step: int, values: dict[str, float]) -> None:
        """Write scalars of a step by tag."""
        summary = b"".join(
            _text(1, _text(1, tag.encode()) + b"\x15" + struct.pack("<f", value))
            for tag, value in values.items()
        )
        self._write(b"\x10" + _varint(step) + _text(5, summary))

    def close(self) -> None:
        """Nothing can be added afterwards."""
        self._file.close()

    def _write(self, event: bytes) -> None:
        event = b"\x09" + struct.pack("<d", time.time()) + event
        length = struct.pack("<Q", len(event))
        self._file.write(length + _masked(length) + event + _masked(event))
        self._file.flush()


def _varint(number: int) -> bytes:
    parts = []
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


def _text(field: int, value: bytes) -> bytes:
    """A field of bytes: its number and kind, its length, itself."""
    return bytes([field << 3 | 2]) + _varint(len(value)) + value


def _masked(data: bytes) -> bytes:
    """The crc32c, turned so that a checksum of checksums stays safe."""
    crc = crc32c(data)
    turned = (crc >> 15 | crc << 17) & 0xFFFFFFFF
    return struct.pack("<I", (turned + 0xA282EAD8) & 0xFFFFFFFF)


METRICS = "metrics.jsonl"


class Metrics(AbstractContextManager["Metrics"]):
    """Appends lines; the same figures go to both files.

    No line holds a time, so that a run that was stopped has the lines of one that was not.
    """

    def __init__(self, folder: Path, sizes: Mapping[str, int]) -> None:
        """Open the files of a run, cut back to what they were at its checkpoint.

        Args:
            folder: Of the run.
            sizes: Bytes to keep of each file, by name; 0 of one that is not named.
        """
        self._folder = folder
        for name in (METRICS, EVENTS):
            with (folder / name).open("ab") as file:
                file.truncate(sizes.get(name, 0))
        self._lines = (folder / METRICS).open("a", encoding="utf-8")
        self._events = EventFile(folder / EVENTS)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Write figures of a step."""
        self._lines.write(json.dumps({"step": step, **values}) + "\n")
        self._lines.flush()
        self._events.add(step, dict(values))

    def sizes(self) -> dict[str, int]:
        """Bytes of each file, which are on the disk when this returns."""
        os.fsync(self._lines.fileno())
        return {name: (self._folder / name).stat().st_size for name in (METRICS, EVENTS)}

    def __exit__(self, *exc_info: Any) -> None:
        """Close both files."""
        self._lines.close()
        self._events.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run, in order."""
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
