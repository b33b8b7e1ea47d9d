"""One range of addresses for many files, so that numpy indexes them as one array.

`mmap` cannot say where a file is to lie; the C library can.  Files mapped one by one need a
Python step for every row that is read, which costs more than copying a short row.
"""

import ctypes
import mmap
import os
import weakref
from pathlib import Path

_MAP_FIXED = 0x10
"""The same number on Linux, macOS and the BSDs; Python's `mmap` has no name for it."""

_FAILED = ctypes.c_void_p(-1).value


class AddressRange:
    """Reserved addresses, in slots of whole pages; a slot holds one file, read-only."""

    def __init__(self, num_slots: int, file_bytes: int) -> None:
        """Reserve; no memory is used before a file is mapped and read.

        Args:
            num_slots: How many files fit.
            file_bytes: Size of each.
        """
        self.slot_bytes = -(-file_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self._file_bytes = file_bytes
        self._num_bytes = num_slots * self.slot_bytes
        self._libc = _libc()
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._start = self._map(None, self._num_bytes, 0, flags, -1)
        weakref.finalize(self, self._libc.munmap, self._start, self._num_bytes)

    def buffer(self) -> memoryview:
        """All addresses; touching a slot that holds no file ends the process.

        The range must outlive it.
        """
        return memoryview((ctypes.c_char * self._num_bytes).from_address(self._start))

    def map_file(self, slot: int, file: Path) -> None:
        """Put a file of the right size into a slot, in place of what is there."""
        descriptor = os.open(file, os.O_RDONLY)
        try:
            if os.fstat(descriptor).st_size != self._file_bytes:
                raise ValueError(f"{file}: expected {self._file_bytes} bytes")
            address = self._start + slot * self.slot_bytes
            flags = mmap.MAP_SHARED | _MAP_FIXED
            self._map(address, self._file_bytes, mmap.PROT_READ, flags, descriptor)
        finally:
            os.close(descriptor)

    def _map(
        self, address: int | None, num_bytes: int, protection: int, flags: int, descriptor: int
    ) -> int:
        mapped = self._libc.mmap(address, num_bytes, protection, flags, descriptor, 0)
        if mapped is None or mapped == _FAILED:
            number = ctypes.get_errno()
            raise OSError(number, f"cannot map {num_bytes:,} bytes: {os.strerror(number)}")
        return int(mapped)


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_long,
    ]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc
