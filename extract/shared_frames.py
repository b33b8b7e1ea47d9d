"""Messages between two processes over a socket, with frames beside them that are not copied.

A message is its length (8 bytes), then its pickle.  Frames travel as an open anonymous file in
memory, passed along with the length; both sides see the same pages.  Such a file has no name
and goes with the last process that holds it, however that ends: nothing can be left behind in
/dev/shm, and the size limit of that file system does not apply.
"""

import mmap
import os
import pickle
import socket
import struct
import tempfile
from typing import Any

import numpy as np
from jaxtyping import UInt8

_LENGTH = struct.Struct("<Q")


def anonymous_file(name: str) -> int:
    """Open a file in memory, without a name in any folder; the descriptor reads and writes."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def pack(message: object) -> bytes:
    """Pickle a message by itself, to be sent later."""
    return pickle.dumps(message)


def send(
    channel: socket.socket, message: object, frames: UInt8[np.ndarray, "n H W 3"] | None = None
) -> None:
    """Send a message, pickled or packed already, and frames with it.

    Raises:
        OSError: If the other side is gone, or memory for the frames is.
    """
    payload = message if isinstance(message, bytes) else pack(message)
    header = _LENGTH.pack(len(payload))
    if frames is None:
        channel.sendall(header + payload)
        return
    file = anonymous_file("frames")
    try:
        left = np.ascontiguousarray(frames).data.cast("B")
        while left:
            left = left[os.write(file, left) :]
        socket.send_fds(channel, [header], [file])
    finally:
        os.close(file)
    channel.sendall(payload)


def receive(channel: socket.socket) -> tuple[Any, int | None]:
    """Wait for a message; return it, and the descriptor of its frames if it brings any.

    Raises:
        EOFError: If the other side is gone.
    """
    flags = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
    header, files, _, _ = socket.recv_fds(channel, _LENGTH.size, 1, flags)
    if not header:
        raise EOFError
    header += _receive_exactly(channel, _LENGTH.size - len(header))
    (length,) = _LENGTH.unpack(header)
    return pickle.loads(_receive_exactly(channel, length)), files[0] if files else None


def map_frames(file: int, shape: tuple[int, ...]) -> UInt8[np.ndarray, "n H W 3"]:
    """The frames in a file that was received, writable; the memory goes with the last view."""
    try:
        size = int(np.prod(shape))
        if os.fstat(file).st_size != size:
            raise EOFError  # the sender died while it wrote
        flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
        pages = mmap.mmap(file, size, flags)
    finally:
        os.close(file)
    return np.frombuffer(pages, dtype=np.uint8).reshape(shape)


def _receive_exactly(channel: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        part = channel.recv(min(length - len(data), 1 << 20))
        if not part:
            raise EOFError
        data += part
    return bytes(data)
