"""TensorBoard's event file, written without TensorBoard.

A file of records: length (u64), its masked crc32c (u32), an `Event` message, its masked
crc32c.  Scalars need five fields of the protocol buffers (tensorboard's event.proto and
summary.proto), which is less than the packages that would write them for us.
"""

import struct
import time
from pathlib import Path
from typing import IO

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
